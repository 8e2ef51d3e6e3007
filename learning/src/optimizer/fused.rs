//! Optimizers as one pass in place over variables on the CPU.

use candle_core::{Result, Tensor, Var};
use protocol::OptimizerSpec;

use super::{BETA1, BETA2, EPSILON, Rule};
use crate::kernels::vectorised;
use crate::ops::{edit_floats, with_floats};

/// A rule and its moments over one slice of parameters.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    rule: Option<Rule>,
    /// Velocity, or Adam's first moment; empty where the rule needs none.
    first: Vec<f32>,
    /// Adam's second moment.
    second: Vec<f32>,
    steps: i32,
}

impl Moments {
    /// Starts anew for so many parameters; `learning_rate_scale` is the schedule's factor.
    pub(crate) fn begin(&mut self, spec: &OptimizerSpec, learning_rate_scale: f64, parameters: usize) {
        self.restart(Rule::of(spec, learning_rate_scale), parameters);
    }

    fn restart(&mut self, rule: Rule, parameters: usize) {
        let (first, second) = match rule {
            Rule::Sgd { momentum, .. } => (momentum > 0.0, false),
            Rule::Adam { .. } => (true, true),
        };
        for (values, needed) in [(&mut self.first, first), (&mut self.second, second)] {
            values.clear();
            values.resize(if needed { parameters } else { 0 }, 0.0);
        }
        (self.rule, self.steps) = (Some(rule), 0);
    }

    /// One step of `values` along `gradient`. Nothing moves before [`Moments::begin`].
    pub(crate) fn step(&mut self, values: &mut [f32], gradient: &[f32]) {
        let Self { rule, first, second, steps } = self;
        *steps = steps.saturating_add(1);
        match *rule {
            Some(Rule::Sgd { learning_rate, momentum, weight_decay }) => {
                let (rate, decay) = (learning_rate as f32, weight_decay as f32);
                vectorised(
                    #[inline(always)]
                    || descend(values, gradient, first, rate, momentum as f32, decay),
                );
            }
            Some(Rule::Adam { learning_rate, weight_decay }) => vectorised(
                #[inline(always)]
                || adapt(values, gradient, (first, second), learning_rate, weight_decay, *steps),
            ),
            None => {}
        }
    }
}

/// A rule over variables on the CPU, with moments for each.
pub(crate) struct Optimizer {
    vars: Vec<Var>,
    moments: Vec<Moments>,
}

impl Optimizer {
    pub(super) fn new(rule: Rule, vars: &[Var]) -> Self {
        let moments = |var: &Var| {
            let mut moments = Moments::default();
            moments.restart(rule, var.elem_count());
            moments
        };
        Self { vars: vars.to_vec(), moments: vars.iter().map(moments).collect() }
    }

    pub(super) fn step(&mut self, gradients: &[Option<Tensor>]) -> Result<()> {
        for ((var, moments), gradient) in self.vars.iter().zip(&mut self.moments).zip(gradients) {
            let Some(gradient) = gradient else {
                moments.steps = moments.steps.saturating_add(1);
                continue;
            };
            with_floats(&gradient.contiguous()?, |gradient| {
                edit_floats(var, |values| moments.step(values, gradient))
            })?;
        }
        Ok(())
    }
}

/// `v = momentum * v + g + decay * w; w = w - rate * v`; without momentum no velocity is kept.
#[inline(always)]
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
#[inline(always)]
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
