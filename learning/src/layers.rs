//! Layers in closed form: results and gradients written down instead of recorded, over flat slices in memory that is taken once.
//!
//! A layer computes on a batch at a time, on one thread. Samples lie one after another; images have their channels last and
//! sequences their steps first, inside a sample. A layer may keep its parameters in an order of its own
//! ([`Layer::import`]), within the range of each tensor, so that sums over a tensor mean the same in both orders. What a layer
//! remembers between its two ways is about the last batch only. Layers do not decide how parameters move: see [`Weights`].
//!
//! Every gradient is held against candle's automatic differentiation and against finite differences by the tests.

mod activation;
mod arrange;
mod build;
mod chain;
mod convolution;
mod dense;
mod dropout;
mod normalisation;
mod pooling;
mod recurrent;
mod sequence;

use crate::Mode;

pub(crate) use activation::Elementwise;
pub(crate) use arrange::Transpose;
pub(crate) use build::build;
pub(crate) use chain::{Chain, Residual};
pub(crate) use convolution::Convolution;
pub(crate) use dense::Dense;
pub(crate) use dropout::Dropout;
pub(crate) use normalisation::{GroupNorm, LayerNorm};
pub(crate) use pooling::{AveragePool, MaxPool};
pub(crate) use recurrent::{Gru, Lstm, Sizes};
pub(crate) use sequence::{Embedding, Last};

/// One layer. Lengths are the caller's promise: `x` holds `batch` inputs, `y` as many results, and `parameters` what the layer's
/// tensors have.
pub(crate) trait Layer: Send {
    /// The results of a batch. `mode` says whether layers that draw do.
    fn forward(&mut self, batch: usize, mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]);

    /// From the gradient of the results of the batch that went forward last to those of the parameters and, if it is asked for,
    /// of the input, which is overwritten. `y_gradient` may be overwritten too.
    fn backward(
        &mut self,
        batch: usize,
        weights: Weights<'_>,
        x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    );

    /// What it is, for whoever measures it.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>().rsplit("::").next().unwrap_or_default()
    }

    /// Parameters from layout order to the layer's own.
    fn import(&self, natural: &[f32], own: &mut [f32]) {
        own.copy_from_slice(natural);
    }

    /// Parameters, or a gradient of them, from the layer's own order to layout order.
    fn export(&self, own: &[f32], natural: &mut [f32]) {
        natural.copy_from_slice(own);
    }
}

/// What a layer on its way back does with the gradient of its parameters.
#[derive(Debug)]
pub(crate) enum Weights<'a> {
    /// Writes it down: `gradient = found + keep * gradient`. With a `keep` of 0 the old values are not read.
    Measure {
        /// The parameters of the way forward.
        parameters: &'a [f32],
        /// As long as they are.
        gradient: &'a mut [f32],
        /// 0 or 1.
        keep: f32,
    },
    /// Steps along it at once: `parameters = keep * parameters - rate * found`. No gradient is ever stored.
    Descend {
        /// The parameters of the way forward, which the layer must have read by the time it writes.
        parameters: &'a mut [f32],
        /// The length of the step.
        rate: f32,
        /// 1, or less for weight decay.
        keep: f32,
    },
}

impl Weights<'_> {
    /// The same for a part of the parameters.
    pub(crate) fn part(&mut self, range: std::ops::Range<usize>) -> Weights<'_> {
        match self {
            Self::Measure { parameters, gradient, keep } => Weights::Measure {
                parameters: &parameters[range.clone()],
                gradient: &mut gradient[range],
                keep: *keep,
            },
            Self::Descend { parameters, rate, keep } => {
                Weights::Descend { parameters: &mut parameters[range], rate: *rate, keep: *keep }
            }
        }
    }

    /// The parameters.
    pub(crate) fn values(&self) -> &[f32] {
        match self {
            Self::Measure { parameters, .. } => parameters,
            Self::Descend { parameters, .. } => parameters,
        }
    }

    /// Where the gradient goes: `target = scale * gradient + keep * target`, as `(target, scale, keep)`.
    pub(crate) fn target(&mut self) -> (&mut [f32], f32, f32) {
        match self {
            Self::Measure { gradient, keep, .. } => (gradient, 1.0, *keep),
            Self::Descend { parameters, rate, keep } => (parameters, -*rate, *keep),
        }
    }

    /// Hands over a gradient that was computed in memory of its own.
    pub(crate) fn take(&mut self, gradient: &[f32]) {
        let (target, scale, keep) = self.target();
        crate::kernels::vectorised(
            #[inline(always)]
            || {
                if keep == 0.0 {
                    target.iter_mut().zip(gradient).for_each(|(target, value)| *target = scale * value);
                } else {
                    let blend = |(target, value): (&mut f32, &f32)| *target = keep * *target + scale * value;
                    target.iter_mut().zip(gradient).for_each(blend);
                }
            },
        );
    }
}

/// Makes a buffer at least this long; what it holds does not matter.
pub(crate) fn reserve(values: &mut Vec<f32>, length: usize) {
    if values.len() < length {
        values.resize(length, 0.0);
    }
}

#[cfg(test)]
mod tests;
