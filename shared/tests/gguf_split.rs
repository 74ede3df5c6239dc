//! Split models: parts are found from any of them, and parts that do not belong together are refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use shared::gguf::testing::GgufBuilder;
use shared::gguf::{Gguf, TensorType, Value};
use tempfile::TempDir;

/// One part with one tensor `t<number>`; the keys are as the caller says.
fn part(number: u16, count: u16, tensors: i32) -> GgufBuilder {
    GgufBuilder::new()
        .metadata("split.no", Value::U16(number))
        .metadata("split.count", Value::U16(count))
        .metadata("split.tensors.count", Value::I32(tensors))
        .tensor(&format!("t{number}"), &[2], TensorType::F32, &[number as u8; 8])
}

fn write(folder: &TempDir, name: &str, part: &GgufBuilder) {
    std::fs::write(folder.path().join(name), part.build()).unwrap();
}

fn three_parts() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "m-00001-of-00003.gguf", &part(0, 3, 3).metadata("general.name", "whole"));
    write(&folder, "m-00002-of-00003.gguf", &part(1, 3, 3));
    write(&folder, "m-00003-of-00003.gguf", &part(2, 3, 3));
    folder
}

fn check_refused(folder: &TempDir, name: &str, expected: &str) {
    let error = Gguf::open(&folder.path().join(name)).err().unwrap().to_string();
    assert_eq!(error.replace(folder.path().to_str().unwrap(), "DIR"), expected);
}

#[test]
fn any_part_opens_the_whole() {
    let folder = three_parts();
    for number in 1..=3 {
        let gguf = Gguf::open(&folder.path().join(format!("m-0000{number}-of-00003.gguf"))).unwrap();
        assert_eq!(gguf.metadata().str("general.name").unwrap(), Some("whole"));
        assert_eq!(gguf.tensors().len(), 3);
        assert_eq!(gguf.paths().len(), 3);
        for part in 0..3u8 {
            let tensor = gguf.tensor(&format!("t{part}")).unwrap();
            assert_eq!((tensor.part, gguf.data(tensor)), (usize::from(part), &[part; 8][..]));
        }
        let lengths = gguf.paths().map(|path| std::fs::metadata(path).unwrap().len());
        assert_eq!(gguf.file_bytes(), lengths.sum::<u64>());
    }
}

#[test]
fn a_missing_part_is_named() {
    let folder = three_parts();
    std::fs::remove_file(folder.path().join("m-00002-of-00003.gguf")).unwrap();
    check_refused(
        &folder,
        "m-00001-of-00003.gguf",
        r#"part 2 of 3 of the split gguf is missing: there is no file "DIR/m-00002-of-00003.gguf""#,
    );
}

#[test]
fn a_renamed_part_is_refused() {
    let folder = three_parts();
    write(&folder, "model.gguf", &part(0, 3, 3));
    check_refused(
        &folder,
        "model.gguf",
        r#""DIR/model.gguf" is part 1 of 3 of a split gguf, so its name must end in "-00001-of-00003.gguf""#,
    );
}

#[test]
fn parts_that_disagree_are_refused() {
    let file = "m-00002-of-00003.gguf";
    let refused = |second: GgufBuilder, expected| {
        let folder = three_parts();
        write(&folder, file, &second);
        check_refused(&folder, "m-00001-of-00003.gguf", expected);
    };
    refused(part(2, 3, 3), r#"split part "DIR/m-00002-of-00003.gguf" has split.no 2, expected 1"#);
    refused(part(1, 4, 3), r#"split part "DIR/m-00002-of-00003.gguf" has split.count 4, expected 3"#);
    refused(part(1, 3, 9), r#"split part "DIR/m-00002-of-00003.gguf" has split.tensors.count 9, expected 3"#);
    refused(GgufBuilder::new(), r#""DIR/m-00002-of-00003.gguf" lacks the metadata key "split.no""#);
    refused(
        part(1, 3, 3).tensor("extra", &[2], TensorType::F32, &[0; 8]),
        r#"the parts of the split gguf "DIR/m-00001-of-00003.gguf" hold 4 tensors, but split.tensors.count says 3"#,
    );
}

#[test]
fn a_tensor_in_two_parts_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let same = |number| part(number, 2, 4).tensor("w", &[2], TensorType::F32, &[0; 8]);
    write(&folder, "m-00001-of-00002.gguf", &same(0));
    write(&folder, "m-00002-of-00002.gguf", &same(1));
    let error = Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).err().unwrap().to_string();
    assert!(error.starts_with(r#"tensor "w" at byte "#) && error.contains("is also at byte"), "{error}");
}

#[test]
fn hostile_split_keys_are_refused() {
    let refused = |part: GgufBuilder, expected: &str| {
        let error = Gguf::from_bytes(Path::new("m.gguf"), part.build()).err().unwrap().to_string();
        assert_eq!(error, expected);
    };
    refused(
        part(0, 65535, 1),
        r#"metadata key "split.count" of "m.gguf" holds 65535, which does not fit the limit of 1024 parts"#,
    );
    refused(
        part(3, 3, 1),
        r#"metadata key "split.no" of "m.gguf" holds 3, which does not fit a number below split.count"#,
    );
    refused(
        part(0, 3, -1),
        r#"metadata key "split.tensors.count" of "m.gguf" holds -1, which does not fit a u64"#,
    );
    refused(part(0, 3, 3), r#""m.gguf" is part of a split gguf, which can only be opened from its folder"#);
}
