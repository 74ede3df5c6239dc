//! Pre-tokenizers against what their published patterns say, and against hostile text.

use proptest::prelude::*;

use super::*;

fn words(name: &str, text: &str) -> Vec<String> {
    let mut words = Vec::new();
    by_name(Some(name)).pre_tokenizer.split(text, &mut |word| words.push(word.to_owned()));
    words
}

fn check(name: &str, text: &str, expected: &[&str]) {
    assert_eq!(words(name, text), expected, "{name}");
}
