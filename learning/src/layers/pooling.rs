//! Pools over images whose channels come last.

use super::{Layer, Weights, reserve};
use crate::Mode;
use crate::kernels::{Window, vectorised};

/// The maximum of each window. The whole gradient goes to the maximum; of equals, to the first in row order. A NaN wins when it
/// is met, so that it is seen. Windows never reach beyond the image.
#[derive(Debug)]
pub(crate) struct MaxPool {
    window: Window,
    /// Which place of its window won.
    winners: Vec<u8>,
}

impl MaxPool {
    /// The largest side of a window: its places are counted in a byte.
    pub(crate) const SIDE_MAX: usize = 16;

    /// # Panics
    /// When the window is padded, or has more than 256 places.
    pub(crate) fn new(window: Window) -> Self {
        assert!(
            window.padding == 0 && window.side <= Self::SIDE_MAX,
            "a pool has no padding and a side of at most 16"
        );
        Self { window, winners: Vec::new() }
    }

    /// Where the values of a position's window lie in its sample, in row order.
    #[inline(always)]
    fn place(&self, position: usize, place: usize) -> usize {
        let Window { channels, width, side, stride, .. } = self.window;
        let columns = self.window.positions().1;
        let (top, left) = (position / columns * stride, position % columns * stride);
        ((top + place / side) * width + left + place % side) * channels
    }
}

impl Layer for MaxPool {
    fn forward(&mut self, batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let Window { channels, side, .. } = self.window;
        let (rows, columns) = self.window.positions();
        let (image, positions) = (self.window.image(), rows * columns);
        if self.winners.len() < batch * positions * channels {
            self.winners.resize(batch * positions * channels, 0);
        }
        let mut winners = std::mem::take(&mut self.winners);
        vectorised(
            #[inline(always)]
            || {
                let results = y.chunks_exact_mut(channels).zip(winners.chunks_exact_mut(channels));
                for (number, (y, winners)) in results.take(batch * positions).enumerate() {
                    let x = &x[number / positions * image..][..image];
                    y.copy_from_slice(&x[self.place(number % positions, 0)..][..channels]);
                    winners.fill(0);
                    for place in 1..side * side {
                        let candidates = &x[self.place(number % positions, place)..][..channels];
                        let held = y.iter_mut().zip(winners.iter_mut());
                        for ((best, winner), value) in held.zip(candidates) {
                            let wins = *value > *best || value.is_nan();
                            *best = if wins { *value } else { *best };
                            *winner = if wins { place as u8 } else { *winner };
                        }
                    }
                }
            },
        );
        self.winners = winners;
    }

    fn backward(
        &mut self,
        batch: usize,
        _weights: Weights<'_>,
        _x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        x_gradient: Option<&mut [f32]>,
    ) {
        let Some(x_gradient) = x_gradient else { return };
        let Window { channels, side, .. } = self.window;
        let (rows, columns) = self.window.positions();
        let (image, positions) = (self.window.image(), rows * columns);
        vectorised(
            #[inline(always)]
            || {
                x_gradient.fill(0.0);
                let results = y_gradient.chunks_exact(channels).zip(self.winners.chunks_exact(channels));
                for (number, (values, winners)) in results.take(batch * positions).enumerate() {
                    let sample = &mut x_gradient[number / positions * image..][..image];
                    for place in 0..side * side {
                        let target = &mut sample[self.place(number % positions, place)..][..channels];
                        for ((target, value), winner) in target.iter_mut().zip(values).zip(winners) {
                            *target += if usize::from(*winner) == place { *value } else { 0.0 };
                        }
                    }
                }
            },
        );
    }
}

/// The mean of each channel over the whole image.
#[derive(Debug)]
pub(crate) struct AveragePool {
    channels: usize,
    pixels: usize,
    mean: Vec<f32>,
}

impl AveragePool {
    pub(crate) fn new(channels: usize, pixels: usize) -> Self {
        Self { channels, pixels, mean: Vec::new() }
    }
}

impl Layer for AveragePool {
    fn forward(&mut self, _batch: usize, _mode: Mode, _parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let share = 1.0 / self.pixels as f32;
        let images = x.chunks_exact(self.pixels * self.channels);
        for (image, y) in images.zip(y.chunks_exact_mut(self.channels)) {
            super::dense::column_sums(image, y);
            y.iter_mut().for_each(|sum| *sum *= share);
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
        let share = 1.0 / self.pixels as f32;
        reserve(&mut self.mean, self.channels);
        let images = x_gradient.chunks_exact_mut(self.pixels * self.channels);
        for (image, values) in images.zip(y_gradient.chunks_exact(self.channels)) {
            let mean = &mut self.mean[..self.channels];
            mean.iter_mut().zip(values).for_each(|(mean, value)| *mean = value * share);
            image.chunks_exact_mut(self.channels).for_each(|pixel| pixel.copy_from_slice(mean));
        }
    }
}
