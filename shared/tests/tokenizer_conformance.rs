//! Every conformance vector of every vocabulary: `tests/golden/tokenizers` of the repository, whose README
//! says where they come from. llama.cpp produced the expected values.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use shared::gguf::Gguf;
use shared::tokenizer::{EncodeOptions, SpecialTokens, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    n_vocab: usize,
    special: Roles,
    eog: Vec<u32>,
    all_pieces_sha256: Hashes,
    vectors: Vec<Vector>,
    upstream_hf_vectors: Vec<Upstream>,
    pieces: Vec<Piece>,
}

#[derive(Deserialize)]
struct Roles {
    bos: i64,
    eos: i64,
    eot: i64,
}

#[derive(Deserialize)]
struct Hashes {
    special_rendered: String,
    special_empty: String,
}

#[derive(Deserialize)]
struct Vector {
    text: Option<String>,
    add_special: bool,
    parse_special: bool,
    ids: Option<Vec<u32>>,
    detok: Option<String>,
    detok_b64: Option<String>,
    peer_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Upstream {
    text: String,
    add_special: bool,
    parse_special: bool,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Piece {
    id: u32,
    b64: String,
    b64_nospecial: Option<String>,
    control: bool,
    eog: bool,
}

fn golden(file: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../tests/golden/tokenizers", file].iter().collect();
    let mut bytes = Vec::new();
    let packed = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

fn load(name: &str) -> Tokenizer {
    let file = Gguf::from_bytes(Path::new(name), golden(&format!("{name}.gguf.gz"))).unwrap();
    Tokenizer::from_gguf(&file).unwrap()
}

fn unpack(base64: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(base64).unwrap()
}

/// Collects what differs, so that one run shows all of it.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: impl Fn() -> String,
        found: &T,
        expected: &T,
    ) {
        if found != expected {
            self.0.push(format!("{}\n     found {found:?}\n  expected {expected:?}", what()));
        }
    }

    fn assert_none(self) {
        let shown = self.0.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.0.is_empty(), "{} differences, among them:\n{shown}", self.0.len());
    }
}

fn check(name: &str) {
    let tokenizer = load(name);
    let golden: Golden = serde_json::from_slice(&golden(&format!("{name}.json.gz"))).unwrap();
    let mut differences = Differences::default();
    assert!(golden.vectors.len() >= 372 && golden.upstream_hf_vectors.len() >= 46);
    check_vectors(&tokenizer, &golden, &mut differences);
    check_pieces(&tokenizer, &golden, &mut differences);
    differences.assert_none();
}

fn check_vectors(tokenizer: &Tokenizer, golden: &Golden, differences: &mut Differences) {
    let mut detokenized = 0;
    for vector in &golden.vectors {
        // Text that is not UTF-8 cannot reach a JSON API; its vectors still say how their ids read.
        let options = EncodeOptions { add_special: vector.add_special, parse_special: vector.parse_special };
        let ids = vector.ids.clone().unwrap_or_default();
        if let Some(text) = &vector.text {
            let found = tokenizer.encode(text, options);
            if vector.peer_ids.as_ref() != Some(&found) {
                differences.compare(|| format!("{text:?} {options:?}"), &found, &ids);
            }
        }
        let detok = vector.detok_b64.as_deref().map(unpack).or(vector.detok.clone().map(String::into_bytes));
        if let Some(detok) = detok {
            let found = tokenizer.decode_cleaned(&ids, SpecialTokens::Render);
            differences.compare(|| format!("detokenize {ids:?}"), &found, &detok);
            detokenized += 1;
        }
    }
    assert!(detokenized >= 180, "{detokenized} texts");
    for vector in &golden.upstream_hf_vectors {
        let options = EncodeOptions { add_special: vector.add_special, parse_special: vector.parse_special };
        let found = tokenizer.encode(&vector.text, options);
        differences.compare(|| format!("upstream {:?}", vector.text), &found, &vector.ids);
    }
}

fn check_pieces(tokenizer: &Tokenizer, golden: &Golden, differences: &mut Differences) {
    for piece in &golden.pieces {
        let id = piece.id;
        let rendered = tokenizer.token_bytes(id, SpecialTokens::Render).map(<[u8]>::to_vec);
        differences.compare(|| format!("piece {id}"), &rendered, &Some(unpack(&piece.b64)));
        let skipped = tokenizer.token_bytes(id, SpecialTokens::Skip).map(<[u8]>::to_vec);
        let expected = piece.b64_nospecial.as_ref().unwrap_or(&piece.b64);
        differences.compare(|| format!("piece {id} without special"), &skipped, &Some(unpack(expected)));
        differences.compare(|| format!("control {id}"), &tokenizer.is_control(id), &piece.control);
        let ends = tokenizer.end_of_generation().contains(&id);
        differences.compare(|| format!("end of generation {id}"), &ends, &piece.eog);
    }
    for (special, expected) in [
        (SpecialTokens::Render, &golden.all_pieces_sha256.special_rendered),
        (SpecialTokens::Skip, &golden.all_pieces_sha256.special_empty),
    ] {
        let mut hash = Sha256::new();
        for id in 0..tokenizer.vocab_len() as u32 {
            let bytes = tokenizer.token_bytes(id, special).unwrap();
            hash.update((bytes.len() as u32).to_le_bytes());
            hash.update(bytes);
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        differences.compare(|| format!("hash of all pieces, {special:?}"), &found, expected);
    }
    differences.compare(|| "end of generation".into(), &tokenizer.end_of_generation().to_vec(), &golden.eog);
    differences.compare(|| "vocabulary size".into(), &tokenizer.vocab_len(), &golden.n_vocab);
    for (role, found, expected) in [
        ("bos", tokenizer.bos(), golden.special.bos),
        ("eos", tokenizer.eos(), golden.special.eos),
        ("eot", tokenizer.eot(), golden.special.eot),
    ] {
        differences.compare(|| role.into(), &found, &u32::try_from(expected).ok());
    }
    assert_eq!(tokenizer.token_bytes(golden.n_vocab as u32, SpecialTokens::Render), None);
    assert_eq!(tokenizer.token_text(golden.n_vocab as u32), None);
}

#[test]
fn gpt_2_agrees_with_llama_cpp() {
    check("gpt-2");
}

#[test]
fn llama_3_agrees_with_llama_cpp() {
    check("llama-bpe");
}

#[test]
fn qwen_2_agrees_with_llama_cpp() {
    check("qwen2");
}

#[test]
fn deepseek_llm_agrees_with_llama_cpp() {
    check("deepseek-llm");
}

#[test]
fn llama_2_agrees_with_llama_cpp() {
    check("llama-spm");
}

#[test]
fn phi_3_agrees_with_llama_cpp() {
    check("phi-3");
}

#[test]
fn bert_agrees_with_llama_cpp() {
    check("bert-bge");
}
