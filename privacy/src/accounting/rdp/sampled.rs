//! Rényi divergence of the Gaussian mechanism over a Poisson sample.
//!
//! Mironov, Talwar, Zhang (2019), section 3.3: the larger of the two directions is A(order), the moment of the mixture
//! against the Gaussian; integer orders by the binomial sum, others by the two series that meet at the point where the
//! mixture's parts are equal.
//!
//! Nothing here errs towards no loss. The binomial sum is kept without its 1, so that a rare sample does not round to
//! nothing. Past the order the series' terms alternate and shrink; their magnitudes are added, so the sum is an upper
//! bound wherever it is cut off, and nothing cancels. Where a series has too few digits, or shrinks too slowly, the
//! logarithm of A is interpolated between integers, an upper bound because it is convex.

use super::super::special::{log_binomials, log_erfc, log_expm1, log_sum, softplus};

/// Logarithm of the terms at which a series is cut off.
const TERM_LEAST: f64 = -30.0;
const TERMS_MAX: u32 = 1_000;
/// Below this ln A a series has fewer than six digits.
const SERIES_LEAST: f64 = 1e-8;

/// The divergence at `order` above 1, in nats, for noise over sensitivity above 0 and a rate from 0 to 1.
pub(super) fn divergence(noise: f64, rate: f64, order: f64) -> f64 {
    if rate == 0.0 {
        return 0.0;
    }
    if rate == 1.0 {
        return 0.5 * order / (noise * noise);
    }
    log_moment(noise, rate, order) / (order - 1.0)
}

/// ln A(order).
fn log_moment(noise: f64, rate: f64, order: f64) -> f64 {
    if order.fract() == 0.0 {
        return log_moment_integer(noise, rate, order as u32);
    }
    let series = log_moment_series(noise, rate, order);
    if (SERIES_LEAST..f64::INFINITY).contains(&series) {
        return series;
    }
    let below = log_moment_integer(noise, rate, order.floor() as u32);
    let above = log_moment_integer(noise, rate, order.ceil() as u32);
    if above.is_finite() { below + order.fract() * (above - below) } else { f64::INFINITY }
}

/// The binomial sum less the 1 that its factors 1 add up to.
fn log_moment_integer(noise: f64, rate: f64, order: u32) -> f64 {
    let (log_in, log_out) = (rate.ln(), (-rate).ln_1p());
    let terms: Vec<f64> = log_binomials(order)
        .into_iter()
        .enumerate()
        .skip(2)
        .map(|(k, binomial)| {
            let (k, rest) = (k as f64, f64::from(order) - k as f64);
            let gain = k * (k - 1.0) / (2.0 * noise * noise);
            binomial + rest * log_out + k * log_in + log_expm1(gain)
        })
        .collect();
    softplus(log_sum(&terms))
}

/// The two series, with the magnitudes of their terms; infinity when they shrink too slowly.
fn log_moment_series(noise: f64, rate: f64, order: f64) -> f64 {
    let (log_in, log_out) = (rate.ln(), (-rate).ln_1p());
    let (variance, scale) = (noise * noise, std::f64::consts::SQRT_2 * noise);
    let meeting = variance * (log_out - log_in) + 0.5;
    let side = |inside: f64, binomial: f64, edge: f64| {
        let mixture = inside * log_in + (order - inside) * log_out;
        let gain = inside * (inside - 1.0) / (2.0 * variance);
        binomial + mixture + gain + log_erfc(edge / scale) - std::f64::consts::LN_2
    };
    let mut binomial = 0.0;
    let mut terms = Vec::new();
    for k in 0..TERMS_MAX {
        let (k, rest) = (f64::from(k), order - f64::from(k));
        let (left, right) = (side(k, binomial, k - meeting), side(rest, binomial, meeting - rest));
        terms.extend([left, right]);
        if k > order + 1.0 && left.max(right) < TERM_LEAST {
            return log_sum(&terms);
        }
        binomial += (rest.abs() / (k + 1.0)).ln();
    }
    f64::INFINITY
}
