//! The HTTP server: socket, connections, and what every request passes through before and after its handler.
//!
//! Called by `cli::serve`. What always holds: open connections and their header times are bounded, a panicking
//! handler costs one 500, and shutdown first finishes what runs. Deliberately absent: TLS (a proxy's matter for now)
//! and routes' own logic (`api`).

mod auth;
mod connections;
mod request_id;
mod router;
mod write_timeout;

pub use auth::{ApiKeys, KeyFileError, KeyRing};
pub use connections::{Limits, OpenConnections, listen, serve};
pub use router::{RouterOptions, router};
