//! The shapes that pre-tokenizer alternatives take, each matched by a scan that never backtracks further
//! than the run it has just read. The cost of splitting a text is therefore linear in its length, where a
//! backtracking regex may go quadratic or stop with an error on hostile text.

use super::char_set::CharSet;

/// One alternative of a pre-tokenizer pattern. `matched` says where a match that starts at `at` ends.
pub(super) enum Rule {
    /// `'s|'t|'re|'ve|'m|'ll|'d`, and their capitals if asked for.
    Contraction(Case),
    /// `prefix? run{1,limit} tail*`
    Run { prefix: Option<CharSet>, run: CharSet, limit: usize, tail: Option<CharSet> },
    /// `set{count}`
    Exactly { set: CharSet, count: usize },
    /// `first run+`
    Led { first: CharSet, run: CharSet },
    /// A word that keeps case borders: `prefix? upper* lower+ c? | prefix? upper+ lower* c?`, where `c` is a
    /// contraction of any case if `contraction` holds. Modifiers and marks belong to both sets.
    CasedWord { prefix: CharSet, upper: CharSet, lower: CharSet, contraction: bool },
    /// `\s*[\r\n]+`
    LineEnd,
    /// `\s+(?!\S)`: all of a run of white space but the character before a word.
    SpaceBeforeWord,
    /// `\s+`
    Space,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Lower,
    Any,
}

impl Rule {
    /// The end of the match that starts at byte `at` of `text`, if there is one. It is always past `at`.
    pub(super) fn matched(&self, text: &str, at: usize) -> Option<usize> {
        match self {
            Rule::Contraction(case) => contraction(text, at, *case),
            Rule::Run { prefix, run, limit, tail } => {
                let end =
                    after_optional(prefix.as_ref(), text, at, |from| limited_run(run, *limit, text, from))?;
                Some(tail.as_ref().map_or(end, |tail| skip(tail, text, end)))
            }
            Rule::Exactly { set, count } => (0..*count).try_fold(at, |at, _| step(set, text, at)),
            Rule::Led { first, run } => {
                let from = step(first, text, at)?;
                nonempty(from, skip(run, text, from))
            }
            Rule::CasedWord { prefix, upper, lower, contraction: with_contraction } => {
                let ends_lower = |from| upper_then_lower(upper, lower, text, from);
                // The second alternative is tried only where the first fails, and then no `lower` follows.
                let all_upper = |from| nonempty(from, skip(upper, text, from));
                let end = after_optional(Some(prefix), text, at, ends_lower)
                    .or_else(|| after_optional(Some(prefix), text, at, all_upper))?;
                Some(if *with_contraction { contraction(text, end, Case::Any).unwrap_or(end) } else { end })
            }
            Rule::LineEnd => {
                let space = text.get(at..skip_space(text, at))?;
                space.rfind(['\r', '\n']).map(|last| at + last + 1)
            }
            Rule::SpaceBeforeWord => {
                let end = skip_space(text, at);
                if end == text.len() {
                    return nonempty(at, end);
                }
                let last = text.get(at..end)?.chars().next_back()?;
                nonempty(at, end - last.len_utf8())
            }
            Rule::Space => nonempty(at, skip_space(text, at)),
        }
    }
}

/// The character at byte `at`, which must be a character boundary.
pub(super) fn character(text: &str, at: usize) -> Option<char> {
    match text.as_bytes().get(at) {
        Some(&byte) if byte.is_ascii() => Some(char::from(byte)),
        _ => text.get(at..)?.chars().next(),
    }
}

fn nonempty(start: usize, end: usize) -> Option<usize> {
    (end > start).then_some(end)
}

/// Past the character at `at`, if it is in `set`.
fn step(set: &CharSet, text: &str, at: usize) -> Option<usize> {
    character(text, at).filter(|&c| set.contains(c)).map(|c| at + c.len_utf8())
}

/// Past all characters from `at` on that are in `set`.
fn skip(set: &CharSet, text: &str, mut at: usize) -> usize {
    while let Some(next) = step(set, text, at) {
        at = next;
    }
    at
}

fn skip_space(text: &str, mut at: usize) -> usize {
    while let Some(c) = character(text, at).filter(|c| c.is_whitespace()) {
        at += c.len_utf8();
    }
    at
}

fn limited_run(run: &CharSet, limit: usize, text: &str, from: usize) -> Option<usize> {
    let mut end = from;
    for _ in 0..limit {
        match step(run, text, end) {
            Some(next) => end = next,
            None => break,
        }
    }
    nonempty(from, end)
}

/// `prefix? rest`: first with the prefix, then without, as a greedy regex tries them.
fn after_optional(
    prefix: Option<&CharSet>,
    text: &str,
    at: usize,
    rest: impl Fn(usize) -> Option<usize>,
) -> Option<usize> {
    prefix.and_then(|prefix| step(prefix, text, at)).and_then(&rest).or_else(|| rest(at))
}

/// `upper* lower+`. Where no `lower` follows the capitals, the last of them that is also in `lower` (a
/// modifier letter or a mark) ends the match.
fn upper_then_lower(upper: &CharSet, lower: &CharSet, text: &str, from: usize) -> Option<usize> {
    let capitals_end = skip(upper, text, from);
    let end = skip(lower, text, capitals_end);
    if end > capitals_end {
        return Some(end);
    }
    let capitals = text.get(from..capitals_end)?;
    capitals
        .char_indices()
        .rev()
        .find(|&(_, c)| lower.contains(c))
        .map(|(offset, c)| from + offset + c.len_utf8())
}

fn contraction(text: &str, at: usize, case: Case) -> Option<usize> {
    let rest = text.as_bytes().get(at..)?;
    let letter = |index: usize| {
        let byte = *rest.get(index)?;
        Some(if case == Case::Any { byte.to_ascii_lowercase() } else { byte })
    };
    if rest.first() != Some(&b'\'') {
        return None;
    }
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        _ => None,
    }
}
