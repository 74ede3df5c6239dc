//! Why a GGUF file was refused, or a key could not be had. One line each, names from the file escaped and
//! cut, so that a hostile file cannot forge log lines or fill them.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::error::Category;

/// Why a GGUF file was refused, or a metadata key could not be had.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields mean")]
pub enum GgufError {
    #[error("cannot {action} gguf file {file:?}")]
    Io { action: &'static str, file: PathBuf, source: io::Error },

    #[error("{file:?} is not a regular file, so it cannot be a gguf file")]
    NotRegular { file: PathBuf },

    #[error("{file:?} is not a gguf file: magic at byte 0 is {found}, expected \"GGUF\"")]
    Magic { file: PathBuf, found: String },

    #[error(
        "gguf file {file:?} is big-endian: {field} at byte {offset} is byte-swapped; only little-endian is read"
    )]
    BigEndian { file: PathBuf, field: &'static str, offset: usize },

    #[error("gguf version at byte 4 of {file:?} is {found}, supported are 2 and 3")]
    Version { file: PathBuf, found: u32 },

    #[error(
        "{field} at byte {offset} of {file:?} needs {needed_bytes} bytes, but the file ends after {left_bytes} more"
    )]
    Truncated { file: PathBuf, field: String, offset: usize, needed_bytes: u64, left_bytes: usize },

    #[error(
        "{field} at byte {offset} of {file:?} lies past the limit of {limit_bytes} bytes for metadata and tensor table"
    )]
    HeaderTooLong { file: PathBuf, field: String, offset: usize, limit_bytes: usize },

    #[error("{field} at byte {offset} of {file:?} is {value}, limit {limit}")]
    TooLarge { file: PathBuf, field: String, offset: usize, value: u64, limit: u64 },

    #[error("{field} at byte {offset} of {file:?} is {value}, expected {expected}")]
    Invalid { file: PathBuf, field: String, offset: usize, value: String, expected: &'static str },

    #[error("metadata key {key} at byte {offset} of {file:?} was there before")]
    DuplicateKey { file: PathBuf, key: String, offset: usize },

    #[error(
        "data offset {offset} of tensor {tensor} of {file:?} is not a multiple of the alignment {alignment}"
    )]
    Misaligned { file: PathBuf, tensor: String, offset: usize, alignment: usize },

    #[error(
        "tensor {tensor} of {file:?} has {data_bytes} bytes from byte {start} on, but the file is {file_bytes} bytes long"
    )]
    OutOfFile { file: PathBuf, tensor: String, start: u64, data_bytes: usize, file_bytes: usize },

    #[error(
        "tensor {tensor} of {file:?} starts at byte {start}, before tensor {other} ends at byte {other_end}"
    )]
    Overlap { file: PathBuf, tensor: String, start: usize, other: String, other_end: usize },

    #[error("tensor {tensor} at byte {offset} of {file:?} is also at byte {other_offset} of {other:?}")]
    DuplicateTensor { file: PathBuf, tensor: String, offset: usize, other: PathBuf, other_offset: usize },

    #[error("{file:?} lacks the metadata key {key}")]
    MissingKey { file: PathBuf, key: String },

    #[error("metadata key {key} of {file:?} is of type {found}, expected {expected}")]
    WrongType { file: PathBuf, key: String, found: String, expected: &'static str },

    #[error("metadata key {key} of {file:?} holds {value}, which does not fit {expected}")]
    OutOfRange { file: PathBuf, key: String, value: String, expected: &'static str },

    #[error("metadata key {key} of {file:?} holds {found} elements, expected {expected}")]
    ArrayLength { file: PathBuf, key: String, found: usize, expected: usize },

    #[error("{file:?} is part {part} of {count} of a split gguf, so its name must end in {expected:?}")]
    SplitName { file: PathBuf, part: u32, count: u32, expected: String },

    #[error("part {part} of {count} of the split gguf is missing: there is no file {file:?}")]
    SplitMissing { file: PathBuf, part: u32, count: u32 },

    #[error("split part {file:?} has {key} {found}, expected {expected}")]
    SplitMismatch { file: PathBuf, key: &'static str, found: u64, expected: u64 },

    #[error(
        "the parts of the split gguf {file:?} hold {found} tensors, but split.tensors.count says {expected}"
    )]
    SplitTensors { file: PathBuf, found: usize, expected: u64 },

    #[error("{file:?} is part of a split gguf, which can only be opened from its folder")]
    SplitInMemory { file: PathBuf },
}

impl GgufError {
    /// Whose fault it is: the model's or its path's, unless the machine failed to read it.
    pub fn category(&self) -> Category {
        use io::ErrorKind::{NotFound, PermissionDenied};
        match self {
            GgufError::Io { source, .. } if !matches!(source.kind(), NotFound | PermissionDenied) => {
                Category::Internal
            }
            _ => Category::User,
        }
    }
}

/// Most characters of a name from a file that a message repeats.
const SHOWN_CHARS: usize = 80;

/// A name from a file as a message shows it: quoted, escaped, cut to [`SHOWN_CHARS`].
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN_CHARS) {
            None => write!(f, "{:?}", self.0),
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
        }
    }
}
