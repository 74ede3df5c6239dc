//! The one place that takes bytes out of a GGUF header. Every read is checked against what is left, and a
//! failed one names its field, offset and file. Fields are named by `format_args!`, which costs nothing
//! until a read fails. Knows numbers and strings, not what they mean.

use std::fmt::Arguments;
use std::path::Path;

use super::error::{GgufError, Shown};

/// Metadata and tensor table of the largest published models (vocabularies of 260,000 tokens with merges)
/// take under 20 MB; a header longer than this is damage or an attack.
const MAX_HEADER_BYTES: usize = 256 << 20;

/// Longest string. Some converters embed a whole `tokenizer.json`, which reaches about 30 MB.
pub(super) const MAX_STRING_BYTES: u64 = 64 << 20;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes spoken for by what follows the thing being read, see [`Cursor::set_aside`].
    aside: usize,
    file: &'a Path,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], file: &'a Path) -> Self {
        Cursor { bytes, at: 0, aside: 0, file }
    }

    /// Offset of the next byte from the file's start.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn file(&self) -> &'a Path {
        self.file
    }

    pub(super) fn take(&mut self, count: usize, field: Arguments<'_>) -> Result<&'a [u8], GgufError> {
        let left = &self.bytes[self.at..];
        let end = self.at.saturating_add(count);
        if count > left.len() {
            return Err(GgufError::Truncated {
                file: self.file.into(),
                field: field.to_string(),
                offset: self.at,
                needed_bytes: count as u64,
                left_bytes: left.len(),
            });
        }
        if end > MAX_HEADER_BYTES {
            return Err(GgufError::HeaderTooLong {
                file: self.file.into(),
                field: field.to_string(),
                offset: self.at,
                limit_bytes: MAX_HEADER_BYTES,
            });
        }
        self.at = end;
        Ok(&left[..count])
    }

    pub(super) fn array<const N: usize>(&mut self, field: Arguments<'_>) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, field: Arguments<'_>) -> Result<u32, GgufError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: Arguments<'_>) -> Result<u64, GgufError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn bool(&mut self, field: Arguments<'_>) -> Result<bool, GgufError> {
        let offset = self.at;
        match self.array(field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.invalid(field, offset, other.to_string(), "a bool, 0 or 1")),
        }
    }

    /// A u64 count of things that take at least `min_bytes` each and number at most `limit`. The count is
    /// refused when the rest of the file cannot hold so many, so it is safe to reserve memory for.
    pub(super) fn count(
        &mut self,
        min_bytes: usize,
        limit: u64,
        field: Arguments<'_>,
    ) -> Result<usize, GgufError> {
        let offset = self.at;
        let value = self.u64(field)?;
        let left = self.bytes.len().min(MAX_HEADER_BYTES).saturating_sub(self.at);
        let backed = (left.saturating_sub(self.aside) / min_bytes) as u64;
        let limit = limit.min(backed);
        match usize::try_from(value) {
            Ok(count) if value <= limit => Ok(count),
            _ => Err(self.too_large(field, offset, value, limit)),
        }
    }

    /// Reads one of several things with `read`, while `bytes` are kept for those that follow it: without that, nested
    /// counts could each claim the same rest of the file, and memory would be reserved for it several times.
    pub(super) fn set_aside<T>(&mut self, bytes: usize, read: impl FnOnce(&mut Self) -> T) -> T {
        // Both are bounded by the file's length, which counts have been checked against.
        self.aside += bytes;
        let outcome = read(self);
        self.aside -= bytes;
        outcome
    }

    /// A string of at most `limit_bytes`, valid UTF-8.
    pub(super) fn string(&mut self, limit_bytes: u64, field: Arguments<'_>) -> Result<&'a str, GgufError> {
        let offset = self.at;
        let bytes = self.u64(format_args!("length of {field}"))?;
        if bytes > limit_bytes {
            return Err(self.too_large(format_args!("length of {field}"), offset, bytes, limit_bytes));
        }
        let start = self.at;
        // `limit_bytes` is far below what any usize holds.
        let text = self.take(bytes as usize, field)?;
        std::str::from_utf8(text).map_err(|error| {
            let lossy = String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned();
            let bad = start + error.valid_up_to();
            self.invalid(field, bad, Shown(&lossy).to_string(), "utf-8 text")
        })
    }

    pub(super) fn too_large(&self, field: Arguments<'_>, offset: usize, value: u64, limit: u64) -> GgufError {
        GgufError::TooLarge { file: self.file.into(), field: field.to_string(), offset, value, limit }
    }

    pub(super) fn invalid(
        &self,
        field: Arguments<'_>,
        offset: usize,
        value: String,
        expected: &'static str,
    ) -> GgufError {
        GgufError::Invalid { file: self.file.into(), field: field.to_string(), offset, value, expected }
    }
}
