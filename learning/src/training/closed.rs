//! The way in closed form: one chain of layers, its parameters in one slice, and nothing allocated after the first batch.
//!
//! Where nothing stands between gradient and step (plain SGD, no clipping, no proximal term, one batch a step) the layers step
//! at once and no gradient is stored. Clipping, accumulation and the proximal term come before the optimizer, as they do by the
//! other way.

use protocol::{LearnError, Loss, OptimizerSpec, Purpose, Round, Seed, Spec};

use super::engine::{Engine, Seen, is_correct, truth};
use crate::View;
use crate::kernels::vectorised;
use crate::layers::{Chain, Weights};
use crate::model::Mode;
use crate::ops::{loss_of_one, prepare_losses};
use crate::optimizer::Moments;

/// A chain, its parameters in the layers' own order, and what an optimizer keeps.
pub(super) struct ClosedForm {
    chain: Chain,
    loss: Loss,
    outputs: usize,
    parameters: Vec<f32>,
    /// Of the step at hand, or of one record; empty until it is needed.
    gradient: Vec<f32>,
    /// Whether the gradient holds batches of the step at hand.
    begun: bool,
    inputs: Vec<f32>,
    moments: Moments,
    pull: Option<Pull>,
    norm_max: Option<f64>,
    /// Learning rate and what weight decay keeps, where layers step at once.
    fused: Option<(f32, f32)>,
}

/// FedProx's pull towards where the round began (Li et al. 2020, section 3.2): the gradient of `mu / 2 * |w - start|^2`.
struct Pull {
    mu: f32,
    start: Vec<f32>,
}

impl ClosedForm {
    /// An engine for a chain of so many parameters.
    pub(super) fn new(chain: Chain, spec: &Spec, parameters: usize) -> Self {
        Self {
            chain,
            loss: spec.loss(),
            outputs: spec.outputs(),
            parameters: vec![0.0; parameters],
            gradient: Vec::new(),
            begun: false,
            inputs: Vec::new(),
            moments: Moments::default(),
            pull: None,
            norm_max: None,
            fused: None,
        }
    }

    /// Copies rows and runs them forward.
    fn forward(&mut self, data: &View, rows: &[u32], mode: Mode) {
        let width = data.dataset.width();
        self.inputs.resize(rows.len() * width, 0.0);
        for (target, row) in self.inputs.chunks_exact_mut(width.max(1)).zip(rows) {
            data.copy_sample_into(*row as usize, target);
        }
        self.chain.run(rows.len(), mode, &self.parameters, &self.inputs);
    }

    /// Sums losses and right answers over a batch that went forward, and leaves the gradient of the sum times `share`.
    fn judge(&mut self, data: &View, rows: &[u32], share: f32) -> Result<Seen, LearnError> {
        let (outputs, gradients) = self.chain.results_and_gradient(rows.len());
        prepare_losses(self.loss, outputs, self.outputs, gradients);
        let mut seen = Seen::default();
        let samples = outputs.chunks_exact(self.outputs).zip(gradients.chunks_exact_mut(self.outputs));
        for (row, (outputs, gradient)) in rows.iter().zip(samples) {
            let truth = truth(data, *row, self.loss, self.outputs)?;
            seen.loss += loss_of_one(self.loss, outputs, truth, gradient);
            seen.correct += u64::from(is_correct(self.loss, outputs, truth));
            gradient.iter_mut().for_each(|value| *value *= share);
        }
        seen.loss /= rows.len().max(1) as f64;
        Ok(seen)
    }

    /// Runs backward into the gradient, over what it holds or onto it.
    fn backward(&mut self, batch: usize, keep: f32) {
        self.gradient.resize(self.parameters.len(), 0.0);
        let Self { chain, parameters, gradient, inputs, .. } = self;
        chain.back(batch, Weights::Measure { parameters, gradient, keep }, inputs, None);
    }

    /// Proximal term, clipping, optimizer.
    fn descend(&mut self) {
        let Self { parameters, gradient, pull, norm_max, moments, .. } = self;
        if let Some(Pull { mu, start }) = pull {
            let places = gradient.iter_mut().zip(parameters.iter().zip(start.iter()));
            vectorised(
                #[inline(always)]
                || places.for_each(|(gradient, (value, start))| *gradient += *mu * (value - start)),
            );
        }
        if let Some(norm_max) = *norm_max {
            let norm = norm(gradient);
            if norm > norm_max {
                let factor = (norm_max / norm) as f32;
                gradient.iter_mut().for_each(|value| *value *= factor);
            }
        }
        moments.step(parameters, gradient);
    }
}

impl Engine for ClosedForm {
    fn load(&mut self, parameters: &[f32]) -> Result<(), LearnError> {
        self.chain.import(parameters, &mut self.parameters);
        Ok(())
    }

    fn store(&mut self, parameters: &mut [f32]) -> Result<(), LearnError> {
        self.chain.export(&self.parameters, parameters);
        Ok(())
    }

    fn begin(&mut self, spec: &Spec, scale: f64) -> Result<(), LearnError> {
        let training = &spec.training;
        self.begun = false;
        self.norm_max = training.gradient_norm_max.map(|norm| norm.value());
        self.pull = (spec.proximal_mu != 0.0)
            .then(|| Pull { mu: spec.proximal_mu as f32, start: self.parameters.clone() });
        self.moments.begin(&training.optimizer, scale, self.parameters.len());
        let plain = self.norm_max.is_none() && self.pull.is_none() && training.accumulate == 1;
        self.fused = match training.optimizer {
            OptimizerSpec::Sgd { learning_rate, momentum: 0.0, weight_decay } if plain => {
                let rate = learning_rate.value() * scale;
                Some((rate as f32, (1.0 - rate * weight_decay) as f32))
            }
            _ => None,
        };
        Ok(())
    }

    fn learn(&mut self, data: &View, rows: &[u32], of: usize, mode: Mode) -> Result<Seen, LearnError> {
        self.forward(data, rows, mode);
        let seen = self.judge(data, rows, 1.0 / of as f32)?;
        match self.fused {
            Some((rate, keep)) => {
                let Self { chain, parameters, inputs, .. } = self;
                chain.back(rows.len(), Weights::Descend { parameters, rate, keep }, inputs, None);
            }
            None => {
                self.backward(rows.len(), if self.begun { 1.0 } else { 0.0 });
                self.begun = true;
            }
        }
        Ok(seen)
    }

    fn step(&mut self) -> Result<(), LearnError> {
        if std::mem::take(&mut self.begun) {
            self.descend();
        }
        Ok(())
    }

    fn measure(&mut self, data: &View, rows: &[u32]) -> Result<Seen, LearnError> {
        self.forward(data, rows, Mode::Evaluate);
        self.judge(data, rows, 1.0)
    }

    fn example(
        &mut self,
        data: &View,
        row: u32,
        seed: Seed,
        gradient: &mut [f32],
    ) -> Result<Seen, LearnError> {
        let mode = Mode::Train(seed.derive(Purpose::Train, Round(row), None));
        self.forward(data, &[row], mode);
        let seen = self.judge(data, &[row], 1.0)?;
        self.backward(1, 0.0);
        self.chain.export(&self.gradient, gradient);
        Ok(seen)
    }

    fn follow(&mut self, gradient: &mut [f32]) -> Result<(), LearnError> {
        self.gradient.resize(self.parameters.len(), 0.0);
        self.chain.import(gradient, &mut self.gradient);
        self.descend();
        Ok(())
    }
}

/// The L2 norm, summed in f64.
fn norm(values: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let square = |value: &f32| f64::from(*value) * f64::from(*value);
            let mut lanes = [0.0f64; 8];
            for block in values.chunks(8) {
                lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += square(value));
            }
            lanes.iter().sum::<f64>().sqrt()
        },
    )
}
