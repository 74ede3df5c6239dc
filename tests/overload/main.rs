//! More than the server can do, and clients that misbehave: over real sockets, on the real executables. What must hold
//! is that nothing of theirs stays behind, that others do not notice, and that the server says no quickly.

mod flood;
mod hostile;

use harness::{Server, poll};

/// Waits until nothing of any request is left: not in the gateway, not in the worker, not in its cache.
fn wait_settled(server: &Server) {
    poll("every slot and block to be free", || {
        let gauge = |name: &str| server.metric(name);
        let is_idle = gauge("rocmforge_running_sequences")? == 0.0
            && gauge("rocmforge_active_requests")? == 0.0
            && gauge("rocmforge_queue_length")? == 0.0
            && gauge("rocmforge_worker_requests_in_flight")? == 0.0;
        let is_whole = gauge("rocmforge_engine_kv_blocks_free")? == gauge("rocmforge_engine_kv_blocks")?;
        (is_idle && is_whole).then_some(())
    });
}
