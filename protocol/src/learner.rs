//! What trains: the seam between federation and learning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Decline, Layout, Metrics, Round, Seed, Spec, Standardiser};

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
    /// Its value.
    pub value: f64,
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
}

/// How to evaluate once.
#[derive(Clone, Debug)]
pub struct EvaluateOrder {
    /// Federation-wide standardisation, where the plan has it.
    pub standardiser: Option<Arc<Standardiser>>,
}

/// A model and one site's data. Synchronous and object-safe: candle's trainer, a toy in a test, an attacker in a
/// simulation. Vectors are *full* vectors in the order of [`Learner::layout`].
pub trait Learner: Send {
    /// Makes ready for a run; called before any other method and again whenever the spec changes.
    ///
    /// # Errors
    /// When the spec is not supported or the data does not fit it.
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
