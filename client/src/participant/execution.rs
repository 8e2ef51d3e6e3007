//! One task at one client, from its arrival to its outcome, in an order that lets no record decide what a server sees.
//!
//! 1. What the task alone shows: its numbers, and an evaluation that would tell nothing, which reads nothing.
//! 2. The site's policy, which knows the task, public facts and the books.
//! 3. What is made ready without a record: the model, the lattice, the steps that a training will release.
//! 4. The ledger, which books them.
//! 5. The records. From here on nothing is cancelled.
//!
//! Where the plan promises something against the server ([`protocol::PrivacySpec::holds_against_server`]), whatever fails in the last
//! step ends in an ordinary answer of zeros where noise is added here, and else in one fixed reason. What it was goes to the
//! site's own log as a complaint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use privacy::accounting::Figure;
use privacy::noise::NoiseSource;
use privacy::{Encoded, Lattice, Permit, Statistics, first_not_finite};
use protocol::{
    Decline, EvaluateOrder, ExampleReleases, LentPermit, LocalPrivacy, METRIC_MAX, MethodWork, Metrics,
    Outcome, Parameters, Purpose, RecordCount, Round, Seed, Spec, Stop, Task, TrainOrder, Weighting, Work,
};

use super::{Lent, TaskError};
use crate::guard::Guard;
use crate::ledger::pay_without_memory;
use crate::local_state::{Origin, gather_personal, scatter_personal};
use crate::methods::{MethodSite, SiteMethod, SiteMethods};
use crate::policy::SiteFacts;

/// The method that this work asks for.
///
/// # Errors
/// When this program does not know it.
fn known<'a>(methods: &'a SiteMethods, work: &MethodWork) -> Result<&'a Arc<dyn SiteMethod>, TaskError> {
    methods.get(work).ok_or_else(|| {
        let MethodWork { method, version, .. } = work;
        let message =
            format!("this site's software does not know the method `{method}` in version {version}");
        TaskError::open(Decline::Unsupported, message)
    })
}

/// Everything that is at hand while one task is done.
pub(super) struct TaskExecution<'a> {
    pub(super) lent: Lent<'a>,
    pub(super) guard: Option<&'a mut Guard>,
    pub(super) task: &'a Task,
    pub(super) stop: &'a Stop,
    /// Whether the learner is ready for the task's spec.
    pub(super) prepared: bool,
    /// What went wrong and was answered all the same.
    pub(super) complaint: Option<TaskError>,
    /// Whether the task was charged before, and is charged again.
    pub(super) is_charged_again: bool,
}

/// What came of a task.
pub(super) struct Attempt {
    pub(super) outcome: Result<Outcome, TaskError>,
    /// For the site's own log; nothing of it may leave.
    pub(super) complaint: Option<TaskError>,
    /// Whether the learner is ready for another task of the same spec.
    pub(super) prepared: bool,
    /// Whether the task was charged before, and is charged again.
    pub(super) is_charged_again: bool,
}

/// What is known before a record is read.
struct Ready {
    /// What a training will release of single records.
    releases: Option<ExampleReleases>,
    /// The full vector to begin with; empty for statistics.
    full: Vec<f32>,
    /// Of a training's update.
    lattice: Option<Lattice>,
    records: RecordCount,
}

impl TaskExecution<'_> {
    /// Does the task.
    pub(super) fn run(mut self, entropy: Seed) -> Attempt {
        let outcome = self.work(entropy);
        // After an error the learner is prepared anew: its state may be what went wrong.
        let prepared = self.prepared && outcome.is_ok() && self.complaint.is_none();
        let Self { complaint, is_charged_again, .. } = self;
        Attempt { outcome, complaint, prepared, is_charged_again }
    }

    fn work(&mut self, entropy: Seed) -> Result<Outcome, TaskError> {
        if self.stop.is_stopped() {
            return Err(TaskError::stopped());
        }
        self.judge()?;
        if matches!(self.task.work, Work::Evaluate { .. }) && !self.tells_metrics() {
            return self.tell_nothing();
        }
        let ready = self.caught(|this| this.get_ready(entropy))?;
        let Some(guard) = self.guard.as_mut() else {
            let permit = self.permit_without_guard(ready.releases)?;
            return self.perform(entropy, ready, permit);
        };
        guard.judge_size(self.task, self.lent.learner.layout().len() as u64)?;
        let mut leave = guard.reserve(self.task, ready.releases)?;
        if self.stop.is_stopped() {
            guard.give_back(self.task, leave)?;
            return Err(TaskError::stopped());
        }
        self.is_charged_again = leave.is_charged_again();
        let permit = leave.take_permit();
        let outcome = self.perform(entropy, ready, permit);
        match self.guard.as_mut() {
            Some(guard) => guard.conclude(self.task, leave, outcome),
            None => outcome,
        }
    }

    /// Judges the task before the learner is asked anything but how large the model is.
    fn judge(&mut self) -> Result<(), TaskError> {
        if self.guard.is_none() {
            return self.task.check_numbers().map_err(TaskError::from);
        }
        let facts = self.facts()?;
        self.guard.as_ref().map_or(Ok(()), |guard| guard.judge(self.task, &facts))
    }

    /// Judges a task whose answer was computed and paid for before.
    #[cfg(feature = "net")]
    pub(super) fn judge_again(mut self) -> Result<(), TaskError> {
        if self.guard.is_none() {
            return self.task.check_numbers().map_err(TaskError::from);
        }
        let facts = self.facts()?;
        self.guard.as_ref().map_or(Ok(()), |guard| guard.judge_again(self.task, &facts))
    }

    /// What is known of the site outside of it.
    fn facts(&mut self) -> Result<SiteFacts, TaskError> {
        self.caught(|this| {
            let sent = this.task.work.model().map_or(0, |model| model.len()) as u64;
            let counted = this.lent.learner.parameter_count(&this.task.spec).unwrap_or(0);
            let records = this.lent.learner.record_count().unwrap_or(RecordCount::Hidden);
            Ok(SiteFacts { parameters: counted.max(sent), records })
        })
    }

    /// Whether an evaluation tells the server anything.
    fn tells_metrics(&self) -> bool {
        let spec = &self.task.spec;
        self.guard.as_ref().map_or_else(|| !spec.privacy.hides_metrics(), |guard| guard.tells_metrics(spec))
    }

    /// Answers an evaluation of which nothing may be told, without touching a record.
    fn tell_nothing(&mut self) -> Result<Outcome, TaskError> {
        let nothing = Ok(self.with_further(Outcome::evaluated(Metrics::default()), &[]));
        match self.guard.as_mut() {
            Some(guard) => {
                let leave = guard.reserve(self.task, None)?;
                guard.conclude(self.task, leave, nothing)
            }
            None => nothing,
        }
    }

    /// Makes everything ready that needs no record.
    fn get_ready(&mut self, entropy: Seed) -> Result<Ready, TaskError> {
        let (id, spec) = (self.task.id, &self.task.spec);
        if !self.prepared {
            self.lent.learner.prepare(spec)?;
            self.prepared = true;
        }
        let records = self.lent.learner.record_count()?;
        let ready = Ready { releases: None, full: Vec::new(), lattice: None, records };
        match &self.task.work {
            Work::Statistics { .. } => Ok(ready),
            Work::Method(work) => known(self.lent.methods, work).map(|_| ready),
            Work::Evaluate { model } => {
                let latest = self.lent.personal.latest(&self.origin()).map(<[f32]>::to_vec);
                Ok(Ready { full: self.full_vector(model, latest, entropy)?, ..ready })
            }
            Work::Train { model, norm_max, .. } => {
                let releases = self.releases(records)?;
                let origin = self.origin();
                self.tell_of_another(&origin);
                let start = self.lent.personal.start_of(&origin, id.round).map(<[f32]>::to_vec);
                let full = self.full_vector(model, start, entropy)?;
                let (norm_max, tensors) =
                    (norm_max.unwrap_or(spec.update.norm_max), self.lent.learner.layout().shared_lengths());
                let lattice = spec.lattice_within(norm_max, &tensors);
                let lattice =
                    lattice.map_err(|error| TaskError::open(Decline::Unsupported, error.to_string()))?;
                Ok(Ready { releases, full, lattice: Some(lattice), ..ready })
            }
        }
    }

    /// Where what is kept of this task comes from.
    fn origin(&self) -> Origin {
        let federation = self.guard.as_ref().map(|guard| guard.federation()).unwrap_or_default();
        Origin { federation, run: self.task.id.run, promise: self.task.spec.privacy.clone() }
    }

    /// Says that this training begins without what was kept under its run's number.
    fn tell_of_another(&mut self, origin: &Origin) {
        let carries = self.lent.learner.layout().has_personal() || self.task.spec.update.codec.is_lossy();
        if carries && self.lent.personal.is_of_another(origin) {
            let message = format!(
                "what this site kept of run {} was made for another federation, or under another promise of privacy; it is not used, and the personal \
                 layers begin anew",
                origin.run
            );
            self.complaint = Some(TaskError::private(Decline::Data, message));
        }
    }

    /// What a training will release of single records: from the plan and what is known of their number.
    fn releases(&mut self, records: RecordCount) -> Result<Option<ExampleReleases>, TaskError> {
        let spec = &self.task.spec;
        if spec.privacy.examples.is_none() {
            return Ok(None);
        }
        let unsupported = |message: &str| TaskError::open(Decline::Unsupported, message.to_owned());
        if records == RecordCount::Hidden {
            if spec.training.batch_size == 0 {
                return Err(unsupported(
                    "the plan takes all records in one step and divides by their number, which this site does not tell; give \
                     training.batch_size, or declare a number with `public_records` in site.toml",
                ));
            }
            if spec.update.weights == Weighting::Examples && spec.privacy.local.is_none() {
                return Err(unsupported(
                    "updates are weighted by the number of records, which this site does not tell; take weights = \"uniform\", \
                     or declare a number with `public_records` in site.toml",
                ));
            }
        }
        let releases = self.lent.learner.example_releases()?;
        if let Some(releases) = &releases {
            releases.check()?;
        }
        Ok(releases)
    }

    /// What a client without books may release: it keeps the plan's budgets as if it had trained in every round before.
    fn permit_without_guard(&self, releases: Option<ExampleReleases>) -> Result<Option<Permit>, TaskError> {
        let Work::Train { .. } = self.task.work else { return Ok(None) };
        let paid = pay_without_memory(self.task, releases);
        paid.map_err(|error| TaskError::private(error.reason(), error.to_string()))
    }

    /// Works on the records.
    fn perform(&mut self, entropy: Seed, ready: Ready, permit: Option<Permit>) -> Result<Outcome, TaskError> {
        let Ready { full, lattice, records, .. } = ready;
        let done = self.caught(|this| match &this.task.work {
            Work::Statistics { names } => this.count(names),
            Work::Method(work) => this.contribute(work, entropy),
            Work::Evaluate { .. } => {
                let outcome = this.evaluate(&full)?;
                let further = this.lent.learner.take_further();
                Ok(this.with_further(outcome, &further))
            }
            Work::Train { model, learning_rate_scale, .. } => {
                let (trained, metrics) = this.train(full, *learning_rate_scale, entropy, permit)?;
                let lattice = lattice.as_ref().ok_or_else(unready)?;
                let further = this.lent.learner.take_further();
                let outcome = this.hand_over(model, lattice, trained, (metrics, records), entropy)?;
                Ok(this.with_further(outcome, &further))
            }
        });
        if self.stop.is_stopped() {
            return Err(TaskError::stopped());
        }
        match done {
            Err(error) if self.task.spec.privacy.holds_against_server() => {
                let answer = self.answer_all_the_same(lattice.as_ref());
                self.complaint = Some(error);
                answer
            }
            done => done,
        }
    }

    /// What is answered when the work has failed and nobody may see that a record made it fail.
    fn answer_all_the_same(&mut self, lattice: Option<&Lattice>) -> Result<Outcome, TaskError> {
        let fixed = || TaskError::private(Decline::Failed, "the task failed; the complaint says how".into());
        match (&self.task.work, &self.task.spec.privacy.local, lattice) {
            (Work::Train { model, .. }, Some(_), Some(lattice)) => {
                let unchanged = self.lent.memory.copy(model.values());
                let nothing = (Metrics::default(), RecordCount::Hidden);
                self.encode(unchanged, model, lattice, nothing, Seed::from_number(0))
                    .map(|(outcome, _)| outcome)
            }
            _ => Err(fixed()),
        }
    }

    /// Does `work`; a panic of the learner is an error like any other.
    fn caught<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, TaskError>) -> Result<T, TaskError> {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(TaskError::private(Decline::Failed, format!("the learner panicked: {text}")))
        })
    }

    /// Does a method's work, from the state that it kept at this site.
    fn contribute(&mut self, work: &MethodWork, entropy: Seed) -> Result<Outcome, TaskError> {
        let (id, origin) = (self.task.id, self.origin());
        let method = Arc::clone(known(self.lent.methods, work)?);
        let seed = self.task.seed.unwrap_or(entropy);
        let mut state = self.lent.personal.method_state(&origin, &work.method, (id.round, id.step)).cloned();
        let mut site = MethodSite {
            id: self.lent.id,
            spec: &self.task.spec,
            round: id.round,
            step: id.step,
            standardiser: self.task.standardiser.as_deref(),
            learner: &mut *self.lent.learner,
            seed: seed.derive(Purpose::Method, id.round, Some(self.lent.id)),
            stop: self.stop,
            state: &mut state,
        };
        let mut contribution = method.perform(work, &mut site)?;
        if let Some(metrics) = contribution.metrics {
            self.check_metrics(&metrics)?;
            contribution.metrics = Some(self.visible(metrics));
        }
        self.lent.personal.keep_method_state(&origin, &work.method, (id.round, id.step), state);
        Ok(Outcome::Done(contribution))
    }

    /// The trained full vector, and what was measured.
    fn train(
        &mut self,
        mut full: Vec<f32>,
        scale: f64,
        entropy: Seed,
        permit: Option<Permit>,
    ) -> Result<(Vec<f32>, Metrics), TaskError> {
        let id = self.task.id;
        let order = TrainOrder {
            round: id.round,
            seed: self
                .task
                .seed
                .map_or(entropy, |seed| seed.derive(Purpose::Train, id.round, Some(self.lent.id))),
            learning_rate_scale: scale,
            standardiser: self.task.standardiser.clone(),
            permit: permit.map(LentPermit::new),
        };
        let metrics = self.lent.learner.train(&mut full, &order, self.stop)?;
        if let Some(complaint) = self.lent.learner.take_complaint() {
            self.complaint = Some(TaskError::private(Decline::Data, complaint));
        }
        if self.stop.is_stopped() {
            return Err(TaskError::stopped());
        }
        if self.task.spec.privacy.holds_against_server() {
            return Ok((full, metrics));
        }
        self.check_metrics(&metrics)?;
        if metrics.examples == 0 {
            return Err(TaskError::open(Decline::Data, "the site has no training examples".into()));
        }
        Ok((full, metrics))
    }

    /// What leaves of a training, and what stays.
    fn hand_over(
        &mut self,
        model: &Parameters,
        lattice: &Lattice,
        full: Vec<f32>,
        measured: (Metrics, RecordCount),
        entropy: Seed,
    ) -> Result<Outcome, TaskError> {
        let id = self.task.id;
        let layout = self.lent.learner.layout();
        let kept = layout.has_personal().then(|| gather_personal(layout, &full));
        let shared = if kept.is_some() {
            check_finite(&full, model)?;
            layout.gather_shared(&full)
        } else {
            full
        };
        let (outcome, left_out) = self.encode(shared, model, lattice, measured, entropy)?;
        if let Some(kept) = kept {
            self.lent.personal.keep(&self.origin(), id.round, kept);
        }
        if let Some(left_out) = left_out {
            self.lent.personal.keep_residual(&self.origin(), id.round, left_out);
        }
        Ok(outcome)
    }

    /// What may be told of what was measured: what plan and policy let leave. Without a policy nothing leaves that a promise
    /// of the plan does not cover.
    fn visible(&self, metrics: Metrics) -> Metrics {
        let metrics = match &self.guard {
            Some(guard) => guard.visible(&self.task.spec, metrics),
            None if self.task.spec.privacy.hides_metrics() => Metrics::default(),
            None => metrics,
        };
        // Only beside a promise; elsewhere unsound ones have been refused.
        if metrics.is_sound() { metrics } else { Metrics::default() }
    }

    /// The same with what the learner measured beside its metrics, one number for each name of the plan: what plan and policy let leave.
    fn with_further(&self, mut outcome: Outcome, measured: &[f64]) -> Outcome {
        let names = self.task.spec.further_metrics();
        if let Outcome::Done(contribution) = &mut outcome {
            let tells = self.guard.as_ref().is_none_or(|guard| guard.tells_further(&self.task.spec));
            let of = |place: usize| {
                measured.get(place).copied().filter(|value| tells && value.abs() <= METRIC_MAX)
            };
            contribution.further = (0..names.len()).map(|place| of(place).unwrap_or(f64::NAN)).collect();
        }
        outcome
    }

    /// The number by which an update counts: nothing that only records tell, where they are promised not to.
    fn counted(&self, metrics: &Metrics, records: RecordCount) -> u64 {
        match records {
            _ if !self.task.spec.privacy.holds_against_server() => metrics.examples,
            RecordCount::Public(records) => records,
            RecordCount::Hidden => 1,
        }
    }

    fn evaluate(&mut self, full: &[f32]) -> Result<Outcome, TaskError> {
        let order = EvaluateOrder { standardiser: self.task.standardiser.clone() };
        let metrics = self.lent.learner.evaluate(full, &order, self.stop)?;
        self.check_metrics(&metrics)?;
        Ok(Outcome::evaluated(self.visible(metrics)))
    }

    fn count(&mut self, names: &[String]) -> Result<Outcome, TaskError> {
        let statistics = self.lent.learner.statistics()?;
        if !statistics.iter().map(|statistic| &statistic.name).eq(names) {
            let message = format!(
                "the task asks for {} statistics ({}) and the learner has {}; install the same release on both sides",
                names.len(),
                names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", "),
                statistics.len(),
            );
            return Err(TaskError::open(Decline::Unsupported, message));
        }
        let statistics = Statistics::encode(statistics.iter().map(|statistic| &statistic.value));
        Ok(Outcome::counted(statistics.into_words()))
    }

    /// The model with the personal part: the kept one, or the learner's first one.
    fn full_vector(
        &mut self,
        model: &Parameters,
        kept: Option<Vec<f32>>,
        entropy: Seed,
    ) -> Result<Vec<f32>, TaskError> {
        let layout = self.lent.learner.layout();
        if model.len() != layout.shared_len() {
            let message = format!(
                "the task's model has {} values and this site's layout {}; install the same release on both sides",
                model.len(),
                layout.shared_len(),
            );
            return Err(TaskError::open(Decline::Unsupported, message));
        }
        if !layout.has_personal() {
            return Ok(self.lent.memory.copy(model.values()));
        }
        let mut full = vec![0.0; layout.len()];
        // What an earlier task of the same run has kept, or has failed to keep, may follow from records: where it does not fit and
        // nobody may see that, the part begins anew.
        let hidden = self.task.spec.privacy.holds_against_server();
        let personal_len = layout.len() - layout.shared_len();
        let kept = kept.filter(|kept| !hidden || kept.len() == personal_len);
        let fits = match kept {
            Some(kept) => scatter_personal(layout, &kept, &mut full),
            None => {
                let seed = self.task.seed.unwrap_or(entropy);
                let first = seed.derive(Purpose::Initialise, Round(0), Some(self.lent.id));
                full = self.lent.learner.initialise(first)?;
                full.len() == self.lent.learner.layout().len()
            }
        };
        if !fits {
            let message =
                "the personal part has another length than the layout; forget what is kept of this run";
            return Err(TaskError::open(Decline::Failed, message.into()));
        }
        self.lent.learner.layout().scatter_shared(model.values(), &mut full);
        Ok(full)
    }

    fn check_metrics(&self, metrics: &Metrics) -> Result<(), TaskError> {
        if metrics.is_sound() {
            return Ok(());
        }
        let advice = match &self.task.work {
            // What a method measures grows with the values themselves.
            Work::Method(_) | Work::Statistics { .. } => {
                "bring the values near to 1, by standardise = \"federated\" or \"site\" beside the plan's columns (divide_by for arrays) or in another unit, \
                 and look for values that no record can have"
            }
            Work::Train { .. } | Work::Evaluate { .. } => {
                "lower the learning rate, standardise the data, or check it"
            }
        };
        let message = format!(
            "the metrics of the {} are not finite or out of range (loss {:.3}); {advice}",
            self.task.id,
            Figure(metrics.loss)
        );
        Err(TaskError::private(Decline::NotFinite, message))
    }

    /// Takes the difference to the model, clips and rounds it to the round's lattice, compresses it as the plan says, and noises
    /// it where the plan wants it noised here. What is given beside the outcome is what a lossy codec has left out.
    fn encode(
        &mut self,
        trained: Vec<f32>,
        model: &Parameters,
        lattice: &Lattice,
        (metrics, records): (Metrics, RecordCount),
        entropy: Seed,
    ) -> Result<(Outcome, Option<Vec<f32>>), TaskError> {
        let (id, spec) = (self.task.id, &self.task.spec);
        let unsupported = |error: String| TaskError::open(Decline::Unsupported, error);
        let clipped = match self.lent.personal.residual(&self.origin(), id.round) {
            Some(left_out) if spec.update.codec.is_lossy() => {
                lattice.clip(difference(trained, model, left_out))
            }
            _ => lattice.clip_difference(trained, model.values()),
        };
        let clipped = clipped.map_err(|error| not_finite(error.index, model))?;
        let points = std::mem::take(&mut self.lent.memory.points);
        let weight = lattice.weigh(self.counted(&metrics, records));
        let metrics = self.visible(metrics);
        let encoded = Encoded::encode_into(&clipped, weight, lattice, points)
            .map_err(|error| unsupported(error.to_string()))?;
        let weight = encoded.weight().value();
        let within = clipped.norm_before() <= lattice.bound().value();
        self.lent.memory.values = clipped.into_values();
        let vote = if spec.privacy.is_adaptive() { if within { 1 } else { -1 } } else { 0 };
        let seed = || self.task.seed.unwrap_or(entropy).derive(Purpose::Codec, id.round, Some(self.lent.id));
        let (encoded, left_out) = compress(spec, encoded, seed);
        let points = match &spec.privacy.local {
            Some(local) => noised(encoded, local)?,
            None => encoded.into_points(),
        };
        Ok((Outcome::trained(points, weight, vote, metrics), left_out))
    }
}

fn unready() -> TaskError {
    TaskError::open(Decline::Failed, "a training was begun without its lattice".into())
}

/// What training changed, and what earlier updates left out, in the memory of `trained`.
fn difference(mut trained: Vec<f32>, model: &Parameters, left_out: &[f32]) -> Vec<f32> {
    for ((new, old), more) in trained.iter_mut().zip(model.values()).zip(left_out) {
        *new = (*new - old) + more;
    }
    trained
}

fn check_finite(full: &[f32], model: &Parameters) -> Result<(), TaskError> {
    first_not_finite(full).map_or(Ok(()), |index| Err(not_finite(index, model)))
}

fn not_finite(index: usize, model: &Parameters) -> TaskError {
    let message = if first_not_finite(model.values()).is_none() {
        format!("training made parameter {index} not finite; lower the learning rate or check the data")
    } else {
        "the model that the server sent is not finite".into()
    };
    TaskError::open(Decline::NotFinite, message)
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

/// Noise that nobody else knows: not even the seed of a seeded run gives it.
fn noised(update: Encoded, local: &LocalPrivacy) -> Result<Vec<i32>, TaskError> {
    let failed = |error: String| TaskError::open(Decline::Failed, error);
    let source = NoiseSource::from_entropy().map_err(|error| failed(error.to_string()))?;
    let noised = update.noise(local.noise_multiplier.value(), source);
    noised.map_err(|error| TaskError::open(Decline::Unsupported, error.to_string()))
}
