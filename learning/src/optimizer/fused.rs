//! Optimizers as one pass in place over variables on the CPU.

use candle_core::{Result, Tensor, Var};

use super::{BETA1, BETA2, EPSILON, Rule};
use crate::ops::{edit_floats, with_floats};

/// A rule and its moments, one vector a variable.
pub(crate) struct Optimizer {
    rule: Rule,
    vars: Vec<Var>,
    /// Velocity, or Adam's first moment; empty where the rule needs none.
    first: Vec<Vec<f32>>,
    /// Adam's second moment.
    second: Vec<Vec<f32>>,
    steps: i32,
}

impl Optimizer {
    pub(super) fn new(rule: Rule, vars: &[Var]) -> Self {
        let zeros = |needed: bool| {
            let length = |var: &Var| if needed { var.elem_count() } else { 0 };
            vars.iter().map(|var| vec![0.0; length(var)]).collect()
        };
        let (first, second) = match rule {
            Rule::Sgd { momentum, .. } => (zeros(momentum > 0.0), zeros(false)),
            Rule::Adam { .. } => (zeros(true), zeros(true)),
        };
        Self { rule, vars: vars.to_vec(), first, second, steps: 0 }
    }

    pub(super) fn step(&mut self, gradients: &[Option<Tensor>]) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        for (index, (var, gradient)) in self.vars.iter().zip(gradients).enumerate() {
            let Some(gradient) = gradient else { continue };
            let (first, second) = (&mut self.first[index], &mut self.second[index]);
            with_floats(&gradient.contiguous()?, |gradient| {
                edit_floats(var, |values| match self.rule {
                    Rule::Sgd { learning_rate, momentum, weight_decay } => {
                        let (rate, decay) = (learning_rate as f32, weight_decay as f32);
                        descend(values, gradient, first, rate, momentum as f32, decay);
                    }
                    Rule::Adam { learning_rate, weight_decay } => {
                        adapt(values, gradient, (first, second), learning_rate, weight_decay, self.steps);
                    }
                })
            })?;
        }
        Ok(())
    }
}

/// `v = momentum * v + g + decay * w; w = w - rate * v`; without momentum no velocity is kept.
fn descend(values: &mut [f32], gradient: &[f32], velocity: &mut [f32], rate: f32, momentum: f32, decay: f32) {
    if velocity.is_empty() {
        for (value, gradient) in values.iter_mut().zip(gradient) {
            *value -= rate * (gradient + decay * *value);
        }
        return;
    }
    for ((value, gradient), velocity) in values.iter_mut().zip(gradient).zip(velocity) {
        *velocity = momentum * *velocity + (gradient + decay * *value);
        *value -= rate * *velocity;
    }
}

/// Adam with decoupled decay (Loshchilov, Hutter 2019, algorithm 2); `step` counts from 1.
fn adapt(
    values: &mut [f32],
    gradient: &[f32],
    (first, second): (&mut [f32], &mut [f32]),
    rate: f64,
    decay: f64,
    step: i32,
) {
    let (beta1, beta2, epsilon) = (BETA1 as f32, BETA2 as f32, EPSILON as f32);
    let (rest1, rest2) = ((1.0 - BETA1) as f32, (1.0 - BETA2) as f32);
    let (scale1, scale2) = (1.0 / (1.0 - BETA1.powi(step)), 1.0 / (1.0 - BETA2.powi(step)));
    let (rate1, scale2, keep) = ((rate * scale1) as f32, scale2 as f32, (1.0 - rate * decay) as f32);
    for (((value, gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        *first = beta1 * *first + rest1 * gradient;
        *second = beta2 * *second + rest2 * gradient * gradient;
        *value = keep * *value - rate1 * *first / ((scale2 * *second).sqrt() + epsilon);
    }
}
