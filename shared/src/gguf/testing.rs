//! Builds small GGUF files for tests, sound or deliberately wrong. Behind the feature `testing`; the product
//! never writes GGUF. Callers damage the bytes afterwards, or call what this builder does not check.

use super::array::Array;
use super::tensor_type::TensorType;
use super::value::{Value, ValueType};

/// Collects what a file shall hold; [`GgufBuilder::build`] gives its bytes. Checks nothing.
#[derive(Clone, Debug)]
pub struct GgufBuilder {
    version: u32,
    alignment: usize,
    entries: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        GgufBuilder { version: 3, alignment: 32, entries: Vec::new(), tensors: Vec::new() }
    }
}

impl GgufBuilder {
    /// An empty file of version 3 with the default alignment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes this version number; the layout is that of versions 2 and 3 all the same.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Aligns tensor data to `alignment` bytes and says so in `general.alignment`.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment as usize;
        self.metadata("general.alignment", Value::U32(alignment))
    }

    /// Adds a key.
    pub fn metadata(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.entries.push((key.to_owned(), value.into()));
        self
    }

    /// Adds a tensor; `dims` in GGUF's order, `data` as it shall lie in the file.
    pub fn tensor(self, name: &str, dims: &[u64], kind: TensorType, data: &[u8]) -> Self {
        self.tensor_of_id(name, dims, kind.id(), data)
    }

    /// Adds a tensor whose type id need not exist.
    pub fn tensor_of_id(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), kind, data: data.to_vec() });
        self
    }

    /// The bytes of the file.
    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        put_count(&mut out, self.tensors.len());
        put_count(&mut out, self.entries.len());
        for (key, value) in &self.entries {
            put_string(&mut out, key);
            put_type(&mut out, value.value_type());
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            put_count(&mut out, offset);
            offset += tensor.data.len().next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend((count as u64).to_le_bytes());
}

fn put_type(out: &mut Vec<u8>, value_type: ValueType) {
    out.extend((value_type as u32).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.extend(value.to_le_bytes()),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_type(out, array.element_type());
    put_count(out, array.len());
    match array {
        Array::U8(items) => out.extend(items),
        Array::I8(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::U16(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I16(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::U32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::U64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::F32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::F64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::Bool(items) => items.iter().for_each(|&item| out.push(u8::from(item))),
        Array::String(items) => items.iter().for_each(|item| put_string(out, item)),
        Array::Nested(items) => items.iter().for_each(|item| put_array(out, item)),
    }
}

/// A small sound file with every value type, arrays of all kinds, and tensors of several types.
pub fn sample() -> Vec<u8> {
    let nested = Array::Nested(vec![Array::U8(vec![1, 2]), Array::Nested(vec![Array::Bool(vec![true])])]);
    GgufBuilder::new()
        .metadata("general.architecture", "llama")
        .alignment(64)
        .metadata("a.u8", Value::U8(1))
        .metadata("a.i8", Value::I8(-1))
        .metadata("a.u16", Value::U16(2))
        .metadata("a.i16", Value::I16(-2))
        .metadata("a.u32", 3)
        .metadata("a.i32", Value::I32(-3))
        .metadata("a.u64", Value::U64(4))
        .metadata("a.i64", Value::I64(-4))
        .metadata("a.f32", 0.5)
        .metadata("a.f64", Value::F64(0.25))
        .metadata("a.bool", true)
        .metadata("tokens", Array::String(["<s>", "", "▁the", "🚀"].iter().collect()))
        .metadata("scores", Array::F32(vec![0.0, -1.0, -2.0, -3.0]))
        .metadata("kinds", Array::I32(vec![3, 1, 1, 1]))
        .metadata("layers", Array::U32(vec![8, 8, 4]))
        .metadata("flags", Array::Bool(vec![true, false]))
        .metadata("nested", nested)
        .tensor("f32", &[4, 3], TensorType::F32, &[1; 48])
        .tensor("f16", &[2, 2, 2, 2], TensorType::F16, &[2; 32])
        .tensor("q4_0", &[64, 2], TensorType::Q4_0, &[3; 72])
        .tensor("q6_k", &[256], TensorType::Q6_K, &[4; 210])
        .build()
}

/// The `seed`-th damaged copy of a file, always the same for the same arguments: cut short, bits flipped, a
/// number overwritten by a hostile one, or bytes taken out.
pub fn damage(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut below = |limit: usize| {
        // SplitMix64 (Steele, Lea and Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    };
    let mut out = bytes.to_vec();
    match below(4) {
        0 => out.truncate(below(bytes.len())),
        1 => {
            for _ in 0..=below(8) {
                out[below(bytes.len())] ^= 1 << below(8);
            }
        }
        2 => {
            const HOSTILE: [u64; 6] = [u64::MAX, 1 << 63, 1 << 60, 1 << 32, u32::MAX as u64, 0];
            let at = below(bytes.len().saturating_sub(8));
            out[at..at + 8].copy_from_slice(&HOSTILE[below(HOSTILE.len())].to_le_bytes());
        }
        _ => {
            let start = below(bytes.len());
            let end = (start + 1 + below(16)).min(bytes.len());
            out.drain(start..end);
        }
    }
    out
}
