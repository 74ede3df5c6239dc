//! Models split over several files, `name-00001-of-0000N.gguf`: what the files are called and whether their
//! `split.*` keys agree. Pure; `file` does the opening.

use std::path::{Path, PathBuf};

use super::error::{GgufError, Shown};
use super::metadata::Metadata;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Most parts of a model: an order of magnitude above the largest published.
const MAX_PARTS: u32 = 1024;

/// What one part says about the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// This part, from 0.
    pub(super) number: u32,
    pub(super) count: u32,
    /// Tensors in all parts together.
    tensors: u64,
}

impl Split {
    /// What the metadata of one part say; `None` for a model in one file.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let count = match metadata.u32(COUNT)? {
            None | Some(0 | 1) => return Ok(None),
            Some(count) => count,
        };
        let out_of_range = |key, value: u32, expected| GgufError::OutOfRange {
            file: metadata.file().into(),
            key: Shown(key).to_string(),
            value: value.to_string(),
            expected,
        };
        if count > MAX_PARTS {
            return Err(out_of_range(COUNT, count, "the limit of 1024 parts"));
        }
        let number = metadata.required_u32(NUMBER)?;
        if number >= count {
            return Err(out_of_range(NUMBER, number, "a number below split.count"));
        }
        let tensors = metadata.required(TENSORS, metadata.u64(TENSORS)?)?;
        Ok(Some(Split { number, count, tensors }))
    }

    /// The paths of all parts, given the path of this one.
    pub(super) fn paths(&self, path: &Path) -> Result<Vec<PathBuf>, GgufError> {
        let suffix = self.suffix(self.number);
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(prefix) = name.and_then(|name| name.strip_suffix(&suffix)) else {
            let (part, count) = (self.number + 1, self.count);
            return Err(GgufError::SplitName { file: path.into(), part, count, expected: suffix });
        };
        let sibling = |number| path.with_file_name(format!("{prefix}{}", self.suffix(number)));
        Ok((0..self.count).map(sibling).collect())
    }

    fn suffix(&self, number: u32) -> String {
        format!("-{:05}-of-{:05}.gguf", number + 1, self.count)
    }

    /// Checks that the metadata of part `number` belong to the same whole.
    pub(super) fn check_part(&self, metadata: &Metadata, number: u32) -> Result<(), GgufError> {
        let mismatch = |key, found: u64, expected: u64| {
            if found == expected {
                return Ok(());
            }
            Err(GgufError::SplitMismatch { file: metadata.file().into(), key, found, expected })
        };
        let part = Split {
            number: metadata.required_u32(NUMBER)?,
            count: metadata.required_u32(COUNT)?,
            tensors: metadata.required(TENSORS, metadata.u64(TENSORS)?)?,
        };
        mismatch(COUNT, part.count.into(), self.count.into())?;
        mismatch(NUMBER, part.number.into(), number.into())?;
        mismatch(TENSORS, part.tensors, self.tensors)
    }

    /// Checks that all parts together hold as many tensors as they say.
    pub(super) fn check_tensors(&self, file: &Path, found: usize) -> Result<(), GgufError> {
        if found as u64 == self.tensors {
            return Ok(());
        }
        Err(GgufError::SplitTensors { file: file.into(), found, expected: self.tensors })
    }
}
