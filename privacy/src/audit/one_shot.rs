//! The one-shot estimate: what the cosines of random canary clients with the final model say, without
//! retraining.
//!
//! Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", 2023: k random unit canaries
//! take part in every round; each has the cosine g of its direction with the whole change of the model. Unseen
//! canaries of dimension d would have N(0, 1/d); those seen have a Gaussian fitted to theirs. The estimate is
//! the epsilon between the two. It is an estimate, not a bound: nothing is refuted by it.

use super::AuditError;
use super::check_scores;
use crate::accounting::pld::step::ln_above;

/// The estimate of epsilon at `delta` from the `cosines` of canaries that took part, in a model of `dimension`
/// parameters.
///
/// # Errors
/// [`AuditError`] for fewer than two cosines, one that is NaN or outside `[-1, 1]`, a dimension of 0 or a delta
/// outside (0, 1).
pub fn one_shot_estimate(cosines: &[f64], dimension: u64, delta: f64) -> Result<f64, AuditError> {
    check_scores(cosines, 2)?;
    if !(delta > 0.0 && delta < 1.0) {
        return Err(AuditError::Delta(delta));
    }
    if let Some(&value) = cosines.iter().find(|cosine| cosine.abs() > 1.0 + 1e-9) {
        return Err(AuditError::Parameter { name: "a cosine", value, range: "-1 to 1" });
    }
    if dimension == 0 {
        return Err(AuditError::Parameter { name: "the dimension", value: 0.0, range: "at least 1" });
    }
    let count = cosines.len() as f64;
    let mean = cosines.iter().sum::<f64>() / count;
    let variance = cosines.iter().map(|cosine| (cosine - mean).powi(2)).sum::<f64>() / (count - 1.0);
    if variance == 0.0 {
        return Ok(f64::INFINITY);
    }
    let seen = Bell { mean, deviation: variance.sqrt() };
    let unseen = Bell { mean: 0.0, deviation: (dimension as f64).sqrt().recip() };
    Ok(between(seen, unseen, delta))
}

#[derive(Clone, Copy)]
struct Bell {
    mean: f64,
    deviation: f64,
}

/// The least epsilon at which neither direction exceeds delta.
fn between(one: Bell, other: Bell, delta: f64) -> f64 {
    let excess = |epsilon: f64| hockey_stick(one, other, epsilon).max(hockey_stick(other, one, epsilon));
    if excess(0.0) <= delta {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while excess(high) > delta {
        (low, high) = (high, 2.0 * high);
        if high > 1e300 {
            return f64::INFINITY;
        }
    }
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if excess(middle) > delta { low = middle } else { high = middle }
    }
    high
}

/// The mass by which `upper` exceeds e^epsilon `lower`, where it does: between or beyond the roots of a
/// quadratic.
fn hockey_stick(upper: Bell, lower: Bell, epsilon: f64) -> f64 {
    // ln(upper/lower) - epsilon = a x^2 + b x + c.
    let (p, r) = (upper.deviation.powi(-2), lower.deviation.powi(-2));
    let a = (r - p) / 2.0;
    let b = upper.mean * p - lower.mean * r;
    let c = (lower.deviation / upper.deviation).ln() - epsilon
        + (lower.mean.powi(2) * r - upper.mean.powi(2) * p) / 2.0;
    let gain = |from: f64, to: f64| mass(upper, from, to) - (epsilon + mass(lower, from, to).ln()).exp();
    if a.abs() <= 1e-12 * (p + r) {
        return if b == 0.0 {
            0.0
        } else if b > 0.0 {
            gain(-c / b, f64::INFINITY)
        } else {
            gain(f64::NEG_INFINITY, -c / b)
        };
    }
    let discriminant = b * b - 4.0 * a * c;
    if discriminant <= 0.0 {
        return if a > 0.0 { gain(f64::NEG_INFINITY, f64::INFINITY) } else { 0.0 };
    }
    let half = -0.5 * (b + discriminant.sqrt().copysign(b));
    let roots = (half / a, if half == 0.0 { 0.0 } else { c / half });
    let (left, right) = (roots.0.min(roots.1), roots.0.max(roots.1));
    if a > 0.0 { gain(f64::NEG_INFINITY, left) + gain(right, f64::INFINITY) } else { gain(left, right) }
}

fn mass(bell: Bell, from: f64, to: f64) -> f64 {
    let (from, to) = ((from - bell.mean) / bell.deviation, (to - bell.mean) / bell.deviation);
    let above = |x: f64| if x == f64::INFINITY { 0.0 } else { ln_above(x).exp() };
    if from > 0.0 { above(from) - above(to) } else { above(-to) - above(-from) }.max(0.0)
}
