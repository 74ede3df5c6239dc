//! The worker: one process per device, token in, token out.
//!
//! `ipc_server` takes frames from the gateway, `engine` runs steps over a scheduler and a model, `model` is one
//! forward pass over a `backend`, `sampler` turns logits into tokens. All text lives in the gateway.

pub mod activity;
pub mod backend;
pub mod batch;
pub mod commands;
pub mod engine;
pub mod fault;
pub mod ipc_server;
pub mod kv_blocks;
pub mod model;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
