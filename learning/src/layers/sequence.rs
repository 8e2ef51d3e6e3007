//! Sequences: symbols as learned vectors, and the end of a sequence. Recurrent layers are [`super::recurrent`]'s.

use super::{Layer, Weights};
use crate::Mode;
use crate::kernels::vectorised;

/// Turns symbols, whole numbers from 0, into rows of a table `[symbols, width]`. What is no symbol of the table becomes NaN,
/// which a loss cannot hide, and has no gradient.
#[derive(Debug)]
pub(crate) struct Embedding {
    symbols: usize,
    width: usize,
}

impl Embedding {
    pub(crate) fn new(symbols: usize, width: usize) -> Self {
        Self { symbols, width }
    }

    /// The row of a symbol; fractions are cut off.
    fn row(&self, symbol: f32) -> Option<usize> {
        let known = symbol > -1.0 && symbol < self.symbols as f32;
        known.then_some(symbol as usize * self.width)
    }
}

impl Layer for Embedding {
    fn forward(&mut self, _batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        for (symbol, y) in x.iter().zip(y.chunks_exact_mut(self.width)) {
            match self.row(*symbol) {
                Some(row) => y.copy_from_slice(&parameters[row..][..self.width]),
                None => y.fill(f32::NAN),
            }
        }
    }

    fn backward(
        &mut self,
        _batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let (table, scale, keep) = weights.target();
        vectorised(
            #[inline(always)]
            || {
                if keep == 0.0 {
                    table.fill(0.0);
                } else if keep != 1.0 {
                    table.iter_mut().for_each(|value| *value *= keep);
                }
                for (symbol, gradient) in x.iter().zip(y_gradient.chunks_exact(self.width)) {
                    let Some(row) = self.row(*symbol) else { continue };
                    let row = &mut table[row..][..self.width];
                    row.iter_mut().zip(gradient).for_each(|(value, gradient)| *value += scale * gradient);
                }
            },
        );
        // A symbol cannot be moved a little.
        if let Some(x_gradient) = x_gradient {
            x_gradient.fill(0.0);
        }
    }
}

/// The last step of a sequence.
#[derive(Debug)]
pub(crate) struct Last {
    steps: usize,
    features: usize,
}

impl Last {
    pub(crate) fn new(steps: usize, features: usize) -> Self {
        Self { steps, features }
    }

    fn start(&self) -> usize {
        (self.steps - 1) * self.features
    }
}

impl Layer for Last {
    fn forward(&mut self, _batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let sequences = x.chunks_exact(self.steps * self.features);
        for (x, y) in sequences.zip(y.chunks_exact_mut(self.features)) {
            y.copy_from_slice(&x[self.start()..]);
        }
    }

    fn backward(
        &mut self,
        _batch: usize,
        _weights: Weights<'_>,
        _x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let Some(x_gradient) = x_gradient else { return };
        x_gradient.fill(0.0);
        let sequences = x_gradient.chunks_exact_mut(self.steps * self.features);
        for (x, y) in sequences.zip(y_gradient.chunks_exact(self.features)) {
            x[self.start()..].copy_from_slice(y);
        }
    }
}
