//! The checks every answer passes, whoever sent it. Each has a reason of its own.

use privacy::{Encoded, Inadmissible, Lattice, Tally, TallyError};
use protocol::{Decline, Metrics, Outcome, PrivacySpec, Refusal, TaskKind};

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
pub(super) fn admit(
    outcome: Outcome,
    kind: TaskKind,
    lattice: &Lattice,
    statistics: usize,
    privacy: &PrivacySpec,
) -> Result<Admitted, Refused> {
    match (outcome, kind) {
        (Outcome::Declined { reason, detail }, _) => Ok(Admitted::Declined { reason, detail }),
        (Outcome::Trained { points, weight, vote, metrics }, TaskKind::Train) => {
            let metrics = if privacy.hides_metrics() { Metrics::default() } else { sound(metrics)? };
            let vote = counted(vote, privacy.is_adaptive())?;
            let update = Encoded::admit(points, weight, lattice)
                .map_err(|why| Refused::new(inadmissible(&why), why.to_string()))?;
            Ok(Admitted::Update { update, vote, metrics })
        }
        (Outcome::Counted { limbs }, TaskKind::Statistics) => {
            let reason = |why: &TallyError| match why {
                TallyError::Shape { .. } => Refusal::WrongShape,
                _ => Refusal::OutOfRange,
            };
            let tally =
                Tally::admit(limbs, statistics).map_err(|why| Refused::new(reason(&why), why.to_string()))?;
            Ok(Admitted::Tally(tally))
        }
        (Outcome::Evaluated { metrics }, TaskKind::Evaluate) => Ok(Admitted::Metrics(sound(metrics)?)),
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
