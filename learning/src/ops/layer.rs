//! Layers in closed form as differentiable operations of candle: one operation for all of them.
//!
//! An operation runs its layers forward when it is applied and keeps what they remember until candle asks for the gradient.
//! It is on the calling thread and the same bits every time. Only f32 on the CPU; elsewhere see [`super::composed`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::storage::{floats, with_floats};
use crate::Mode;
use crate::layers::{Chain, Layer, Transpose, Weights};

/// Whether layers can do it: f32 on the CPU, and something to do.
pub(super) fn is_ours(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && x.elem_count() > 0
}

/// A layer alone, with so many parameters, values of a sample going in, and coming out.
pub(super) fn alone(layer: impl Layer + 'static, parameters: usize, inputs: usize, outputs: usize) -> Chain {
    let mut chain = Chain::default();
    chain.push(Box::new(layer), parameters, inputs, outputs);
    chain
}

/// A layer for images `[channels, pixels]` with their channels last, between turning them and turning them back.
pub(super) fn turned(
    layer: impl Layer + 'static,
    parameters: usize,
    (channels, pixels): (usize, usize),
    (channels_out, pixels_out): (usize, usize),
) -> Chain {
    let mut chain = Chain::default();
    let (inputs, outputs) = (channels * pixels, channels_out * pixels_out);
    if channels > 1 && pixels > 1 {
        chain.push(Box::new(Transpose::new(channels, pixels)), 0, inputs, inputs);
    }
    chain.push(Box::new(layer), parameters, inputs, outputs);
    if channels_out > 1 && pixels_out > 1 {
        chain.push(Box::new(Transpose::new(pixels_out, channels_out)), 0, outputs, outputs);
    }
    chain
}

/// Applies layers to `batch` samples that lie in `x` one after another. `parameters` are the layers' tensors in their order; the
/// result is reshaped to `shape`.
///
/// # Errors
/// When there are not as many parameters as the layers have, or a tensor is not f32 on the CPU.
pub(super) fn apply(
    chain: Chain,
    batch: usize,
    x: &Tensor,
    parameters: &[&Tensor],
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let count: usize = parameters.iter().map(|tensor| tensor.elem_count()).sum();
    if count != chain.parameters() {
        candle_core::bail!("{count} parameters for layers of {}", chain.parameters());
    }
    let state = State { chain, parameters: vec![0.0; count], ready: false };
    let op = Op { batch, shape: shape.into(), state: Mutex::new(state) };
    let x = x.contiguous()?;
    match parameters {
        [] => x.apply_op1(op),
        [only] => x.apply_op2(&only.contiguous()?, op),
        [first, second] => x.apply_op3(&first.contiguous()?, &second.contiguous()?, op),
        many => {
            let flat = many.iter().map(|tensor| tensor.flatten_all()).collect::<Result<Vec<_>>>()?;
            x.apply_op2(&Tensor::cat(&flat, 0)?, op)
        }
    }
}

struct Op {
    batch: usize,
    shape: Shape,
    state: Mutex<State>,
}

struct State {
    chain: Chain,
    /// In the layers' own order.
    parameters: Vec<f32>,
    /// Whether the layers remember the way forward.
    ready: bool,
}

impl Op {
    /// What a panic left behind is not ready.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        tensors: &[(&CpuStorage, &Layout)],
    ) -> Result<(CpuStorage, Shape)> {
        let x = floats(x.0, x.1)?;
        let mut natural =
            Vec::with_capacity(tensors.iter().map(|(_, layout)| layout.shape().elem_count()).sum());
        for (storage, layout) in tensors {
            natural.extend_from_slice(floats(storage, layout)?);
        }
        let mut state = self.state();
        let State { chain, parameters, ready } = &mut *state;
        chain.import(&natural, parameters);
        *ready = false;
        let y = chain.run(self.batch, Mode::Evaluate, parameters, x).to_vec();
        *ready = true;
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    /// The gradient of `x` if anything depends on it, and that of all parameters.
    fn backward(&self, x: &Tensor, y_gradient: &Tensor) -> Result<(Option<Tensor>, Vec<f32>)> {
        let mut state = self.state();
        let State { chain, parameters, ready } = &mut *state;
        let (mut own, mut natural) = (vec![0.0; parameters.len()], vec![0.0; parameters.len()]);
        let mut x_gradient = x.track_op().then(|| vec![0.0; x.elem_count()]);
        with_floats(x, |x| {
            if !*ready {
                // The way back uses up what was remembered.
                chain.run(self.batch, Mode::Evaluate, parameters, x);
            }
            *ready = false;
            with_floats(&y_gradient.contiguous()?, |values| {
                chain.results_and_gradient(self.batch).1.copy_from_slice(values);
                Ok(())
            })?;
            let weights = Weights::Measure { parameters, gradient: &mut own, keep: 0.0 };
            chain.back(self.batch, weights, x, x_gradient.as_deref_mut());
            Ok(())
        })?;
        chain.export(&own, &mut natural);
        let x_gradient =
            x_gradient.map(|values| Tensor::from_vec(values, x.shape(), x.device())).transpose()?;
        Ok((x_gradient, natural))
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, layout), &[])
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, y_gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(x, y_gradient)?.0)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        tensor: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), &[(tensor, layout)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        tensor: &Tensor,
        _y: &Tensor,
        y_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_gradient, gradient) = self.backward(x, y_gradient)?;
        Ok((x_gradient, Some(Tensor::from_vec(gradient, tensor.shape(), tensor.device())?)))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), &[(first, first_layout), (second, second_layout)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        first: &Tensor,
        second: &Tensor,
        _y: &Tensor,
        y_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x_gradient, mut gradient) = self.backward(x, y_gradient)?;
        let rest = gradient.split_off(first.elem_count());
        let first = Tensor::from_vec(gradient, first.shape(), first.device())?;
        Ok((x_gradient, Some(first), Some(Tensor::from_vec(rest, second.shape(), second.device())?)))
    }
}
