//! How many physical cores this process may compute on. Threads beyond them share execution units, which does not help
//! matrix work. Used by the gateway to share the cores among its workers, and by a worker that is not told.

use std::collections::{BTreeMap, BTreeSet};

/// Highest processor number looked at; Linux builds go to 8192.
const PROCESSORS_MAX: u32 = 8192;

/// Physical cores this process may run on, hyper-threads counted once, within what the scheduler grants; at least 1.
pub fn physical_cores() -> usize {
    // Less than the processors allowed where a control group has a quota.
    let granted = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let topology = |cpu: u32, name: &str| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok()
    };
    count(topology, &processors(allowed), granted)
}

/// The processors this process may run on, those of one physical core together, in order of package and core. Without a
/// topology every processor is a core of its own; empty where the system does not say which are allowed.
pub fn allowed_cores() -> Vec<Vec<u32>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let id = |cpu: u32, name: &str| -> Option<u32> {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let mut cores = BTreeMap::<(u32, u32), Vec<u32>>::new();
    for cpu in processors(allowed) {
        // Beyond all packages, so that a processor without a place stands alone.
        let core = id(cpu, "physical_package_id").zip(id(cpu, "core_id")).unwrap_or((u32::MAX, cpu));
        cores.entry(core).or_default().push(cpu);
    }
    cores.into_values().collect()
}

/// [`physical_cores`] over any source of `physical_package_id` and `core_id`, for the processors `allowed`.
fn count(topology: impl Fn(u32, &str) -> Option<String>, allowed: &[u32], granted: usize) -> usize {
    let core = |cpu: &u32| Some((topology(*cpu, "physical_package_id")?, topology(*cpu, "core_id")?));
    let cores: BTreeSet<(String, String)> = allowed.iter().filter_map(core).collect();
    // Without a topology, as in some virtual machines, every thread counts.
    let cores = if cores.is_empty() { granted } else { cores.len() };
    cores.min(granted).max(1)
}

/// The processors of a list like `0-3,8`, as the kernel prints them; what it would not print is skipped.
fn processors(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?.min(PROCESSORS_MAX))
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors as pairs of package and core.
    fn check(host: &[(u32, u32)], allowed: &str, granted: usize, expected: usize) {
        let topology = |cpu: u32, name: &str| {
            let (package, core) = host.get(cpu as usize)?;
            Some(format!("{}\n", if name == "core_id" { core } else { package }))
        };
        assert_eq!(count(topology, &processors(allowed), granted), expected, "{host:?} {allowed}");
    }

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let host = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 0)];
        check(&host, "0-5", 6, 3);
        check(&host, "0-5", 2, 2);
        check(&host, "0,2", 2, 1);
        check(&host, "", 4, 4);
        check(&[], "0-3", 4, 4);
        check(&[], "0", 0, 1);
    }

    #[test]
    fn every_allowed_processor_belongs_to_one_core() {
        let cores = allowed_cores();
        let mut all: Vec<u32> = cores.concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), cores.iter().map(Vec::len).sum::<usize>());
        assert!(cores.len() >= physical_cores().min(all.len()), "{cores:?}");
    }

    #[test]
    fn processor_lists_are_read_as_the_kernel_prints_them() {
        assert_eq!(processors("\t0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(processors("5"), [5]);
        assert!(processors("").is_empty());
        assert_eq!(processors("x,2,4-").len(), 1);
        assert!(processors("0-4294967295").len() <= PROCESSORS_MAX as usize + 1);
    }
}
