//! How a site trains: the passes, the loss, the optimizer, and how gradients are computed.

use serde::{Deserialize, Serialize};

use super::Positive;

/// How a site trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// Passes over the local data a round.
    #[serde(default = "single")]
    pub epochs: u32,
    /// Samples a step; the last batch of a pass may be smaller. 0 takes all samples in one batch.
    pub batch_size: usize,
    /// The loss; by default cross-entropy for classes and mean squared error for a real target.
    #[serde(default)]
    pub loss: Loss,
    /// The optimizer at the site; its state starts anew each round.
    pub optimizer: OptimizerSpec,
    /// Gradients longer than this L2 norm are scaled down to it, before the optimizer.
    #[serde(default)]
    pub gradient_norm_max: Option<Positive>,
    /// Batches whose gradients are averaged into one step.
    #[serde(default = "single")]
    pub accumulate: u32,
    /// How gradients are computed. All sites go the same way, since the two round differently.
    #[serde(default, skip_serializing_if = "GradientPath::is_auto")]
    pub gradient: GradientPath,
}

impl TrainingSpec {
    /// What stands in the spec of a method that trains nothing. No number of it means anything.
    pub fn unused() -> Self {
        let learning_rate = Positive::new(1.0).expect("1 is positive");
        Self {
            epochs: 1,
            batch_size: 0,
            loss: Loss::Auto,
            optimizer: OptimizerSpec::Sgd { learning_rate, momentum: 0.0, weight_decay: 0.0 },
            gradient_norm_max: None,
            accumulate: 1,
            gradient: GradientPath::Auto,
        }
    }
}

/// How gradients are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientPath {
    /// In closed form where the model is made of layers and the device is the CPU, else by automatic differentiation.
    #[default]
    Auto,
    /// In closed form; refused for custom models and other devices.
    ClosedForm,
    /// By candle's automatic differentiation.
    Autograd,
}

impl GradientPath {
    /// Whether the plan leaves it to the program.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

fn single() -> u32 {
    1
}

/// The loss of a batch: the mean over its samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy for classes, mean squared error for a real target.
    #[default]
    Auto,
    /// Softmax cross-entropy; one output a class.
    CrossEntropy,
    /// Sigmoid cross-entropy; one output, two classes.
    BinaryCrossEntropy,
    /// Mean squared error; one output.
    MeanSquared,
}

/// The optimizer at a site.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent: `v = momentum * v + g + weight_decay * w; w = w - learning_rate * v`.
    Sgd {
        /// Step length; the schedule of the plan scales it.
        learning_rate: Positive,
        /// From 0 up to but not including 1.
        #[serde(default)]
        momentum: f64,
        /// L2 decay, at least 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma, Ba 2015).
    Adam {
        /// Step length; the schedule of the plan scales it.
        learning_rate: Positive,
    },
    /// AdamW (Loshchilov, Hutter 2019).
    #[serde(rename = "adamw")]
    AdamW {
        /// Step length; the schedule of the plan scales it.
        learning_rate: Positive,
        /// Decoupled decay, at least 0.
        #[serde(default)]
        weight_decay: f64,
    },
}
