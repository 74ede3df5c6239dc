//! Speculative decoding by prompt lookup (Saxena 2023): what followed the last few tokens where they occurred
//! before is guessed to follow again, and the model checks all guesses in one step.
//!
//! Each sequence has a [`Drafter`]; the scheduler asks it for drafts and tells it how many were right. What holds
//! always: a draft decides how many rows a step has and never which token is drawn, since a row's logits have the
//! same bits whatever is computed beside it (P3) and a token is drawn from rows after verified tokens only. Time per
//! proposal does not grow with the sequence, memory is bounded by it (see [`lookup`]).
//! Deliberately absent: a draft model, and trees of guesses.

pub mod cost;
pub mod lookup;
pub mod pace;

use lookup::Lookup;
use pace::{Outcome, Pace};
use shared::ids::TokenId;

/// Rows of a step up to which it may carry drafts. On Zen 4 a step of 8 rows, one tile of the batched kernels,
/// takes 1.65 times as long as one of 1 row (1.1 B parameters, Q4_K_M): weights are read once for all. Beyond that
/// tile a row costs as much as it is worth. What it costs on this machine is learned by [`cost`].
pub const DRAFTED_STEP_ROWS_MAX: usize = 8;
/// Most drafts of one sequence: with the row of its last token they fill a tile.
pub const DRAFTS_MAX: usize = DRAFTED_STEP_ROWS_MAX - 1;

/// Whether steps carry guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Where they have been right often enough and few sequences run.
    Auto,
    /// Never.
    Off,
}

/// Guesses what one sequence goes on with.
#[derive(Debug, Default)]
pub struct Drafter {
    lookup: Lookup,
    pace: Pace,
}

impl Drafter {
    /// At most `most` tokens that may follow `tokens`, which have only grown since the last call.
    pub fn propose(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        if most == 0 || !self.pace.tick() {
            return Vec::new();
        }
        let Some(source) = self.lookup.find(tokens) else { return Vec::new() };
        let mut drafts: Vec<TokenId> = Vec::with_capacity(most.min(self.pace.length()));
        // A source near the end runs into the drafts themselves: what has a short period goes on with it.
        for at in source..source + most.min(self.pace.length()) {
            drafts.push(tokens.get(at).copied().unwrap_or_else(|| drafts[at - tokens.len()]));
        }
        drafts
    }

    /// Takes the outcome of the last proposal into account.
    pub fn learn(&mut self, outcome: Outcome) {
        self.pace.learn(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[TokenId], most: usize, expected: &[TokenId]) {
        let mut drafter = Drafter::default();
        assert_eq!(drafter.propose(tokens, most), expected);
    }

    #[test]
    fn drafts_are_what_followed_the_last_occurrence() {
        check(&[1, 2, 3, 4, 5, 6, 1, 2], 4, &[3, 4, 5, 6]);
        check(&[1, 2, 3, 1, 2, 4, 9, 1, 2], 1, &[4]);
        check(&[1, 2, 3, 4], 4, &[]);
        check(&[1, 2, 3, 1, 2], 0, &[]);
    }

    #[test]
    fn a_longer_match_wins_over_a_later_one() {
        check(&[7, 1, 2, 5, 1, 2, 6, 7, 1, 2], 1, &[5]);
    }

    #[test]
    fn a_period_goes_on_beyond_what_is_there() {
        check(&[8, 8, 8], 4, &[8, 8, 8, 8]);
        check(&[1, 2, 1, 2, 1], 4, &[2, 1, 2, 1]);
    }

    #[test]
    fn drafts_start_short_and_grow_to_a_tile() {
        let mut drafter = Drafter::default();
        let mut lengths = Vec::new();
        for len in 20..24 {
            let drafts = drafter.propose(&vec![3; len], usize::MAX);
            let (drafted, accepted) = (drafts.len(), drafts.len());
            drafter.learn(Outcome { drafted, accepted, row_cost: 0.1 });
            lengths.push(drafts.len());
        }
        assert_eq!(lengths, [4, DRAFTS_MAX, DRAFTS_MAX, DRAFTS_MAX]);
    }
}
