//! Functions of the error function and of logarithms, right in the far tails where a plain formula gives 0, 1 or NaN.
//!
//! Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 7.1.23 for the complementary error function far
//! out. Nothing here checks a range: callers pass finite numbers, or an infinity where it is named.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2, PI};

/// Beyond this the series is right to the last digits, and `erfc` itself is near the least number above 0.
const SERIES_FROM: f64 = 20.0;

/// ln erfc(x).
pub(crate) fn log_erfc(x: f64) -> f64 {
    if x < SERIES_FROM {
        return libm::erfc(x).ln();
    }
    let t = 0.5 / (x * x);
    let series = -t + 3.0 * t * t - 15.0 * t.powi(3) + 105.0 * t.powi(4) - 945.0 * t.powi(5);
    -x * x - x.ln() - 0.5 * PI.ln() + series.ln_1p()
}

/// ln of the standard normal distribution function at `x`.
pub(crate) fn log_ndtr(x: f64) -> f64 {
    if x > 0.0 { (-0.5 * libm::erfc(x * FRAC_1_SQRT_2)).ln_1p() } else { log_erfc(-x * FRAC_1_SQRT_2) - LN_2 }
}

/// ln(exp(x) - 1) for x at least 0.
pub(crate) fn log_expm1(x: f64) -> f64 {
    if x > 1.0 { x + (-(-x).exp()).ln_1p() } else { x.exp_m1().ln() }
}

/// ln(1 + exp(x)).
pub(crate) fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

/// ln of the sum of the exponentials; minus infinity for no terms.
pub(crate) fn log_sum(terms: &[f64]) -> f64 {
    let most = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most.is_infinite() {
        return most;
    }
    most + terms.iter().map(|term| (term - most).exp()).sum::<f64>().ln()
}

/// ln of the binomial coefficients of `order` over 0, 1, 2, ... `order`.
pub(crate) fn log_binomials(order: u32) -> Vec<f64> {
    let mut row = vec![0.0];
    let mut last = 0.0;
    for k in 0..order {
        last += (f64::from(order - k) / f64::from(k + 1)).ln();
        row.push(last);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(found: f64, wanted: f64) -> bool {
        (found - wanted).abs() <= 1e-12 * wanted.abs()
    }

    #[test]
    fn the_tails_of_the_error_function_are_right() {
        // 50 digits of mpmath, cut.
        for (x, wanted) in [
            (-3.0, 0.693_136_135_250_446_8),
            (0.5, -0.735_011_129_837_084_4),
            (5.0, -27.200_889_545_537_434),
            (19.999_999, -403.569_303_284_229_5),
            (20.0, -403.569_343_334_104_23),
            (100.0, -10_005.177_585_122_665),
        ] {
            assert!(is_near(log_erfc(x), wanted), "{x}: {} against {wanted}", log_erfc(x));
        }
        for (x, wanted) in [
            (-40.0, -804.608_442_013_753_8),
            (-1.0, -1.841_021_645_009_264),
            (0.0, -LN_2),
            (2.0, -0.023_012_909_328_963_49),
            (10.0, -7.619_853_024_160_526e-24),
        ] {
            assert!(is_near(log_ndtr(x), wanted), "{x}: {} against {wanted}", log_ndtr(x));
        }
    }

    #[test]
    fn logarithms_keep_small_and_large_terms() {
        assert!(is_near(log_expm1(1e-300), 1e-300_f64.ln()));
        assert_eq!(log_expm1(800.0), 800.0);
        assert_eq!(softplus(-1e3), 0.0);
        assert!(is_near(softplus(-40.0), (-40.0_f64).exp()));
        assert!(is_near(log_sum(&[1e4, 1e4]), 1e4 + LN_2));
        assert_eq!(log_sum(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(is_near(log_binomials(10)[5], 252.0_f64.ln()));
    }
}
