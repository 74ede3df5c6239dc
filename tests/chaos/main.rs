//! Chaos: workers die, hang and run out of memory under load, and no client notices. Real processes, real sockets,
//! the demo model.
//!
//! Sized for a machine with two cores: with `CHAOS_REQUESTS=2000 CHAOS_EVERY_MS=2000` in the environment each storm
//! has that many requests and strikes that far apart. Every storm prints what its clients felt (`--nocapture`).

mod client;
mod faults;
mod poison;
mod report;
mod single;
mod storm;
mod storms;
mod workload;
