//! From Rényi divergence to (epsilon, delta).
//!
//! Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (2020), Proposition 12. Where delta is
//! so large that total variation alone is below it (Bretagnolle and Huber 1979), epsilon is 0. It refuses to read a
//! divergence that is NaN or negative as no loss: it answers infinity.

use super::AccountingError;

/// Epsilon from one Rényi divergence: `divergence` in nats at `order` above 1, `delta` between 0 and 1.
pub(crate) fn epsilon_at(order: f64, divergence: f64, delta: f64) -> f64 {
    let is_known = divergence >= 0.0 && order > 1.0;
    if !is_known {
        return f64::INFINITY;
    }
    if delta * delta + (-divergence).exp_m1() > 0.0 {
        return 0.0;
    }
    // Very near order 1 the last term has no digits left.
    if order < 1.0 + 1e-6 {
        return f64::INFINITY;
    }
    let epsilon = divergence + (-1.0 / order).ln_1p() - (delta.ln() + order.ln()) / (order - 1.0);
    if epsilon.is_nan() { f64::INFINITY } else { epsilon.max(0.0) }
}

/// Refuses a delta that bounds nothing.
pub(crate) fn check_delta(delta: f64) -> Result<(), AccountingError> {
    if delta > 0.0 && delta < 1.0 { Ok(()) } else { Err(AccountingError::Delta { delta, least: 0.0 }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_that_is_not_a_number_bounds_nothing() {
        assert_eq!(epsilon_at(2.0, f64::NAN, 1e-5), f64::INFINITY);
        assert_eq!(epsilon_at(2.0, -1e-9, 1e-5), f64::INFINITY);
        assert_eq!(epsilon_at(2.0, f64::INFINITY, 1e-5), f64::INFINITY);
        assert_eq!(epsilon_at(1.0, 1.0, 1e-5), f64::INFINITY);
    }

    #[test]
    fn no_divergence_costs_nothing_and_some_costs_something() {
        assert_eq!(epsilon_at(2.0, 0.0, 1e-5), 0.0);
        assert!(epsilon_at(64.0, 1e-9, 1e-5) > 0.0);
    }

    #[test]
    fn a_delta_outside_its_interval_is_refused() {
        for delta in [f64::NAN, f64::INFINITY, -1e-5, 0.0, 1.0] {
            assert!(check_delta(delta).is_err(), "{delta}");
        }
    }
}
