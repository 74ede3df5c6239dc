//! Memory and time: pages given back leave resident memory and can be read again, and a vocabulary of the
//! largest kind opens quickly. A binary of its own, because resident memory is the whole process's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use shared::gguf::testing::GgufBuilder;
use shared::gguf::{Array, Gguf, TensorType};

const TENSOR_BYTES: usize = 32 << 20;

fn resident_file_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn unneeded_pages_leave_resident_memory_and_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gguf");
    let data = vec![7u8; TENSOR_BYTES];
    let file = GgufBuilder::new().tensor("w", &[TENSOR_BYTES as u64], TensorType::I8, &data).build();
    fs::write(&path, file).unwrap();

    let gguf = Gguf::open(&path).unwrap();
    gguf.prefetch();
    let tensor = gguf.tensor("w").unwrap();
    assert!(gguf.data(tensor) == data);
    let before = resident_file_bytes();
    assert!(before >= TENSOR_BYTES, "{before} bytes of files resident after reading all");
    gguf.advise_unneeded(tensor);
    let after = resident_file_bytes();
    assert!(after + TENSOR_BYTES / 2 <= before, "{before} bytes of files resident before, {after} after");
    assert!(gguf.data(tensor) == data);
}

#[test]
fn a_vocabulary_of_150_000_tokens_opens_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    let tokens = Array::String((0..150_000).map(|id| format!("token {id}")).collect());
    let merges = Array::String((0..150_000).map(|id| format!("left{id} right{id}")).collect());
    let file = GgufBuilder::new().metadata("tokens", tokens).metadata("merges", merges).build();
    fs::write(&path, file).unwrap();
    let fastest = (0..5).map(|_| {
        let start = Instant::now();
        let gguf = Gguf::open(&path).unwrap();
        let elapsed = start.elapsed();
        assert_eq!(gguf.metadata().required_strings("tokens").unwrap().get(149_999), Some("token 149999"));
        elapsed
    });
    // About 10 ms with optimization; the limit leaves room for a slow and busy machine.
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(500), "opening took {fastest:?}");
}
