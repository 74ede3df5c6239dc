//! Reads one file's header: magic, version, metadata, tensor table, and proves where every tensor's data
//! lies. Sees only bytes and a name for messages; opening files and joining parts is the business of `file`.

use std::path::Path;

use super::cursor::Cursor;
use super::error::{GgufError, Shown};
use super::metadata::Metadata;
use super::tensor::{MAX_TENSORS, MIN_TENSOR_BYTES, TensorInfo};

const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data where `general.alignment` is absent: the specification's value.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Largest alignment accepted: well above the largest page in use (64 KiB).
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What a file says before its data.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    /// In the order of the file; offsets count from the file's start, and each tensor lies inside the file.
    pub(super) tensors: Vec<TensorInfo>,
}

impl Header {
    /// Reads the header of the file with these `bytes`, the `part`-th of its model.
    pub(super) fn read(bytes: &[u8], file: &Path, part: usize) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes, file);
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.count(MIN_TENSOR_BYTES, MAX_TENSORS, format_args!("number of tensors"))?;
        let key_count = Metadata::read_count(&mut cursor)?;
        let metadata = Metadata::read(&mut cursor, key_count)?;
        let alignment = read_alignment(&metadata, file)?;
        let mut tensors = Vec::with_capacity(tensor_count);
        for index in 0..tensor_count {
            tensors.push(TensorInfo::read(&mut cursor, index, part)?);
        }
        // The header is at most 256 MiB long and the alignment at most 1 MiB, so this cannot overflow.
        let data_start = cursor.offset().next_multiple_of(alignment);
        for tensor in &mut tensors {
            place(tensor, data_start, alignment, bytes.len(), file)?;
        }
        refuse_overlap(&tensors, file)?;
        Ok(Header { version, metadata, tensors })
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let file = cursor.file();
    let magic: [u8; 4] = cursor.array(format_args!("magic"))?;
    if magic == [MAGIC[3], MAGIC[2], MAGIC[1], MAGIC[0]] {
        return Err(GgufError::BigEndian { file: file.into(), field: "magic", offset: 0 });
    }
    if magic != MAGIC {
        let found = format!("\"{}\"", magic.escape_ascii());
        return Err(GgufError::Magic { file: file.into(), found });
    }
    let offset = cursor.offset();
    let version = cursor.u32(format_args!("version"))?;
    match version {
        2 | 3 => Ok(version),
        // No version above 65535 will come, so a low half of zeros means swapped bytes.
        swapped if swapped != 0 && swapped & 0xffff == 0 => {
            Err(GgufError::BigEndian { file: file.into(), field: "version", offset })
        }
        found => Err(GgufError::Version { file: file.into(), found }),
    }
}

fn read_alignment(metadata: &Metadata, file: &Path) -> Result<usize, GgufError> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.u64(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    // The specification asks for a multiple of 8; ggml refuses what is not a power of two.
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        return Err(GgufError::OutOfRange {
            file: file.into(),
            key: Shown(KEY).to_string(),
            value: alignment.to_string(),
            expected: "a power of two from 8 to 1048576",
        });
    }
    Ok(alignment as usize)
}

/// Turns the tensor's offset into one from the file's start, and proves that its data lies in the file.
fn place(
    tensor: &mut TensorInfo,
    data_start: usize,
    alignment: usize,
    file_bytes: usize,
    file: &Path,
) -> Result<(), GgufError> {
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned {
            file: file.into(),
            tensor: Shown(&tensor.name).to_string(),
            offset: tensor.offset,
            alignment,
        });
    }
    let start = data_start.checked_add(tensor.offset);
    let end = start.and_then(|start| start.checked_add(tensor.bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= file_bytes => {
            tensor.offset = start;
            Ok(())
        }
        _ => Err(GgufError::OutOfFile {
            file: file.into(),
            tensor: Shown(&tensor.name).to_string(),
            start: (data_start as u64).saturating_add(tensor.offset as u64),
            data_bytes: tensor.bytes,
            file_bytes,
        }),
    }
}

fn refuse_overlap(tensors: &[TensorInfo], file: &Path) -> Result<(), GgufError> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        // Both ends lie in the file, so the sum cannot overflow.
        let end = pair[0].offset + pair[0].bytes;
        if pair[1].offset < end {
            return Err(GgufError::Overlap {
                file: file.into(),
                tensor: Shown(&pair[1].name).to_string(),
                start: pair[1].offset,
                other: Shown(&pair[0].name).to_string(),
                other_end: end,
            });
        }
    }
    Ok(())
}
