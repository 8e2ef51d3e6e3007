//! Exponentials and what is made of them, as straight-line arithmetic that a compiler turns into vectors: no tables, no
//! branches, no fused operations, so every instruction set rounds alike.
//!
//! Errors are relative and tested against f64 over the whole range: below 3e-7 where results are normal numbers, and 6e-7 for
//! [`normal`]. NaN stays NaN. The polynomials are minimax fits made for this file.

/// `1 / ln 2`.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// `ln 2` in two parts; a product of the first with a whole number below 2^15 is exact.
const LN_2: [f32; 2] = [355.0 / 512.0, -0.000_212_194_44];
/// Added and taken away again, it rounds numbers of a small magnitude to whole ones; its bits count along.
const ROUND: f32 = 12_582_912.0;
/// `(exp r - 1 - r) / r^2` for `r` within half of `ln 2`, lowest power first.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_5];
/// `(tanh x - x) / x^3` by powers of `x^2`, up to an `x` of 5/8.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_71, 0.020_639_079, -0.005_704_978_5];
/// The upper tail of the normal distribution at `a` over `t exp(-a^2/2)`, by powers of `t = 1 / (1 + 0.35 a)`.
const TAIL: [f32; 9] = [
    0.139_621_3,
    0.139_863_57,
    0.119_820_86,
    0.105_554_26,
    -0.023_216_665,
    0.159_326_15,
    -0.255_844_8,
    0.144_033_79,
    -0.029_158_486,
];
/// Steepness in `t`.
const TAIL_SLOPE: f32 = 0.35;
/// Beyond, the tail is 0 in f32.
const TAIL_END: f32 = 14.5;
/// `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_3;

#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: &[f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    let mut place = N - 1;
    while place > 0 {
        place -= 1;
        sum = sum * x + coefficients[place];
    }
    sum
}

/// `2^power` for -126 to 127.
#[inline(always)]
fn power_of_two(power: i32) -> f32 {
    f32::from_bits((power.wrapping_add(127) as u32) << 23)
}

/// `exp(x + rest)` for a `rest` far below 1.
#[inline(always)]
fn exp_of_sum(x: f32, rest: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let rounded = x * LOG2_E + ROUND;
    let power = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let whole = rounded - ROUND;
    let r = ((x - whole * LN_2[0]) - whole * LN_2[1]) + rest;
    let value = 1.0 + (r + r * r * polynomial(r, &EXP));
    // In two steps, for results near the ends of the range.
    let half = power >> 1;
    value * power_of_two(half) * power_of_two(power.wrapping_sub(half))
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    exp_of_sum(x, 0.0)
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let near = x * (1.0 + square * polynomial(square, &TANH));
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `exp(-x^2/2)` and, of the same exponential, the normal distribution function of `x`.
#[inline(always)]
fn bell(x: f32) -> (f32, f32) {
    let a = if x.abs() > TAIL_END { TAIL_END } else { x.abs() };
    // The square in two parts, the first of them exact.
    let high = f32::from_bits(a.to_bits() & 0xffff_f000);
    let bell = exp_of_sum(-0.5 * high * high, -0.5 * (a - high) * (a + high));
    let t = 1.0 / (1.0 + TAIL_SLOPE * a);
    let tail = bell * (t * polynomial(t, &TAIL));
    (bell, if x > 0.0 { 1.0 - tail } else { tail })
}

/// The normal distribution function.
#[inline(always)]
pub(crate) fn normal(x: f32) -> f32 {
    bell(x).1
}

/// The derivative of `x normal(x)`.
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let (bell, normal) = bell(x);
    // Where x is infinite, the bell is 0 and the product must be.
    let x = if x.abs() > TAIL_END { TAIL_END.copysign(x) } else { x };
    normal + x * DENSITY * bell
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 1,009th f32 between the bounds' bits, and the mirrored ones.
    fn points(largest: f32) -> impl Iterator<Item = f32> {
        (0..=largest.to_bits()).step_by(1_009).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    /// The largest error relative to a result that is a normal number, of the vectorised function.
    fn error(largest: f32, fast: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for x in points(largest) {
            let (fast, exact) = (f64::from(fast(x)), exact(f64::from(x)));
            if exact.abs() >= f64::from(f32::MIN_POSITIVE) && exact.abs() <= f64::from(f32::MAX) {
                worst = worst.max((fast / exact - 1.0).abs());
            } else {
                assert!(
                    (fast - exact).abs() <= 1.2e-38 || fast as f32 == exact as f32,
                    "{x}: {fast}, not {exact}"
                );
            }
        }
        worst
    }

    #[test]
    fn functions_agree_with_f64_over_the_whole_range() {
        let errors = [
            ("exp", error(f32::MAX, exp, f64::exp), 3e-7),
            ("tanh", error(f32::MAX, tanh, f64::tanh), 3e-7),
            ("sigmoid", error(f32::MAX, sigmoid, |x| 1.0 / (1.0 + (-x).exp())), 3e-7),
            ("normal", error(f32::MAX, normal, |x| 0.5 * libm::erfc(-x / 2f64.sqrt())), 6e-7),
        ];
        for (name, error, bound) in errors {
            assert!(error < bound, "{name} errs by {error:e}");
        }
    }

    #[test]
    fn gelus_slope_agrees_with_f64_relative_to_its_range() {
        for x in points(f32::MAX) {
            let exact = f64::from(x);
            let bell = (-0.5 * exact * exact).exp();
            let slope =
                0.5 * libm::erfc(-exact / 2f64.sqrt()) + exact * bell / (2.0 * std::f64::consts::PI).sqrt();
            let slope = if bell == 0.0 { if exact > 0.0 { 1.0 } else { 0.0 } } else { slope };
            assert!((f64::from(gelu_slope(x)) - slope).abs() < 3e-7, "{x}: {} not {slope}", gelu_slope(x));
        }
    }

    #[test]
    fn infinities_have_their_limits_and_nan_stays() {
        let ends = |function: fn(f32) -> f32| [function(f32::NEG_INFINITY), function(f32::INFINITY)];
        assert_eq!(ends(exp), [0.0, f32::INFINITY]);
        assert_eq!(ends(tanh), [-1.0, 1.0]);
        assert_eq!(ends(sigmoid), [0.0, 1.0]);
        assert_eq!(ends(normal), [0.0, 1.0]);
        assert_eq!(ends(gelu_slope), [0.0, 1.0]);
        for function in [exp, tanh, sigmoid, normal, gelu_slope] {
            assert!(function(f32::NAN).is_nan());
        }
        assert_eq!((tanh(-0.0).to_bits(), tanh(1e-40)), ((-0.0f32).to_bits(), 1e-40));
    }
}
