//! The GPUs of this host as the kernel driver lists them, without loading HIP.
//!
//! Read by `rocmforge devices` and, for the architecture of a device, by [`super::Gpu`]. Sources: the amdkfd topology
//! in sysfs (one folder per node, `properties` holding `name value` lines) and, for memory and load, the DRM device
//! of the same PCI address. What holds always: a file that is missing or odd makes a value absent, never an error.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the driver lists its nodes.
pub const KFD_NODES: &str = "/sys/class/kfd/kfd/topology/nodes";
/// Names another folder of nodes, for tests.
pub const KFD_NODES_VARIABLE: &str = "ROCMFORGE_KFD_TOPOLOGY";
/// Where PCI devices are listed.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// A GPU that the driver lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuNode {
    /// `domain:bus:device.function`, as HIP writes it.
    pub pci_address: String,
    /// The target that code must be compiled for, such as `gfx1100`.
    pub architecture: String,
    /// Compute units.
    pub compute_units: u32,
    /// Threads of a wave.
    pub wave_size: u32,
    /// Its marketing name, if the driver knows it.
    pub name: Option<String>,
}

/// What a GPU is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuLoad {
    /// Memory of the device in bytes.
    pub memory_total_bytes: Option<u64>,
    /// Memory in use in bytes, by all processes.
    pub memory_used_bytes: Option<u64>,
    /// Share of time it is busy, in percent.
    pub busy_percent: Option<u32>,
    /// Edge temperature in thousandths of a degree Celsius.
    pub temperature_millicelsius: Option<i64>,
}

/// The folder of nodes: the driver's, or the one the environment names.
#[must_use]
pub fn nodes_directory() -> PathBuf {
    std::env::var_os(KFD_NODES_VARIABLE).map_or_else(|| PathBuf::from(KFD_NODES), PathBuf::from)
}

/// The GPUs listed in `nodes`, in the driver's order. Empty where there is no driver.
#[must_use]
pub fn gpus(nodes: &Path) -> Vec<GpuNode> {
    let Ok(entries) = fs::read_dir(nodes) else { return Vec::new() };
    let mut folders: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    folders.sort();
    folders.iter().filter_map(|(_, folder)| node(folder)).collect()
}

/// Memory, load and temperature of the GPU at `pci_address`.
#[must_use]
pub fn load(pci_address: &str) -> GpuLoad {
    load_in(&Path::new(PCI_DEVICES).join(pci_address))
}

fn load_in(device: &Path) -> GpuLoad {
    let temperature = fs::read_dir(device.join("hwmon"))
        .into_iter()
        .flatten()
        .flatten()
        .find_map(|sensor| number(&sensor.path().join("temp1_input")));
    GpuLoad {
        memory_total_bytes: number(&device.join("mem_info_vram_total")),
        memory_used_bytes: number(&device.join("mem_info_vram_used")),
        busy_percent: number(&device.join("gpu_busy_percent")),
        temperature_millicelsius: temperature,
    }
}

fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn node(folder: &Path) -> Option<GpuNode> {
    let properties = fs::read_to_string(folder.join("properties")).ok()?;
    let property = |name: &str| -> Option<u64> {
        let line = properties.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.split(' ').nth(1)?.parse().ok()
    };
    // Processors are nodes too; they have no SIMD units.
    let simds = property("simd_count").filter(|&count| count > 0)?;
    let location = property("location_id")?;
    let (bus, device, function) = (location >> 8 & 0xff, location >> 3 & 0x1f, location & 7);
    let name = fs::read_to_string(folder.join("name")).ok().map(|name| name.trim().to_owned());
    Some(GpuNode {
        pci_address: format!("{:04x}:{bus:02x}:{device:02x}.{function:x}", property("domain").unwrap_or(0)),
        architecture: architecture(property("gfx_target_version")?),
        compute_units: (simds / property("simd_per_cu").filter(|&per| per > 0).unwrap_or(2)) as u32,
        wave_size: property("wave_front_size").unwrap_or(0) as u32,
        name: name.filter(|name| !name.is_empty()),
    })
}

/// `gfx_target_version` is major · 10000 + minor · 100 + stepping; names write the last two in hexadecimal.
fn architecture(version: u64) -> String {
    let (major, minor, stepping) = (version / 10_000, version / 100 % 100, version % 100);
    format!("gfx{major}{minor:x}{stepping:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    /// A folder of its own under the build's temporary one.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("rocmforge-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn versions_are_named_as_the_compiler_names_targets() {
        for (version, name) in [
            (90_006, "gfx906"),
            (90_010, "gfx90a"),
            (90_402, "gfx942"),
            (100_300, "gfx1030"),
            (110_000, "gfx1100"),
            (110_501, "gfx1151"),
            (120_001, "gfx1201"),
        ] {
            assert_eq!(architecture(version), name);
        }
    }

    #[test]
    fn gpus_are_listed_in_order_and_processors_left_out() {
        let root = folder("nodes");
        write(&root.join("0"), "properties", "cpu_cores_count 16\nsimd_count 0\ngfx_target_version 0\n");
        let gpu = |version: u32, location: u32| {
            format!(
                "simd_count 192\nsimd_per_cu 2\nwave_front_size 32\ngfx_target_version {version}\n\
                 location_id {location}\ndomain 0\n"
            )
        };
        write(&root.join("10"), "properties", &gpu(120_001, 0x0a00));
        write(&root.join("2"), "properties", &gpu(110_000, 0x0300));
        write(&root.join("2"), "name", "navi31\n");
        write(&root.join("3"), "properties", "simd_count 4\nnonsense\n");
        let found = gpus(&root);
        fs::remove_dir_all(&root).unwrap();
        let places: Vec<(&str, &str)> =
            found.iter().map(|gpu| (gpu.pci_address.as_str(), gpu.architecture.as_str())).collect();
        assert_eq!(places, [("0000:03:00.0", "gfx1100"), ("0000:0a:00.0", "gfx1201")]);
        assert_eq!((found[0].compute_units, found[0].wave_size), (96, 32));
        assert_eq!(found[0].name.as_deref(), Some("navi31"));
    }

    #[test]
    fn what_sysfs_lacks_is_absent() {
        let device = folder("device");
        write(&device, "mem_info_vram_total", "25753026560\n");
        write(&device, "gpu_busy_percent", "odd");
        write(&device.join("hwmon/hwmon4"), "temp1_input", "47000\n");
        let load = load_in(&device);
        fs::remove_dir_all(&device).unwrap();
        assert_eq!(load.memory_total_bytes, Some(25_753_026_560));
        assert_eq!(load.temperature_millicelsius, Some(47_000));
        assert_eq!((load.memory_used_bytes, load.busy_percent), (None, None));
        assert!(gpus(Path::new("/nonexistent")).is_empty());
    }
}
