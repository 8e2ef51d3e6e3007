//! Guessing by a threshold: error counts, their confidence bounds, and the epsilon they refute.
//!
//! Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine Learning", 2020; Nasr et al., "Adversary
//! Instantiation", 2021: an (epsilon, delta) promise keeps every attack to TPR <= e^epsilon FPR + delta. The
//! bounds are those of Clopper and Pearson, 1934. A threshold is chosen before the scores are seen, or among
//! fixed ranks of them, for which the union bound pays; never as the one that happens to look best.

use super::{AuditError, check, check_counts, check_scores};
use crate::accounting::pld::binomial::{chance_lower, chance_upper};

/// How often an attack was right and wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// Canaries that went in.
    pub members: u64,
    /// Those of them that were called in.
    pub true_positives: u64,
    /// Canaries that stayed out.
    pub others: u64,
    /// Those of them that were called in.
    pub false_positives: u64,
}

/// Where a canary begins to be called in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Above this score, fixed before any score was seen (for a white-box attack: halfway between the two
    /// expected ones).
    Above(f64),
    /// At this many evenly spaced ranks of either list of scores, 1 to 1000; costs power, needs no foresight.
    Ranks(u32),
}

/// The epsilon that `attack` refutes at `delta`: ln((TPR - delta) / FPR) with both rates bounded at half the
/// significance each.
///
/// # Errors
/// [`AuditError`] for impossible counts, a delta outside `[0, 1)` or a significance outside (0, 0.5).
pub fn clopper_pearson_lower_bound(attack: Attack, delta: f64, significance: f64) -> Result<f64, AuditError> {
    check(significance, delta)?;
    check_counts(attack.true_positives, attack.members)?;
    check_counts(attack.false_positives, attack.others)?;
    let hits = chance_lower(attack.true_positives, attack.members, significance / 2.0);
    let alarms = chance_upper(attack.false_positives, attack.others, significance / 2.0);
    Ok(if hits > delta { ((hits - delta) / alarms).ln().max(0.0) } else { 0.0 })
}

/// The least chance that explains `successes` of `trials`, wrong with no more than the chance `significance`.
///
/// # Errors
/// [`AuditError`] for impossible counts or a significance outside (0, 0.5).
pub fn chance_lower_bound(successes: u64, trials: u64, significance: f64) -> Result<f64, AuditError> {
    check(significance, 0.0)?;
    check_counts(successes, trials)?;
    Ok(chance_lower(successes, trials, significance))
}

/// Upper bounds on an attack's two error rates that hold together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errors {
    pub(super) false_positives: f64,
    pub(super) false_negatives: f64,
}

/// Bounds on the error rates at every threshold asked for, all of which hold with chance `1 - significance`.
///
/// The k-th largest score of one list is a threshold that knows nothing of the other list, whose errors there
/// are binomial. Its own list's rate of scores above it is at most as large as a beta variable, whose quantile
/// is that of Clopper and Pearson for k - 1 errors. (Scores of a noised release do not tie.)
pub(super) fn errors(
    members: &[f64],
    others: &[f64],
    threshold: Threshold,
    significance: f64,
) -> Result<Vec<Errors>, AuditError> {
    check_scores(members, 1)?;
    check_scores(others, 1)?;
    let ranks = match threshold {
        Threshold::Above(score) if score.is_nan() => {
            return Err(AuditError::Parameter { name: "the threshold", value: score, range: "the numbers" });
        }
        Threshold::Above(score) => return Ok(vec![at(members, others, score, significance / 2.0)]),
        Threshold::Ranks(ranks @ 1..=1000) => ranks as usize,
        Threshold::Ranks(ranks) => {
            let value = f64::from(ranks);
            return Err(AuditError::Parameter { name: "the number of ranks", value, range: "1 to 1000" });
        }
    };
    let each = significance / (4 * ranks) as f64;
    let mut errors = Vec::new();
    for list in [members, others] {
        let mut sorted = list.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at_rank = |rank: usize| sorted[(rank + 1) * sorted.len() / (ranks + 1).max(2)];
        let places = (0..ranks).filter(|rank| (rank + 1) * sorted.len() / (ranks + 1).max(2) < sorted.len());
        errors.extend(places.map(|rank| at(members, others, at_rank(rank), each)));
    }
    Ok(errors)
}

fn at(members: &[f64], others: &[f64], threshold: f64, each: f64) -> Errors {
    let above = |scores: &[f64]| scores.iter().filter(|score| **score > threshold).count() as u64;
    let (members_all, others_all) = (members.len() as u64, others.len() as u64);
    // Counting the threshold's own score as an error where it would be one keeps the bound of a rank on the
    // safe side.
    let not_above = members_all - above(members);
    Errors {
        false_positives: chance_upper(above(others), others_all, each),
        false_negatives: chance_upper(not_above, members_all, each),
    }
}
