//! The operations composed of candle's own differentiable ones: what the others do where a tensor is not f32 on the CPU, and a
//! second opinion on their gradients.
//!
//! Where a gradient of candle 0.11 is wrong or missing (pools, convolutions with strides), other operations of candle stand in.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::sigmoid;

use super::{Activation, EPSILON};

fn activated(sums: Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(sums),
        Activation::Relu => sums.relu(),
    }
}

/// See [`super::linear`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else { candle_core::bail!("a scalar has no rows") };
    *last = outputs;
    let sums = x.reshape(((), inputs))?.matmul(&weight.t()?)?.broadcast_add(bias)?;
    activated(sums.reshape(shape)?, activation)
}

/// What windows see at each of their places in row order, each `[batch, channels, rows, columns]`.
fn places(x: &Tensor, side: usize, stride: usize, padding: usize) -> Result<Vec<Tensor>> {
    let (batch, channels, height, width) = x.dims4()?;
    let positions = |length: usize| (length + 2 * padding).checked_sub(side).map(|room| room / stride + 1);
    let (Some(rows), Some(columns)) = (positions(height), positions(width)) else {
        candle_core::bail!(
            "{height} x {width} with a padding of {padding} is too small for a side of {side}"
        );
    };
    let missing = |count: usize, length: usize| (count * stride + side - 1).saturating_sub(length + padding);
    let x = x.pad_with_zeros(2, padding, missing(rows, height))?;
    let x = x.pad_with_zeros(3, padding, missing(columns, width))?;
    let place = |place: usize| {
        let part = x.narrow(2, place / side, rows * stride)?.narrow(3, place % side, columns * stride)?;
        let part = part.contiguous()?.reshape((batch, channels, rows, stride, columns, stride))?;
        part.narrow(3, 0, 1)?.narrow(5, 0, 1)?.contiguous()?.reshape((batch, channels, rows, columns))
    };
    (0..side * side).map(place).collect()
}

/// See [`super::convolution`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, usize),
    activation: Activation,
) -> Result<Tensor> {
    let (outputs, channels, side, _) = weight.dims4()?;
    let sums = if stride == 1 {
        x.conv2d(weight, padding, 1, 1, 1)?
    } else {
        let seen = places(x, side, stride, padding)?;
        let (batch, _, rows, columns) = seen[0].dims4()?;
        let patches = Tensor::stack(&seen, 2)?.reshape((batch, channels * side * side, rows * columns))?;
        let weight = weight.reshape((1, outputs, channels * side * side))?;
        weight.broadcast_matmul(&patches)?.reshape((batch, outputs, rows, columns))?
    };
    activated(sums.broadcast_add(&bias.reshape((1, outputs, 1, 1))?)?, activation)
}

/// See [`super::max_pool`].
///
/// # Errors
/// When the image is smaller than a window, or candle fails.
pub fn max_pool(x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    let mut seen = places(x, size, stride, 0)?.into_iter();
    let Some(first) = seen.next() else { candle_core::bail!("a window of nothing has no maximum") };
    seen.try_fold(first, |best, next| best.ge(&next)?.where_cond(&best, &next))
}

/// See [`super::group_norm`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let normal = normalised(&x.reshape((batch, groups, ()))?)?.reshape((batch, channels, ()))?;
    let affine = normal.broadcast_mul(&weight.reshape((1, channels, 1))?)?;
    affine.broadcast_add(&bias.reshape((1, channels, 1))?)?.reshape(x.shape())
}

/// See [`super::layer_norm`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    normalised(x)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Along the last dimension.
fn normalised(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)
}

/// See [`super::embedding`].
///
/// # Errors
/// When a symbol has no row, or candle fails.
pub fn embedding(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, steps) = x.dims2()?;
    let rows = x.flatten_all()?.to_dtype(DType::U32)?;
    weight.index_select(&rows, 0)?.reshape((batch, steps, weight.dim(1)?))
}

/// The products of all steps' inputs, `[batch, steps, gates]`.
fn inputs(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear(x, weight, bias, Activation::Identity)
}

/// See [`super::lstm`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn lstm(x: &Tensor, weight_ih: &Tensor, weight_hh: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, steps, _) = x.dims3()?;
    let hidden = weight_hh.dim(1)?;
    let inputs = inputs(x, weight_ih, bias)?;
    let zeros = Tensor::zeros((batch, hidden), x.dtype(), x.device())?;
    let (mut state, mut cell, mut states) = (zeros.clone(), zeros, Vec::with_capacity(steps));
    for step in 0..steps {
        let sums = (inputs.narrow(1, step, 1)?.squeeze(1)? + state.matmul(&weight_hh.t()?)?)?;
        let gate = |number: usize| sums.narrow(1, number * hidden, hidden);
        let kept = (sigmoid(&gate(1)?)? * cell)?;
        cell = (kept + (sigmoid(&gate(0)?)? * gate(2)?.tanh()?)?)?;
        state = (sigmoid(&gate(3)?)? * cell.tanh()?)?;
        states.push(state.clone());
    }
    Tensor::stack(&states, 1)
}

/// See [`super::gru`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn gru(
    x: &Tensor,
    [weight_ih, weight_hh]: [&Tensor; 2],
    [bias_ih, bias_hh]: [&Tensor; 2],
) -> Result<Tensor> {
    let (batch, steps, _) = x.dims3()?;
    let hidden = weight_hh.dim(1)?;
    let inputs = inputs(x, weight_ih, bias_ih)?;
    let mut state = Tensor::zeros((batch, hidden), x.dtype(), x.device())?;
    let mut states = Vec::with_capacity(steps);
    for step in 0..steps {
        let input = inputs.narrow(1, step, 1)?.squeeze(1)?;
        let memory = state.matmul(&weight_hh.t()?)?.broadcast_add(bias_hh)?;
        let part = |sums: &Tensor, number: usize| sums.narrow(1, number * hidden, hidden);
        let reset = sigmoid(&(part(&input, 0)? + part(&memory, 0)?)?)?;
        let update = sigmoid(&(part(&input, 1)? + part(&memory, 1)?)?)?;
        let candidate = (part(&input, 2)? + (reset * part(&memory, 2)?)?)?.tanh()?;
        state = ((&candidate + (&update * &state)?)? - (update * &candidate)?)?;
        states.push(state.clone());
    }
    Tensor::stack(&states, 1)
}
