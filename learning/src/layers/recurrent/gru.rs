//! Gated recurrent units (Cho et al. 2014, with the reset gate applied after the state's product and bias): the state at every
//! step.

use super::{Inputs, Sizes, Way, bias_gradient, repeat, to_samples, to_steps, turn_weights, weight_gradient};
use crate::Mode;
use crate::kernels::functions::{sigmoid, tanh};
use crate::kernels::{Matrix, Store, multiply_plain, vectorised};
use crate::layers::arrange::turn;
use crate::layers::{Layer, Weights, reserve};

/// Tensors: `[3 hidden, features]`, `[3 hidden, hidden]`, and two biases `[3 hidden]`; the gates are reset, update, candidate.
#[derive(Debug)]
pub(crate) struct Gru {
    sizes: Sizes,
    inputs: Inputs,
    /// `[steps, batch, 3 hidden]`: the gates on the way forward, the gradients of the inputs' sums on the way back.
    gates: Vec<f32>,
    /// As long: the sums of the state, then their gradients.
    memories: Vec<f32>,
    /// `[1 + steps, batch, hidden]`, zeros first.
    states: Vec<f32>,
    /// The same for gradients.
    state_gradients: Vec<f32>,
    /// The state's weights in layout order.
    turned: Vec<f32>,
    bias_gradient: Vec<f32>,
}

impl Gru {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let (gates, memories, states, state_gradients, turned, bias_gradient) = Default::default();
        let inputs = Inputs::new(sizes, 3 * sizes.hidden);
        Self { sizes, inputs, gates, memories, states, state_gradients, turned, bias_gradient }
    }

    /// Where the tensors after the first begin.
    fn starts(&self) -> [usize; 3] {
        let Sizes { features, hidden, .. } = self.sizes;
        let third = 3 * hidden * (features + hidden);
        [3 * hidden * features, third, third + 3 * hidden]
    }
}

impl Layer for Gru {
    fn forward(&mut self, batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (Sizes { steps, hidden, .. }, [second, third, fourth]) = (self.sizes, self.starts());
        let (block, rows) = (batch * hidden, batch * steps);
        reserve(&mut self.gates, 3 * rows * hidden);
        reserve(&mut self.memories, 3 * rows * hidden);
        reserve(&mut self.states, block + rows * hidden);
        let (gates, memories) =
            (&mut self.gates[..3 * rows * hidden], &mut self.memories[..3 * rows * hidden]);
        self.inputs.forward(batch, &parameters[..second], &parameters[third..fourth], x, gates);
        let (weight, bias) = (&parameters[second..third], &parameters[fourth..]);
        repeat(bias, memories);
        self.states[..block].fill(0.0);
        let sums = gates.chunks_exact_mut(3 * block).zip(memories.chunks_exact_mut(3 * block));
        for (step, (gates, memory)) in sums.enumerate() {
            let (before, state) = self.states[step * block..][..2 * block].split_at_mut(block);
            if step > 0 {
                let sums = Store::blend(memory, 3 * hidden, 1.0, 1.0);
                multiply_plain((batch, 3 * hidden, hidden), Matrix::rows(before, hidden), weight, sums);
            }
            advance(hidden, gates, memory, before, state);
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
        let (Sizes { steps, hidden, .. }, [second, third, fourth]) = (self.sizes, self.starts());
        let (block, rows) = (batch * hidden, batch * steps);
        reserve(&mut self.state_gradients, block + rows * hidden);
        reserve(&mut self.turned, 3 * hidden * hidden);
        let turned = &mut self.turned[..3 * hidden * hidden];
        turn((hidden, 3 * hidden), &weights.values()[second..third], turned);
        let of_states = &mut self.state_gradients[..block + rows * hidden];
        of_states[..block].fill(0.0);
        to_steps(batch, steps, hidden, y_gradient, &mut of_states[block..]);
        for step in (0..steps).rev() {
            let gates = &mut self.gates[step * 3 * block..][..3 * block];
            let memory = &mut self.memories[step * 3 * block..][..3 * block];
            let (of_before, gradient) = of_states[step * block..][..2 * block].split_at_mut(block);
            retreat(
                hidden,
                gates,
                memory,
                &self.states[step * block..][..block],
                (gradient, &mut *of_before),
            );
            if step > 0 {
                let target = Store::blend(of_before, hidden, 1.0, 1.0);
                let sums = Matrix::rows(memory, 3 * hidden);
                multiply_plain((batch, hidden, 3 * hidden), sums, turned, target);
            }
        }
        let (sums, memories) = (&self.gates[..3 * rows * hidden], &self.memories[..3 * rows * hidden]);
        self.inputs.backward(batch, weights.part(0..second), sums, x_gradient);
        let shape = (rows - batch, hidden, 3 * hidden);
        let (before, later) = (&self.states[block..], &memories[3 * block..]);
        weight_gradient(shape, before, later, &mut weights.part(second..third));
        let end = fourth + 3 * hidden;
        bias_gradient(&mut self.bias_gradient, sums, &mut weights.part(third..fourth));
        bias_gradient(&mut self.bias_gradient, memories, &mut weights.part(fourth..end));
    }

    fn import(&self, natural: &[f32], own: &mut [f32]) {
        turn_weights(self.sizes, 3 * self.sizes.hidden, Way::Import, natural, own);
    }

    fn export(&self, own: &[f32], natural: &mut [f32]) {
        turn_weights(self.sizes, 3 * self.sizes.hidden, Way::Export, own, natural);
    }
}

/// One step: from the sums of input and state to the gates, in place of the former, and the state.
fn advance(hidden: usize, gates: &mut [f32], memory: &[f32], before: &[f32], state: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let sums = gates.chunks_exact_mut(3 * hidden).zip(memory.chunks_exact(3 * hidden));
            let states = before.chunks_exact(hidden).zip(state.chunks_exact_mut(hidden));
            for ((gates, memory), (before, state)) in sums.zip(states) {
                let (reset, gates) = gates.split_at_mut(hidden);
                let (update, new) = gates.split_at_mut(hidden);
                let (of_reset, memory) = memory.split_at(hidden);
                let (of_update, of_new) = memory.split_at(hidden);
                let gates = reset.iter_mut().zip(update).zip(new);
                let memory = of_reset.iter().zip(of_update).zip(of_new);
                let places = gates.zip(memory).zip(before.iter().zip(state));
                for ((((reset, update), new), ((of_reset, of_update), of_new)), (before, state)) in places {
                    *reset = sigmoid(*reset + of_reset);
                    *update = sigmoid(*update + of_update);
                    *new = tanh(*new + *reset * of_new);
                    *state = *new + *update * (before - *new);
                }
            }
        },
    );
}

/// One step back: from the gates and the gradient of the state to those of both sums, in place, and what goes past the gates
/// to the state before, which is added.
fn retreat(
    hidden: usize,
    gates: &mut [f32],
    memory: &mut [f32],
    before: &[f32],
    (gradient, of_before): (&[f32], &mut [f32]),
) {
    vectorised(
        #[inline(always)]
        || {
            let sums = gates.chunks_exact_mut(3 * hidden).zip(memory.chunks_exact_mut(3 * hidden));
            let gradients = gradient.chunks_exact(hidden).zip(of_before.chunks_exact_mut(hidden));
            let samples = sums.zip(before.chunks_exact(hidden)).zip(gradients);
            for (((gates, memory), before), (gradient, of_before)) in samples {
                let (reset, gates) = gates.split_at_mut(hidden);
                let (update, new) = gates.split_at_mut(hidden);
                let (of_reset, memory) = memory.split_at_mut(hidden);
                let (of_update, of_new) = memory.split_at_mut(hidden);
                let gates = reset.iter_mut().zip(update).zip(new);
                let memory = of_reset.iter_mut().zip(of_update).zip(of_new);
                let places = gates.zip(memory).zip(before).zip(gradient.iter().zip(of_before));
                for (((gates, memory), before), (gradient, of_before)) in places {
                    let (((reset, update), new), ((of_reset, of_update), of_new)) = (gates, memory);
                    *of_before += gradient * *update;
                    *of_update = gradient * (before - *new) * (*update * (1.0 - *update));
                    let candidate = gradient * (1.0 - *update) * (1.0 - *new * *new);
                    *of_reset = candidate * *of_new * (*reset * (1.0 - *reset));
                    *of_new = candidate * *reset;
                    *reset = *of_reset;
                    *update = *of_update;
                    *new = candidate;
                }
            }
        },
    );
}
