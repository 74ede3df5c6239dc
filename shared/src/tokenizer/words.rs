//! Turns one word into tokens: byte-level BPE and SentencePiece-style vocabularies alike.
//!
//! Most words of ordinary text are a single token. Whether merging would arrive at that token is found out
//! once per token and remembered in one byte for each, so the common case is one look-up, without a lock
//! and without a cache that grows.

use std::sync::atomic::{AtomicU8, Ordering};

use super::bytes_as_text;
use super::hash::FastMap;
use super::merge::{MAX_WORD_BYTES, MergeTable, Merger, NO_SYMBOL};
use super::vocabulary::{SPACE_SYMBOL, TokenKind, Vocabulary, byte_of};

/// All that is needed to encode words.
pub(super) struct Words {
    /// Whole words, in the form that words come in: bytes, or text with space symbols.
    whole: FastMap<Box<[u8]>, u32>,
    table: MergeTable,
    atoms: Atoms,
    /// Symbols from here on are intermediate products without a token of their own.
    tokens: u32,
    /// The token for each byte, where there is one.
    byte_tokens: [Option<u32>; 256],
    unknown: Option<u32>,
    whole_first: bool,
    /// By token: what merging its text comes to.
    known: Box<[AtomicU8]>,
}

/// What a word is made of before anything is merged.
enum Atoms {
    Bytes(Box<[u32; 256]>),
    Characters(FastMap<char, u32>),
}

const NOT_YET: u8 = 0;
const ITSELF: u8 = 1;
const OTHERS: u8 = 2;

impl Words {
    /// Byte-level BPE: `merges` are pairs of texts in the byte alphabet.
    pub(super) fn byte_level(vocabulary: &Vocabulary, merges: &[&str], whole_first: bool) -> Self {
        let mut whole: FastMap<Box<[u8]>, u32> = FastMap::default();
        for (id, text) in vocabulary.texts() {
            if let Some(bytes) = bytes_as_text::bytes_of(text) {
                whole.insert(bytes.into(), id);
            }
        }
        // Sides and products of merges that are no tokens: none in a sound file.
        let mut intermediate: FastMap<Box<[u8]>, u32> = FastMap::default();
        let mut symbol_of = |bytes: &[u8]| {
            let next = (vocabulary.len() + intermediate.len()) as u32;
            let known = whole.get(bytes).or_else(|| intermediate.get(bytes)).copied();
            known.unwrap_or_else(|| *intermediate.entry(bytes.into()).or_insert(next))
        };
        let mut table = MergeTable::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            if let Some((left, right)) = split_merge(merge, &mut joined) {
                let (left, right) = (symbol_of(left), symbol_of(right));
                table.insert(left, right, rank as u32, symbol_of(&joined));
            }
        }
        let atoms = std::array::from_fn(|byte| {
            let byte = [byte as u8];
            whole
                .get(byte.as_slice())
                .or_else(|| intermediate.get(byte.as_slice()))
                .copied()
                .unwrap_or(NO_SYMBOL)
        });
        let byte_tokens = std::array::from_fn(|byte| whole.get([byte as u8].as_slice()).copied());
        Self::new(vocabulary, whole, table, Atoms::Bytes(Box::new(atoms)), byte_tokens, whole_first)
    }

    /// SentencePiece-style: any neighbours merge whose concatenation is a token, by its score. The second
    /// value says whether words may be encoded apart from each other: no merge reaches from the end of one
    /// word into the space symbol of the next.
    pub(super) fn scored(vocabulary: &Vocabulary, scores: &[f32], unknown: Option<u32>) -> (Self, bool) {
        let whole: FastMap<Box<[u8]>, u32> =
            vocabulary.texts().map(|(id, text)| (text.as_bytes().into(), id)).collect();
        let mut characters: FastMap<char, u32> = FastMap::default();
        let mut next = vocabulary.len() as u32;
        for (_, text) in vocabulary.texts() {
            for character in text.chars() {
                characters.entry(character).or_insert_with(|| {
                    whole.get(character.encode_utf8(&mut [0; 4]).as_bytes()).copied().unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    })
                });
            }
        }
        let symbol_of = |text: &str| {
            let mut rest = text.chars();
            match (rest.next(), rest.next()) {
                (Some(character), None) => characters.get(&character).copied(),
                _ => whole.get(text.as_bytes()).copied(),
            }
        };
        let mut table = MergeTable::default();
        let mut words_stay_apart = true;
        for (id, text) in vocabulary.texts() {
            let priority = descending(scores.get(id as usize).copied().unwrap_or(0.0));
            for (border, character) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(border);
                if let (Some(left_symbol), Some(right_symbol)) = (symbol_of(left), symbol_of(right)) {
                    table.insert(left_symbol, right_symbol, priority, id);
                    words_stay_apart &= character != SPACE_SYMBOL || left.ends_with(SPACE_SYMBOL);
                }
            }
        }
        let mut byte_tokens = [None; 256];
        for (id, text) in vocabulary.texts().filter(|&(id, _)| vocabulary.kind(id) == Some(TokenKind::Byte)) {
            if let Some(slot) = byte_tokens.get_mut(usize::from(byte_of(text))) {
                *slot = Some(id);
            }
        }
        let mut words =
            Self::new(vocabulary, whole, table, Atoms::Characters(characters), byte_tokens, false);
        words.unknown = unknown;
        (words, words_stay_apart)
    }

    fn new(
        vocabulary: &Vocabulary,
        whole: FastMap<Box<[u8]>, u32>,
        table: MergeTable,
        atoms: Atoms,
        byte_tokens: [Option<u32>; 256],
        whole_first: bool,
    ) -> Self {
        let tokens = vocabulary.len() as u32;
        let known = (0..tokens).map(|_| AtomicU8::new(NOT_YET)).collect();
        Self { whole, table, atoms, tokens, byte_tokens, unknown: None, whole_first, known }
    }

    /// Appends the tokens of `word` to `ids`.
    pub(super) fn encode(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        let whole = self.whole.get(word.as_bytes()).copied();
        if let Some(id) = whole.filter(|&id| self.whole_first || self.merges_to_itself(id, word, merger)) {
            ids.push(id);
            return;
        }
        let mut rest = word;
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.floor_char_boundary(MAX_WORD_BYTES));
            self.merge(part, merger, ids);
            rest = later;
        }
    }

    fn merges_to_itself(&self, id: u32, word: &str, merger: &mut Merger) -> bool {
        let Some(known) = self.known.get(id as usize) else { return false };
        if known.load(Ordering::Relaxed) == NOT_YET {
            let mut ids = Vec::new();
            self.merge(word, merger, &mut ids);
            known.store(if ids == [id] { ITSELF } else { OTHERS }, Ordering::Relaxed);
        }
        known.load(Ordering::Relaxed) == ITSELF
    }

    fn merge(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        merger.clear();
        match &self.atoms {
            Atoms::Bytes(atoms) => {
                for &byte in word.as_bytes() {
                    merger.push(atoms.get(usize::from(byte)).copied().unwrap_or(NO_SYMBOL), 1);
                }
            }
            Atoms::Characters(characters) => {
                for character in word.chars() {
                    let symbol = characters.get(&character).copied().unwrap_or(NO_SYMBOL);
                    merger.push(symbol, character.len_utf8() as u32);
                }
            }
        }
        let mut rest = word.as_bytes();
        merger.merge(&self.table, |symbol, len_bytes| {
            let (span, later) = rest.split_at(len_bytes.min(rest.len()));
            rest = later;
            if symbol < self.tokens { ids.push(symbol) } else { self.spell(span, ids) }
        });
    }

    /// Appends what stands for bytes that no token covers: the bytes one by one; else, the unknown token.
    fn spell(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        let spelled: Option<Vec<u32>> =
            bytes.iter().map(|&byte| self.byte_tokens.get(usize::from(byte)).copied().flatten()).collect();
        match spelled {
            Some(spelled) => ids.extend(spelled),
            None => ids.extend(self.unknown),
        }
    }
}

/// The two sides of a merge as bytes, which `joined` then holds one after the other. A side may itself
/// start with the separator.
fn split_merge<'j>(merge: &str, joined: &'j mut Vec<u8>) -> Option<(&'j [u8], &'j [u8])> {
    let first = merge.chars().next()?.len_utf8();
    let border = first + merge.get(first..)?.find(' ')?;
    joined.clear();
    let mut append = |side: &str| {
        side.chars().try_for_each(|character| {
            joined.push(bytes_as_text::byte_of(character)?);
            Some(())
        })
    };
    append(merge.get(..border)?)?;
    append(merge.get(border + 1..)?)?;
    let left_bytes = merge.get(..border)?.chars().count();
    joined.split_at_checked(left_bytes)
}

/// Maps scores to integers in descending order: the highest score becomes the lowest number.
fn descending(score: f32) -> u32 {
    // Adding zero makes the two zeros one. A NaN, which no trainer writes, comes last.
    let bits = if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 }.to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_merge_first() {
        let mut scores = [0.0, -1.5, 3.0, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-30, -1e30];
        scores.sort_by(|a, b| b.total_cmp(a));
        assert!(scores.windows(2).all(|pair| descending(pair[0]) <= descending(pair[1])));
        assert_eq!(descending(0.0), descending(-0.0));
        assert_eq!(descending(f32::NAN), descending(f32::NEG_INFINITY));
    }

    #[test]
    fn merges_are_split_at_their_space() {
        let split =
            |merge| split_merge(merge, &mut Vec::new()).map(|(left, right)| (left.to_vec(), right.to_vec()));
        assert_eq!(split("Ġ t"), Some((b" ".to_vec(), b"t".to_vec())));
        assert_eq!(split("é Ġt"), Some((b"\xE9".to_vec(), b" t".to_vec())));
        assert_eq!(split("ab"), None);
        assert_eq!(split("€ a"), None);
        assert_eq!(split(""), None);
    }
}
