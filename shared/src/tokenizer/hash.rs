//! A fast hash for tables whose keys come from the model file only.
//!
//! Prompts look keys up but never insert any, so a hostile prompt cannot make chains longer than the
//! vocabulary's own, and the standard library's keyed hash (three times slower here) buys nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// The fractional part of the golden ratio as 64 bits, odd: Fibonacci hashing (Knuth, TAOCP 6.4).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Folds every eight bytes in with a rotation and a multiplication; the final fold brings the high bits,
/// where a product is best mixed, to where the table looks.
#[derive(Default)]
pub(super) struct Mixer {
    state: u64,
}

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.state = (self.state.rotate_left(29) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let last = rest.iter().fold(0, |last, &byte| last << 8 | u64::from(byte));
        self.mix(last);
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        self.state ^ self.state >> 32
    }
}
