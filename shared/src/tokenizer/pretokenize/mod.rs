//! Splits text into the words that BPE merges stay inside of, as the model's `tokenizer.ggml.pre` says.
//!
//! Called by the tokenizer for every piece of ordinary text. What always holds: the words are in order and
//! together are the text, whatever it contains, and the time is linear in its length.
//!
//! Published pre-tokenizers are regexes. Running them on a backtracking engine (`fancy-regex`: they need
//! look-ahead) was the obvious start, but it is slow and it fails with an error where a long run exhausts
//! its backtracking limit. They only ever use a handful of shapes, though, so [`rule`] matches those
//! shapes by hand and [`named`] writes every pre-tokenizer as a list of them.

mod char_set;
mod named;
mod rule;
#[cfg(test)]
mod tests;

use rule::Rule;

pub(super) use char_set::CharSet;
pub(super) use named::{CleanUp, Splitting};

/// The pre-tokenizer called `name`. A missing or unknown name gives the default one and a warning, since
/// a model that is tokenized a little wrong still answers.
pub(super) fn by_name(name: Option<&str>) -> Splitting {
    let found = name.and_then(named::named);
    if found.is_none() {
        tracing::warn!(name, "unknown pre-tokenizer, using the default one; answers may be degraded");
    }
    found.unwrap_or_else(named::fallback)
}

/// How text is split, as one step after the other, each splitting the pieces that the last one left.
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
}

/// One step of splitting. What it does not match stays together as a piece between the matches.
enum Stage {
    /// At each position the first rule that matches takes its match as a piece.
    Rules(Vec<Rule>),
    /// White space at the end of a piece is cut off from it (`\s+$`).
    TrailingSpace,
}

impl PreTokenizer {
    /// Calls `word` with each word of `text`, in order.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        split_stages(&self.stages, text, word);
    }
}

fn split_stages<'t>(stages: &[Stage], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    match stages.split_first() {
        None => word(text),
        Some((stage, later)) => stage.split(text, &mut |piece| split_stages(later, piece, word)),
    }
}

impl Stage {
    fn split<'t>(&self, text: &'t str, piece: &mut dyn FnMut(&'t str)) {
        match self {
            Stage::Rules(rules) => {
                split_matches(text, piece, |at| rules.iter().find_map(|rule| rule.matched(text, at)))
            }
            Stage::TrailingSpace => {
                let (kept, space) = text.split_at(text.trim_end().len());
                [kept, space].into_iter().filter(|part| !part.is_empty()).for_each(piece);
            }
        }
    }
}

/// Walks over `text`; `matched` says where a match that starts at a byte ends. Matches and the gaps
/// between them become pieces.
fn split_matches<'t>(
    text: &'t str,
    piece: &mut dyn FnMut(&'t str),
    matched: impl Fn(usize) -> Option<usize>,
) {
    let (mut at, mut gap_start) = (0, 0);
    while let Some(character) = rule::character(text, at) {
        match matched(at) {
            Some(end) => {
                [text.get(gap_start..at), text.get(at..end)]
                    .into_iter()
                    .flatten()
                    .filter(|part| !part.is_empty())
                    .for_each(&mut *piece);
                at = end;
                gap_start = end;
            }
            None => at += character.len_utf8(),
        }
    }
    if let Some(gap) = text.get(gap_start..).filter(|gap| !gap.is_empty()) {
        piece(gap);
    }
}
