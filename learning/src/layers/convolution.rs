//! The convolution with its activation, by whichever way is fastest for its shape.

use super::dense::{activate, column_sums, deactivate};
use super::{Layer, Weights, reserve};
use crate::Mode;
use crate::kernels::{
    Matrix, Store, Tiling, Window, Winograd, multiply_plain, roll, transpose, unroll, vectorised,
};
use crate::ops::Activation;

/// The fewest tiles of a batch for which minimal filtering pays: below, transforming the filters costs more than it saves. At 256
/// channels, both ways take as long with so many.
const TILES_MIN: usize = 40;
/// Positions that are rolled back together: fewer would read the weights again and again.
const ROWS: usize = 256;
/// The fewest channels, of either side, for which it does.
const CHANNELS_MIN: usize = 8;

/// `activation(x * weight + bias)` for square kernels of any size, stride and zero padding. Tensors: `[outputs, channels, side,
/// side]`, `[outputs]`; the layer's own order of the first is `[side, side, channels, outputs]`.
#[derive(Debug)]
pub(crate) struct Convolution {
    window: Window,
    outputs: usize,
    activation: Activation,
    bias_gradient: Vec<f32>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Winograd(Winograd),
    /// The patches of the last batch, the gradient of some samples', and the weights `[outputs, patch]`.
    Unrolled {
        patches: Vec<f32>,
        gradient: Vec<f32>,
        turned: Vec<f32>,
    },
}

impl Convolution {
    /// A layer for batches of about `batch` samples. The same window and batch always go the same way, so that they round alike.
    pub(crate) fn new(window: Window, outputs: usize, activation: Activation, batch: usize) -> Self {
        let tiling = Tiling::of(window, outputs).filter(|tiling| {
            batch.saturating_mul(tiling.tiles()) >= TILES_MIN && window.channels.min(outputs) >= CHANNELS_MIN
        });
        let way = match tiling {
            Some(tiling) => Way::Winograd(Winograd::new(tiling)),
            None => Way::Unrolled { patches: Vec::new(), gradient: Vec::new(), turned: Vec::new() },
        };
        Self { window, outputs, activation, bias_gradient: Vec::new(), way }
    }

    fn positions(&self) -> usize {
        let (rows, columns) = self.window.positions();
        rows * columns
    }

    fn weight_length(&self) -> usize {
        self.window.patch() * self.outputs
    }

    /// Where each weight lies in layout order and in the layer's own.
    fn order(&self) -> impl Iterator<Item = (usize, usize)> {
        let (channels, taps, outputs) = (self.window.channels, self.window.side.pow(2), self.outputs);
        (0..taps * channels).flat_map(move |place| {
            let (tap, channel) = (place / channels, place % channels);
            (0..outputs)
                .map(move |output| ((output * channels + channel) * taps + tap, place * outputs + output))
        })
    }
}

impl Layer for Convolution {
    fn forward(&mut self, batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (weight, bias) = parameters.split_at(self.weight_length());
        let (positions, patch, outputs) = (self.positions(), self.window.patch(), self.outputs);
        match &mut self.way {
            Way::Winograd(convolution) => convolution.forward(batch, x, weight, y),
            Way::Unrolled { patches, .. } => {
                reserve(patches, batch * positions * patch);
                let patches = &mut patches[..batch * positions * patch];
                let images = x.chunks_exact(self.window.image());
                for (image, patches) in images.zip(patches.chunks_exact_mut(positions * patch)) {
                    unroll(self.window, image, patches);
                }
                let shape = (batch * positions, outputs, patch);
                multiply_plain(shape, Matrix::rows(patches, patch), weight, Store::replace(y, outputs));
            }
        }
        vectorised(
            #[inline(always)]
            || {
                for pixel in y.chunks_exact_mut(outputs) {
                    pixel.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
            },
        );
        activate(self.activation, y);
    }

    fn backward(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        _x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        deactivate(self.activation, y, y_gradient);
        let (length, outputs) = (self.weight_length(), self.outputs);
        let (positions, patch) = (self.positions(), self.window.patch());
        reserve(&mut self.bias_gradient, outputs);
        column_sums(y_gradient, &mut self.bias_gradient[..outputs]);
        match &mut self.way {
            Way::Winograd(convolution) => {
                if x_gradient.is_some() {
                    convolution.turn(&weights.values()[..length]);
                }
                let mut weight = weights.part(0..length);
                convolution.backward(batch, y_gradient, x_gradient, weight.target());
            }
            Way::Unrolled { patches, gradient, turned } => {
                if let Some(x_gradient) = x_gradient {
                    let samples = (ROWS / positions).clamp(1, batch);
                    reserve(gradient, samples * positions * patch);
                    reserve(turned, length);
                    transpose((patch, outputs), &weights.values()[..length], turned);
                    x_gradient.fill(0.0);
                    let images = x_gradient.chunks_mut(samples * self.window.image());
                    for (images, sums) in images.zip(y_gradient.chunks(samples * positions * outputs)) {
                        let shape = (sums.len() / outputs, patch, outputs);
                        let target = Store::replace(gradient, patch);
                        multiply_plain(shape, Matrix::rows(sums, outputs), &turned[..length], target);
                        let images = images.chunks_exact_mut(self.window.image());
                        for (image, patches) in images.zip(gradient.chunks_exact(positions * patch)) {
                            roll(self.window, patches, image);
                        }
                    }
                }
                let mut weight = weights.part(0..length);
                let (target, scale, keep) = weight.target();
                let target = Store::blend(target, outputs, scale, keep);
                let shape = (patch, outputs, batch * positions);
                multiply_plain(shape, Matrix::columns(patches, patch), y_gradient, target);
            }
        }
        weights.part(length..length + outputs).take(&self.bias_gradient[..outputs]);
    }

    fn import(&self, natural: &[f32], own: &mut [f32]) {
        let length = self.weight_length();
        for (natural_at, own_at) in self.order() {
            own[own_at] = natural[natural_at];
        }
        own[length..].copy_from_slice(&natural[length..]);
    }

    fn export(&self, own: &[f32], natural: &mut [f32]) {
        let length = self.weight_length();
        for (natural_at, own_at) in self.order() {
            natural[natural_at] = own[own_at];
        }
        natural[length..].copy_from_slice(&own[length..]);
    }
}
