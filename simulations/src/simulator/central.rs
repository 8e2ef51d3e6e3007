//! The server's own evaluation.

use std::sync::Arc;

use protocol::{
    Learner, Metrics, Parameters, PrivacySpec, Round, RunId, Spec, Standardiser, StepId, Task, TaskId, Work,
};

use super::{SimulatorError, Stage};
use crate::workers::{Done, Job, Order, Workforce, measure};

/// Who measures on the server's own records.
pub(super) enum Central {
    None,
    /// All workers, on so many parts.
    Parts(usize),
    One(Box<dyn Learner>),
}

impl Central {
    pub(super) fn of(workforce: &dyn Workforce) -> Self {
        match workforce.central_parts() {
            0 => workforce.central().map_or(Self::None, Self::One),
            parts => Self::Parts(parts),
        }
    }
}

/// The same spec, promising nothing.
pub(crate) fn unprotected(spec: &Arc<Spec>) -> Arc<Spec> {
    if spec.privacy.is_none() {
        return Arc::clone(spec);
    }
    Arc::new(Spec { privacy: PrivacySpec::default(), ..(**spec).clone() })
}

impl Stage<'_> {
    /// What the server's own records say of a model; `None` where it has none, or they cannot be measured.
    pub(super) fn evaluate_centrally(
        &mut self,
        round: Round,
        model: Arc<Parameters>,
        standardiser: Option<Arc<Standardiser>>,
    ) -> Result<Option<Metrics>, SimulatorError> {
        let id = TaskId::new(RunId(0), round, StepId::EVALUATE);
        let spec = Arc::clone(&self.central_spec);
        let task = Arc::new(Task { id, spec, seed: None, standardiser, work: Work::Evaluate { model } });
        let parts = match &mut self.central {
            Central::None => return Ok(None),
            Central::One(learner) => return Ok(measure(&mut **learner, &task)),
            Central::Parts(parts) => *parts,
        };
        let first = self.tickets + 1;
        for part in 0..parts {
            self.tickets += 1;
            self.pool.post(1, self.tickets, Job::Central { part, task: Arc::clone(&task) });
        }
        let mut measured = Vec::with_capacity(parts);
        for ticket in first..=self.tickets {
            match self.pool.result(1, ticket, Order::LargestFirst)? {
                Done::Central(metrics) => measured.push(metrics),
                Done::Client { .. } | Done::Colluder { .. } => return Err(SimulatorError::WorkerLost),
            }
        }
        // Parts are the same on any number of threads, and so is the order in which they are put together.
        let measured: Option<Vec<Metrics>> = measured.into_iter().collect();
        Ok(measured.and_then(|parts| Metrics::pooled(parts.iter(), u64::MAX)))
    }
}
