//! What a storm comes to: failures, differences from an undisturbed run, and what clients felt.

use crate::client::Visit;
use crate::storm::Outcome;
use crate::workload::Job;
use std::time::Duration;

/// Requests shown in full when something is wrong.
const SHOWN: usize = 3;

/// Panics unless every one of `jobs` was answered as in `reference`.
pub fn assert_unharmed(name: &str, jobs: &[Job], outcome: &Outcome, reference: &[Visit]) {
    let mut failed = Vec::new();
    let mut wrong = Vec::new();
    for (job, (visit, expected)) in jobs.iter().zip(outcome.visits.iter().zip(reference)) {
        match (&visit.answer, &expected.answer) {
            (Err(reason), _) => failed.push(format!("{job:?}: {reason}")),
            (Ok(answer), Ok(expected)) if answer == expected => {}
            (Ok(answer), expected) => {
                wrong.push(format!("{job:?}\n     got {answer:?}\nexpected {expected:?}"));
            }
        }
    }
    let shown: Vec<&String> = failed.iter().take(SHOWN).chain(wrong.iter().take(SHOWN)).collect();
    assert!(
        failed.is_empty() && wrong.is_empty(),
        "{name}: {} failed and {} wrong of {}, among them\n{}",
        failed.len(),
        wrong.len(),
        outcome.visits.len(),
        shown.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n")
    );
    assert_eq!((outcome.visits.len(), reference.len()), (jobs.len(), jobs.len()), "{name}");
}

/// One line for people: what clients felt.
pub fn line(name: &str, outcome: &Outcome) -> String {
    let mut gaps: Vec<Duration> =
        outcome.visits.iter().flat_map(|visit| visit.gaps.iter().copied()).collect();
    gaps.sort_unstable();
    let at = |share: f64| gaps.get((gaps.len() as f64 * share) as usize).or(gaps.last()).copied();
    let ms = |gap: Option<Duration>| gap.unwrap_or_default().as_secs_f64() * 1e3;
    let tokens: u64 = outcome.visits.iter().map(Visit::tokens).sum();
    let longest = outcome.visits.iter().map(|visit| visit.took).max().unwrap_or_default();
    format!(
        "{name}: {} requests in {:.1} s, {:.0} tokens/s, between chunks p50 {:.1} ms, p99 {:.1} ms, most {:.0} ms, \
         longest request {:.0} ms, strikes {}",
        outcome.visits.len(),
        outcome.took.as_secs_f64(),
        tokens as f64 / outcome.took.as_secs_f64(),
        ms(at(0.5)),
        ms(at(0.99)),
        ms(gaps.last().copied()),
        longest.as_secs_f64() * 1e3,
        outcome.strikes,
    )
}
