//! How much a run has given away: epsilon at a delta, from the events of its ledger.
//!
//! Two accountants are written out. Rényi differential privacy ([`rdp`]) is rigorous for the integer noise that is
//! really added, and fast; the privacy loss distribution is tighter. Unsampled Gaussian releases have an exact
//! answer ([`gaussian`]). Nothing here draws noise or looks at an update, and no accountant ever answers 0 to a question
//! it does not understand: it refuses.

mod accountant;
pub mod calibration;
mod conversion;
pub mod distributed;
mod event;
mod figure;
pub mod gaussian;
pub mod matrix;
pub mod pld;
mod promise;
pub mod rdp;
mod special;
pub mod tree;
pub mod zcdp;

pub(crate) use accountant::Accountant;
pub use event::{AccountingError, EVENT_VERSION, Event, EventError, Mechanism, Relation};
pub use figure::Figure;
pub use promise::{
    DELTA_MAX, MULTIPLIER_MAX, MULTIPLIER_MIN, PromiseError, promised_delta, promised_multiplier,
};

/// What the events of a ledger cost, by each accountant that has a bound for them all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epsilon {
    /// By Rényi divergence.
    pub rdp: Option<f64>,
    /// By the privacy loss distribution.
    pub pld: Option<f64>,
}

impl Epsilon {
    /// The tightest of the bounds: each of them holds. At least one of them is there.
    pub fn best(&self) -> f64 {
        let bounds = [self.rdp, self.pld];
        bounds.into_iter().flatten().fold(f64::INFINITY, f64::min)
    }
}

/// Epsilon at `delta` (0 to 1, both excluded) of all `events` together, by both accountants.
///
/// An accountant that has no bound for these events, or that cannot resolve so small a delta, is left out.
///
/// # Errors
/// The Rényi accountant's [`AccountingError`] when neither of them has a bound.
pub fn epsilon(events: &[Event], relation: Relation, delta: f64) -> Result<Epsilon, AccountingError> {
    Accountant::default().epsilon(events, relation, delta)
}

/// The events with every tree as the one Gaussian release that says as much, where there is one.
fn flattened(events: &[Event], relation: Relation) -> Vec<Event> {
    let flatten = |event: &Event| {
        let mechanism = event.mechanism();
        if relation != Relation::ZeroOut || !matches!(mechanism, Mechanism::Tree { .. }) {
            return None;
        }
        let precision = gaussian::precision_of(&mechanism, relation).ok()?;
        Event::new(Mechanism::Gaussian { noise_multiplier: 1.0 / precision.sqrt() }, event.count()).ok()
    };
    events.iter().map(|event| flatten(event).unwrap_or(*event)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(mechanism: Mechanism, count: u64) -> Event {
        Event::new(mechanism, count).unwrap()
    }

    #[test]
    fn either_accountant_may_answer_alone() {
        let fixed =
            Mechanism::WithoutReplacementGaussian { noise_multiplier: 4.0, population: 100, sample: 10 };
        let by_rdp = epsilon(&[event(fixed, 3)], Relation::ReplaceOne, 1e-5).unwrap();
        assert!(by_rdp.pld.is_none() && by_rdp.rdp == Some(by_rdp.best()));
        let poisson = Mechanism::PoissonGaussian { noise_multiplier: 4.0, sampling_rate: 0.1 };
        let by_pld = epsilon(&[event(poisson, 3)], Relation::ReplaceOne, 1e-5).unwrap();
        assert!(by_pld.rdp.is_none() && by_pld.pld == Some(by_pld.best()));
        let tiny = epsilon(&[event(poisson, 3)], Relation::ZeroOut, 1e-15).unwrap();
        assert!(tiny.pld.is_none() && tiny.rdp.is_some());
    }

    #[test]
    fn a_question_that_neither_can_answer_is_refused() {
        let fixed =
            Mechanism::WithoutReplacementGaussian { noise_multiplier: 4.0, population: 100, sample: 10 };
        assert!(epsilon(&[event(fixed, 1)], Relation::AddOrRemoveOne, 1e-5).is_err());
        for delta in [0.0, 1.0, f64::NAN] {
            assert!(epsilon(&[], Relation::ZeroOut, delta).is_err(), "{delta}");
        }
    }

    #[test]
    fn no_noise_has_no_bound_with_either() {
        let bare = event(Mechanism::PoissonGaussian { noise_multiplier: 0.0, sampling_rate: 0.1 }, 1);
        let found = epsilon(&[bare], Relation::AddOrRemoveOne, 1e-5).unwrap();
        assert_eq!(found, Epsilon { rdp: Some(f64::INFINITY), pld: Some(f64::INFINITY) });
        assert_eq!(found.best(), f64::INFINITY);
    }

    #[test]
    fn both_accountants_know_the_same_tree() {
        let tree =
            Mechanism::Tree { noise_multiplier: 6.0, steps: 128, participations_max: 4, separation_min: 31 };
        let found = epsilon(&[event(tree, 1)], Relation::ZeroOut, 1e-6).unwrap();
        let exact = zcdp::epsilon_gaussian(52.0 / 72.0, 1e-6).unwrap();
        assert!(
            found.best() >= exact * (1.0 - 1e-9) && found.best() <= exact * 1.01,
            "{found:?}, exactly {exact}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_loss_distribution_is_never_above_the_renyi_bound(
            noise in 0.7_f64..6.0, rate in 1e-3_f64..0.3, count in 1_u64..500,
        ) {
            let sampled = Mechanism::PoissonGaussian { noise_multiplier: noise, sampling_rate: rate };
            let events = [event(sampled, count), event(Mechanism::Gaussian { noise_multiplier: 5.0 * noise }, 3)];
            let found = epsilon(&events, Relation::AddOrRemoveOne, 1e-6).unwrap();
            let (rdp, pld) = (found.rdp.unwrap(), found.pld.unwrap());
            prop_assert!(rdp >= pld - 1e-3, "{} and {}", rdp, pld);
            // Not above without end, which would be one of the two under-reporting.
            prop_assert!(pld >= 0.15 * rdp, "{} and {}", rdp, pld);
        }
    }
}
