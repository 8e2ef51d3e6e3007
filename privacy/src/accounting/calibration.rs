//! The least noise that keeps a promise.
//!
//! Epsilon falls as noise rises, so the noise multiplier is found by bisection of its logarithm, over any accountant
//! that is given as a function. The answer is the end that keeps the promise, never the other. It refuses targets that
//! no noise within its range reaches, and it trusts no epsilon that is NaN.

use super::Figure;

/// How near to the least noise the answer is, relatively.
const PRECISION: f64 = 1e-6;
const NOISE_LEAST: f64 = 1e-3;
const NOISE_MOST: f64 = 1e9;

/// No noise multiplier could be found.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError<E> {
    /// The promise is not a positive finite number.
    #[error("the target epsilon must be finite and above 0, not {}; give what may be given away in all", Figure(*.0))]
    Target(f64),
    /// Even very much noise gives away too much.
    #[error(
        "even a noise multiplier of {noise:e} gives epsilon {:.6}, above {}; allow more, or release less often",
        Figure(*epsilon),
        Figure(*target)
    )]
    OutOfReach {
        /// The most that was tried.
        noise: f64,
        /// What it gives.
        epsilon: f64,
        /// What was wanted.
        target: f64,
    },
    /// The accountant refused.
    #[error(transparent)]
    Accountant(#[from] E),
}

/// The least noise multiplier, to one millionth and rounded up, at which `epsilon_of(noise_multiplier)` is at most
/// `target`. Never below 0.001.
///
/// # Errors
/// [`CalibrationError`]; errors of `epsilon_of` are passed on.
pub fn calibrate<E>(
    target: f64,
    epsilon_of: impl Fn(f64) -> Result<f64, E>,
) -> Result<f64, CalibrationError<E>> {
    if !(target > 0.0 && target.is_finite()) {
        return Err(CalibrationError::Target(target));
    }
    let mut above = 1.0;
    loop {
        let epsilon = epsilon_of(above)?;
        if epsilon <= target {
            break;
        }
        if above >= NOISE_MOST {
            return Err(CalibrationError::OutOfReach { noise: above, epsilon, target });
        }
        above *= 2.0;
    }
    let mut below = above / 2.0;
    while epsilon_of(below)? <= target {
        above = below;
        below /= 2.0;
        if above <= NOISE_LEAST {
            return Ok(NOISE_LEAST);
        }
    }
    while above > below * (1.0 + PRECISION) {
        let middle = (below * above).sqrt();
        if epsilon_of(middle)? <= target {
            above = middle;
        } else {
            below = middle;
        }
    }
    Ok(above)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::accounting::gaussian;

    #[test]
    fn the_noise_found_keeps_the_promise_and_hardly_less_does_not() {
        for target in [0.01, 0.5, 3.0, 40.0, 1_000.0] {
            let noise = calibrate(target, |noise| gaussian::epsilon(noise, 1e-6)).unwrap();
            assert!(gaussian::epsilon(noise, 1e-6).unwrap() <= target);
            assert!(gaussian::epsilon(noise * (1.0 - 3e-6), 1e-6).unwrap() > target);
        }
    }

    #[test]
    fn a_promise_that_cannot_be_kept_is_refused() {
        for target in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let refused = calibrate(target, |_| Ok::<f64, Infallible>(0.0));
            assert!(matches!(refused, Err(CalibrationError::Target(_))), "{target}");
        }
        for stuck in [2.0, f64::NAN, f64::INFINITY] {
            let refused = calibrate(1.0, |_| Ok::<f64, Infallible>(stuck));
            assert!(matches!(refused, Err(CalibrationError::OutOfReach { .. })), "{stuck}");
        }
    }

    #[test]
    fn an_accountant_that_refuses_is_heard() {
        let refused = calibrate(1.0, |noise| gaussian::epsilon(noise, 2.0));
        assert!(matches!(refused, Err(CalibrationError::Accountant(_))));
    }
}
