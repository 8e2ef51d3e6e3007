//! The built-in families as one kind of network: convolutions, each followed by ReLU and a 2x2 max-pool, then dense layers
//! with ReLU between them. A spec fixes names and shapes before anything is allocated.

use candle_core::{DType, Device, Result, Tensor, Var};
use protocol::{ModelSpec, Spec};

use super::{Mode, Model, ModelError};
use crate::ops::{Activation, conv2d, linear, max_pool2d};

/// Names and shapes of a spec's tensors in layout order: each layer's weight, then its bias.
///
/// # Errors
/// [`ModelError`] when a size overflows or a cnn does not fit the samples. Custom models have no tensors here.
pub(super) fn tensors(spec: &Spec) -> std::result::Result<Vec<(String, Vec<usize>)>, ModelError> {
    let name_and_shapes = |plan: Plan| {
        let outputs = plan.weight[0];
        [(format!("{}.weight", plan.name), plan.weight), (format!("{}.bias", plan.name), vec![outputs])]
    };
    Ok(plans(spec)?.into_iter().flat_map(name_and_shapes).collect())
}

/// One layer before it is allocated.
pub(super) struct Plan {
    name: String,
    pub(super) kind: Kind,
    /// The outputs come first.
    pub(super) weight: Vec<usize>,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Followed by ReLU and pooling.
    Convolution,
    Dense(Activation),
}

/// A spec's layers in order; none for a custom model.
pub(super) fn plans(spec: &Spec) -> std::result::Result<Vec<Plan>, ModelError> {
    let shape = spec.input_shape();
    let inputs = || product(&shape);
    match &spec.model {
        ModelSpec::Linear | ModelSpec::Logistic => Ok(dense_plans(inputs()?, &[], spec.outputs())),
        ModelSpec::Mlp { hidden } => Ok(dense_plans(inputs()?, hidden, spec.outputs())),
        ModelSpec::Cnn { channels, kernel, hidden } => {
            let [mut inputs, mut height, mut width] = shape[..] else {
                return Err(ModelError::NotAnImage(shape));
            };
            let mut plans = Vec::new();
            for (index, outputs) in channels.iter().enumerate() {
                let (name, weight) = (format!("conv{}", index + 1), vec![*outputs, inputs, *kernel, *kernel]);
                plans.push(Plan { name, kind: Kind::Convolution, weight });
                (inputs, height, width) = (*outputs, height / 2, width / 2);
            }
            if height == 0 || width == 0 {
                return Err(ModelError::NotAnImage(shape));
            }
            plans.extend(dense_plans(product(&[inputs, height, width])?, &[*hidden], spec.outputs()));
            Ok(plans)
        }
        ModelSpec::Custom { .. } => Ok(Vec::new()),
    }
}

/// `dense1`, `dense2`, ...: the hidden layers with ReLU, then the outputs without.
fn dense_plans(inputs: usize, hidden: &[usize], outputs: usize) -> Vec<Plan> {
    let widths: Vec<usize> = [inputs].iter().chain(hidden).chain(&[outputs]).copied().collect();
    let plan = |(index, pair): (usize, &[usize])| Plan {
        name: format!("dense{}", index + 1),
        kind: Kind::Dense(if index == hidden.len() { Activation::Identity } else { Activation::Relu }),
        weight: vec![pair[1], pair[0]],
    };
    widths.windows(2).enumerate().map(plan).collect()
}

fn product(sides: &[usize]) -> std::result::Result<usize, ModelError> {
    let product = sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    product.ok_or(ModelError::TooLarge)
}

/// A built-in model.
pub(super) struct Network {
    layers: Vec<Layer>,
}

struct Layer {
    name: String,
    kind: Kind,
    weight: Var,
    bias: Var,
}

impl Network {
    /// Allocates a spec's network, all zeros. The caller has checked its size.
    ///
    /// # Errors
    /// [`ModelError`] when the spec does not fit or the device has no room.
    pub(super) fn build(spec: &Spec, device: &Device) -> std::result::Result<Self, ModelError> {
        let mut layers = Vec::new();
        for Plan { name, kind, weight } in plans(spec)? {
            let bias = Var::zeros(weight[0], DType::F32, device)?;
            layers.push(Layer { name, kind, weight: Var::zeros(weight, DType::F32, device)?, bias });
        }
        Ok(Self { layers })
    }
}

impl Model for Network {
    fn tensors(&self) -> Vec<(String, Var)> {
        let two = |layer: &Layer| {
            let Layer { name, weight, bias, .. } = layer;
            [(format!("{name}.weight"), weight.clone()), (format!("{name}.bias"), bias.clone())]
        };
        self.layers.iter().flat_map(two).collect()
    }

    fn forward(&self, x: &Tensor, _mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for Layer { kind, weight, bias, .. } in &self.layers {
            x = match kind {
                Kind::Convolution => max_pool2d(&conv2d(&x, weight, bias, Activation::Relu)?)?,
                Kind::Dense(activation) => linear(&x.flatten_from(1)?, weight, bias, *activation)?,
            };
        }
        Ok(x)
    }
}
