//! The best model of a simulation so far, by the rule by which a server finds that of a run.

use std::sync::Arc;

use protocol::{Parameters, StepId};
use server::Commit;
use server::best::Score;

/// The model that the evaluations found best, the earlier of two equals.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// The round that made it.
    pub round: u32,
    /// What was measured of it: by the server's own records where it has any, else the sites' median.
    pub score: Score,
    /// The model, shared part.
    pub model: Arc<Parameters>,
}

impl Best {
    /// Takes the model of a commit that is better than `best`.
    pub(super) fn consider(best: &mut Option<Self>, commit: &Commit) {
        let summary = &commit.summary;
        if !commit.checkpoint.evaluated || !summary.released || summary.round == 0 {
            return;
        }
        let sites = commit.reports.iter().filter(|(_, task, _)| task.step == StepId::EVALUATE);
        let voices: Vec<Score> = sites.filter_map(|(_, _, metrics)| Score::of(metrics)).collect();
        let central = summary.central.as_ref().and_then(Score::of);
        let score = central.or_else(|| Score::median(&voices));
        let is_better = |score: &Score| {
            best.as_ref().is_none_or(|best| {
                let by_accuracy = score.accuracy.is_some() && best.score.accuracy.is_some();
                score.is_better(best.score, by_accuracy)
            })
        };
        let Some(score) = score.or_else(|| summary.sites.as_ref().and_then(Score::of)).filter(is_better)
        else {
            return;
        };
        *best = Some(Self { round: summary.round, score, model: Arc::clone(&commit.checkpoint.model) });
    }
}
