//! Does one task: prepare, train, clip, encode; or evaluate; or count.
//!
//! A participant never fails and never panics: trouble becomes an answer that declines the task. What the operator is
//! told names no data of the site; the site's own log gets the learner's full message. An update that is not finite, or
//! longer than the plan's bound, cannot leave: only the lattice's clipping and rounding make the points that are sent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use privacy::noise::NoiseSource;
use privacy::{Encoded, Permit, Tally};
use protocol::{
    Answer, ClientId, Decline, EvaluateOrder, ExampleReleases, LearnError, Learner, LentPermit, LocalPrivacy,
    Metrics, Outcome, Parameters, Positive, Purpose, Round, Seed, Spec, Stop, Task, TaskId, TrainOrder, Work,
};

use crate::Personal;
use crate::audit::Audit;
use crate::guard::Guard;
use crate::ledger::{LedgerHistory, pay_without_memory};
use crate::pause::Pause;
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
    pub(crate) fn private(reason: Decline, message: String) -> Self {
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
            Decline::Paused => "the site has paused",
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
    guard: Option<Guard>,
    pause: Option<Pause>,
    memory: Memory,
}

/// Memory that one update after another is made in, so that none of it is asked for twice. What it holds means nothing.
#[derive(Default)]
pub struct Memory {
    /// The parameters in training, then the difference.
    values: Vec<f32>,
    /// The update on the lattice.
    points: Vec<i32>,
}

impl Memory {
    /// Takes memory back that went away with an update.
    pub fn give_back(&mut self, points: Vec<i32>) {
        if points.capacity() > self.points.capacity() {
            self.points = points;
        }
    }

    /// A copy of `values`.
    fn copy(&mut self, values: &[f32]) -> Vec<f32> {
        let mut copy = std::mem::take(&mut self.values);
        copy.clear();
        copy.extend_from_slice(values);
        copy
    }
}

/// Only sizes: what it holds is one site's update.
impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} values, {} points)", self.values.capacity(), self.points.capacity())
    }
}

impl Participant {
    /// A participant that keeps nothing yet and does whatever it is asked.
    pub fn new(id: ClientId, learner: Box<dyn Learner>) -> Self {
        let (personal, memory) = (Personal::default(), Memory::default());
        Self { id, learner, prepared: None, personal, guard: None, pause: None, memory }
    }

    /// Asks `guard` before every task from now on.
    #[must_use]
    pub fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Declines every task from now on while `pause` holds, and lets it stop the one that runs.
    #[must_use]
    pub fn with_pause(mut self, pause: Pause) -> Self {
        self.pause = Some(pause);
        self
    }

    /// The audit log of its guard, if it has one.
    pub fn audit(&self) -> Option<&Audit> {
        self.guard.as_ref().map(Guard::audit)
    }

    /// The heads of its guard's ledger, if it has one.
    pub fn history(&self) -> Option<&LedgerHistory> {
        self.guard.as_ref().map(Guard::history)
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
        let Some(pause) = self.pause.clone() else { return self.attempt_now(task, entropy, stop) };
        let outcome = match pause.admit(stop) {
            Ok(()) => self.attempt_now(task, entropy, stop),
            Err(paused) => {
                let noted = self.guard.as_ref().map_or(Ok(()), |guard| guard.paused(task, &paused.message));
                Err(noted.err().unwrap_or(paused))
            }
        };
        pause.conclude(outcome)
    }

    fn attempt_now(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Result<Outcome, Trouble> {
        let same = |spec: &Arc<Spec>| Arc::ptr_eq(spec, &task.spec) || **spec == *task.spec;
        let prepared = self.prepared.take().filter(same);
        let desk = Desk {
            id: &self.id,
            learner: &mut *self.learner,
            personal: &mut self.personal,
            memory: &mut self.memory,
            guard: self.guard.as_mut(),
            task,
            stop,
        };
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

/// Does a task for a client whose learner and memory are lent to it (a simulation's worker serves many clients in turn).
/// `learner.prepare` is called each time and must be quick when it already has the task's spec.
pub fn perform(
    id: &ClientId,
    learner: &mut dyn Learner,
    personal: &mut Personal,
    memory: &mut Memory,
    task: &Task,
    entropy: Seed,
    stop: &Stop,
) -> Answer {
    answer(task.id, attempt(id, learner, personal, memory, task, entropy, stop))
}

/// [`perform`], with the trouble's full message.
///
/// # Errors
/// [`Trouble`].
pub fn attempt(
    id: &ClientId,
    learner: &mut dyn Learner,
    personal: &mut Personal,
    memory: &mut Memory,
    task: &Task,
    entropy: Seed,
    stop: &Stop,
) -> Result<Outcome, Trouble> {
    Desk { id, learner, personal, memory, guard: None, task, stop }.work(entropy, true)
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
    memory: &'a mut Memory,
    guard: Option<&'a mut Guard>,
    task: &'a Task,
    stop: &'a Stop,
}

impl Desk<'_> {
    /// Asks the guard, does the task, and tells the guard what came of it.
    fn work(mut self, entropy: Seed, prepare: bool) -> Result<Outcome, Trouble> {
        if self.stop.is_stopped() {
            return Err(Trouble::stopped());
        }
        if let Some(guard) = &self.guard {
            guard.judge(self.task)?;
        }
        let releases = self.caught(|desk| desk.prepare(prepare))?;
        let Some(mut leave) =
            self.guard.as_mut().map(|guard| guard.reserve(self.task, releases)).transpose()?
        else {
            let permit = self.permit_without_guard(releases)?;
            return self.perform(entropy, permit);
        };
        let permit = leave.take_permit();
        let outcome = self.perform(entropy, permit);
        match self.guard {
            Some(guard) => guard.conclude(self.task, leave, outcome),
            None => outcome,
        }
    }

    /// Makes the learner ready, and says what a training will release of single records.
    fn prepare(&mut self, anew: bool) -> Result<Option<ExampleReleases>, Trouble> {
        if anew {
            self.learner.prepare(&self.task.spec)?;
        }
        match self.task.work {
            Work::Train { .. } if self.task.spec.privacy.examples.is_some() => {
                Ok(self.learner.example_releases()?)
            }
            Work::Train { .. } | Work::Evaluate { .. } | Work::Statistics { .. } => Ok(None),
        }
    }

    /// What a client without books may release: it keeps the plan's budgets as if it had trained in every round before.
    fn permit_without_guard(&self, releases: Option<ExampleReleases>) -> Result<Option<Permit>, Trouble> {
        let Work::Train { .. } = self.task.work else { return Ok(None) };
        let paid = pay_without_memory(self.task, releases);
        paid.map_err(|error| Trouble::private(error.reason(), error.to_string()))
    }

    fn perform(&mut self, entropy: Seed, permit: Option<Permit>) -> Result<Outcome, Trouble> {
        let outcome = self.caught(|desk| match &desk.task.work {
            Work::Statistics { names } => desk.count(names),
            Work::Train { model, learning_rate_scale, norm_max } => {
                let (trained, metrics) = desk.train(model, *learning_rate_scale, entropy, permit)?;
                desk.hand_over(model, *norm_max, trained, metrics, entropy)
            }
            Work::Evaluate { model } => desk.evaluate(model, entropy),
        });
        if outcome.is_ok() && self.stop.is_stopped() { Err(Trouble::stopped()) } else { outcome }
    }

    /// Does `work`; a panic of the learner is trouble like any other.
    fn caught<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Trouble::private(Decline::Failed, format!("the learner panicked: {text}")))
        })
    }

    /// The trained full vector, and what was measured.
    fn train(
        &mut self,
        model: &Parameters,
        scale: f64,
        entropy: Seed,
        permit: Option<Permit>,
    ) -> Result<(Vec<f32>, Metrics), Trouble> {
        let id = self.task.id;
        let start = self.personal.start_of(id.run, id.round).map(<[f32]>::to_vec);
        let mut full = self.full_vector(model, start, entropy)?;
        let order = TrainOrder {
            round: id.round,
            seed: self.task.seed.map_or(entropy, |seed| seed.derive(Purpose::Train, id.round, Some(self.id))),
            learning_rate_scale: scale,
            standardiser: self.task.standardiser.clone(),
            permit: permit.map(LentPermit::new),
        };
        let metrics = self.learner.train(&mut full, &order, self.stop)?;
        if self.stop.is_stopped() {
            return Err(Trouble::stopped());
        }
        self.check_metrics(&metrics)?;
        if metrics.examples == 0 {
            return Err(Trouble::open(Decline::Data, "the site has no training examples".into()));
        }
        Ok((full, metrics))
    }

    /// What leaves of a training, and what stays.
    fn hand_over(
        &mut self,
        model: &Parameters,
        norm_max: Option<Positive>,
        full: Vec<f32>,
        metrics: Metrics,
        entropy: Seed,
    ) -> Result<Outcome, Trouble> {
        let id = self.task.id;
        let layout = self.learner.layout();
        let kept = layout.has_personal().then(|| gather_personal(layout, &full));
        let shared = if kept.is_some() {
            check_finite(&full, model)?;
            layout.gather_shared(&full)
        } else {
            full
        };
        let visible = self.visible(metrics);
        let (outcome, left_out) = self.encode(shared, model, norm_max, metrics.examples, visible, entropy)?;
        if let Some(kept) = kept {
            self.personal.keep(id.run, id.round, kept);
        }
        if let Some(left_out) = left_out {
            self.personal.keep_residual(id.run, id.round, left_out);
        }
        Ok(outcome)
    }

    /// What may be told of what was measured: what the site's policy lets leave. Without a policy nothing leaves that a
    /// promise of the plan does not cover.
    fn visible(&self, metrics: Metrics) -> Metrics {
        let privacy = &self.task.spec.privacy;
        let uncovered = privacy.hides_metrics() || privacy.local.is_some() || privacy.examples.is_some();
        match &self.guard {
            Some(guard) => guard.visible(&self.task.spec, metrics),
            None if uncovered => Metrics::default(),
            None => metrics,
        }
    }

    fn evaluate(&mut self, model: &Parameters, entropy: Seed) -> Result<Outcome, Trouble> {
        let latest = self.personal.values(self.task.id.run).map(<[f32]>::to_vec);
        let full = self.full_vector(model, latest, entropy)?;
        let order = EvaluateOrder { standardiser: self.task.standardiser.clone() };
        let metrics = self.learner.evaluate(&full, &order, self.stop)?;
        self.check_metrics(&metrics)?;
        Ok(Outcome::Evaluated { metrics: self.visible(metrics) })
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
            return Ok(self.memory.copy(model.values()));
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

    /// Takes the difference to the model, clips and rounds it to the round's lattice, compresses it as the plan says, and noises
    /// it where the plan wants it noised here. `metrics` is what may leave; what is given beside the outcome is what a lossy
    /// codec has left out.
    fn encode(
        &mut self,
        trained: Vec<f32>,
        model: &Parameters,
        norm_max: Option<Positive>,
        examples: u64,
        metrics: Metrics,
        entropy: Seed,
    ) -> Result<(Outcome, Option<Vec<f32>>), Trouble> {
        let (id, spec, tensors) = (self.task.id, &self.task.spec, self.learner.layout().shared_lengths());
        let unsupported = |error: String| Trouble::open(Decline::Unsupported, error);
        let norm_max = norm_max.unwrap_or(spec.update.norm_max);
        let lattice =
            spec.lattice_within(norm_max, &tensors).map_err(|error| unsupported(error.to_string()))?;
        let clipped = match self.personal.residual(id.run, id.round) {
            Some(left_out) if spec.update.codec.is_lossy() => {
                lattice.clip(difference(trained, model, left_out))
            }
            _ => lattice.clip_difference(trained, model.values()),
        };
        let clipped = clipped.map_err(|error| not_finite(error.index, model))?;
        let points = std::mem::take(&mut self.memory.points);
        let encoded = Encoded::encode_into(&clipped, lattice.weigh(examples), &lattice, points)
            .map_err(|error| unsupported(error.to_string()))?;
        let weight = encoded.weight().value();
        let within = clipped.norm_before() <= norm_max.value();
        self.memory.values = clipped.into_values();
        let vote = if spec.privacy.is_adaptive() { if within { 1 } else { -1 } } else { 0 };
        let seed = || self.task.seed.unwrap_or(entropy).derive(Purpose::Codec, id.round, Some(self.id));
        let (encoded, left_out) = compress(spec, encoded, seed);
        let points = match &spec.privacy.local {
            Some(local) => noised(encoded, local)?,
            None => encoded.into_points(),
        };
        Ok((Outcome::Trained { points, weight, vote, metrics }, left_out))
    }
}

/// What training changed, and what earlier updates left out, in the memory of `trained`.
fn difference(mut trained: Vec<f32>, model: &Parameters, left_out: &[f32]) -> Vec<f32> {
    for ((new, old), more) in trained.iter_mut().zip(model.values()).zip(left_out) {
        *new = (*new - old) + more;
    }
    trained
}

fn check_finite(full: &[f32], model: &Parameters) -> Result<(), Trouble> {
    full.iter().position(|value| !value.is_finite()).map_or(Ok(()), |index| Err(not_finite(index, model)))
}

fn not_finite(index: usize, model: &Parameters) -> Trouble {
    let message = if model.values().iter().all(|value| value.is_finite()) {
        format!("training made parameter {index} not finite; lower the learning rate or check the data")
    } else {
        "the model that the server sent is not finite".into()
    };
    Trouble::open(Decline::NotFinite, message)
}

/// The points that the plan's codec can say, and what they leave out, in units of the parameters.
fn compress(spec: &Spec, update: Encoded, seed: impl FnOnce() -> Seed) -> (Encoded, Option<Vec<f32>>) {
    let codec = spec.update.codec;
    if !codec.is_lossy() {
        return (update, None);
    }
    let step = update.lattice().step();
    let mut whole = update.points().to_vec();
    let sent = codec.compress(update, &seed());
    whole.iter_mut().zip(sent.points()).for_each(|(whole, sent)| *whole -= sent);
    let left_out = whole.into_iter().map(|points| (f64::from(points) * step) as f32).collect();
    (sent, Some(left_out))
}

/// Noise that nobody else knows: not even a rehearsal's seed gives it.
fn noised(update: Encoded, local: &LocalPrivacy) -> Result<Vec<i32>, Trouble> {
    let failed = |error: String| Trouble::open(Decline::Failed, error);
    let source = NoiseSource::from_entropy().map_err(|error| failed(error.to_string()))?;
    let noised = update.noise(local.noise_multiplier.value(), source);
    noised.map_err(|error| Trouble::open(Decline::Unsupported, error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests;
