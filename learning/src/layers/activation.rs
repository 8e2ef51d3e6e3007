//! Activations as layers of their own, value by value.

use super::{Layer, Weights};
use crate::Mode;
use crate::kernels::functions::{gelu_slope, normal, sigmoid, tanh};
use crate::kernels::vectorised;

/// What is done to each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elementwise {
    /// `max(0, x)`; its derivative at 0 is 0.
    Relu,
    /// `x` times the normal distribution function of `x` (Hendrycks, Gimpel 2016), exactly, not by its tanh approximation.
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// `y = function(x)`, value by value. The function must be inlined.
#[inline(always)]
fn map(x: &[f32], y: &mut [f32], function: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = function(*x);
            }
        },
    );
}

/// `target = gradient * slope(of)`, value by value. The slope must be inlined.
#[inline(always)]
fn scale(gradient: &[f32], of: &[f32], target: &mut [f32], slope: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || {
            for ((target, gradient), of) in target.iter_mut().zip(gradient).zip(of) {
                *target = gradient * slope(*of);
            }
        },
    );
}

#[expect(clippy::redundant_closure, reason = "a function by its name would not be inlined for certain")]
impl Layer for Elementwise {
    fn forward(&mut self, _batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        match self {
            Self::Relu => map(
                x,
                y,
                #[inline(always)]
                |x| if x < 0.0 { 0.0 } else { x },
            ),
            Self::Gelu => map(
                x,
                y,
                #[inline(always)]
                |x| x * normal(x),
            ),
            Self::Tanh => map(
                x,
                y,
                #[inline(always)]
                |x| tanh(x),
            ),
            Self::Sigmoid => map(
                x,
                y,
                #[inline(always)]
                |x| sigmoid(x),
            ),
        }
    }

    fn backward(
        &mut self,
        _batch: usize,
        _weights: Weights<'_>,
        x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let Some(target) = x_gradient else { return };
        match self {
            Self::Relu => scale(
                y_gradient,
                y,
                target,
                #[inline(always)]
                |y| if y > 0.0 { 1.0 } else { 0.0 },
            ),
            Self::Gelu => scale(
                y_gradient,
                x,
                target,
                #[inline(always)]
                |x| gelu_slope(x),
            ),
            Self::Tanh => scale(
                y_gradient,
                y,
                target,
                #[inline(always)]
                |y| 1.0 - y * y,
            ),
            Self::Sigmoid => scale(
                y_gradient,
                y,
                target,
                #[inline(always)]
                |y| y * (1.0 - y),
            ),
        }
    }
}
