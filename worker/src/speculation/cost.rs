//! What a row more costs on this machine, learned from the time that small steps take.
//!
//! A line through rows and time, fitted by least squares in which older steps count less. It ranges from 0.09 of a
//! step for a row more (1.1 B parameters, Q4_K_M, an idle Zen 4) to 0.4 (two busy virtual cores): a fixed number would
//! be wrong on most machines. Time decides here how many rows a step has, never which tokens are drawn.

use super::DRAFTED_STEP_ROWS_MAX;

/// Taken until there are steps of different sizes to compare. Optimistic, so that guessing is tried.
const ROW_COST_START: f32 = 0.1;
/// What an earlier step counts, for each later one: the last fifty or so decide.
const DECAY: f32 = 0.98;
/// Variance of the number of rows below which a line through the steps says nothing.
const VARIANCE_MIN: f32 = 0.05;

/// Sums over the steps seen.
#[derive(Debug, Default)]
pub struct RowCost {
    steps: f32,
    rows: f32,
    rows_squared: f32,
    time_us: f32,
    rows_time_us: f32,
}

impl RowCost {
    /// Takes a step into account, unless it is larger than those that carry drafts.
    pub fn learn(&mut self, rows: usize, time_us: f32) {
        if rows > DRAFTED_STEP_ROWS_MAX {
            return;
        }
        let seen = |sum: &mut f32, value: f32| *sum = *sum * DECAY + value;
        let rows = rows as f32;
        seen(&mut self.steps, 1.0);
        seen(&mut self.rows, rows);
        seen(&mut self.rows_squared, rows * rows);
        seen(&mut self.time_us, time_us);
        seen(&mut self.rows_time_us, rows * time_us);
    }

    /// Time of a row more, as a share of the time of a step of one row: between 0 and 1.
    pub fn share(&self) -> f32 {
        let mean = |sum: f32| sum / self.steps.max(f32::MIN_POSITIVE);
        let variance = mean(self.rows_squared) - mean(self.rows) * mean(self.rows);
        if variance < VARIANCE_MIN {
            return ROW_COST_START;
        }
        let slope = (mean(self.rows_time_us) - mean(self.rows) * mean(self.time_us)) / variance;
        let single = mean(self.time_us) - slope * (mean(self.rows) - 1.0);
        if single > 0.0 { (slope / single).clamp(0.0, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(steps: &[(usize, f32)], expected: f32) {
        let mut cost = RowCost::default();
        for _ in 0..20 {
            steps.iter().for_each(|&(rows, time_us)| cost.learn(rows, time_us));
        }
        assert!((cost.share() - expected).abs() < 0.01, "{} instead of {expected}", cost.share());
    }

    #[test]
    fn a_row_costs_what_larger_steps_take_longer() {
        check(&[(1, 1000.0), (8, 1700.0)], 0.1);
        check(&[(1, 1000.0), (5, 2600.0), (8, 3800.0)], 0.4);
        check(&[(1, 1000.0), (8, 900.0)], 0.0);
        check(&[(2, 10.0), (8, 10_000.0)], 1.0);
    }

    #[test]
    fn without_comparison_guessing_is_worth_a_try() {
        check(&[], ROW_COST_START);
        check(&[(1, 1000.0)], ROW_COST_START);
        // A prompt's chunk says nothing about small steps.
        check(&[(1, 1000.0), (512, 100_000.0)], ROW_COST_START);
        // Steps long ago are forgotten, and it is tried again.
        let mut cost = RowCost::default();
        cost.learn(8, 1e6);
        (0..500).for_each(|_| cost.learn(1, 1000.0));
        assert_eq!(cost.share(), ROW_COST_START);
    }
}
