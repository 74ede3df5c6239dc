//! WordPiece, the tokenizer of BERT-like embedding models.
//!
//! Text is normalized and split at white space, punctuation and ideographs; each word is then cut greedily
//! into the longest tokens. A word that cannot be cut up is one unknown token. In GGUF files word starts
//! carry the space symbol, where the original vocabulary marks continuations with `##`.

use std::sync::OnceLock;

use unicode_normalization::UnicodeNormalization;

use super::hash::FastMap;
use super::pretokenize::CharSet;
use super::vocabulary::{SPACE_SYMBOL, Vocabulary};

pub(super) struct WordPiece {
    ids: FastMap<Box<[u8]>, u32>,
    longest_bytes: usize,
    unknown: Option<u32>,
    lowercase: bool,
    strip_accents: bool,
}

impl WordPiece {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        lowercase: bool,
        strip_accents: bool,
    ) -> Self {
        let ids: FastMap<Box<[u8]>, u32> =
            vocabulary.texts().map(|(id, text)| (text.as_bytes().into(), id)).collect();
        let longest_bytes = ids.keys().map(|text| text.len()).max().unwrap_or(0);
        Self { ids, longest_bytes, unknown, lowercase, strip_accents }
    }

    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut word = Word::default();
        for character in text.chars() {
            let character = if self.strip_accents { base(character) } else { character };
            self.read(character, &mut word, ids);
        }
        self.finish(&mut word, ids);
    }

    /// Adds one character to the current word, or ends the word.
    fn read(&self, character: char, word: &mut Word, ids: &mut Vec<u32>) {
        let classes = Classes::get();
        if character.is_whitespace() {
            return self.finish(word, ids);
        }
        let dropped = matches!(character, '\0' | char::REPLACEMENT_CHARACTER)
            || classes.control.contains(character)
            || (self.strip_accents && classes.mark.contains(character));
        if dropped {
            return;
        }
        let alone = classes.alone.contains(character);
        if alone {
            self.finish(word, ids);
        }
        if self.lowercase {
            word.text.extend(character.to_lowercase())
        } else {
            word.text.push(character)
        }
        if alone {
            self.finish(word, ids);
        }
    }

    /// Cuts the current word into tokens and starts a new one. Looks at most `longest_bytes` ahead from each
    /// position, so the cost is linear in the length of the word.
    fn finish(&self, word: &mut Word, ids: &mut Vec<u32>) {
        if !word.is_empty() {
            let before = ids.len();
            let bytes = word.text.as_bytes();
            let mut at = 0;
            while at < bytes.len() {
                let furthest = bytes.len().min(at + self.longest_bytes);
                let longest = (at + 1..=furthest)
                    .rev()
                    .find_map(|end| Some((end, *self.ids.get(bytes.get(at..end)?)?)));
                let Some((end, id)) = longest else {
                    ids.truncate(before);
                    ids.extend(self.unknown);
                    break;
                };
                ids.push(id);
                at = end;
            }
        }
        word.clear();
    }
}

/// The character without its accents: the first of its canonical decomposition, since the rest are marks.
///
/// For Hangul the rest are letters, which the original tokenizer keeps. llama.cpp drops them, and with it
/// the conformance vectors.
fn base(character: char) -> char {
    if character.is_ascii() {
        character
    } else {
        std::iter::once(character).nfd().next().unwrap_or(character)
    }
}

/// The word being read, with the space symbol in front.
struct Word {
    text: String,
}

impl Default for Word {
    fn default() -> Self {
        Self { text: SPACE_SYMBOL.into() }
    }
}

impl Word {
    fn is_empty(&self) -> bool {
        self.text.len() == SPACE_SYMBOL.len_utf8()
    }

    fn clear(&mut self) {
        self.text.truncate(SPACE_SYMBOL.len_utf8());
    }
}

struct Classes {
    control: CharSet,
    mark: CharSet,
    /// Characters that are words of their own.
    alone: CharSet,
}

impl Classes {
    fn get() -> &'static Self {
        static CLASSES: OnceLock<Classes> = OnceLock::new();
        CLASSES.get_or_init(|| Self {
            control: CharSet::new(r"[\p{Cc}\p{Cf}\p{Co}]"),
            mark: CharSet::new(r"\p{M}"),
            // Punctuation, ASCII symbols, and the ideographs that the original lists, its gap
            // U+2B820 to U+2B91F included.
            alone: CharSet::new(concat!(
                r"[\p{P}$+<=>^`|~",
                r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}",
                r"\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
            )),
        })
    }
}
