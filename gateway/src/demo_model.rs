//! The demo model inside the executable, so that a fresh machine needs no download. Used by commands without a model.

use std::io::Write;
use std::path::Path;
use tempfile::TempPath;

/// `demo/rocmforge-demo.gguf`: see `demo/README.md`.
#[cfg(demo_model)]
static BYTES: &[u8] = include_bytes!("../demo/rocmforge-demo.gguf");
/// A tree without the trained file builds all the same.
#[cfg(not(demo_model))]
static BYTES: &[u8] = &[];

/// Why the demo model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DemoModelError {
    /// There is nowhere to write it to.
    #[error("cannot write the demo model to {directory}: {error}")]
    Write {
        /// Where it was tried.
        directory: String,
        /// The system's words.
        error: std::io::Error,
    },
    /// The executable was built without it.
    #[error("this build has no demo model: name a GGUF file with --model")]
    NotBuilt,
}

/// Writes the model to a private file for as long as the value lives; workers map it by its path.
pub(crate) fn write() -> Result<TempPath, DemoModelError> {
    if BYTES.is_empty() {
        return Err(DemoModelError::NotBuilt);
    }
    let directory = std::env::temp_dir();
    write_to(&directory)
        .map_err(|error| DemoModelError::Write { directory: directory.display().to_string(), error })
}

fn write_to(directory: &Path) -> std::io::Result<TempPath> {
    let mut file =
        tempfile::Builder::new().prefix("rocmforge-demo-").suffix(".gguf").tempfile_in(directory)?;
    file.write_all(BYTES)?;
    file.flush()?;
    Ok(file.into_temp_path())
}
