//! Recurrent layers over whole sequences: the products with the inputs of all steps are one product, and so are the gradients
//! of the weights; only the product with the state goes step by step.
//!
//! Inside, steps come first and samples second, and weights are held transposed, `[inputs, gates]`, so that a step's product
//! runs along the gates. Sequences start from a state of zeros.

mod gru;
mod lstm;

use std::ops::Range;

use super::arrange::turn;
use super::{Weights, reserve};
use crate::kernels::{Matrix, Store, multiply_plain, transpose};

pub(crate) use gru::Gru;
pub(crate) use lstm::Lstm;

/// Steps, features of an input, and length of the state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) steps: usize,
    pub(crate) features: usize,
    pub(crate) hidden: usize,
}

/// Values of a state that are worked on together, in memory of their own: compilers that cannot see whether so many slices
/// overlap go value by value.
const BLOCK: usize = 32;
type Block = [f32; BLOCK];

/// Values in `range`, zeros beyond.
#[inline(always)]
fn take(values: &[f32], range: Range<usize>) -> Block {
    let values = &values[range];
    if let Some(whole) = values.first_chunk() {
        return *whole;
    }
    let mut block = [0.0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    block
}

/// The way back of [`take`].
#[inline(always)]
fn put(block: &Block, values: &mut [f32], range: Range<usize>) {
    let values = &mut values[range];
    match values.first_chunk_mut() {
        Some(whole) => *whole = *block,
        None => values.copy_from_slice(&block[..values.len()]),
    }
}

/// Where gate number `gate` of a row of gates has the values in `range` of a state.
#[inline(always)]
fn of_gate(gate: usize, hidden: usize, range: &Range<usize>) -> Range<usize> {
    gate * hidden + range.start..gate * hidden + range.end
}

/// Samples of `steps` rows of `width` to steps of rows of samples.
fn to_steps(batch: usize, steps: usize, width: usize, samples: &[f32], rows: &mut [f32]) {
    for (number, row) in rows.chunks_exact_mut(width).enumerate() {
        let (step, sample) = (number / batch, number % batch);
        row.copy_from_slice(&samples[(sample * steps + step) * width..][..width]);
    }
}

/// The way back of [`to_steps`].
fn to_samples(batch: usize, steps: usize, width: usize, rows: &[f32], samples: &mut [f32]) {
    for (number, row) in rows.chunks_exact(width).enumerate() {
        let (step, sample) = (number / batch, number % batch);
        samples[(sample * steps + step) * width..][..width].copy_from_slice(row);
    }
}

/// The product of all inputs with their weights, `[features, gates]`.
#[derive(Debug)]
struct Inputs {
    sizes: Sizes,
    gates: usize,
    /// Of the last batch, steps first.
    x: Vec<f32>,
    x_gradient: Vec<f32>,
    /// The weights, `[gates, features]`.
    turned: Vec<f32>,
}

impl Inputs {
    fn new(sizes: Sizes, gates: usize) -> Self {
        Self { sizes, gates, x: Vec::new(), x_gradient: Vec::new(), turned: Vec::new() }
    }

    /// Writes `x weight + bias` for every step.
    fn forward(&mut self, batch: usize, weight: &[f32], bias: &[f32], x: &[f32], sums: &mut [f32]) {
        let (Sizes { steps, features, .. }, rows) = (self.sizes, batch * self.sizes.steps);
        reserve(&mut self.x, rows * features);
        to_steps(batch, steps, features, x, &mut self.x[..rows * features]);
        repeat(bias, sums);
        let inputs = Matrix::rows(&self.x[..rows * features], features);
        let sums = Store::blend(sums, self.gates, 1.0, 1.0);
        multiply_plain((rows, self.gates, features), inputs, weight, sums);
    }

    /// The gradient of the inputs, if it is asked for, and then that of the weight.
    fn backward(
        &mut self,
        batch: usize,
        mut weight: Weights<'_>,
        sums_gradient: &[f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let (Sizes { steps, features, .. }, rows) = (self.sizes, batch * self.sizes.steps);
        if let Some(x_gradient) = x_gradient {
            reserve(&mut self.x_gradient, rows * features);
            let target = &mut self.x_gradient[..rows * features];
            reserve(&mut self.turned, features * self.gates);
            let turned = &mut self.turned[..features * self.gates];
            transpose((features, self.gates), weight.values(), turned);
            let sums = Matrix::rows(sums_gradient, self.gates);
            multiply_plain((rows, features, self.gates), sums, turned, Store::replace(target, features));
            to_samples(batch, steps, features, target, x_gradient);
        }
        weight_gradient((rows, features, self.gates), &self.x, sums_gradient, &mut weight);
    }
}

/// Hands over `left^T right`, with `rows` rows of `inputs` on the left and of `gates` on the right.
fn weight_gradient(
    (rows, inputs, gates): (usize, usize, usize),
    left: &[f32],
    right: &[f32],
    weight: &mut Weights<'_>,
) {
    let (target, scale, keep) = weight.target();
    let target = Store::blend(target, gates, scale, keep);
    multiply_plain((inputs, gates, rows), Matrix::columns(left, inputs), right, target);
}

/// Fills rows with copies of one.
fn repeat(row: &[f32], rows: &mut [f32]) {
    for target in rows.chunks_exact_mut(row.len()) {
        target.copy_from_slice(row);
    }
}

/// Both weights from layout order to the layers' own, or back; what follows them is copied.
fn turn_weights(sizes: Sizes, gates: usize, way: Way, from: &[f32], to: &mut [f32]) {
    let mut start = 0;
    for inputs in [sizes.features, sizes.hidden] {
        let sides = match way {
            Way::Import => (gates, inputs),
            Way::Export => (inputs, gates),
        };
        let range = start..start + gates * inputs;
        turn(sides, &from[range.clone()], &mut to[range.clone()]);
        start = range.end;
    }
    to[start..].copy_from_slice(&from[start..]);
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Import,
    Export,
}

/// The sums of rows, handed over.
fn bias_gradient(gradient: &mut Vec<f32>, rows: &[f32], weights: &mut Weights<'_>) {
    let length = weights.values().len();
    reserve(gradient, length);
    super::dense::column_sums(rows, &mut gradient[..length]);
    weights.take(&gradient[..length]);
}
