//! The tokens themselves: text as the file has it, bytes as they appear in output, and kind.

use super::source::VocabularySource;
use super::{TokenizerError, bytes_as_text};

/// The space symbol of SentencePiece, U+2581.
pub(super) const SPACE_SYMBOL: char = '▁';

/// Ids stay far below the numbers that merging uses for symbols outside the vocabulary.
const MAX_TOKENS: usize = 1 << 24;

/// Longest token: eight times the longest in published vocabularies (runs of 128 spaces, 256 bytes). Building the
/// merges of a SentencePiece-style vocabulary takes time quadratic in it.
const MAX_TOKEN_BYTES: usize = 2048;

/// What a token is for. Source: `tokenizer.ggml.token_type` of the GGUF specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    /// Unused and undefined tokens: never in output.
    Unused,
    Byte,
}

impl TokenKind {
    fn from_gguf(token_type: i32) -> Self {
        match token_type {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// Whether output leaves the token out unless special tokens are asked for.
    pub(super) fn is_hidden(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// How token text stands for bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TextForm {
    /// One character of the byte alphabet per byte.
    ByteAlphabet,
    /// Plain text with [`SPACE_SYMBOL`] for a space.
    SpaceSymbols,
}

/// All tokens of a model, by id.
pub(super) struct Vocabulary {
    texts: Slices,
    bytes: Slices,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// Reads texts and kinds; [`Self::render`] has to follow once the kinds are final.
    pub(super) fn new(source: &VocabularySource<'_>) -> Result<Self, TokenizerError> {
        let tokens = source.tokens.len();
        if tokens == 0 || tokens > MAX_TOKENS {
            return Err(TokenizerError::TokenCount { found: tokens, limit: MAX_TOKENS });
        }
        for (key, found) in [
            ("tokenizer.ggml.scores", source.scores.len()),
            ("tokenizer.ggml.token_type", source.token_types.len()),
        ] {
            if found != 0 && found < tokens {
                return Err(TokenizerError::TooShort { key, found, tokens });
            }
        }
        let too_long = source.tokens.iter().position(|text| text.len() > MAX_TOKEN_BYTES);
        if let Some((id, text)) = too_long.and_then(|id| Some((id, source.tokens.get(id)?))) {
            return Err(TokenizerError::TokenTooLong { id, bytes: text.len(), limit: MAX_TOKEN_BYTES });
        }
        let mut texts = Slices::default();
        source.tokens.iter().for_each(|text| texts.push(text.as_bytes()));
        let mut kinds: Vec<_> =
            source.token_types.iter().take(tokens).map(|&kind| TokenKind::from_gguf(kind)).collect();
        kinds.resize(tokens, TokenKind::Normal);
        Ok(Self { texts, bytes: Slices::default(), kinds })
    }

    /// Works out every token's bytes.
    pub(super) fn render(&mut self, form: TextForm) {
        let mut rendered = Slices::default();
        let mut bytes = Vec::new();
        for (id, &kind) in self.kinds.iter().enumerate() {
            let text = self.text(id as u32).unwrap_or_default();
            bytes.clear();
            match (kind, form) {
                (TokenKind::Unused, _) => {}
                (TokenKind::Byte, _) => bytes.push(byte_of(text)),
                (TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined, _) => {
                    bytes.extend(text.as_bytes())
                }
                (TokenKind::Normal, TextForm::SpaceSymbols) => {
                    bytes.extend(text.replace(SPACE_SYMBOL, " ").as_bytes())
                }
                (TokenKind::Normal, TextForm::ByteAlphabet) => bytes_as_text::append_bytes(text, &mut bytes),
            }
            rendered.push(&bytes);
        }
        self.bytes = rendered;
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id).and_then(|text| std::str::from_utf8(text).ok())
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// Ids and texts of all tokens.
    pub(super) fn texts(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.len() as u32).filter_map(|id| Some((id, self.text(id)?)))
    }
}

/// The byte that `<0x0A>` names. A byte token of any other form counts as zero, as in llama.cpp.
pub(super) fn byte_of(text: &str) -> u8 {
    text.get(3..5).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

/// Many short byte strings in one allocation.
#[derive(Default)]
struct Slices {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Slices {
    fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len());
    }

    fn get(&self, index: u32) -> Option<&[u8]> {
        let index = index as usize;
        let start = match index.checked_sub(1) {
            Some(previous) => *self.ends.get(previous)?,
            None => 0,
        };
        self.data.get(start..*self.ends.get(index)?)
    }
}
