//! Pre-tokenizers against what their published patterns say, and against hostile text.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::named::named;
use super::*;

/// One name of every different pre-tokenizer.
const NAMES: &[&str] = &[
    "default",
    "llama-bpe",
    "gpt-2",
    "starcoder",
    "qwen2",
    "qwen35",
    "ufakzeka",
    "seed-coder",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "bloom",
    "viking",
    "tekken",
    "gpt-4o",
];

fn words(splitting: &Splitting, text: &str) -> Vec<String> {
    let mut words = Vec::new();
    splitting.pre_tokenizer.split(text, &mut |word| words.push(word.to_owned()));
    words
}

fn check(name: &str, text: &str, expected: &[&str]) {
    assert_eq!(words(&named(name).unwrap(), text), expected, "{name}");
}

#[test]
fn words_take_the_space_before_them() {
    check("gpt-2", "Hello  world's 42nd!\n", &["Hello", " ", " world", "'s", " 42", "nd", "!", "\n"]);
    check("gpt-2", "it'S \t", &["it", "'", "S", " \t"]);
    check("llama-bpe", "it'S 12345\r\n\n x", &["it", "'S", " ", "123", "45", "\r\n\n", " x"]);
    check("llama-bpe", "a.b (c) ...\n\n", &["a", ".b", " (", "c", ")", " ...\n\n"]);
    check("qwen2", "x=12", &["x", "=", "1", "2"]);
    check("ufakzeka", "it's", &["it", "'s"]);
    check("seed-coder", "a.\n", &["a", ".", "\n"]);
}

#[test]
fn cased_words_break_at_capitals() {
    check("gpt-4o", "camelCase HTTPServer's 1234", &["camel", "Case", " HTTPServer's", " ", "123", "4"]);
    check("tekken", "HTTPServer's 12", &["HTTPServer", "'s", " ", "1", "2"]);
    check("gpt-4o", "ABC", &["ABC"]);
    // A modifier letter belongs to both cases: the greedy capitals give it back.
    check("gpt-4o", "Aʰ", &["Aʰ"]);
    check("gpt-4o", "AʰB", &["Aʰ", "B"]);
}

#[test]
fn stages_refine_each_other() {
    check("falcon", " 1234 12", &[" ", "123", "4", " 12"]);
    check("default", "a,b 1234", &["a", ",", "b", " ", "123", "4"]);
    check("starcoder", "v42", &["v", "4", "2"]);
    check("deepseek-llm", "Hi, 中文1234  \n", &["Hi", ",", " ", "中文", "1234", "  ", "\n"]);
    check("deepseek-v3", "#include中文1234", &["#include", "中文", "123", "4"]);
    check("bloom", "well, (so)", &["well", ", (", "so", ")"]);
}

#[test]
fn an_unknown_name_gets_the_default() {
    assert!(named("no such pre-tokenizer").is_none());
    let text = "a,b 1234";
    assert_eq!(words(&by_name(Some("no such pre-tokenizer")), text), words(&by_name(None), text));
}

/// Text in which the cases that patterns tell apart are frequent.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ \t\r\n]{1,4}",
        "[a-zA-Z]{1,6}",
        "[0-9]{1,5}",
        "'(s|LL|re|d|x)",
        "[!-/:-@\\[-`{-~]{1,3}",
        "\\p{L}\\p{M}?",
        "[\\p{N}\\p{S}\\p{Z}]",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn words_together_are_the_text(text in text()) {
        static SPLITTINGS: LazyLock<Vec<Splitting>> =
            LazyLock::new(|| NAMES.iter().map(|name| named(name).unwrap()).collect());
        for (name, splitting) in NAMES.iter().zip(SPLITTINGS.iter()) {
            let words = words(splitting, &text);
            prop_assert!(words.iter().all(|word| !word.is_empty()), "{}", name);
            prop_assert_eq!(words.concat(), text.as_str(), "{}", name);
        }
    }
}

/// Twice the text may cost about twice the time. Backtracking or rescanning would make it four times and
/// more: at this length, minutes.
#[test]
fn hostile_runs_are_split_in_linear_time() {
    let started = std::time::Instant::now();
    for name in NAMES {
        let splitting = named(name).unwrap();
        for unit in
            ["a", "A", " ", "\n", " \n", "1", "'", "中", "ʰA", "\u{301}", "' ", "a ", "\t", "!", "\u{3000}"]
        {
            let text = unit.repeat(200_000);
            let mut bytes = 0;
            splitting.pre_tokenizer.split(&text, &mut |word| bytes += word.len());
            assert_eq!(bytes, text.len(), "{name} {unit:?}");
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}
