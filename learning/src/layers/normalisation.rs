//! Normalisations over a sample's own values: group normalisation of images whose channels come last, and layer normalisation
//! of rows. Nothing passes from one record to another.

use super::{Layer, Weights, reserve};
use crate::Mode;
use crate::kernels::vectorised;
use crate::ops::{Activation, EPSILON};

/// Partial sums of a row: as many as the widest vectors have lanes, always, so that every machine adds in the same order.
const LANES: usize = 16;

/// The sum of `term` over the places of a row.
#[inline(always)]
fn sum(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = length - length % LANES;
    let mut place = 0;
    while place < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(place + lane);
        }
        place += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(length - whole) {
        *sum += term(whole + lane);
    }
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// Layer normalisation (Ba, Kiros, Hinton 2016) of rows of `width`, then times `weight` and plus `bias`, both `[width]`.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    width: usize,
    /// Mean and inverse deviation of every row of the last batch.
    moments: Vec<[f32; 2]>,
    /// Of weight and bias.
    gradient: Vec<f32>,
}

impl LayerNorm {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, moments: Vec::new(), gradient: Vec::new() }
    }
}

impl Layer for LayerNorm {
    fn forward(&mut self, _batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (width, (weight, bias)) = (self.width, parameters.split_at(self.width));
        self.moments.clear();
        vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                    let mean = sum(
                        width,
                        #[inline(always)]
                        |at| x[at],
                    ) / width as f32;
                    let inverse = 1.0
                        / (sum(
                            width,
                            #[inline(always)]
                            |at| (x[at] - mean) * (x[at] - mean),
                        ) / width as f32
                            + EPSILON as f32)
                            .sqrt();
                    for ((y, x), (weight, bias)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                        *y = (x - mean) * inverse * weight + bias;
                    }
                    self.moments.push([mean, inverse]);
                }
            },
        );
    }

    fn backward(
        &mut self,
        _batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        _y: &[f32],
        y_gradient: &mut [f32],
        mut x_gradient: Option<&mut [f32]>,
    ) {
        let width = self.width;
        reserve(&mut self.gradient, 2 * width);
        let gradient = &mut self.gradient[..2 * width];
        gradient.fill(0.0);
        let (weight_gradient, bias_gradient) = gradient.split_at_mut(width);
        let weight = &weights.values()[..width];
        let rows = x.chunks_exact(width).zip(y_gradient.chunks_exact(width)).zip(&self.moments);
        vectorised(
            #[inline(always)]
            || {
                for (row, ((x, dy), [mean, inverse])) in rows.enumerate() {
                    let found = weight_gradient.iter_mut().zip(bias_gradient.iter_mut());
                    for ((of_weight, of_bias), (x, dy)) in found.zip(x.iter().zip(dy)) {
                        *of_weight += dy * ((x - mean) * inverse);
                        *of_bias += dy;
                    }
                    let Some(target) = &mut x_gradient else { continue };
                    let plain = sum(
                        width,
                        #[inline(always)]
                        |at| dy[at] * weight[at],
                    ) / width as f32;
                    let along = sum(
                        width,
                        #[inline(always)]
                        |at| dy[at] * weight[at] * (x[at] - mean),
                    ) / width as f32
                        * inverse
                        * inverse;
                    let target = target[row * width..][..width].iter_mut();
                    for ((target, x), (dy, weight)) in target.zip(x).zip(dy.iter().zip(weight)) {
                        *target = inverse * (dy * weight - plain - (x - mean) * along);
                    }
                }
            },
        );
        weights.take(&self.gradient[..2 * width]);
    }
}

/// Group normalisation (Wu, He 2018): each of `groups` equal groups of channels of an image to mean 0 and variance 1, then times
/// `weight` and plus `bias`, both `[channels]`, and an activation.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    channels: usize,
    pixels: usize,
    groups: usize,
    activation: Activation,
    /// Mean and inverse deviation, a channel at a time, of every image of the last batch.
    moments: Vec<f32>,
    /// Four rows of channels to compute in.
    rows: Vec<f32>,
    /// Of weight and bias.
    gradient: Vec<f32>,
}

impl GroupNorm {
    /// # Panics
    /// When the channels do not fall into that many groups.
    pub(crate) fn new(channels: usize, pixels: usize, groups: usize, activation: Activation) -> Self {
        assert!(groups > 0 && channels.is_multiple_of(groups), "equal groups of channels");
        let (moments, rows, gradient) = Default::default();
        Self { channels, pixels, groups, activation, moments, rows, gradient }
    }

    fn image(&self) -> usize {
        self.channels * self.pixels
    }
}

/// Replaces a sum for each channel by the share of its group's: their sum over `count`.
fn share(sums: &mut [f32], groups: usize, count: usize) {
    let channels = sums.len() / groups;
    for group in sums.chunks_exact_mut(channels) {
        let total: f32 = group.iter().sum();
        group.fill(total / count as f32);
    }
}

impl Layer for GroupNorm {
    fn forward(&mut self, batch: usize, _mode: Mode, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let (channels, groups, image) = (self.channels, self.groups, self.image());
        let (weight, bias) = parameters.split_at(channels);
        reserve(&mut self.moments, 2 * batch * channels);
        reserve(&mut self.rows, 4 * channels);
        let (scales, shifts) = self.rows[..2 * channels].split_at_mut(channels);
        let images = x.chunks_exact(image).zip(y.chunks_exact_mut(image));
        for ((x, y), moments) in images.zip(self.moments.chunks_exact_mut(2 * channels)) {
            let (mean, inverse) = moments.split_at_mut(channels);
            super::dense::column_sums(x, mean);
            share(mean, groups, image / groups);
            squares(x, mean, inverse);
            share(inverse, groups, image / groups);
            inverse.iter_mut().for_each(|value| *value = 1.0 / (*value + EPSILON as f32).sqrt());
            for channel in 0..channels {
                scales[channel] = inverse[channel] * weight[channel];
                shifts[channel] = bias[channel] - mean[channel] * scales[channel];
            }
            affine(x, scales, shifts, y, self.activation);
        }
    }

    fn backward(
        &mut self,
        batch: usize,
        mut weights: Weights<'_>,
        x: &[f32],
        y: &[f32],
        y_gradient: &mut [f32],
        mut x_gradient: Option<&mut [f32]>,
    ) {
        let (channels, groups, image) = (self.channels, self.groups, self.image());
        super::dense::deactivate(self.activation, y, y_gradient);
        reserve(&mut self.gradient, 2 * channels);
        let gradient = &mut self.gradient[..2 * channels];
        gradient.fill(0.0);
        let weight = &weights.values()[..channels];
        let count = (image / groups) as f32;
        for sample in 0..batch {
            let (x, dy) = (&x[sample * image..][..image], &y_gradient[sample * image..][..image]);
            let (mean, inverse) = self.moments[2 * sample * channels..][..2 * channels].split_at(channels);
            let (sums, factors) = self.rows[..4 * channels].split_at_mut(2 * channels);
            let (along, plain) = sums.split_at_mut(channels);
            products(x, dy, mean, along, plain);
            for channel in 0..channels {
                along[channel] *= inverse[channel];
                gradient[channel] += along[channel];
                gradient[channels + channel] += plain[channel];
                along[channel] *= weight[channel] / count;
                plain[channel] *= weight[channel] / count;
            }
            let Some(target) = &mut x_gradient else { continue };
            share(along, groups, 1);
            share(plain, groups, 1);
            let (of_x, of_dy) = factors.split_at_mut(channels);
            for channel in 0..channels {
                of_dy[channel] = inverse[channel] * weight[channel];
                of_x[channel] = -inverse[channel] * inverse[channel] * along[channel];
                plain[channel] = -inverse[channel] * plain[channel] - mean[channel] * of_x[channel];
            }
            combine(x, dy, (of_x, of_dy, plain), &mut target[sample * image..][..image]);
        }
        weights.take(gradient);
    }
}

/// Per channel, the sum of the squared distances to `mean`.
fn squares(x: &[f32], mean: &[f32], sums: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            sums.fill(0.0);
            for pixel in x.chunks_exact(mean.len()) {
                for ((sum, x), mean) in sums.iter_mut().zip(pixel).zip(mean) {
                    *sum += (x - mean) * (x - mean);
                }
            }
        },
    );
}

/// Per channel, the sums of `dy (x - mean)` and of `dy`.
fn products(x: &[f32], dy: &[f32], mean: &[f32], along: &mut [f32], plain: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            along.fill(0.0);
            plain.fill(0.0);
            for (x, dy) in x.chunks_exact(mean.len()).zip(dy.chunks_exact(mean.len())) {
                let sums = along.iter_mut().zip(plain.iter_mut()).zip(mean);
                for (((along, plain), mean), (x, dy)) in sums.zip(x.iter().zip(dy)) {
                    *along += dy * (x - mean);
                    *plain += dy;
                }
            }
        },
    );
}

/// `activation(x * scales + shifts)`, pixel by pixel.
fn affine(x: &[f32], scales: &[f32], shifts: &[f32], y: &mut [f32], activation: Activation) {
    let least = match activation {
        Activation::Identity => f32::NEG_INFINITY,
        Activation::Relu => 0.0,
    };
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(scales.len()).zip(y.chunks_exact_mut(scales.len())) {
                for ((y, x), (scale, shift)) in y.iter_mut().zip(x).zip(scales.iter().zip(shifts)) {
                    let value = x * scale + shift;
                    *y = if value < least { least } else { value };
                }
            }
        },
    );
}

/// `target = x * of_x + dy * of_dy + rest`, pixel by pixel.
fn combine(x: &[f32], dy: &[f32], (of_x, of_dy, rest): (&[f32], &[f32], &[f32]), target: &mut [f32]) {
    let channels = rest.len();
    vectorised(
        #[inline(always)]
        || {
            let pixels = x.chunks_exact(channels).zip(dy.chunks_exact(channels));
            for (target, (x, dy)) in target.chunks_exact_mut(channels).zip(pixels) {
                let factors = of_x.iter().zip(of_dy).zip(rest);
                let values = target.iter_mut().zip(x.iter().zip(dy));
                for ((target, (x, dy)), ((of_x, of_dy), rest)) in values.zip(factors) {
                    *target = x * of_x + dy * of_dy + rest;
                }
            }
        },
    );
}
