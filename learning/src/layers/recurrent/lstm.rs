//! Long short-term memory (Hochreiter, Schmidhuber 1997, with forget gates): the state at every step.

use super::{Inputs, Sizes, Way, bias_gradient, to_samples, to_steps, turn_weights, weight_gradient};
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
            let samples = gates.chunks_exact_mut(4 * hidden).zip(before.chunks_exact(hidden));
            let results = cell.chunks_exact_mut(hidden).zip(state.chunks_exact_mut(hidden));
            for ((gates, before), (cell, state)) in samples.zip(results) {
                let (input, gates) = gates.split_at_mut(hidden);
                let (forget, gates) = gates.split_at_mut(hidden);
                let (new, output) = gates.split_at_mut(hidden);
                let gates = input.iter_mut().zip(forget).zip(new.iter_mut().zip(output));
                let places = gates.zip(before).zip(cell.iter_mut().zip(state));
                for ((((input, forget), (new, output)), before), (cell, state)) in places {
                    *input = sigmoid(*input);
                    *forget = sigmoid(*forget);
                    *new = tanh(*new);
                    *output = sigmoid(*output);
                    *cell = *forget * before + *input * *new;
                    *state = *output * tanh(*cell);
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
            let cells = before.chunks_exact(hidden).zip(cell.chunks_exact(hidden));
            let gradients = gradient.chunks_exact(hidden).zip(cell_gradient.chunks_exact_mut(hidden));
            let samples = gates.chunks_exact_mut(4 * hidden).zip(cells).zip(gradients);
            for ((gates, (before, cell)), (gradient, cell_gradient)) in samples {
                let (input, gates) = gates.split_at_mut(hidden);
                let (forget, gates) = gates.split_at_mut(hidden);
                let (new, output) = gates.split_at_mut(hidden);
                let gates = input.iter_mut().zip(forget).zip(new.iter_mut().zip(output));
                let places = gates.zip(before.iter().zip(cell)).zip(gradient.iter().zip(cell_gradient));
                for ((((input, forget), (new, output)), (before, cell)), (gradient, carried)) in places {
                    let bent = tanh(*cell);
                    let of_cell = *carried + gradient * *output * (1.0 - bent * bent);
                    *output = gradient * bent * (*output * (1.0 - *output));
                    *carried = of_cell * *forget;
                    *forget = of_cell * before * (*forget * (1.0 - *forget));
                    let of_new = of_cell * *input * (1.0 - *new * *new);
                    *input = of_cell * *new * (*input * (1.0 - *input));
                    *new = of_new;
                }
            }
        },
    );
}
