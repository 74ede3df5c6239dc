//! Finds special tokens written out in text.
//!
//! At each position the longest of them wins, leftmost first, as in Hugging Face's `tokenizers`. (llama.cpp
//! searches token by token, the longest first; that differs only where two special tokens overlap.)

use aho_corasick::{AhoCorasick, Input, MatchKind};

use super::TokenizerError;
use super::source::VocabularySource;
use super::vocabulary::{TokenKind, Vocabulary};

/// A stretch of input text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// The searchers for both ways of reading text.
pub(super) struct SpecialSplitter {
    all: Searcher,
    user_defined: Searcher,
}

/// Which special tokens are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// Tokens of the user-defined kind are ordinary text that must not be taken apart.
    UserDefined,
}

struct Searcher {
    automaton: Option<AhoCorasick>,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Copy)]
struct Pattern {
    id: u32,
    strip: Strip,
}

/// White space around a special token that belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strip {
    Nothing,
    Left,
    Right,
}

impl SpecialSplitter {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        source: &VocabularySource<'_>,
    ) -> Result<Self, TokenizerError> {
        let quirk = Quirk::of(source);
        let of_kinds = |kinds: &[TokenKind]| {
            let tokens = vocabulary.texts().filter(|&(id, text)| {
                !text.is_empty() && vocabulary.kind(id).is_some_and(|kind| kinds.contains(&kind))
            });
            Searcher::new(tokens.map(|(id, text)| (text, Pattern { id, strip: quirk.strip(text) })))
        };
        Ok(Self {
            all: of_kinds(&[TokenKind::Control, TokenKind::Unknown, TokenKind::UserDefined])?,
            user_defined: of_kinds(&[TokenKind::UserDefined])?,
        })
    }

    /// Calls `fragment` with the special tokens and what lies between them, in order.
    pub(super) fn split<'t>(&self, text: &'t str, wanted: Wanted, mut fragment: impl FnMut(Fragment<'t>)) {
        let searcher = match wanted {
            Wanted::All => &self.all,
            Wanted::UserDefined => &self.user_defined,
        };
        let mut at = 0;
        while let Some((start, end, pattern)) = searcher.find(text, at) {
            let mut before = text.get(at..start).unwrap_or_default();
            if pattern.strip == Strip::Left {
                before = before.trim_end_matches(is_space);
            }
            if !before.is_empty() {
                fragment(Fragment::Text(before));
            }
            fragment(Fragment::Token(pattern.id));
            at = end;
            if pattern.strip == Strip::Right {
                let after = text.get(at..).unwrap_or_default();
                at += after.len() - after.trim_start_matches(is_space).len();
            }
        }
        if let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            fragment(Fragment::Text(rest));
        }
    }
}

impl Searcher {
    fn new<'v>(tokens: impl Iterator<Item = (&'v str, Pattern)>) -> Result<Self, TokenizerError> {
        let (texts, patterns): (Vec<&str>, Vec<Pattern>) = tokens.unzip();
        let build = || AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
        let automaton = if texts.is_empty() {
            None
        } else {
            Some(build().map_err(|error| TokenizerError::SpecialTokens(error.to_string()))?)
        };
        Ok(Self { automaton, patterns })
    }

    /// The first special token at or after byte `from`: its start, its end, and which it is.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize, Pattern)> {
        let found = self.automaton.as_ref()?.find(Input::new(text).range(from..))?;
        Some((found.start(), found.end(), *self.patterns.get(found.pattern().as_usize())?))
    }
}

/// White space as C's `isspace` sees it.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}

/// GGUF has no key for stripping, so families are known by name. Source: the same list in llama.cpp's
/// `llama_vocab::impl::load`, and the `rstrip` and `lstrip` flags of the published `tokenizer.json` files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quirk {
    None,
    Phi3,
    Mask(&'static str),
}

impl Quirk {
    fn of(source: &VocabularySource<'_>) -> Self {
        let name = source.name.to_ascii_lowercase();
        let pre = source.pre.unwrap_or_default();
        if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].contains(&pre)
            || ["nomic-bert-moe", "jina-bert-v3"].contains(&source.architecture)
        {
            Self::Mask("<mask>")
        } else if name.contains("phi-3") || name.contains("phi3") {
            Self::Phi3
        } else if name.contains("modern-bert") {
            Self::Mask("[MASK]")
        } else {
            Self::None
        }
    }

    fn strip(self, text: &str) -> Strip {
        match self {
            Self::Phi3 if !["<unk>", "<s>", "<|endoftext|>"].contains(&text) => Strip::Right,
            Self::Mask(mask) if mask == text => Strip::Left,
            _ => Strip::Nothing,
        }
    }
}
