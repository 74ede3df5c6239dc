//! Which part of the host each worker computes on, as environment variables of its process (pure: facts about the host
//! in, variables out). Asked by `cli::serve`.
//!
//! On GPUs a worker sees one device only, so that it cannot touch another's memory or queue. On CPUs each of several
//! workers gets whole cores of its own, hyper-threads together, so that they do not push each other about.

use std::ffi::OsString;
use std::path::Path;

/// The processors a worker may compute on, as the kernel writes lists.
const CPU_LIST_VARIABLE: &str = "ROCMFORGE_CPU_LIST";
/// Devices that ROCm's runtime shows to a process.
const ROCR_VARIABLE: &str = "ROCR_VISIBLE_DEVICES";
/// Of these, the devices that HIP shows.
const HIP_VARIABLE: &str = "HIP_VISIBLE_DEVICES";
/// Where the kernel lists what ROCm can compute on.
const TOPOLOGY: &str = "/sys/class/kfd/kfd/topology/nodes";

/// Variables of one worker.
pub(crate) type Variables = Vec<(OsString, OsString)>;

/// GPUs of this host that ROCm can use; 0 where there is no ROCm.
pub(crate) fn gpu_count() -> usize {
    count_gpus(Path::new(TOPOLOGY))
}

/// Nodes of the topology with compute units; processors are nodes too, without any.
fn count_gpus(topology: &Path) -> usize {
    let Ok(nodes) = std::fs::read_dir(topology) else { return 0 };
    let has_units = |node: &std::fs::DirEntry| {
        let properties = std::fs::read_to_string(node.path().join("properties")).unwrap_or_default();
        let units = properties.lines().find_map(|line| line.strip_prefix("simd_count "));
        units.is_some_and(|count| count.trim().parse::<u32>().is_ok_and(|count| count > 0))
    };
    nodes.flatten().filter(has_units).count()
}

/// One GPU for each worker, in turn where there are fewer. A list the operator has set is the choice to take from: the
/// narrower one, since HIP counts within what the runtime below shows.
pub(crate) fn on_gpus(
    workers: usize,
    gpus: usize,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<Variables> {
    let list = |name: &str| -> Option<Vec<String>> {
        let text = variable(name).filter(|text| !text.trim().is_empty())?;
        Some(text.split(',').map(|device| device.trim().to_owned()).collect())
    };
    let (name, devices) = match (list(HIP_VARIABLE), list(ROCR_VARIABLE)) {
        (Some(devices), _) => (HIP_VARIABLE, devices),
        (None, Some(devices)) => (ROCR_VARIABLE, devices),
        (None, None) => (ROCR_VARIABLE, (0..gpus.max(1)).map(|index| index.to_string()).collect()),
    };
    (0..workers).map(|worker| vec![(name.into(), devices[worker % devices.len()].clone().into())]).collect()
}

/// An equal share of `cores` for each of several workers with `threads` threads each, or nothing where a share would
/// have fewer cores than threads.
pub(crate) fn on_cores(workers: usize, threads: usize, cores: &[Vec<u32>]) -> Vec<Variables> {
    let share = cores.len() / workers.max(1);
    if workers < 2 || share < threads.max(1) {
        return vec![Vec::new(); workers];
    }
    let lists = cores.chunks(share).take(workers).map(|cores| cpu_list(cores.concat()));
    on_lists(lists)
}

/// These processors, a list for each worker.
pub(crate) fn on_lists(lists: impl IntoIterator<Item = String>) -> Vec<Variables> {
    lists.into_iter().map(|list| vec![(CPU_LIST_VARIABLE.into(), list.into())]).collect()
}

/// As the kernel writes it: `0-3,8`.
fn cpu_list(mut cpus: Vec<u32>) -> String {
    cpus.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(variables: Vec<Variables>) -> Vec<String> {
        let text = |(name, value): &(OsString, OsString)| {
            format!("{}={}", name.to_string_lossy(), value.to_string_lossy())
        };
        variables.iter().map(|of_one| of_one.iter().map(text).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn workers_on_cores_share_no_core_and_keep_hyper_threads_together() {
        let hyper: Vec<Vec<u32>> = (0..8).map(|core| vec![core, core + 8]).collect();
        assert_eq!(
            texts(on_cores(2, 4, &hyper)),
            ["ROCMFORGE_CPU_LIST=0-3,8-11", "ROCMFORGE_CPU_LIST=4-7,12-15"]
        );
        assert_eq!(texts(on_cores(3, 2, &hyper))[2], "ROCMFORGE_CPU_LIST=4-5,12-13");
        assert_eq!(texts(on_cores(1, 8, &hyper)), [""], "one worker may move about");
        assert_eq!(texts(on_cores(2, 5, &hyper)), ["", ""], "more threads than cores of its own");
        assert_eq!(texts(on_cores(4, 1, &[vec![0], vec![1]])), ["", "", "", ""]);
        assert_eq!(texts(on_cores(2, 1, &[])), ["", ""]);
    }

    #[test]
    fn workers_on_gpus_see_one_each() {
        let check = |gpus, set: &[(&str, &str)], expected: [&str; 3]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(texts(on_gpus(3, gpus, &variable)), expected);
        };
        check(8, &[], ["ROCR_VISIBLE_DEVICES=0", "ROCR_VISIBLE_DEVICES=1", "ROCR_VISIBLE_DEVICES=2"]);
        check(2, &[], ["ROCR_VISIBLE_DEVICES=0", "ROCR_VISIBLE_DEVICES=1", "ROCR_VISIBLE_DEVICES=0"]);
        let rocr = ("ROCR_VISIBLE_DEVICES", "GPU-a, GPU-b,5");
        check(
            8,
            &[rocr],
            ["ROCR_VISIBLE_DEVICES=GPU-a", "ROCR_VISIBLE_DEVICES=GPU-b", "ROCR_VISIBLE_DEVICES=5"],
        );
        let hip = ("HIP_VISIBLE_DEVICES", "1,0");
        check(8, &[rocr, hip], ["HIP_VISIBLE_DEVICES=1", "HIP_VISIBLE_DEVICES=0", "HIP_VISIBLE_DEVICES=1"]);
    }

    #[test]
    fn only_nodes_with_compute_units_are_gpus() {
        let folder = tempfile::tempdir().unwrap();
        for (node, text) in
            [("0", "cpu_cores_count 16\nsimd_count 0\n"), ("1", "simd_count 304\n"), ("2", "")]
        {
            std::fs::create_dir(folder.path().join(node)).unwrap();
            std::fs::write(folder.path().join(node).join("properties"), text).unwrap();
        }
        assert_eq!(count_gpus(folder.path()), 1);
        assert_eq!(count_gpus(&folder.path().join("nowhere")), 0);
    }
}
