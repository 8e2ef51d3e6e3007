//! The checks every answer passes, whoever sent it. Each has a reason of its own.

use std::sync::Arc;

use privacy::{Encoded, Inadmissible, Lattice, Tally, TallyError};
use protocol::{
    Answer, Decline, Metrics, Outcome, PrivacySpec, Refusal, Spec, StepId, TaskId, find_impossible,
};

/// The checks that answers to one task must pass, whoever sent them. It may be taken to any thread: the coordinator that
/// gave it takes what it has [checked](Checked) as it takes what it checks itself.
#[derive(Clone, Debug)]
pub struct Checker {
    lattice: Lattice,
    statistics: usize,
    spec: Arc<Spec>,
}

impl Checker {
    pub(super) fn new(lattice: &Lattice, statistics: usize, spec: &Arc<Spec>) -> Self {
        Self { lattice: lattice.clone(), statistics, spec: Arc::clone(spec) }
    }

    /// Checks every number of an answer. Whether it was asked for, and of whom, the coordinator checks.
    pub fn check(&self, answer: Answer) -> Checked {
        let Answer { task, outcome } = answer;
        let result = admit(outcome, task.step, &self.lattice, self.statistics, &self.spec.privacy);
        Checked { task, result }
    }
}

/// An answer that [`Checker::check`] has seen, and what it says of it. Made by it alone.
pub struct Checked {
    task: TaskId,
    result: Result<Admitted, Refused>,
}

impl Checked {
    /// The task it answers.
    pub fn task(&self) -> TaskId {
        self.task
    }

    pub(super) fn into_parts(self) -> (TaskId, Result<Admitted, Refused>) {
        (self.task, self.result)
    }
}

/// Only whether it passed: what it holds is one site's.
impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checked({}, passed: {})", self.task, self.result.is_ok())
    }
}

/// An answer whose every number has been checked.
pub(super) enum Admitted {
    Update { update: Encoded, vote: Option<bool>, metrics: Metrics },
    Tally(Tally),
    Metrics(Metrics),
    Declined { reason: Decline, detail: String },
}

/// Why an answer does not count: the reason that is counted, and the numbers for the log.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: Refusal,
    pub(super) detail: String,
}

impl Refused {
    pub(super) fn new(reason: Refusal, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Checks what came for a task of `kind`: kind, shape, range, norm, weight, metrics.
fn admit(
    outcome: Outcome,
    kind: StepId,
    lattice: &Lattice,
    statistics: usize,
    privacy: &PrivacySpec,
) -> Result<Admitted, Refused> {
    match (outcome, kind) {
        (Outcome::Declined { reason, detail }, _) => Ok(Admitted::Declined { reason, detail }),
        (Outcome::Trained { points, weight, vote, metrics }, StepId::TRAIN) => {
            let metrics = if privacy.hides_metrics() { Metrics::default() } else { sound(metrics)? };
            let vote = counted(vote, privacy.is_adaptive())?;
            let update = Encoded::admit(points, weight, lattice)
                .map_err(|why| Refused::new(inadmissible(&why), why.to_string()))?;
            Ok(Admitted::Update { update, vote, metrics })
        }
        (Outcome::Counted { words }, StepId::STATISTICS) => {
            let reason = |why: &TallyError| match why {
                TallyError::Shape { .. } => Refusal::WrongShape,
                _ => Refusal::OutOfRange,
            };
            let tally =
                Tally::admit(words, statistics).map_err(|why| Refused::new(reason(&why), why.to_string()))?;
            if let Some(column) = find_impossible(&tally.sums().collect::<Vec<_>>()) {
                let detail = format!("no records have the statistics of numeric column {column}");
                return Err(Refused::new(Refusal::OutOfRange, detail));
            }
            Ok(Admitted::Tally(tally))
        }
        (Outcome::Evaluated { metrics }, StepId::EVALUATE) => {
            let metrics = if privacy.hides_metrics() { Metrics::default() } else { sound(metrics)? };
            Ok(Admitted::Metrics(metrics))
        }
        (outcome, kind) => {
            let detail = format!("{outcome:?} is no answer to a task of kind {}", kind.name());
            Err(Refused::new(Refusal::WrongKind, detail))
        }
    }
}

/// Whether the update was within the norm, where the plan asks.
fn counted(vote: i8, asked: bool) -> Result<Option<bool>, Refused> {
    match (vote, asked) {
        (1 | -1, true) => Ok(Some(vote == 1)),
        (0, false) => Ok(None),
        _ => {
            let wanted = if asked { "1 or -1" } else { "0, since the norm is fixed" };
            Err(Refused::new(Refusal::BadVote, format!("the vote on the norm is {vote}, not {wanted}")))
        }
    }
}

fn sound(metrics: Metrics) -> Result<Metrics, Refused> {
    if metrics.is_sound() {
        Ok(metrics)
    } else {
        Err(Refused::new(Refusal::BadMetrics, format!("metrics are not finite or out of range: {metrics:?}")))
    }
}

fn inadmissible(why: &Inadmissible) -> Refusal {
    match why {
        Inadmissible::Shape { .. } => Refusal::WrongShape,
        Inadmissible::Weight { .. } => Refusal::WrongWeight,
        Inadmissible::Norm | Inadmissible::LayerNorm { .. } => Refusal::NormExceeded,
        _ => Refusal::OutOfRange,
    }
}
