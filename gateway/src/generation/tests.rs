//! A request end to end over a scripted source of tokens.

use super::choice::Choice;
use super::*;
use crate::prompt::detokenizer::IncrementalDetokenizer;
use proptest::prelude::*;
use shared::ipc::message::{FinishReason, TokenLogprobs};
use shared::tokenizer::{RoleIds, SpecialTokens, VocabularySource};

const EOS: u32 = 2;
const FIRST_BYTE: u32 = 3;
/// A few tokens of several characters beside the bytes.
const WORDS: &[&str] = &["ab", "ba", "aéb"];

fn tokenizer() -> Arc<Tokenizer> {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let special = ["<unk>", "<s>", "</s>"];
    let tokens: Vec<&str> =
        special.into_iter().chain(bytes.iter().map(String::as_str)).chain(WORDS.iter().copied()).collect();
    let source = VocabularySource {
        model: "llama",
        scores: vec![0.0; tokens.len()],
        token_types: [2, 3, 3].into_iter().chain([6; 256]).chain([1; WORDS.len()]).collect(),
        roles: RoleIds { bos: Some(1), eos: Some(EOS), unknown: Some(0), ..RoleIds::default() },
        add_space_prefix: Some(false),
        tokens,
        ..VocabularySource::default()
    };
    Arc::new(Tokenizer::new(&source).unwrap())
}

fn request(stop: &[String]) -> GenerationRequest {
    GenerationRequest {
        prompts: vec![vec![1]],
        choices: 1,
        sampling: SamplingParams::greedy(),
        max_tokens: 100,
        context_tokens: 1000,
        min_tokens: 0,
        stop_tokens: vec![EOS],
        stop: stop.to_vec(),
        priority: 0,
        deadline: Duration::from_secs(1),
    }
}

/// Runs tokens through a choice: text, tokens listed with their offsets, and the end.
fn run(tokens: &[u32], stop: &[String], tokenizer: &Arc<Tokenizer>) -> (String, Vec<ScoredToken>, ChoiceEnd) {
    let mut choice = Choice::new(0, &[1], tokenizer, &request(stop));
    let (mut text, mut listed) = (String::new(), Vec::new());
    for &token in tokens {
        let piece = choice.token(token, Some(TokenLogprobs { logprob: -1.0, top: Vec::new() }));
        text.push_str(&piece.text);
        listed.extend(piece.tokens);
        if let Some(end) = piece.end {
            return (text, listed, end);
        }
    }
    let reason = if tokens.last() == Some(&EOS) { FinishReason::Stop } else { FinishReason::Length };
    let piece = choice.finish(reason);
    text.push_str(&piece.text);
    listed.extend(piece.tokens);
    (text, listed, piece.end.unwrap())
}

#[test]
fn characters_that_span_tokens_arrive_whole() {
    let tokenizer = tokenizer();
    let emoji: Vec<u32> = "🌍".bytes().map(|byte| FIRST_BYTE + u32::from(byte)).collect();
    let mut choice = Choice::new(0, &[1], &tokenizer, &request(&[]));
    let texts: Vec<String> = emoji.iter().map(|&token| choice.token(token, None).text).collect();
    assert_eq!(texts, ["", "", "", "🌍"]);
    let (cut, _, end) = run(&emoji[..2], &[], &tokenizer);
    assert_eq!((cut.as_str(), end), ("\u{FFFD}", ChoiceEnd::Length));
}

#[test]
fn stop_tokens_count_and_are_not_text() {
    let tokenizer = tokenizer();
    let (text, listed, end) = run(&[FIRST_BYTE + 97, EOS], &[], &tokenizer);
    assert_eq!((text.as_str(), listed.len(), end), ("a", 1, ChoiceEnd::Stop));
    let mut choice = Choice::new(0, &[1], &tokenizer, &request(&[]));
    assert_eq!(choice.token(EOS, None).token_count, 1);
}

#[test]
fn choices_of_a_prompt_have_seeds_of_their_own() {
    assert_eq!(choice_seed(42, 0), 42);
    let seeds: std::collections::HashSet<u64> =
        (0..128).map(|choice| choice_seed(u64::MAX, choice)).collect();
    assert_eq!(seeds.len(), 128);
}

proptest! {
    /// Text is the detokenized whole cut at the first stop string; listed tokens are a prefix of the tokens, each with
    /// the number of characters before it, and none begins behind the text's end.
    #[test]
    fn pieces_add_up_to_the_cut_text(
        picks in prop::collection::vec(0..8_u32, 0..24),
        stop in prop::collection::vec("[abé]{1,3}", 0..3),
    ) {
        let tokenizer = tokenizer();
        let alphabet = [b'a', b'b', 0xC3, 0xA9, 0xF0].map(|byte| FIRST_BYTE + u32::from(byte));
        let word = |n: u32| FIRST_BYTE + 256 + n;
        let tokens: Vec<u32> =
            picks.iter().map(|&pick| alphabet.get(pick as usize).copied().unwrap_or_else(|| word(pick - 5))).collect();

        let mut whole = String::new();
        let mut starts = Vec::new();
        let mut detokenizer = IncrementalDetokenizer::after(&[1], Arc::clone(&tokenizer), SpecialTokens::Skip);
        for &token in &tokens {
            starts.push(whole.chars().count() as u64);
            whole.push_str(&detokenizer.push(token));
        }
        whole.push_str(&detokenizer.finish());
        let cut = stop.iter().filter_map(|stop| whole.find(stop).map(|at| (at + stop.len(), at))).min();
        let expected = &whole[..cut.map_or(whole.len(), |(_, at)| at)];

        let (text, listed, end) = run(&tokens, &stop, &tokenizer);
        prop_assert_eq!(&text, expected);
        prop_assert_eq!(end, if cut.is_some() { ChoiceEnd::Stop } else { ChoiceEnd::Length });
        prop_assert!(cut.is_some() || listed.len() == tokens.len());
        let chars = text.chars().count() as u64;
        for (index, token) in listed.iter().enumerate() {
            prop_assert_eq!(token.text_offset, starts[index]);
            prop_assert!(token.text_offset <= chars);
        }
    }
}
