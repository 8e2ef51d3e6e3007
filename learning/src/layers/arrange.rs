//! Between the two orders of an image: channels first, as records and dense layers have it, and channels last, as
//! convolutions compute.

use super::{Layer, Weights};
use crate::Mode;
use crate::kernels::transpose;

/// Turns every sample of `rows x columns` into `columns x rows`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transpose {
    rows: usize,
    columns: usize,
}

impl Transpose {
    pub(crate) fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns }
    }
}

/// Turns matrices of `rows x columns` that lie one after another.
pub(super) fn turn(shape: (usize, usize), from: &[f32], to: &mut [f32]) {
    let length = shape.0 * shape.1;
    for (from, to) in from.chunks_exact(length).zip(to.chunks_exact_mut(length)) {
        transpose(shape, from, to);
    }
}

impl Layer for Transpose {
    fn forward(&mut self, _batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        turn((self.rows, self.columns), x, y);
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
        if let Some(x_gradient) = x_gradient {
            turn((self.columns, self.rows), y_gradient, x_gradient);
        }
    }
}
