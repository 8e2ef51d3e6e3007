//! The learner that agent and simulator ask: a process behind a channel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{
    EvaluateOrder, Layout, LearnError, Learner, Metrics, ModelSpec, Seed, Spec, Statistic, Stop, TrainOrder,
    Trains,
};

use crate::connection::{Body, Connection};
use crate::error::ExternalError;
use crate::frames::{ClientPlace, Outcome, TensorShape, ToLearner};
use crate::model::{Prepared, check_finite, measured};
use crate::settings::LearnerSettings;

/// A learner in a process of its own, launched or attached by its settings. Dropped, a launched one is killed; [`ExternalLearner::end`] asks
/// it to end first.
#[derive(Debug)]
pub struct ExternalLearner {
    connection: Connection,
    model: Option<Prepared>,
    /// Before there is a model.
    empty: Layout,
    /// Of the last task, in the plan's order.
    further: Vec<f64>,
}

impl ExternalLearner {
    /// A learner by `settings`, which works in `folder`: launched ones start there, attached ones find what they need there. It serves the
    /// client of this name, until [`ExternalLearner::serve`] says another.
    pub fn new(settings: LearnerSettings, folder: PathBuf, name: &str) -> Self {
        let client = ClientPlace { name: name.to_owned(), index: 0, clients: 1 };
        Self {
            connection: Connection::new(settings, folder, client),
            model: None,
            empty: Layout::default(),
            further: Vec::new(),
        }
    }

    /// Says for which client the next requests are: a simulation's learner serves many.
    pub fn serve(&mut self, client: ClientPlace) {
        self.connection.client = client;
    }

    /// Ends the learner: it is asked to, and one that was launched is killed when it does not.
    pub fn end(&mut self) {
        self.connection.end();
    }

    /// Connected to a learner that knows the model.
    fn ready(&mut self, stop: &Stop) -> Result<(), ExternalError> {
        let Some(spec) = self.model.as_ref().map(|model| Arc::clone(&model.spec)) else {
            return Err(ExternalError::NotExternal);
        };
        self.connection.connected(stop)?;
        if self.connection.is_ready() {
            return Ok(());
        }
        let prepared = agreed(&mut self.connection, &spec, stop)?;
        if self.model.as_ref().is_some_and(|model| model.layout != prepared.layout) {
            let what =
                "its personal tensors are others than before, and what this site keeps has no place in them";
            return Err(ExternalError::Model(what.to_owned()));
        }
        self.model = Some(prepared);
        Ok(())
    }

    /// One task: its values go out, and come back changed where it is a training.
    fn work(
        &mut self,
        body: Body<'_>,
        frame: impl for<'a> FnOnce(u64, &'a ClientPlace, &Spec) -> ToLearner<'a>,
        stop: &Stop,
    ) -> Result<Outcome, ExternalError> {
        self.ready(stop)?;
        let Some(model) = &self.model else { return Err(ExternalError::NotExternal) };
        let (id, client) = (self.connection.next_id(), self.connection.client.clone());
        let frame = frame(id, &client, &model.spec);
        let limit = self.connection.settings.task_seconds.map(Duration::from_secs);
        self.connection.ask((id, &frame), body, &model.order, limit, stop)
    }

    /// Judges an answer and tells the learner.
    fn judge(
        &mut self,
        outcome: &Outcome,
        values: &[f32],
        began: Instant,
        is_training: bool,
    ) -> Result<Metrics, ExternalError> {
        let Some(model) = &self.model else { return Err(ExternalError::NotExternal) };
        let declared = &model.spec.learner.metrics;
        let judged = check_finite(values, &model.layout)
            .and_then(|()| if is_training { check_proximal(outcome, &model.spec) } else { Ok(()) })
            .and_then(|()| measured(outcome, declared, began.elapsed().as_secs_f64(), is_training));
        let of = |name: &String| outcome.metrics.get(name).copied().unwrap_or(f64::NAN);
        self.further = declared.iter().map(of).collect();
        self.connection.acknowledge(outcome.id, judged.as_ref().err());
        judged
    }
}

/// Tells the learner of the model, and hears of its own.
fn agreed(connection: &mut Connection, spec: &Arc<Spec>, stop: &Stop) -> Result<Prepared, ExternalError> {
    let external = spec.external().ok_or(ExternalError::NotExternal)?;
    let tensors = external.tensors.iter();
    let tensors =
        tensors.map(|tensor| TensorShape { name: (&*tensor.name).into(), shape: (&*tensor.shape).into() });
    let id = connection.next_id();
    let (config, metrics) = (&external.learner.config, &external.learner.metrics[..]);
    let frame = ToLearner::Prepare { id, config, tensors: tensors.collect(), metrics };
    let limit = Some(connection.settings.start());
    let outcome = connection.ask((id, &frame), Body::None, &[], limit, stop)?;
    let prepared = Prepared::of(spec, external, &outcome.tensors);
    connection.acknowledge(id, prepared.as_ref().err());
    connection.set_ready(prepared.is_ok());
    prepared
}

/// Of a plan by FedProx.
fn proximal_mu(spec: &Spec) -> Option<f64> {
    Some(spec.proximal_mu).filter(|mu| *mu > 0.0)
}

/// That a learner has minimised what the plan's strategy asks for: nobody but its script can add a term to its objective.
fn check_proximal(outcome: &Outcome, spec: &Spec) -> Result<(), ExternalError> {
    if outcome.proximal_mu == proximal_mu(spec) {
        return Ok(());
    }
    let what = format!(
        "the plan's strategy is fedprox with mu = {}, and the learner does not say that its objective had the proximal term (`task.proximal_mu` in \
         Python)",
        spec.proximal_mu
    );
    Err(ExternalError::Answer(what))
}

#[expect(clippy::disallowed_methods, reason = "a shell: it tells how long another program took")]
fn now() -> Instant {
    Instant::now()
}

impl Learner for ExternalLearner {
    fn parameter_count(&self, spec: &Spec) -> Option<u64> {
        match &spec.model {
            ModelSpec::External(model) => Some(model.parameters()),
            _ => None,
        }
    }

    fn take_further(&mut self) -> Vec<f64> {
        std::mem::take(&mut self.further)
    }

    fn trains(&self) -> Trains {
        Trains::External
    }

    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError> {
        if self.model.as_ref().is_some_and(|model| model.spec == *spec) {
            return Ok(());
        }
        self.model = None;
        self.connection.set_ready(false);
        if spec.external().is_none() {
            return Err(ExternalError::NotExternal.into());
        }
        let stop = Stop::default();
        self.connection.connected(&stop)?;
        self.model = Some(agreed(&mut self.connection, spec, &stop)?);
        Ok(())
    }

    fn layout(&self) -> &Layout {
        self.model.as_ref().map_or(&self.empty, |model| &model.layout)
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        let stop = Stop::default();
        self.ready(&stop)?;
        let Some(model) = &self.model else { return Err(ExternalError::NotExternal.into()) };
        let mut full = vec![0.0; model.layout.len()];
        if model.personal.is_empty() {
            return Ok(full);
        }
        let (id, client) = (self.connection.next_id(), self.connection.client.clone());
        let frame = ToLearner::Initialise { id, client: &client, seed: seed.to_number() };
        let limit = Some(self.connection.settings.start());
        self.connection.ask((id, &frame), Body::Taken(&mut full), &model.personal, limit, &stop)?;
        let checked = check_finite(&full, &model.layout);
        self.connection.acknowledge(id, checked.as_ref().err());
        checked?;
        Ok(full)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        // A plan with an external model asks for none.
        Ok(Vec::new())
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let (round, seed, learning_rate_scale) =
            (order.round.0, order.seed.to_number(), order.learning_rate_scale);
        let began = now();
        let outcome = self.work(
            Body::Exchanged(&mut *parameters),
            |id, client, spec| {
                let (epochs, batch_size) = (spec.training.epochs, spec.training.batch_size);
                let proximal_mu = proximal_mu(spec);
                ToLearner::Train {
                    id,
                    round,
                    client,
                    seed,
                    epochs,
                    batch_size,
                    learning_rate_scale,
                    proximal_mu,
                }
            },
            stop,
        )?;
        Ok(self.judge(&outcome, parameters, began, true)?)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        _: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let began = now();
        let body = Body::Sent(parameters);
        let outcome = self.work(body, |id, client, _| ToLearner::Evaluate { id, client }, stop)?;
        Ok(self.judge(&outcome, &[], began, false)?)
    }
}
