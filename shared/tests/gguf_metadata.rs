//! Typed access to metadata: any width that fits, a missing key told from a wrong one, and the key named.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use shared::gguf::testing::GgufBuilder;
use shared::gguf::{Array, Gguf, GgufError, PerLayer, Value};

fn model() -> Gguf {
    let bytes = GgufBuilder::new()
        .metadata("u8", Value::U8(7))
        .metadata("i64", Value::I64(4_294_967_295))
        .metadata("large", Value::U64(1 << 32))
        .metadata("negative", Value::I32(-1))
        .metadata("f64", Value::F64(0.5))
        .metadata("text", "hello")
        .metadata("flag", true)
        .metadata("tokens", Array::String(["a", "", "bc"].iter().collect()))
        .metadata("heads", Array::U16(vec![8, 4]))
        .metadata("scores", Array::F32(vec![1.5]))
        .build();
    Gguf::from_bytes(Path::new("m.gguf"), bytes).unwrap()
}

fn check_error<T: std::fmt::Debug>(found: Result<T, GgufError>, expected: &str) {
    assert_eq!(found.unwrap_err().to_string(), expected);
}

#[test]
fn integers_of_any_width_are_read_where_they_fit() {
    let model = model();
    let metadata = model.metadata();
    assert_eq!(metadata.u32("u8").unwrap(), Some(7));
    assert_eq!(metadata.u32("i64").unwrap(), Some(u32::MAX));
    assert_eq!(metadata.u64("large").unwrap(), Some(1 << 32));
    assert_eq!(metadata.u32("absent").unwrap(), None);
    check_error(
        metadata.u32("large"),
        r#"metadata key "large" of "m.gguf" holds 4294967296, which does not fit a u32"#,
    );
    check_error(
        metadata.u64("negative"),
        r#"metadata key "negative" of "m.gguf" holds -1, which does not fit a u64"#,
    );
    check_error(
        metadata.u32("text"),
        r#"metadata key "text" of "m.gguf" is of type string, expected integer"#,
    );
    check_error(metadata.required_u32("absent"), r#""m.gguf" lacks the metadata key "absent""#);
}

#[test]
fn other_scalars_and_arrays() {
    let model = model();
    let metadata = model.metadata();
    assert_eq!(metadata.f32("f64").unwrap(), Some(0.5));
    assert_eq!(metadata.bool("flag").unwrap(), Some(true));
    assert_eq!(metadata.required_str("text").unwrap(), "hello");
    assert_eq!(metadata.f32s("scores").unwrap(), Some(&[1.5][..]));
    assert_eq!(metadata.i32s("heads").unwrap(), Some(vec![8, 4]));
    assert_eq!(metadata.bools("absent").unwrap(), None);
    let tokens = metadata.required_strings("tokens").unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), ["a", "", "bc"]);
    assert_eq!(
        (tokens.get(0), tokens.get(1), tokens.get(2), tokens.get(3)),
        (Some("a"), Some(""), Some("bc"), None)
    );
    check_error(
        metadata.strings("heads"),
        r#"metadata key "heads" of "m.gguf" is of type array of u16, expected array of string"#,
    );
    check_error(metadata.f32("u8"), r#"metadata key "u8" of "m.gguf" is of type u8, expected f32"#);
}

#[test]
fn per_layer_values_are_one_for_all_or_one_for_each() {
    let model = model();
    let metadata = model.metadata();
    let all = metadata.required_u32_per_layer("u8", 2).unwrap();
    assert_eq!((all.get(0), all.get(1)), (Some(7), Some(7)));
    let each = metadata.required_u32_per_layer("heads", 2).unwrap();
    assert_eq!(each, PerLayer::Each(vec![8, 4]));
    assert_eq!((each.get(1), each.get(2)), (Some(4), None));
    check_error(
        metadata.u32_per_layer("heads", 3),
        r#"metadata key "heads" of "m.gguf" holds 2 elements, expected 3"#,
    );
}
