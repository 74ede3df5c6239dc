//! Every vector operation against the portable one bit for bit, and the exponentials against f64.

use super::*;

/// Applies an operation of three vectors to three slices.
struct Map<'a, F> {
    inputs: [&'a [f32]; 3],
    out: &'a mut [f32],
    op: F,
}

/// An operation that can be run on any instruction set.
trait Op {
    fn apply<S: Simd>(&self, s: S, a: S::F, b: S::F, c: S::F) -> S::F;
}

impl<O: Op> Kernel for Map<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [a, b, c] = self.inputs.map(|input| input.as_chunks::<LANES>().0);
        for (i, out) in self.out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let value = self.op.apply(s, s.load(&a[i]), s.load(&b[i]), s.load(&c[i]));
            s.store(value, out);
        }
    }
}

macro_rules! op {
    ($name:ident, |$s:ident, $a:ident, $b:ident, $c:ident| $body:expr) => {
        #[derive(Clone, Copy)]
        struct $name;
        impl Op for $name {
            #[inline(always)]
            fn apply<S: Simd>(&self, $s: S, $a: S::F, $b: S::F, $c: S::F) -> S::F {
                let _ = ($b, $c);
                $body
            }
        }
    };
}

fn run(isa: Isa, op: impl Op, inputs: [&[f32]; 3]) -> Vec<f32> {
    let mut out = vec![0.0; inputs[0].len()];
    Cpu::new(isa, 1).unwrap().launch(Map { inputs, out: &mut out, op });
    out
}

/// Floats of every kind and size, a multiple of sixteen of them.
fn samples(seed: u32) -> Vec<f32> {
    let special =
        [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45, 65519.0];
    let mut state = seed;
    let random = (0..16_000 - special.len()).map(|i| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if i % 2 == 0 { f32::from_bits(state) } else { (state as i32 as f32) / 2e7 }
    });
    special.into_iter().chain(random).collect()
}

fn check_same_bits(name: &str, op: impl Op + Copy) {
    let inputs = [samples(1), samples(2), samples(3)];
    let inputs = [&inputs[0][..], &inputs[1], &inputs[2]];
    let expected = run(Isa::Portable, op, inputs);
    for isa in Isa::available() {
        for (i, (actual, expected)) in run(isa, op, inputs).iter().zip(&expected).enumerate() {
            let same = actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan());
            assert!(same, "{name} on {isa}: {actual} for {expected} of {:?}", inputs.map(|input| input[i]));
        }
    }
}

op!(Add, |s, a, b, c| s.add(a, b));
op!(Sub, |s, a, b, c| s.sub(a, b));
op!(Mul, |s, a, b, c| s.mul(a, b));
op!(Div, |s, a, b, c| s.div(a, b));
op!(Fma, |s, a, b, c| s.fma(a, b, c));
op!(Max, |s, a, b, c| s.max(a, b));
op!(Min, |s, a, b, c| s.min(a, b));
op!(Round, |s, a, b, c| s.round(a));
op!(Select, |s, a, b, c| s.select_less(a, b, c, a));
op!(Sum, |s, a, b, c| s.splat(s.sum(a)));
op!(Highest, |s, a, b, c| s.splat(s.highest(a)));
op!(Exp, |s, a, b, c| exp(s, a));
op!(Tanh, |s, a, b, c| tanh(s, a));
op!(Erf, |s, a, b, c| erf(s, a));
op!(Halves, |s, a, b, c| {
    let mut halves = [0; LANES];
    s.store_f16(a, &mut halves);
    s.add(s.load_f16(&halves), s.load_bf16(&halves))
});

op!(Integers, |s, a, b, c| {
    let within = |x| s.max(s.min(x, s.splat(32767.0)), s.splat(-32767.0));
    let (mut codes, mut factors) = ([0; LANES], [0; LANES]);
    s.store_i16(within(a), &mut codes);
    s.store_i16(within(b), &mut factors);
    let mut pairs = [[0; 2]; LANES];
    for (i, pair) in pairs.iter_mut().enumerate() {
        *pair = [codes[i] as i8, (codes[i] >> 8) as i8];
    }
    let mut sum = s.zero_integers();
    for factors in factors.as_chunks::<2>().0 {
        sum = s.dot_pairs(s.load_pairs(&pairs), *factors, sum);
    }
    s.floats(sum)
});

#[test]
fn every_operation_gives_the_portable_bits() {
    check_same_bits("add", Add);
    check_same_bits("sub", Sub);
    check_same_bits("mul", Mul);
    check_same_bits("div", Div);
    check_same_bits("fma", Fma);
    check_same_bits("max", Max);
    check_same_bits("min", Min);
    check_same_bits("round", Round);
    check_same_bits("select", Select);
    check_same_bits("sum", Sum);
    check_same_bits("highest", Highest);
    check_same_bits("exp", Exp);
    check_same_bits("tanh", Tanh);
    check_same_bits("erf", Erf);
    check_same_bits("halves", Halves);
    check_same_bits("integers", Integers);
}

/// Distance of `actual` from `exact` in units of the last place of an f32 near `exact`.
fn ulps(actual: f32, exact: f64) -> f64 {
    let exponent = exact.abs().log2().floor().max(-126.0);
    (f64::from(actual) - exact).abs() / (exponent - 23.0).exp2()
}

#[test]
fn exp_is_within_one_and_a_half_units_in_the_last_place() {
    // Steps of 2^-13 from -110 to 92, off the binary grid.
    let x: Vec<f32> = (0..1_654_784).map(|i| -110.0 + i as f32 / 8192.0 + 1e-5).collect();
    let y = run(Isa::detect(), Exp, [&x, &x, &x]);
    for (&x, &y) in x.iter().zip(&y) {
        let exact = f64::from(x).exp();
        if exact > f64::from(f32::MAX) {
            assert_eq!(y, f32::INFINITY, "{x}");
        } else {
            assert!(ulps(y, exact) <= 1.5, "exp({x}) = {y}, not {exact}");
        }
    }
}

#[test]
fn exp_keeps_its_corners() {
    let mut x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-45].to_vec();
    x.resize(LANES, 1.0);
    let y = run(Isa::detect(), Exp, [&x, &x, &x]);
    assert_eq!(y[..4], [1.0, 1.0, f32::INFINITY, 0.0]);
    assert!(y[4].is_nan());
    assert_eq!(y[5..8], [f32::INFINITY, 0.0, 1.0]);
}

#[test]
fn tanh_and_erf_are_within_their_absolute_bounds() {
    let x: Vec<f32> = (0..160_000).map(|i| (i - 80_000) as f32 / 8000.0).collect();
    for (&x, y) in x.iter().zip(run(Isa::detect(), Tanh, [&x, &x, &x])) {
        assert!((f64::from(y) - f64::from(x).tanh()).abs() < 2e-7, "tanh({x}) = {y}");
    }
    for (&x, y) in x.iter().zip(run(Isa::detect(), Erf, [&x, &x, &x])) {
        assert!((f64::from(y) - erf_series(f64::from(x))).abs() < 3e-7, "erf({x}) = {y}");
    }
}

/// erf by its Maclaurin series (alternating, so cancelling in f64 beyond 4, where it is 1 within 2e-8).
fn erf_series(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
