//! The learner that agent and simulator ask: a process behind a channel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{
    EvaluateOrder, ExampleReleases, Layout, LearnError, Learner, Metrics, ModelSpec, PrivacySpec, Seed, Spec,
    Statistic, Stop, TrainOrder, Trains,
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
    /// What went wrong before a task was paid for, of a plan whose promise holds against the server: the task's own work fails by it.
    owed: Option<ExternalError>,
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
        let connection = Connection::new(settings, folder, client);
        Self { connection, model: None, owed: None, empty: Layout::default(), further: Vec::new() }
    }

    /// Says for which client the next requests are: a simulation's learner serves many.
    pub fn serve(&mut self, client: ClientPlace) {
        self.connection.client = client;
    }

    /// With what its owner says, from any thread, when it is to end: nothing is waited for any longer then.
    #[must_use]
    pub fn with_ending(mut self, ending: Stop) -> Self {
        self.connection.ending = ending;
        self
    }

    /// Starts the learner and compares its model with the plan's, for whoever looks before a run begins: nothing is postponed.
    ///
    /// # Errors
    /// When it cannot be started, its model is another, or the plan promises what no external learner can be held to.
    pub fn look(&mut self, spec: &Spec) -> Result<(), LearnError> {
        if spec.privacy.examples.is_some() {
            return Err(ExternalError::NoExamples.into());
        }
        self.prepare(&Arc::new(Spec { privacy: PrivacySpec::default(), ..spec.clone() }))
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
            self.connection.set_ready(false);
            let what =
                "its personal tensors are others than before, and what this site keeps has no place in them";
            return Err(ExternalError::Model(what.to_owned()));
        }
        self.model = Some(prepared);
        Ok(())
    }

    /// Does this, and once more with a new learner where the one that was there had ended before it heard of it: its end is no fault of this
    /// request.
    fn once_more<T>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<T, ExternalError>,
    ) -> Result<T, ExternalError> {
        match work(self) {
            Err(error @ ExternalError::Broken { is_unheard: true, .. }) => {
                // Of a simulation it is shown where clients' own words are.
                tracing::info!(target: "learner", learner = %self.connection.client.name, "between two requests: {error}");
                let done = work(self);
                if let Err(error @ ExternalError::Broken { is_unheard: true, .. }) = &done {
                    self.connection.note_failure(error);
                }
                done
            }
            done => done,
        }
    }

    /// What went wrong before a task is paid for may follow from records, which a script may read from its start on: under a promise that holds
    /// against the server the task goes on with something else, and fails when its own work is due.
    fn postponed<T>(
        &mut self,
        spec: &Spec,
        done: Result<T, ExternalError>,
        instead: impl FnOnce() -> Result<T, ExternalError>,
    ) -> Result<T, ExternalError> {
        match done {
            Err(error) if spec.privacy.holds_against_server() => {
                self.owed = Some(error);
                instead()
            }
            done => done,
        }
    }

    /// One task: its values go out, and come back changed where it is a training.
    fn work(
        &mut self,
        body: Body<'_>,
        frame: impl for<'a> FnOnce(u64, &'a ClientPlace, &Spec) -> ToLearner<'a>,
        stop: &Stop,
    ) -> Result<Outcome, ExternalError> {
        if let Some(owed) = self.owed.take() {
            return Err(owed);
        }
        self.ready(stop)?;
        let Some(model) = &self.model else { return Err(ExternalError::NotExternal) };
        let (given, needed) = (body.len(), model.layout.len());
        if given != needed {
            return Err(ExternalError::Model(format!(
                "{given} values are given for its {needed} parameters"
            )));
        }
        let (id, client) = (self.connection.next_id(), self.connection.client.clone());
        let frame = frame(id, &client, &model.spec);
        let limit = self.connection.settings.task_seconds.map(Duration::from_secs);
        self.connection.ask((id, &frame), body, &model.order, limit, stop)
    }

    /// First values of the personal tensors; the others are zero.
    fn first_values(&mut self, seed: Seed) -> Result<Vec<f32>, ExternalError> {
        let stop = Stop::default();
        self.ready(&stop)?;
        let Some(model) = &self.model else { return Err(ExternalError::NotExternal) };
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
        checked.map(|()| full)
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
        let is_known = |model: &Prepared| model.is_agreed && model.spec == *spec;
        if self.owed.is_none() && self.model.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        (self.model, self.owed) = (None, None);
        // A task of a learner that is left alone for a while is answered all the same, and costs as much as any other.
        self.connection.waits_out_pauses = spec.privacy.holds_against_server();
        self.connection.set_ready(false);
        let Some(external) = spec.external() else { return Err(ExternalError::NotExternal.into()) };
        let stop = Stop::default();
        let agree = |learner: &mut Self| {
            learner.connection.connected(&stop)?;
            agreed(&mut learner.connection, spec, &stop)
        };
        let agreed = self.once_more(agree);
        self.model = Some(self.postponed(spec, agreed, || Prepared::of_plan(spec, external))?);
        Ok(())
    }

    fn layout(&self) -> &Layout {
        self.model.as_ref().map_or(&self.empty, |model| &model.layout)
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        let Some(spec) = self.model.as_ref().map(|model| Arc::clone(&model.spec)) else {
            return Err(ExternalError::NotExternal.into());
        };
        let first = self.once_more(|learner| learner.first_values(seed));
        let len = self.layout().len();
        Ok(self.postponed(&spec, first, || Ok(vec![0.0; len]))?)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        // A plan with an external model asks for none.
        Ok(Vec::new())
    }

    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        let is_promised = |model: &Prepared| model.spec.privacy.examples.is_some();
        if self.model.as_ref().is_some_and(is_promised) {
            return Err(ExternalError::NoExamples.into());
        }
        Ok(None)
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
        let outcome = self.once_more(|learner| {
            learner.work(
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
            )
        })?;
        Ok(self.judge(&outcome, parameters, began, true)?)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        _: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let began = now();
        let outcome = self.once_more(|learner| {
            learner.work(Body::Sent(parameters), |id, client, _| ToLearner::Evaluate { id, client }, stop)
        })?;
        Ok(self.judge(&outcome, &[], began, false)?)
    }
}
