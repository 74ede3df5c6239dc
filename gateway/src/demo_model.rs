//! The demo model inside the executable, so that a fresh machine needs no download. Used by commands without a model.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// What the API calls it.
pub(crate) const DEMO_MODEL_ID: &str = "rocmforge-demo";

/// See `demo/README.md` for what it is and how it is made.
static BYTES: &[u8] = include_bytes!("../demo/rocmforge-demo.gguf");

/// There is no memory for the demo model.
#[derive(Debug, thiserror::Error)]
#[error("cannot unpack the demo model into memory: {0}")]
pub struct DemoModelError(#[from] std::io::Error);

/// The demo model as a file in memory: nothing is left on disk, however this process ends.
pub(crate) struct DemoModel {
    file: File,
}

impl DemoModel {
    /// Unpacks it.
    pub(crate) fn unpack() -> Result<Self, DemoModelError> {
        let memory = memfd_create(DEMO_MODEL_ID, MFdFlags::MFD_CLOEXEC).map_err(std::io::Error::from)?;
        let mut file = File::from(memory);
        file.write_all(BYTES)?;
        Ok(Self { file })
    }

    /// A path by which this process and its workers open it while the value lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::model::TextModel;

    #[test]
    fn the_embedded_model_opens_by_its_path() {
        let demo = DemoModel::unpack().unwrap();
        let model = TextModel::open(&demo.path()).unwrap();
        let prompt =
            model.chat_prompt(&[serde_json::json!({"role": "user", "content": "Hi"})], &Default::default());
        assert!(prompt.unwrap().len() > 5);
        let path = demo.path();
        drop(demo);
        assert!(TextModel::open(&path).is_err());
    }
}
