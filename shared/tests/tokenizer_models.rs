//! The golden models' own tokenizers: the texts of `golden.json` come to the prompt tokens that llama.cpp
//! had, and generated tokens to its bytes. Runs over every model in `tests/golden/models`, and over those
//! in the folder `ROCMFORGE_GOLDEN_MODELS` if that is set.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use serde_json::Value;

use shared::gguf::Gguf;
use shared::tokenizer::{EncodeOptions, SpecialTokens, Tokenizer};

fn folders() -> Vec<PathBuf> {
    let committed: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../tests/golden/models"].iter().collect();
    let roots = [Some(committed), std::env::var_os("ROCMFORGE_GOLDEN_MODELS").map(PathBuf::from)];
    let entries = roots.into_iter().flatten().flat_map(|root| std::fs::read_dir(root).unwrap());
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// The first file of `folder` whose name ends in `ending`, unpacked if it is a `.gz`.
fn read(folder: &Path, ending: &str) -> Option<Vec<u8>> {
    let packed_ending = format!("{ending}.gz");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf, ending: &str| path.to_string_lossy().ends_with(ending);
    let path = files.filter(|path| named(path, ending) || named(path, &packed_ending)).min()?;
    let bytes = std::fs::read(&path).unwrap();
    if !named(&path, ".gz") {
        return Some(bytes);
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes.as_slice()).read_to_end(&mut unpacked).unwrap();
    Some(unpacked)
}

fn list<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value[key].as_array().into_iter().flatten()
}

fn ids(value: &Value, key: &str) -> Vec<u32> {
    list(value, key).map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check(folder: &Path) -> Option<usize> {
    let golden: Value = serde_json::from_slice(&read(folder, "golden.json")?).unwrap();
    // Any of the model's files will do: all have the same vocabulary.
    let file = Gguf::from_bytes(folder, read(folder, ".gguf")?).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy();
    let mut checked = 0;
    let mut compare = |text: &str, found: Vec<u32>, expected: Vec<u32>| {
        assert_eq!(found, expected, "{name}: {text:?}");
        checked += 1;
    };
    let end_to_end = &golden["end_to_end"];
    for case in list(end_to_end, "completions") {
        let prompt = case["prompt"].as_str().unwrap();
        compare(prompt, tokenizer.encode(prompt, EncodeOptions::PROMPT), ids(case, "prompt_tokens"));
    }
    for case in list(end_to_end, "chat") {
        let rendered = case["rendered"].as_str().unwrap();
        compare(rendered, tokenizer.encode_rendered(rendered), ids(case, "prompt_tokens"));
    }
    for case in list(end_to_end, "completions").chain(list(end_to_end, "chat")) {
        let found = tokenizer.decode_cleaned(&ids(case, "greedy_tokens"), SpecialTokens::Skip);
        let expected = BASE64_STANDARD.decode(case["greedy_bytes_b64"].as_str().unwrap()).unwrap();
        assert_eq!(found, expected, "{name}: {case}");
    }
    for case in list(&golden, "texts") {
        let text = case["text"].as_str().unwrap();
        compare(text, tokenizer.encode(text, EncodeOptions::PROMPT), ids(case, "tokens"));
    }
    Some(checked)
}

#[test]
fn golden_models_read_their_prompts_as_llama_cpp_does() {
    let checked: usize = folders().iter().filter_map(|folder| check(folder)).sum();
    assert!(checked > 0, "no golden models found");
    println!("{checked} texts");
}
