//! The metadata of a file: an ordered map, and typed access that says what was wrong with which key.
//! `u32` and its like give `Ok(None)` for a missing key and an error for one of the wrong type; `required_*`
//! make a missing key an error too. Knows no key by name.

use std::path::{Path, PathBuf};

use super::array::{Array, StringArray};
use super::cursor::Cursor;
use super::error::{GgufError, Shown};
use super::value::Value;

/// Most keys. Published files have fewer than a hundred.
const MAX_KEYS: u64 = 1 << 16;

/// Longest key: the specification's limit.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;

/// Fewest bytes a key and its value take: length, one character, value type, value.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;

/// Key-value pairs in the order of the file, each key once.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    file: PathBuf,
    entries: Vec<(String, Value)>,
    /// Indices of `entries`, sorted by key.
    by_key: Vec<u32>,
}

/// A number that is the same for every layer, or given layer by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerLayer {
    /// One value for all layers.
    All(u32),
    /// One value for each layer.
    Each(Vec<u32>),
}

impl PerLayer {
    /// The value for `layer`, `None` past the last one listed.
    pub fn get(&self, layer: usize) -> Option<u32> {
        match self {
            PerLayer::All(value) => Some(*value),
            PerLayer::Each(values) => values.get(layer).copied(),
        }
    }
}

impl Metadata {
    /// Reads the number of keys, where `cursor` stands, without the keys.
    pub(super) fn read_count(cursor: &mut Cursor<'_>) -> Result<usize, GgufError> {
        cursor.count(MIN_ENTRY_BYTES, MAX_KEYS, format_args!("number of metadata keys"))
    }

    /// Reads `count` keys with their values.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, GgufError> {
        let mut entries = Vec::with_capacity(count);
        let mut offsets = Vec::with_capacity(count);
        for index in 0..count {
            offsets.push(cursor.offset());
            let field = format_args!("name of metadata key {index}");
            let key = cursor.string(MAX_KEY_BYTES, field)?;
            if key.is_empty() {
                return Err(cursor.invalid(field, offsets[index], "empty".into(), "a name"));
            }
            entries.push((key.to_owned(), Value::read(cursor, key)?));
        }
        let metadata = Metadata::index(cursor.file().into(), entries);
        let key_at = |index: u32| metadata.entries[index as usize].0.as_str();
        for pair in metadata.by_key.windows(2) {
            if key_at(pair[0]) == key_at(pair[1]) {
                return Err(GgufError::DuplicateKey {
                    file: metadata.file.clone(),
                    key: Shown(key_at(pair[1])).to_string(),
                    offset: offsets[pair[1] as usize],
                });
            }
        }
        Ok(metadata)
    }

    fn index(file: PathBuf, entries: Vec<(String, Value)>) -> Self {
        // `MAX_KEYS` keeps every index within u32.
        let mut by_key: Vec<u32> = (0..entries.len() as u32).collect();
        by_key.sort_unstable_by_key(|&index| (entries[index as usize].0.as_str(), index));
        Metadata { file, entries, by_key }
    }

    /// The file the metadata came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All keys with their values, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found =
            self.by_key.binary_search_by_key(&key, |&index| self.entries[index as usize].0.as_str()).ok()?;
        Some(&self.entries[self.by_key[found] as usize].1)
    }

    /// An integer of any width whose value fits a u32.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "a u32")
    }

    /// An integer of any width whose value fits a u64.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "a u64")
    }

    /// A float of either width.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "f32", |value| match *value {
            Value::F32(value) => Some(value),
            Value::F64(value) => Some(value as f32),
            _ => None,
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "bool", |value| match *value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "string", |value| match value {
            Value::String(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>, GgufError> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings),
            _ => None,
        })
    }

    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(Array::F32(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of bool.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, GgufError> {
        self.typed(key, "array of bool", |value| match value {
            Value::Array(Array::Bool(values)) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width whose values fit an i32.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.integers(key, "an i32")
    }

    /// An array of integers of any width whose values fit a u32.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.integers(key, "a u32")
    }

    /// One integer for all layers, or an array of exactly `layers` integers.
    pub fn u32_per_layer(&self, key: &str, layers: usize) -> Result<Option<PerLayer>, GgufError> {
        let Some(Value::Array(_)) = self.get(key) else {
            return Ok(self.u32(key)?.map(PerLayer::All));
        };
        match self.u32s(key)? {
            Some(values) if values.len() != layers => Err(GgufError::ArrayLength {
                file: self.file.clone(),
                key: Shown(key).to_string(),
                found: values.len(),
                expected: layers,
            }),
            values => Ok(values.map(PerLayer::Each)),
        }
    }

    /// As [`Metadata::u32`], but the key must be there.
    pub fn required_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.required(key, self.u32(key)?)
    }

    /// As [`Metadata::f32`], but the key must be there.
    pub fn required_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.required(key, self.f32(key)?)
    }

    /// As [`Metadata::str`], but the key must be there.
    pub fn required_str(&self, key: &str) -> Result<&str, GgufError> {
        self.required(key, self.str(key)?)
    }

    /// As [`Metadata::strings`], but the key must be there.
    pub fn required_strings(&self, key: &str) -> Result<&StringArray, GgufError> {
        self.required(key, self.strings(key)?)
    }

    /// As [`Metadata::u32_per_layer`], but the key must be there.
    pub fn required_u32_per_layer(&self, key: &str, layers: usize) -> Result<PerLayer, GgufError> {
        self.required(key, self.u32_per_layer(key, layers)?)
    }

    /// Turns what another accessor found for `key` into an error if it found nothing.
    pub fn required<T>(&self, key: &str, found: Option<T>) -> Result<T, GgufError> {
        found.ok_or_else(|| GgufError::MissingKey { file: self.file.clone(), key: Shown(key).to_string() })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        take(value).map(Some).ok_or_else(|| GgufError::WrongType {
            file: self.file.clone(),
            key: Shown(key).to_string(),
            found: value.type_name(),
            expected,
        })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, GgufError> {
        self.typed(key, "integer", Value::integer)?.map(|value| self.fit(key, value, expected)).transpose()
    }

    fn integers<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let integers = self.typed(key, "array of integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })?;
        integers.map(|values| values.map(|value| self.fit(key, value, expected)).collect()).transpose()
    }

    fn fit<T: TryFrom<i128>>(&self, key: &str, value: i128, expected: &'static str) -> Result<T, GgufError> {
        T::try_from(value).map_err(|_| GgufError::OutOfRange {
            file: self.file.clone(),
            key: Shown(key).to_string(),
            value: value.to_string(),
            expected,
        })
    }
}
