//! Convolutions of 3x3 and 5x5 with stride 1 by minimal filtering: four by four results take 36 or 64 products instead of 144
//! or 400 (Winograd 1980; Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4). The way back is
//! the transpose of the way forward, step by step, so the three products of a training step save alike.
//!
//! It rounds more than the plain sum: by 1e-6 of the result for 3x3 and 3e-6 for 5x5 (lengths of vectors, against f64, in the tests), where the
//! plain sum errs by 2e-7. Images and weights have their channels last: `[batch, height, width, channels]` and
//! `[side, side, inputs, outputs]`. Other sides and strides are [`super::unroll`]'s.

mod scheme;
#[cfg(test)]
mod tests;
mod transform;

use self::scheme::{Four3, Four5, Scheme};
use self::transform::{Step, Transform};
use super::product::{Matrix, Store, multiply_plain};
use super::{Window, transpose};

/// Results of a tile along one side.
const TILE: usize = 4;
/// Floats between the planes of neighbouring products beyond their length: keeps planes apart in the cache.
const GAP: usize = 16;

/// How an image is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    window: Window,
    outputs: usize,
    rows: usize,
    columns: usize,
}

impl Tiling {
    /// The tiling of a convolution to `outputs` channels; none for those that this module does not do.
    pub(crate) fn of(window: Window, outputs: usize) -> Option<Self> {
        let (rows, columns) = window.positions();
        let fits = matches!(window.side, 3 | 5) && window.stride == 1 && rows > 0 && columns > 0;
        let (rows, columns) = (rows.div_ceil(TILE), columns.div_ceil(TILE));
        fits.then_some(Self { window, outputs, rows, columns })
    }

    /// Values of a tile along one side.
    fn side(&self) -> usize {
        TILE + self.window.side - 1
    }

    /// Sides of the image with its padding and what the last tiles reach beyond.
    fn padded(&self) -> (usize, usize) {
        let beyond = self.window.side - 1;
        (self.rows * TILE + beyond, self.columns * TILE + beyond)
    }

    /// Tiles of one image.
    pub(crate) fn tiles(&self) -> usize {
        self.rows * self.columns
    }
}

/// The memory of one convolution, taken as batches ask for it.
#[derive(Debug)]
pub(crate) struct Winograd {
    tiling: Tiling,
    padded: Vec<f32>,
    /// Filters, `[products, inputs, outputs]`.
    filters: Vec<f32>,
    /// Weights `[side, side, outputs, inputs]` and their filters, for the gradient of the image.
    turned: Vec<f32>,
    turned_filters: Vec<f32>,
    filter_gradients: Vec<f32>,
    /// `[products, tiles, inputs]`, planes [`GAP`] apart: kept from the way forward for the way back.
    inputs: Vec<f32>,
    /// `[products, tiles, outputs]`.
    results: Vec<f32>,
}

/// Lengths of the planes of a batch.
#[derive(Clone, Copy)]
struct Planes {
    tiles: usize,
    inputs: usize,
    outputs: usize,
    /// From one plane to the next.
    input_stride: usize,
    result_stride: usize,
}

impl Winograd {
    pub(crate) fn new(tiling: Tiling) -> Self {
        let (padded, filters, filter_gradients, inputs, results) = Default::default();
        let (turned, turned_filters) = Default::default();
        Self { tiling, padded, filters, turned, turned_filters, filter_gradients, inputs, results }
    }

    fn planes(&self, batch: usize) -> Planes {
        let tiles = batch * self.tiling.tiles();
        let (inputs, outputs) = (self.tiling.window.channels, self.tiling.outputs);
        let (input_stride, result_stride) = (tiles * inputs + GAP, tiles * outputs + GAP);
        Planes { tiles, inputs, outputs, input_stride, result_stride }
    }

    /// Takes memory for a batch where the last ones were smaller.
    fn reserve(&mut self, batch: usize) {
        let planes = self.planes(batch);
        let products = self.tiling.side() * self.tiling.side();
        let (height, width) = self.tiling.padded();
        let grow = |values: &mut Vec<f32>, length: usize| {
            if values.len() < length {
                values.resize(length, 0.0);
            }
        };
        grow(&mut self.padded, batch * height * width * planes.inputs);
        grow(&mut self.filters, products * planes.inputs * planes.outputs);
        grow(&mut self.inputs, products * planes.input_stride);
        grow(&mut self.results, products * planes.result_stride);
    }

    /// `y = x * weight`, without bias.
    ///
    /// # Panics
    /// When a length does not fit.
    pub(crate) fn forward(&mut self, batch: usize, x: &[f32], weight: &[f32], y: &mut [f32]) {
        self.reserve(batch);
        match self.tiling.window.side {
            3 => self.forward_by::<Four3, 6, 3>(batch, x, weight, y),
            _ => self.forward_by::<Four5, 8, 5>(batch, x, weight, y),
        }
    }

    fn forward_by<C: Scheme<N, TILE, R>, const N: usize, const R: usize>(
        &mut self,
        batch: usize,
        x: &[f32],
        weight: &[f32],
        y: &mut [f32],
    ) {
        let (tiling, planes) = (self.tiling, self.planes(batch));
        Transform::<C, N, R>::run(Step::Filters, tiling, planes, weight, &mut self.filters);
        pad(tiling, batch, x, &mut self.padded);
        Transform::<C, N, R>::run(Step::Inputs, tiling, planes, &self.padded, &mut self.inputs);
        for product in 0..N * N {
            let input = &self.inputs[product * planes.input_stride..][..planes.tiles * planes.inputs];
            let filter =
                &self.filters[product * planes.inputs * planes.outputs..][..planes.inputs * planes.outputs];
            let result = &mut self.results[product * planes.result_stride..][..planes.tiles * planes.outputs];
            let shape = (planes.tiles, planes.outputs, planes.inputs);
            let result = Store::replace(result, planes.outputs);
            multiply_plain(shape, Matrix::rows(input, planes.inputs), filter, result);
        }
        Transform::<C, N, R>::run(Step::Results, tiling, planes, &self.results, y);
    }

    /// From the gradient of `y` to that of the weight, `scale` times which and `keep` times what was there goes to `weight`,
    /// and to that of `x` if it is asked for. [`Winograd::forward`] has run on the same batch last, and for the gradient of `x`
    /// [`Winograd::turn`] since.
    ///
    /// # Panics
    /// When a length does not fit.
    pub(crate) fn backward(
        &mut self,
        batch: usize,
        y_gradient: &[f32],
        x_gradient: Option<&mut [f32]>,
        (weight, scale, keep): (&mut [f32], f32, f32),
    ) {
        let target = (weight, scale, keep);
        match self.tiling.window.side {
            3 => self.backward_by::<Four3, 6, 3>(batch, y_gradient, x_gradient, target),
            _ => self.backward_by::<Four5, 8, 5>(batch, y_gradient, x_gradient, target),
        }
    }

    fn backward_by<C: Scheme<N, TILE, R>, const N: usize, const R: usize>(
        &mut self,
        batch: usize,
        y_gradient: &[f32],
        x_gradient: Option<&mut [f32]>,
        (weight, scale, keep): (&mut [f32], f32, f32),
    ) {
        let (tiling, planes) = (self.tiling, self.planes(batch));
        let filter_length = planes.inputs * planes.outputs;
        self.filter_gradients.resize(self.filters.len(), 0.0);
        let results = &mut self.results;
        Transform::<C, N, R>::run(Step::ResultGradients, tiling, planes, y_gradient, results);
        for product in 0..N * N {
            let input = &mut self.inputs[product * planes.input_stride..][..planes.tiles * planes.inputs];
            let result = &self.results[product * planes.result_stride..][..planes.tiles * planes.outputs];
            let gradient = &mut self.filter_gradients[product * filter_length..][..filter_length];
            let shape = (planes.inputs, planes.outputs, planes.tiles);
            let gradient = Store::replace(gradient, planes.outputs);
            multiply_plain(shape, Matrix::columns(input, planes.inputs), result, gradient);
            if x_gradient.is_some() {
                let filter = &self.turned_filters[product * filter_length..][..filter_length];
                let shape = (planes.tiles, planes.inputs, planes.outputs);
                let target = Store::replace(input, planes.inputs);
                multiply_plain(shape, Matrix::rows(result, planes.outputs), filter, target);
            }
        }
        let step = Step::FilterGradients { scale, keep };
        Transform::<C, N, R>::run(step, tiling, planes, &self.filter_gradients, weight);
        if let Some(x_gradient) = x_gradient {
            let (height, width) = tiling.padded();
            let padded = &mut self.padded[..batch * height * width * planes.inputs];
            padded.fill(0.0);
            Transform::<C, N, R>::run(Step::InputGradients, tiling, planes, &self.inputs, padded);
            unpad(tiling, batch, padded, x_gradient);
        }
    }
}

impl Winograd {
    /// Takes the weights of the way forward again, for the gradient of the image: to be called before [`Winograd::backward`]
    /// where that is asked for.
    pub(crate) fn turn(&mut self, weight: &[f32]) {
        match self.tiling.window.side {
            3 => self.turn_by::<Four3, 6, 3>(weight),
            _ => self.turn_by::<Four5, 8, 5>(weight),
        }
    }

    fn turn_by<C: Scheme<N, TILE, R>, const N: usize, const R: usize>(&mut self, weight: &[f32]) {
        let planes = self.planes(1);
        let Planes { inputs, outputs, .. } = planes;
        self.turned.resize(weight.len(), 0.0);
        let taps = weight.chunks_exact(inputs * outputs);
        for (tap, turned) in taps.zip(self.turned.chunks_exact_mut(inputs * outputs)) {
            transpose((inputs, outputs), tap, turned);
        }
        self.turned_filters.resize(self.filters.len(), 0.0);
        let planes = Planes { inputs: outputs, outputs: inputs, ..planes };
        Transform::<C, N, R>::run(Step::Filters, self.tiling, planes, &self.turned, &mut self.turned_filters);
    }
}

/// Calls `each` with where a row of an image lies in the padded images and in the plain ones, and its length.
fn rows_of(tiling: Tiling, batch: usize, mut each: impl FnMut(usize, usize, usize)) {
    let Window { channels, height, width, padding, .. } = tiling.window;
    let (padded_height, padded_width) = tiling.padded();
    // Padding beyond what the tiles reach holds nothing that a result needs.
    let (height_seen, width_seen) = (height.min(padded_height - padding), width.min(padded_width - padding));
    for row in 0..batch * height_seen {
        let (sample, row) = (row / height_seen, row % height_seen);
        let padded = ((sample * padded_height + row + padding) * padded_width + padding) * channels;
        each(padded, (sample * height + row) * width * channels, width_seen * channels);
    }
}

fn pad(tiling: Tiling, batch: usize, x: &[f32], padded: &mut [f32]) {
    let (height, width) = tiling.padded();
    padded[..batch * height * width * tiling.window.channels].fill(0.0);
    rows_of(tiling, batch, |to, from, length| {
        padded[to..to + length].copy_from_slice(&x[from..from + length]);
    });
}

fn unpad(tiling: Tiling, batch: usize, padded: &[f32], x: &mut [f32]) {
    if tiling.window.padding == 0 {
        // Pixels that no tile reaches have no gradient.
        x.fill(0.0);
    }
    rows_of(tiling, batch, |from, to, length| {
        x[to..to + length].copy_from_slice(&padded[from..from + length]);
    });
}
