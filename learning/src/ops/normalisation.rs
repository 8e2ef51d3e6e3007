//! Normalisations over a sample's own values: nothing passes from one record to another.

use candle_core::{Result, Tensor};

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
    let normal = normalised(&x.reshape((batch, groups, ()))?)?.reshape((batch, channels, ()))?;
    let affine = normal.broadcast_mul(&weight.reshape((1, channels, 1))?)?;
    affine.broadcast_add(&bias.reshape((1, channels, 1))?)?.reshape(x.shape())
}

/// Layer normalisation (Ba, Kiros, Hinton 2016) along the last dimension, then times `weight` and plus `bias`.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    normalised(x)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Along the last dimension.
fn normalised(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let centred = x.broadcast_sub(&x.mean_keepdim(last)?)?;
    let variance = centred.sqr()?.mean_keepdim(last)?;
    centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)
}
