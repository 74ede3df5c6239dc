//! Two hundred damaged model files: each is refused with one clear line, none panics, hangs or eats memory.

use harness::{Random, binary, repository};
use std::process::Command;

/// Address space each refusal may use; the demo file is 4 MB and a healthy `inspect` stays far below.
const MEMORY_LIMIT_KIB: u64 = 1 << 20;
/// Damaged files.
const FILES: u64 = 200;

/// Damages a copy of `good`: truncation, bit flips in the header, or a hostile 64-bit count.
fn damage(good: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut below = |limit: usize| random.below(limit as u64) as usize;
    let mut bytes = good.to_vec();
    // Metadata and tensor table lie in the first part of the file.
    let header = 64 * 1024;
    match seed % 3 {
        0 => bytes.truncate(below(good.len())),
        1 => {
            for _ in 0..1 + below(16) {
                let at = below(header);
                bytes[at] ^= 1 << below(8);
            }
        }
        _ => {
            let at = below(header / 8) * 8;
            let hostile = [u64::MAX, 1 << 60, 1 << 40, i64::MAX as u64, 1 << 32][below(5)];
            bytes[at..at + 8].copy_from_slice(&hostile.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let good = std::fs::read(repository().join("gateway/demo/rocmforge-demo.gguf")).expect("demo model");
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("damaged.gguf");
    let mut refused = 0;
    for seed in 0..FILES {
        std::fs::write(&path, damage(&good, seed)).expect("damaged file");
        let script = format!(
            "ulimit -v {MEMORY_LIMIT_KIB}; exec timeout 20 \"$0\" logits --model \"$1\" --tokens 5 --out \"$2\""
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .arg(binary("rocmforge"))
            .arg(&path)
            .arg(directory.path().join("out.npy"))
            .output()
            .expect("bash runs");
        let text = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            // A flipped bit in a name or a weight may leave a usable file.
            Some(0) => {}
            Some(65) => {
                refused += 1;
                assert_eq!(text.trim_end().lines().count(), 1, "seed {seed}: {text}");
                assert!(text.contains("damaged.gguf"), "seed {seed}: {text}");
            }
            code => panic!("seed {seed}: exit {code:?}: {text}"),
        }
    }
    assert!(refused > FILES / 2, "only {refused} of {FILES} were refused");
}
