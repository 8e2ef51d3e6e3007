//! Zero-concentrated differential privacy: one number that adds up.
//!
//! Bun and Steinke, "Concentrated Differential Privacy: Simplifications, Extensions, and Lower Bounds" (2016); the
//! conversion is Canonne, Kamath, Steinke (2020), Proposition 12, over every order. It holds for the discrete Gaussian
//! as it does for the continuous one. It knows of no sampling: a sampled event is refused.

use super::conversion::{check_delta, epsilon_at};
use super::{AccountingError, Event, Relation, gaussian};

/// The sum of the events' rho: squared sensitivity over twice the noise's variance, each.
///
/// # Errors
/// As [`gaussian::composed`].
pub fn rho(events: &[Event], relation: Relation) -> Result<f64, AccountingError> {
    let mut sum = 0.0;
    for event in events {
        sum += 0.5 * event.count() as f64 * gaussian::precision_of(&event.mechanism(), relation)?;
    }
    Ok(sum)
}

/// Epsilon at `delta` for everything that is `rho`-zCDP; at most 1e-6 above the best order's.
///
/// # Errors
/// [`AccountingError`] for a `rho` that is negative or NaN, or a delta outside 0 to 1.
pub fn epsilon(rho: f64, delta: f64) -> Result<f64, AccountingError> {
    check_rho(rho)?;
    check_delta(delta)?;
    let at = |exponent: f64| epsilon_at(1.0 + exponent.exp(), rho * (1.0 + exponent.exp()), delta);
    // Golden section over ln(order - 1); every order is a valid bound, so a search that stops early is only loose.
    let ratio = 0.5 * (5.0_f64.sqrt() - 1.0);
    let (mut low, mut high) = (-20.0, 40.0);
    let mut left = high - ratio * (high - low);
    let mut right = low + ratio * (high - low);
    while high - low > 1e-7 {
        if at(left) <= at(right) {
            (high, right) = (right, left);
            left = high - ratio * (high - low);
        } else {
            (low, left) = (left, right);
            right = low + ratio * (high - low);
        }
    }
    Ok(at(left).min(at(right)))
}

/// The looser bound that is often quoted, rho + 2 sqrt(rho ln(1/delta)). For display beside the others only.
///
/// # Errors
/// As [`epsilon`].
pub fn epsilon_simple(rho: f64, delta: f64) -> Result<f64, AccountingError> {
    check_rho(rho)?;
    check_delta(delta)?;
    Ok(rho + 2.0 * (-rho * delta.ln()).sqrt())
}

/// Epsilon at `delta` when all of `rho` comes from Gaussian noise (0 or more): exact, see [`gaussian::epsilon`].
///
/// # Errors
/// As [`epsilon`].
pub fn epsilon_gaussian(rho: f64, delta: f64) -> Result<f64, AccountingError> {
    check_rho(rho)?;
    check_delta(delta)?;
    if rho == 0.0 { Ok(0.0) } else { gaussian::epsilon(1.0 / (2.0 * rho).sqrt(), delta) }
}

fn check_rho(value: f64) -> Result<(), AccountingError> {
    let range = "the numbers from 0 to infinity";
    if value >= 0.0 { Ok(()) } else { Err(AccountingError::Parameter { name: "rho", value, range }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_ordered_and_meet_their_ends() {
        for rho in [1e-6, 1e-3, 0.1, 1.0, 50.0, 1e6] {
            let exact = epsilon_gaussian(rho, 1e-6).unwrap();
            let best = epsilon(rho, 1e-6).unwrap();
            assert!(exact <= best && best <= epsilon_simple(rho, 1e-6).unwrap(), "{rho}");
        }
        assert_eq!(epsilon(0.0, 1e-6).unwrap(), 0.0);
        assert_eq!(epsilon_gaussian(0.0, 1e-6).unwrap(), 0.0);
        assert_eq!(epsilon(f64::INFINITY, 1e-6).unwrap(), f64::INFINITY);
        assert_eq!(epsilon_gaussian(f64::INFINITY, 1e-6).unwrap(), f64::INFINITY);
    }

    #[test]
    fn a_rho_that_is_negative_or_no_number_is_refused() {
        assert!(
            epsilon(-1.0, 1e-6).is_err()
                && epsilon(f64::NAN, 1e-6).is_err()
                && epsilon(1.0, f64::NAN).is_err()
        );
    }
}
