//! The choice of a GPU: which one, whether there is one, and how much of its memory the cache may have.
//!
//! Called by [`super::DeviceArgs`]. A build without the cargo feature `hip` has no GPU to choose and says so.

#[cfg(not(feature = "hip"))]
pub(super) use absent::{cache_bytes, info, open};
#[cfg(feature = "hip")]
pub(super) use present::{cache_bytes, info, open};

#[cfg(not(feature = "hip"))]
mod absent {
    use super::super::{AnyBackend, CommandError, Device};
    use crate::model::Opened;

    pub(in super::super) fn open(device: Device) -> Result<Option<AnyBackend>, CommandError> {
        if device != Device::Hip {
            return Ok(None);
        }
        Err(CommandError::Configuration(
            "--device hip: this build has no HIP backend (cargo feature hip); use --device cpu or auto"
                .to_owned(),
        ))
    }

    pub(in super::super) fn info(_device: Device) -> Option<(String, u64)> {
        None
    }

    pub(in super::super) fn cache_bytes(_device: Device, _opened: &Opened) -> Option<u64> {
        None
    }
}

#[cfg(feature = "hip")]
mod present {
    use super::super::{AnyBackend, CommandError, Device};
    use crate::backend::HipBackend;
    use crate::model::Opened;

    /// Index of the GPU among those that the HIP runtime shows this process.
    const DEVICE_VARIABLE: &str = "ROCMFORGE_GPU_DEVICE";
    /// Memory left to activations and the runtime itself.
    const WORKSPACE_BYTES: u64 = 512 << 20;

    fn is_chosen(device: Device) -> bool {
        device == Device::Hip || device == Device::Auto && HipBackend::is_present()
    }

    fn open_chosen() -> Result<HipBackend, CommandError> {
        let index = match std::env::var(DEVICE_VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse().map_err(|_| {
                CommandError::Configuration(format!("{DEVICE_VARIABLE} is {text:?}, not a number"))
            })?,
            _ => 0,
        };
        if !HipBackend::is_present() {
            return Err(CommandError::Configuration(
                "--device hip: the HIP runtime sees no GPU; use --device cpu or auto".to_owned(),
            ));
        }
        HipBackend::open(index).map_err(|error| CommandError::Configuration(format!("--device hip: {error}")))
    }

    /// The GPU's backend, where `device` asks for it or one is there to be had.
    pub(in super::super) fn open(device: Device) -> Result<Option<AnyBackend>, CommandError> {
        if !is_chosen(device) {
            return Ok(None);
        }
        match open_chosen() {
            Ok(backend) => Ok(Some(AnyBackend::Hip(Box::new(backend)))),
            Err(error) if device == Device::Auto => {
                tracing::warn!(%error, "the gpu is not used");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a gateway is told of the chosen GPU: its name, and all of its memory in bytes.
    pub(in super::super) fn info(device: Device) -> Option<(String, u64)> {
        let backend = is_chosen(device).then(open_chosen)?.ok()?;
        let memory_total_bytes = backend.memory_bytes().ok()?.1;
        Some((backend.description(), memory_total_bytes))
    }

    /// What the cache may take of the chosen GPU: what is free, less the weights and some workspace.
    pub(in super::super) fn cache_bytes(device: Device, opened: &Opened) -> Option<u64> {
        let backend = is_chosen(device).then(open_chosen)?.ok()?;
        let free = backend.memory_bytes().ok()?.0;
        Some(free.saturating_sub(opened.tensor_bytes()).saturating_sub(WORKSPACE_BYTES.min(free / 8)))
    }
}
