//! What trains: the seam between federation and learning.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use privacy::accounting::Mechanism;
use privacy::{Permit, WideSum};

use crate::numbers::{TaskFault, check_steps};
use crate::{Decline, Layout, Metrics, Round, Seed, Spec, Standardiser, TrainingSpec};

/// Tells a learner, between batches, that its result is no longer wanted.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the work to end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a learner could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LearnError {
    /// What the server is told.
    pub reason: Decline,
    /// What the site's own log says: file, line and value at fault, and what to do.
    pub message: String,
}

impl LearnError {
    /// An error of this kind.
    pub fn new(reason: Decline, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// One named sum over a site's training data.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistic {
    /// Its name, as in [`Spec::statistics`].
    pub name: String,
    /// Its value, unrounded; [`WideSum::of`] makes one of an f64.
    pub value: WideSum,
}

/// What one order's private training releases: in each step a noised sum of clipped gradients, over records that take part
/// by an independent coin each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExampleReleases {
    /// Steps, that is releases; at least 1.
    pub steps: u64,
    /// Each record's chance to be in the batch of a step, above 0, at most 1.
    pub sampling_rate: f64,
    /// The expected size of a batch, by which each sum is divided, in records; at least 1.
    pub batch_size: u64,
}

/// How many training records a site has, as far as anybody outside may know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordCount {
    /// Nobody may know: nothing that leaves the site may follow from it.
    #[default]
    Hidden,
    /// The site has declared this number, whether or not it is right: what is released follows from it alone.
    Public(u64),
}

impl ExampleReleases {
    /// Those of a site with so many records. Of a public number, an epoch has as many steps as batches of the plan's size cover
    /// the records. Where the number is hidden, every record is in every step, an epoch is one step, and the sum is divided
    /// by the plan's batch size; `None` where the plan has no such size, and for no record.
    pub fn of(training: &TrainingSpec, records: RecordCount) -> Option<Self> {
        let records = match records {
            RecordCount::Hidden if training.batch_size == 0 => return None,
            RecordCount::Hidden => {
                let (steps, batch_size) = (training.epochs.into(), training.batch_size as u64);
                return Some(Self { steps, sampling_rate: 1.0, batch_size });
            }
            RecordCount::Public(0) => return None,
            RecordCount::Public(records) => records,
        };
        let planned = if training.batch_size == 0 { records } else { training.batch_size as u64 };
        let batch_size = planned.min(records);
        let steps = records.div_ceil(batch_size).checked_mul(training.epochs.into())?;
        Some(Self { steps, sampling_rate: batch_size as f64 / records as f64, batch_size })
    }

    /// Whether there are no more steps than a site begins with.
    ///
    /// # Errors
    /// [`TaskFault`] with the number and its bound.
    pub fn check(&self) -> Result<(), TaskFault> {
        check_steps(self.steps)
    }

    /// The same releases towards somebody who knows the coins, as a server knows those of a run with a seed: chance counts for
    /// nothing.
    #[must_use]
    pub fn without_chance(self) -> Self {
        Self { sampling_rate: 1.0, ..self }
    }

    /// One of these releases as an accountant understands it. The relation is zero-out: a record is not added or removed but
    /// has, or has not, a gradient; rate, steps and divisor are the same either way.
    pub fn mechanism(&self, noise_multiplier: f64) -> Mechanism {
        match self.sampling_rate {
            rate if rate < 1.0 => Mechanism::PoissonGaussian { noise_multiplier, sampling_rate: rate },
            _ => Mechanism::Gaussian { noise_multiplier },
        }
    }
}

/// A site's permit, lent to a learner for one order. Copies are of the loan, not of the permit.
#[derive(Clone, Debug)]
pub struct LentPermit(Arc<Mutex<Permit>>);

impl LentPermit {
    /// Lends a permit.
    pub fn new(permit: Permit) -> Self {
        Self(Arc::new(Mutex::new(permit)))
    }

    /// The permit, for one learner at a time. What a learner that panicked took from it stays taken.
    pub fn lock(&self) -> MutexGuard<'_, Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The permit back, to be spent or cancelled; none while another copy of the loan exists.
    pub fn into_permit(self) -> Option<Permit> {
        Arc::into_inner(self.0).map(|permit| permit.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How to train once.
#[derive(Clone, Debug)]
pub struct TrainOrder {
    /// The round, for logs.
    pub round: Round,
    /// Where batches and dropout come from.
    pub seed: Seed,
    /// The schedule's factor on the learning rate.
    pub learning_rate_scale: f64,
    /// Federation-wide standardisation, where the plan has it.
    pub standardiser: Option<Arc<Standardiser>>,
    /// The right to the releases of a training that protects single records ([`Learner::example_releases`]); without it a
    /// plan with such a guarantee is not trained.
    pub permit: Option<LentPermit>,
}

/// How to evaluate once.
#[derive(Clone, Debug)]
pub struct EvaluateOrder {
    /// Federation-wide standardisation, where the plan has it.
    pub standardiser: Option<Arc<Standardiser>>,
}

/// A training record, made ready.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Record<'a> {
    /// The values of [`Spec::input_shape`], in its order.
    pub features: &'a [f32],
    /// What the plan's target says of it.
    pub label: Label,
}

/// The label of a record.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub enum Label {
    /// A class, from 0.
    Class(u32),
    /// A real number.
    Real(f32),
}

/// Whose models a learner trains and evaluates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trains {
    /// Those of this program, on records that it reads.
    #[default]
    BuiltIn,
    /// External ones.
    External,
    /// Both.
    Both,
}

/// A model and one site's data. Synchronous and object-safe: candle's trainer, a toy in a test, an attacker in a
/// simulation. Vectors are *full* vectors in the order of [`Learner::layout`].
///
/// Under a promise that holds against the server ([`PrivacySpec::holds_against_server`](crate::PrivacySpec::holds_against_server))
/// only [`Learner::train`] may read records, and whether it succeeds must not depend on a single one: a record that cannot be
/// used counts as a zero. A failure of it is answered with one fixed reason, and charged.
pub trait Learner: Send {
    /// How many parameters the model of `spec` has, those that stay at the site included, where that can be said before
    /// memory is taken for it; a site's policy limits it.
    fn parameter_count(&self, _spec: &Spec) -> Option<u64> {
        None
    }

    /// Whose models it trains and evaluates; its site is asked for no other.
    fn trains(&self) -> Trains {
        Trains::BuiltIn
    }

    /// Makes ready for a run; called before any other method and again whenever the spec changes. It reads no record, so it
    /// says nothing of any.
    ///
    /// # Errors
    /// When the spec is not supported.
    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError>;

    /// The layout of the prepared model.
    fn layout(&self) -> &Layout;

    /// The first values of what stays at the site, as a full vector, from `seed`. Shared coordinates are ignored.
    ///
    /// # Errors
    /// When the model cannot be initialised.
    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError>;

    /// The statistics of [`Spec::statistics`] over the training data.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError>;

    /// Shows every training record to `visit`, in the order of the data, made ready as the plan says: missing cells filled, numeric columns
    /// standardised, categories one-hot encoded. What a method computes without gradients, it computes from this.
    ///
    /// # Errors
    /// When the records cannot be read, or this learner shows none.
    fn visit_records(
        &mut self,
        standardiser: Option<&Standardiser>,
        visit: &mut dyn FnMut(Record<'_>),
    ) -> Result<(), LearnError> {
        let _ = (standardiser, visit);
        Err(LearnError::new(
            Decline::Unsupported,
            "this site's learner trains and evaluates models alone: it shows its records to no method",
        ))
    }

    /// How many training records there are, as far as anybody outside may know.
    ///
    /// # Errors
    /// When a number that is public by counting cannot be counted.
    fn record_count(&mut self) -> Result<RecordCount, LearnError> {
        Ok(RecordCount::Hidden)
    }

    /// What went wrong with records in the last training and was answered all the same, in words for the site's own log; the
    /// server does not hear of it.
    fn take_complaint(&mut self) -> Option<String> {
        None
    }

    /// What the last training or evaluation measured beside its metrics, in the order of the plan's names ([`crate::LearnerSpec::metrics`]), not a
    /// number where it measured none; empty for learners that measure nothing more.
    fn take_further(&mut self) -> Vec<f64> {
        Vec::new()
    }

    /// What [`Learner::train`] will release of single records, for the site's ledger to pay before it begins; none where
    /// the plan does not ask for a guarantee for records, or the learner cannot give it. It follows from the spec and
    /// [`Learner::record_count`] alone.
    ///
    /// # Errors
    /// As [`Learner::record_count`].
    fn example_releases(&mut self) -> Result<Option<ExampleReleases>, LearnError> {
        Ok(None)
    }

    /// Trains `parameters` in place on the training data.
    ///
    /// # Errors
    /// When training fails or is stopped; `parameters` are unspecified then.
    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError>;

    /// Measures `parameters` on the test data.
    ///
    /// # Errors
    /// When there is no test data or it cannot be read.
    fn evaluate(
        &mut self,
        parameters: &[f32],
        order: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError>;
}
