//! A hash for the ledger's own ids, which are numbered in turn and never chosen by a client: one multiplication instead
//! of a keyed hash, since every token looks its request up.

use std::hash::{BuildHasherDefault, Hasher};

/// 2^64 divided by the golden ratio, made odd (Knuth, The Art of Computer Programming 3, 6.4).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

/// For `HashMap`s keyed by request ids.
pub(super) type IdHash = BuildHasherDefault<IdHasher>;

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // The table takes its index from the low bits and its tag from the high ones; the product's low bits are weak.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(MULTIPLIER);
    }
}
