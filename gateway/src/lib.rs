//! The gateway: OpenAI-compatible HTTP in front, workers behind, and the command line around both.
//!
//! Imports point one way: `server → api → generation → {prompt, fleet}`. Only `api` and `server` know axum.

mod admission;
pub mod api;
pub mod cli;
pub mod config;
mod demo_model;
pub mod fleet;
pub mod generation;
mod ledger;
pub mod metrics;
pub mod openai;
pub mod prompt;
pub mod rate_limit;
mod routing;
pub mod secret;
pub mod server;
mod supervisor;
mod worker_client;
