//! Dropout (Srivastava et al. 2014), with the same masks as [`crate::ops::dropout`] for the same seed, layer and order of values.

use rand::Rng;

use super::arrange::turn;
use super::{Layer, Weights};
use crate::Mode;

/// In training, sets values to 0 and scales the others; in evaluation, passes them on.
#[derive(Debug)]
pub(crate) struct Dropout {
    probability: f64,
    number: u32,
    /// Channels and pixels of an image whose channels come last; masks are drawn in the order of channels first.
    turned: Option<(usize, usize)>,
    drawn: Vec<f32>,
    /// What each value of the last batch was multiplied by; empty when nothing was drawn.
    mask: Vec<f32>,
}

impl Dropout {
    /// Drops with `probability` from 0 to below 1; `number` tells the dropouts of one model apart. Images whose
    /// channels come last, given as `(channels, pixels)`, get the masks that they would get with channels first.
    pub(crate) fn new(probability: f64, number: u32, turned: Option<(usize, usize)>) -> Self {
        Self { probability, number, turned, drawn: Vec::new(), mask: Vec::new() }
    }
}

impl Layer for Dropout {
    fn forward(&mut self, _batch: usize, mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        self.mask.clear();
        y.copy_from_slice(x);
        if let Some(mut generator) = mode.generator(self.number) {
            let kept = (1.0 / (1.0 - self.probability)) as f32;
            let draw = |_| if generator.random::<f64>() < self.probability { 0.0 } else { kept };
            self.mask.extend((0..x.len()).map(draw));
            if let Some(sides) = self.turned {
                self.drawn.clear();
                self.drawn.extend_from_slice(&self.mask);
                turn(sides, &self.drawn, &mut self.mask);
            }
            y.iter_mut().zip(&self.mask).for_each(|(y, factor)| *y *= factor);
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
        x_gradient.copy_from_slice(y_gradient);
        x_gradient.iter_mut().zip(&self.mask).for_each(|(value, factor)| *value *= factor);
    }
}
