//! Counter-based randomness: draw n of a seed is a pure function of both, so a request continues anywhere.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), Philox4x32-10;
//! the tests hold the known answers published with Random123.

/// Round multipliers of Philox4x32 (table 2 of the paper).
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Key increments: the golden ratio and sqrt(3) - 1 (section 3.3 of the paper).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds the paper recommends.
const ROUNDS: usize = 10;

/// The draw for token `index` of an output: uniform in [0, 1) with 53 bits.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let counter = [low(index), high(index), 0, 0];
    let [a, b, ..] = philox4x32([low(seed), high(seed)], counter);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    // Both factors are exact: 53 bits fill an f64's significand.
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

fn philox4x32(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter =
            [high(second) ^ counter[1] ^ key[0], low(second), high(first) ^ counter[3] ^ key[1], low(first)];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

fn low(word: u64) -> u32 {
    (word & u64::from(u32::MAX)) as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        let check = |key, counter, expected| assert_eq!(philox4x32(key, counter), expected);
        check([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0xa409_3822, 0x299f_31d0],
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn draws_are_uniform_enough_and_differ_by_seed_and_index() {
        let draws: Vec<f64> = (0..4096).map(|n| uniform(7, n)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / 4096.0;
        // Standard deviation of the mean is 0.0045.
        assert!((mean - 0.5).abs() < 0.02, "mean {mean}");
        assert_ne!(uniform(7, 0), uniform(8, 0));
        assert_ne!(uniform(7, 0), uniform(7, 1));
    }
}
