//! The dense layer, with its activation fused into it.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::Activation;
use super::gemm::{MatrixMut, MatrixRef, Onto, multiply};
use super::storage::{floats, with_floats};

/// `activation(x weight^T + bias)`: `x` is `[batch, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`; the result
/// is `[batch, outputs]`.
///
/// # Errors
/// When shapes do not fit, values are not f32, or candle fails.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear { activation });
    }
    let sum = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
    match activation {
        Activation::Identity => Ok(sum),
        Activation::Relu => sum.relu(),
    }
}

struct Linear {
    activation: Activation,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let ((batch, inputs), (outputs, columns)) =
            (x_layout.shape().dims2()?, weight_layout.shape().dims2()?);
        if columns != inputs || bias_layout.shape().dims1()? != outputs {
            candle_core::bail!(
                "a dense layer of weight [{outputs}, {columns}] and bias {:?} does not fit an input of [{batch}, {inputs}]",
                bias_layout.shape()
            );
        }
        let (x, weight) = (floats(x, x_layout)?, floats(weight, weight_layout)?);
        let mut y = floats(bias, bias_layout)?.repeat(batch);
        let (x, weight) = (MatrixRef::new(x, batch, inputs), MatrixRef::new(weight, outputs, inputs));
        multiply(x, weight.transposed(), Onto::Add, MatrixMut::new(&mut y, batch, outputs));
        if self.activation == Activation::Relu {
            rectify(&mut y);
        }
        Ok((CpuStorage::F32(y), (batch, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        y_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((batch, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
        let sums = sum_gradient(self.activation, y, y_gradient)?;
        let sums = MatrixRef::new(&sums, batch, outputs);
        let x_gradient = if x.track_op() {
            let mut gradient = vec![0.0; batch * inputs];
            with_floats(weight, |weight| {
                let weight = MatrixRef::new(weight, outputs, inputs);
                multiply(sums, weight, Onto::Replace, MatrixMut::new(&mut gradient, batch, inputs));
                Ok(())
            })?;
            Some(Tensor::from_vec(gradient, (batch, inputs), x.device())?)
        } else {
            None
        };
        let mut weight_gradient = vec![0.0; outputs * inputs];
        with_floats(x, |x| {
            let x = MatrixRef::new(x, batch, inputs);
            multiply(
                sums.transposed(),
                x,
                Onto::Replace,
                MatrixMut::new(&mut weight_gradient, outputs, inputs),
            );
            Ok(())
        })?;
        let mut bias_gradient = vec![0.0; outputs];
        let ones = vec![1.0; batch];
        multiply(
            MatrixRef::new(&ones, 1, batch),
            sums,
            Onto::Replace,
            MatrixMut::new(&mut bias_gradient, 1, outputs),
        );
        let weight_gradient = Tensor::from_vec(weight_gradient, (outputs, inputs), weight.device())?;
        Ok((
            x_gradient,
            Some(weight_gradient),
            Some(Tensor::from_vec(bias_gradient, outputs, bias.device())?),
        ))
    }
}

/// `max(0, x)` in place. NaN stays, so that training that went wrong is seen.
pub(super) fn rectify(values: &mut [f32]) {
    for value in values {
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}

/// The gradient before the activation, from the layer's result `y` and the gradient of it.
///
/// # Errors
/// When the values are not f32.
pub(super) fn sum_gradient(activation: Activation, y: &Tensor, y_gradient: &Tensor) -> Result<Vec<f32>> {
    let mut gradient = with_floats(&y_gradient.contiguous()?, |values| Ok(values.to_vec()))?;
    if activation == Activation::Relu {
        with_floats(y, |y| {
            gate(&mut gradient, y);
            Ok(())
        })?;
    }
    Ok(gradient)
}

/// The derivative of ReLU at its results `y`, applied to a gradient in place.
pub(super) fn gate(gradient: &mut [f32], y: &[f32]) {
    for (gradient, y) in gradient.iter_mut().zip(y) {
        *gradient = if *y > 0.0 { *gradient } else { 0.0 };
    }
}
