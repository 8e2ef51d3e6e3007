//! A planned model on candle: every step as a differentiable operation, on any device.

use candle_core::{DType, Device, Result, Tensor, Var};
use protocol::Spec;

use super::plan::{Kind, Shape, Step, steps};
use super::{Mode, Model, ModelError};
use crate::layers::Elementwise;
use crate::ops::{self, Activation};

/// A built-in model.
pub(super) struct Network {
    layers: Vec<Layer>,
}

struct Layer {
    step: Step,
    vars: Vec<(String, Var)>,
    /// Of a residual connection: its layers and its shortcut.
    inner: Option<(Vec<Self>, Vec<Self>)>,
}

impl Network {
    /// Allocates a spec's network, all zeros. The caller has checked its size.
    ///
    /// # Errors
    /// [`ModelError`] when the spec does not fit, is custom, or the device has no room.
    pub(super) fn build(spec: &Spec, device: &Device) -> std::result::Result<Self, ModelError> {
        let steps = steps(spec)?.unwrap_or_default();
        Ok(Self { layers: build(steps, device)? })
    }
}

fn build(steps: Vec<Step>, device: &Device) -> Result<Vec<Layer>> {
    let layer = |mut step: Step| {
        let inner = match &mut step.kind {
            Kind::Residual { layers, shortcut } => {
                Some((build(std::mem::take(layers), device)?, build(std::mem::take(shortcut), device)?))
            }
            _ => None,
        };
        let var = |tensor: &super::Planned| {
            Ok((tensor.name.clone(), Var::zeros(tensor.shape.as_slice(), DType::F32, device)?))
        };
        let vars = step.tensors().into_iter().map(var).collect::<Result<_>>()?;
        Ok(Layer { step, vars, inner })
    };
    steps.into_iter().map(layer).collect()
}

fn tensors(layers: &[Layer]) -> Vec<(String, Var)> {
    let of = |layer: &Layer| match &layer.inner {
        Some((layers, shortcut)) => [tensors(layers), tensors(shortcut)].concat(),
        None => layer.vars.clone(),
    };
    layers.iter().flat_map(of).collect()
}

impl Model for Network {
    fn tensors(&self) -> Vec<(String, Var)> {
        tensors(&self.layers)
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        run(&self.layers, x, mode)
    }
}

fn run(layers: &[Layer], x: &Tensor, mode: Mode) -> Result<Tensor> {
    layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, mode))
}

impl Layer {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let var = |index: usize| &self.vars[index].1;
        // Records of four and more sides are rows to a model, and so is an image whose layers end.
        let x = &match self.step.from {
            Shape::Row(_) if x.rank() != 2 => x.flatten_from(1)?,
            Shape::Row(_) | Shape::Image { .. } | Shape::Sequence { .. } => x.clone(),
        };
        match &self.step.kind {
            Kind::Dense(activation) => self.dense(x, *activation),
            Kind::Convolution(window, activation) => {
                let (stride, padding) = (window.stride, window.padding);
                ops::convolution(x, var(0), var(1), (stride, padding), *activation)
            }
            Kind::MaxPool(window) => ops::max_pool(x, window.side, window.stride),
            Kind::AveragePool => match self.step.from {
                Shape::Image { .. } => x.flatten_from(2)?.mean(2),
                Shape::Row(_) | Shape::Sequence { .. } => x.mean(1),
            },
            Kind::Elementwise(Elementwise::Relu) => ops::relu(x),
            Kind::Elementwise(Elementwise::Gelu) => ops::gelu(x),
            Kind::Elementwise(Elementwise::Tanh) => ops::tanh(x),
            Kind::Elementwise(Elementwise::Sigmoid) => ops::sigmoid(x),
            Kind::Dropout { probability, number } => ops::dropout(x, *probability, mode, *number),
            Kind::GroupNorm { groups } => ops::group_norm(x, var(0), var(1), *groups),
            Kind::LayerNorm => ops::layer_norm(x, var(0), var(1)),
            Kind::Residual { .. } => {
                let Some((layers, shortcut)) = &self.inner else { return Ok(x.clone()) };
                run(layers, x, mode)? + run(shortcut, x, mode)?
            }
            Kind::Embedding { .. } => ops::embedding(x, var(0)),
            Kind::Lstm => ops::lstm(x, var(0), var(1), var(2)),
            Kind::Gru => ops::gru(x, [var(0), var(1)], [var(2), var(3)]),
            Kind::Last => x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1),
        }
    }

    fn dense(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (weight, bias) = (&self.vars[0].1, &self.vars[1].1);
        match self.step.from {
            Shape::Sequence { .. } => ops::linear(x, weight, bias, activation),
            Shape::Row(_) | Shape::Image { .. } => ops::linear(&x.flatten_from(1)?, weight, bias, activation),
        }
    }
}
