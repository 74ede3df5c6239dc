//! Generated tokens to text while they arrive: whole characters only.
//!
//! Called by `generation` with every token of an answer. What always holds: the pushed strings and the
//! finishing one together are the lossy decoding of all the bytes, and no string ends inside a character
//! that a later token may still complete. At most three bytes are held back.
//!
//! An answer continues a prompt, so the space in front of its first word stays. What this deliberately does
//! not do: find stop strings (`prompt::stop`), or clean up spaces, which no stream can.

use std::sync::Arc;

use shared::tokenizer::{SpecialTokens, Tokenizer};

/// One answer being decoded.
pub struct IncrementalDetokenizer {
    tokenizer: Arc<Tokenizer>,
    special: SpecialTokens,
    characters: Characters,
}

impl IncrementalDetokenizer {
    /// Decodes what follows `prompt`. If the prompt's tokens end inside a character, which a prompt of token
    /// ids may, the answer starts with that character.
    pub fn after(prompt: &[u32], tokenizer: Arc<Tokenizer>, special: SpecialTokens) -> Self {
        // Byte tokens carry a byte each, so a character's beginning is in the last three tokens.
        let tail = prompt.get(prompt.len().saturating_sub(3)..).unwrap_or_default();
        let mut characters = Characters::default();
        for &token in tail {
            characters.push(tokenizer.token_bytes(token, special).unwrap_or_default());
        }
        Self { tokenizer, special, characters }
    }

    /// The text that `token` completes. Ids outside the vocabulary add nothing.
    pub fn push(&mut self, token: u32) -> String {
        self.characters.push(self.tokenizer.token_bytes(token, self.special).unwrap_or_default())
    }

    /// What is left when no token follows: a replacement character if the answer ends inside a character.
    pub fn finish(self) -> String {
        self.characters.finish()
    }
}

/// Bytes to characters, holding back the beginning of one that is not complete.
#[derive(Default)]
struct Characters {
    held_back: Vec<u8>,
}

impl Characters {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held_back.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.held_back.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, broken) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            rest = broken;
            // Without a length, the bytes are the beginning of a character.
            let Some(len_bytes) = error.error_len() else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = rest.get(len_bytes..).unwrap_or_default();
        }
        let done = self.held_back.len() - rest.len();
        self.held_back.drain(..done);
        text
    }

    fn finish(self) -> String {
        String::from_utf8_lossy(&self.held_back).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::tokenizer::VocabularySource;

    use super::*;

    /// A vocabulary of all bytes as tokens 3 to 258, then a few words.
    fn tokenizer() -> Arc<Tokenizer> {
        let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
        let mut tokens = vec!["<unk>", "<s>", "</s>"];
        tokens.extend(bytes.iter().map(String::as_str));
        tokens.extend(["▁Hello", "▁world", "中"]);
        let token_types = [2, 3, 3].into_iter().chain([6; 256]).chain([1; 3]).collect();
        let source = VocabularySource { model: "llama", tokens, token_types, ..Default::default() };
        Arc::new(Tokenizer::new(&source).unwrap())
    }

    fn bytes(text: &[u8]) -> Vec<u32> {
        text.iter().map(|&byte| u32::from(byte) + 3).collect()
    }

    fn stream(prompt: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = IncrementalDetokenizer::after(prompt, tokenizer(), SpecialTokens::Skip);
        let mut pieces: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn the_first_word_of_an_answer_keeps_its_space() {
        assert_eq!(stream(&[1], &[259, 260, 2]), [" Hello", " world", "", ""]);
    }

    #[test]
    fn a_character_appears_when_it_is_complete() {
        assert_eq!(stream(&[], &bytes("é😀".as_bytes())), ["", "é", "", "", "", "😀", ""]);
        assert_eq!(stream(&[], &bytes(b"a\xF0\x9F")), ["a", "", "", "\u{FFFD}"]);
        assert_eq!(stream(&[], &bytes(b"\xF0\x9Fb\xFF")), ["", "", "\u{FFFD}b", "\u{FFFD}", ""]);
    }

    #[test]
    fn an_answer_completes_the_character_that_its_prompt_began() {
        let [prompt, answer] = [&bytes("中".as_bytes())[..2], &bytes("中".as_bytes())[2..]];
        assert_eq!(stream(prompt, answer), ["中", ""]);
        assert_eq!(stream(&[259], answer), ["\u{FFFD}", ""]);
    }

    #[test]
    fn unknown_ids_add_nothing() {
        assert_eq!(stream(&[u32::MAX], &[u32::MAX, 261]), ["", "中", ""]);
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_lossy_decoding(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..4),
                prop::collection::vec(prop::sample::select(vec![b'a', 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0]), 0..6),
                "\\PC{0,2}".prop_map(String::into_bytes),
            ], 0..20),
        ) {
            let mut characters = Characters::default();
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&characters.push(piece));
                prop_assert!(characters.held_back.len() <= 3);
            }
            text.push_str(&characters.finish());
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
