//! How many tokens a step may compute, so that a step takes about a second whatever the machine.
//!
//! A step of fixed size would take half a minute for a large model on a slow CPU, and every stream would pause that
//! long. The tokens a request gets do not depend on the budget (promise P3), only when it gets them.

use std::time::Duration;

/// What a step is allowed to take. A stream that pauses longer reads as stuck.
const STEP_TARGET: Duration = Duration::from_secs(1);
/// The first step's tokens: half of what computes at full speed, and far below the target on any machine in use.
const TOKENS_AT_START: u32 = 128;
/// Steps of fewer tokens say more about one token's cost than about many tokens' speed.
const TOKENS_MEASURED_MIN: u32 = 32;

/// The budget now, at most what was configured. The scheduler gives every decoding sequence its token and the first
/// prompt some progress whatever the budget says.
#[derive(Debug)]
pub(super) struct StepBudget {
    most: u32,
    now: u32,
}

impl StepBudget {
    /// A budget of at most `most` tokens, which is at least one.
    pub(super) fn new(most: u32) -> Self {
        Self { most: most.max(1), now: TOKENS_AT_START.min(most.max(1)) }
    }

    /// Tokens for the next step.
    pub(super) fn tokens(&self) -> u32 {
        self.now
    }

    /// Learns from a step of `tokens` that took `elapsed`. At most doubles, so that one odd step does not decide.
    pub(super) fn learn(&mut self, tokens: u32, elapsed: Duration) {
        if tokens < TOKENS_MEASURED_MIN.min(self.now) {
            return;
        }
        let fitting = f64::from(tokens) * STEP_TARGET.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        // The cast saturates; the clamp bounds it in any case.
        self.now = (fitting as u32).min(self.now.saturating_mul(2)).clamp(1, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fast_machine_reaches_the_most_in_a_few_steps() {
        let mut budget = StepBudget::new(512);
        for _ in 0..3 {
            budget.learn(budget.tokens(), Duration::from_millis(10));
        }
        assert_eq!(budget.tokens(), 512);
    }

    #[test]
    fn a_slow_machine_settles_at_a_second_a_step() {
        let mut budget = StepBudget::new(512);
        // Seventeen tokens a second.
        for _ in 0..4 {
            budget.learn(budget.tokens(), SECOND * budget.tokens() / 17);
        }
        assert_eq!(budget.tokens(), 17);
    }

    #[test]
    fn never_nothing() {
        let mut budget = StepBudget::new(512);
        budget.learn(128, SECOND * 1000);
        assert_eq!(budget.tokens(), 1);
        budget.learn(1, SECOND);
        assert_eq!(budget.tokens(), 1);
        budget.learn(1, SECOND / 100);
        assert_eq!(budget.tokens(), 2);
    }

    #[test]
    fn decode_steps_teach_nothing() {
        let mut budget = StepBudget::new(512);
        budget.learn(3, SECOND);
        assert_eq!(budget.tokens(), TOKENS_AT_START);
    }
}
