//! A clipping norm that follows a quantile of the updates' norms, privately.
//!
//! Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping" (2021, arXiv
//! 1905.03871), Algorithm 1. Each client sends one bit beside its update: 1 when its norm, before clipping, is at most
//! the bound. The bound shrinks when more clients than wanted are within it and grows when fewer are; with the bit the
//! other way round it would run away.
//!
//! It draws no noise: the sum of bits comes with its noise. It divides by a fixed number of clients and never by the
//! number that came.

/// What a [`QuantileClip`] follows, and how fast. The defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantileRule {
    /// The share of clients that should be within the bound, 0 to 1.
    pub quantile: f64,
    /// The learning rate of the bound's logarithm, above 0, at most 10.
    pub rate: f64,
    /// The bound never goes below this; above 0.
    pub bound_min: f64,
    /// The bound never goes above this; finite.
    pub bound_max: f64,
    /// The fixed number of clients a round is counted as, at least 1.
    pub clients: u64,
}

impl QuantileRule {
    /// The median at rate 0.2, over rounds counted as `clients`, with bounds from 1e-6 to 1e6.
    pub fn median(clients: u64) -> Self {
        Self { quantile: 0.5, rate: 0.2, bound_min: 1e-6, bound_max: 1e6, clients }
    }
}

/// A clipping norm and the rule it follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantileClip {
    rule: QuantileRule,
    bound: f64,
}

/// A rule or a number that adaptive clipping cannot work with.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdaptiveError {
    /// A parameter out of its range.
    #[error("{name} is {value}, outside {range}; correct it")]
    Parameter {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The noise on the count alone is worth more than the whole noise multiplier allows.
    #[error(
        "count noise {count_noise} is too small for noise multiplier {noise_multiplier}: twice it must be above; raise it"
    )]
    Split {
        /// The wanted multiplier of the joint release.
        noise_multiplier: f64,
        /// Standard deviation of the noise on the count.
        count_noise: f64,
    },
}

impl QuantileClip {
    /// Starts at `bound`, within the rule's limits.
    ///
    /// # Errors
    /// [`AdaptiveError::Parameter`] for a number out of range.
    pub fn new(rule: QuantileRule, bound: f64) -> Result<Self, AdaptiveError> {
        let check = |name, value: f64, range, is_good: bool| {
            if is_good { Ok(()) } else { Err(AdaptiveError::Parameter { name, value, range }) }
        };
        let QuantileRule { quantile, rate, bound_min, bound_max, clients } = rule;
        check("the quantile", quantile, "0 to 1", (0.0..=1.0).contains(&quantile))?;
        check("the clipping rate", rate, "0, excluded, to 10", rate > 0.0 && rate <= 10.0)?;
        check("the least bound", bound_min, "1e-30 to 1e30", (1e-30..=1e30).contains(&bound_min))?;
        check(
            "the largest bound",
            bound_max,
            "the least bound to 1e30",
            (bound_min..=1e30).contains(&bound_max),
        )?;
        check("the number of clients", clients as f64, "the whole numbers from 1", clients >= 1)?;
        check("the first bound", bound, "the rule's limits", (bound_min..=bound_max).contains(&bound))?;
        Ok(Self { rule, bound })
    }

    /// The clipping norm of this round. Public: it is computed from noised sums only.
    pub fn bound(&self) -> f64 {
        self.bound
    }

    /// One client's bit, centred and doubled so that it is an integer whose sum moves by at most 1 when a client comes
    /// or goes: 1 when `norm`, before clipping, is within the bound, else -1 (also for NaN).
    pub fn vote(&self, norm: f64) -> i64 {
        if norm <= self.bound { 1 } else { -1 }
    }

    /// Moves the bound, given the noised sum of the votes.
    ///
    /// # Errors
    /// [`AdaptiveError::Parameter`] for a sum that is NaN; the bound stays as it was.
    pub fn update(&mut self, noised_votes: f64) -> Result<(), AdaptiveError> {
        if noised_votes.is_nan() {
            let (name, range) = ("the sum of votes", "the numbers");
            return Err(AdaptiveError::Parameter { name, value: noised_votes, range });
        }
        let share = (0.5 * noised_votes / self.rule.clients as f64 + 0.5).clamp(0.0, 1.0);
        let step = (-self.rule.rate * (share - self.rule.quantile)).exp();
        self.bound = (self.bound * step).clamp(self.rule.bound_min, self.rule.bound_max);
        Ok(())
    }
}

/// The noise multiplier left for the update when the count carries noise of deviation `count_noise` (on votes of
/// one half) and both together are to be one Gaussian release of `noise_multiplier`.
///
/// # Errors
/// [`AdaptiveError::Split`] when the count alone would use it up; [`AdaptiveError::Parameter`] for a number that is
/// not finite and above 0.
pub fn update_noise_multiplier(noise_multiplier: f64, count_noise: f64) -> Result<f64, AdaptiveError> {
    for (name, value) in [("the noise multiplier", noise_multiplier), ("the count's noise", count_noise)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(AdaptiveError::Parameter { name, value, range: "the finite numbers above 0" });
        }
    }
    let ratio = noise_multiplier / (2.0 * count_noise);
    let left = noise_multiplier / (1.0 - ratio * ratio).sqrt();
    if ratio < 1.0 && left.is_finite() {
        Ok(left)
    } else {
        Err(AdaptiveError::Split { noise_multiplier, count_noise })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Norms whose median is 1: exp of a triangular spread of even points.
    fn norms() -> Vec<f64> {
        (-500..=500).map(|i| (f64::from(i) / 250.0).exp()).collect()
    }

    #[test]
    fn the_bound_finds_the_median_from_far_below_and_far_above() {
        for start in [0.1, 1.0, 5.0] {
            let norms = norms();
            let mut clip = QuantileClip::new(QuantileRule::median(norms.len() as u64), start).unwrap();
            for _ in 0..100 {
                let votes: i64 = norms.iter().map(|norm| clip.vote(*norm)).sum();
                clip.update(votes as f64).unwrap();
            }
            assert!((clip.bound() - 1.0).abs() < 0.05, "from {start} to {}", clip.bound());
        }
    }

    #[test]
    fn the_bound_stays_within_its_limits() {
        let rule = QuantileRule { bound_min: 0.5, bound_max: 2.0, ..QuantileRule::median(1) };
        let mut clip = QuantileClip::new(rule, 1.0).unwrap();
        for (votes, wanted) in [(f64::INFINITY, 0.5), (-1e300, 2.0)] {
            (0..50).for_each(|_| clip.update(votes).unwrap());
            assert_eq!(clip.bound(), wanted);
        }
        assert!(clip.update(f64::NAN).is_err());
        assert_eq!(clip.bound(), 2.0);
    }

    #[test]
    fn a_norm_on_the_bound_is_within_it_and_one_that_is_no_number_is_not() {
        let clip = QuantileClip::new(QuantileRule::median(1), 1.0).unwrap();
        assert_eq!(
            [0.0, 1.0, 1.0 + 1e-15, f64::INFINITY, f64::NAN].map(|norm| clip.vote(norm)),
            [1, 1, -1, -1, -1]
        );
    }

    #[test]
    fn rules_out_of_range_are_refused() {
        let good = QuantileRule::median(10);
        for bad in [
            QuantileRule { quantile: f64::NAN, ..good },
            QuantileRule { quantile: 1.1, ..good },
            QuantileRule { rate: 0.0, ..good },
            QuantileRule { rate: -0.2, ..good },
            QuantileRule { bound_min: 0.0, ..good },
            QuantileRule { bound_max: 1e-9, ..good },
            QuantileRule { clients: 0, ..good },
        ] {
            assert!(QuantileClip::new(bad, 1.0).is_err(), "{bad:?}");
        }
        assert!(QuantileClip::new(good, f64::NAN).is_err() && QuantileClip::new(good, 1e7).is_err());
    }

    #[test]
    fn the_noise_of_both_parts_adds_up_to_the_whole() {
        let left = update_noise_multiplier(2.0, 1.25).unwrap();
        assert!((left.powi(-2) + 2.5_f64.powi(-2) - 0.25).abs() < 1e-15);
        for (noise, count) in [(3.0, 1.5), (3.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (0.0, 1.0)] {
            assert!(update_noise_multiplier(noise, count).is_err(), "{noise} {count}");
        }
    }
}
