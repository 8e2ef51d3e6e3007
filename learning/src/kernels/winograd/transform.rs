//! The six transforms of a convolution by minimal filtering, each vectorised along channels.
#![expect(
    clippy::needless_range_loop,
    reason = "loops with constant bounds unroll; closures of iterators may stay calls, which lose the instruction set"
)]

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};

use super::scheme::{Scheme, by_columns_twice, by_rows_twice, transpose};
use super::{Planes, TILE, Tiling};
use crate::kernels::{load, store};

/// Which way, and between what.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Weights `[side, side, inputs, outputs]` to filters.
    Filters,
    /// Padded images to inputs.
    Inputs,
    /// Products to results `[batch, height, width, outputs]`.
    Results,
    /// Gradients of results to those of products.
    ResultGradients,
    /// Gradients of filters to those of weights, blended into what is there.
    FilterGradients {
        /// What they are multiplied by.
        scale: f32,
        /// What the old values are multiplied by; at 0 they are not read.
        keep: f32,
    },
    /// Gradients of inputs, added to those of padded images.
    InputGradients,
}

/// One transform and its operands.
pub(super) struct Transform<'a, C, const N: usize, const R: usize> {
    step: Step,
    tiling: Tiling,
    planes: Planes,
    source: &'a [f32],
    target: &'a mut [f32],
    scheme: PhantomData<C>,
}

impl<'a, C: Scheme<N, TILE, R>, const N: usize, const R: usize> Transform<'a, C, N, R> {
    const INPUT_T: [[f32; N]; N] = transpose(C::INPUT);
    const OUTPUT_T: [[f32; TILE]; N] = transpose(C::OUTPUT);
    const FILTER_T: [[f32; N]; R] = transpose(C::FILTER);

    pub(super) fn run(step: Step, tiling: Tiling, planes: Planes, source: &'a [f32], target: &'a mut [f32]) {
        Arch::new().dispatch(Self { step, tiling, planes, source, target, scheme: PhantomData });
    }

    #[inline(always)]
    fn filters<S: Simd>(mut self, simd: S) {
        let (filter, outputs) = (self.planes.inputs * self.planes.outputs, self.planes.outputs);
        for input in 0..self.planes.inputs {
            for lane in (0..outputs).step_by(S::F32_LANES) {
                let (at, width) = (input * outputs + lane, S::F32_LANES.min(outputs - lane));
                let taps = self.gather::<S, R>(simd, (at, filter), width);
                let products = by_rows_twice(simd, &C::FILTER, &taps);
                self.scatter::<S, N>(simd, (at, filter), width, &products);
            }
        }
    }

    #[inline(always)]
    fn filter_gradients<S: Simd>(self, simd: S, scale: f32, keep: f32) {
        let (filter, outputs) = (self.planes.inputs * self.planes.outputs, self.planes.outputs);
        let (scale, keeping) = (simd.splat_f32s(scale), simd.splat_f32s(keep));
        for input in 0..self.planes.inputs {
            for lane in (0..outputs).step_by(S::F32_LANES) {
                let (at, width) = (input * outputs + lane, S::F32_LANES.min(outputs - lane));
                let products = self.gather::<S, N>(simd, (at, filter), width);
                let taps = by_columns_twice(simd, &Self::FILTER_T, &products);
                for (tap, value) in taps.as_flattened().iter().enumerate() {
                    let target = &mut self.target[tap * filter + at..][..width];
                    let mut blended = simd.mul_f32s(scale, *value);
                    if keep != 0.0 {
                        blended = simd.mul_add_e_f32s(keeping, load(simd, target), blended);
                    }
                    store(simd, target, blended);
                }
            }
        }
    }

    /// Where the results of a tile begin: sample, row and column.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let Tiling { columns, .. } = self.tiling;
        let (sample, within) = (tile / self.tiling.tiles(), tile % self.tiling.tiles());
        (sample, within / columns * TILE, within % columns * TILE)
    }

    /// `L x L` vectors from planes that are `stride` apart.
    #[inline(always)]
    fn gather<S: Simd, const L: usize>(
        &self,
        simd: S,
        (at, stride): (usize, usize),
        lanes: usize,
    ) -> [[S::f32s; L]; L] {
        let mut values = [[simd.splat_f32s(0.0); L]; L];
        for y in 0..L {
            for x in 0..L {
                values[y][x] = load(simd, &self.source[(y * L + x) * stride + at..][..lanes]);
            }
        }
        values
    }

    /// The reverse of [`Transform::gather`].
    #[inline(always)]
    fn scatter<S: Simd, const L: usize>(
        &mut self,
        simd: S,
        (at, stride): (usize, usize),
        lanes: usize,
        values: &[[S::f32s; L]; L],
    ) {
        for y in 0..L {
            for x in 0..L {
                store(simd, &mut self.target[(y * L + x) * stride + at..][..lanes], values[y][x]);
            }
        }
    }

    #[inline(always)]
    fn inputs<S: Simd>(mut self, simd: S) {
        let Planes { inputs, input_stride, .. } = self.planes;
        let (height, width) = self.tiling.padded();
        for tile in 0..self.planes.tiles {
            let (sample, row, column) = self.place(tile);
            let corner = ((sample * height + row) * width + column) * inputs;
            for lane in (0..inputs).step_by(S::F32_LANES) {
                let lanes = S::F32_LANES.min(inputs - lane);
                let mut values = [[simd.splat_f32s(0.0); N]; N];
                for y in 0..N {
                    let line = &self.source[corner + y * width * inputs + lane..];
                    for x in 0..N {
                        values[y][x] = load(simd, &line[x * inputs..][..lanes]);
                    }
                }
                let products = by_rows_twice(simd, &C::INPUT, &values);
                self.scatter::<S, N>(simd, (tile * inputs + lane, input_stride), lanes, &products);
            }
        }
    }

    #[inline(always)]
    fn input_gradients<S: Simd>(self, simd: S) {
        let Planes { inputs, input_stride, .. } = self.planes;
        let (height, width) = self.tiling.padded();
        for tile in 0..self.planes.tiles {
            let (sample, row, column) = self.place(tile);
            let corner = ((sample * height + row) * width + column) * inputs;
            for lane in (0..inputs).step_by(S::F32_LANES) {
                let lanes = S::F32_LANES.min(inputs - lane);
                let products = self.gather::<S, N>(simd, (tile * inputs + lane, input_stride), lanes);
                let values = by_columns_twice(simd, &Self::INPUT_T, &products);
                for (y, line) in values.iter().enumerate() {
                    for (x, value) in line.iter().enumerate() {
                        let target = &mut self.target[corner + (y * width + x) * inputs + lane..][..lanes];
                        store(simd, target, simd.add_f32s(load(simd, target), *value));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn results<S: Simd>(self, simd: S) {
        let Planes { outputs, result_stride, .. } = self.planes;
        let (height, width) = self.tiling.window.positions();
        for tile in 0..self.planes.tiles {
            let (sample, row, column) = self.place(tile);
            for lane in (0..outputs).step_by(S::F32_LANES) {
                let lanes = S::F32_LANES.min(outputs - lane);
                let products = self.gather::<S, N>(simd, (tile * outputs + lane, result_stride), lanes);
                let values = by_columns_twice(simd, &C::OUTPUT, &products);
                for y in 0..TILE.min(height - row) {
                    for x in 0..TILE.min(width - column) {
                        let pixel = (sample * height + row + y) * width + column + x;
                        store(simd, &mut self.target[pixel * outputs + lane..][..lanes], values[y][x]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn result_gradients<S: Simd>(mut self, simd: S) {
        let Planes { outputs, result_stride, .. } = self.planes;
        let (height, width) = self.tiling.window.positions();
        for tile in 0..self.planes.tiles {
            let (sample, row, column) = self.place(tile);
            for lane in (0..outputs).step_by(S::F32_LANES) {
                let lanes = S::F32_LANES.min(outputs - lane);
                let mut values = [[simd.splat_f32s(0.0); TILE]; TILE];
                for y in 0..TILE.min(height - row) {
                    for x in 0..TILE.min(width - column) {
                        let pixel = (sample * height + row + y) * width + column + x;
                        values[y][x] = load(simd, &self.source[pixel * outputs + lane..][..lanes]);
                    }
                }
                let products = by_rows_twice(simd, &Self::OUTPUT_T, &values);
                self.scatter::<S, N>(simd, (tile * outputs + lane, result_stride), lanes, &products);
            }
        }
    }
}

impl<C: Scheme<N, TILE, R>, const N: usize, const R: usize> WithSimd for Transform<'_, C, N, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.step {
            Step::Filters => self.filters(simd),
            Step::Inputs => self.inputs(simd),
            Step::Results => self.results(simd),
            Step::ResultGradients => self.result_gradients(simd),
            Step::FilterGradients { scale, keep } => self.filter_gradients(simd, scale, keep),
            Step::InputGradients => self.input_gradients(simd),
        }
    }
}
