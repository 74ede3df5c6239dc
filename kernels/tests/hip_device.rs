//! What goes wrong on a device, as the stand-in makes it go wrong: each fault is one clear error, and what is broken
//! for good says so.
//!
//! Faults are settings of a process, so each case runs this very executable again with one test and the fault set.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod device;
mod sample;

use kernels::hip::{Event, Gpu, HipError, Norm, Rows, architectures, device_count};
use sample::floats;
use std::process::Command;

/// Tells a test that it is the inner run.
const INNER: &str = "ROCMFORGE_TEST_INNER";

/// Runs the test of that name again with these settings, unless this is that run already.
fn inner(test: &str, settings: &[(&str, &str)]) {
    if is_inner() || device::open().is_none() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INNER, "1").envs(settings.iter().copied());
    let output = command.output().unwrap();
    let text = [output.stdout.clone(), output.stderr.clone()].concat();
    assert!(output.status.success(), "{settings:?}: {}", String::from_utf8_lossy(&text));
    assert!(String::from_utf8_lossy(&text).contains("1 passed"), "the inner test ran");
}

fn is_inner() -> bool {
    std::env::var_os(INNER).is_some()
}

/// A norm of one row: one launch, and an upload and a download around it.
fn compute(gpu: &Gpu) -> Result<Vec<f32>, HipError> {
    let mut x = Rows::new(gpu, 64)?;
    x.upload(gpu, &floats(1, 64))?;
    let gain = gpu.upload(&floats(2, 64), "a gain")?;
    let mut out = Rows::new(gpu, 64)?;
    gpu.rms_norm(&x, Norm { gain: &gain, eps: 1e-5 }, &mut out, &[])?;
    out.download(gpu)
}

#[test]
fn without_a_device_the_index_and_the_count_are_named() {
    inner("without_a_device_the_index_and_the_count_are_named", &[("ROCMFORGE_EMULATOR_DEVICES", "0")]);
    if is_inner() {
        assert_eq!(device_count(), 0);
        let error = Gpu::open(0).unwrap_err();
        assert_eq!(error.to_string(), "there is no gpu 0: the hip runtime sees 0");
    }
}

#[test]
fn a_device_that_the_driver_does_not_list_is_named() {
    let settings = [("ROCMFORGE_KFD_TOPOLOGY", "/nonexistent")];
    inner("a_device_that_the_driver_does_not_list_is_named", &settings);
    if is_inner() {
        let error = Gpu::open(0).unwrap_err().to_string();
        assert!(error.contains("0000:03:00.0") && error.contains("/nonexistent"), "{error}");
    }
}

#[test]
fn an_architecture_without_kernels_is_named() {
    let topology = std::env::var("ROCMFORGE_KFD_TOPOLOGY").unwrap_or_default();
    let other = std::path::Path::new(&topology).with_file_name("gfx906");
    if !other.exists() || architectures().contains(&"gfx906") {
        eprintln!("SKIPPED: this build has kernels for every architecture that the stand-in lists");
        return;
    }
    let settings = [("ROCMFORGE_KFD_TOPOLOGY", other.to_str().unwrap())];
    inner("an_architecture_without_kernels_is_named", &settings);
    if is_inner() {
        let error = Gpu::open(0).unwrap_err().to_string();
        assert!(error.contains("gfx906") && error.contains(architectures()[0]), "{error}");
    }
}

#[test]
fn running_out_of_memory_names_size_and_purpose_and_harms_nothing() {
    inner(
        "running_out_of_memory_names_size_and_purpose_and_harms_nothing",
        &[("ROCMFORGE_EMULATOR_MEMORY_MIB", "8"), ("ROCMFORGE_EMULATOR_FAULT", "oom:2")],
    );
    if is_inner() {
        let gpu = Gpu::open(0).unwrap();
        let buffer = gpu.allocate::<u8>(5 << 20, "weights").unwrap();
        let error = gpu.allocate::<u8>(100, "a fault").unwrap_err();
        assert!(matches!(error, HipError::OutOfMemory { bytes: 100, .. }) && !error.is_sticky(), "{error}");
        let error = gpu.allocate::<u8>(4 << 20, "the kv cache").unwrap_err().to_string();
        assert_eq!(error, "gpu 0 has no 4194304 bytes left for the kv cache: 3145728 of 8388608 are free");
        drop(buffer);
        gpu.allocate::<u8>(4 << 20, "the kv cache").unwrap();
        compute(&gpu).unwrap();
    }
}

#[test]
fn a_refused_launch_is_an_error_that_passes() {
    inner("a_refused_launch_is_an_error_that_passes", &[("ROCMFORGE_EMULATOR_FAULT", "launch:2")]);
    if is_inner() {
        let gpu = Gpu::open(0).unwrap();
        let before = compute(&gpu).unwrap();
        let error = compute(&gpu).unwrap_err();
        assert!(error.to_string().starts_with("hipModuleLaunchKernel failed with hipErrorLaunch"), "{error}");
        assert!(!error.is_sticky());
        assert_eq!(compute(&gpu).unwrap(), before);
    }
}

#[test]
fn a_lost_device_is_reported_where_it_is_waited_for_and_stays_lost() {
    for fault in ["lost:2", "illegal:2"] {
        let test = "a_lost_device_is_reported_where_it_is_waited_for_and_stays_lost";
        inner(test, &[("ROCMFORGE_EMULATOR_FAULT", fault)]);
    }
    if is_inner() {
        let gpu = Gpu::open(0).unwrap();
        compute(&gpu).unwrap();
        for _ in 0..2 {
            let error = compute(&gpu).unwrap_err();
            assert!(error.is_sticky(), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("hipErrorLaunchFailure") || text.contains("hipErrorIllegalAddress"),
                "{text}"
            );
        }
    }
}

#[test]
fn events_order_and_time_work() {
    let Some(gpu) = device::open() else { return };
    let (start, stop) = (Event::new().unwrap(), Event::new().unwrap());
    start.record(gpu.stream()).unwrap();
    compute(&gpu).unwrap();
    stop.record(gpu.stream()).unwrap();
    stop.synchronize().unwrap();
    assert!(stop.elapsed_ms_since(&start).unwrap() > 0.0);
}

#[test]
fn copies_outside_a_buffer_are_refused() {
    let Some(gpu) = device::open() else { return };
    let mut buffer = gpu.upload(&[1u32, 2, 3, 4], "a test").unwrap();
    assert!(buffer.upload(gpu.stream(), 3, &[9, 9]).is_err());
    assert!(buffer.upload(gpu.stream(), usize::MAX, &[9, 9]).is_err());
    assert!(buffer.download(gpu.stream(), 2, &mut [0; 3]).is_err());
    assert!(buffer.copy_within(gpu.stream(), 0, 1, 2).is_err());
    buffer.copy_within(gpu.stream(), 0, 2, 2).unwrap();
    let mut read = [0; 4];
    buffer.download(gpu.stream(), 0, &mut read).unwrap();
    assert_eq!(read, [1, 2, 1, 2]);
}
