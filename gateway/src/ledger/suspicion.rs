//! What a request's past deaths of workers say about it (pure). Used by `ledger` for each request it holds.
//!
//! A crash makes every request the worker had been handed a *suspect*: which of them it computed at that instant
//! nobody can tell, since what it said last died with it. Suspects of two crashes are *isolated*: each runs alone in a
//! worker until it has shown convincing progress. One that crashes a worker while alone, at the same place as before, is
//! *poison*: twice without getting on, or after as many tokens of each run. A crash at another place of its output
//! looks like chance, such as a signal sent by somebody: the request is tried alone again, later each time.
//!
//! Kills from outside (SIGKILL that we did not send, the out-of-memory killer) never condemn. Three in a row without
//! convincing progress isolate, so that a request that makes its worker run out of memory harms nobody else; it is then
//! tried again, ever later, until its deadline. What ends on demand says nothing.
//!
//! What holds always: a request that crashes its worker every time at the same index, or after the same number of
//! tokens up to [`RUN_TOKENS_MAX`], crashes three at most; one that makes convincing progress is as good as new, so
//! that the number of crashes survived has no bound but the request's own length and deadline.

use std::time::Duration;

/// Crashes that isolate a request.
const CRASHES_MAX: u32 = 2;
/// Kills from outside in a row that isolate a request.
const KILLS_MAX: u32 = 3;
/// Tokens past the place of the last death that count as progress: more than a step emits (8, with speculation), since
/// what a worker emitted last may die with it and is then only emitted again.
const PROOF_TOKENS: u32 = 12;
/// Up to this many tokens, a run also has to be longer than those that ended in a death, for requests that crash a
/// worker some tokens after they were resumed, wherever that is. Beyond it innocents would have to prove too much.
const RUN_TOKENS_MAX: u32 = 32;
/// Tokens by which two runs may differ and still count as the same, and of a run that did not get on: a frame may have
/// been lost.
const REPEAT_TOKENS: u32 = 2;
/// Tokens of a run that may all have been lost with the worker before, guesses included.
const LOST_TOKENS_MAX: u32 = 8;
/// Wait after the first death of a worker in which the request was alone; doubles with each in a row.
const ALONE_WAIT_FIRST: Duration = Duration::from_millis(250);
/// Longest such wait.
const ALONE_WAIT_MAX: Duration = Duration::from_secs(30);

/// How a worker's life ended, as far as the requests in it are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death<'a> {
    /// It crashed or hung, for the reason given; a request in it may be why.
    Crash(&'a str),
    /// It was killed by somebody else, or by the kernel for lack of memory.
    Killed,
    /// We ended it on demand.
    Ordered,
}

/// What a request may be placed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Standing {
    /// Anything.
    Clear,
    /// Few other suspects.
    Suspect,
    /// Nothing.
    Isolated,
}

/// What becomes of a request whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It goes on, after this wait.
    Retry(Duration),
    /// It is not tried again; it caused this many crashes.
    Poison(u32),
}

/// How a run ended that ended in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crash {
    /// Tokens emitted in it.
    run: u32,
    /// It was alone, or ended like the run before.
    is_telling: bool,
}

impl Crash {
    fn is_like(self, other: Self) -> bool {
        self.run.abs_diff(other.run) <= REPEAT_TOKENS
    }

    /// Whether it shows, after `before`, that the request itself is what crashes workers.
    fn repeats(self, before: Self) -> bool {
        let does_not_get_on = self.run <= REPEAT_TOKENS && before.run <= LOST_TOKENS_MAX;
        does_not_get_on || (self.is_like(before) && before.is_telling)
    }
}

/// One request's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suspicion {
    crashes: u32,
    kills: u32,
    last_crash: Option<Crash>,
    /// Deaths while it ran alone, in a row.
    deaths_alone: u32,
    /// Tokens emitted in the longest run that ended in a death.
    run_longest: u32,
    /// Tokens a run must emit to clear the record; out of reach while there is nothing to clear.
    proof_tokens: u32,
}

impl Default for Suspicion {
    fn default() -> Self {
        Self {
            crashes: 0,
            kills: 0,
            last_crash: None,
            deaths_alone: 0,
            run_longest: 0,
            proof_tokens: u32::MAX,
        }
    }
}

impl Suspicion {
    pub(crate) fn standing(&self) -> Standing {
        if self.crashes >= CRASHES_MAX || self.kills >= KILLS_MAX {
            Standing::Isolated
        } else if self.crashes > 0 {
            Standing::Suspect
        } else {
            Standing::Clear
        }
    }

    /// Whether a run of so many tokens clears the record.
    pub(crate) fn is_disproved_by(&self, run_tokens: usize) -> bool {
        run_tokens >= self.proof_tokens as usize
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The worker died `run_tokens` into this run of the request, which was placed as `placed`.
    pub(crate) fn died(&mut self, death: Death<'_>, placed: Standing, run_tokens: usize) -> Judgement {
        let run = u32::try_from(run_tokens).unwrap_or(u32::MAX);
        match death {
            Death::Ordered => return Judgement::Retry(Duration::ZERO),
            Death::Killed => self.kills = self.kills.saturating_add(1),
            Death::Crash(_) if self.crashed(run, placed) => return Judgement::Poison(self.crashes),
            Death::Crash(_) => {}
        }
        self.run_longest = self.run_longest.max(run);
        self.proof_tokens = self.run_longest.min(RUN_TOKENS_MAX) + PROOF_TOKENS;
        if placed != Standing::Isolated {
            return Judgement::Retry(Duration::ZERO);
        }
        // 2^7 times the first wait is past the longest.
        let wait = ALONE_WAIT_FIRST * (1 << self.deaths_alone.min(7));
        self.deaths_alone = self.deaths_alone.saturating_add(1);
        Judgement::Retry(wait.min(ALONE_WAIT_MAX))
    }

    /// Writes a crash down; says whether it condemns.
    fn crashed(&mut self, run: u32, placed: Standing) -> bool {
        let before = self.last_crash;
        let is_alone = placed == Standing::Isolated;
        let plain = Crash { run, is_telling: is_alone };
        let is_like_before = before.is_some_and(|before| before.is_like(plain));
        let crash = Crash { is_telling: is_alone || is_like_before, ..plain };
        self.last_crash = Some(crash);
        self.crashes = self.crashes.saturating_add(1);
        is_alone && self.crashes > CRASHES_MAX && before.is_some_and(|before| crash.repeats(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: Death<'static> = Death::Crash("signal 11 (SIGSEGV)");

    /// Lets workers die after runs of so many tokens, each time with the request placed as it stands; returns the last
    /// judgement and where the request then stands.
    fn check(deaths: &[(Death<'_>, usize)]) -> (Judgement, Standing) {
        let mut suspicion = Suspicion::default();
        let mut last = Judgement::Retry(Duration::ZERO);
        for &(death, run) in deaths {
            assert!(!matches!(last, Judgement::Poison(_)), "tried after it was condemned");
            if suspicion.is_disproved_by(run) {
                suspicion.clear();
            }
            last = suspicion.died(death, suspicion.standing(), run);
        }
        (last, suspicion.standing())
    }

    fn retry(wait_ms: u64, standing: Standing) -> (Judgement, Standing) {
        (Judgement::Retry(Duration::from_millis(wait_ms)), standing)
    }

    #[test]
    fn two_crashes_isolate_and_the_third_at_the_same_place_condemns() {
        assert_eq!(check(&[(CRASH, 100)]), retry(0, Standing::Suspect));
        assert_eq!(check(&[(CRASH, 100), (CRASH, 0)]), retry(0, Standing::Isolated));
        assert_eq!(check(&[(CRASH, 100), (CRASH, 0), (CRASH, 0)]).0, Judgement::Poison(3));
        // A frame lost at the second crash comes again in the third run.
        assert_eq!(check(&[(CRASH, 100), (CRASH, 0), (CRASH, 2)]).0, Judgement::Poison(3));
        // Guesses lost at the first come again in the second.
        assert_eq!(check(&[(CRASH, 100), (CRASH, 8), (CRASH, 0)]).0, Judgement::Poison(3));
    }

    #[test]
    fn crashing_after_so_many_tokens_of_each_run_is_as_bad() {
        for run in [5, 20, 32] {
            assert_eq!(check(&[(CRASH, run), (CRASH, run), (CRASH, run)]).0, Judgement::Poison(3), "{run}");
        }
    }

    #[test]
    fn a_crash_elsewhere_while_alone_looks_like_chance_and_waits_longer_each_time() {
        let chance = [(CRASH, 300), (CRASH, 7), (CRASH, 20), (CRASH, 30), (CRASH, 10)];
        assert_eq!(check(&[(CRASH, 300), (CRASH, 9), (CRASH, 0)]), retry(250, Standing::Isolated));
        assert_eq!(check(&[(CRASH, 30), (CRASH, 9), (CRASH, 9)]), retry(250, Standing::Isolated));
        assert_eq!(check(&[(CRASH, 30), (CRASH, 9), (CRASH, 9), (CRASH, 9)]).0, Judgement::Poison(4));
        assert_eq!(check(&chance[..3]), retry(250, Standing::Isolated));
        assert_eq!(check(&chance[..4]), retry(500, Standing::Isolated));
        assert_eq!(check(&chance), retry(1000, Standing::Isolated));
    }

    #[test]
    fn progress_clears() {
        let mut suspicion = Suspicion::default();
        assert!(!suspicion.is_disproved_by(1_000_000), "nothing to clear");
        suspicion.died(CRASH, Standing::Clear, 0);
        assert!(!suspicion.is_disproved_by(11) && suspicion.is_disproved_by(12));
        suspicion.died(CRASH, Standing::Suspect, 10);
        assert!(!suspicion.is_disproved_by(21) && suspicion.is_disproved_by(22));
        suspicion.died(Death::Killed, Standing::Isolated, 500);
        assert!(!suspicion.is_disproved_by(43) && suspicion.is_disproved_by(44), "bounded");
        suspicion.clear();
        assert_eq!(suspicion, Suspicion::default());
    }

    #[test]
    fn kills_from_outside_isolate_but_never_condemn() {
        let kills = [(Death::Killed, 0); 20];
        assert_eq!(check(&kills[..2]), retry(0, Standing::Clear));
        assert_eq!(check(&kills[..3]), retry(0, Standing::Isolated));
        assert_eq!(check(&kills[..4]), retry(250, Standing::Isolated));
        assert_eq!(check(&kills), retry(30_000, Standing::Isolated));
        let ordered = [(Death::Ordered, 0); 20];
        assert_eq!(check(&ordered), retry(0, Standing::Clear));
    }

    #[test]
    fn a_crash_after_kills_is_a_first_one() {
        let deaths = [(Death::Killed, 0), (Death::Killed, 0), (Death::Killed, 0), (CRASH, 0), (CRASH, 0)];
        assert_eq!(check(&deaths), retry(500, Standing::Isolated));
    }
}
