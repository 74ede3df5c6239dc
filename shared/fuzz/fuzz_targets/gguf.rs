//! Any bytes give a model or an error of one line; what opened can be read to the last byte.
//!
//! From `shared/`, starting from the small files of the golden tests:
//! `cargo +nightly fuzz run gguf fuzz/corpus/gguf ../tests/golden/gguf -- -max_total_time=60 -rss_limit_mb=512
//! -malloc_limit_mb=64 -max_len=8192`

#![no_main]

use std::hint::black_box;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shared::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    match Gguf::from_bytes(Path::new("fuzz.gguf"), bytes.to_vec()) {
        Ok(gguf) => {
            for tensor in gguf.tensors() {
                assert_eq!(gguf.data(tensor).len(), tensor.bytes);
                assert_eq!(tensor.row_bytes() * tensor.rows(), tensor.bytes);
                assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
                black_box(gguf.data(tensor).iter().fold(0u8, |sum, byte| sum ^ byte));
            }
            for (key, value) in gguf.metadata().iter() {
                assert!(gguf.metadata().get(key).is_some());
                let _ = black_box((gguf.metadata().u32_per_layer(key, 4), gguf.metadata().i32s(key)));
                black_box(value.integer());
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n') && line.len() < 1024, "{line}");
        }
    }
});
