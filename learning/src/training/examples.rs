//! The gradients of single records, each the same whichever other records are in the batch.
//!
//! Built-in networks on the CPU have a pass of their own, without a graph; every other model runs forward and backward on a
//! batch of one. A model of one's own must not carry anything from one record to the next: a running statistic would
//! smuggle records past the noise.

#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor};
use protocol::{Layout, LearnError, Loss, Purpose, Round, Seed};

use super::batches::Batch;
use super::steps::{Pass, is_correct};
use super::{Resident, failed};
use crate::layers::{self, Chain, Weights};
use crate::model::{Mode, steps};
use crate::ops::with_floats;
use crate::ops::{Truth, loss_of_one};
use crate::{Dataset, Labels};

/// A site's records before the resident model.
pub(super) struct Examples<'a> {
    pub(super) resident: &'a Resident,
    pub(super) data: &'a Dataset,
    layout: &'a Layout,
    device: &'a Device,
    loss: Loss,
    fast: Option<Fast>,
}

/// A model's layers in closed form, given one record at a time, so that no sum mixes records.
struct Fast {
    chain: Chain,
    /// In the layers' own order.
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    /// In layout order.
    natural: Vec<f32>,
}

/// What one record's pass showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) loss: f64,
    pub(super) correct: bool,
}

impl<'a> Examples<'a> {
    /// The records of `data`, at least one, before the resident model.
    ///
    /// # Errors
    /// When the labels do not fit the loss or the model does not fit the samples.
    pub(super) fn new(
        resident: &'a Resident,
        layout: &'a Layout,
        data: &'a Dataset,
        device: &'a Device,
    ) -> std::result::Result<Self, LearnError> {
        let loss = resident.spec.loss();
        Batch::gather(data, &[0], loss, device)?;
        let chain = match steps(&resident.spec)? {
            Some(steps) if device.is_cpu() => layers::build(&steps, 1),
            _ => None,
        };
        let zeros = || vec![0.0; layout.len()];
        let fast =
            chain.map(|chain| Fast { chain, parameters: zeros(), gradient: zeros(), natural: zeros() });
        Ok(Self { resident, data, layout, device, loss, fast })
    }

    /// Number of parameters, and so the length of a gradient.
    pub(super) fn dimension(&self) -> usize {
        self.layout.len()
    }

    /// The layout of a gradient.
    pub(super) fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Where gradients are.
    pub(super) fn device(&self) -> &'a Device {
        self.device
    }

    /// Takes note that the parameters have changed. To be called before the first record of each step.
    ///
    /// # Errors
    /// When candle fails.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let Some(fast) = &mut self.fast else { return Ok(()) };
        self.resident.store(&mut fast.natural, self.layout)?;
        fast.chain.import(&fast.natural, &mut fast.parameters);
        Ok(())
    }

    /// Writes the gradient of the loss of record `row`, in layout order. `seed` is the step's: dropout takes from it and from
    /// the row alone.
    ///
    /// # Errors
    /// When candle fails.
    pub(super) fn gradient(
        &mut self,
        row: u32,
        seed: Seed,
        gradient: &mut [f32],
    ) -> std::result::Result<Seen, LearnError> {
        let Some(fast) = &mut self.fast else {
            return self.gradient_by_graph(row, seed, gradient);
        };
        let truth = match &self.data.labels {
            Labels::Classes(classes) => Truth::Class(classes[row as usize]),
            Labels::Real(values) => Truth::Real(values[row as usize]),
        };
        let x = self.data.sample(row as usize);
        let mode = Mode::Train(seed.derive(Purpose::Train, Round(row), None));
        fast.chain.run(1, mode, &fast.parameters, x);
        let (outputs, outputs_gradient) = fast.chain.results_and_gradient(1);
        let loss = loss_of_one(self.loss, outputs, truth, outputs_gradient);
        let correct = is_correct(self.loss, outputs, truth);
        let Fast { chain, parameters, gradient: own, .. } = fast;
        chain.back(1, Weights::Measure { parameters, gradient: own, keep: 0.0 }, x, None);
        chain.export(own, gradient);
        Ok(Seen { loss, correct })
    }

    /// The same for any model on any device.
    fn gradient_by_graph(
        &self,
        row: u32,
        seed: Seed,
        gradient: &mut [f32],
    ) -> std::result::Result<Seen, LearnError> {
        let batch = Batch::gather(self.data, &[row], self.loss, self.device)?;
        let mode = Mode::Train(seed.derive(Purpose::Train, Round(row), None));
        let pass = Pass::run(self.resident, &batch, self.loss, mode).map_err(failed)?;
        let gradients = pass.gradients(self.resident).map_err(failed)?;
        for (tensor, found) in self.layout.tensors().iter().zip(gradients) {
            copy(found.as_ref(), &mut gradient[tensor.range()]).map_err(failed)?;
        }
        Ok(Seen { loss: pass.loss, correct: pass.correct > 0 })
    }
}

/// Copies a variable's gradient; none means zero.
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
