//! How many physical cores this process may compute on. Threads beyond them share execution units, which does not help
//! matrix work. Used by the gateway to share the cores among its workers, and by a worker that is not told.

use std::collections::HashSet;

/// Physical cores of the host, hyper-threads counted once, within what the scheduler grants; at least 1.
pub fn physical_cores() -> usize {
    let granted = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let topology = |cpu: usize, name: &str| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok()
    };
    count(topology, granted)
}

/// The same over any source of `physical_package_id` and `core_id`, which say nothing beyond the last processor.
fn count(topology: impl Fn(usize, &str) -> Option<String>, granted: usize) -> usize {
    let core = |cpu| Some((topology(cpu, "physical_package_id")?, topology(cpu, "core_id")?));
    let cores: HashSet<(String, String)> = (0..).map_while(core).collect();
    // Without a topology, as in some virtual machines, every thread counts.
    let cores = if cores.is_empty() { granted } else { cores.len() };
    cores.min(granted).max(1)
}

#[cfg(test)]
mod tests {
    use super::count;

    /// Processors as pairs of package and core.
    fn check(processors: &[(u32, u32)], granted: usize, expected: usize) {
        let topology = |cpu: usize, name: &str| {
            let (package, core) = processors.get(cpu)?;
            Some(format!("{}\n", if name == "core_id" { core } else { package }))
        };
        assert_eq!(count(topology, granted), expected, "{processors:?}");
    }

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let host = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 0)];
        check(&host, 6, 3);
        check(&host, 2, 2);
        check(&[], 4, 4);
        check(&[], 0, 1);
    }
}
