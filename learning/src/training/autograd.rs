//! The way by candle's automatic differentiation: any model, any device.

use candle_core::{Device, Result, Tensor, Var};
use protocol::{Layout, LearnError, Loss, Purpose, Round, Seed, Spec};

use super::batches::Batch;
use super::engine::{Engine, Seen, is_correct};
use super::failed;
use super::gradients::{Proximal, StepGradient};
use crate::View;
use crate::model::{Mode, Model};
use crate::ops::{self, Truth, edit_floats, with_floats};
use crate::optimizer::Optimizer;

/// A model on candle and the optimizer of its variables.
pub(super) struct Autograd {
    model: Box<dyn Model>,
    /// In layout order.
    vars: Vec<Var>,
    layout: Layout,
    device: Device,
    loss: Loss,
    optimizer: Option<Optimizer>,
    proximal: Option<Proximal>,
    norm_max: Option<f64>,
    gradient: Option<StepGradient>,
}

impl Autograd {
    pub(super) fn new(model: Box<dyn Model>, spec: &Spec, layout: Layout, device: Device) -> Self {
        let vars = model.tensors().into_iter().map(|(_, var)| var).collect();
        let (optimizer, proximal, norm_max, gradient) = (None, None, None, None);
        let loss = spec.loss();
        Self { model, vars, layout, device, loss, optimizer, proximal, norm_max, gradient }
    }

    /// Runs a batch forward: the mean loss as a tensor, and what was seen.
    fn forward(
        &self,
        data: &View,
        rows: &[u32],
        mode: Mode,
    ) -> std::result::Result<(Tensor, Seen), LearnError> {
        let batch = Batch::gather(data, rows, self.loss, &self.device)?;
        let run = || {
            let outputs = self.model.forward(&batch.inputs, mode)?;
            let mean = ops::loss(self.loss, &outputs, &batch.targets)?;
            let loss = f64::from(mean.to_scalar::<f32>()?);
            let correct = count_correct(self.loss, &outputs, &batch.targets)?;
            Ok((mean, Seen { loss, correct }))
        };
        run().map_err(failed)
    }

    /// The gradient of the mean loss for every variable.
    fn gradients(&self, mean: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut store = mean.backward()?;
        Ok(self.vars.iter().map(|var| store.remove(var)).collect())
    }

    fn descend(&mut self, gradient: StepGradient) -> Result<()> {
        let gradients = gradient.finish(&self.vars, self.proximal.as_ref(), self.norm_max)?;
        match &mut self.optimizer {
            Some(optimizer) => optimizer.step(&gradients),
            None => Ok(()),
        }
    }
}

impl Engine for Autograd {
    fn load(&mut self, parameters: &[f32]) -> std::result::Result<(), LearnError> {
        for (var, tensor) in self.vars.iter().zip(self.layout.tensors()) {
            let values = &parameters[tensor.range()];
            let set = if var.device().is_cpu() {
                edit_floats(var, |target| target.copy_from_slice(values))
            } else {
                Tensor::from_slice(values, var.shape(), var.device()).and_then(|values| var.set(&values))
            };
            set.map_err(failed)?;
        }
        Ok(())
    }

    fn store(&mut self, parameters: &mut [f32]) -> std::result::Result<(), LearnError> {
        for (var, tensor) in self.vars.iter().zip(self.layout.tensors()) {
            copy(Some(var), &mut parameters[tensor.range()]).map_err(failed)?;
        }
        Ok(())
    }

    fn begin(&mut self, spec: &Spec, scale: f64) -> std::result::Result<(), LearnError> {
        self.gradient = None;
        self.norm_max = spec.training.gradient_norm_max.map(|norm| norm.value());
        self.proximal = Proximal::from_here(spec.proximal_mu, &self.vars).map_err(failed)?;
        self.optimizer = Some(Optimizer::new(&spec.training.optimizer, scale, &self.vars).map_err(failed)?);
        Ok(())
    }

    fn learn(
        &mut self,
        data: &View,
        rows: &[u32],
        _of: usize,
        mode: Mode,
    ) -> std::result::Result<Seen, LearnError> {
        let (mean, seen) = self.forward(data, rows, mode)?;
        let gradients = self.gradients(&mean).map_err(failed)?;
        match &mut self.gradient {
            Some(sum) => sum.add(gradients, rows.len()).map_err(failed)?,
            None => self.gradient = Some(StepGradient::new(gradients, rows.len())),
        }
        Ok(seen)
    }

    fn step(&mut self) -> std::result::Result<(), LearnError> {
        match self.gradient.take() {
            Some(gradient) => self.descend(gradient).map_err(failed),
            None => Ok(()),
        }
    }

    fn measure(&mut self, data: &View, rows: &[u32]) -> std::result::Result<Seen, LearnError> {
        Ok(self.forward(data, rows, Mode::Evaluate)?.1)
    }

    fn example(
        &mut self,
        data: &View,
        row: u32,
        seed: Seed,
        gradient: &mut [f32],
    ) -> std::result::Result<Seen, LearnError> {
        let mode = Mode::Train(seed.derive(Purpose::Train, Round(row), None));
        let (mean, seen) = self.forward(data, &[row], mode)?;
        let gradients = self.gradients(&mean).map_err(failed)?;
        for (tensor, found) in self.layout.tensors().iter().zip(gradients) {
            copy(found.as_ref(), &mut gradient[tensor.range()]).map_err(failed)?;
        }
        Ok(seen)
    }

    fn follow(&mut self, gradient: &mut [f32]) -> std::result::Result<(), LearnError> {
        let tensors = self.layout.tensors().iter().map(|tensor| {
            Tensor::from_slice(&gradient[tensor.range()], &tensor.shape[..], &self.device).map(Some)
        });
        let gradients = tensors.collect::<Result<_>>().map_err(failed)?;
        self.descend(StepGradient::new(gradients, 1)).map_err(failed)
    }
}

/// Copies a tensor's values; none means zero.
fn copy(found: Option<&Tensor>, target: &mut [f32]) -> Result<()> {
    let Some(found) = found else {
        target.fill(0.0);
        return Ok(());
    };
    if found.device().is_cpu() {
        return with_floats(&found.contiguous()?, |values| {
            target.copy_from_slice(values);
            Ok(())
        });
    }
    target.copy_from_slice(&found.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

/// How many outputs name the right class.
fn count_correct(kind: Loss, outputs: &Tensor, targets: &Tensor) -> Result<u64> {
    let width = outputs.dim(1)?;
    let outputs = outputs.flatten_all()?.to_vec1::<f32>()?;
    let truths: Vec<Truth> = match kind {
        Loss::CrossEntropy => targets.to_vec1::<u32>()?.into_iter().map(Truth::Class).collect(),
        Loss::BinaryCrossEntropy => targets.to_vec1::<f32>()?.into_iter().map(Truth::Real).collect(),
        Loss::MeanSquared | Loss::Auto => Vec::new(),
    };
    let correct = outputs.chunks_exact(width).zip(truths);
    Ok(correct.filter(|(outputs, truth)| is_correct(kind, outputs, *truth)).count() as u64)
}
