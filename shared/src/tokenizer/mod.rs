//! Text to token ids and back, by the tokenizer that a GGUF file describes.
//!
//! The gateway uses it for every request, the CLI for `tokenize`. Three kinds of tokenizer are supported:
//! byte-level BPE (`gpt2`), SentencePiece-style (`llama`) and WordPiece (`bert`).
//!
//! What always holds: results equal llama.cpp's on the conformance vectors; encoding any text succeeds, in
//! time that grows with n log n at most, whatever the text; a [`Tokenizer`] is immutable and shared between
//! threads without locks; its memory does not grow with use.
//!
//! Libraries or own code: Unicode tables come from `regex-syntax`, normalization from
//! `unicode-normalization`, the search for special tokens from `aho-corasick`. Merging and splitting are our
//! own, some 300 lines. The alternative, the `tokenizers` crate, wants a `tokenizer.json`, which a GGUF does
//! not contain; rebuilding one would still leave the differences between the two worlds (SentencePiece byte
//! fallback by score, `pre` names, kinds of tokens) to be patched around, brings dozens of crates and by
//! default a regex library in C, and splits with a backtracking engine, which hostile text can exhaust.
//!
//! What it deliberately does not do: Unicode normalization for BPE (llama.cpp does none; the NFC of Qwen 2's
//! published tokenizer matters only for text in decomposed form, and would make decoding lossy), the
//! unigram model of T5, chat templates, incremental decoding (that is the gateway's detokenizer).

mod build;
mod bytes_as_text;
mod clean_up;
mod error;
mod hash;
mod merge;
mod pretokenize;
mod roles;
mod source;
mod special;
#[cfg(test)]
mod tests;
mod vocabulary;
mod wordpiece;
mod words;

use crate::gguf::Gguf;
use build::Build;
use merge::Merger;
use pretokenize::{CleanUp, PreTokenizer};
use special::{Fragment, SpecialSplitter, Wanted};
use vocabulary::{SPACE_SYMBOL, Vocabulary};
use wordpiece::WordPiece;
use words::Words;

pub use error::TokenizerError;
pub use source::{RoleIds, VocabularySource};

/// A model's tokenizer.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    special: SpecialSplitter,
    scheme: Scheme,
    roles: RoleIds,
    end_of_generation: Vec<u32>,
    framing: Framing,
    space_prefix: bool,
    clean_up: CleanUp,
}

/// How ordinary text becomes tokens.
enum Scheme {
    ByteLevel { words: Words, pre_tokenizer: PreTokenizer },
    SentencePiece { words: Words, words_stay_apart: bool },
    WordPiece(WordPiece),
}

/// The tokens put around a text on request.
#[derive(Clone, Copy, Default)]
struct Framing {
    first: Option<u32>,
    last: Option<u32>,
}

/// What [`Tokenizer::encode`] does beyond ordinary text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put BOS and EOS (or CLS and SEP) around the text, as the model's file says.
    pub add_special: bool,
    /// Read control tokens written out in the text as such. User-defined tokens are read either way.
    pub parse_special: bool,
}

impl EncodeOptions {
    /// A whole prompt from a trusted template.
    pub const PROMPT: Self = Self { add_special: true, parse_special: true };
    /// Text as it is.
    pub const TEXT: Self = Self { add_special: false, parse_special: false };
}

/// Whether control and unknown tokens appear in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// With their text.
    Render,
    /// Not at all.
    Skip,
}

impl Tokenizer {
    /// The tokenizer that the metadata of `file` describes. Tensors are not needed.
    pub fn from_gguf(file: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(&VocabularySource::from_metadata(file.metadata())?)
    }

    /// The tokenizer that `source` describes.
    pub fn new(source: &VocabularySource<'_>) -> Result<Self, TokenizerError> {
        let mut vocabulary = Vocabulary::new(source)?;
        let mut build = Build::of(source, &vocabulary)?;
        build.roles.keep_below(vocabulary.len());
        let (roles, end_of_generation) = roles::assign(&mut vocabulary, build.roles);
        vocabulary.render(build.form);
        let framing = Framing {
            first: if build.add_bos { roles.bos } else { None },
            last: if build.add_eos { build.last.or(roles.eos) } else { None },
        };
        Ok(Self {
            special: SpecialSplitter::new(&vocabulary, source)?,
            scheme: build.scheme,
            roles,
            end_of_generation,
            framing,
            space_prefix: source.add_space_prefix.unwrap_or(build.space_prefix),
            clean_up: build.clean_up,
            vocabulary,
        })
    }

    /// The tokens of `text`.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        // English comes to some four bytes a token; a low guess costs one more allocation.
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        let mut merger = Merger::default();
        if options.add_special {
            ids.extend(self.framing.first);
        }
        let wanted = if options.parse_special { Wanted::All } else { Wanted::UserDefined };
        let mut after_special = true;
        self.special.split(text, wanted, |fragment| match fragment {
            Fragment::Token(id) => {
                ids.push(id);
                after_special = true;
            }
            Fragment::Text(text) => {
                self.encode_ordinary(text, after_special, &mut merger, &mut ids);
                after_special = false;
            }
        });
        if options.add_special {
            ids.extend(self.framing.last);
        }
        ids
    }

    /// The tokens of a chat that a template has rendered. Control tokens are read, and BOS is put in front
    /// if the model wants it and the template has not written it: never twice.
    pub fn encode_rendered(&self, rendered: &str) -> Vec<u32> {
        let bos = self.framing.first.and_then(|id| self.token_text(id)).filter(|text| !text.is_empty());
        let has_bos = bos.is_some_and(|text| rendered.starts_with(text));
        self.encode(rendered, EncodeOptions { add_special: !has_bos, parse_special: true })
    }

    fn encode_ordinary(&self, text: &str, after_special: bool, merger: &mut Merger, ids: &mut Vec<u32>) {
        match &self.scheme {
            Scheme::ByteLevel { words, pre_tokenizer } => {
                pre_tokenizer.split(text, &mut |word| words.encode(word, merger, ids));
            }
            Scheme::SentencePiece { words, words_stay_apart } => {
                let mut escaped =
                    String::with_capacity(text.len() + text.len() / 2 + SPACE_SYMBOL.len_utf8());
                if self.space_prefix && after_special {
                    escaped.push(SPACE_SYMBOL);
                }
                escaped.extend(text.chars().map(|c| if c == ' ' { SPACE_SYMBOL } else { c }));
                if *words_stay_apart {
                    split_before_spaces(&escaped, |word| words.encode(word, merger, ids));
                } else {
                    words.encode(&escaped, merger, ids);
                }
            }
            Scheme::WordPiece(word_piece) => word_piece.encode(text, ids),
        }
    }

    /// The bytes that a token adds to the output; `None` if there is no such token. Bytes of one token need
    /// not be whole characters.
    pub fn token_bytes(&self, id: u32, special: SpecialTokens) -> Option<&[u8]> {
        let hidden = special == SpecialTokens::Skip && self.vocabulary.kind(id)?.is_hidden();
        if hidden { Some(&[]) } else { self.vocabulary.bytes(id) }
    }

    /// The bytes of a whole text, starting with its first token: where encoding put a space in front, it is
    /// taken away again. Unknown ids add nothing.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> Vec<u8> {
        let mut text = Vec::with_capacity(ids.len() * 4);
        let mut space_pending = self.space_prefix;
        for &id in ids {
            let bytes = self.token_bytes(id, special).unwrap_or_default();
            // A token that is left out does not count as the first.
            if bytes.is_empty() && special == SpecialTokens::Skip {
                continue;
            }
            let skipped = usize::from(space_pending && bytes.first() == Some(&b' '));
            space_pending = false;
            text.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        }
        text
    }

    /// As [`Self::decode`], then with the clean-up of spaces before punctuation that some models' published
    /// tokenizers do by default. Equals llama.cpp's `llama_detokenize`; not an inverse of encoding.
    pub fn decode_cleaned(&self, ids: &[u32], special: SpecialTokens) -> Vec<u8> {
        let text = self.decode(ids, special);
        match self.clean_up {
            CleanUp::Spaces => clean_up::clean_up(&text),
            CleanUp::Nothing => text,
        }
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that starts a text, whether or not encoding adds it.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token that ends a turn of a chat.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// All roles that tokens have, given in the file or found by their text.
    pub fn roles(&self) -> &RoleIds {
        &self.roles
    }

    /// Ids that end generation, sorted.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether a token is one of control, never part of ordinary text. False for unknown ids.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Some(vocabulary::TokenKind::Control)
    }

    /// A token's text as the file has it: byte-level tokens in their alphabet, spaces as symbols.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.text(id)
    }
}

/// Calls `word` with the stretches of `text` that start where a run of space symbols does.
fn split_before_spaces<'t>(text: &'t str, mut word: impl FnMut(&'t str)) {
    let mut start = 0;
    let mut after_space = true;
    for (at, character) in text.char_indices() {
        let is_space = character == SPACE_SYMBOL;
        if is_space && !after_space {
            word(text.get(start..at).unwrap_or_default());
            start = at;
        }
        after_space = is_space;
    }
    if let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
        word(rest);
    }
}
