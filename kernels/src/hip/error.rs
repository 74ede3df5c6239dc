//! What can go wrong on a GPU, by the name of the call and the place that made it.

use crate::KernelError;
use std::panic::Location;

/// A failed call of the HIP runtime, or arguments that a kernel refuses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HipError {
    /// The runtime refused a call or reports that earlier work failed.
    #[error("{call} failed with {name}: {text} (at {site})")]
    Call {
        /// The function of the HIP runtime.
        call: &'static str,
        /// Its error as a number.
        status: u32,
        /// Its error's name.
        name: String,
        /// What the runtime says of it.
        text: String,
        /// Where it was called.
        site: &'static Location<'static>,
    },
    /// The device has too little memory left.
    #[error("gpu {device} has no {bytes} bytes left for {what}: {free} of {total} are free")]
    OutOfMemory {
        /// The device's index.
        device: usize,
        /// What the memory was for.
        what: &'static str,
        /// Size asked for.
        bytes: usize,
        /// Free memory of the device.
        free: usize,
        /// All memory of the device.
        total: usize,
    },
    /// There is no such device.
    #[error("there is no gpu {index}: the hip runtime sees {count}")]
    NoDevice {
        /// The index asked for.
        index: usize,
        /// Devices that the runtime sees.
        count: usize,
    },
    /// The device's architecture could not be found out.
    #[error("gpu {index} at pci address {address} is not in {topology}, so that its architecture is unknown")]
    UnknownDevice {
        /// The device's index.
        index: usize,
        /// Its PCI address.
        address: String,
        /// The directory searched.
        topology: String,
    },
    /// This build has no kernels for the device.
    #[error(
        "gpu {index} ({name}) is a {architecture}, for which this build has no kernels; it has {available}"
    )]
    NoKernels {
        /// The device's index.
        index: usize,
        /// The device's name.
        name: String,
        /// Its architecture.
        architecture: String,
        /// Architectures that would work, comma-separated.
        available: String,
    },
    /// Something that no device kernel does yet.
    #[error("the kernels for gpus know no {what}")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// Arguments that do not fit together.
    #[error(transparent)]
    Arguments(#[from] KernelError),
}

/// Errors after which a process can use its device no more, as the runtime's documentation lists them: illegal
/// address, illegal instruction, assertion, launch failure, launch time-out, and the unknown.
const STICKY: [u32; 8] = [700, 702, 710, 714, 715, 717, 719, 999];

impl HipError {
    /// Whether this process's device is of no more use, so that only a restart helps.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        matches!(self, HipError::Call { status, .. } if STICKY.contains(status))
    }
}
