//! How many threads compute, and on which processors.
//!
//! Called when a command makes its backend. Without settings there is one thread for each physical core, free to run
//! anywhere. What always holds: pinned threads never share a physical core, and a processor that is not there or not
//! allowed is an error rather than a guess. Which worker gets which processors is the gateway's decision.

use super::CommandError;
use std::collections::BTreeSet;

/// Variable that pins threads: `off`, `on` or a list.
const PIN_VARIABLE: &str = "ROCMFORGE_CPU_PIN";
/// Variable by which a gateway gives each worker its processors; goes before the other.
const LIST_VARIABLE: &str = "ROCMFORGE_CPU_LIST";
/// First processor number that no Linux build has.
const PROCESSORS_MAX: u32 = 8192;

/// What the settings say, as they were written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PlacementSettings<'a> {
    /// `--threads`
    pub(super) threads: Option<usize>,
    /// `ROCMFORGE_CPU_PIN`; empty for none.
    pub(super) pin: &'a str,
    /// `ROCMFORGE_CPU_LIST`; empty for none.
    pub(super) list: &'a str,
}

/// The machine as far as it is ours.
pub(super) struct Processors {
    /// The processors we may run on, those of a physical core together.
    pub(super) cores: Vec<Vec<u32>>,
    /// How many threads are worth running: not more than cores, less under a quota.
    pub(super) threads: usize,
}

/// The compute threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placement {
    /// So many, wherever the scheduler puts them.
    Free(usize),
    /// One on each.
    Pinned(Vec<usize>),
}

impl Placement {
    /// Decides. Errors: [`CommandError::Configuration`] for settings that make no sense on this machine.
    pub(super) fn choose(
        settings: PlacementSettings<'_>,
        processors: &Processors,
    ) -> Result<Self, CommandError> {
        let (variable, list) = match (settings.list.trim(), settings.pin.trim()) {
            ("", "" | "off") => return Ok(Self::Free(settings.threads.unwrap_or(processors.threads))),
            ("", "on") => (PIN_VARIABLE, None),
            ("", list) => (PIN_VARIABLE, Some(list)),
            (list, _) => (LIST_VARIABLE, Some(list)),
        };
        let listed = list.map(|list| parse(list, variable)).transpose()?;
        let wrong = |what: String| CommandError::Configuration(format!("{variable}: {what}"));
        let ours: BTreeSet<u32> = processors.cores.iter().flatten().copied().collect();
        if let Some(absent) = listed.iter().flatten().find(|cpu| !ours.contains(cpu)) {
            let ours: Vec<String> = ours.iter().map(ToString::to_string).collect();
            return Err(wrong(format!(
                "CPU {absent} does not exist or is not allowed to this process, which may use {}",
                ours.join(",")
            )));
        }
        // One processor of each core: the lowest that is listed.
        let is_listed = |cpu: &u32| listed.as_ref().is_none_or(|listed| listed.contains(cpu));
        let one_each = processors.cores.iter().filter_map(|core| core.iter().copied().find(is_listed));
        let mut cpus: Vec<usize> = one_each.map(|cpu| cpu as usize).collect();
        let threads = settings.threads.unwrap_or_else(|| cpus.len().min(processors.threads));
        if threads > cpus.len() {
            return Err(wrong(format!(
                "{threads} threads were asked for, physical cores there are {}",
                cpus.len()
            )));
        }
        cpus.truncate(threads);
        Ok(Self::Pinned(cpus))
    }

    /// How many there are.
    pub(super) fn threads(&self) -> usize {
        match self {
            Self::Free(threads) => *threads,
            Self::Pinned(cpus) => cpus.len(),
        }
    }
}

/// A list like `0-3,8`.
fn parse(list: &str, variable: &str) -> Result<BTreeSet<u32>, CommandError> {
    let wrong = || {
        // What comes from outside is shown in bounds.
        let shown: String = list.chars().take(64).collect();
        let what = if variable == PIN_VARIABLE { "off, on or a list of CPUs" } else { "a list of CPUs" };
        CommandError::Configuration(format!("{variable}: `{shown}` is not {what} like 0-3,8"))
    };
    let number =
        |text: &str| text.trim().parse::<u32>().ok().filter(|&cpu| cpu < PROCESSORS_MAX).ok_or_else(wrong);
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores of two hardware threads each.
    fn machine() -> Processors {
        Processors { cores: (0..4).map(|core| vec![core, core + 4]).collect(), threads: 4 }
    }

    fn settings<'a>(threads: Option<usize>, pin: &'a str, list: &'a str) -> PlacementSettings<'a> {
        PlacementSettings { threads, pin, list }
    }

    fn check(settings: PlacementSettings<'_>, expected: Placement) {
        let placement = Placement::choose(settings, &machine()).expect("sound settings");
        assert_eq!(placement, expected, "{settings:?}");
    }

    fn refuse(settings: PlacementSettings<'_>, part: &str) {
        let error = Placement::choose(settings, &machine()).expect_err("settings without sense");
        assert!(error.to_string().contains(part), "{settings:?}: {error}");
    }

    #[test]
    fn threads_are_free_unless_pinned() {
        check(settings(None, "", ""), Placement::Free(4));
        check(settings(None, "off", " "), Placement::Free(4));
        check(settings(Some(3), "off", ""), Placement::Free(3));
    }

    #[test]
    fn one_thread_a_core_is_pinned() {
        check(settings(None, "on", ""), Placement::Pinned(vec![0, 1, 2, 3]));
        check(settings(Some(2), "on", ""), Placement::Pinned(vec![0, 1]));
        check(settings(None, "1-2,6", ""), Placement::Pinned(vec![1, 2]));
        check(settings(None, "6,5", ""), Placement::Pinned(vec![5, 6]));
        check(settings(None, "off", "2-3,6-7"), Placement::Pinned(vec![2, 3]));
        check(settings(Some(1), "0", "3"), Placement::Pinned(vec![3]));
    }

    #[test]
    fn a_quota_bounds_the_threads() {
        let processors = Processors { threads: 2, ..machine() };
        let placement = Placement::choose(settings(None, "", "0-3"), &processors).expect("sound settings");
        assert_eq!(placement, Placement::Pinned(vec![0, 1]));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        refuse(settings(None, "9", ""), "ROCMFORGE_CPU_PIN: CPU 9 does not exist");
        refuse(settings(None, "", "0-8"), "ROCMFORGE_CPU_LIST: CPU 8 does not exist");
        refuse(settings(None, "maybe", ""), "`maybe` is not off, on or a list");
        for list in ["3-1", "0,,1", "-1", "1-", "0x1", "4294967296", "0-8192", "on"] {
            refuse(settings(None, "", list), "is not a list of CPUs");
        }
        refuse(settings(Some(3), "", "0-1,4"), "3 threads were asked for, physical cores there are 2");
        refuse(settings(Some(5), "on", ""), "5 threads");
        let long = "9".repeat(10_000);
        let error = Placement::choose(settings(None, &long, ""), &machine()).expect_err("no list");
        assert!(error.to_string().len() < 200);
    }
}
