//! When a request arrived, was first computed and first answered.

use shared::ipc::message::Timings;
use std::time::{Duration, Instant};

/// The instants of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeline {
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Timeline {
    /// A request that has just arrived.
    pub(super) fn new(arrived: Instant) -> Self {
        Self { arrived, started: None, first_token: None }
    }

    /// It is part of a step; only the first one counts.
    pub(super) fn start(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// It has a token; only the first one counts.
    pub(super) fn emit(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
    }

    /// The durations between, if it ended `now`. A phase not reached ended `now` or took no time.
    pub(super) fn timings(&self, now: Instant, cached_tokens: u32) -> Timings {
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Timings {
            queue_us: microseconds(started.duration_since(self.arrived)),
            prefill_us: microseconds(first_token.duration_since(started)),
            decode_us: microseconds(now.duration_since(first_token)),
            cached_tokens,
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole() {
        let at = |ms| Duration::from_millis(ms);
        let arrived = Instant::now();
        let mut timeline = Timeline::new(arrived);
        let waiting = timeline.timings(arrived + at(5), 0);
        assert_eq!((waiting.queue_us, waiting.prefill_us, waiting.decode_us), (5000, 0, 0));
        timeline.start(arrived + at(10));
        timeline.start(arrived + at(20));
        timeline.emit(arrived + at(30));
        timeline.emit(arrived + at(40));
        let timings = timeline.timings(arrived + at(100), 7);
        assert_eq!((timings.queue_us, timings.prefill_us, timings.decode_us), (10_000, 20_000, 70_000));
        assert_eq!(timings.cached_tokens, 7);
    }
}
