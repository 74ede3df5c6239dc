//! Tells a hung worker from a slow one by progress, not by its socket (pure: counters and time in, verdict out).
//!
//! First form: while a worker holds requests it is pinged; a step or an answer counts as a sign of life, and silence
//! longer than the limit as a hang. An idle worker is not watched.

use super::SupervisorTiming;
use std::time::Instant;

/// A worker's counters; only their change matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// The engine's step counter.
    pub(crate) step: u64,
    /// Pings answered.
    pub(crate) pongs: u64,
    /// Requests the worker holds.
    pub(crate) requests: usize,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Quiet,
    /// Send a ping with this nonce.
    Ping(u64),
    /// The worker is hung.
    Hung,
}

/// Watches one worker over one life of its process.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timing: SupervisorTiming,
    seen: Vitals,
    last_sign: Instant,
    next_ping: Instant,
    nonce: u64,
}

impl Watchdog {
    pub(crate) fn new(timing: SupervisorTiming, now: Instant) -> Self {
        Self { timing, seen: Vitals::default(), last_sign: now, next_ping: now, nonce: 0 }
    }

    /// Compares `vitals` with those of the last call.
    pub(crate) fn check(&mut self, now: Instant, vitals: Vitals) -> Verdict {
        let idle_before = self.seen.requests == 0;
        if vitals.requests == 0
            || idle_before
            || (vitals.step, vitals.pongs) != (self.seen.step, self.seen.pongs)
        {
            self.last_sign = now;
        }
        self.seen = vitals;
        if vitals.requests == 0 {
            return Verdict::Quiet;
        }
        if now.saturating_duration_since(self.last_sign) >= self.timing.hang {
            return Verdict::Hung;
        }
        if now < self.next_ping {
            return Verdict::Quiet;
        }
        self.next_ping = now + self.timing.ping_interval;
        self.nonce += 1;
        Verdict::Ping(self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Runs the watchdog over one (seconds, step, pongs, requests) reading after the other, with a limit of 10 s.
    fn check(readings: &[(u64, u64, u64, usize)], expected_last: Verdict) {
        let timing = SupervisorTiming {
            hang: Duration::from_secs(10),
            ping_interval: Duration::from_secs(1),
            ..SupervisorTiming::default()
        };
        let start = Instant::now();
        let mut watchdog = Watchdog::new(timing, start);
        let verdicts = readings.iter().map(|&(seconds, step, pongs, requests)| {
            watchdog.check(start + Duration::from_secs(seconds), Vitals { step, pongs, requests })
        });
        assert_eq!(verdicts.last(), Some(expected_last), "{readings:?}");
    }

    #[test]
    fn only_silence_while_requests_run_is_a_hang() {
        check(&[(0, 5, 0, 1), (9, 5, 0, 1)], Verdict::Ping(2));
        check(&[(0, 5, 0, 1), (10, 5, 0, 1)], Verdict::Hung);
        check(&[(0, 5, 0, 1), (9, 6, 0, 1), (18, 6, 0, 1)], Verdict::Ping(3));
        check(&[(0, 5, 0, 1), (9, 5, 1, 1), (18, 5, 1, 1)], Verdict::Ping(3));
        check(&[(0, 5, 0, 1), (9, 6, 0, 1), (19, 6, 0, 1)], Verdict::Hung);
        check(&[(0, 5, 0, 0), (100, 5, 0, 0)], Verdict::Quiet);
        check(&[(0, 5, 0, 0), (100, 5, 0, 1), (105, 5, 0, 1)], Verdict::Ping(2));
        check(&[(0, 5, 0, 1), (9, 5, 0, 0), (15, 5, 0, 1), (24, 5, 0, 1)], Verdict::Ping(3));
    }

    #[test]
    fn pings_keep_their_interval() {
        check(&[(5, 1, 0, 1), (5, 1, 0, 1)], Verdict::Quiet);
        check(&[(5, 1, 0, 1), (6, 1, 0, 1)], Verdict::Ping(2));
    }
}
