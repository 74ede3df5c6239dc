//! Array values, typed and compact: an array of strings is one buffer, since vocabularies have hundreds of
//! thousands of them.

use super::cursor::{Cursor, MAX_STRING_BYTES};
use super::error::{GgufError, Shown};
use super::value::ValueType;

/// Longest array; the largest known (merges of a big vocabulary) have about half a million elements.
const MAX_ARRAY_LEN: u64 = 1 << 24;

/// Deepest nesting of arrays. No published key nests at all; the specification sets no bound.
const MAX_ARRAY_DEPTH: u32 = 8;

/// An array value; all elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the specification's own")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(StringArray),
    /// Arrays of arrays; the inner ones may differ in type and length.
    Nested(Vec<Array>),
}

/// Strings back to back in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// Where each string ends in `text`. A u32 suffices: a header is at most 256 MiB.
    ends: Vec<u32>,
}

impl Array {
    /// Reads element type, count and elements. `depth` is 1 for an array that is itself a value.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &Shown<'_>, depth: u32) -> Result<Self, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            let field = format_args!("array nesting of key {key}");
            return Err(cursor.too_large(field, cursor.offset(), depth.into(), MAX_ARRAY_DEPTH.into()));
        }
        let element = ValueType::read(cursor, format_args!("element type of array {key}"))?;
        let field = format_args!("element count of array {key}");
        let count = cursor.count(element.min_bytes(), MAX_ARRAY_LEN, field)?;
        Ok(match element {
            ValueType::U8 => Array::U8(numbers(cursor, key, count, u8::from_le_bytes)?),
            ValueType::I8 => Array::I8(numbers(cursor, key, count, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(numbers(cursor, key, count, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(numbers(cursor, key, count, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(numbers(cursor, key, count, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(numbers(cursor, key, count, i32::from_le_bytes)?),
            ValueType::U64 => Array::U64(numbers(cursor, key, count, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(numbers(cursor, key, count, i64::from_le_bytes)?),
            ValueType::F32 => Array::F32(numbers(cursor, key, count, f32::from_le_bytes)?),
            ValueType::F64 => Array::F64(numbers(cursor, key, count, f64::from_le_bytes)?),
            ValueType::Bool => Array::Bool(bools(cursor, key, count)?),
            ValueType::String => Array::String(StringArray::read(cursor, key, count)?),
            ValueType::Array => {
                let mut arrays = Vec::with_capacity(count);
                for index in 0..count {
                    let siblings_bytes = (count - 1 - index) * element.min_bytes();
                    let array =
                        cursor.set_aside(siblings_bytes, |cursor| Array::read(cursor, key, depth + 1))?;
                    arrays.push(array);
                }
                Array::Nested(arrays)
            }
        })
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ValueType {
        match self {
            Array::U8(_) => ValueType::U8,
            Array::I8(_) => ValueType::I8,
            Array::U16(_) => ValueType::U16,
            Array::I16(_) => ValueType::I16,
            Array::U32(_) => ValueType::U32,
            Array::I32(_) => ValueType::I32,
            Array::U64(_) => ValueType::U64,
            Array::I64(_) => ValueType::I64,
            Array::F32(_) => ValueType::F32,
            Array::F64(_) => ValueType::F64,
            Array::Bool(_) => ValueType::Bool,
            Array::String(_) => ValueType::String,
            Array::Nested(_) => ValueType::Array,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(items) => items.len(),
            Array::I8(items) => items.len(),
            Array::U16(items) => items.len(),
            Array::I16(items) => items.len(),
            Array::U32(items) => items.len(),
            Array::I32(items) => items.len(),
            Array::U64(items) => items.len(),
            Array::I64(items) => items.len(),
            Array::F32(items) => items.len(),
            Array::F64(items) => items.len(),
            Array::Bool(items) => items.len(),
            Array::String(items) => items.len(),
            Array::Nested(items) => items.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as integers, if they are integers of any width.
    pub fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        fn wide<T: Copy + Into<i128>>(items: &[T]) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
            Some(Box::new(items.iter().map(|&item| item.into())))
        }
        match self {
            Array::U8(items) => wide(items),
            Array::I8(items) => wide(items),
            Array::U16(items) => wide(items),
            Array::I16(items) => wide(items),
            Array::U32(items) => wide(items),
            Array::I32(items) => wide(items),
            Array::U64(items) => wide(items),
            Array::I64(items) => wide(items),
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::String(_) | Array::Nested(_) => None,
        }
    }
}

impl StringArray {
    fn read(cursor: &mut Cursor<'_>, key: &Shown<'_>, count: usize) -> Result<Self, GgufError> {
        let mut strings = StringArray { text: String::new(), ends: Vec::with_capacity(count) };
        for index in 0..count {
            strings.push(cursor.string(MAX_STRING_BYTES, format_args!("element {index} of array {key}"))?);
        }
        strings.text.shrink_to_fit();
        Ok(strings)
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        // The cursor's header limit of 256 MiB keeps the text's length within u32.
        self.ends.push(self.text.len() as u32);
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        Some(&self.text[start as usize..end as usize])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.text[start..end as usize];
            start = end as usize;
            text
        })
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = StringArray::default();
        strings.into_iter().for_each(|text| array.push(text.as_ref()));
        array
    }
}

fn numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    key: &Shown<'_>,
    count: usize,
    decode: fn([u8; N]) -> T,
) -> Result<Vec<T>, GgufError> {
    // `count` is at most `MAX_ARRAY_LEN` and `N` at most 8, so the product cannot overflow.
    let bytes = cursor.take(count * N, format_args!("elements of array {key}"))?;
    Ok(bytes.as_chunks().0.iter().map(|&chunk| decode(chunk)).collect())
}

fn bools(cursor: &mut Cursor<'_>, key: &Shown<'_>, count: usize) -> Result<Vec<bool>, GgufError> {
    // Reserved by hand: collecting results cannot know how many come.
    let mut bools = Vec::with_capacity(count);
    for index in 0..count {
        bools.push(cursor.bool(format_args!("element {index} of array {key}"))?);
    }
    Ok(bools)
}
