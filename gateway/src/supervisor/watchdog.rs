//! Tells a hung worker from a slow or idle one by progress, not by its socket (pure: counters and time in, verdict
//! out). Used by `fleet::keeper` for every worker that has shaken hands, idle and loading ones included.
//!
//! A ping is answered twice. The process's heartbeat comes at once and says how far the engine's thread is, down to
//! the layer; a `Pong` comes from that thread itself, between two steps. So two silences are measured: of the process
//! (nothing came at all: stopped, swapped out, dead) and of the engine (it makes no progress while the process goes on
//! answering: a stuck kernel, a deadlock). A long prefill is progress layer by layer. While the model loads only the
//! process is watched here; how long one tensor may take is the machine's affair.
//!
//! What holds always: time in which nobody looked, since the gateway itself was stopped or starved, counts as one look.

use super::SupervisorTiming;
use shared::ipc::message::Phase;
use std::time::{Duration, Instant};

/// Looks that a hang must last at the least: one late look must not be the whole of the evidence.
const LOOKS_MIN: u32 = 4;

/// A worker's counters; only their change matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// The engine's step counter.
    pub(crate) step: u64,
    /// Pings answered by the engine.
    pub(crate) pongs: u64,
    /// Pings answered by the process.
    pub(crate) heartbeats: u64,
    /// The engine's progress, as the heartbeats say.
    pub(crate) progress: u64,
    /// What it does, by the last of them.
    pub(crate) phase: Phase,
}

impl Vitals {
    fn of_engine(&self) -> (u64, u64, u64) {
        (self.step, self.pongs, self.progress)
    }
}

/// Whether the engine can be expected to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The model is being loaded.
    Loading,
    /// It takes requests.
    Serving,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Quiet,
    /// Send a ping with this nonce.
    Ping(u64),
    /// The engine is hung while its process answers, in these words.
    Hung(String),
    /// The whole process answers nothing, in these words.
    Silent(String),
}

/// Watches one worker over one life of its process.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timing: SupervisorTiming,
    seen: Vitals,
    looked: Instant,
    process_silence: Duration,
    engine_silence: Duration,
    next_ping: Instant,
    nonce: u64,
}

impl Watchdog {
    pub(crate) fn new(timing: SupervisorTiming, now: Instant) -> Self {
        Self {
            timing,
            seen: Vitals::default(),
            looked: now,
            process_silence: Duration::ZERO,
            engine_silence: Duration::ZERO,
            next_ping: now,
            nonce: 0,
        }
    }

    /// How often [`Self::check`] is to be called.
    pub(crate) fn look_period(timing: &SupervisorTiming) -> Duration {
        timing.ping_interval.min(timing.hang / (LOOKS_MIN * 2))
    }

    /// Compares `vitals` with those of the last call.
    pub(crate) fn check(&mut self, now: Instant, engine: Engine, vitals: Vitals) -> Verdict {
        let passed = now.saturating_duration_since(self.looked).min(self.timing.hang / LOOKS_MIN);
        self.looked = now;
        self.process_silence += passed;
        self.engine_silence += passed;
        if vitals != self.seen {
            self.process_silence = Duration::ZERO;
        }
        if vitals.of_engine() != self.seen.of_engine() || engine == Engine::Loading {
            self.engine_silence = Duration::ZERO;
        }
        self.seen = vitals;
        let hang = self.timing.hang;
        if self.process_silence >= hang {
            return Verdict::Silent(format!("no answer for {hang:?}"));
        }
        if self.engine_silence >= hang {
            return Verdict::Hung(format!("no progress for {hang:?} while {}", vitals.phase));
        }
        if now < self.next_ping {
            return Verdict::Quiet;
        }
        // An idle worker shows nothing but its answers, so a short limit needs frequent pings.
        self.next_ping = now + self.timing.ping_interval.min(self.timing.hang / LOOKS_MIN);
        self.nonce += 1;
        Verdict::Ping(self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_S: u64 = 10;

    /// Looks at a worker each second; `vitals` says what it shows at that second. Gives the second of the verdict
    /// that it is hung, and the words, if that comes within a hundred.
    fn hung(engine: Engine, vitals: impl Fn(u64) -> Vitals) -> Option<(u64, String)> {
        let timing = SupervisorTiming {
            hang: Duration::from_secs(LIMIT_S),
            ping_interval: Duration::from_secs(1),
            ..SupervisorTiming::default()
        };
        let start = Instant::now();
        let mut watchdog = Watchdog::new(timing, start);
        (0..100).find_map(|second| {
            match watchdog.check(start + Duration::from_secs(second), engine, vitals(second)) {
                Verdict::Hung(words) | Verdict::Silent(words) => Some((second, words)),
                Verdict::Quiet | Verdict::Ping(_) => None,
            }
        })
    }

    #[test]
    fn a_process_that_answers_nothing_is_hung_in_every_state() {
        for engine in [Engine::Loading, Engine::Serving] {
            assert_eq!(hung(engine, |_| Vitals::default()), Some((LIMIT_S, "no answer for 10s".to_owned())));
        }
        let until_20 = |second: u64| Vitals { heartbeats: second.min(20), ..Vitals::default() };
        assert_eq!(hung(Engine::Loading, until_20).map(|(second, _)| second), Some(20 + LIMIT_S));
    }

    #[test]
    fn an_engine_that_stands_still_is_hung_though_its_process_answers() {
        let stuck = |second| Vitals {
            heartbeats: second,
            progress: second.min(30),
            phase: Phase::Computing,
            ..Vitals::default()
        };
        let expected = Some((30 + LIMIT_S, "no progress for 10s while computing".to_owned()));
        assert_eq!(hung(Engine::Serving, stuck), expected);
        assert_eq!(hung(Engine::Loading, stuck), None, "how long loading may take is decided elsewhere");
    }

    #[test]
    fn slow_and_idle_are_not_hung() {
        // A step of hours, one layer every nine seconds.
        let slow = |second| Vitals { heartbeats: second, progress: second / 9, ..Vitals::default() };
        assert_eq!(hung(Engine::Serving, slow), None);
        // Steps without a heartbeat in between, as from a process that is swamped with work.
        assert_eq!(hung(Engine::Serving, |second| Vitals { step: second / 9, ..Vitals::default() }), None);
        // Nothing to do: only the answers to pings.
        let idle =
            |second| Vitals { heartbeats: second, pongs: second, phase: Phase::Idle, ..Vitals::default() };
        assert_eq!(hung(Engine::Serving, idle), None);
    }

    #[test]
    fn time_in_which_nobody_looked_is_no_evidence() {
        let timing = SupervisorTiming { hang: Duration::from_secs(LIMIT_S), ..SupervisorTiming::default() };
        let start = Instant::now();
        let mut watchdog = Watchdog::new(timing, start);
        let vitals = Vitals { step: 3, ..Vitals::default() };
        for hour in 1..=3 {
            let now = start + Duration::from_secs(hour * 3600);
            assert_eq!(watchdog.check(now, Engine::Serving, vitals), Verdict::Ping(hour));
        }
    }

    #[test]
    fn an_idle_worker_is_asked_often_enough_for_a_short_limit() {
        let hang = Duration::from_millis(500);
        let timing = SupervisorTiming { hang, ..SupervisorTiming::default() };
        assert!(timing.ping_interval > hang);
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(timing, now);
        let mut vitals = Vitals::default();
        for _ in 0..200 {
            match watchdog.check(now, Engine::Serving, vitals) {
                Verdict::Ping(_) => {
                    (vitals.pongs, vitals.heartbeats) = (vitals.pongs + 1, vitals.heartbeats + 1)
                }
                Verdict::Quiet => {}
                Verdict::Hung(words) | Verdict::Silent(words) => panic!("{words}"),
            }
            now += Watchdog::look_period(&timing);
        }
    }

    #[test]
    fn pings_keep_their_interval() {
        let timing =
            SupervisorTiming { ping_interval: Duration::from_secs(1), ..SupervisorTiming::default() };
        let start = Instant::now();
        let mut watchdog = Watchdog::new(timing, start);
        let mut at =
            |ms| watchdog.check(start + Duration::from_millis(ms), Engine::Serving, Vitals::default());
        assert_eq!(
            [at(0), at(0), at(999), at(1000)],
            [Verdict::Ping(1), Verdict::Quiet, Verdict::Quiet, Verdict::Ping(2),]
        );
    }
}
