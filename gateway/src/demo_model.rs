//! The demo model inside the executable, so that a fresh machine needs no download. Used by commands without a model.

use std::io::Write;
use std::path::Path;
use tempfile::TempPath;

/// See `demo/README.md` for what it is and how it is made.
static BYTES: &[u8] = include_bytes!("../demo/rocmforge-demo.gguf");

/// There is nowhere to write the demo model to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the demo model to {directory}: {error}")]
pub struct DemoModelError {
    directory: String,
    error: std::io::Error,
}

/// Writes the model to a private file for as long as the value lives; workers map it by its path.
pub(crate) fn write() -> Result<TempPath, DemoModelError> {
    let directory = std::env::temp_dir();
    write_to(&directory).map_err(|error| DemoModelError { directory: directory.display().to_string(), error })
}

fn write_to(directory: &Path) -> std::io::Result<TempPath> {
    let mut file =
        tempfile::Builder::new().prefix("rocmforge-demo-").suffix(".gguf").tempfile_in(directory)?;
    file.write_all(BYTES)?;
    file.flush()?;
    Ok(file.into_temp_path())
}
