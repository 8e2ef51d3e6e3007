//! The best model of a simulation so far, by the rule by which a server finds that of a run.

use std::sync::Arc;

use protocol::{Parameters, TaskKind};
use server::Commit;
use server::best::{median, score_of};

/// The model that the evaluations found best, the earlier of two equals.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// The round that made it.
    pub round: u32,
    /// Its accuracy, or its loss with the sign changed: by the server's own records where it has any, else the sites' median.
    pub score: f64,
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
        let sites = commit.reports.iter().filter(|(_, task, _)| task.kind == TaskKind::Evaluate);
        let sites = median(sites.map(|(_, _, metrics)| score_of(metrics)).collect());
        let central = summary.central.as_ref().map(score_of);
        let score = central.or(sites).or_else(|| summary.sites.as_ref().map(score_of));
        let Some(score) = score.filter(|score| best.as_ref().is_none_or(|best| *score > best.score)) else {
            return;
        };
        *best = Some(Self { round: summary.round, score, model: Arc::clone(&commit.checkpoint.model) });
    }
}
