//! Rules of [`super`] from text. Called once, at the start.

use super::{FAULT_VARIABLE, Fault, Rule};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{FAULT_VARIABLE} has rule `{rule}`: {reason}")]
pub struct FaultError {
    /// The rule.
    rule: String,
    /// What is wrong with it, and what to use.
    reason: String,
}

/// The longest pause of a slow step: past it, `hang` is what is meant.
const SLOW_MS_MAX: u64 = 600_000;
const FAULTS: &str = "die, die=kill, die=segv, die=abort, panic, exit=CODE, hang, slow=MS, alloc, alloc=blocks, \
                      corrupt or load-fail";
const CONDITIONS: &str = "step=N, p=P, seed=S, token=ID, load or once=PATH";

/// Rules separated by `;`; empty ones are skipped.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, FaultError> {
    let rules = text.split(';').map(str::trim).filter(|rule| !rule.is_empty());
    rules.map(|text| rule(text).map_err(|reason| FaultError { rule: text.to_owned(), reason })).collect()
}

fn rule(text: &str) -> Result<Rule, String> {
    let mut parts = text.split('@').map(str::trim);
    let fault = fault(parts.next().unwrap_or_default())?;
    let mut rule = Rule {
        fault,
        at_load: fault == Fault::LoadFail,
        step: None,
        probability: None,
        seed: None,
        token: None,
        once: None,
    };
    let mut seen = Vec::new();
    for condition in parts {
        let (name, value) = condition.split_once('=').unwrap_or((condition, ""));
        if seen.contains(&name) {
            return Err(format!("condition `{name}` is given twice"));
        }
        seen.push(name);
        match (name, value) {
            ("load", "") => rule.at_load = true,
            ("step", value) => rule.step = Some(number(name, value, 1..=u64::MAX)?),
            ("p", value) => rule.probability = Some(probability(value)?),
            ("seed", value) => rule.seed = Some(number(name, value, 0..=u64::MAX)?),
            ("token", value) => rule.token = Some(number(name, value, 0..=u32::MAX)?),
            ("once", path) if !path.is_empty() => rule.once = Some(PathBuf::from(path)),
            _ => return Err(format!("condition `{condition}` is unknown, use {CONDITIONS}")),
        }
    }
    if rule.at_load && (rule.step.is_some() || rule.token.is_some()) {
        return Err("`step` and `token` do not go with loading, where there are neither".to_owned());
    }
    if rule.at_load && matches!(rule.fault, Fault::Corrupt | Fault::OutOfBlocks) {
        return Err("this fault needs a running engine, it does not go with `load`".to_owned());
    }
    if rule.seed.is_some() && rule.probability.is_none() {
        return Err("`seed` goes with `p`, which is missing".to_owned());
    }
    Ok(rule)
}

fn fault(text: &str) -> Result<Fault, String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Ok(match (name, value) {
        ("die", "" | "kill") => Fault::Die(Signal::SIGKILL),
        ("die", "segv") => Fault::Die(Signal::SIGSEGV),
        ("die", "abort") => Fault::Die(Signal::SIGABRT),
        ("panic", "") => Fault::Panic,
        ("exit", code) => Fault::Exit(number(name, code, 0..=u8::MAX)?),
        ("hang", "") => Fault::Hang,
        ("slow", ms) => Fault::Slow(Duration::from_millis(number(name, ms, 1..=SLOW_MS_MAX)?)),
        ("alloc", "") => Fault::OutOfMemory,
        ("alloc", "blocks") => Fault::OutOfBlocks,
        ("corrupt", "") => Fault::Corrupt,
        ("load-fail", "") => Fault::LoadFail,
        _ => return Err(format!("fault `{text}` is unknown, use {FAULTS}")),
    })
}

fn number<N>(name: &str, value: &str, range: std::ops::RangeInclusive<N>) -> Result<N, String>
where
    N: FromStr + PartialOrd + std::fmt::Display,
{
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        format!("`{name}` is `{value}`, it must be a number from {} to {}", range.start(), range.end())
    })
}

fn probability(value: &str) -> Result<f64, String> {
    let parsed = value.parse().ok().filter(|p| (0.0..=1.0).contains(p));
    parsed.ok_or_else(|| format!("`p` is `{value}`, it must be a number from 0 to 1"))
}
