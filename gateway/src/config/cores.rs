//! How many physical cores the host has. Threads beyond them share execution units, which does not help matrix work.

use std::collections::HashSet;

/// Physical cores this process may use, at least 1. `cpuinfo` is the text of `/proc/cpuinfo`, `available` the number
/// of hardware threads the scheduler grants.
pub fn physical_cores(cpuinfo: &str, available: usize) -> usize {
    let mut cores = HashSet::new();
    let mut package = "";
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                cores.insert((package, value.trim()));
            }
            _ => {}
        }
    }
    let cores = if cores.is_empty() { available } else { cores.len() };
    cores.min(available).max(1)
}

#[cfg(test)]
mod tests {
    use super::physical_cores;

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let cpu =
            |package, core| format!("processor\t: 0\nphysical id\t: {package}\ncore id\t\t: {core}\n\n");
        let host = [cpu(0, 0), cpu(0, 1), cpu(0, 0), cpu(0, 1), cpu(1, 0), cpu(1, 0)].concat();
        assert_eq!(physical_cores(&host, 6), 3);
        assert_eq!(physical_cores(&host, 2), 2, "a quota below the cores");
        assert_eq!(physical_cores("processor : 0\n", 4), 4, "architectures without core ids");
        assert_eq!(physical_cores("", 0), 1);
    }
}
