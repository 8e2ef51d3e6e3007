//! Between the two orders of an image: channels first, as records and dense layers have it, and channels last, as
//! convolutions compute.

use super::{Layer, Weights};
use crate::Mode;

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

/// Values of a block along one side: a line of the cache.
const BLOCK: usize = 16;

fn turn((rows, columns): (usize, usize), from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(rows * columns).zip(to.chunks_exact_mut(rows * columns)) {
        for top in (0..rows).step_by(BLOCK) {
            for column in 0..columns {
                let bottom = (top + BLOCK).min(rows);
                let line = &mut to[column * rows..][top..bottom];
                for (row, value) in (top..).zip(line) {
                    *value = from[row * columns + column];
                }
            }
        }
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
