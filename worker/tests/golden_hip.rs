//! The golden models on a GPU (or the stand-in for one, see kernels/emulator/run.sh).
//!
//! The CPU backend is held to the golden data by `golden_models`; a GPU must give the CPU's very bits, for every
//! family and weight type, both cache types, whatever the chunks and the neighbours in the batch. Without a device
//! the tests say so and pass, unless `ROCMFORGE_REQUIRE_GPU` is set.

#![expect(clippy::expect_used, reason = "a panic is how a test fails")]
#![allow(dead_code, reason = "shares its reader of golden data with golden_models")]

mod golden;

use golden::{Golden, Runner};
use worker::backend::{HipBackend, KvType};

/// Tokens of each prompt that are compared: some blocks of the cache, at a cost that the stand-in can bear.
const TOKENS_MAX: usize = 40;

fn is_there() -> bool {
    let present = HipBackend::is_present();
    assert!(present || std::env::var_os("ROCMFORGE_REQUIRE_GPU").is_none(), "no device, and one is required");
    if !present {
        eprintln!("SKIPPED: no GPU and no stand-in (kernels/emulator/run.sh)");
    }
    present
}

fn check(model: &str, kind: &str, kv_type: KvType) {
    let (golden, file) = (Golden::open(model), format!("{model}-{kind}.gguf"));
    let gpu = Runner::hip(kv_type);
    let cpu = Runner::best().into_iter().find(|runner| runner.kv_type == kv_type).expect("a cpu runner");
    let expected = golden.all_logits(&cpu, &file, TOKENS_MAX);
    let actual = golden.all_logits(&gpu, &file, TOKENS_MAX);
    assert!(!actual.is_empty(), "{file}: no prompt");
    for (prompt, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert!(
            !actual.is_empty() && actual == expected,
            "{file}, prompt {prompt}: {gpu} differs from {cpu}"
        );
    }
}

#[test]
fn every_family_has_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    for model in ["llama", "llama-tied", "mistral", "qwen2", "qwen3"] {
        check(model, "f16", KvType::F16);
    }
    check("llama", "f16", KvType::F32);
}

#[test]
fn every_weight_type_has_the_bits_of_the_cpu() {
    if !is_there() {
        return;
    }
    for kind in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"] {
        check("llama", kind, KvType::F16);
    }
    check("qwen3", "Q4_K_M", KvType::F16);
    check("llama-tied", "BF16", KvType::F16);
}

#[test]
fn chunks_and_batch_neighbours_do_not_change_a_bit() {
    if !is_there() {
        return;
    }
    for (model, file) in [("llama", "llama-Q4_0.gguf"), ("qwen3", "qwen3-Q4_K_M.gguf")] {
        Golden::open(model).chunked_and_batched_agree(&Runner::hip(KvType::F16), file);
    }
}
