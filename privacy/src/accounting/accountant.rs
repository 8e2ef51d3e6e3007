//! An accountant for a book that grows: it is asked before and after every release, and most of what it needs stays the same.

use super::conversion::check_delta;
use super::rdp::{self, Curve};
use super::{AccountingError, Epsilon, Event, Mechanism, Relation, flattened, pld};

/// Computes what [`super::epsilon`] does, bit for bit, and remembers a mechanism's divergences and its last answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accountant {
    /// At each of [`rdp::orders`], of one release.
    divergences: Vec<(Mechanism, Relation, Vec<f64>)>,
    last: Option<Answer>,
}

#[derive(Clone, Debug)]
struct Answer {
    events: Vec<Event>,
    relation: Relation,
    delta: f64,
    epsilon: Epsilon,
}

/// All accountants give the same answers, whatever they remember.
impl PartialEq for Accountant {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Accountant {
    /// By both accountants.
    pub(crate) fn epsilon(
        &mut self,
        events: &[Event],
        relation: Relation,
        delta: f64,
    ) -> Result<Epsilon, AccountingError> {
        if let Some(epsilon) = self.recall(events, relation, delta) {
            return Ok(epsilon);
        }
        check_delta(delta)?;
        let rdp = self.rdp(events, relation, delta);
        let pld = pld::epsilon(&flattened(events, relation), relation, delta).ok();
        let epsilon = match (rdp, pld) {
            (Err(refused), None) => return Err(refused),
            (rdp, pld) => Epsilon { rdp: rdp.ok(), pld },
        };
        self.last = Some(Answer { events: events.to_vec(), relation, delta, epsilon });
        Ok(epsilon)
    }

    /// By Rényi divergence alone.
    pub(crate) fn rdp(
        &mut self,
        events: &[Event],
        relation: Relation,
        delta: f64,
    ) -> Result<f64, AccountingError> {
        let mut curve = Curve::new(&rdp::orders())?;
        for event in events {
            curve.add_scaled(self.divergences(event.mechanism(), relation)?, event.count());
        }
        curve.epsilon(delta).map(|best| best.epsilon)
    }

    /// The last answer, if it was given to this question.
    pub(crate) fn recall(&self, events: &[Event], relation: Relation, delta: f64) -> Option<Epsilon> {
        let asked = |answer: &&Answer| {
            answer.events == events && answer.relation == relation && answer.delta == delta
        };
        self.last.as_ref().filter(asked).map(|answer| answer.epsilon)
    }

    fn divergences(&mut self, mechanism: Mechanism, relation: Relation) -> Result<&[f64], AccountingError> {
        let known = self.divergences.iter().position(|(of, under, _)| (*of, *under) == (mechanism, relation));
        let at = match known {
            Some(at) => at,
            None => {
                let computed = rdp::divergences(&mechanism, relation, &rdp::orders())?;
                self.divergences.push((mechanism, relation, computed));
                self.divergences.len() - 1
            }
        };
        Ok(&self.divergences[at].2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_remembers_changes_no_answer() {
        let fixed =
            Mechanism::WithoutReplacementGaussian { noise_multiplier: 2.0, population: 100, sample: 10 };
        let poisson = Mechanism::PoissonGaussian { noise_multiplier: 3.0, sampling_rate: 0.1 };
        let mut accountant = Accountant::default();
        for releases in 1..6 {
            for (mechanism, relation) in
                [(fixed, Relation::ReplaceOne), (poisson, Relation::ZeroOut), (poisson, Relation::ReplaceOne)]
            {
                let events = [Event::new(mechanism, releases).unwrap()];
                for delta in [1e-5, 1e-6] {
                    assert_eq!(accountant.recall(&events, relation, delta), None);
                    let fresh = super::super::epsilon(&events, relation, delta).unwrap();
                    assert_eq!(accountant.epsilon(&events, relation, delta), Ok(fresh));
                    assert_eq!(accountant.recall(&events, relation, delta), Some(fresh));
                    assert_eq!(
                        accountant.rdp(&events, relation, delta).ok(),
                        rdp::epsilon(&events, relation, delta).ok()
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_no_bound_is_refused_every_time() {
        let fixed =
            Mechanism::WithoutReplacementGaussian { noise_multiplier: 2.0, population: 100, sample: 10 };
        let (mut accountant, events) = (Accountant::default(), [Event::new(fixed, 1).unwrap()]);
        for _ in 0..2 {
            assert!(accountant.epsilon(&events, Relation::AddOrRemoveOne, 1e-5).is_err());
            assert!(accountant.epsilon(&events, Relation::ReplaceOne, 1.0).is_err());
        }
    }
}
