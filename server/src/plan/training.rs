//! How sites train, as typed.

use protocol::{GradientPath, Loss, OptimizerSpec, Positive, SpecError, TrainingSpec};
use serde::{Deserialize, Serialize};

/// The table `[training]` as typed. A model that this program trains needs a batch size and an optimizer; an external learner has its own, and
/// is told the epochs and the batch size alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Passes over the local data a round; 1 by default.
    pub epochs: u32,
    /// Samples a step; 0 takes all samples in one batch.
    pub batch_size: Option<usize>,
    /// The loss.
    pub loss: Loss,
    /// The optimizer at the site.
    pub optimizer: Option<OptimizerSpec>,
    /// Gradients longer than this L2 norm are scaled down to it.
    pub gradient_norm_max: Option<Positive>,
    /// Batches whose gradients are averaged into one step; 1 by default.
    pub accumulate: u32,
    /// How gradients are computed.
    #[serde(skip_serializing_if = "GradientPath::is_auto")]
    pub gradient: GradientPath,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_size: None,
            loss: Loss::Auto,
            optimizer: None,
            gradient_norm_max: None,
            accumulate: 1,
            gradient: GradientPath::Auto,
        }
    }
}

impl TrainingConfig {
    /// The training of a model that this program computes with.
    pub(super) fn built_in(self) -> Result<TrainingSpec, SpecError> {
        let missing = |key: &str| SpecError::new("training", format!("missing field `{key}`"));
        let Self { epochs, batch_size, loss, optimizer, gradient_norm_max, accumulate, gradient } = self;
        let batch_size = batch_size.ok_or_else(|| missing("batch_size"))?;
        let optimizer = optimizer.ok_or_else(|| missing("optimizer"))?;
        Ok(TrainingSpec { epochs, batch_size, loss, optimizer, gradient_norm_max, accumulate, gradient })
    }

    /// The training of an external learner.
    pub(super) fn external(self) -> Result<TrainingSpec, SpecError> {
        let usual = Self { epochs: self.epochs, batch_size: self.batch_size, ..Self::default() };
        let typed = [
            ("loss", self.loss != usual.loss),
            ("optimizer", self.optimizer.is_some()),
            ("gradient_norm_max", self.gradient_norm_max.is_some()),
            ("accumulate", self.accumulate != usual.accumulate),
            ("gradient", self.gradient != usual.gradient),
        ];
        if let Some((key, _)) = typed.into_iter().find(|(_, is_typed)| *is_typed) {
            let message = "an external learner trains by a loop of its own and ignores this; leave it out, or give the script what it needs by \
                           `[learner.config]`";
            return Err(SpecError::new(format!("training.{key}"), message));
        }
        let batch_size = self.batch_size.unwrap_or(0);
        Ok(TrainingSpec { epochs: self.epochs, batch_size, ..TrainingSpec::unused() })
    }
}
