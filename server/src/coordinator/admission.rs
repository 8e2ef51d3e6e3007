//! The checks every answer passes, whoever sent it. Each has a reason of its own.

use std::sync::Arc;

use protocol::{Answer, Contribution, Decline, METRIC_MAX, Metrics, Outcome, Rejection, TaskId};

use crate::workflow::{Refused, Verified, Verifier};

/// The checks that answers to one task must pass, whoever sent them. It may be taken to any thread: the coordinator that
/// gave it takes what it has [checked](Checked) as it takes what it checks itself.
#[derive(Clone)]
pub struct Checker {
    verifier: Option<Arc<dyn Verifier>>,
    /// Whether metrics stay at the sites: whatever came is forgotten.
    hides_metrics: bool,
    /// How many further metrics the answer has.
    further: usize,
}

impl Checker {
    pub(super) fn new(verifier: Option<Arc<dyn Verifier>>, hides_metrics: bool) -> Self {
        Self { verifier, hides_metrics, further: 0 }
    }

    /// The same for answers with so many further metrics.
    pub(super) fn with_further(self, further: usize) -> Self {
        Self { further, ..self }
    }

    /// Checks every number of an answer. Whether it was asked for, and of whom, the coordinator checks.
    pub fn check(&self, answer: Answer) -> Checked {
        let Answer { task, outcome } = answer;
        Checked { task, result: self.admit(task, outcome) }
    }

    fn admit(&self, task: TaskId, outcome: Outcome) -> Result<Admitted, Refused> {
        let contribution = match outcome {
            Outcome::Declined { reason, detail } => return Ok(Admitted::Declined { reason, detail }),
            Outcome::Done(contribution) => contribution,
        };
        let metrics = match contribution.metrics {
            Some(_) if self.hides_metrics => Some(Metrics::default()),
            Some(metrics) => Some(sound(metrics)?),
            None => None,
        };
        let Some(verifier) = &self.verifier else {
            return Err(Refused::new(Rejection::Stale, format!("{task} is not open")));
        };
        let mut contribution = Contribution { metrics, ..contribution };
        let further = std::mem::take(&mut contribution.further);
        self.check_further(&further)?;
        let verified = verifier.verify(contribution)?;
        Ok(Admitted::Verified { verified, further })
    }

    fn check_further(&self, further: &[f64]) -> Result<(), Refused> {
        if further.len() != self.further {
            let message =
                format!("{} further metrics came where the plan names {}", further.len(), self.further);
            return Err(Refused::new(Rejection::BadMetrics, message));
        }
        match further.iter().find(|value| value.abs() > METRIC_MAX) {
            Some(value) => Err(Refused::new(Rejection::BadMetrics, format!("a further metric is {value}"))),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checker(of an open task: {})", self.verifier.is_some())
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
    /// `further`: what external learners measured beside the metrics, in the plan's order, not a number where one measured none.
    Verified {
        verified: Verified,
        further: Vec<f64>,
    },
    Declined {
        reason: Decline,
        detail: String,
    },
}

fn sound(metrics: Metrics) -> Result<Metrics, Refused> {
    if metrics.is_sound() {
        Ok(metrics)
    } else {
        Err(Refused::new(
            Rejection::BadMetrics,
            format!("metrics are not finite or out of range: {metrics:?}"),
        ))
    }
}
