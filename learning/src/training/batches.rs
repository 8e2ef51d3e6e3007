//! Batches: which rows, in which order, and as tensors.

use candle_core::{Device, Tensor};
use protocol::{Decline, LearnError, Loss};
use rand::Rng;

use super::failed;
use crate::{Labels, View};

/// Permutes rows uniformly (Fisher, Yates; Durstenfeld 1964).
pub(super) fn shuffle(rows: &mut [u32], generator: &mut impl Rng) {
    for last in (1..rows.len()).rev() {
        // A data set has at most u32::MAX rows; drawing u32 gives the same order on every machine.
        let other = generator.random_range(0..=last as u32) as usize;
        rows.swap(last, other);
    }
}

/// Rows as tensors.
pub(super) struct Batch {
    /// `[rows, ...]` with the shape of one sample.
    pub(super) inputs: Tensor,
    /// `[rows]`: u32 classes for cross-entropy, else f32.
    pub(super) targets: Tensor,
}

impl Batch {
    /// Copies `rows` of a view, by their places in it, to the device, with targets as `loss` (never `Auto`) takes them.
    ///
    /// # Errors
    /// When the labels do not fit the loss, or the device fails.
    pub(super) fn gather(data: &View, rows: &[u32], loss: Loss, device: &Device) -> Result<Self, LearnError> {
        let width = data.dataset.width();
        let mut features = vec![0.0; rows.len() * width];
        for (sample, row) in features.chunks_exact_mut(width).zip(rows) {
            data.copy_sample_into(*row as usize, sample);
        }
        let shape: Vec<usize> = [rows.len()].iter().chain(&data.dataset.shape).copied().collect();
        let count = rows.len();
        let targets = match (loss, data.labels_at(rows)) {
            (Loss::CrossEntropy, Labels::Classes(classes)) => Tensor::from_vec(classes, count, device),
            (Loss::BinaryCrossEntropy, Labels::Classes(classes)) => {
                let targets: Vec<f32> = classes.into_iter().map(|class| class as f32).collect();
                Tensor::from_vec(targets, count, device)
            }
            (Loss::MeanSquared, Labels::Real(values)) => Tensor::from_vec(values, count, device),
            (loss, labels) => {
                let message = format!("the loss {loss:?} does not fit the labels {labels:?}");
                return Err(LearnError::new(Decline::Data, message));
            }
        };
        let inputs = Tensor::from_vec(features, shape, device).map_err(failed)?;
        Ok(Self { inputs, targets: targets.map_err(failed)? })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::Seed;

    use super::*;
    use crate::Dataset;

    #[test]
    fn a_shuffle_keeps_every_row_and_its_order_is_the_same_on_every_machine() {
        let mut rows: Vec<u32> = (0..10).collect();
        shuffle(&mut rows, &mut Seed::from_number(1).generator());
        assert_eq!(rows, [8, 4, 0, 6, 7, 1, 5, 2, 3, 9]);
        rows.sort_unstable();
        assert_eq!(rows, (0..10).collect::<Vec<u32>>());
    }

    #[test]
    fn labels_that_do_not_fit_the_loss_are_refused() {
        let (features, labels) = (vec![0.0].into(), Labels::Real(vec![0.5]));
        let data = View::whole(Arc::new(Dataset { shape: vec![1], features, labels }));
        let error = Batch::gather(&data, &[0], Loss::CrossEntropy, &Device::Cpu).err().unwrap();
        assert_eq!(error.reason, Decline::Data);
        let batch = Batch::gather(&data, &[0, 0], Loss::MeanSquared, &Device::Cpu).unwrap();
        assert_eq!((batch.inputs.dims(), batch.targets.dims()), (&[2, 1][..], &[2][..]));
    }
}
