//! What is wrong with a file is said in one line that names field, byte offset, file, value and limit.

use std::path::Path;

use shared::error::Category;
use shared::gguf::testing::{GgufBuilder, damage, sample};
use shared::gguf::{Array, Gguf, GgufError, TensorType, Value};

fn refusal(bytes: Vec<u8>) -> String {
    match Gguf::from_bytes(Path::new("m.gguf"), bytes) {
        Ok(_) => panic!("the file must be refused"),
        Err(error) => error.to_string(),
    }
}

fn check(bytes: Vec<u8>, expected: &str) {
    assert_eq!(refusal(bytes), expected);
}

/// The bytes with `new` written at `at`.
fn patched(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// A file with one tensor `w` of 4 f32 and no metadata: its table entry starts at byte 24.
fn one_tensor() -> Vec<u8> {
    GgufBuilder::new().tensor("w", &[4], TensorType::F32, &[0; 16]).build()
}

/// A file with one key `k`, whose value type is at byte 33 and value at byte 37.
fn one_key(value: impl Into<Value>) -> Vec<u8> {
    GgufBuilder::new().metadata("k", value).build()
}

#[test]
fn what_is_no_little_endian_gguf_of_a_known_version() {
    check(Vec::new(), r#"magic at byte 0 of "m.gguf" needs 4 bytes, but the file ends after 0 more"#);
    check(
        b"PK\x03\x04zip!".to_vec(),
        r#""m.gguf" is not a gguf file: magic at byte 0 is "PK\x03\x04", expected "GGUF""#,
    );
    check(
        b"FUGG\0\0\0\x03".to_vec(),
        r#"gguf file "m.gguf" is big-endian: magic at byte 0 is byte-swapped; only little-endian is read"#,
    );
    check(
        b"GGUF\0\0\0\x03".to_vec(),
        r#"gguf file "m.gguf" is big-endian: version at byte 4 is byte-swapped; only little-endian is read"#,
    );
    for version in [0, 1, 4] {
        check(
            GgufBuilder::new().version(version).build(),
            &format!(r#"gguf version at byte 4 of "m.gguf" is {version}, supported are 2 and 3"#),
        );
    }
}

#[test]
fn counts_and_lengths_that_the_file_cannot_hold() {
    let count = (1u64 << 60).to_le_bytes();
    check(
        patched(one_tensor(), 8, &count),
        r#"number of tensors at byte 8 of "m.gguf" is 1152921504606846976, limit 1"#,
    );
    check(
        patched(one_key(1), 16, &count),
        r#"number of metadata keys at byte 16 of "m.gguf" is 1152921504606846976, limit 1"#,
    );
    check(
        patched(one_key(1), 24, &count),
        r#"length of name of metadata key 0 at byte 24 of "m.gguf" is 1152921504606846976, limit 65535"#,
    );
    check(
        patched(one_key(1), 24, &100u64.to_le_bytes()),
        r#"name of metadata key 0 at byte 32 of "m.gguf" needs 100 bytes, but the file ends after 9 more"#,
    );
    check(
        patched(one_key("text"), 37, &count),
        r#"length of value of key "k" at byte 37 of "m.gguf" is 1152921504606846976, limit 67108864"#,
    );
    check(
        patched(one_key(Array::U64(vec![1, 2])), 41, &count),
        r#"element count of array "k" at byte 41 of "m.gguf" is 1152921504606846976, limit 2"#,
    );
    check(
        GgufBuilder::new().tensor(&"n".repeat(65), &[4], TensorType::F32, &[0; 16]).build(),
        r#"length of name of tensor 0 at byte 24 of "m.gguf" is 65, limit 64"#,
    );
}

#[test]
fn values_that_are_not_what_their_type_says() {
    check(
        patched(one_key(1), 33, &[13]),
        r#"value type of key "k" at byte 33 of "m.gguf" is 13, expected a value type, 0 to 12"#,
    );
    check(
        patched(one_key(Array::U8(vec![1])), 37, &[77]),
        r#"element type of array "k" at byte 37 of "m.gguf" is 77, expected a value type, 0 to 12"#,
    );
    check(
        patched(one_key(true), 37, &[2]),
        r#"value of key "k" at byte 37 of "m.gguf" is 2, expected a bool, 0 or 1"#,
    );
    check(
        patched(one_key(Array::Bool(vec![true, true])), 50, &[9]),
        r#"element 1 of array "k" at byte 50 of "m.gguf" is 9, expected a bool, 0 or 1"#,
    );
    check(
        patched(one_key("text"), 47, b"\xff"),
        "value of key \"k\" at byte 47 of \"m.gguf\" is \"te\u{fffd}t\", expected utf-8 text",
    );
    let deep = (0..8).fold(Array::U8(vec![1]), |inner, _| Array::Nested(vec![inner]));
    check(one_key(deep), r#"array nesting of key "k" at byte 133 of "m.gguf" is 9, limit 8"#);
    check(
        GgufBuilder::new().metadata("", 1).build(),
        r#"name of metadata key 0 at byte 24 of "m.gguf" is empty, expected a name"#,
    );
    check(
        GgufBuilder::new().metadata("k", 1).metadata("l", 2).metadata("k", 3).build(),
        r#"metadata key "k" at byte 58 of "m.gguf" was there before"#,
    );
    check(
        GgufBuilder::new().metadata("general.alignment", 48).build(),
        r#"metadata key "general.alignment" of "m.gguf" holds 48, which does not fit a power of two from 8 to 1048576"#,
    );
}

#[test]
fn tensors_that_cannot_be() {
    let tensor = |dims: &[u64], kind| GgufBuilder::new().tensor("w", dims, kind, &[0; 16]).build();
    check(
        tensor(&[], TensorType::F32),
        r#"number of dimensions of tensor "w" at byte 33 of "m.gguf" is 0, expected 1 to 4"#,
    );
    check(
        tensor(&[1, 1, 1, 1, 4], TensorType::F32),
        r#"number of dimensions of tensor "w" at byte 33 of "m.gguf" is 5, limit 4"#,
    );
    check(
        tensor(&[4, 0], TensorType::F32),
        r#"dimension 1 of tensor "w" at byte 45 of "m.gguf" is 0, expected at least 1"#,
    );
    check(
        tensor(&[1 << 40, 1 << 40], TensorType::F32),
        r#"dimensions of tensor "w" at byte 37 of "m.gguf" is [1099511627776, 1099511627776], expected a product that fits 64 bits"#,
    );
    check(
        tensor(&[1 << 62], TensorType::F32),
        r#"dimensions of tensor "w" at byte 37 of "m.gguf" is [4611686018427387904], expected a size in bytes that fits 64 bits"#,
    );
    check(
        tensor(&[48], TensorType::Q4_0),
        r#"row length of Q4_0 tensor "w" at byte 37 of "m.gguf" is 48, expected a multiple of the type's block length"#,
    );
    for (id, expected) in [(99, "a known ggml type, 0 to 42"), (31, "a type that ggml has not withdrawn")] {
        check(
            GgufBuilder::new().tensor_of_id("w", &[4], id, &[0; 16]).build(),
            &format!(r#"type of tensor "w" at byte 45 of "m.gguf" is {id}, expected {expected}"#),
        );
    }
}

#[test]
fn tensor_data_that_lies_wrong() {
    let at = 49; // where `one_tensor` keeps the data offset
    check(
        patched(one_tensor(), at, &[16]),
        r#"data offset 16 of tensor "w" of "m.gguf" is not a multiple of the alignment 32"#,
    );
    check(
        patched(one_tensor(), at, &[32]),
        r#"tensor "w" of "m.gguf" has 16 bytes from byte 96 on, but the file is 80 bytes long"#,
    );
    check(
        patched(one_tensor(), at, &(u64::MAX - 31).to_le_bytes()),
        r#"tensor "w" of "m.gguf" has 16 bytes from byte 18446744073709551615 on, but the file is 80 bytes long"#,
    );
    let mut cut = one_tensor();
    cut.pop();
    check(cut, r#"tensor "w" of "m.gguf" has 16 bytes from byte 64 on, but the file is 79 bytes long"#);

    let two = |second| {
        GgufBuilder::new()
            .tensor("w", &[16], TensorType::F32, &[0; 64])
            .tensor(second, &[4], TensorType::F32, &[0; 16])
            .build()
    };
    let second_offset = 24 + 33 + 25;
    check(
        patched(two("v"), second_offset, &[32]),
        r#"tensor "v" of "m.gguf" starts at byte 128, before tensor "w" ends at byte 160"#,
    );
    check(two("w"), r#"tensor "w" at byte 160 of "m.gguf" is also at byte 96 of "m.gguf""#);
}

#[test]
fn a_name_cannot_forge_or_fill_a_log_line() {
    let hostile = format!("a\nERROR forged\u{1b}[2J{}", "x".repeat(60_000));
    let error =
        refusal(patched(GgufBuilder::new().metadata(&hostile, true).build(), 32 + hostile.len(), &[99]));
    assert_eq!(error.lines().count(), 1);
    assert!(error.starts_with(r#"value type of key "a\nERROR forged\u{1b}[2Jxxx"#), "{error}");
    assert!(error.len() < 400, "{error}");
}

#[test]
fn files_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Gguf::open(path).err().unwrap();
    assert!(matches!(open(folder.path()), GgufError::NotRegular { .. }));
    let absent = open(&folder.path().join("none.gguf"));
    assert!(matches!(absent, GgufError::Io { action: "find", .. }));
    assert_eq!(absent.category(), Category::User);
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(open(&empty), GgufError::Truncated { .. }));
}

#[test]
fn two_hundred_damaged_files_open_or_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let whole = sample();
    let mut refused = 0;
    for seed in 0..200 {
        std::fs::write(&path, damage(&whole, seed)).unwrap();
        let Err(error) = Gguf::open(&path) else { continue };
        refused += 1;
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 400, "seed {seed}: {line}");
        assert!(line.contains("damaged.gguf"), "seed {seed}: {line}");
        assert!(line.contains(|letter: char| letter.is_ascii_digit()), "seed {seed}: {line}");
    }
    assert!(refused > 100, "only {refused} of 200 were refused");
}
