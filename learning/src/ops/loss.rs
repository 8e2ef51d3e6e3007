//! The losses of a batch, each fused into one operation: the mean over its samples, summed in f64 in the order of rows.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use protocol::Loss;

use super::storage::{floats, integers, with_floats};
use crate::kernels::functions::exp;
use crate::kernels::vectorised;

/// The mean loss, a scalar, of `outputs` (`[batch, classes]`, or `[batch, 1]` for one output) against `targets` (`[batch]`).
///
/// Cross-entropy takes logits and u32 classes; binary cross-entropy takes one logit and f32 targets of 0 or 1; the squared
/// error takes f32 targets. [`Loss::Auto`] goes by the targets' type: cross-entropy for u32, squared error for f32.
///
/// # Errors
/// When shapes or types do not fit, a class is not among the outputs, or candle fails.
pub fn loss(kind: Loss, outputs: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let kind = match (kind, targets.dtype()) {
        (Loss::Auto, DType::U32) => Loss::CrossEntropy,
        (Loss::Auto, _) => Loss::MeanSquared,
        (kind, _) => kind,
    };
    let (batch, width) = outputs.dims2()?;
    if targets.dims1()? != batch || batch == 0 || (kind != Loss::CrossEntropy && width != 1) {
        candle_core::bail!(
            "outputs of [{batch}, {width}] do not fit {kind:?} with targets of {:?}",
            targets.shape()
        );
    }
    if outputs.device().is_cpu() {
        return outputs.contiguous()?.apply_op2(&targets.contiguous()?, MeanLoss { kind });
    }
    match kind {
        Loss::CrossEntropy | Loss::Auto => candle_nn::loss::cross_entropy(outputs, targets),
        Loss::MeanSquared => outputs.squeeze(1)?.sub(targets)?.sqr()?.mean_all(),
        Loss::BinaryCrossEntropy => {
            let logit = outputs.squeeze(1)?;
            let tail = (logit.abs()?.neg()?.exp()? + 1.0)?.log()?;
            (logit.relu()? - logit.mul(targets)?)?.add(&tail)?.mean_all()
        }
    }
}

/// What one sample's output is measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Truth {
    /// A class, below the number of outputs (or 0 or 1 for one logit).
    Class(u32),
    /// A number.
    Real(f32),
}

impl Truth {
    /// The target of a loss that takes numbers.
    pub(crate) fn value(self) -> f32 {
        match self {
            Self::Class(class) => class as f32,
            Self::Real(value) => value,
        }
    }
}

/// Gets a batch of outputs, `[batch, width]`, ready for [`loss_of_one`]: for cross-entropy, writes `exp(output - largest of its
/// row)` where the gradients will be; for other losses, nothing.
pub(crate) fn prepare_losses(kind: Loss, outputs: &[f32], width: usize, gradients: &mut [f32]) {
    if kind != Loss::CrossEntropy {
        return;
    }
    for (outputs, gradients) in outputs.chunks_exact(width).zip(gradients.chunks_exact_mut(width)) {
        let largest = largest(outputs);
        gradients.iter_mut().zip(outputs).for_each(|(gradient, output)| *gradient = output - largest);
    }
    vectorised(
        #[inline(always)]
        || gradients.iter_mut().for_each(|value| *value = exp(*value)),
    );
}

/// The loss of one sample, and its gradient for the `outputs`, after [`prepare_losses`]; `kind` is never `Auto`.
///
/// # Panics
/// When the class is not among the outputs.
pub(crate) fn loss_of_one(kind: Loss, outputs: &[f32], truth: Truth, gradient: &mut [f32]) -> f64 {
    match (kind, truth) {
        (Loss::CrossEntropy | Loss::Auto, Truth::Class(class)) => {
            let total: f64 = gradient.iter().map(|value| f64::from(*value)).sum();
            let share = (1.0 / total) as f32;
            gradient.iter_mut().for_each(|value| *value *= share);
            gradient[class as usize] -= 1.0;
            f64::from(largest(outputs)) + total.ln() - f64::from(outputs[class as usize])
        }
        (Loss::BinaryCrossEntropy, truth) => {
            let target = f64::from(truth.value());
            gradient[0] = (sigmoid(outputs[0]) - target) as f32;
            binary(f64::from(outputs[0]), target)
        }
        (Loss::MeanSquared | Loss::CrossEntropy | Loss::Auto, truth) => {
            let difference = outputs[0] - truth.value();
            gradient[0] = 2.0 * difference;
            f64::from(difference).powi(2)
        }
    }
}

struct MeanLoss {
    /// Never `Auto`: resolved by [`loss`].
    kind: Loss,
}

impl CustomOp2 for MeanLoss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(
        &self,
        outputs: &CpuStorage,
        outputs_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, width) = outputs_layout.shape().dims2()?;
        let outputs = floats(outputs, outputs_layout)?;
        let total: f64 = match self.kind {
            Loss::CrossEntropy | Loss::Auto => {
                let classes = integers(targets, targets_layout)?;
                check_classes(classes, width)?;
                let pairs = outputs.chunks_exact(width).zip(classes);
                pairs.map(|(logits, class)| log_sum_exp(logits) - f64::from(logits[*class as usize])).sum()
            }
            Loss::BinaryCrossEntropy => {
                let pairs = outputs.iter().zip(floats(targets, targets_layout)?);
                pairs.map(|(logit, target)| binary(f64::from(*logit), f64::from(*target))).sum()
            }
            Loss::MeanSquared => {
                let pairs = outputs.iter().zip(floats(targets, targets_layout)?);
                pairs.map(|(output, target)| (f64::from(*output) - f64::from(*target)).powi(2)).sum()
            }
        };
        Ok((CpuStorage::F32(vec![(total / batch as f64) as f32]), ().into()))
    }

    fn bwd(
        &self,
        outputs: &Tensor,
        targets: &Tensor,
        _mean: &Tensor,
        mean_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (batch, width) = outputs.dims2()?;
        let scale = f64::from(mean_gradient.to_scalar::<f32>()?) / batch as f64;
        let gradient = with_floats(outputs, |outputs| match self.kind {
            Loss::CrossEntropy | Loss::Auto => {
                let classes = targets.to_vec1::<u32>()?;
                let pairs = outputs.chunks_exact(width).zip(classes);
                Ok(pairs
                    .flat_map(|(logits, class)| softmax_gradient(logits, class, scale))
                    .collect::<Vec<f32>>())
            }
            Loss::BinaryCrossEntropy => {
                let pairs = outputs.iter().zip(targets.to_vec1::<f32>()?);
                Ok(pairs
                    .map(|(logit, target)| (scale * (sigmoid(*logit) - f64::from(target))) as f32)
                    .collect())
            }
            Loss::MeanSquared => {
                let pairs = outputs.iter().zip(targets.to_vec1::<f32>()?);
                Ok(pairs.map(|(output, target)| (2.0 * scale * f64::from(output - target)) as f32).collect())
            }
        })?;
        Ok((Some(Tensor::from_vec(gradient, (batch, width), outputs.device())?), None))
    }
}

fn check_classes(classes: &[u32], width: usize) -> Result<()> {
    match classes.iter().position(|class| *class as usize >= width) {
        Some(row) => {
            candle_core::bail!("row {row} is of class {}; the model has {width} outputs", classes[row])
        }
        None => Ok(()),
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(largest(logits));
    largest + logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `scale * (softmax(logits) - one_hot(class))`.
fn softmax_gradient(logits: &[f32], class: u32, scale: f64) -> impl Iterator<Item = f32> {
    let total = log_sum_exp(logits);
    let share = move |(place, logit): (usize, &f32)| {
        let target = if place == class as usize { 1.0 } else { 0.0 };
        (scale * ((f64::from(*logit) - total).exp() - target)) as f32
    };
    logits.iter().enumerate().map(share)
}

/// `-target ln s(logit) - (1 - target) ln(1 - s(logit))`, without overflow.
fn binary(logit: f64, target: f64) -> f64 {
    logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p()
}

fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}
