//! Metadata values: the enum a caller matches on, and reading one from a header. What a key means is the
//! business of whoever asks for it.

use std::fmt;

use super::array::Array;
use super::cursor::{Cursor, MAX_STRING_BYTES};
use super::error::{GgufError, Shown};

/// The type of a metadata value, with its id in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's own")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the specification's own")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        const BY_ID: [ValueType; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        BY_ID.get(usize::try_from(id).ok()?).copied()
    }

    /// Fewest bytes a value of this type takes in a file.
    pub(super) fn min_bytes(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 4 + 8,
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>, field: fmt::Arguments<'_>) -> Result<Self, GgufError> {
        let offset = cursor.offset();
        let id = cursor.u32(field)?;
        Self::from_id(id)
            .ok_or_else(|| cursor.invalid(field, offset, id.to_string(), "a value type, 0 to 12"))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        })
    }
}

impl Value {
    /// Reads the type and the value of `key`.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        let value_type = ValueType::read(cursor, format_args!("value type of key {}", Shown(key)))?;
        let key = Shown(key);
        let field = format_args!("value of key {key}");
        Ok(match value_type {
            ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(field)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(field)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(field)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(field)?)),
            ValueType::U32 => Value::U32(cursor.u32(field)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(field)?)),
            ValueType::U64 => Value::U64(cursor.u64(field)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(field)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(field)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(field)?)),
            ValueType::Bool => Value::Bool(cursor.bool(field)?),
            ValueType::String => Value::String(cursor.string(MAX_STRING_BYTES, field)?.to_owned()),
            ValueType::Array => Value::Array(Array::read(cursor, &key, 1)?),
        })
    }

    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The value as an integer, if it is one of any width.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::I8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::I16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::I32(value) => Some(value.into()),
            Value::U64(value) => Some(value.into()),
            Value::I64(value) => Some(value.into()),
            _ => None,
        }
    }

    /// What an error message calls the value's type: `u32`, or `array of string`.
    pub(super) fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.element_type()),
            scalar => scalar.value_type().to_string(),
        }
    }
}
