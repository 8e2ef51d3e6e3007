//! The exact cost of Gaussian releases to which every unit may contribute.
//!
//! Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (2018), Theorem 8; composition of
//! Gaussians as in Dong, Roth, Su, "Gaussian Differential Privacy" (2019), Corollary 3.3. The classic square root of
//! 2 ln(1.25/delta) holds for epsilon below 1 only and is not offered.
//!
//! It knows of no sampling: a sampled event is refused. Integer noise is not exactly Gaussian; for it the Rényi
//! accountant is the rigorous one.

use super::conversion::check_delta;
use super::special::log_ndtr;
use super::{AccountingError, Event, Mechanism, Relation, tree};

/// The least delta at which one Gaussian release of this noise multiplier (0 or more, over the sensitivity) is
/// (`epsilon`, delta)-private; `epsilon` is 0 or more.
///
/// # Errors
/// [`AccountingError::Parameter`] for a number out of range.
pub fn delta(noise_multiplier: f64, epsilon: f64) -> Result<f64, AccountingError> {
    check_noise(noise_multiplier)?;
    check_epsilon(epsilon)?;
    Ok(log_delta(1.0 / noise_multiplier, epsilon).exp())
}

/// The least epsilon at which one Gaussian release of this noise multiplier (0 or more, over the sensitivity) is
/// (epsilon, `delta`)-private. Without noise it is infinite. Rounded up.
///
/// # Errors
/// [`AccountingError`] for a number out of range.
pub fn epsilon(noise_multiplier: f64, delta: f64) -> Result<f64, AccountingError> {
    check_noise(noise_multiplier)?;
    check_delta(delta)?;
    let mean = 1.0 / noise_multiplier;
    if !(mean * mean).is_finite() {
        return Ok(f64::INFINITY);
    }
    let is_enough = |epsilon: f64| log_delta(mean, epsilon) <= delta.ln();
    if is_enough(0.0) {
        return Ok(0.0);
    }
    let mut above = 1.0;
    while !is_enough(above) {
        above *= 2.0;
        if !f64::is_finite(above) {
            return Ok(f64::INFINITY);
        }
    }
    Ok(bisect(0.0, above, is_enough))
}

/// The least noise multiplier (over the sensitivity) at which one Gaussian release is (`epsilon`, `delta`)-private.
/// `epsilon` is above 0. Rounded up.
///
/// # Errors
/// [`AccountingError`] for a number out of range.
pub fn noise_multiplier(epsilon: f64, delta: f64) -> Result<f64, AccountingError> {
    check_epsilon(epsilon)?;
    check_delta(delta)?;
    let is_enough = |noise: f64| log_delta(1.0 / noise, epsilon) <= delta.ln();
    let mut above = 1.0;
    while !is_enough(above) && above < 1e150 {
        above *= 2.0;
    }
    Ok(bisect(0.0, above, is_enough))
}

/// The noise multiplier of the one release that says as much as a release whose layers are clipped and noised each on their
/// own: (sum of (clip / deviation)^2)^(-1/2) over its `layers`, each a clipping norm (0 or more) and the standard deviation of
/// its noise (above 0), both finite and in the same unit. McMahan et al. (2018) clip so.
///
/// Infinite when every norm is 0. Rounded down by more than the rounding of the sum.
///
/// # Errors
/// [`AccountingError::Parameter`] for no layers, or a number out of range.
pub fn per_layer(layers: &[(f64, f64)]) -> Result<f64, AccountingError> {
    let refuse = |name, value, range| Err(AccountingError::Parameter { name, value, range });
    if layers.is_empty() {
        return refuse("the number of layers", 0.0, "the whole numbers from 1");
    }
    let mut precision = 0.0;
    for &(clip, deviation) in layers {
        if !(clip >= 0.0 && clip.is_finite()) {
            return refuse("a layer's clipping norm", clip, "the finite numbers from 0");
        }
        if !(deviation > 0.0 && deviation.is_finite()) {
            return refuse("a layer's noise", deviation, "the finite numbers above 0");
        }
        precision += (clip / deviation).powi(2);
    }
    Ok(precision.sqrt().recip() * (1.0 - 1e-12))
}

/// The noise multiplier, over the sensitivity, of the one Gaussian release that says as much as all of `events`; `None`
/// for no events. 0 when one of them has no noise.
///
/// # Errors
/// [`AccountingError::Unsupported`] when an event is sampled, or is a tree under another relation than
/// [`Relation::ZeroOut`]; [`AccountingError::Parameter`] for a tree that is too large.
pub fn composed(events: &[Event], relation: Relation) -> Result<Option<f64>, AccountingError> {
    let mut precision = 0.0;
    for event in events {
        precision += event.count() as f64 * precision_of(&event.mechanism(), relation)?;
    }
    Ok((!events.is_empty()).then(|| 1.0 / f64::sqrt(precision)))
}

/// One over the square of the noise multiplier over the sensitivity: what adds up when Gaussians compose.
pub(crate) fn precision_of(mechanism: &Mechanism, relation: Relation) -> Result<f64, AccountingError> {
    let unsupported = AccountingError::Unsupported {
        accountant: "the exact gaussian",
        mechanism: mechanism.name(),
        relation,
    };
    match *mechanism {
        Mechanism::Gaussian { noise_multiplier } => {
            Ok(precision(noise_multiplier / relation.sensitivity(), 1.0))
        }
        Mechanism::Tree { noise_multiplier, steps, participations_max, separation_min }
            if relation == Relation::ZeroOut =>
        {
            let squares = tree::sensitivity_squared(steps, participations_max, separation_min)?;
            Ok(precision(noise_multiplier, squares))
        }
        Mechanism::Tree { .. }
        | Mechanism::PoissonGaussian { .. }
        | Mechanism::WithoutReplacementGaussian { .. }
        | Mechanism::TruncatedPoissonGaussian { .. } => Err(unsupported),
    }
}

fn precision(noise_multiplier: f64, sensitivity_squared: f64) -> f64 {
    sensitivity_squared / (noise_multiplier * noise_multiplier)
}

/// ln delta(epsilon) for two unit Gaussians `mean` apart.
fn log_delta(mean: f64, epsilon: f64) -> f64 {
    if mean.is_infinite() {
        return 0.0;
    }
    let middle = epsilon / mean;
    let above = log_ndtr(0.5 * mean - middle);
    let below = epsilon + log_ndtr(-0.5 * mean - middle);
    if below >= above { f64::NEG_INFINITY } else { above + (-(below - above).exp()).ln_1p() }
}

/// The end that is enough of the narrowest bracket that f64 can tell; `above` is enough, `below` is not.
fn bisect(mut below: f64, mut above: f64, is_enough: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = 0.5 * (below + above);
        if middle <= below || middle >= above {
            return above;
        }
        if is_enough(middle) {
            above = middle;
        } else {
            below = middle;
        }
    }
}

fn check_noise(value: f64) -> Result<(), AccountingError> {
    let range = "the finite numbers from 0";
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(AccountingError::Parameter { name: "the noise multiplier", value, range })
    }
}

fn check_epsilon(value: f64) -> Result<(), AccountingError> {
    let range = "the finite numbers from 0";
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(AccountingError::Parameter { name: "epsilon", value, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(noise_multiplier: f64, count: u64) -> Event {
        Event::new(Mechanism::Gaussian { noise_multiplier }, count).unwrap()
    }

    #[test]
    fn epsilon_delta_and_noise_agree() {
        for noise in [0.05, 0.5, 1.0, 7.0, 80.0] {
            let epsilon = epsilon(noise, 1e-6).unwrap();
            assert!((delta(noise, epsilon).unwrap() / 1e-6 - 1.0).abs() < 1e-8, "{noise}");
            assert!((noise_multiplier(epsilon, 1e-6).unwrap() / noise - 1.0).abs() < 1e-8, "{noise}");
        }
    }

    #[test]
    fn no_noise_has_no_bound_and_much_noise_costs_nothing() {
        assert_eq!(epsilon(0.0, 1e-5).unwrap(), f64::INFINITY);
        assert_eq!(epsilon(1e-200, 1e-5).unwrap(), f64::INFINITY);
        assert_eq!(epsilon(1e9, 1e-5).unwrap(), 0.0);
        assert_eq!(delta(0.0, 5.0).unwrap(), 1.0);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(epsilon(bad, 1e-5).is_err() && epsilon(1.0, bad).is_err());
            assert!(delta(bad, 1.0).is_err() && delta(1.0, bad).is_err());
            assert!(noise_multiplier(bad, 1e-5).is_err() && noise_multiplier(1.0, bad).is_err());
        }
    }

    #[test]
    fn composition_adds_precisions_and_replacing_counts_twice() {
        let events = [gaussian(10.0, 75), gaussian(20.0, 100)];
        assert!((composed(&events, Relation::AddOrRemoveOne).unwrap().unwrap() - 1.0).abs() < 1e-12);
        assert!((composed(&events, Relation::ReplaceOne).unwrap().unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(composed(&[], Relation::ZeroOut).unwrap(), None);
        assert_eq!(composed(&[gaussian(0.0, 1), gaussian(1.0, 1)], Relation::ZeroOut).unwrap(), Some(0.0));
    }

    #[test]
    fn layers_with_equal_shares_of_the_noise_are_worth_what_the_whole_is() {
        let (noise, norms) = (1.5, [0.1_f64, 3.0, 0.7, 0.0, 20.0]);
        let share = noise * (norms.len() as f64 - 1.0).sqrt();
        // The layer of norm 0 says nothing and takes no share.
        let layers: Vec<_> = norms.iter().map(|clip| (*clip, share * clip.max(1e-9))).collect();
        let found = per_layer(&layers).unwrap();
        assert!((found / noise - 1.0).abs() < 1e-11 && found < noise, "{found}");
        // One deviation for all is the flat release over the norm of all.
        let norm = norms.iter().map(|clip| clip * clip).sum::<f64>().sqrt();
        let flat: Vec<_> = norms.iter().map(|clip| (*clip, 2.0 * norm)).collect();
        assert!((per_layer(&flat).unwrap() - 2.0).abs() < 1e-11);
    }

    #[test]
    fn layers_out_of_range_are_refused() {
        assert!(per_layer(&[]).is_err() && per_layer(&[(1.0, 1.0), (1.0, 0.0)]).is_err());
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(per_layer(&[(bad, 1.0)]).is_err() && per_layer(&[(1.0, bad)]).is_err());
        }
        assert_eq!(per_layer(&[(0.0, 1.0)]).unwrap(), f64::INFINITY);
        assert_eq!(per_layer(&[(1e200, 1e-200)]).unwrap(), 0.0);
    }

    #[test]
    fn a_sampled_event_is_refused() {
        let sampled = Mechanism::PoissonGaussian { noise_multiplier: 1.0, sampling_rate: 0.5 };
        let refused = composed(&[Event::new(sampled, 1).unwrap()], Relation::AddOrRemoveOne);
        assert!(matches!(refused, Err(AccountingError::Unsupported { .. })));
    }
}
