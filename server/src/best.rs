//! How good a model is, by what was measured of it: the one rule by which a server and a simulation find the best model of a run.

use protocol::Metrics;

/// How good a model is by these metrics: by accuracy where there is one, else by loss.
pub fn score_of(metrics: &Metrics) -> f64 {
    metrics.accuracy.unwrap_or(-metrics.loss)
}

/// The median of what sites say of a model, the lower of two: each site has one voice, and no minority can carry it beyond what
/// the others say. A mean, however weighted, would let one site choose by a huge loss.
pub fn median(mut scores: Vec<f64>) -> Option<f64> {
    scores.sort_by(f64::total_cmp);
    scores.get(scores.len().checked_sub(1)? / 2).copied()
}
