//! The dense layer, with its activation.

use super::{Layer, Weights, reserve};
use crate::Mode;
use crate::kernels::{Matrix, Store, multiply_nt, multiply_plain, vectorised};
use crate::ops::Activation;

/// `activation(x weight^T + bias)` with the tensors `[outputs, inputs]` and `[outputs]`, for every row of the input. A sample may
/// have several rows: the steps of a sequence.
#[derive(Debug)]
pub(crate) struct Dense {
    rows: usize,
    inputs: usize,
    outputs: usize,
    activation: Activation,
    bias_gradient: Vec<f32>,
}

impl Dense {
    /// A layer for samples of `rows` rows.
    pub(crate) fn new(rows: usize, inputs: usize, outputs: usize, activation: Activation) -> Self {
        Self { rows, inputs, outputs, activation, bias_gradient: Vec::new() }
    }
}

impl Layer for Dense {
    fn forward(&mut self, batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (weight, bias) = parameters.split_at(self.inputs * self.outputs);
        for row in y.chunks_exact_mut(self.outputs) {
            row.copy_from_slice(bias);
        }
        multiply_nt((batch * self.rows, self.outputs, self.inputs), x, weight, y);
        activate(self.activation, y);
    }

    fn backward(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let (rows, inputs, outputs) = (batch * self.rows, self.inputs, self.outputs);
        deactivate(self.activation, y, y_gradient);
        if let Some(x_gradient) = x_gradient {
            let weight = &weights.values()[..inputs * outputs];
            let sums = Matrix::rows(y_gradient, outputs);
            multiply_plain((rows, inputs, outputs), sums, weight, Store::replace(x_gradient, inputs));
        }
        reserve(&mut self.bias_gradient, outputs);
        column_sums(y_gradient, &mut self.bias_gradient[..outputs]);
        weights.part(inputs * outputs..inputs * outputs + outputs).take(&self.bias_gradient[..outputs]);
        let mut weight = weights.part(0..inputs * outputs);
        let (target, mut scale, keep) = weight.target();
        if keep == 1.0 {
            // A product that is only added starts from what is there, which saves two operations a value.
            scale_by(y_gradient, scale);
            scale = 1.0;
        }
        let target = Store::blend(target, inputs, scale, keep);
        multiply_plain((outputs, inputs, rows), Matrix::columns(y_gradient, outputs), x, target);
    }
}

fn scale_by(values: &mut [f32], factor: f32) {
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value *= factor),
    );
}

/// The sums over rows as long as `sums`.
pub(super) fn column_sums(values: &[f32], sums: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            sums.fill(0.0);
            for row in values.chunks_exact(sums.len()) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        },
    );
}

/// Applies an activation in place. NaN stays, so that training that went wrong is seen.
pub(super) fn activate(activation: Activation, y: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => vectorised(
            #[inline(always)]
            || y.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value }),
        ),
    }
}

/// From the gradient of an activation's results `y` to that of what it was applied to, in place.
pub(super) fn deactivate(activation: Activation, y: &[f32], gradient: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => vectorised(
            #[inline(always)]
            || {
                let gate =
                    |(gradient, y): (&mut f32, &f32)| *gradient = if *y > 0.0 { *gradient } else { 0.0 };
                gradient.iter_mut().zip(y).for_each(gate);
            },
        ),
    }
}
