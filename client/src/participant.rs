//! Does one task: prepare, train, clip, encode; or evaluate; or count.
//!
//! A participant never fails and never panics: trouble becomes an answer that declines the task. What the operator is
//! told names no data of the site; the site's own log gets the learner's full message. An update that is not finite, or
//! longer than the plan's bound, cannot leave: only `privacy::clip` and the lattice make the points that are sent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use privacy::{Encoded, Tally, clip};
use protocol::{
    Answer, ClientId, Decline, EvaluateOrder, LearnError, Learner, Metrics, Outcome, Parameters, Positive,
    Purpose, Round, Seed, Spec, Stop, Task, TaskId, TrainOrder, Work,
};

use crate::Personal;
use crate::personal::{gather_personal, scatter_personal};

/// Why a task was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    /// The reason in one word.
    pub reason: Decline,
    /// For the site's eyes only: may name files, lines and values.
    pub message: String,
    /// For the operator; names no data of the site.
    pub detail: String,
}

impl Trouble {
    /// Trouble that holds nothing private: both sides read the same sentence.
    pub(crate) fn open(reason: Decline, message: String) -> Self {
        Self { reason, detail: message.clone(), message }
    }

    /// Trouble of which the operator learns the kind only.
    fn private(reason: Decline, message: String) -> Self {
        let detail = match reason {
            Decline::Unsupported => "the learner does not support this plan; the site's log says why",
            Decline::Data => {
                "the site's data does not fit the plan or cannot be read; the site's log says where"
            }
            Decline::NotFinite => "numbers were not finite; the site's log says more",
            Decline::Stopped => "the task was stopped",
            Decline::Failed => "the learner failed; the site's log says why",
            Decline::Policy => "the site's policy does not allow this",
            Decline::Budget => "the site's privacy budget cannot pay for this",
        };
        Self { reason, message, detail: detail.to_owned() }
    }

    fn stopped() -> Self {
        Self::private(Decline::Stopped, "the task was stopped before it was done".into())
    }
}

impl From<LearnError> for Trouble {
    fn from(error: LearnError) -> Self {
        Self::private(error.reason, error.message)
    }
}

/// One client: its name, its learner (with the data inside) and what it keeps for itself.
pub struct Participant {
    id: ClientId,
    learner: Box<dyn Learner>,
    prepared: Option<Arc<Spec>>,
    personal: Personal,
}

impl Participant {
    /// A participant that keeps nothing yet.
    pub fn new(id: ClientId, learner: Box<dyn Learner>) -> Self {
        Self { id, learner, prepared: None, personal: Personal::default() }
    }

    /// Its name.
    pub fn id(&self) -> &ClientId {
        &self.id
    }

    /// Does a task. See [`Participant::attempt`]; trouble becomes [`Outcome::Declined`].
    pub fn perform(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Answer {
        answer(task.id, self.attempt(task, entropy, stop))
    }

    /// Does a task. `entropy` is fresh from the operating system and used only when the task carries no seed; with a
    /// seed the same task gives the same bits.
    ///
    /// # Errors
    /// [`Trouble`], with the full message for the site's own log.
    pub fn attempt(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Result<Outcome, Trouble> {
        let same = |spec: &Arc<Spec>| Arc::ptr_eq(spec, &task.spec) || **spec == *task.spec;
        let prepared = self.prepared.take().filter(same);
        let desk =
            Desk { id: &self.id, learner: &mut *self.learner, personal: &mut self.personal, task, stop };
        let outcome = desk.work(entropy, prepared.is_none());
        // After trouble the learner is prepared anew: its state may be what went wrong.
        self.prepared = outcome.is_ok().then(|| Arc::clone(&task.spec));
        outcome
    }

    /// What stays at this client, to be written to the site's own disk.
    pub fn personal(&self) -> &Personal {
        &self.personal
    }

    /// Brings back what [`Participant::personal`] gave in an earlier life.
    pub fn restore_personal(&mut self, personal: Personal) {
        self.personal = personal;
    }
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Participant({}, {:?})", self.id, self.personal)
    }
}

/// Does a task for a client whose learner is lent to it (a simulation's worker serves many clients in turn).
/// `learner.prepare` is called each time and must be quick when it already has the task's spec.
pub fn perform(
    id: &ClientId,
    learner: &mut dyn Learner,
    personal: &mut Personal,
    task: &Task,
    entropy: Seed,
    stop: &Stop,
) -> Answer {
    answer(task.id, attempt(id, learner, personal, task, entropy, stop))
}

/// [`perform`], with the trouble's full message.
///
/// # Errors
/// [`Trouble`].
pub fn attempt(
    id: &ClientId,
    learner: &mut dyn Learner,
    personal: &mut Personal,
    task: &Task,
    entropy: Seed,
    stop: &Stop,
) -> Result<Outcome, Trouble> {
    Desk { id, learner, personal, task, stop }.work(entropy, true)
}

/// The answer to a task that was attempted.
pub fn answer(task: TaskId, attempted: Result<Outcome, Trouble>) -> Answer {
    let declined = |trouble: Trouble| Outcome::Declined { reason: trouble.reason, detail: trouble.detail };
    Answer { task, outcome: attempted.unwrap_or_else(declined) }
}

/// Everything that is at hand while one task is done.
struct Desk<'a> {
    id: &'a ClientId,
    learner: &'a mut dyn Learner,
    personal: &'a mut Personal,
    task: &'a Task,
    stop: &'a Stop,
}

impl Desk<'_> {
    /// Does the task; a panic of the learner is trouble like any other.
    fn work(mut self, entropy: Seed, prepare: bool) -> Result<Outcome, Trouble> {
        let stop = self.stop;
        if stop.is_stopped() {
            return Err(Trouble::stopped());
        }
        let done = catch_unwind(AssertUnwindSafe(|| {
            if prepare {
                self.learner.prepare(&self.task.spec)?;
            }
            let task = self.task;
            match &task.work {
                Work::Statistics { names } => self.count(names),
                Work::Train { model, learning_rate_scale, norm_max } => {
                    self.train(model, *learning_rate_scale, *norm_max, entropy)
                }
                Work::Evaluate { model } => self.evaluate(model, entropy),
            }
        }));
        match done {
            Ok(_) if stop.is_stopped() => Err(Trouble::stopped()),
            Ok(outcome) => outcome,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(Trouble::private(Decline::Failed, format!("the learner panicked: {text}")))
            }
        }
    }

    fn train(
        &mut self,
        model: &Parameters,
        scale: f64,
        norm_max: Option<Positive>,
        entropy: Seed,
    ) -> Result<Outcome, Trouble> {
        let id = self.task.id;
        let start = self.personal.start_of(id.run, id.round).map(<[f32]>::to_vec);
        let mut full = self.full_vector(model, start, entropy)?;
        let order = TrainOrder {
            round: id.round,
            seed: self.task.seed.map_or(entropy, |seed| seed.derive(Purpose::Train, id.round, Some(self.id))),
            learning_rate_scale: scale,
            standardiser: self.task.standardiser.clone(),
        };
        let metrics = self.learner.train(&mut full, &order, self.stop)?;
        if self.stop.is_stopped() {
            return Err(Trouble::stopped());
        }
        self.check_metrics(&metrics)?;
        if metrics.examples == 0 {
            return Err(Trouble::open(Decline::Data, "the site has no training examples".into()));
        }
        self.check_finite(&full, model)?;
        let layout = self.learner.layout();
        let kept = layout.has_personal().then(|| gather_personal(layout, &full));
        let delta = difference(if kept.is_some() { layout.gather_shared(&full) } else { full }, model);
        let outcome = encode(&self.task.spec, delta, norm_max, metrics)?;
        if let Some(kept) = kept {
            self.personal.keep(id.run, id.round, kept);
        }
        Ok(outcome)
    }

    fn evaluate(&mut self, model: &Parameters, entropy: Seed) -> Result<Outcome, Trouble> {
        let latest = self.personal.values(self.task.id.run).map(<[f32]>::to_vec);
        let full = self.full_vector(model, latest, entropy)?;
        let order = EvaluateOrder { standardiser: self.task.standardiser.clone() };
        let metrics = self.learner.evaluate(&full, &order, self.stop)?;
        self.check_metrics(&metrics)?;
        Ok(Outcome::Evaluated { metrics })
    }

    fn count(&mut self, names: &[String]) -> Result<Outcome, Trouble> {
        let statistics = self.learner.statistics()?;
        if !statistics.iter().map(|statistic| &statistic.name).eq(names) {
            let message = format!(
                "the task asks for {} statistics ({}) and the learner has {}; install the same release on both sides",
                names.len(),
                names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", "),
                statistics.len(),
            );
            return Err(Trouble::open(Decline::Unsupported, message));
        }
        let values: Vec<f64> = statistics.iter().map(|statistic| statistic.value).collect();
        let tally = Tally::encode(&values).map_err(|error| {
            let message = format!("{error}; the statistics are {}", names.join(", "));
            Trouble::private(Decline::Data, message)
        })?;
        Ok(Outcome::Counted { limbs: tally.into_limbs() })
    }

    /// The model with the personal part: the kept one, or the learner's first one.
    fn full_vector(
        &mut self,
        model: &Parameters,
        kept: Option<Vec<f32>>,
        entropy: Seed,
    ) -> Result<Vec<f32>, Trouble> {
        let layout = self.learner.layout();
        if model.len() != layout.shared_len() {
            let message = format!(
                "the task's model has {} values and this site's layout {}; install the same release on both sides",
                model.len(),
                layout.shared_len(),
            );
            return Err(Trouble::open(Decline::Unsupported, message));
        }
        if !layout.has_personal() {
            return Ok(model.values().to_vec());
        }
        let mut full = vec![0.0; layout.len()];
        let fits = match kept {
            Some(kept) => scatter_personal(layout, &kept, &mut full),
            None => {
                let seed = self.task.seed.unwrap_or(entropy);
                let first = seed.derive(Purpose::Initialise, Round(0), Some(self.id));
                full = self.learner.initialise(first)?;
                full.len() == self.learner.layout().len()
            }
        };
        if !fits {
            let message =
                "the personal part has another length than the layout; forget what is kept of this run";
            return Err(Trouble::open(Decline::Failed, message.into()));
        }
        self.learner.layout().scatter_shared(model.values(), &mut full);
        Ok(full)
    }

    fn check_metrics(&self, metrics: &Metrics) -> Result<(), Trouble> {
        if metrics.is_sound() {
            return Ok(());
        }
        let message = format!(
            "the metrics of the {} are not finite or out of range (loss {}); lower the learning rate or check the data",
            self.task.id, metrics.loss
        );
        Err(Trouble::private(Decline::NotFinite, message))
    }

    fn check_finite(&self, full: &[f32], model: &Parameters) -> Result<(), Trouble> {
        let Some(index) = full.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let message = if model.values().iter().all(|value| value.is_finite()) {
            format!("training made parameter {index} not finite; lower the learning rate or check the data")
        } else {
            "the model that the server sent is not finite".into()
        };
        Err(Trouble::open(Decline::NotFinite, message))
    }
}

/// What training changed, in the memory of `trained`.
fn difference(mut trained: Vec<f32>, model: &Parameters) -> Vec<f32> {
    trained.iter_mut().zip(model.values()).for_each(|(new, old)| *new -= old);
    trained
}

/// Clips and rounds a delta to the round's lattice. What is measured beside it leaves only where the plan lets it.
fn encode(
    spec: &Spec,
    delta: Vec<f32>,
    norm_max: Option<Positive>,
    metrics: Metrics,
) -> Result<Outcome, Trouble> {
    let unsupported = |error: String| Trouble::open(Decline::Unsupported, error);
    let norm_max = norm_max.unwrap_or(spec.update.norm_max);
    let lattice =
        spec.lattice_within(norm_max, delta.len()).map_err(|error| unsupported(error.to_string()))?;
    let clipped = clip(delta, lattice.bound())
        .map_err(|error| Trouble::open(Decline::NotFinite, format!("{error}; lower the learning rate")))?;
    let encoded = Encoded::encode(&clipped, lattice.weigh(metrics.examples), &lattice)
        .map_err(|error| unsupported(error.to_string()))?;
    let weight = encoded.weight().value();
    let within = clipped.norm_before() <= norm_max.value();
    let vote = if spec.privacy.is_adaptive() { if within { 1 } else { -1 } } else { 0 };
    let metrics = if spec.privacy.hides_metrics() { Metrics::default() } else { metrics };
    Ok(Outcome::Trained { points: encoded.into_points(), weight, vote, metrics })
}

#[cfg(test)]
pub(crate) mod tests;
