//! Where the last tokens of a sequence occurred before: an index of its runs of 2, 3 and 4 tokens.
//!
//! One open-addressed table for each length holds the end of the latest occurrence of every run; the runs
//! themselves are in the sequence and are compared there, so a hash collision never finds a wrong one. What holds
//! always: looking up costs at most [`PROBES_MAX`] comparisons a length, each token is indexed once, and the tables
//! take at most 48 bytes a token (three tables, four bytes a slot, at most four slots a run).

use shared::ids::TokenId;

/// Shortest run looked for. After single tokens nearly anything may follow.
pub const RUN_TOKENS_MIN: usize = 2;
/// Longest run looked for. Longer ones find the same places, in text that repeats.
pub const RUN_TOKENS_MAX: usize = 4;
/// Slots looked at for a run. At half load honest input needs a few; a prompt made to collide loses matches, not
/// time.
const PROBES_MAX: usize = 64;
/// Slots of a table's first allocation.
const SLOTS_MIN: usize = 64;

/// The index of one sequence.
#[derive(Debug)]
pub struct Lookup {
    runs: [Runs; RUN_TOKENS_MAX - RUN_TOKENS_MIN + 1],
    /// Runs that end at or before this position are indexed.
    indexed: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { runs: std::array::from_fn(|index| Runs::new(RUN_TOKENS_MIN + index)), indexed: 0 }
    }
}

impl Lookup {
    /// The position after the latest earlier occurrence of the last tokens: of the last 4, else of the last 3, else
    /// of the last 2. `tokens` have only grown since the last call.
    pub fn find(&mut self, tokens: &[TokenId]) -> Option<usize> {
        // The run at the very end is left out: it would be found as its own earlier occurrence.
        for end in self.indexed + 1..tokens.len() {
            self.runs.iter_mut().filter(|runs| runs.len <= end).for_each(|runs| runs.insert(tokens, end));
            self.indexed = end;
        }
        let longest_first = self.runs.iter().rev().filter(|runs| runs.len < tokens.len());
        longest_first.filter_map(|runs| runs.find(tokens)).next()
    }
}

/// The latest occurrence of every run of `len` tokens.
#[derive(Debug)]
struct Runs {
    len: usize,
    /// Ends of runs, 0 for none (no run ends there). As many as a power of two, at most half of them used.
    slots: Vec<u32>,
    used: usize,
}

/// What a search comes upon.
enum Probe {
    Found(usize),
    Free(usize),
    Crowded(usize),
}

impl Runs {
    fn new(len: usize) -> Self {
        Self { len, slots: Vec::new(), used: 0 }
    }

    /// The end of the latest indexed occurrence of the last run of `tokens`.
    fn find(&self, tokens: &[TokenId]) -> Option<usize> {
        match self.probe(tokens, tokens.len())? {
            Probe::Found(slot) => Some(self.slots[slot] as usize),
            Probe::Free(_) | Probe::Crowded(_) => None,
        }
    }

    /// Remembers `end` as the latest end of the run before it.
    fn insert(&mut self, tokens: &[TokenId], end: usize) {
        if (self.used + 1) * 2 > self.slots.len() {
            self.grow(tokens);
        }
        match self.probe(tokens, end) {
            Some(Probe::Free(slot)) => {
                self.used += 1;
                self.slots[slot] = end as u32;
            }
            // Where it is crowded, the older run is forgotten.
            Some(Probe::Found(slot) | Probe::Crowded(slot)) => self.slots[slot] = end as u32,
            None => {}
        }
    }

    fn grow(&mut self, tokens: &[TokenId]) {
        let slots = (self.slots.len() * 2).max(SLOTS_MIN);
        let mut ends = std::mem::replace(&mut self.slots, vec![0; slots]);
        ends.retain(|&end| end != 0);
        self.used = 0;
        for end in ends {
            if let Some(Probe::Free(slot) | Probe::Crowded(slot)) = self.probe(tokens, end as usize) {
                self.used += usize::from(self.slots[slot] == 0);
                self.slots[slot] = end;
            }
        }
    }

    /// Looks for the run that ends at `end`. `None` while the table is empty.
    fn probe(&self, tokens: &[TokenId], end: usize) -> Option<Probe> {
        let mask = self.slots.len().checked_sub(1)?;
        let run = &tokens[end - self.len..end];
        let home = hash(run) as usize & mask;
        for step in 0..PROBES_MAX.min(self.slots.len()) {
            let slot = (home + step) & mask;
            match self.slots[slot] as usize {
                0 => return Some(Probe::Free(slot)),
                known if tokens[known - self.len..known] == *run => return Some(Probe::Found(slot)),
                _ => {}
            }
        }
        Some(Probe::Crowded(home))
    }
}

/// Multiplies by the 64-bit golden ratio (Knuth, The Art of Computer Programming 3, 6.4) and takes the high half,
/// which every bit of the run has reached.
fn hash(run: &[TokenId]) -> u64 {
    run.iter().fold(0u64, |state, &token| {
        (state.rotate_left(23) ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by looking everywhere.
    fn naive(tokens: &[TokenId]) -> Option<usize> {
        (RUN_TOKENS_MIN..=RUN_TOKENS_MAX).rev().find_map(|len| {
            let run = tokens.get(tokens.len().checked_sub(len)?..)?;
            (len..tokens.len()).rev().find(|&end| tokens[end - len..end] == *run)
        })
    }

    fn check(tokens: &[TokenId], steps: &[usize]) {
        let mut lookup = Lookup::default();
        let mut len = 0;
        for step in steps.iter().cycle() {
            len = tokens.len().min(len + step);
            assert_eq!(lookup.find(&tokens[..len]), naive(&tokens[..len]), "after {len} tokens");
            if len == tokens.len() {
                return;
            }
        }
    }

    #[test]
    fn short_sequences_have_no_earlier_occurrence() {
        for len in 0..3 {
            assert_eq!(Lookup::default().find(&[5; 3][..len]), None);
        }
        assert_eq!(Lookup::default().find(&[5; 3]), Some(2));
    }

    #[test]
    fn tables_stay_within_their_bound() {
        let mut lookup = Lookup::default();
        let tokens: Vec<TokenId> = (0..50_000).collect();
        lookup.find(&tokens);
        let bytes: usize = lookup.runs.iter().map(|runs| runs.slots.len() * 4).sum();
        assert!(bytes <= 48 * tokens.len(), "{bytes} bytes for {} tokens", tokens.len());
        assert!(lookup.runs.iter().all(|runs| runs.used * 2 <= runs.slots.len()));
    }

    #[test]
    fn runs_made_to_collide_cost_matches_and_not_time() {
        let mut runs = Runs::new(2);
        // Found by trying: pairs whose hashes agree in the bits a table of this size looks at.
        let wanted = hash(&[0, 0]) & 0xFFF;
        let collide = (0..2_000_000u32).filter(|&second| hash(&[1, second]) & 0xFFF == wanted);
        let tokens: Vec<TokenId> = collide.take(200).flat_map(|second| [1, second]).collect();
        for end in (2..=tokens.len()).step_by(2) {
            runs.insert(&tokens, end);
        }
        assert!(runs.used <= tokens.len() / 2);
        // The latest is always found.
        assert_eq!(runs.find(&tokens), Some(tokens.len()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_index_finds_what_a_search_of_everything_finds(
            tokens in (1u32..40).prop_flat_map(|values| prop::collection::vec(0..values, 0..400)),
            steps in prop::collection::vec(1usize..9, 1..5),
        ) {
            check(&tokens, &steps);
        }
    }
}
