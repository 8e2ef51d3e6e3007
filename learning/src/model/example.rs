//! One record forward and backward through a built-in network: the gradient of its loss for every parameter.
//!
//! The same network as [`super::network::Network`], without a graph and in memory that is taken once. Why one record at a time:
//! see [`crate::ops::single`].

use std::ops::Range;

use protocol::{Loss, ModelSpec, Spec};

use super::ModelError;
use super::network::{Kind, plans};
use crate::ops::Activation;
use crate::ops::single::{self, Sizes, Truth};

/// A built-in network's memory for one record.
pub(crate) struct ExamplePass {
    stages: Vec<Stage>,
}

/// A layer: where its parameters are among all, and its results for the record at hand.
struct Stage {
    weight: Range<usize>,
    bias: Range<usize>,
    /// After the activation.
    y: Vec<f32>,
    /// Of `y`, and then of the sums before the activation.
    y_gradient: Vec<f32>,
    /// Empty in the first layer, where nobody needs it.
    x_gradient: Vec<f32>,
    layer: Layer,
}

enum Layer {
    Dense(Activation),
    /// With the pool that follows it.
    Convolution {
        sizes: Sizes,
        columns: Vec<f32>,
        pooled: Vec<f32>,
        winners: Vec<u8>,
    },
}

impl ExamplePass {
    /// The pass through a spec's model; none for a custom one.
    ///
    /// # Errors
    /// [`ModelError`] when the model does not fit the samples.
    pub(crate) fn new(spec: &Spec) -> Result<Option<Self>, ModelError> {
        if matches!(spec.model, ModelSpec::Custom { .. }) {
            return Ok(None);
        }
        let mut stages: Vec<Stage> = Vec::new();
        let (mut at, mut shape) = (0, spec.input_shape());
        for plan in plans(spec)? {
            let (outputs, count) = (plan.weight[0], plan.weight.iter().product::<usize>());
            let inputs = shape.iter().product::<usize>();
            let (layer, results) = match (plan.kind, &shape[..]) {
                (Kind::Convolution, &[inputs, height, width]) => {
                    let sizes = Sizes { batch: 1, inputs, height, width, outputs, kernel: plan.weight[3] };
                    shape = vec![outputs, height / 2, width / 2];
                    (Layer::convolution(sizes), outputs * sizes.pixels())
                }
                (Kind::Convolution, _) => return Err(ModelError::NotAnImage(shape)),
                (Kind::Dense(activation), _) => {
                    shape = vec![outputs];
                    (Layer::Dense(activation), outputs)
                }
            };
            let (weight, bias) = (at..at + count, at + count..at + count + outputs);
            at = bias.end;
            let zeros = |count: usize| vec![0.0; count];
            let x_gradient = zeros(if stages.is_empty() { 0 } else { inputs });
            let (y, y_gradient) = (zeros(results), zeros(results));
            stages.push(Stage { weight, bias, y, y_gradient, x_gradient, layer });
        }
        Ok(Some(Self { stages }))
    }

    /// The loss of one record, and in `gradient` its gradient for every parameter in layout order. `loss` is never `Auto`.
    ///
    /// # Panics
    /// When lengths do not fit the model, or the class is not among its outputs.
    pub(crate) fn run(
        &mut self,
        parameters: &[f32],
        x: &[f32],
        truth: Truth,
        loss: Loss,
        gradient: &mut [f32],
    ) -> f64 {
        for at in 0..self.stages.len() {
            let (before, rest) = self.stages.split_at_mut(at);
            rest[0].forward(before.last().map_or(x, Stage::output), parameters);
        }
        let last = self.stages.last_mut().expect("every built-in network has a layer of outputs");
        let value = single::loss_of_one(loss, &last.y, truth, &mut last.y_gradient);
        for at in (0..self.stages.len()).rev() {
            let (before, rest) = self.stages.split_at_mut(at);
            rest[0].backward(before.last().map_or(x, Stage::output), parameters, gradient);
            if let Some(before) = before.last_mut() {
                before.take(&rest[0].x_gradient);
            }
        }
        value
    }

    /// The outputs of the record that was last run.
    pub(crate) fn outputs(&self) -> &[f32] {
        self.stages.last().map_or(&[], Stage::output)
    }
}

impl Layer {
    fn convolution(sizes: Sizes) -> Self {
        let windows = sizes.outputs * (sizes.height / 2) * (sizes.width / 2);
        let columns = vec![0.0; sizes.patch() * sizes.pixels()];
        Self::Convolution { sizes, columns, pooled: vec![0.0; windows], winners: vec![0; windows] }
    }
}

impl Stage {
    /// What the next layer sees.
    fn output(&self) -> &[f32] {
        match &self.layer {
            Layer::Dense(_) => &self.y,
            Layer::Convolution { pooled, .. } => pooled,
        }
    }

    fn forward(&mut self, x: &[f32], parameters: &[f32]) {
        let (weight, bias) = (&parameters[self.weight.clone()], &parameters[self.bias.clone()]);
        match &mut self.layer {
            Layer::Dense(activation) => single::dense(x, weight, bias, *activation, &mut self.y),
            Layer::Convolution { sizes, columns, pooled, winners } => {
                single::convolution(x, weight, bias, *sizes, columns, &mut self.y);
                single::pool(&self.y, *sizes, pooled, winners);
            }
        }
    }

    /// From the gradient of `y` to those of weight, bias and input.
    fn backward(&mut self, x: &[f32], parameters: &[f32], gradient: &mut [f32]) {
        let weight = &parameters[self.weight.clone()];
        let own = &mut gradient[self.weight.start..self.bias.end];
        let (weight_gradient, bias_gradient) = own.split_at_mut(self.weight.len());
        let sums = &mut self.y_gradient;
        match &mut self.layer {
            Layer::Dense(activation) => {
                single::before_activation(*activation, &self.y, sums);
                single::dense_weight_gradient(sums, x, weight_gradient);
                bias_gradient.copy_from_slice(sums);
                if !self.x_gradient.is_empty() {
                    single::dense_input_gradient(sums, weight, &mut self.x_gradient);
                }
            }
            Layer::Convolution { sizes, columns, .. } => {
                single::before_activation(Activation::Relu, &self.y, sums);
                single::convolution_parameter_gradients(
                    sums,
                    columns,
                    *sizes,
                    weight_gradient,
                    bias_gradient,
                );
                if !self.x_gradient.is_empty() {
                    let x_gradient = &mut self.x_gradient;
                    single::convolution_input_gradient(sums, weight, *sizes, columns, x_gradient);
                }
            }
        }
    }

    /// Takes the gradient of its output from the next layer.
    fn take(&mut self, output_gradient: &[f32]) {
        match &self.layer {
            Layer::Dense(_) => self.y_gradient.copy_from_slice(output_gradient),
            Layer::Convolution { sizes, winners, .. } => {
                single::pool_gradient(output_gradient, winners, *sizes, &mut self.y_gradient);
            }
        }
    }
}
