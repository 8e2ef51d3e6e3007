//! Optimizers at a site. Their state starts anew each round, as in McMahan et al. 2017: nothing but parameters is kept.
//!
//! On the CPU every rule is one pass in place over the variable; on other devices the same rule is composed of tensor
//! operations. Clipping, accumulation and the proximal term are not here: they belong to the gradient.

mod composed;
mod fused;

use candle_core::{Result, Tensor, Var};
use protocol::OptimizerSpec;

pub(crate) use fused::Moments;

/// Adam's decay rates and the term that keeps its denominator from zero (Kingma, Ba 2015, section 2).
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The numbers of a rule, with the schedule's factor applied.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Sgd { learning_rate: f64, momentum: f64, weight_decay: f64 },
    Adam { learning_rate: f64, weight_decay: f64 },
}

impl Rule {
    fn of(spec: &OptimizerSpec, learning_rate_scale: f64) -> Self {
        match *spec {
            OptimizerSpec::Sgd { learning_rate, momentum, weight_decay } => Self::Sgd {
                learning_rate: learning_rate.value() * learning_rate_scale,
                momentum,
                weight_decay,
            },
            OptimizerSpec::Adam { learning_rate } => {
                Self::Adam { learning_rate: learning_rate.value() * learning_rate_scale, weight_decay: 0.0 }
            }
            OptimizerSpec::AdamW { learning_rate, weight_decay } => {
                Self::Adam { learning_rate: learning_rate.value() * learning_rate_scale, weight_decay }
            }
        }
    }
}

/// An optimizer and its state over some variables.
pub(crate) enum Optimizer {
    /// On the CPU.
    Fused(fused::Optimizer),
    /// Elsewhere.
    Composed(composed::Optimizer),
}

impl Optimizer {
    /// A fresh state for `vars`; `learning_rate_scale` is the schedule's factor.
    ///
    /// # Errors
    /// When the device has no room for the state.
    pub(crate) fn new(spec: &OptimizerSpec, learning_rate_scale: f64, vars: &[Var]) -> Result<Self> {
        let rule = Rule::of(spec, learning_rate_scale);
        if vars.iter().all(|var| var.device().is_cpu()) {
            Ok(Self::Fused(fused::Optimizer::new(rule, vars)))
        } else {
            Ok(Self::Composed(composed::Optimizer::new(rule, vars)?))
        }
    }

    /// One step along `gradients`, one a variable; a variable without gradient stays as it is.
    ///
    /// # Errors
    /// When candle fails.
    pub(crate) fn step(&mut self, gradients: &[Option<Tensor>]) -> Result<()> {
        match self {
            Self::Fused(optimizer) => optimizer.step(gradients),
            Self::Composed(optimizer) => optimizer.step(gradients),
        }
    }
}

#[cfg(test)]
mod tests;
