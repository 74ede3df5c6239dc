//! What gateway and worker have in common: the GGUF reader, the tokenizer, the protocol between the two
//! processes, errors and logging. Imports nothing else of the workspace.

pub mod cores;
pub mod error;
pub mod gguf;
pub mod ids;
pub mod ipc;
pub mod sampling;
pub mod telemetry;
pub mod tokenizer;
