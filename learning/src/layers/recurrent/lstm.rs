//! Long short-term memory (Hochreiter, Schmidhuber 1997, with forget gates): the state at every step.

use super::{
    BLOCK, Inputs, Sizes, Way, bias_gradient, of_gate, put, take, to_samples, to_steps, turn_weights,
    weight_gradient,
};
use crate::Mode;
use crate::kernels::functions::{sigmoid, tanh};
use crate::kernels::{Matrix, Store, multiply_plain, vectorised};
use crate::layers::arrange::turn;
use crate::layers::{Layer, Weights, reserve};

/// Tensors: `[4 hidden, features]`, `[4 hidden, hidden]`, `[4 hidden]`; the gates are input, forget, cell, output.
#[derive(Debug)]
pub(crate) struct Lstm {
    sizes: Sizes,
    inputs: Inputs,
    /// `[steps, batch, 4 hidden]`: the gates on the way forward, the gradients of their sums on the way back.
    gates: Vec<f32>,
    /// `[1 + steps, batch, hidden]`, zeros first.
    cells: Vec<f32>,
    states: Vec<f32>,
    /// `[steps, batch, hidden]`.
    state_gradients: Vec<f32>,
    /// `[batch, hidden]`.
    cell_gradient: Vec<f32>,
    /// The state's weights in layout order.
    turned: Vec<f32>,
    bias_gradient: Vec<f32>,
}

impl Lstm {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let (gates, cells, states, state_gradients, cell_gradient, turned, bias_gradient) =
            Default::default();
        let inputs = Inputs::new(sizes, 4 * sizes.hidden);
        Self { sizes, inputs, gates, cells, states, state_gradients, cell_gradient, turned, bias_gradient }
    }

    /// Where the second weight and the bias begin.
    fn starts(&self) -> [usize; 2] {
        let Sizes { features, hidden, .. } = self.sizes;
        [4 * hidden * features, 4 * hidden * (features + hidden)]
    }
}

impl Layer for Lstm {
    fn forward(&mut self, batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (Sizes { steps, hidden, .. }, [second, third]) = (self.sizes, self.starts());
        let (block, rows) = (batch * hidden, batch * steps);
        reserve(&mut self.gates, 4 * rows * hidden);
        reserve(&mut self.cells, block + rows * hidden);
        reserve(&mut self.states, block + rows * hidden);
        let gates = &mut self.gates[..4 * rows * hidden];
        self.inputs.forward(batch, &parameters[..second], &parameters[third..], x, gates);
        let weight = &parameters[second..third];
        self.cells[..block].fill(0.0);
        for (step, gates) in gates.chunks_exact_mut(4 * block).enumerate() {
            let (before, state) = self.states[step * block..][..2 * block].split_at_mut(block);
            if step > 0 {
                let sums = Store::blend(gates, 4 * hidden, 1.0, 1.0);
                multiply_plain((batch, 4 * hidden, hidden), Matrix::rows(before, hidden), weight, sums);
            }
            let (before, cell) = self.cells[step * block..][..2 * block].split_at_mut(block);
            advance(hidden, gates, before, cell, state);
        }
        to_samples(batch, steps, hidden, &self.states[block..block + rows * hidden], y);
    }

    fn backward(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        _x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let (Sizes { steps, hidden, .. }, [second, third]) = (self.sizes, self.starts());
        let (block, rows, end) = (batch * hidden, batch * steps, third + 4 * hidden);
        reserve(&mut self.state_gradients, rows * hidden);
        reserve(&mut self.cell_gradient, block);
        reserve(&mut self.turned, 4 * hidden * hidden);
        let (turned, state_gradients) = (&mut self.turned[..4 * hidden * hidden], &mut self.state_gradients);
        turn((hidden, 4 * hidden), &weights.values()[second..third], turned);
        to_steps(batch, steps, hidden, y_gradient, &mut state_gradients[..rows * hidden]);
        let cell_gradient = &mut self.cell_gradient[..block];
        cell_gradient.fill(0.0);
        for step in (0..steps).rev() {
            let gates = &mut self.gates[step * 4 * block..][..4 * block];
            let (before, cell) = self.cells[step * block..][..2 * block].split_at(block);
            let gradient = &state_gradients[step * block..][..block];
            retreat(hidden, gates, (before, cell), gradient, cell_gradient);
            if step > 0 {
                let target = &mut state_gradients[(step - 1) * block..][..block];
                let target = Store::blend(target, hidden, 1.0, 1.0);
                let sums = Matrix::rows(gates, 4 * hidden);
                multiply_plain((batch, hidden, 4 * hidden), sums, turned, target);
            }
        }
        let sums = &self.gates[..4 * rows * hidden];
        self.inputs.backward(batch, weights.part(0..second), sums, x_gradient);
        let shape = (rows - batch, hidden, 4 * hidden);
        let (before, later) = (&self.states[block..], &sums[4 * block..]);
        weight_gradient(shape, before, later, &mut weights.part(second..third));
        bias_gradient(&mut self.bias_gradient, sums, &mut weights.part(third..end));
    }

    fn import(&self, natural: &[f32], own: &mut [f32]) {
        turn_weights(self.sizes, 4 * self.sizes.hidden, Way::Import, natural, own);
    }

    fn export(&self, own: &[f32], natural: &mut [f32]) {
        turn_weights(self.sizes, 4 * self.sizes.hidden, Way::Export, own, natural);
    }
}

/// One step: from the sums in `gates` and the cell before to the gates, the cell and the state.
fn advance(hidden: usize, gates: &mut [f32], before: &[f32], cell: &mut [f32], state: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for sample in 0..cell.len() / hidden {
                let (gates, at) = (&mut gates[4 * sample * hidden..][..4 * hidden], sample * hidden);
                let mut from = 0;
                while from < hidden {
                    let range = from..(from + BLOCK).min(hidden);
                    let here = at + range.start..at + range.end;
                    let mut input = take(gates, range.clone());
                    let mut forget = take(gates, of_gate(1, hidden, &range));
                    let mut new = take(gates, of_gate(2, hidden, &range));
                    let mut output = take(gates, of_gate(3, hidden, &range));
                    let (before, mut bent) = (take(before, here.clone()), [0.0; BLOCK]);
                    let mut result = [0.0; BLOCK];
                    for place in 0..BLOCK {
                        input[place] = sigmoid(input[place]);
                        forget[place] = sigmoid(forget[place]);
                        new[place] = tanh(new[place]);
                        output[place] = sigmoid(output[place]);
                        result[place] = forget[place] * before[place] + input[place] * new[place];
                        bent[place] = output[place] * tanh(result[place]);
                    }
                    put(&input, gates, range.clone());
                    put(&forget, gates, of_gate(1, hidden, &range));
                    put(&new, gates, of_gate(2, hidden, &range));
                    put(&output, gates, of_gate(3, hidden, &range));
                    put(&result, cell, here.clone());
                    put(&bent, state, here);
                    from = range.end;
                }
            }
        },
    );
}

/// One step back: from the gates and the gradients of state and cell to those of the gates' sums, in place, and of the cell
/// before.
fn retreat(
    hidden: usize,
    gates: &mut [f32],
    (before, cell): (&[f32], &[f32]),
    gradient: &[f32],
    cell_gradient: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || {
            for sample in 0..cell.len() / hidden {
                let (gates, at) = (&mut gates[4 * sample * hidden..][..4 * hidden], sample * hidden);
                let mut from = 0;
                while from < hidden {
                    let range = from..(from + BLOCK).min(hidden);
                    let here = at + range.start..at + range.end;
                    let mut input = take(gates, range.clone());
                    let mut forget = take(gates, of_gate(1, hidden, &range));
                    let mut new = take(gates, of_gate(2, hidden, &range));
                    let mut output = take(gates, of_gate(3, hidden, &range));
                    let (before, cell) = (take(before, here.clone()), take(cell, here.clone()));
                    let (gradient, mut carried) =
                        (take(gradient, here.clone()), take(cell_gradient, here.clone()));
                    for place in 0..BLOCK {
                        let bent = tanh(cell[place]);
                        let (i, f, n, o) = (input[place], forget[place], new[place], output[place]);
                        let of_cell = carried[place] + gradient[place] * o * (1.0 - bent * bent);
                        output[place] = gradient[place] * bent * (o * (1.0 - o));
                        carried[place] = of_cell * f;
                        forget[place] = of_cell * before[place] * (f * (1.0 - f));
                        new[place] = of_cell * i * (1.0 - n * n);
                        input[place] = of_cell * n * (i * (1.0 - i));
                    }
                    put(&input, gates, range.clone());
                    put(&forget, gates, of_gate(1, hidden, &range));
                    put(&new, gates, of_gate(2, hidden, &range));
                    put(&output, gates, of_gate(3, hidden, &range));
                    put(&carried, cell_gradient, here);
                    from = range.end;
                }
            }
        },
    );
}
