//! What to charge for releases of which it is no longer known how they were made.
//!
//! A ledger that was brought back from a copy does not know the releases made since. The guess must not be below the
//! truth, so the accountant decides which charge costs most, and never the noise multiplier alone: a release to which
//! every unit contributes with noise 1.1 tells far more than one with noise 1.0 over one unit in a hundred.

use super::{Charge, Composition, Ledger, Terms};
use crate::accounting::{AccountingError, Mechanism};

impl Ledger {
    /// Of `candidates`, the charge under which `releases` releases more (at least 1) raise epsilon most, by the
    /// accountants that decide about this budget; `None` without candidates.
    ///
    /// The charge that is given back pays for every single release and knows no limit of participations: lost releases
    /// may belong to several runs, and a limit holds within one run only. For the same reason a mechanism over all rounds
    /// of a run (correlated noise) is paid for once a release.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound for a candidate beside what is charged.
    pub fn dearest_charge<'a>(
        &self,
        candidates: impl IntoIterator<Item = &'a Charge>,
        releases: u64,
    ) -> Result<Option<Charge>, AccountingError> {
        let mut mechanisms: Vec<Mechanism> = Vec::new();
        for Charge { mechanism, composition: Composition::Each { at_most: _ } | Composition::Whole } in
            candidates
        {
            if !mechanisms.contains(mechanism) {
                mechanisms.push(*mechanism);
            }
        }
        let mut dearest: Option<(f64, Mechanism)> = None;
        for mechanism in mechanisms {
            let epsilon = self.epsilon_with(mechanism, releases)?;
            let costs_more = dearest.is_none_or(|(most, known)| {
                // Two that cost the same, such as nothing at all at a large delta: the one with less noise.
                let less_noise = mechanism.noise_multiplier() < known.noise_multiplier();
                epsilon > most || (epsilon == most && less_noise)
            });
            if costs_more {
                dearest = Some((epsilon, mechanism));
            }
        }
        let each = |(_, mechanism)| Charge { mechanism, composition: Composition::Each { at_most: None } };
        Ok(dearest.map(each))
    }

    /// Epsilon of everything charged and `releases` more by `mechanism`, in a run of which the book knows nothing. A mechanism
    /// without noise has no bound.
    fn epsilon_with(&self, mechanism: Mechanism, releases: u64) -> Result<f64, AccountingError> {
        let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
        if charge.event(1).is_none() || mechanism.noise_multiplier() <= 0.0 {
            return Ok(f64::INFINITY);
        }
        let mut after = self.clone();
        super::grow(&mut after.account("", &charge).reserved, releases.max(1));
        let Terms { relation, delta, .. } = self.terms;
        Ok(after.accountant.epsilon(&after.events(), relation, delta)?.best())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::Relation;
    use crate::ledger::Unit;

    const POISSON: Mechanism = Mechanism::PoissonGaussian { noise_multiplier: 1.0, sampling_rate: 0.01 };
    const EVERY: Mechanism = Mechanism::Gaussian { noise_multiplier: 1.1 };

    fn ledger(relation: Relation, delta: f64) -> Ledger {
        let population = "wards".to_owned();
        let terms = Terms { population, unit: Unit::Example, relation, delta, epsilon_max: 1e6 };
        Ledger::found(terms).unwrap().0
    }

    fn each(mechanism: Mechanism) -> Charge {
        Charge { mechanism, composition: Composition::Each { at_most: None } }
    }

    #[test]
    fn what_raises_epsilon_most_is_charged_and_not_what_has_the_least_noise() {
        let ledger = ledger(Relation::ZeroOut, 1e-5);
        let (poisson, every) = (each(POISSON), each(EVERY));
        for candidates in [[&poisson, &every], [&every, &poisson]] {
            for releases in [0, 1, 30] {
                let found = ledger.dearest_charge(candidates, releases).unwrap();
                assert_eq!(found, Some(every.clone()), "{releases} releases");
            }
        }
        assert_eq!(ledger.dearest_charge([], 3), Ok(None));
    }

    #[test]
    fn no_candidate_costs_more_than_the_one_that_is_chosen_whatever_is_reserved_already() {
        let mechanisms = [
            POISSON,
            EVERY,
            Mechanism::PoissonGaussian { noise_multiplier: 0.6, sampling_rate: 0.001 },
            Mechanism::Gaussian { noise_multiplier: 20.0 },
            Mechanism::Tree { noise_multiplier: 2.0, steps: 64, participations_max: 4, separation_min: 8 },
        ];
        let candidates: Vec<Charge> = mechanisms.into_iter().map(each).collect();
        for (reserved, releases) in [(0, 1), (1, 7), (4, 3)] {
            let mut ledger = ledger(Relation::ZeroOut, 1e-5);
            let (_permit, _) = ledger.reserve("r", 1, &candidates[reserved], 2).unwrap();
            let chosen = ledger.dearest_charge(&candidates, releases).unwrap().unwrap();
            let cost = |charge: &Charge| ledger.epsilon_with(charge.mechanism, releases).unwrap();
            let most = candidates.iter().map(cost).fold(0.0, f64::max);
            assert_eq!(cost(&chosen), most, "{releases} of {chosen:?}");
        }
    }

    #[test]
    fn a_limit_of_participations_within_a_run_makes_no_lost_release_free() {
        let ledger = ledger(Relation::ZeroOut, 1e-5);
        let limited = Charge { mechanism: EVERY, composition: Composition::Each { at_most: Some(1) } };
        let whole = Charge { mechanism: EVERY, composition: Composition::Whole };
        for candidate in [&limited, &whole] {
            assert_eq!(ledger.dearest_charge([candidate], 5).unwrap(), Some(each(EVERY)));
        }
    }

    #[test]
    fn where_everything_costs_nothing_the_least_noise_is_charged() {
        let ledger = ledger(Relation::AddOrRemoveOne, 1e-5);
        let quiet = |noise_multiplier| each(Mechanism::Gaussian { noise_multiplier });
        let (one, other) = (quiet(1e7), quiet(1e6));
        assert_eq!(ledger.dearest_charge([&one, &other], 1).unwrap(), Some(other.clone()));
        assert_eq!(ledger.dearest_charge([&other, &one], 1).unwrap(), Some(other));
    }

    #[test]
    fn a_candidate_that_no_accountant_knows_is_an_error_and_not_cheap() {
        let ledger = ledger(Relation::AddOrRemoveOne, 1e-5);
        let fixed =
            Mechanism::WithoutReplacementGaussian { noise_multiplier: 4.0, population: 100, sample: 10 };
        assert!(ledger.dearest_charge([&each(EVERY), &each(fixed)], 1).is_err());
    }
}
