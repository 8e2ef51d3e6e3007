//! Normalisations over a sample's own values, where nothing passes from one record to another, and activations.

use candle_core::{Result, Tensor};

use super::layer::{alone, apply, is_ours, turned};
use super::{Activation, composed, expect};
use crate::layers::{Elementwise, GroupNorm, LayerNorm};

/// Keeps the root from zero.
pub(crate) const EPSILON: f64 = 1e-5;

/// Group normalisation (Wu, He 2018) of `[batch, channels, ...]`: each of `groups` equal groups of channels to mean 0 and
/// variance 1, then times `weight` and plus `bias` (`[channels]`).
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    if groups == 0 || channels % groups != 0 {
        candle_core::bail!("{channels} channels do not fall into {groups} groups");
    }
    expect("the weight of a normalisation", weight, &[channels])?;
    expect("the bias of a normalisation", bias, &[channels])?;
    if !is_ours(x) {
        return composed::group_norm(x, weight, bias, groups);
    }
    let pixels = x.elem_count() / (batch * channels);
    let layer = GroupNorm::new(channels, pixels, groups, Activation::Identity);
    let chain = turned(layer, 2 * channels, (channels, pixels), (channels, pixels));
    apply(chain, batch, x, &[weight, bias], x.shape())
}

/// Layer normalisation (Ba, Kiros, Hinton 2016) along the last dimension, then times `weight` and plus `bias`.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or_default();
    expect("the weight of a normalisation", weight, &[width])?;
    expect("the bias of a normalisation", bias, &[width])?;
    if !is_ours(x) {
        return composed::layer_norm(x, weight, bias);
    }
    let chain = alone(LayerNorm::new(width), 2 * width, width, width);
    apply(chain, x.elem_count() / width, x, &[weight, bias], x.shape())
}

fn elementwise(x: &Tensor, kind: Elementwise) -> Result<Tensor> {
    let count = x.elem_count();
    apply(alone(kind, 0, count, count), 1, x, &[], x.shape())
}

/// `max(0, x)`; its derivative at 0 is 0. After a product, [`super::linear`] and [`super::convolution`] do it at once.
///
/// # Errors
/// When candle fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if is_ours(x) { elementwise(x, Elementwise::Relu) } else { x.relu() }
}

/// `x` times the normal distribution function of `x` (Hendrycks, Gimpel 2016), exactly, not by its tanh approximation.
///
/// # Errors
/// When candle fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_ours(x) { elementwise(x, Elementwise::Gelu) } else { x.gelu_erf() }
}

/// The hyperbolic tangent.
///
/// # Errors
/// When candle fails.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    if is_ours(x) { elementwise(x, Elementwise::Tanh) } else { x.tanh() }
}

/// `1 / (1 + exp(-x))`.
///
/// # Errors
/// When candle fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    if is_ours(x) { elementwise(x, Elementwise::Sigmoid) } else { candle_nn::ops::sigmoid(x) }
}
