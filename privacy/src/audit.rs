//! Whether a promised epsilon can be believed: lower bounds on epsilon from attacks that were really carried
//! out.
//!
//! A canary is a contribution an auditor made up; it went in or it stayed out by a fair coin, and after the
//! release each has a score that is larger, the more it looks as if it went in. From the scores alone these
//! functions say how much epsilon must at least be, wrong with no more than the chance `significance`. A bound
//! above the promise refutes the promise; a bound below it proves nothing.
//!
//! Pure functions on scores and counts: nothing here makes canaries, and no audit can be run without knowing
//! what went in, which only a simulation does.

mod gaussian;
mod one_run;
mod one_shot;
#[cfg(test)]
mod tests;
mod thresholds;

pub use gaussian::{gaussian_lower_bound, gaussian_mu_lower_bound};
pub use one_run::{one_run_from_scores, one_run_lower_bound};
pub use one_shot::one_shot_estimate;
pub use thresholds::{Attack, Threshold, chance_lower_bound, clopper_pearson_lower_bound};

use crate::accounting::pld::binomial::TRIALS_MAX;

/// An audit that cannot be made from these numbers.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A significance outside 0 to 1/2.
    #[error("the significance must lie between 0 and 0.5, both excluded, not {0}; 0.05 is usual")]
    Significance(f64),
    /// A delta outside 0 to 1.
    #[error("delta must be at least 0 and below 1, not {0}; give the delta of the promise")]
    Delta(f64),
    /// A score that is NaN.
    #[error("score {0} is not a number; repair the attack")]
    Score(usize),
    /// Too few scores to say anything.
    #[error("{scores} scores are too few, {least} are needed; add canaries")]
    Few {
        /// How many there are.
        scores: usize,
        /// How many are needed.
        least: usize,
    },
    /// Counts that contradict each other.
    #[error("{part} of {whole} is impossible; count again (at most 1e10 trials)")]
    Counts {
        /// The smaller count.
        part: u64,
        /// The larger one.
        whole: u64,
    },
    /// Another parameter out of range.
    #[error("{name} is {value}, outside {range}; correct it")]
    Parameter {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

fn check(significance: f64, delta: f64) -> Result<(), AuditError> {
    if !(significance > 0.0 && significance < 0.5) {
        return Err(AuditError::Significance(significance));
    }
    if (0.0..1.0).contains(&delta) { Ok(()) } else { Err(AuditError::Delta(delta)) }
}

fn check_counts(part: u64, whole: u64) -> Result<(), AuditError> {
    if part <= whole && (1..=TRIALS_MAX).contains(&whole) {
        Ok(())
    } else {
        Err(AuditError::Counts { part, whole })
    }
}

fn check_scores(scores: &[f64], least: usize) -> Result<(), AuditError> {
    if scores.len() < least {
        return Err(AuditError::Few { scores: scores.len(), least });
    }
    scores.iter().position(|score| score.is_nan()).map_or(Ok(()), |place| Err(AuditError::Score(place)))
}
