//! Dense layers, convolutions and pools.

use candle_core::{Result, Tensor};

use super::layer::{alone, apply, is_ours, turned};
use super::{Activation, composed, expect};
use crate::kernels::Window;
use crate::layers::{Convolution, Dense, MaxPool};

/// `activation(x weight^T + bias)` along the last dimension of `x`, of length `inputs`; `weight` is `[outputs, inputs]`, `bias`
/// `[outputs]`.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    expect("the bias of a dense layer", bias, &[outputs])?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => candle_core::bail!("a dense layer of weight {:?} does not fit {:?}", weight.shape(), x.shape()),
    }
    if !is_ours(x) {
        return composed::linear(x, weight, bias, activation);
    }
    let dense = alone(Dense::new(1, inputs, outputs, activation), (inputs + 1) * outputs, inputs, outputs);
    apply(dense, x.elem_count() / inputs, x, &[weight, bias], shape)
}

/// `activation(x * weight + bias)` with a stride and zeros around the image, given as `(stride, padding)`: `x` is `[batch, inputs,
/// height, width]`, `weight` `[outputs, inputs, side, side]`, `bias` `[outputs]`; the result is `[batch, outputs, rows, columns]`.
///
/// # Errors
/// When shapes do not fit, the image is smaller than the kernel, or candle fails.
pub fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, usize),
    activation: Activation,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (outputs, _, side, _) = weight.dims4()?;
    expect("the weight of a convolution with square kernels", weight, &[outputs, channels, side, side])?;
    expect("the bias of a convolution", bias, &[outputs])?;
    let window = Window { channels, height, width, side, stride, padding };
    let (rows, columns) = positions(window)?;
    if !is_ours(x) {
        return composed::convolution(x, weight, bias, (stride, padding), activation);
    }
    let convolution = Convolution::new(window, outputs, activation, batch);
    let parameters = (window.patch() + 1) * outputs;
    let chain = turned(convolution, parameters, (channels, height * width), (outputs, rows * columns));
    apply(chain, batch, x, &[weight, bias], (batch, outputs, rows, columns))
}

/// The maximum of windows of `size x size`, `stride` apart, of `[batch, channels, height, width]`. Windows stay inside the image.
/// The whole gradient goes to the maximum; of equals, to the first in row order.
///
/// # Errors
/// When the image is smaller than a window, or candle fails.
pub fn max_pool(x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let window = Window { channels, height, width, side: size, stride, padding: 0 };
    let (rows, columns) = positions(window)?;
    if !is_ours(x) || size > MaxPool::SIDE_MAX {
        return composed::max_pool(x, size, stride);
    }
    let chain = turned(MaxPool::new(window), 0, (channels, height * width), (channels, rows * columns));
    apply(chain, batch, x, &[], (batch, channels, rows, columns))
}

/// Where windows are, at least one.
fn positions(window: Window) -> Result<(usize, usize)> {
    let Window { height, width, side, stride, padding, .. } = window;
    if side == 0 || stride == 0 {
        candle_core::bail!("windows of side {side}, {stride} apart, are none");
    }
    match window.positions() {
        (0, _) | (_, 0) => candle_core::bail!(
            "{height} x {width} with a padding of {padding} is too small for a window of side {side}"
        ),
        positions => Ok(positions),
    }
}
