//! How much one sequence drafts: longer where drafts are right, for a while not at all where they are wrong.
//!
//! A draft costs a row, a right one saves a step. What holds always: a sequence whose drafts are never right drafts on a vanishing share of its steps.

use super::DRAFTS_MAX;

/// Drafts of a sequence nothing is known of.
const LENGTH_START: usize = 4;
/// Fewest drafts worth a try.
const LENGTH_MIN: usize = 2;
/// What an earlier draft counts, for each later try: the last ten or so decide.
const DECAY: f32 = 0.9;
/// How many times its cost drafting has to save: costs are uncertain, and trying has its own.
const GAIN_MIN: f32 = 1.25;
/// Share of drafts that has to be right, whatever rows cost: few are worth it below, and nothing can ask for more.
const ACCEPTED_SHARE: std::ops::RangeInclusive<f32> = 0.15..=0.75;
/// Longest pause in steps. A text that begins to repeat itself is noticed that late.
const PAUSE_STEPS_MAX: u32 = 128;

/// What became of a proposal.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Tokens proposed.
    pub drafted: usize,
    /// Of these, the first so many were drawn.
    pub accepted: usize,
    /// Time of a row more, as a share of a step's; see [`super::cost::RowCost::share`].
    pub row_cost: f32,
}

/// What is known of a sequence's drafts.
#[derive(Debug)]
pub struct Pace {
    drafted: f32,
    accepted: f32,
    length: usize,
    /// Steps still to go without drafts.
    paused_steps: u32,
    /// Length of the next pause.
    pause_steps: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { drafted: 0.0, accepted: 0.0, length: LENGTH_START, paused_steps: 0, pause_steps: 1 }
    }
}

impl Pace {
    /// Whether to draft in this step. Counts a step of the pause otherwise.
    pub fn tick(&mut self) -> bool {
        let is_over = self.paused_steps == 0;
        self.paused_steps = self.paused_steps.saturating_sub(1);
        is_over
    }

    /// Drafts to try.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Takes a try's outcome into account.
    pub fn learn(&mut self, outcome: Outcome) {
        let Outcome { drafted, accepted, row_cost } = outcome;
        let share_min = (row_cost * GAIN_MIN).clamp(*ACCEPTED_SHARE.start(), *ACCEPTED_SHARE.end());
        self.drafted = self.drafted * DECAY + drafted as f32;
        self.accepted = self.accepted * DECAY + accepted as f32;
        let is_all_right = accepted == drafted;
        self.length = match is_all_right {
            true => (self.length * 2).min(DRAFTS_MAX),
            false => (accepted + 1).clamp(LENGTH_MIN, DRAFTS_MAX),
        };
        if self.accepted >= self.drafted * share_min {
            self.pause_steps = 1;
        } else if !is_all_right {
            self.paused_steps = self.pause_steps;
            self.pause_steps = (self.pause_steps * 2).min(PAUSE_STEPS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drafts made over `steps` whose drafts are right up to `right` tokens each.
    fn drafts(pace: &mut Pace, steps: usize, right: usize) -> usize {
        let mut made = 0;
        for _ in 0..steps {
            if pace.tick() {
                let drafted = pace.length();
                made += drafted;
                pace.learn(Outcome { drafted, accepted: right.min(drafted), row_cost: 0.1 });
            }
        }
        made
    }

    #[test]
    fn wrong_drafts_are_given_up() {
        let mut pace = Pace::default();
        let (early, late) = (drafts(&mut pace, 1000, 0), drafts(&mut pace, 10_000, 0));
        assert!(early < 40, "{early} drafts in the first 1000 steps");
        assert!(late < 2 * 10_000 / 100, "{late} drafts in the next 10000 steps");
    }

    #[test]
    fn right_drafts_fill_the_tile() {
        let mut pace = Pace::default();
        drafts(&mut pace, 3, DRAFTS_MAX);
        assert_eq!(drafts(&mut pace, 100, DRAFTS_MAX), 100 * DRAFTS_MAX);
        // Half right is worth it too, with drafts cut to what was right.
        assert_eq!(drafts(&mut Pace::default(), 100, 1), LENGTH_START + 99 * LENGTH_MIN);
    }

    #[test]
    fn what_rows_cost_decides_what_is_worth_it() {
        let drafts = |row_cost| {
            let mut pace = Pace::default();
            let steps = (0..200).filter(|_| {
                pace.tick().then(|| pace.learn(Outcome { drafted: 5, accepted: 2, row_cost })).is_some()
            });
            steps.count()
        };
        assert_eq!(drafts(0.1), 200);
        assert!(drafts(0.4) < 20);
    }

    #[test]
    fn a_text_that_begins_to_repeat_is_noticed() {
        let mut pace = Pace::default();
        drafts(&mut pace, 10_000, 0);
        let steps = PAUSE_STEPS_MAX as usize;
        assert!(drafts(&mut pace, 2 * steps, DRAFTS_MAX) > steps / 2 * DRAFTS_MAX);
    }
}
