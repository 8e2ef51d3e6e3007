//! Gated recurrent units (Cho et al. 2014, with the reset gate applied after the state's product and bias): the state at every
//! step.

use super::{
    BLOCK, Inputs, Sizes, Way, bias_gradient, of_gate, put, repeat, take, to_samples, to_steps, turn_weights,
    weight_gradient,
};
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
        repeat(&parameters[fourth..], memories);
        let weight = &parameters[second..third];
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
            for sample in 0..state.len() / hidden {
                let (row, at) = (3 * sample * hidden..3 * (sample + 1) * hidden, sample * hidden);
                let (gates, memory) = (&mut gates[row.clone()], &memory[row]);
                let mut from = 0;
                while from < hidden {
                    let range = from..(from + BLOCK).min(hidden);
                    let here = at + range.start..at + range.end;
                    let (second, third) = (of_gate(1, hidden, &range), of_gate(2, hidden, &range));
                    let mut reset = take(gates, range.clone());
                    let mut update = take(gates, second.clone());
                    let mut new = take(gates, third.clone());
                    let of_reset = take(memory, range.clone());
                    let of_update = take(memory, second.clone());
                    let of_new = take(memory, third.clone());
                    let mut value = take(before, here.clone());
                    for place in 0..BLOCK {
                        reset[place] = sigmoid(reset[place] + of_reset[place]);
                        update[place] = sigmoid(update[place] + of_update[place]);
                        new[place] = tanh(new[place] + reset[place] * of_new[place]);
                        value[place] = new[place] + update[place] * (value[place] - new[place]);
                    }
                    put(&reset, gates, range.clone());
                    put(&update, gates, second);
                    put(&new, gates, third);
                    put(&value, state, here);
                    from = range.end;
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
            for sample in 0..before.len() / hidden {
                let (row, at) = (3 * sample * hidden..3 * (sample + 1) * hidden, sample * hidden);
                let (gates, memory) = (&mut gates[row.clone()], &mut memory[row]);
                let mut from = 0;
                while from < hidden {
                    let range = from..(from + BLOCK).min(hidden);
                    let here = at + range.start..at + range.end;
                    let (second, third) = (of_gate(1, hidden, &range), of_gate(2, hidden, &range));
                    let mut reset = take(gates, range.clone());
                    let mut update = take(gates, second.clone());
                    let mut new = take(gates, third.clone());
                    let mut of_new = take(memory, third.clone());
                    let (before, gradient) = (take(before, here.clone()), take(gradient, here.clone()));
                    let mut past = take(of_before, here.clone());
                    for place in 0..BLOCK {
                        let (r, u, n) = (reset[place], update[place], new[place]);
                        past[place] += gradient[place] * u;
                        update[place] = gradient[place] * (before[place] - n) * (u * (1.0 - u));
                        new[place] = gradient[place] * (1.0 - u) * (1.0 - n * n);
                        reset[place] = new[place] * of_new[place] * (r * (1.0 - r));
                        of_new[place] = new[place] * r;
                    }
                    for (values, gate) in [(&reset, &range), (&update, &second), (&new, &third)] {
                        put(values, gates, gate.clone());
                    }
                    for (values, gate) in [(&reset, &range), (&update, &second), (&of_new, &third)] {
                        put(values, memory, gate.clone());
                    }
                    put(&past, of_before, here);
                    from = range.end;
                }
            }
        },
    );
}
