//! The audit in one run: many canaries at once, and how many guesses about them were right.
//!
//! Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023 (the bound for fixed numbers of
//! guesses): under an (epsilon, 0) promise the number of right guesses is no larger than a binomial of chance
//! e^epsilon/(1+e^epsilon); delta adds 2 m delta max_i Pr[v - i <= Bin < v]/i. It needs no knowledge of the
//! mechanism, and is weak for that.

use super::{AuditError, check, check_counts, check_scores};
use crate::accounting::pld::binomial::at_least;

/// The most canaries of one audit.
const CANARIES_MAX: u64 = 1_000_000;

/// The largest epsilon refuted when `correct` of `guesses` guesses about `canaries` canaries were right, each
/// canary having gone in by a fair coin of its own. No refuted epsilon gives 0; refutation of all gives the
/// last that could be told, at most 700.
///
/// # Errors
/// [`AuditError`] for impossible counts, a delta outside `[0, 1)` or a significance outside (0, 0.5).
pub fn one_run_lower_bound(
    canaries: u64,
    guesses: u64,
    correct: u64,
    delta: f64,
    significance: f64,
) -> Result<f64, AuditError> {
    check(significance, delta)?;
    check_counts(guesses, canaries)?;
    check_counts(correct, guesses)?;
    if canaries > CANARIES_MAX {
        let (name, value) = ("the number of canaries", canaries as f64);
        return Err(AuditError::Parameter { name, value, range: "1 to 1e6" });
    }
    let refuted = |epsilon: f64| chance_of(canaries, guesses, correct, epsilon, delta) <= significance;
    if !refuted(0.0) {
        return Ok(0.0);
    }
    let (mut low, mut high) = (0.0, 700.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if refuted(middle) { low = middle } else { high = middle }
    }
    Ok(low)
}

/// As [`one_run_lower_bound`], guessing that the `guesses` canaries of the largest scores went in and nothing
/// of the others. `guesses` is fixed before the scores are seen. Ties go against the attack.
///
/// # Errors
/// As [`one_run_lower_bound`], and for scores that are NaN.
pub fn one_run_from_scores(
    members: &[f64],
    others: &[f64],
    guesses: u64,
    delta: f64,
    significance: f64,
) -> Result<f64, AuditError> {
    check_scores(members, 0)?;
    check_scores(others, 0)?;
    let mut scores: Vec<(f64, bool)> = members.iter().map(|score| (*score, true)).collect();
    scores.extend(others.iter().map(|score| (*score, false)));
    scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let canaries = scores.len() as u64;
    check_counts(guesses, canaries)?;
    let correct = scores[..guesses as usize].iter().filter(|(_, member)| *member).count() as u64;
    one_run_lower_bound(canaries, guesses, correct, delta, significance)
}

/// The chance, under the promise, of at least as many right guesses.
fn chance_of(canaries: u64, guesses: u64, correct: u64, epsilon: f64, delta: f64) -> f64 {
    let right = 1.0 / (1.0 + (-epsilon).exp());
    let beta = at_least(correct, guesses, right);
    if delta == 0.0 {
        return beta;
    }
    let mut alpha = 0.0_f64;
    for i in 1..=correct {
        let more = at_least(correct - i, guesses, right) - beta;
        alpha = alpha.max(more / i as f64);
        // No later term can exceed (1 - beta)/i.
        if (1.0 - beta) / (i + 1) as f64 <= alpha {
            break;
        }
    }
    (beta + 2.0 * canaries as f64 * delta * alpha).min(1.0)
}
