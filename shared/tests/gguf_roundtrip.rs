//! What the builder writes, the reader reads back unchanged, for any metadata and tensors; and arbitrary bytes
//! give a value or an error.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use shared::gguf::testing::{GgufBuilder, damage};
use shared::gguf::{Array, Gguf, TensorType, Value};

#[derive(Clone, Debug)]
struct Tensor {
    kind: TensorType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

fn arrays() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Array::U8),
        vec(any::<i8>(), 0..20).prop_map(Array::I8),
        vec(any::<u16>(), 0..20).prop_map(Array::U16),
        vec(any::<i16>(), 0..20).prop_map(Array::I16),
        vec(any::<u32>(), 0..20).prop_map(Array::U32),
        vec(any::<i32>(), 0..20).prop_map(Array::I32),
        vec(any::<u64>(), 0..20).prop_map(Array::U64),
        vec(any::<i64>(), 0..20).prop_map(Array::I64),
        vec(any::<f32>(), 0..20).prop_map(Array::F32),
        vec(any::<f64>(), 0..20).prop_map(Array::F64),
        vec(any::<bool>(), 0..20).prop_map(Array::Bool),
        vec(".{0,12}", 0..20).prop_map(|strings| Array::String(strings.iter().collect())),
    ];
    flat.prop_recursive(4, 24, 4, |inner| vec(inner, 0..4).prop_map(Array::Nested))
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        arrays().prop_map(Value::Array),
    ]
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let shapes = (proptest::sample::select(TensorType::ALL), 1..3u64, vec(1..4u64, 0..4));
    shapes.prop_flat_map(|(kind, blocks, mut dims)| {
        let bytes = blocks * dims.iter().product::<u64>() * kind.block_bytes() as u64;
        dims.insert(0, blocks * kind.block_len() as u64);
        vec(any::<u8>(), bytes as usize).prop_map(move |data| Tensor { kind, dims: dims.clone(), data })
    })
}

fn build(
    version: u32,
    alignment: Option<u32>,
    entries: &BTreeMap<String, Value>,
    tensors: &BTreeMap<String, Tensor>,
) -> Vec<u8> {
    let mut builder = GgufBuilder::new().version(version);
    if let Some(alignment) = alignment {
        builder = builder.alignment(alignment);
    }
    for (key, value) in entries {
        builder = builder.metadata(key, value.clone());
    }
    for (name, tensor) in tensors {
        builder = builder.tensor(name, &tensor.dims, tensor.kind, &tensor.data);
    }
    builder.build()
}

proptest! {
    #[test]
    fn the_reader_gives_back_what_was_written(
        version in 2..=3u32,
        alignment in proptest::option::of((3..=12u32).prop_map(|bits| 1 << bits)),
        entries in btree_map("[a-z]{1,8}(\\.[a-z_]{1,8}){0,3}", values(), 0..12),
        tensors in btree_map(".{1,16}", tensors(), 0..6),
    ) {
        let bytes = build(version, alignment, &entries, &tensors);
        let gguf = Gguf::from_bytes(Path::new("built.gguf"), bytes).unwrap();
        prop_assert_eq!(gguf.version(), version);
        let read: Vec<_> = gguf.metadata().iter().filter(|(key, _)| *key != "general.alignment").collect();
        let written: Vec<_> = entries.iter().map(|(key, value)| (key.as_str(), value)).collect();
        prop_assert_eq!(read, written);
        for (key, value) in &entries {
            prop_assert_eq!(gguf.metadata().get(key), Some(value));
        }
        prop_assert!(gguf.tensors().map(|tensor| &tensor.name).eq(tensors.keys()));
        for (name, written) in &tensors {
            let tensor = gguf.tensor(name).unwrap();
            prop_assert_eq!(tensor.kind, written.kind);
            prop_assert!(tensor.dims().iter().map(|&dim| dim as u64).eq(written.dims.iter().copied()));
            prop_assert_eq!(tensor.elements() as u64, written.dims.iter().product::<u64>());
            prop_assert_eq!(tensor.offset % alignment.unwrap_or(32) as usize, 0);
            prop_assert_eq!(gguf.data(tensor), written.data.as_slice());
        }
    }

    #[test]
    fn any_bytes_give_a_model_or_one_line(
        start in prop_oneof![Just(&b""[..]), Just(&b"GGUF"[..]), Just(&b"GGUF\x03\0\0\0"[..])],
        rest in vec(any::<u8>(), 0..400),
    ) {
        let bytes = [start, &rest].concat();
        if let Err(error) = Gguf::from_bytes(Path::new("noise.gguf"), bytes) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn damaged_files_give_a_model_or_one_line(
        entries in btree_map("[a-z]{1,8}", values(), 0..6),
        tensors in btree_map("[a-z]{1,8}", tensors(), 0..3),
        seed in any::<u64>(),
    ) {
        let bytes = damage(&build(3, None, &entries, &tensors), seed);
        if let Err(error) = Gguf::from_bytes(Path::new("damaged.gguf"), bytes) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
