//! Sequences: symbols as vectors, and recurrent layers over them.

use candle_core::{DType, Result, Tensor};

use super::layer::{alone, apply, is_ours};
use super::storage::with_floats;
use super::{composed, expect};
use crate::layers::{Embedding, Gru, Lstm, Sizes};

/// The rows of `weight` (`[symbols, width]`) that `x` (`[batch, steps]`, whole numbers from 0) names: `[batch, steps, width]`.
///
/// # Errors
/// When a symbol has no row, or candle fails.
pub fn embedding(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((batch, steps), (symbols, width)) = (x.dims2()?, weight.dims2()?);
    if !is_ours(weight) || x.elem_count() == 0 {
        return composed::embedding(x, weight);
    }
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let unknown = with_floats(&x, |x| {
        Ok(x.iter().copied().find(|symbol| !(*symbol > -1.0 && *symbol < symbols as f32)))
    })?;
    if let Some(symbol) = unknown {
        candle_core::bail!("{symbol} is not one of {symbols} symbols, which count from 0");
    }
    let layer = alone(Embedding::new(symbols, width), symbols * width, 1, width);
    apply(layer, batch * steps, &x, &[weight], (batch, steps, width))
}

/// Long short-term memory over `x` (`[batch, steps, features]`) from a state of zeros: the hidden state at every step, `[batch,
/// steps, hidden]`. `weight_ih` is `[4 hidden, features]`, `weight_hh` `[4 hidden, hidden]`, `bias` `[4 hidden]`; the gates are
/// input, forget, cell, output.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn lstm(x: &Tensor, weight_ih: &Tensor, weight_hh: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let sizes = sizes(x, weight_ih, weight_hh, 4)?;
    expect("the bias of an lstm", bias, &[4 * sizes.hidden])?;
    if !is_ours(x) {
        return composed::lstm(x, weight_ih, weight_hh, bias);
    }
    let parameters = 4 * sizes.hidden * (sizes.features + sizes.hidden + 1);
    sequence(Lstm::new(sizes), parameters, sizes, x, &[weight_ih, weight_hh, bias])
}

/// Gated recurrent units over `x` (`[batch, steps, features]`) from a state of zeros: the hidden state at every step, `[batch, steps,
/// hidden]`. The weights are `[3 hidden, features]` and `[3 hidden, hidden]`, the biases `[3 hidden]` each; the gates are reset,
/// update, candidate, and the reset gate is applied after the state's product and bias.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn gru(
    x: &Tensor,
    [weight_ih, weight_hh]: [&Tensor; 2],
    [bias_ih, bias_hh]: [&Tensor; 2],
) -> Result<Tensor> {
    let sizes = sizes(x, weight_ih, weight_hh, 3)?;
    expect("a bias of a gru", bias_ih, &[3 * sizes.hidden])?;
    expect("a bias of a gru", bias_hh, &[3 * sizes.hidden])?;
    if !is_ours(x) {
        return composed::gru(x, [weight_ih, weight_hh], [bias_ih, bias_hh]);
    }
    let parameters = 3 * sizes.hidden * (sizes.features + sizes.hidden + 2);
    sequence(Gru::new(sizes), parameters, sizes, x, &[weight_ih, weight_hh, bias_ih, bias_hh])
}

fn sizes(x: &Tensor, weight_ih: &Tensor, weight_hh: &Tensor, gates: usize) -> Result<Sizes> {
    let ((_, steps, features), hidden) = (x.dims3()?, weight_hh.dim(1)?);
    expect("the weight of a recurrent layer's inputs", weight_ih, &[gates * hidden, features])?;
    expect("the weight of a recurrent layer's state", weight_hh, &[gates * hidden, hidden])?;
    Ok(Sizes { steps, features, hidden })
}

fn sequence(
    layer: impl crate::layers::Layer + 'static,
    parameters: usize,
    Sizes { steps, features, hidden }: Sizes,
    x: &Tensor,
    tensors: &[&Tensor],
) -> Result<Tensor> {
    let batch = x.dim(0)?;
    let chain = alone(layer, parameters, steps * features, steps * hidden);
    apply(chain, batch, x, tensors, (batch, steps, hidden))
}
