//! The tokenizer as a whole over small vocabularies made here: properties, limits and damage.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// The byte alphabet, so that a test can write vocabularies of bytes.
fn alphabet() -> Vec<String> {
    let mut characters: Vec<(u8, char)> = ('\0'..='\u{143}')
        .filter_map(|character| Some((bytes_as_text::byte_of(character)?, character)))
        .collect();
    characters.sort_unstable();
    characters.into_iter().map(|(_, character)| character.to_string()).collect()
}

const MERGES: &[&str] = &["a a", "aa aa", "Ġ t", "h e", "Ġt he", "i n", "e r", "in g", "Ġ Ġ", "ĠĠ ĠĠ"];

/// Byte-level BPE: all bytes, the products of [`MERGES`], then `<|im_end|>` and a user-defined `<tool>`.
fn byte_level(pre: &str) -> Tokenizer {
    let mut texts = alphabet();
    texts.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    texts.extend(["<|im_end|>".to_owned(), "<tool>".to_owned()]);
    let mut token_types = vec![1; texts.len()];
    token_types[texts.len() - 1] = 4;
    let roles = RoleIds { bos: Some(0), eos: Some(0), ..RoleIds::default() };
    let tokens = texts.iter().map(String::as_str).collect();
    let source = VocabularySource {
        model: "gpt2",
        pre: Some(pre),
        tokens,
        token_types,
        merges: MERGES.to_vec(),
        roles,
        ..Default::default()
    };
    Tokenizer::new(&source).unwrap()
}

/// SentencePiece-style: some pieces with scores, and all bytes if `byte_tokens`.
fn scored(pieces: &[(&str, f32)], byte_tokens: bool) -> Tokenizer {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec!["<unk>", "<s>", "</s>"];
    let mut token_types = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    if byte_tokens {
        tokens.extend(bytes.iter().map(String::as_str));
        token_types.resize(tokens.len(), 6);
        scores.resize(tokens.len(), 0.0);
    }
    for &(text, score) in pieces {
        tokens.push(text);
        token_types.push(1);
        scores.push(score);
    }
    Tokenizer::new(&VocabularySource { model: "llama", tokens, token_types, scores, ..Default::default() })
        .unwrap()
}

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, EncodeOptions::TEXT);
    ids.iter().map(|&id| tokenizer.token_text(id).unwrap().to_owned()).collect()
}

#[test]
fn earlier_merges_come_first_and_leftmost_among_equals() {
    let tokenizer = byte_level("gpt-2");
    assert_eq!(texts(&tokenizer, "the there"), ["t", "he", "Ġthe", "r", "e"]);
    assert_eq!(texts(&tokenizer, "aaaaaaa"), ["aaaa", "aa", "a"]);
}

#[test]
fn higher_scores_merge_first() {
    let pieces = [("▁", -3.0), ("a", -4.0), ("b", -5.0), ("ab", -2.0), ("▁a", -1.0), ("ba", -0.5)];
    let tokenizer = scored(&pieces, true);
    assert_eq!(texts(&tokenizer, "ab"), ["▁a", "b"]);
    assert_eq!(texts(&tokenizer, "aba"), ["▁a", "ba"]);
    assert_eq!(texts(&tokenizer, "abab"), ["▁a", "ba", "b"]);
    assert_eq!(texts(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(
        tokenizer.decode(&tokenizer.encode("ab é", EncodeOptions::PROMPT), SpecialTokens::Skip),
        "ab é".as_bytes()
    );
}

#[test]
fn words_that_merge_into_each_other_are_not_split() {
    let pieces = [("▁", -3.0), ("a", -4.0), ("b", -5.0), ("a▁", -1.0), ("a▁b", -0.5)];
    assert_eq!(texts(&scored(&pieces, false), "a b"), ["▁", "a▁b"]);
}

#[test]
fn without_byte_tokens_the_unknown_token_stands_in() {
    assert_eq!(texts(&scored(&[("▁", -1.0), ("a", -1.0)], false), "aéa"), ["▁", "a", "<unk>", "a"]);
}

#[test]
fn control_tokens_are_read_only_on_request_and_user_defined_ones_always() {
    let tokenizer = byte_level("gpt-2");
    let [end, tool] = [tokenizer.vocab_len() as u32 - 2, tokenizer.vocab_len() as u32 - 1];
    let parse = EncodeOptions { add_special: false, parse_special: true };
    assert_eq!(tokenizer.encode("<|im_end|><tool>", parse), [end, tool]);
    let plain = tokenizer.encode("<|im_end|><tool>", EncodeOptions::TEXT);
    assert!(plain.len() > 2 && !plain.contains(&end) && plain.ends_with(&[tool]), "{plain:?}");
    assert!(tokenizer.is_control(end) && tokenizer.end_of_generation().contains(&end));
    assert_eq!(tokenizer.decode(&[end, tool], SpecialTokens::Skip), b"<tool>");
    assert_eq!(tokenizer.decode(&[end, tool], SpecialTokens::Render), b"<|im_end|><tool>");
}

#[test]
fn a_template_that_writes_bos_does_not_get_two() {
    let tokenizer = scored(&[("▁", -1.0), ("a", -1.0), ("▁a", -0.5)], true);
    let id = |text: &str| tokenizer.encode(text, EncodeOptions::TEXT)[0];
    assert_eq!(tokenizer.encode_rendered("<s>a"), [1, id("a")]);
    assert_eq!(tokenizer.encode_rendered("a"), [1, id("a")]);
}

#[test]
fn damaged_vocabularies_are_refused_or_survived() {
    let refused = |source: VocabularySource<'_>| Tokenizer::new(&source).err().unwrap().to_string();
    assert_eq!(
        refused(VocabularySource { model: "llama", ..Default::default() }),
        "tokenizer.ggml.tokens has 0 elements, expected 1 to 16777216"
    );
    let tokens = vec!["a", "b", ""];
    assert_eq!(
        refused(VocabularySource {
            model: "llama",
            tokens: tokens.clone(),
            scores: vec![0.0],
            ..Default::default()
        }),
        "tokenizer.ggml.scores has 1 elements for 3 tokens"
    );
    assert_eq!(
        refused(VocabularySource { model: "gpt2", tokens: tokens.clone(), ..Default::default() }),
        "tokenizer.ggml.merges is missing or empty"
    );
    assert_eq!(
        refused(VocabularySource { model: "t5", tokens: tokens.clone(), ..Default::default() }),
        "tokenizer.ggml.model is \"t5\", supported are llama, gpt2 and bert"
    );
    let roles = RoleIds { bos: Some(7), eos: Some(u32::MAX), ..RoleIds::default() };
    let merges = vec!["a b", "", " ", "ab", "x y", "€ a", "a b"];
    let odd = VocabularySource {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens,
        merges,
        roles,
        add_bos: Some(true),
        ..Default::default()
    };
    let tokenizer = Tokenizer::new(&odd).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, None));
    // The product of the only sound merge is no token, so its bytes are spelled out; `c` is nothing at all.
    assert_eq!(tokenizer.encode("abc", EncodeOptions::PROMPT), [0, 1]);
}

/// Merges of one long word grow in step with its length: no quadratic rescans.
#[test]
fn work_grows_with_length_not_with_its_square() {
    let mut words = byte_level("gpt-2");
    let Scheme::ByteLevel { words, .. } = &mut words.scheme else { unreachable!("made as byte-level") };
    let steps = |repeats: usize| {
        let mut merger = Merger::default();
        words.encode(&"a".repeat(repeats), &mut merger, &mut Vec::new());
        merger.steps
    };
    let (short, long) = (steps(10_000), steps(80_000));
    assert!(short > 9_000 && long < short * 9, "{short} steps, then {long}");
}

#[test]
fn a_megabyte_without_a_space_is_encoded_in_time() {
    let started = std::time::Instant::now();
    for unit in ["a", "the", "中", " "] {
        let text = unit.repeat((1 << 20) / unit.len() + 9);
        let tokenizer = byte_level("llama-bpe");
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(&text, EncodeOptions::TEXT), SpecialTokens::Render),
            text.as_bytes()
        );
        let tokenizer = scored(&[("▁", -3.0), ("a", -4.0), ("aa", -1.0), ("aaaa", -0.5), ("▁▁", -2.0)], true);
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(&text, EncodeOptions::TEXT), SpecialTokens::Render),
            text.as_bytes()
        );
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn threads_share_a_tokenizer() {
    let tokenizer = byte_level("llama-bpe");
    let text = "the inner thing ".repeat(50);
    let expected = tokenizer.encode(&text, EncodeOptions::TEXT);
    let fresh = byte_level("llama-bpe");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fresh.encode(&text, EncodeOptions::TEXT), expected));
        }
    });
}

proptest! {
    #[test]
    fn byte_level_decoding_undoes_encoding(text in "(\\PC|the|ing|aaaa|  |\n|<tool>){0,40}") {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> =
            LazyLock::new(|| ["gpt-2", "llama-bpe", "deepseek-llm", "gpt-4o"].map(byte_level).into());
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text, EncodeOptions::TEXT);
            prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Render), text.as_bytes());
        }
    }

    #[test]
    fn scored_decoding_undoes_encoding(text in "(\\PC|ab|  |\n){0,40}") {
        let tokenizer = scored(&[("▁", -3.0), ("a", -4.0), ("b", -5.0), ("ab", -2.0), ("▁a", -1.0), ("▁▁", -2.5)], true);
        let ids = tokenizer.encode(&text, EncodeOptions::TEXT);
        // The space symbol itself reads back as a space, by design of the format.
        prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip), text.replace(SPACE_SYMBOL, " ").into_bytes());
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(any::<u32>(), 0..20)) {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| byte_level("gpt-2"));
        TOKENIZER.decode_cleaned(&ids, SpecialTokens::Render);
    }
}

#[test]
fn a_token_longer_than_any_vocabularys_is_refused() {
    let build = |bytes: usize| {
        let long = "a".repeat(bytes);
        let tokens = vec!["<unk>", "<s>", "</s>", &long];
        Tokenizer::new(&VocabularySource { model: "llama", tokens, ..Default::default() }).err()
    };
    assert!(build(2048).is_none());
    let error = build(2049).unwrap();
    assert_eq!(error.to_string(), "token 3 of tokenizer.ggml.tokens is 2049 bytes long, limit 2048");
}
