//! The convolution of size-keeping zero padding and stride 1, as a matrix product over unrolled patches (Chellapilla et
//! al. 2006, section 2.2), with its activation fused into it. Other strides, paddings and dilations are refused by design: a
//! model that needs them uses candle's own.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::Activation;
use super::gemm::{MatrixMut, MatrixRef, Onto, multiply};
use super::linear::{rectify, sum_gradient};
use super::storage::{floats, with_floats};

/// `activation(x * weight + bias)`: `x` is `[batch, inputs, height, width]`, `weight` `[outputs, inputs, kernel, kernel]` with
/// an odd `kernel`, `bias` `[outputs]`; the result is `[batch, outputs, height, width]`.
///
/// # Errors
/// When shapes do not fit, values are not f32, or candle fails.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        let convolution = Convolution { activation };
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, convolution);
    }
    let bias = bias.reshape((1, bias.elem_count(), 1, 1))?;
    let sum = x.conv2d(weight, weight.dim(3)? / 2, 1, 1, 1)?.broadcast_add(&bias)?;
    match activation {
        Activation::Identity => Ok(sum),
        Activation::Relu => sum.relu(),
    }
}

/// A convolution of any stride and padding, given as `(stride, padding)`; shapes as for [`conv2d`].
///
/// # Errors
/// When shapes do not fit, or candle fails.
pub fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, padding): (usize, usize),
    activation: Activation,
) -> Result<Tensor> {
    if stride == 1 && 2 * padding + 1 == weight.dim(3)? {
        return conv2d(x, weight, bias, activation);
    }
    let bias = bias.reshape((1, bias.elem_count(), 1, 1))?;
    let sum = x.conv2d(weight, padding, stride, 1, 1)?.broadcast_add(&bias)?;
    match activation {
        Activation::Identity => Ok(sum),
        Activation::Relu => sum.relu(),
    }
}

struct Convolution {
    activation: Activation,
}

/// The sizes of one convolution.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
}

impl Sizes {
    fn of(x: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, channels, kernel, kernel_width) = weight.dims4()?;
        if channels != inputs || kernel != kernel_width || kernel % 2 == 0 {
            candle_core::bail!(
                "a convolution of weight {weight:?} does not fit an input of {x:?}; kernels are square and odd"
            );
        }
        Ok(Self { batch, inputs, height, width, outputs, kernel })
    }

    /// Pixels of one channel.
    pub(crate) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Values of one patch.
    pub(crate) fn patch(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(x_layout.shape(), weight_layout.shape())?;
        let (pixels, patch) = (sizes.pixels(), sizes.patch());
        let (x, weight, bias) =
            (floats(x, x_layout)?, floats(weight, weight_layout)?, floats(bias, bias_layout)?);
        if bias.len() != sizes.outputs {
            candle_core::bail!("a convolution of {} outputs has {} biases", sizes.outputs, bias.len());
        }
        let weight = MatrixRef::new(weight, sizes.outputs, patch);
        let mut columns = vec![0.0; patch * pixels];
        let mut y = vec![0.0; sizes.batch * sizes.outputs * pixels];
        for sample in 0..sizes.batch {
            unroll(&x[sample * sizes.inputs * pixels..][..sizes.inputs * pixels], &mut columns, sizes);
            let y = &mut y[sample * sizes.outputs * pixels..][..sizes.outputs * pixels];
            for (channel, bias) in y.chunks_exact_mut(pixels.max(1)).zip(bias) {
                channel.fill(*bias);
            }
            let columns = MatrixRef::new(&columns, patch, pixels);
            multiply(weight, columns, Onto::Add, MatrixMut::new(y, sizes.outputs, pixels));
        }
        if self.activation == Activation::Relu {
            rectify(&mut y);
        }
        Ok((CpuStorage::F32(y), (sizes.batch, sizes.outputs, sizes.height, sizes.width).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        y_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(x.shape(), weight.shape())?;
        let sums = sum_gradient(self.activation, y, y_gradient)?;
        let (weight_gradient, bias_gradient) = with_floats(x, |x| Ok(parameter_gradients(x, &sums, sizes)))?;
        let x_gradient = if x.track_op() {
            let gradient = with_floats(weight, |weight| Ok(input_gradient(weight, &sums, sizes)))?;
            Some(Tensor::from_vec(gradient, x.shape(), x.device())?)
        } else {
            None
        };
        let weight_gradient = Tensor::from_vec(weight_gradient, weight.shape(), weight.device())?;
        Ok((
            x_gradient,
            Some(weight_gradient),
            Some(Tensor::from_vec(bias_gradient, bias.shape(), bias.device())?),
        ))
    }
}

/// Gradients of weight and bias, summed over the samples in their order.
fn parameter_gradients(x: &[f32], sums: &[f32], sizes: Sizes) -> (Vec<f32>, Vec<f32>) {
    let (pixels, patch) = (sizes.pixels(), sizes.patch());
    let mut columns = vec![0.0; patch * pixels];
    let mut weight = vec![0.0; sizes.outputs * patch];
    let mut bias = vec![0.0; sizes.outputs];
    let ones = vec![1.0; pixels];
    for sample in 0..sizes.batch {
        unroll(&x[sample * sizes.inputs * pixels..][..sizes.inputs * pixels], &mut columns, sizes);
        let sums = MatrixRef::new(
            &sums[sample * sizes.outputs * pixels..][..sizes.outputs * pixels],
            sizes.outputs,
            pixels,
        );
        let columns = MatrixRef::new(&columns, patch, pixels).transposed();
        multiply(sums, columns, Onto::Add, MatrixMut::new(&mut weight, sizes.outputs, patch));
        multiply(
            sums,
            MatrixRef::new(&ones, pixels, 1),
            Onto::Add,
            MatrixMut::new(&mut bias, sizes.outputs, 1),
        );
    }
    (weight, bias)
}

/// Gradient of the input.
fn input_gradient(weight: &[f32], sums: &[f32], sizes: Sizes) -> Vec<f32> {
    let (pixels, patch) = (sizes.pixels(), sizes.patch());
    let weight = MatrixRef::new(weight, sizes.outputs, patch).transposed();
    let mut columns = vec![0.0; patch * pixels];
    let mut gradient = vec![0.0; sizes.batch * sizes.inputs * pixels];
    for sample in 0..sizes.batch {
        let sums = &sums[sample * sizes.outputs * pixels..][..sizes.outputs * pixels];
        let sums = MatrixRef::new(sums, sizes.outputs, pixels);
        multiply(weight, sums, Onto::Replace, MatrixMut::new(&mut columns, patch, pixels));
        roll(&columns, &mut gradient[sample * sizes.inputs * pixels..][..sizes.inputs * pixels], sizes);
    }
    gradient
}

/// Where a row of a channel meets itself when shifted by `offset - padding`: first target, first source, and length.
fn overlap(offset: usize, padding: usize, side: usize) -> (usize, usize, usize) {
    let (target, source) = (padding.saturating_sub(offset), offset.saturating_sub(padding));
    (target, source, side.saturating_sub(target.max(source)))
}

/// Writes the patch around each pixel of one sample as a column: row `(channel, ky, kx)`, column `(y, x)`.
pub(super) fn unroll(x: &[f32], columns: &mut [f32], sizes: Sizes) {
    let Sizes { height, width, kernel, .. } = sizes;
    let pixels = sizes.pixels();
    for (row, line) in columns.chunks_exact_mut(pixels.max(1)).enumerate() {
        let (channel, ky, kx) = (row / (kernel * kernel), row / kernel % kernel, row % kernel);
        let channel = &x[channel * pixels..][..pixels];
        let (top, from_top, rows) = overlap(ky, kernel / 2, height);
        let (left, from_left, length) = overlap(kx, kernel / 2, width);
        line[..top.min(height) * width].fill(0.0);
        line[(top + rows).min(height) * width..].fill(0.0);
        for y in 0..rows {
            let target = &mut line[(top + y) * width..][..width];
            let source = &channel[(from_top + y) * width..][..width];
            target[..left.min(width)].fill(0.0);
            target[(left + length).min(width)..].fill(0.0);
            if length > 0 {
                target[left..left + length].copy_from_slice(&source[from_left..from_left + length]);
            }
        }
    }
}

/// The transpose of [`unroll`]: adds every column's values to the pixels they came from.
pub(super) fn roll(columns: &[f32], x: &mut [f32], sizes: Sizes) {
    let Sizes { height, width, kernel, .. } = sizes;
    let pixels = sizes.pixels();
    for (row, line) in columns.chunks_exact(pixels.max(1)).enumerate() {
        let (channel, ky, kx) = (row / (kernel * kernel), row / kernel % kernel, row % kernel);
        let channel = &mut x[channel * pixels..][..pixels];
        let (top, from_top, rows) = overlap(ky, kernel / 2, height);
        let (left, from_left, length) = overlap(kx, kernel / 2, width);
        if length == 0 {
            continue;
        }
        for y in 0..rows {
            let source = &line[(top + y) * width + left..][..length];
            let target = &mut channel[(from_top + y) * width + from_left..][..length];
            for (target, value) in target.iter_mut().zip(source) {
                *target += value;
            }
        }
    }
}
