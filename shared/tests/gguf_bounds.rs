//! Whatever bytes it is given, the reader never panics and never allocates more than a stated multiple of
//! their length. One test in a binary of its own, because the allocator counts the whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use peak_alloc::PeakAlloc;
use shared::gguf::testing::{damage, sample};
use shared::gguf::{Gguf, GgufError};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Reading a file holds at most this many times its length at once, beside its own bytes.
const BYTES_PER_FILE_BYTE: usize = 8;

/// And this much whatever its length: error messages, paths.
const CONSTANT_BYTES: usize = 16 << 10;

#[test]
fn the_reader_neither_panics_nor_allocates_past_its_bound() {
    damaged_files_stay_within_the_bound();
    hostile_counts_stay_within_the_bound();
    nested_counts_share_the_files_bytes();
    the_densest_sound_headers_stay_within_the_bound();
}

fn check(bytes: &[u8]) -> Result<(), GgufError> {
    let copy = bytes.to_vec();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let opened = Gguf::from_bytes(Path::new("hostile.gguf"), copy);
    let grown = ALLOCATOR.peak_usage() - before;
    let limit = BYTES_PER_FILE_BYTE * bytes.len() + CONSTANT_BYTES;
    assert!(grown <= limit, "{} bytes of file took {grown} bytes of memory, limit {limit}", bytes.len());
    let gguf = opened?;
    for tensor in gguf.tensors() {
        assert_eq!(gguf.data(tensor).len(), tensor.bytes);
        assert_eq!(tensor.row_bytes() * tensor.rows(), tensor.bytes);
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
    Ok(())
}

/// A header that announces so many tensors and keys, followed by `filler`.
fn announcing(tensors: u64, keys: u64, filler: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes.extend(filler);
    bytes
}

fn damaged_files_stay_within_the_bound() {
    let whole = sample();
    check(&whole).unwrap();
    for end in 0..whole.len() {
        check(&whole[..end]).unwrap_err();
    }
    let refused = (0..20_000).filter(|&seed| check(&damage(&whole, seed)).is_err()).count();
    // The rest hit values, tensor data or padding, where any bytes are sound.
    assert!((10_000..20_000).contains(&refused), "{refused} of 20000 damaged files were refused");
}

fn hostile_counts_stay_within_the_bound() {
    for count in [1 << 16, 1 << 32, 1 << 60, u64::MAX] {
        for filler in [0u8, 1, 0xff] {
            check(&announcing(count, 0, &[filler; 100_000])).unwrap_err();
            check(&announcing(0, count, &[filler; 100_000])).unwrap_err();
            check(&announcing(count, count, &[filler; 100_000])).unwrap_err();
        }
    }
}

/// Arrays in arrays, each of which announces as many elements as the rest of the file could hold.
fn nested_counts_share_the_files_bytes() {
    let mut nested = announcing(0, 1, &1u64.to_le_bytes());
    nested.extend(b"k\x09\0\0\0");
    for _ in 0..8 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(8_000u64.to_le_bytes());
    }
    nested.extend([0; 100_000]);
    check(&nested).unwrap_err();
}

fn the_densest_sound_headers_stay_within_the_bound() {
    // Short keys with one-byte values cost the most memory per byte of file.
    let mut keys = announcing(0, 5_000, &[]);
    for key in 0..5_000u32 {
        keys.extend(4u64.to_le_bytes());
        keys.extend(format!("{key:04}").as_bytes());
        keys.extend([0, 0, 0, 0, 7]);
    }
    check(&keys).unwrap();

    // An array of empty arrays of u8.
    let mut nested = announcing(0, 1, &1u64.to_le_bytes());
    nested.extend(b"k\x09\0\0\0\x09\0\0\0");
    nested.extend(10_000u64.to_le_bytes());
    nested.extend([0; 12 * 10_000]);
    check(&nested).unwrap();
}
