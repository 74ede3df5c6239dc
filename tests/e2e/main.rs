//! The main job from outside: the real binaries on the demo model, over real sockets.

mod answers;
mod attached;
mod cli;
mod crash;
mod damage;
mod operation;
mod refusals;
