//! The white-box audit of a Gaussian release: a lower bound on mu, and the epsilon that belongs to it.
//!
//! Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023; Dong, Roth, Su, "Gaussian
//! Differential Privacy", 2019: mu-GDP keeps every threshold to Phi^-1(1 - FPR) - Phi^-1(FNR) <= mu. The
//! strongest of the audits here, because it uses that the noise is Gaussian; where it is not, the bound is on
//! mu and not on every epsilon.

use super::thresholds::{Threshold, errors};
use super::{AuditError, check};
use crate::accounting::pld::step::ln_above;
use crate::accounting::{Relation, pld};

/// A lower bound on the epsilon at `delta` of a Gaussian release, from the scores of canaries that went in and
/// that stayed out.
///
/// For a white-box audit a score is the inner product of the release with a canary of norm C, divided by C:
/// about 1 for a canary that went in and 0 otherwise, so that `Threshold::Above(0.5)` is the natural choice.
///
/// # Errors
/// [`AuditError`] for scores that are missing or NaN, a delta outside (0, 1) or a significance outside (0,
/// 0.5).
pub fn gaussian_lower_bound(
    members: &[f64],
    others: &[f64],
    threshold: Threshold,
    delta: f64,
    significance: f64,
) -> Result<f64, AuditError> {
    check(significance, delta)?;
    if delta == 0.0 {
        return Err(AuditError::Delta(delta));
    }
    let mu = gaussian_mu_lower_bound(members, others, threshold, significance)?;
    if mu <= 0.0 {
        return Ok(0.0);
    }
    pld::single_release_epsilon(mu.recip(), 1.0, Relation::AddOrRemoveOne, delta)
        .map_err(|_| AuditError::Delta(delta))
}

/// A lower bound on the mu of a Gaussian release, not below 0: how far apart its two distributions are, in deviations of the
/// noise. As [`gaussian_lower_bound`], for an accountant that knows how the release came about.
///
/// # Errors
/// As [`gaussian_lower_bound`].
pub fn gaussian_mu_lower_bound(
    members: &[f64],
    others: &[f64],
    threshold: Threshold,
    significance: f64,
) -> Result<f64, AuditError> {
    check(significance, 0.0)?;
    let bounds = errors(members, others, threshold, significance)?;
    let mu = |rates: &super::thresholds::Errors| {
        quantile_above(rates.false_positives) + quantile_above(rates.false_negatives)
    };
    Ok(bounds.iter().map(mu).fold(0.0, f64::max))
}

/// The x above which a standard Gaussian has mass `chance`; at most 40 in size, from below.
fn quantile_above(chance: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if ln_above(middle) >= chance.ln() { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_textbook_ones() {
        for (chance, x) in [(0.5, 0.0), (0.025, 1.959_963_984_540_054), (0.975, -1.959_963_984_540_054)] {
            assert!((quantile_above(chance) - x).abs() < 1e-12);
        }
        assert!(quantile_above(1.0) < -5.0);
    }
}
