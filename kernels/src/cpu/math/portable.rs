//! The vector operations in plain Rust: the definition that the other instruction sets must match.

use half::{bf16, f16};

use super::{LANES, Simd};

/// Any processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    let mut out = a;
    for lane in &mut out {
        *lane = f(*lane);
    }
    out
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = a;
    for (lane, b) in out.iter_mut().zip(b) {
        *lane = f(*lane, b);
    }
    out
}

/// Folds sixteen lanes into one as the tree that `Simd::sum` describes.
#[inline(always)]
fn tree(mut lanes: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// 2^power for powers in −126..=127.
fn power_of_two(power: i32) -> f32 {
    f32::from_bits(((power + 127) as u32) << 23)
}

impl Simd for Portable {
    type F = F;
    type I = [i32; LANES];
    type Pairs = [[i16; 2]; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }

    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| bf16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        *to = value.map(|value| f16::from_f32(value).to_bits());
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = c;
        for ((lane, a), b) in out.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(b, *lane);
        }
        out
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, greater)
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, value: F) -> F {
        map(value, f32::round_ties_even)
    }

    #[inline(always)]
    fn scale_by_power(self, value: F, power: F) -> F {
        // Two steps, since 2^power alone may leave the range; the first is exact for values near one.
        zip(value, power, |value, power| {
            let power = power as i32;
            let first = power >> 1;
            value * power_of_two(first) * power_of_two(power - first)
        })
    }

    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        let mut out = no;
        for (((lane, yes), a), b) in out.iter_mut().zip(yes).zip(a).zip(b) {
            if a < b {
                *lane = yes;
            }
        }
        out
    }

    #[inline(always)]
    fn sum(self, value: F) -> f32 {
        tree(value, |a, b| a + b)
    }

    #[inline(always)]
    fn highest(self, value: F) -> f32 {
        tree(value, greater)
    }

    #[inline(always)]
    fn zero_integers(self) -> [i32; LANES] {
        [0; LANES]
    }

    #[inline(always)]
    fn load_pairs(self, from: &[[i8; 2]; LANES]) -> [[i16; 2]; LANES] {
        from.map(|[a, b]| [a.into(), b.into()])
    }

    #[inline(always)]
    fn dot_pairs(self, a: [[i16; 2]; LANES], b: [i16; 2], sum: [i32; LANES]) -> [i32; LANES] {
        let mut out = sum;
        for (lane, a) in out.iter_mut().zip(a) {
            *lane += i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
        }
        out
    }

    #[inline(always)]
    fn floats(self, integers: [i32; LANES]) -> F {
        integers.map(|integer| integer as f32)
    }

    #[inline(always)]
    fn store_i16(self, value: F, to: &mut [i16; LANES]) {
        *to = value.map(|value| value.round_ties_even() as i16);
    }
}
