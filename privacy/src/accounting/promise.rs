//! Which numbers make a promise at all: one rule for everybody who types a delta or a noise multiplier.
//!
//! An accountant computes with any delta between 0 and 1, since that is mathematics. A promise needs more: delta is the chance
//! that a unit may lose all protection, so that a large one promises nothing whatever epsilon is. Nothing is computed here.

use super::Figure;

/// The largest delta of a promise: one in a hundred. Anything above is no protection of a person, and for a population of more
/// than a hundred delta belongs well below one over its number.
pub const DELTA_MAX: f64 = 0.01;
/// The least noise multiplier: below it epsilon is beyond 10^5 and means nothing. With the coarsest lattice of a plan (2^20
/// points of sensitivity) noise stays a thousand points wide.
pub const MULTIPLIER_MIN: f64 = 1e-3;
/// The largest noise multiplier: no release would be left under more.
pub const MULTIPLIER_MAX: f64 = 1e6;

/// A number that makes no promise.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PromiseError {
    /// A delta that is no number above 0, or too large.
    #[error(
        "delta is {}; it must be above 0 and at most {DELTA_MAX}, and well below one over the number of those protected: it is \
         the chance that one of them loses all protection",
        Figure(*.0)
    )]
    Delta(f64),
    /// Noise that protects nothing, or leaves nothing.
    #[error("the noise multiplier is {}; it must be from {MULTIPLIER_MIN} to {MULTIPLIER_MAX}", Figure(*.0))]
    Multiplier(f64),
}

/// The delta of a promise: above 0, at most [`DELTA_MAX`].
///
/// # Errors
/// [`PromiseError::Delta`].
pub fn promised_delta(delta: f64) -> Result<f64, PromiseError> {
    if delta > 0.0 && delta <= DELTA_MAX { Ok(delta) } else { Err(PromiseError::Delta(delta)) }
}

/// The noise multiplier of a promise: from [`MULTIPLIER_MIN`] to [`MULTIPLIER_MAX`].
///
/// # Errors
/// [`PromiseError::Multiplier`].
pub fn promised_multiplier(multiplier: f64) -> Result<f64, PromiseError> {
    if (MULTIPLIER_MIN..=MULTIPLIER_MAX).contains(&multiplier) {
        Ok(multiplier)
    } else {
        Err(PromiseError::Multiplier(multiplier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_that_promises_nothing_is_refused() {
        for delta in
            [f64::NAN, f64::INFINITY, -1e-5, 0.0, -0.0, DELTA_MAX * 1.000_001, 0.1, 0.5, 0.9, 1.0, 2.0]
        {
            assert!(promised_delta(delta).is_err(), "{delta}");
        }
        for delta in [DELTA_MAX, 1e-3, 1e-5, 1e-12, f64::MIN_POSITIVE] {
            assert_eq!(promised_delta(delta), Ok(delta));
        }
    }

    #[test]
    fn noise_that_protects_nothing_is_refused() {
        for multiplier in [f64::NAN, f64::INFINITY, -1.0, 0.0, 0.999e-3, 1.001e6] {
            assert!(promised_multiplier(multiplier).is_err(), "{multiplier}");
        }
        for multiplier in [MULTIPLIER_MIN, 1.0, MULTIPLIER_MAX] {
            assert_eq!(promised_multiplier(multiplier), Ok(multiplier));
        }
    }
}
