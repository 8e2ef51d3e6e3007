//! Activations as layers of their own, value by value.

use super::{Layer, Weights};
use crate::Mode;
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

/// `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_3;

impl Elementwise {
    fn of(self, x: f32) -> f32 {
        match self {
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Gelu => x * normal(x),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => sigmoid(x),
        }
    }

    /// The derivative at `x`, whose result is `y`.
    fn slope(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Relu => f32::from(u8::from(y > 0.0)),
            Self::Gelu => normal(x) + x * DENSITY * (-0.5 * x * x).exp(),
            Self::Tanh => 1.0 - y * y,
            Self::Sigmoid => y * (1.0 - y),
        }
    }
}

/// The normal distribution function.
fn normal(x: f32) -> f32 {
    (0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32
}

/// `1 / (1 + exp(-x))`.
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Layer for Elementwise {
    fn forward(&mut self, _batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let kind = *self;
        vectorised(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = kind.of(*x)),
        );
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
        let Some(x_gradient) = x_gradient else { return };
        let (kind, points) = (*self, x.iter().zip(y));
        vectorised(
            #[inline(always)]
            || {
                for ((target, value), (x, y)) in x_gradient.iter_mut().zip(y_gradient.iter()).zip(points) {
                    *target = value * kind.slope(*x, *y);
                }
            },
        );
    }
}
