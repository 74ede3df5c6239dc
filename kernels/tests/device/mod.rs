//! A device for the kernel tests: the stand-in of `emulator/`, or a GPU.
//!
//! `emulator/run.sh OUT ARCH cargo test …` runs them on the stand-in. Without any device they say so and pass, unless
//! `ROCMFORGE_REQUIRE_GPU` is set.
#![allow(dead_code, reason = "each test file uses its part")]

use kernels::hip::{DeviceBuffer, Gpu, Rows, device_count};

/// The first device, or `None` after saying that there is none.
pub(crate) fn open() -> Option<Gpu> {
    if device_count() == 0 {
        assert!(std::env::var_os("ROCMFORGE_REQUIRE_GPU").is_none(), "no device, and one is required");
        eprintln!("SKIPPED: no GPU and no stand-in (kernels/emulator/run.sh)");
        return None;
    }
    Some(Gpu::open(0).unwrap())
}

pub(crate) fn rows(gpu: &Gpu, width: usize, values: &[f32]) -> Rows {
    let mut rows = Rows::new(gpu, width).unwrap();
    rows.upload(gpu, values).unwrap();
    rows
}

pub(crate) fn vector(gpu: &Gpu, values: &[f32]) -> DeviceBuffer<f32> {
    gpu.upload(values, "a test").unwrap()
}
