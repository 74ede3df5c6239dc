//! The kernels as code objects, one per architecture, built into this library by `build.rs`.
//!
//! The right one is chosen here rather than by the runtime from a bundle, so that a device without kernels gets an
//! error that names it.

include!(concat!(env!("OUT_DIR"), "/code_objects.rs"));

/// The code object for `architecture`, if this build has one.
pub(super) fn find(architecture: &str) -> Option<&'static [u8]> {
    CODE_OBJECTS.iter().find(|(name, _)| *name == architecture).map(|(_, image)| *image)
}

/// The architectures this build has kernels for.
#[must_use]
pub fn architectures() -> Vec<&'static str> {
    CODE_OBJECTS.iter().map(|(name, _)| *name).collect()
}
