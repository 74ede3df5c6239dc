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
    for runner in Runner::best() {
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

/// Same request, same bits: whatever the instruction set, on every file of this suite.
#[test]
fn every_instruction_set_gives_the_same_bits() {
    let float = ["llama", "llama-tied", "mistral", "qwen2", "qwen3"].map(|model| (model, "f16"));
    let quantized =
        ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"].map(|kind| ("llama", kind));
    let others = [("qwen3", "Q4_K_M"), ("llama-tied", "BF16")];
    for (model, kind) in float.into_iter().chain(quantized).chain(others) {
        let (golden, file) = (Golden::open(model), format!("{model}-{kind}.gguf"));
        // The type of the cache concerns attention alone, so one file is enough for the one nobody serves with.
        let is_worth_it = |best: &Runner| best.kv_type == KvType::F16 || file == "llama-f16.gguf";
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
        for runner in Runner::cpu_all().into_iter().filter(|runner| runner.kv_type == KvType::F16) {
            golden.chunked_and_batched_agree(&runner, file);
        }
    }
}
