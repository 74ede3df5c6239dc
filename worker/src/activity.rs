//! What the engine's thread does and how often it got on with it, readable from other threads: by this the gateway
//! tells a slow step from a hang.
//!
//! Written by `engine`, by a model's forward pass after each layer and by the loader; read by `ipc_server`, which
//! answers pings beside the engine. What holds always: the count only grows, and only the engine's thread makes it
//! grow, so that a hung engine shows whoever else still answers.

use shared::ipc::message::Phase;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The phases, by the number they are kept as.
const PHASES: [Phase; 5] = [Phase::Loading, Phase::Idle, Phase::Computing, Phase::Sampling, Phase::Reporting];

/// One engine's phase and progress. Begins in [`Phase::Loading`].
#[derive(Debug, Default)]
pub struct Activity {
    phase: AtomicU8,
    progress: AtomicU64,
}

impl Activity {
    /// The engine does something else now, which is progress.
    pub fn enter(&self, phase: Phase) {
        let number = PHASES.iter().position(|known| *known == phase).unwrap_or(0);
        // Readers only compare; nothing else is published by these stores.
        self.phase.store(number as u8, Ordering::Relaxed);
        self.advance();
    }

    /// The engine got on with what it does.
    pub fn advance(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Phase and progress now.
    pub fn read(&self) -> (Phase, u64) {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        (PHASES.get(number).copied().unwrap_or_default(), self.progress.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_read_as_it_was_entered_and_every_move_is_progress() {
        let activity = Activity::default();
        assert_eq!(activity.read(), (Phase::Loading, 0));
        for (count, phase) in (1..).zip(PHASES) {
            activity.enter(phase);
            assert_eq!(activity.read(), (phase, count));
        }
        activity.advance();
        assert_eq!(activity.read(), (Phase::Reporting, 6));
    }
}
