//! Sets of characters, written as a regex bracket expression and answered by one bit test.
//!
//! The expressions are those of the published pre-tokenizers, so that a rule can be compared with its
//! source by eye. `regex-syntax` parses them and supplies the Unicode tables; no regex engine runs.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, HirKind};

/// Characters of the basic multilingual plane have one bit each: 8 KiB a set, and no search for nearly
/// every character of every text.
const BMP_WORDS: usize = 0x1_0000 / 64;

/// An immutable set of characters.
#[derive(Clone)]
pub(in crate::tokenizer) struct CharSet {
    bmp: Box<[u64]>,
    /// Sorted, non-overlapping, inclusive; only what lies above the BMP.
    supplementary: Box<[(u32, u32)]>,
}

impl CharSet {
    /// The set that `expression` describes: one bracket expression, class or character of the regex syntax.
    ///
    /// Panics if it is anything else. Expressions are constants of this crate, and a test builds them all.
    pub(in crate::tokenizer) fn new(expression: &str) -> Self {
        let mut set = Self { bmp: vec![0; BMP_WORDS].into_boxed_slice(), supplementary: Box::default() };
        let mut supplementary = Vec::new();
        for (first, last) in ranges(expression) {
            for code in first..=last.min(0xFFFF) {
                if let Some(word) = set.bmp.get_mut(code as usize / 64) {
                    *word |= 1 << (code % 64);
                }
            }
            if last > 0xFFFF {
                supplementary.push((first.max(0x1_0000), last));
            }
        }
        set.supplementary = supplementary.into_boxed_slice();
        set
    }

    pub(in crate::tokenizer) fn contains(&self, character: char) -> bool {
        let code = u32::from(character);
        match self.bmp.get(code as usize / 64) {
            Some(word) => word >> (code % 64) & 1 == 1,
            None => {
                let after = self.supplementary.partition_point(|&(first, _)| first <= code);
                after
                    .checked_sub(1)
                    .and_then(|at| self.supplementary.get(at))
                    .is_some_and(|&(_, last)| code <= last)
            }
        }
    }
}

fn ranges(expression: &str) -> Vec<(u32, u32)> {
    let parsed = ParserBuilder::new().build().parse(expression);
    match parsed.as_ref().map(|hir| hir.kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|range| (range.start().into(), range.end().into())).collect()
        }
        // A set of one character is simplified to a literal by the parser.
        Ok(HirKind::Literal(literal)) => {
            match std::str::from_utf8(&literal.0).map(|text| text.chars().collect()) {
                Ok::<Vec<char>, _>(characters) if characters.len() == 1 => {
                    characters.iter().map(|&character| (character.into(), character.into())).collect()
                }
                _ => panic!("{expression:?} is longer than one character"),
            }
        }
        _ => panic!("{expression:?} is not a set of characters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_ranges_it_was_built_from() {
        for expression in
            [r"\p{L}", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]", r"[a-c\x{1F600}-\x{1F64F}]", " "]
        {
            let set = CharSet::new(expression);
            let ranges = ranges(expression);
            for character in ('\0'..=char::MAX).step_by(7).chain(' '..='~') {
                let code = u32::from(character);
                let expected = ranges.iter().any(|&(first, last)| (first..=last).contains(&code));
                assert_eq!(set.contains(character), expected, "{expression} {character:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "not a set of characters")]
    fn refuses_what_is_no_set() {
        CharSet::new("a|bc");
    }
}
