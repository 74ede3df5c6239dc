//! Files written by the format's reference writer (`tests/golden/gguf/make.py`) are read as it meant them, and
//! the block sizes are ggml's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use shared::gguf::{Array, Gguf, TensorType, Value};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf").join(name)
}

fn golden_json(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn same(found: &Value, expected: &Json) -> bool {
    match found {
        Value::U64(value) => expected.as_u64() == Some(*value),
        Value::F32(value) => expected.as_f64() == Some(f64::from(*value)),
        Value::F64(value) => expected.as_f64() == Some(*value),
        Value::Bool(value) => expected.as_bool() == Some(*value),
        Value::String(value) => expected.as_str() == Some(value),
        Value::Array(_) => false,
        integer => expected.as_i64().map(i128::from) == integer.integer(),
    }
}

fn check_golden(model: &str, expected: &str, parts: usize) {
    let gguf = Gguf::open(&golden(model)).unwrap();
    let expected = golden_json(expected);
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.paths().len(), parts);
    let metadata = gguf.metadata();
    assert_eq!(metadata.required_str("general.architecture").unwrap(), "llama");
    for (name, value) in expected["scalars"].as_object().unwrap() {
        let found = metadata.get(&format!("scalar.{}", name.to_lowercase())).unwrap();
        assert!(same(found, value), "{name}: {found:?}, expected {value}");
    }
    let arrays = &expected["arrays"];
    let list = |name: &str| arrays[name].as_array().unwrap().clone();
    assert!(metadata.i32s("array.int32").unwrap().unwrap().into_iter().map(Json::from).eq(list("INT32")));
    assert_eq!(metadata.get("array.bool"), Some(&Value::Array(Array::Bool(vec![true, false, true]))));
    assert!(metadata.required_strings("array.string").unwrap().iter().map(Json::from).eq(list("STRING")));
    let floats = metadata.f32s("array.float32").unwrap().unwrap();
    assert!(
        floats.iter().zip(list("FLOAT32")).all(|(found, value)| *found == value.as_f64().unwrap() as f32)
    );
    assert_eq!(floats.len(), list("FLOAT32").len());

    let tensors = expected["tensors"].as_array().unwrap();
    assert_eq!(gguf.tensors().len(), tensors.len());
    for (tensor, expected) in gguf.tensors().zip(tensors) {
        assert_eq!(tensor.name, expected["name"]);
        assert_eq!(tensor.kind.name(), expected["type"]);
        assert_eq!(tensor.part, expected["part"]);
        assert_eq!(tensor.offset, expected["offset"]);
        assert_eq!(tensor.bytes, expected["bytes"]);
        assert!(
            tensor.dims().iter().map(|&dim| Json::from(dim)).eq(expected["dims"].as_array().unwrap().clone())
        );
        let sum: u64 = gguf.data(tensor).iter().map(|&byte| u64::from(byte)).sum();
        assert_eq!(sum, expected["sum"], "bytes of {}", tensor.name);
    }
}

#[test]
fn the_reference_writers_file_is_read_as_meant() {
    check_golden("types.gguf", "types.json", 1);
}

#[test]
fn a_split_model_opens_from_any_part() {
    for part in 1..=3 {
        check_golden(&format!("split-0000{part}-of-00003.gguf"), "split.json", 3);
    }
}

#[test]
fn a_big_endian_file_is_called_big_endian() {
    let error = Gguf::open(&golden("big-endian.gguf")).err().unwrap().to_string();
    assert!(error.contains("is big-endian: version at byte 4 is byte-swapped"), "{error}");
}

#[test]
fn block_sizes_are_those_of_ggml() {
    let sizes = golden_json("block_sizes.json");
    for (name, size) in sizes.as_object().unwrap() {
        let id = size[0].as_u64().unwrap() as u32;
        let kind = TensorType::from_id(id).unwrap();
        assert_eq!(kind.name(), name);
        assert_eq!(kind.id(), id);
        assert_eq!(kind.block_len(), size[1], "block length of {name}");
        assert_eq!(kind.block_bytes(), size[2], "block bytes of {name}");
    }
}
