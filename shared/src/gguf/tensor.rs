//! One entry of the tensor table: reading it, and proving that its shape and size make sense. Where the
//! data lies is settled afterwards by `header`, once the data section's start is known.

use super::cursor::Cursor;
use super::error::{GgufError, Shown};
use super::tensor_type::TensorType;

/// Most tensors in a file. The largest published models have a few thousand.
pub(super) const MAX_TENSORS: u64 = 1 << 16;

/// Fewest bytes of a table entry: name length and one character, dimension count and one, type, offset.
pub(super) const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Longest tensor name: the specification's limit.
const MAX_NAME_BYTES: u64 = 64;

const MAX_DIMS: usize = 4;

/// A tensor of an opened file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The tensor's name, unique in the model.
    pub name: String,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Where its data starts, in bytes from the start of its file.
    pub offset: usize,
    /// Bytes of its data.
    pub bytes: usize,
    /// Which file of a split model holds it, from 0.
    pub part: usize,
    dims: Dims,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dims {
    /// Dimensions past the last are 1.
    lens: [usize; MAX_DIMS],
    count: usize,
}

impl TensorInfo {
    /// The dimensions in GGUF's order: the first is the length of a row, and is contiguous in memory.
    pub fn dims(&self) -> &[usize] {
        &self.dims.lens[..self.dims.count]
    }

    /// Elements in a row.
    pub fn row_len(&self) -> usize {
        self.dims.lens[0]
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        self.dims.lens[1..].iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.bytes / self.rows()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.row_len() * self.rows()
    }

    /// Reads a table entry. The result's `offset` is still relative to the data section.
    pub(super) fn read(cursor: &mut Cursor<'_>, index: usize, part: usize) -> Result<Self, GgufError> {
        let at = cursor.offset();
        let field = format_args!("name of tensor {index}");
        let name = cursor.string(MAX_NAME_BYTES, field)?;
        if name.is_empty() {
            return Err(cursor.invalid(field, at, "empty".into(), "a name"));
        }
        let dims = Dims::read(cursor, name)?;
        let kind = read_kind(cursor, name)?;
        let bytes = dims.data_bytes(cursor, name, kind)?;

        let at = cursor.offset();
        let shown = Shown(name);
        let field = format_args!("data offset of tensor {shown}");
        let offset = cursor.u64(field)?;
        let offset =
            usize::try_from(offset).map_err(|_| cursor.too_large(field, at, offset, usize::MAX as u64))?;
        Ok(TensorInfo { name: name.to_owned(), kind, offset, bytes, part, dims })
    }
}

impl Dims {
    fn read(cursor: &mut Cursor<'_>, name: &str) -> Result<Self, GgufError> {
        let name = Shown(name);
        let at = cursor.offset();
        let field = format_args!("number of dimensions of tensor {name}");
        let count = cursor.u32(field)?;
        if count == 0 {
            return Err(cursor.invalid(field, at, "0".into(), "1 to 4"));
        }
        if count as usize > MAX_DIMS {
            return Err(cursor.too_large(field, at, count.into(), MAX_DIMS as u64));
        }
        let mut lens = [1; MAX_DIMS];
        for (index, len) in lens.iter_mut().enumerate().take(count as usize) {
            let at = cursor.offset();
            let field = format_args!("dimension {index} of tensor {name}");
            let value = cursor.u64(field)?;
            *len = match usize::try_from(value) {
                Ok(0) => return Err(cursor.invalid(field, at, "0".into(), "at least 1")),
                Ok(value) => value,
                Err(_) => return Err(cursor.too_large(field, at, value, usize::MAX as u64)),
            };
        }
        Ok(Dims { lens, count: count as usize })
    }

    /// Bytes of the whole tensor. Also proves that the element count does not overflow.
    fn data_bytes(&self, cursor: &Cursor<'_>, name: &str, kind: TensorType) -> Result<usize, GgufError> {
        let name = Shown(name);
        // The type id has just been read, and the dimensions before it.
        let at = cursor.offset() - 4 - 8 * self.count;
        let field = format_args!("dimensions of tensor {name}");
        let shown = || format!("{:?}", &self.lens[..self.count]);
        let Some(elements) = self.lens.iter().try_fold(1usize, |product, &len| product.checked_mul(len))
        else {
            return Err(cursor.invalid(field, at, shown(), "a product that fits 64 bits"));
        };
        if !self.lens[0].is_multiple_of(kind.block_len()) {
            let field = format_args!("row length of {kind} tensor {name}");
            let expected = "a multiple of the type's block length";
            return Err(cursor.invalid(field, at, self.lens[0].to_string(), expected));
        }
        kind.row_bytes(elements)
            .ok_or_else(|| cursor.invalid(field, at, shown(), "a size in bytes that fits 64 bits"))
    }
}

fn read_kind(cursor: &mut Cursor<'_>, name: &str) -> Result<TensorType, GgufError> {
    let name = Shown(name);
    let at = cursor.offset();
    let field = format_args!("type of tensor {name}");
    let id = cursor.u32(field)?;
    TensorType::from_id(id).ok_or_else(|| {
        let expected = match id {
            // Q4_2, Q4_3 and the repacked Q4_0 and IQ4_NL; ggml took them out of the format.
            4 | 5 | 31..=33 | 36..=38 => "a type that ggml has not withdrawn",
            _ => "a known ggml type, 0 to 42",
        };
        cursor.invalid(field, at, id.to_string(), expected)
    })
}
