//! Sequences: symbols as vectors, and recurrent layers over them.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::sigmoid;

/// The rows of `weight` (`[symbols, width]`) that `x` (`[batch, steps]`, whole numbers from 0) names: `[batch, steps, width]`.
///
/// # Errors
/// When a symbol has no row, or candle fails.
pub fn embedding(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, steps) = x.dims2()?;
    let rows = x.flatten_all()?.to_dtype(DType::U32)?;
    weight.index_select(&rows, 0)?.reshape((batch, steps, weight.dim(1)?))
}

/// Long short-term memory over `x` (`[batch, steps, features]`) from a state of zeros: the hidden state at every step, `[batch,
/// steps, hidden]`. `weight_ih` is `[4 hidden, features]`, `weight_hh` `[4 hidden, hidden]`, `bias` `[4 hidden]`; the gates are
/// input, forget, cell, output.
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn lstm(x: &Tensor, weight_ih: &Tensor, weight_hh: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, steps, features) = x.dims3()?;
    let hidden = weight_hh.dim(1)?;
    let rows = x.reshape((batch * steps, features))?;
    let inputs = rows.matmul(&weight_ih.t()?)?.broadcast_add(bias)?.reshape((batch, steps, 4 * hidden))?;
    let zeros = Tensor::zeros((batch, hidden), DType::F32, x.device())?;
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
    let (batch, steps, features) = x.dims3()?;
    let hidden = weight_hh.dim(1)?;
    let rows = x.reshape((batch * steps, features))?;
    let inputs = rows.matmul(&weight_ih.t()?)?.broadcast_add(bias_ih)?.reshape((batch, steps, 3 * hidden))?;
    let mut state = Tensor::zeros((batch, hidden), DType::F32, x.device())?;
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
