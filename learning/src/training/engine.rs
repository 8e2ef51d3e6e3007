//! Two ways to a gradient behind one trait: in closed form over flat memory, for layered models on the CPU, and by candle's
//! automatic differentiation, for every model and device. The loops over epochs, batches and records know only the trait.

use candle_core::Device;
use protocol::{Decline, GradientPath, Layout, LearnError, Loss, Seed, Spec};

use super::autograd::Autograd;
use super::closed::ClosedForm;
use crate::model::{Mode, Models, steps};
use crate::ops::Truth;
use crate::{Labels, View, layers};

/// The batch that a closed form is prepared for where the plan takes all records at once.
const BATCH_ASSUMED: usize = 64;

/// What a pass over some records showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Mean over the records.
    pub(super) loss: f64,
    /// Records whose class was named right; 0 where there are no classes.
    pub(super) correct: u64,
}

/// A model in memory, its optimizer, and a way to gradients. With the same calls it gives the same bits.
pub(super) trait Engine: Send {
    /// Takes over a full vector in layout order.
    fn load(&mut self, parameters: &[f32]) -> Result<(), LearnError>;

    /// Writes the full vector in layout order.
    fn store(&mut self, parameters: &mut [f32]) -> Result<(), LearnError>;

    /// Begins a round from the parameters as they are: a fresh optimizer, `scale` times the plan's learning rate.
    fn begin(&mut self, spec: &Spec, scale: f64) -> Result<(), LearnError>;

    /// Runs `rows` forward and backward as a part of a step over `of` records, each of which counts the same. The parameters
    /// may move at once, where nothing stands between gradient and step.
    fn learn(&mut self, data: &View, rows: &[u32], of: usize, mode: Mode) -> Result<Seen, LearnError>;

    /// Ends the step: what [`Engine::learn`] summed moves the parameters.
    fn step(&mut self) -> Result<(), LearnError>;

    /// Runs `rows` forward only.
    fn measure(&mut self, data: &View, rows: &[u32]) -> Result<Seen, LearnError>;

    /// Writes the gradient of the loss of one record, in layout order; no other record is looked at. `seed` is the step's:
    /// dropout takes from it and from the row alone.
    fn example(
        &mut self,
        data: &View,
        row: u32,
        seed: Seed,
        gradient: &mut [f32],
    ) -> Result<Seen, LearnError>;

    /// Makes a step along this gradient, in layout order, which it may use as memory.
    fn follow(&mut self, gradient: &mut [f32]) -> Result<(), LearnError>;
}

/// The way that a spec's gradients go on a device: never [`GradientPath::Auto`].
///
/// # Errors
/// When the spec asks for a closed form and there is none, or model and data do not fit.
pub fn gradient_path(spec: &Spec, device: &Device) -> Result<GradientPath, LearnError> {
    let closed = device.is_cpu()
        && match steps(spec)? {
            Some(steps) => layers::build(&steps, 1).is_some(),
            None => false,
        };
    match spec.training.gradient {
        GradientPath::Autograd => Ok(GradientPath::Autograd),
        GradientPath::Auto if !closed => Ok(GradientPath::Autograd),
        GradientPath::ClosedForm if !closed => {
            let message = "training.gradient asks for the closed form, which custom models and other devices than the CPU do not \
                           have; take \"auto\"";
            Err(LearnError::new(Decline::Unsupported, message))
        }
        GradientPath::Auto | GradientPath::ClosedForm => Ok(GradientPath::ClosedForm),
    }
}

/// The engine for a spec.
///
/// # Errors
/// As [`gradient_path`], or when the device has no room.
pub(super) fn build(
    spec: &Spec,
    models: &Models,
    layout: &Layout,
    device: &Device,
) -> Result<Box<dyn Engine>, LearnError> {
    if gradient_path(spec, device)? == GradientPath::ClosedForm {
        // Where single records are protected, batches are of one.
        let batch = match spec.training.batch_size {
            _ if spec.privacy.examples.is_some() => 1,
            0 => BATCH_ASSUMED,
            size => size,
        };
        if let Some(chain) = steps(spec)?.and_then(|steps| layers::build(&steps, batch)) {
            return Ok(Box::new(ClosedForm::new(chain, spec, layout.len())));
        }
    }
    Ok(Box::new(Autograd::new(models.build(spec, device)?, spec, layout.clone(), device.clone())))
}

/// What one record's outputs are measured against.
///
/// # Errors
/// When the label does not fit the loss or is not among `outputs` classes.
pub(super) fn truth(data: &View, row: u32, loss: Loss, outputs: usize) -> Result<Truth, LearnError> {
    let record = data.rows[row as usize] as usize;
    match (loss, &data.dataset.labels) {
        (Loss::CrossEntropy, Labels::Classes(classes)) if (classes[record] as usize) < outputs => {
            Ok(Truth::Class(classes[record]))
        }
        (Loss::CrossEntropy, Labels::Classes(classes)) => {
            let message =
                format!("row {row} is of class {}; the model has {outputs} outputs", classes[record]);
            Err(LearnError::new(Decline::Data, message))
        }
        (Loss::BinaryCrossEntropy, Labels::Classes(classes)) => Ok(Truth::Real(classes[record] as f32)),
        (Loss::MeanSquared, Labels::Real(values)) => Ok(Truth::Real(values[record])),
        (loss, labels) => {
            let message = format!("the loss {loss:?} does not fit the labels {labels:?}");
            Err(LearnError::new(Decline::Data, message))
        }
    }
}

/// Whether the outputs for one sample name its class, the first largest one, or for one logit its sign; never where there are
/// no classes.
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

#[cfg(test)]
mod tests;
