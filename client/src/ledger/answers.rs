//! Epsilons of events, by the fast accountant where that is enough, else by the tightest one, whose answers are remembered: a site that has
//! spent its budget is asked the same at every round. An answer follows from its question alone, so that nothing decides otherwise for it.

use std::sync::{Mutex, PoisonError};

use privacy::accounting::{self, AccountingError, Event, Relation};

/// Answers that are held: before and after a task, for each kind of unit, by the site's budget and the plan's.
const ANSWERS_MAX: usize = 8;

/// The newest answers of the tightest accountant.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Vec<Answer>>);

#[derive(Debug)]
struct Answer {
    events: Vec<Event>,
    delta: f64,
    epsilon: f64,
}

impl Answers {
    /// Epsilon by the tightest accountant; where the fast one is within `enough`, by that.
    ///
    /// # Errors
    /// [`AccountingError`] when no accountant has a bound.
    pub(super) fn best(&self, events: &[Event], delta: f64, enough: f64) -> Result<f64, AccountingError> {
        if events.is_empty() {
            return Ok(0.0);
        }
        if enough >= 0.0
            && let Ok(epsilon) = accounting::rdp::epsilon(events, Relation::ZeroOut, delta)
            && epsilon <= enough
        {
            return Ok(epsilon);
        }
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answers.iter().find(|one| one.events == events && one.delta == delta) {
            return Ok(known.epsilon);
        }
        let epsilon = accounting::epsilon(events, Relation::ZeroOut, delta)?.best();
        if answers.len() == ANSWERS_MAX {
            answers.remove(0);
        }
        answers.push(Answer { events: events.to_vec(), delta, epsilon });
        Ok(epsilon)
    }
}

/// What was remembered is no part of an account.
impl Clone for Answers {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Answers {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use privacy::accounting::Mechanism;

    #[test]
    fn what_is_remembered_changes_no_answer_and_few_are() {
        let answers = Answers::default();
        for count in (1..12).chain(1..12) {
            let events = [Event::new(Mechanism::Gaussian { noise_multiplier: 4.0 }, count).unwrap()];
            for delta in [1e-5, 1e-6] {
                let fresh = accounting::epsilon(&events, Relation::ZeroOut, delta).unwrap().best();
                let fast = accounting::rdp::epsilon(&events, Relation::ZeroOut, delta).unwrap();
                for _ in 0..2 {
                    assert_eq!(answers.best(&events, delta, f64::NEG_INFINITY), Ok(fresh));
                    assert_eq!(answers.best(&events, delta, fast), Ok(fast));
                }
            }
            assert!(answers.0.lock().unwrap().len() <= ANSWERS_MAX);
        }
        assert_eq!(answers.best(&[], 1e-5, 1.0), Ok(0.0));
        let bare = [Event::new(Mechanism::Gaussian { noise_multiplier: 4.0 }, 1).unwrap()];
        assert!(answers.best(&bare, 2.0, 1.0).is_err());
    }
}
