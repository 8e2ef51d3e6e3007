//! Optimizers composed of tensor operations, for devices other than the CPU.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};

use super::{BETA1, BETA2, EPSILON, Rule};

/// A rule and its state.
pub(crate) struct Optimizer {
    vars: Vec<Var>,
    state: State,
}

enum State {
    Sgd { learning_rate: f64, momentum: f64, weight_decay: f64, velocity: Vec<Option<Tensor>> },
    Adam(AdamW),
}

impl Optimizer {
    pub(super) fn new(rule: Rule, vars: &[Var]) -> Result<Self> {
        let state = match rule {
            Rule::Sgd { learning_rate, momentum, weight_decay } => {
                State::Sgd { learning_rate, momentum, weight_decay, velocity: vec![None; vars.len()] }
            }
            Rule::Adam { learning_rate, weight_decay } => {
                let (beta1, beta2, eps) = (BETA1, BETA2, EPSILON);
                let params = ParamsAdamW { lr: learning_rate, beta1, beta2, eps, weight_decay };
                State::Adam(AdamW::new(vars.to_vec(), params)?)
            }
        };
        Ok(Self { vars: vars.to_vec(), state })
    }

    pub(super) fn step(&mut self, gradients: &[Option<Tensor>]) -> Result<()> {
        match &mut self.state {
            State::Sgd { learning_rate, momentum, weight_decay, velocity } => {
                for ((var, gradient), velocity) in self.vars.iter().zip(gradients).zip(velocity) {
                    let Some(gradient) = gradient else { continue };
                    let mut direction = (gradient + (var.as_tensor() * *weight_decay)?)?;
                    if *momentum > 0.0 {
                        if let Some(before) = velocity {
                            direction = ((&*before * *momentum)? + direction)?;
                        }
                        *velocity = Some(direction.detach());
                    }
                    var.set(&(var.as_tensor() - (direction * *learning_rate)?)?.detach())?;
                }
                Ok(())
            }
            State::Adam(adam) => {
                let mut store = GradStore::default();
                for (var, gradient) in self.vars.iter().zip(gradients) {
                    if let Some(gradient) = gradient {
                        store.insert(var, gradient.clone());
                    }
                }
                adam.step(&store)
            }
        }
    }
}
