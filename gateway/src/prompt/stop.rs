//! Stop strings in streamed text: withholds just enough that neither a stop string nor the beginning of one that
//! completes later ever reaches the client, wherever the chunk borders fall.
//!
//! Called by `generation` once per choice, with detokenized text. The text released by all [`StopMatcher::push`]
//! calls together with [`StopMatcher::finish`] equals the whole text cut at the first stop string to complete
//! (of those completing at the same byte, the longest). Knows nothing of tokens.

/// Most stop strings of a request (OpenAI's limit).
pub const STOP_STRINGS_MAX: usize = 4;
/// Longest stop string in bytes: far beyond use; bounds the text withheld and the time per byte.
pub const STOP_BYTES_MAX: usize = 1024;

/// What a push released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// Text that is safe to send, possibly empty.
    Text(String),
    /// The text before a stop string; the output is over and later pushes release nothing.
    Stopped(String),
}

/// Follows one choice's text.
#[derive(Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text not yet released: a suffix of what was pushed.
    held: String,
    stopped: bool,
}

/// One stop string with its Knuth–Morris–Pratt automaton and the bytes of it matched so far.
#[derive(Debug)]
struct Pattern {
    text: Vec<u8>,
    /// `border[i]`: length of the longest proper prefix of `text` that ends `text[..=i]`.
    border: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    /// Looks for `stops`; empty strings among them are ignored, as they would stop everything.
    pub fn new(stops: &[String]) -> Self {
        let patterns = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Pattern::new(stop)).collect();
        Self { patterns, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text and says what may be sent.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped {
            return Released::Stopped(String::new());
        }
        let held_before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            let longest = self.patterns.iter_mut().filter_map(|pattern| pattern.step(byte)).max();
            if let Some(length) = longest {
                self.stopped = true;
                let mut released = std::mem::take(&mut self.held);
                released.truncate(held_before + offset + 1 - length);
                return Released::Stopped(released);
            }
        }
        let withheld = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        // A match in progress began at the first byte of a stop string, so the border is one of a character.
        let tail = self.held.split_off(self.held.len() - withheld);
        Released::Text(std::mem::replace(&mut self.held, tail))
    }

    /// The output ended by itself: what was withheld was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut border = vec![0; text.len()];
        let mut length = 0;
        for index in 1..text.len() {
            while length > 0 && text[index] != text[length] {
                length = border[length - 1];
            }
            if text[index] == text[length] {
                length += 1;
            }
            border[index] = length;
        }
        Self { text, border, matched: 0 }
    }

    /// Follows one byte; the pattern's length when it completes.
    fn step(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        if self.text[self.matched] == byte {
            self.matched += 1;
        }
        (self.matched == self.text.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, on the whole text: cut where the first stop string to complete begins.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        let ends = stops.iter().filter(|stop| !stop.is_empty());
        let first = ends.filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at))).min();
        match first {
            Some((_, at)) => (text[..at].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn stream(chunks: &[&str], stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops);
        let mut sent = String::new();
        for chunk in chunks {
            match matcher.push(chunk) {
                Released::Text(text) => sent.push_str(&text),
                Released::Stopped(text) => {
                    sent.push_str(&text);
                    assert_eq!(matcher.push("more"), Released::Stopped(String::new()));
                    return (sent, true);
                }
            }
        }
        sent.push_str(&matcher.finish());
        (sent, false)
    }

    fn check(chunks: &[&str], stops: &[&str], expected: &str, stopped: bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        assert_eq!(stream(chunks, &stops), (expected.to_owned(), stopped), "{chunks:?} {stops:?}");
    }

    #[test]
    fn stop_strings_are_cut_across_chunk_borders() {
        check(&["Hello E", "N", "D world"], &["END"], "Hello ", true);
        check(&["Hello EN", "TER"], &["END"], "Hello ENTER", false);
        check(&["aab", "aaab"], &["aaab"], "aab", true);
        check(&["xé", "è"], &["éè"], "x", true);
        check(&["abcd"], &["cd", "bcd", ""], "a", true);
        check(&["ab"], &[], "ab", false);
        check(&["waiting E"], &["END"], "waiting E", false);
    }

    #[test]
    fn only_a_possible_beginning_is_withheld() {
        let mut matcher = StopMatcher::new(&["\n\n".to_owned()]);
        assert_eq!(matcher.push("line\n"), Released::Text("line".to_owned()));
        assert_eq!(matcher.push("next"), Released::Text("\nnext".to_owned()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn streamed_text_equals_the_naive_cut(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..=STOP_STRINGS_MAX),
        ) {
            let chunks: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(stream(&chunks, &stops), naive(&pieces.concat(), &stops));
        }
    }
}
