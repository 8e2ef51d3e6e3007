//! From the gradients of batches to the gradient of a step: averaged, pulled towards the start, clipped.
//!
//! In this order: the proximal term is part of the objective, so it is clipped with it; weight decay is the optimizer's.

use candle_core::{Result, Tensor, Var};

use crate::ops::with_floats;

/// FedProx's pull towards where the round began (Li et al. 2020, section 3.2): the gradient of `mu / 2 * |w - start|^2`.
pub(super) struct Proximal {
    mu: f64,
    start: Vec<Tensor>,
}

impl Proximal {
    /// Remembers the variables as they are; nothing for a `mu` of 0.
    ///
    /// # Errors
    /// When the device has no room.
    pub(super) fn from_here(mu: f64, vars: &[Var]) -> Result<Option<Self>> {
        if mu == 0.0 {
            return Ok(None);
        }
        let start = vars.iter().map(|var| var.as_detached_tensor().copy()).collect::<Result<_>>()?;
        Ok(Some(Self { mu, start }))
    }
}

/// The mean gradient over the samples of one step, one tensor a variable; none where the loss does not depend on it.
pub(super) struct StepGradient {
    sums: Vec<Option<Tensor>>,
    samples: usize,
}

impl StepGradient {
    /// The mean gradient of a first batch of `samples`.
    pub(super) fn new(gradients: Vec<Option<Tensor>>, samples: usize) -> Self {
        Self { sums: gradients, samples }
    }

    /// Averages in another batch; every sample of the step counts the same.
    ///
    /// # Errors
    /// When candle fails.
    pub(super) fn add(&mut self, gradients: Vec<Option<Tensor>>, samples: usize) -> Result<()> {
        let total = (self.samples + samples) as f64;
        let (old, new) = (self.samples as f64 / total, samples as f64 / total);
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some(((sum * old)? + (gradient * new)?)?.detach()),
                (Some(sum), None) => Some((sum * old)?),
                (None, Some(gradient)) => Some((gradient * new)?),
                (None, None) => None,
            };
        }
        self.samples += samples;
        Ok(())
    }

    /// The gradient of the step: with the proximal term, then scaled down to an L2 norm of at most `norm_max`.
    ///
    /// # Errors
    /// When candle fails.
    pub(super) fn finish(
        mut self,
        vars: &[Var],
        proximal: Option<&Proximal>,
        norm_max: Option<f64>,
    ) -> Result<Vec<Option<Tensor>>> {
        if let Some(Proximal { mu, start }) = proximal {
            for ((sum, var), start) in self.sums.iter_mut().zip(vars).zip(start) {
                *sum = Some(pulled(sum.take(), var, start, *mu)?);
            }
        }
        if let Some(norm_max) = norm_max {
            let norm = norm(&self.sums)?;
            if norm > norm_max {
                for sum in self.sums.iter_mut().flatten() {
                    *sum = (&*sum * (norm_max / norm))?;
                }
            }
        }
        Ok(self.sums)
    }
}

/// `gradient + mu * (var - start)`; no gradient counts as zero. On the CPU in one pass.
fn pulled(gradient: Option<Tensor>, var: &Var, start: &Tensor, mu: f64) -> Result<Tensor> {
    if !var.device().is_cpu() {
        let pull = ((var.as_detached_tensor() - start)? * mu)?;
        return gradient.map_or_else(|| Ok(pull.clone()), |gradient| gradient + &pull);
    }
    let mut sum = match &gradient {
        Some(gradient) => with_floats(&gradient.contiguous()?, |values| Ok(values.to_vec()))?,
        None => vec![0.0; var.elem_count()],
    };
    with_floats(var, |values| {
        with_floats(start, |start| {
            for ((sum, value), start) in sum.iter_mut().zip(values).zip(start) {
                *sum += mu as f32 * (value - start);
            }
            Ok(())
        })
    })?;
    Tensor::from_vec(sum, var.shape(), var.device())
}

/// The L2 norm over all tensors, summed in f64 in their order.
fn norm(gradients: &[Option<Tensor>]) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients.iter().flatten() {
        total += if gradient.device().is_cpu() {
            let square =
                |values: &[f32]| Ok(values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>());
            with_floats(&gradient.contiguous()?, square)?
        } else {
            f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?)
        };
    }
    Ok(total.sqrt())
}
