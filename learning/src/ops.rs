//! Layers and losses with gradients that are checked against finite differences (`tests/gradients.rs`), for models of one's own.
//!
//! On the CPU they are layers in closed form, single-threaded and deterministic: one client trains on one core, and the
//! same inputs give the same bits whatever `RAYON_NUM_THREADS` says. On other devices they are [`composed`] of candle's own
//! differentiable operations. Nothing here draws randomness except [`dropout`], from the seed in its [`Mode`].
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor, Var};
//! use learning::ops::{self, Activation};
//!
//! # fn main() -> Result<()> {
//! let (image, state) = (Tensor::ones((2, 3, 9, 7), DType::F32, &Device::Cpu)?, 16);
//! let kernel = Var::ones((8, 3, 3, 3), DType::F32, &Device::Cpu)?;
//! let [ones, zeros] = [Tensor::ones(8, DType::F32, &Device::Cpu)?, Tensor::zeros(8, DType::F32, &Device::Cpu)?];
//! let x = ops::convolution(&image, &kernel, &zeros, (2, 1), Activation::Relu)?;
//! let x = ops::max_pool(&ops::group_norm(&x, &ones, &zeros, 4)?, 2, 1)?;
//! // Its rows as steps of a sequence.
//! let x = ops::gelu(&x)?.transpose(1, 2)?.flatten_from(2)?;
//! let features = x.dim(2)?;
//! let [input, memory] = [Var::ones((4 * state, features), DType::F32, &Device::Cpu)?, Var::ones((4 * state, state), DType::F32, &Device::Cpu)?];
//! let x = ops::lstm(&x, &input, &memory, &Tensor::zeros(4 * state, DType::F32, &Device::Cpu)?)?;
//! let gradients = x.mean_all()?.backward()?;
//! assert!(gradients.get(&kernel).is_some() && gradients.get(&memory).is_some());
//! # Ok(())
//! # }
//! ```

pub mod composed;
pub(crate) mod gemm;
mod layer;
mod loss;
mod normalisation;
mod product;
mod recurrent;
mod storage;

use candle_core::{Result, Tensor};
use rand::Rng;

pub use loss::loss;
pub(crate) use loss::{Truth, loss_of_one, prepare_losses};
pub(crate) use normalisation::EPSILON;
pub use normalisation::{gelu, group_norm, layer_norm, relu, sigmoid, tanh};
pub use product::{convolution, linear, max_pool};
pub use recurrent::{embedding, gru, lstm};
pub(crate) use storage::{edit_floats, with_floats};

use crate::Mode;

/// What follows a layer's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(0, x)`; its derivative at 0 is 0.
    Relu,
}

/// # Errors
/// When a tensor has another shape.
fn expect(what: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() != shape {
        candle_core::bail!("{what} is {:?} where {shape:?} fits", tensor.dims());
    }
    Ok(())
}

/// In training, sets each value to 0 with `probability` (from 0 to below 1) and scales the others so that the mean stays;
/// in evaluation, returns `x`. Layers of one model pass different numbers as `layer`, so that their masks differ.
///
/// # Errors
/// When the probability is out of range, or candle fails.
pub fn dropout(x: &Tensor, probability: f64, mode: Mode, layer: u32) -> Result<Tensor> {
    if !(0.0..1.0).contains(&probability) {
        candle_core::bail!("a dropout probability of {probability} is not from 0 to below 1");
    }
    let Some(mut generator) = mode.generator(layer) else { return Ok(x.clone()) };
    let kept = (1.0 / (1.0 - probability)) as f32;
    let draw = |_| if generator.random::<f64>() < probability { 0.0 } else { kept };
    let mask: Vec<f32> = (0..x.elem_count()).map(draw).collect();
    x.mul(&Tensor::from_vec(mask, x.shape(), x.device())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use protocol::Seed;

    use super::*;

    #[test]
    fn dropout_repeats_with_its_seed_differs_by_layer_keeps_the_mean_and_rests_in_evaluation() {
        let x = Tensor::ones((100, 100), candle_core::DType::F32, &Device::Cpu).unwrap();
        let values = |mode, layer| {
            dropout(&x, 0.25, mode, layer).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let train = Mode::Train(Seed::from_number(3));
        assert_eq!(values(train, 0), values(train, 0));
        assert_ne!(values(train, 0), values(train, 1));
        let mean = values(train, 0).iter().sum::<f32>() / 10_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert!(values(Mode::Evaluate, 0).iter().all(|value| *value == 1.0));
        assert!(dropout(&x, 1.0, train, 0).is_err());
    }
}
