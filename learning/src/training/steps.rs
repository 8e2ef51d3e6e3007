//! The passes over the records: steps of training, and the batches of an evaluation.

use protocol::{Decline, LearnError, Loss, Metrics, Purpose, Round, Spec, Stop, TrainOrder};

use super::batches::shuffle;
use super::engine::{Engine, Seen};
use crate::View;
use crate::model::Mode;

/// Samples a forward pass of an evaluation takes.
const EVALUATION_BATCH: usize = 64;

/// Sums over the samples seen.
pub(super) struct RunningMetrics {
    loss: f64,
    correct: Option<u64>,
    samples: u64,
}

impl RunningMetrics {
    pub(super) fn new(kind: Loss) -> Self {
        let classes = matches!(kind, Loss::CrossEntropy | Loss::BinaryCrossEntropy);
        Self { loss: 0.0, correct: classes.then_some(0), samples: 0 }
    }

    pub(super) fn add(&mut self, seen: Seen, samples: usize) {
        self.loss += seen.loss * samples as f64;
        self.correct = self.correct.map(|sum| sum + seen.correct);
        self.samples += samples as u64;
    }

    /// Means over the samples seen; `examples` and `seconds` are the caller's.
    pub(super) fn metrics(&self, examples: u64, seconds: f64) -> Metrics {
        let seen = self.samples.max(1) as f64;
        let accuracy = self.correct.map(|correct| correct as f64 / seen);
        Metrics { loss: self.loss / seen, accuracy, examples, seconds }
    }
}

/// Trains the engine's model in place for the spec's epochs. The last batch of an epoch may be smaller.
///
/// # Errors
/// When stopped, when the loss is not finite, or when the engine fails.
pub(super) fn train(
    engine: &mut dyn Engine,
    spec: &Spec,
    data: &View,
    order: &TrainOrder,
    stop: &Stop,
) -> Result<RunningMetrics, LearnError> {
    let training = &spec.training;
    engine.begin(spec, order.learning_rate_scale)?;
    let batch_size = if training.batch_size == 0 { data.len() } else { training.batch_size };
    let step_size = batch_size.saturating_mul(training.accumulate as usize);
    let mut generator = order.seed.generator();
    let mut rows: Vec<u32> = (0..).take(data.len()).collect();
    let (mut running, mut passes) = (RunningMetrics::new(spec.loss()), 0u32);
    for epoch in 1..=training.epochs {
        shuffle(&mut rows, &mut generator);
        let mut batches = 0usize;
        for step in rows.chunks(step_size) {
            for rows in step.chunks(batch_size) {
                check_stop(stop)?;
                let mode = Mode::Train(order.seed.derive(Purpose::Train, Round(passes), None));
                let seen = engine.learn(data, rows, step.len(), mode)?;
                (passes, batches) = (passes.wrapping_add(1), batches + 1);
                check_loss(seen.loss, order.round, epoch, batches)?;
                running.add(seen, rows.len());
            }
            engine.step()?;
        }
    }
    Ok(running)
}

/// Measures the engine's model on all rows in their order.
///
/// # Errors
/// When stopped, when the loss is not finite, or when the engine fails.
pub(super) fn evaluate(
    engine: &mut dyn Engine,
    kind: Loss,
    data: &View,
    stop: &Stop,
) -> Result<RunningMetrics, LearnError> {
    let rows: Vec<u32> = (0..).take(data.len()).collect();
    let mut running = RunningMetrics::new(kind);
    for rows in rows.chunks(EVALUATION_BATCH) {
        check_stop(stop)?;
        let seen = engine.measure(data, rows)?;
        if !seen.loss.is_finite() {
            let message = "the model's loss on the test records is not finite; the model has diverged";
            return Err(LearnError::new(Decline::NotFinite, message));
        }
        running.add(seen, rows.len());
    }
    Ok(running)
}

/// # Errors
/// When the work was stopped.
pub(super) fn check_stop(stop: &Stop) -> Result<(), LearnError> {
    if stop.is_stopped() {
        return Err(LearnError::new(Decline::Stopped, "the work was stopped between two batches"));
    }
    Ok(())
}

fn check_loss(loss: f64, round: Round, epoch: u32, batch: usize) -> Result<(), LearnError> {
    if loss.is_finite() {
        return Ok(());
    }
    let message = format!(
        "in round {}, epoch {epoch}, batch {batch} the loss is {loss}; try a lower learning rate, \
         standardised features, or `gradient_norm_max`",
        round.0
    );
    Err(LearnError::new(Decline::NotFinite, message))
}
