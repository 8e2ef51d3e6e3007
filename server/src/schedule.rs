//! The learning-rate schedule across rounds: a factor on the sites' learning rate.

use std::f64::consts::PI;

use privacy::counted;
use protocol::{Positive, SpecError};
use serde::{Deserialize, Serialize};

/// How the sites' learning rate changes from round to round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Rounds over which the factor rises linearly to 1, before the decay begins.
    pub warm_up: u32,
    /// What happens after the warm-up.
    pub decay: Decay,
}

/// What happens after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// The factor stays 1.
    #[default]
    Constant,
    /// The factor is multiplied by `factor` every `every` rounds.
    Step {
        /// Rounds between two steps; at least 1.
        every: u32,
        /// The multiplier.
        factor: Positive,
    },
    /// The factor falls from 1 to `floor` along half a cosine (Loshchilov, Hutter 2017, without restarts).
    Cosine {
        /// The last factor, from 0 to 1.
        #[serde(default)]
        floor: f64,
    },
}

impl Schedule {
    /// Checks what serde cannot.
    pub(crate) fn check(&self, rounds: u32) -> Result<(), SpecError> {
        if self.warm_up >= rounds && self.warm_up > 0 {
            let message = format!(
                "a warm-up of {} does not end within {}",
                counted(self.warm_up, "round"),
                counted(rounds, "round")
            );
            return Err(SpecError::new("schedule.warm_up", message));
        }
        match self.decay {
            Decay::Step { every: 0, .. } => {
                Err(SpecError::new("schedule.decay.step.every", "0 rounds between steps; give at least 1"))
            }
            Decay::Cosine { floor } if !(0.0..=1.0).contains(&floor) => {
                Err(SpecError::new("schedule.decay.cosine.floor", format!("{floor} is not between 0 and 1")))
            }
            _ => Ok(()),
        }
    }

    /// The factor in round `round` (from 1) of `rounds`; above 0 up to 1, and never more than 1 for a decay.
    pub fn factor(&self, round: u32, rounds: u32) -> f64 {
        if round <= self.warm_up {
            return f64::from(round) / f64::from(self.warm_up + 1);
        }
        let done = round - self.warm_up - 1;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Step { every, factor } => factor.value().powi((done / every).min(1 << 20) as i32),
            Decay::Cosine { floor } => {
                let whole = (rounds - self.warm_up).max(2) - 1;
                let share = f64::from(done.min(whole)) / f64::from(whole);
                floor + (1.0 - floor) * 0.5 * (1.0 + (PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_and_each_decay_falls_as_it_says() {
        let schedule = |warm_up, decay| Schedule { warm_up, decay };
        let constant = schedule(3, Decay::Constant);
        assert_eq!([1, 2, 3, 4, 9].map(|round| constant.factor(round, 9)), [0.25, 0.5, 0.75, 1.0, 1.0]);
        let step = schedule(0, Decay::Step { every: 2, factor: Positive::new(0.5).unwrap() });
        assert_eq!([1, 2, 3, 5].map(|round| step.factor(round, 9)), [1.0, 1.0, 0.5, 0.25]);
        let cosine = schedule(0, Decay::Cosine { floor: 0.1 });
        let [first, middle, last] = [1, 6, 11].map(|round| cosine.factor(round, 11));
        assert!((first - 1.0).abs() < 1e-12 && (middle - 0.55).abs() < 1e-12 && (last - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_schedule_that_cannot_be_is_refused() {
        assert!(Schedule { warm_up: 5, decay: Decay::Constant }.check(5).is_err());
        let never = Decay::Step { every: 0, factor: Positive::new(0.5).unwrap() };
        assert!(Schedule { warm_up: 0, decay: never }.check(5).is_err());
        assert!(Schedule { warm_up: 0, decay: Decay::Cosine { floor: 2.0 } }.check(5).is_err());
    }
}
