//! The layers on one sample at a time, on plain slices: what the gradients of single records are made of.
//!
//! The gradient of a record must be a function of that record and of the parameters alone, to the last bit. Were records to
//! share a matrix product, the rounding of one could depend on which others are in the batch, and taking a record out would
//! move the sum of the others as well, by more than the clipping norm that its noise is made for. So no function here
//! takes two samples. None takes memory either: the caller lends it.

use super::Activation;
use super::convolution::{roll, unroll};
use super::gemm::{MatrixMut, MatrixRef, Onto, multiply};
use super::linear::{gate, rectify};
use super::pooling;

pub(crate) use super::convolution::Sizes;
pub(crate) use super::loss::{Truth, loss_of_one};

/// `y = activation(weight x + bias)`; `weight` is `[outputs, inputs]`.
pub(crate) fn dense(x: &[f32], weight: &[f32], bias: &[f32], activation: Activation, y: &mut [f32]) {
    y.copy_from_slice(bias);
    let weight = MatrixRef::new(weight, bias.len(), x.len()).transposed();
    multiply(MatrixRef::new(x, 1, x.len()), weight, Onto::Add, MatrixMut::new(y, 1, bias.len()));
    if activation == Activation::Relu {
        rectify(y);
    }
}

/// Brings the gradient of a layer's results `y` before the activation.
pub(crate) fn before_activation(activation: Activation, y: &[f32], gradient: &mut [f32]) {
    if activation == Activation::Relu {
        gate(gradient, y);
    }
}

/// The gradient of a dense layer's weight: the outer product of the gradient of its sums and its input.
pub(crate) fn dense_weight_gradient(sums: &[f32], x: &[f32], gradient: &mut [f32]) {
    for (row, sum) in gradient.chunks_exact_mut(x.len()).zip(sums) {
        row.iter_mut().zip(x).for_each(|(gradient, x)| *gradient = sum * x);
    }
}

/// The gradient of a dense layer's input.
pub(crate) fn dense_input_gradient(sums: &[f32], weight: &[f32], gradient: &mut [f32]) {
    let (outputs, inputs) = (sums.len(), gradient.len());
    let weight = MatrixRef::new(weight, outputs, inputs);
    multiply(MatrixRef::new(sums, 1, outputs), weight, Onto::Replace, MatrixMut::new(gradient, 1, inputs));
}

/// `y = relu(x * weight + bias)` for a batch of 1 in `sizes`; leaves the unrolled patches in `columns` (`patch * pixels`).
pub(crate) fn convolution(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    sizes: Sizes,
    columns: &mut [f32],
    y: &mut [f32],
) {
    let (pixels, patch) = (sizes.pixels(), sizes.patch());
    unroll(x, columns, sizes);
    y.chunks_exact_mut(pixels).zip(bias).for_each(|(channel, bias)| channel.fill(*bias));
    let (weight, columns) =
        (MatrixRef::new(weight, sizes.outputs, patch), MatrixRef::new(columns, patch, pixels));
    multiply(weight, columns, Onto::Add, MatrixMut::new(y, sizes.outputs, pixels));
    rectify(y);
}

/// The gradients of a convolution's weight and bias, from the patches that [`convolution`] left.
pub(crate) fn convolution_parameter_gradients(
    sums: &[f32],
    columns: &[f32],
    sizes: Sizes,
    weight: &mut [f32],
    bias: &mut [f32],
) {
    let (pixels, patch) = (sizes.pixels(), sizes.patch());
    let columns = MatrixRef::new(columns, patch, pixels).transposed();
    let product = MatrixMut::new(weight, sizes.outputs, patch);
    multiply(MatrixRef::new(sums, sizes.outputs, pixels), columns, Onto::Replace, product);
    for (bias, channel) in bias.iter_mut().zip(sums.chunks_exact(pixels)) {
        *bias = channel.iter().sum();
    }
}

/// The gradient of a convolution's input; `columns` is overwritten.
pub(crate) fn convolution_input_gradient(
    sums: &[f32],
    weight: &[f32],
    sizes: Sizes,
    columns: &mut [f32],
    gradient: &mut [f32],
) {
    let (pixels, patch) = (sizes.pixels(), sizes.patch());
    let weight = MatrixRef::new(weight, sizes.outputs, patch).transposed();
    let sums = MatrixRef::new(sums, sizes.outputs, pixels);
    multiply(weight, sums, Onto::Replace, MatrixMut::new(columns, patch, pixels));
    gradient.fill(0.0);
    roll(columns, gradient, sizes);
}

/// The 2x2 max-pool of a convolution's result; `winners` remembers the corners that won.
pub(crate) fn pool(x: &[f32], sizes: Sizes, y: &mut [f32], winners: &mut [u8]) {
    pooling::pool(x, (sizes.height, sizes.width), y, winners);
}

/// The gradient of a pool's input.
pub(crate) fn pool_gradient(y_gradient: &[f32], winners: &[u8], sizes: Sizes, gradient: &mut [f32]) {
    gradient.fill(0.0);
    pooling::spread(y_gradient, winners, (sizes.height, sizes.width), gradient);
}
