//! The model families against golden logits made with llama.cpp (tests/golden/models, see its README).
//!
//! Each model is run on the reference backend and on the CPU backend with the best instruction set this processor
//! has, and compared within the tolerances that the data's README states; none of them is ours. The other instruction
//! sets are held to the best one's bits, which costs them a few tokens rather than whole greedy paths.

#![expect(clippy::expect_used, reason = "a panic is how a test fails")]

mod golden;

use golden::{Golden, Logits, Runner, Tolerance};
use worker::backend::KvType;

/// f32 arithmetic on weights exactly as stored.
const EXACT: Tolerance = Tolerance { max_abs: 1e-3, max_kl: 1e-7, top1_share: 1.0 };
/// The same with keys and values in half precision.
const F16_KV: Tolerance = Tolerance { max_abs: 0.15, max_kl: 5e-4, top1_share: 0.98 };

/// How many times more than half precision a q8_0 cache may lose. Half precision rounds a number by up to 1/4096 of
/// itself, a byte by up to 1/254 of the largest of its group, which is about three times a typical number:
/// 3 · 4096 / 254. Logits move in proportion, KL divergence by the square.
const BYTES_BESIDE_HALVES: f64 = 48.0;

fn check_float(model: &str, file: &str) {
    let golden = Golden::open(model);
    let logits = Logits::of_all_prompts(&golden);
    for runner in Runner::reference_and_best() {
        let tolerance = if runner.kv_type == KvType::F16 { F16_KV } else { EXACT };
        golden.compare(&runner, file, &logits, tolerance);
        let steps = golden.greedy_continues_alike(&runner, file, &golden.greedy(), tolerance.max_abs);
        // The path's smallest margin stands for all its steps: with the wide tolerance it may decide none of them.
        assert!(steps > 0 || runner.kv_type == KvType::F16, "{file} on {runner}: no greedy step compared");
    }
}

fn check_quantized(model: &str, kind: &str) {
    let golden = Golden::open(model);
    let file = format!("{model}-{kind}.gguf");
    let logits = golden.quantized_logits(kind);
    // Reference arithmetic on dequantized weights is held to the exact logits, int8 activations to twice what
    // llama.cpp's own lose.
    golden.compare(&Runner::reference(), &file, &logits, EXACT);
    let greedy = golden.quantized_greedy(kind);
    let steps = golden.greedy_continues_alike(&Runner::reference(), &file, &greedy, EXACT.max_abs);
    assert!(steps > 0, "{file}: no greedy step compared");
    let lost = golden.llama_cpp_vs_exact(kind);
    let tolerance = Tolerance { max_abs: 2.0 * lost.max_abs, max_kl: 2.0 * lost.max_kl, top1_share: 0.92 };
    for runner in Runner::best_known() {
        golden.compare(&runner, &file, &logits, tolerance);
        let steps = golden.greedy_continues_alike(&runner, &file, &greedy, tolerance.max_abs);
        assert!(steps > 0, "{file} on {runner}: no greedy step compared");
    }
}

macro_rules! golden {
    ($($name:ident: $check:ident($model:literal, $what:literal);)*) => {
        $(#[test] fn $name() { $check($model, $what); })*
    };
}

golden! {
    llama_f16: check_float("llama", "llama-f16.gguf");
    llama_tied_f16: check_float("llama-tied", "llama-tied-f16.gguf");
    mistral_f16: check_float("mistral", "mistral-f16.gguf");
    qwen2_f16: check_float("qwen2", "qwen2-f16.gguf");
    qwen3_f16: check_float("qwen3", "qwen3-f16.gguf");
    llama_q8_0: check_quantized("llama", "Q8_0");
    llama_q4_0: check_quantized("llama", "Q4_0");
    llama_q4_1: check_quantized("llama", "Q4_1");
    llama_q5_0: check_quantized("llama", "Q5_0");
    llama_q5_1: check_quantized("llama", "Q5_1");
    llama_q4_k_m: check_quantized("llama", "Q4_K_M");
    llama_q5_k_m: check_quantized("llama", "Q5_K_M");
    llama_q6_k: check_quantized("llama", "Q6_K");
    qwen3_q4_k_m: check_quantized("qwen3", "Q4_K_M");
}

/// BF16 weights are multiplied by f32 activations here, so the exact logits are the ones to meet.
#[test]
fn llama_tied_bf16() {
    let golden = Golden::open("llama-tied");
    let logits = golden.quantized_logits("BF16");
    for runner in Runner::reference_and_best() {
        let tolerance = if runner.kv_type == KvType::F16 { F16_KV } else { EXACT };
        golden.compare(&runner, "llama-tied-BF16.gguf", &logits, tolerance);
    }
}

/// Keys and values in bytes lose what their rounding explains, measured by what half precision loses on the same file.
/// Float weights, since quantized activations turn any small difference into a step of their own.
#[test]
fn a_cache_of_bytes_loses_what_its_rounding_explains() {
    let [f32, f16, q8_0] = [KvType::F32, KvType::F16, KvType::Q8_0].map(Runner::best_with);
    for model in ["llama", "mistral", "qwen2", "qwen3"] {
        let (golden, file) = (Golden::open(model), format!("{model}-f16.gguf"));
        let halves = golden.loss(&f16, &f32, &file);
        let tolerance = Tolerance {
            max_abs: BYTES_BESIDE_HALVES * halves.max_abs,
            max_kl: BYTES_BESIDE_HALVES.powi(2) * halves.max_kl,
            top1_share: 1.0,
        };
        golden.compare_runs(&q8_0, &f16, &file, tolerance);
    }
}

/// Greedy decoding with a cache of bytes makes every choice whose margin exceeds what the file's quantization and
/// the cache may lose together.
#[test]
fn a_cache_of_bytes_changes_no_clear_choice() {
    let golden = Golden::open("llama");
    let [f32, f16, q8_0] = [KvType::F32, KvType::F16, KvType::Q8_0].map(Runner::best_with);
    let of_cache = BYTES_BESIDE_HALVES * golden.loss(&f16, &f32, "llama-f16.gguf").max_abs;
    for kind in ["Q8_0", "Q4_K_M"] {
        let limit = 2.0 * golden.llama_cpp_vs_exact(kind).max_abs + of_cache;
        let greedy = golden.quantized_greedy(kind);
        let steps = golden.greedy_continues_alike(&q8_0, &format!("llama-{kind}.gguf"), &greedy, limit);
        assert!(steps > 0, "{kind}: no step has a margin above {limit}");
    }
}

/// Same request, same bits: whatever the instruction set, on every file of this suite.
#[test]
fn every_instruction_set_gives_the_same_bits() {
    let float = ["llama", "llama-tied", "mistral", "qwen2", "qwen3"].map(|model| (model, "f16"));
    let quantized =
        ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"].map(|kind| ("llama", kind));
    let others = [("qwen3", "Q4_K_M"), ("llama-tied", "BF16")];
    for (model, kind) in float.into_iter().chain(quantized).chain(others) {
        let (golden, file) = (Golden::open(model), format!("{model}-{kind}.gguf"));
        // The type of the cache concerns attention alone, so few files are enough for the rarer ones.
        let is_worth_it = |best: &Runner| match best.kv_type {
            KvType::F16 => true,
            KvType::Q8_0 => matches!(file.as_str(), "llama-Q4_0.gguf" | "qwen3-f16.gguf"),
            KvType::F32 => file == "llama-f16.gguf",
        };
        for best in Runner::best().into_iter().filter(is_worth_it) {
            let expected = golden.all_logits(&best, &file, usize::MAX);
            for runner in best.others() {
                let actual = golden.all_logits(&runner, &file, runner.tokens_affordable());
                for (prompt, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                    let same = actual[..] == expected[..actual.len()];
                    assert!(
                        !actual.is_empty() && same,
                        "{file}, prompt {prompt}: {runner} differs from {best}"
                    );
                }
            }
        }
    }
}

/// Same request, same bits: whatever the chunks a prompt is computed in, and whatever else is in the batch.
#[test]
fn chunks_and_batch_neighbours_do_not_change_a_bit() {
    for (model, file) in [
        ("llama", "llama-f16.gguf"),
        ("llama", "llama-Q4_0.gguf"),
        ("llama", "llama-Q8_0.gguf"),
        ("llama", "llama-Q6_K.gguf"),
        ("qwen3", "qwen3-Q4_K_M.gguf"),
        ("qwen2", "qwen2-f16.gguf"),
    ] {
        let golden = Golden::open(model);
        let bytes_too = file == "qwen3-Q4_K_M.gguf";
        let is_worth_it = |runner: &Runner| match runner.kv_type {
            KvType::F16 => true,
            KvType::Q8_0 => bytes_too,
            KvType::F32 => false,
        };
        for runner in Runner::cpu_all().into_iter().filter(is_worth_it) {
            golden.chunked_and_batched_agree(&runner, file);
        }
    }
}
