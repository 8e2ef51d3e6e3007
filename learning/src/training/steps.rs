//! The passes over the records: steps of training, and the batches of an evaluation.

use candle_core::{Device, Result, Tensor};
use protocol::{Decline, LearnError, Loss, Metrics, Purpose, Round, Stop, TrainOrder};

use super::batches::{Batch, shuffle};
use super::gradients::{Proximal, StepGradient};
use super::{Resident, failed};
use crate::model::Mode;
use crate::ops::Truth;
use crate::optimizer::Optimizer;
use crate::{Dataset, ops};

/// Samples a forward pass of an evaluation takes.
const EVALUATION_BATCH: usize = 128;

/// Sums over the samples seen.
pub(super) struct Tally {
    loss: f64,
    correct: Option<u64>,
    samples: u64,
}

impl Tally {
    pub(super) fn new(kind: Loss) -> Self {
        let classes = matches!(kind, Loss::CrossEntropy | Loss::BinaryCrossEntropy);
        Self { loss: 0.0, correct: classes.then_some(0), samples: 0 }
    }

    pub(super) fn add(&mut self, loss: f64, correct: u64, samples: usize) {
        self.loss += loss * samples as f64;
        self.correct = self.correct.map(|sum| sum + correct);
        self.samples += samples as u64;
    }

    /// Means over the samples seen; `examples` and `seconds` are the caller's.
    pub(super) fn metrics(&self, examples: u64, seconds: f64) -> Metrics {
        let seen = self.samples.max(1) as f64;
        let accuracy = self.correct.map(|correct| correct as f64 / seen);
        Metrics { loss: self.loss / seen, accuracy, examples, seconds }
    }
}

/// Trains the resident model in place for the spec's epochs. The last batch of an epoch may be smaller.
///
/// # Errors
/// When stopped, when the loss is not finite, or when candle fails.
pub(super) fn train(
    resident: &Resident,
    data: &Dataset,
    device: &Device,
    order: &TrainOrder,
    stop: &Stop,
) -> std::result::Result<Tally, LearnError> {
    let (spec, vars) = (&resident.spec, &resident.vars);
    let (training, kind) = (&spec.training, spec.loss());
    let mut optimizer =
        Optimizer::new(&training.optimizer, order.learning_rate_scale, vars).map_err(failed)?;
    let proximal = Proximal::from_here(spec.proximal_mu, vars).map_err(failed)?;
    let norm_max = training.gradient_norm_max.map(|norm| norm.value());
    let batch_size = if training.batch_size == 0 { data.len() } else { training.batch_size };
    let step_size = batch_size.saturating_mul(training.accumulate as usize);
    let mut generator = order.seed.generator();
    let mut rows: Vec<u32> = (0..).take(data.len()).collect();
    let (mut tally, mut passes) = (Tally::new(kind), 0u32);
    for epoch in 1..=training.epochs {
        shuffle(&mut rows, &mut generator);
        let mut batches = 0usize;
        for step in rows.chunks(step_size) {
            let mut gradient: Option<StepGradient> = None;
            for rows in step.chunks(batch_size) {
                check_stop(stop)?;
                let batch = Batch::gather(data, rows, kind, device)?;
                let mode = Mode::Train(order.seed.derive(Purpose::Train, Round(passes), None));
                let pass = Pass::run(resident, &batch, kind, mode).map_err(failed)?;
                (passes, batches) = (passes.wrapping_add(1), batches + 1);
                check_loss(pass.loss, order.round, epoch, batches)?;
                tally.add(pass.loss, pass.correct, rows.len());
                let gradients = pass.gradients(resident).map_err(failed)?;
                match &mut gradient {
                    Some(sum) => sum.add(gradients, rows.len()).map_err(failed)?,
                    None => gradient = Some(StepGradient::new(gradients, rows.len())),
                }
            }
            if let Some(gradient) = gradient {
                let gradients = gradient.finish(vars, proximal.as_ref(), norm_max).map_err(failed)?;
                optimizer.step(&gradients).map_err(failed)?;
            }
        }
    }
    Ok(tally)
}

/// Measures the resident model on all rows in their order.
///
/// # Errors
/// When stopped, when the loss is not finite, or when candle fails.
pub(super) fn evaluate(
    resident: &Resident,
    data: &Dataset,
    device: &Device,
    stop: &Stop,
) -> std::result::Result<Tally, LearnError> {
    let kind = resident.spec.loss();
    let rows: Vec<u32> = (0..).take(data.len()).collect();
    let mut tally = Tally::new(kind);
    for rows in rows.chunks(EVALUATION_BATCH) {
        check_stop(stop)?;
        let batch = Batch::gather(data, rows, kind, device)?;
        let pass = Pass::run(resident, &batch, kind, Mode::Evaluate).map_err(failed)?;
        if !pass.loss.is_finite() {
            let message = "the model's loss on the test records is not finite; the model has diverged";
            return Err(LearnError::new(Decline::NotFinite, message));
        }
        tally.add(pass.loss, pass.correct, rows.len());
    }
    Ok(tally)
}

/// # Errors
/// When the work was stopped.
pub(super) fn check_stop(stop: &Stop) -> std::result::Result<(), LearnError> {
    if stop.is_stopped() {
        return Err(LearnError::new(Decline::Stopped, "the work was stopped between two batches"));
    }
    Ok(())
}

fn check_loss(loss: f64, round: Round, epoch: u32, batch: usize) -> std::result::Result<(), LearnError> {
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

/// One batch through the model.
pub(super) struct Pass {
    mean: Tensor,
    pub(super) loss: f64,
    pub(super) correct: u64,
}

impl Pass {
    /// # Errors
    /// When candle fails.
    pub(super) fn run(resident: &Resident, batch: &Batch, kind: Loss, mode: Mode) -> Result<Self> {
        let outputs = resident.model.forward(&batch.inputs, mode)?;
        let mean = ops::loss(kind, &outputs, &batch.targets)?;
        let loss = f64::from(mean.to_scalar::<f32>()?);
        let correct = count_correct(kind, &outputs, &batch.targets)?;
        Ok(Self { mean, loss, correct })
    }

    /// The gradient of the mean loss for every variable.
    ///
    /// # Errors
    /// When candle fails.
    pub(super) fn gradients(&self, resident: &Resident) -> Result<Vec<Option<Tensor>>> {
        let mut store = self.mean.backward()?;
        Ok(resident.vars.iter().map(|var| store.remove(var)).collect())
    }
}

/// How many outputs name the right class: the first largest one, or for one logit its sign. 0 where there are no classes.
fn count_correct(kind: Loss, outputs: &Tensor, targets: &Tensor) -> Result<u64> {
    let width = outputs.dim(1)?;
    let outputs = outputs.flatten_all()?.to_vec1::<f32>()?;
    let correct = match kind {
        Loss::CrossEntropy => {
            let pairs = outputs.chunks_exact(width).zip(targets.to_vec1::<u32>()?);
            pairs.filter(|(outputs, class)| is_correct(kind, outputs, Truth::Class(*class))).count()
        }
        Loss::BinaryCrossEntropy => {
            let pairs = outputs.chunks_exact(1).zip(targets.to_vec1::<f32>()?);
            pairs.filter(|(outputs, target)| is_correct(kind, outputs, Truth::Real(*target))).count()
        }
        Loss::MeanSquared | Loss::Auto => 0,
    };
    Ok(correct as u64)
}

/// Whether the outputs for one sample name its class; never where there are no classes.
pub(super) fn is_correct(kind: Loss, outputs: &[f32], truth: Truth) -> bool {
    match (kind, truth) {
        (Loss::CrossEntropy, Truth::Class(class)) => first_largest(outputs) == class as usize,
        (Loss::BinaryCrossEntropy, truth) => (outputs[0] > 0.0) == (truth.value() > 0.5),
        (Loss::CrossEntropy | Loss::MeanSquared | Loss::Auto, _) => false,
    }
}

fn first_largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}
