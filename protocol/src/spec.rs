//! What every site must know of a run: the model, the columns, the training and the lattice.
//!
//! The same types are read from `federation.toml` and travel as JSON inside a task, through the same checks: a value
//! that exists is in range. Enums are externally tagged (`[model.mlp]`), which keeps line numbers in TOML errors.

mod columns;
mod external;
mod lattice;
mod privacy;
mod records;
mod target;
mod training;

use serde::{Deserialize, Serialize};

pub use self::external::{
    CONFIG_MAX, EXTERNAL_METRICS_MAX, EXTERNAL_TENSORS_MAX, External, ExternalModel, ExternalTensor,
    LearnerSpec,
};
pub use target::{ClassName, Target, TargetSpec, flag_of};
pub use training::{GradientPath, Loss, OptimizerSpec, TrainingSpec};

use crate::config::with_short_numbers;
use crate::{BroadcastCodec, LayerSpec, PrivacySpec, UpdateCodec, layers};

/// A positive finite number (a learning rate, a norm).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Positive(f64);

impl Positive {
    /// Checks that `value` is finite and greater than zero.
    ///
    /// # Errors
    /// [`SpecError`] with the value.
    pub fn new(value: f64) -> Result<Self, SpecError> {
        let positive = value.is_finite() && value > 0.0;
        if positive {
            Ok(Self(value))
        } else {
            Err(SpecError::new("", format!("{value} is not a positive number")))
        }
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Positive {
    type Error = SpecError;
    fn try_from(value: f64) -> Result<Self, SpecError> {
        Self::new(value)
    }
}

impl From<Positive> for f64 {
    fn from(positive: Positive) -> Self {
        positive.0
    }
}

/// What a user typed does not make sense. `key` is the dotted path of the setting at fault, such as `training.epochs`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", key, if key.is_empty() { "" } else { ": " })]
pub struct SpecError {
    /// The setting at fault; empty when the value itself says enough.
    pub key: String,
    /// What is wrong with which value, and what to do.
    pub message: String,
}

impl SpecError {
    /// An error at `key`. A number of the message that has more digits than one reads is shown by a power of ten.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: with_short_numbers(&message.into()) }
    }
}

/// The model family. Inputs and outputs follow from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSpec {
    /// One linear layer; with a real target this is linear regression.
    Linear,
    /// One linear layer on class targets: logistic regression.
    Logistic,
    /// A multi-layer perceptron with ReLU.
    Mlp {
        /// Width of each hidden layer.
        hidden: Vec<usize>,
    },
    /// Convolutions (ReLU, 2x2 max-pool after each, zero padding that keeps the size), then one hidden dense layer.
    /// The defaults are the MNIST network of McMahan et al. 2017, section 3: 1,663,370 parameters.
    Cnn {
        /// Output channels of each convolution.
        #[serde(default = "cnn_channels")]
        channels: Vec<usize>,
        /// Side of the square kernels; odd.
        #[serde(default = "cnn_kernel")]
        kernel: usize,
        /// Width of the hidden dense layer.
        #[serde(default = "cnn_hidden")]
        hidden: usize,
    },
    /// Layers of one's own choice, in order; the dense layer that gives the outputs follows them by itself.
    Layers(Vec<LayerSpec>),
    /// A model that the embedding program builds itself, known to all sites under this name.
    Custom {
        /// The name.
        name: String,
    },
    /// What a method computes without gradients (the centres of clusters, say): one tensor [`VALUES_TENSOR`]. A plan does not name it; it
    /// follows from the plan's method.
    Values {
        /// The tensor's shape, each side above 0.
        shape: Vec<usize>,
    },
    /// A model that the site's own program computes with (an external learner).
    External(ExternalModel),
}

/// The one tensor of [`ModelSpec::Values`].
pub const VALUES_TENSOR: &str = "values";

fn cnn_channels() -> Vec<usize> {
    vec![32, 64]
}
fn cnn_kernel() -> usize {
    5
}
fn cnn_hidden() -> usize {
    512
}

/// What a record looks like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSpec {
    /// Rows and named columns, from CSV.
    Table(TableSpec),
    /// Arrays of one shape with class or real labels, from IDX or NumPy files.
    Tensor(TensorSpec),
    /// Records that an external learner reads by itself; a plan with an external model has no other. It is not typed and does not travel: it is what
    /// a plan without `[data]` has.
    #[default]
    #[serde(skip)]
    Own,
}

impl DataSpec {
    /// Shape of one sample as a model sees it, without the batch.
    pub fn input_shape(&self) -> Vec<usize> {
        match self {
            Self::Table(table) => {
                let categories = table.categorical.iter().map(|one| one.values.len()).sum::<usize>();
                vec![table.features.len() + categories]
            }
            Self::Tensor(tensor) => tensor.shape.clone(),
            Self::Own => Vec::new(),
        }
    }

    /// Whether an external learner reads the records.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own)
    }
}

/// Columns of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// The column to predict.
    pub label: String,
    /// What the label is.
    pub target: TargetSpec,
    /// Numeric feature columns, in order.
    #[serde(default, deserialize_with = "columns::listed")]
    pub features: Vec<String>,
    /// Categorical columns, one-hot encoded after the numeric ones.
    #[serde(default)]
    pub categorical: Vec<Categorical>,
    /// Where mean and standard deviation of the numeric columns come from.
    #[serde(default)]
    pub standardise: Standardise,
    /// What to do with empty cells (also `?`, `na`, `nan`, `n/a`, `null`, `none` and others).
    #[serde(default)]
    pub missing: Missing,
}

/// A categorical column. All sites must agree on its values, so they are listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Categorical {
    /// The column's name.
    pub column: String,
    /// Its values in the order of the one-hot coordinates; any other value becomes all zeros.
    pub values: Vec<String>,
}

/// Where the mean and standard deviation of numeric columns come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standardise {
    /// Columns are used as they are.
    #[default]
    None,
    /// From a statistics round over all sites.
    Federated,
    /// Each site from its own training data.
    Site,
    /// Given here, one number a feature.
    Given {
        /// Means.
        mean: Vec<f64>,
        /// Standard deviations, greater than zero.
        std: Vec<Positive>,
    },
}

/// What to do with a missing cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Missing {
    /// A missing cell is an error that names file, line and column.
    #[default]
    Refuse,
    /// The row is left out.
    Drop,
    /// The column's mean: the federated or given one where there is one, else the site's.
    Mean,
    /// This value, before standardisation.
    Constant(f64),
}

/// Arrays of one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Shape of one sample, such as `[1, 28, 28]`: channels, height, width.
    pub shape: Vec<usize>,
    /// What the label is.
    pub target: TargetSpec,
    /// Every value is divided by this (255 for bytes); 1 leaves them.
    #[serde(default = "one")]
    pub divide_by: Positive,
}

fn one() -> Positive {
    Positive(1.0)
}

/// What an update may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSpec {
    /// The largest L2 norm of one update; longer ones are scaled down at the site and refused at the server.
    pub norm_max: Positive,
    /// How updates are weighted in the mean.
    pub weights: Weighting,
    /// The most one client can count, in examples, when weighted by examples.
    pub weight_max: u32,
    /// How updates travel.
    #[serde(skip_serializing_if = "UpdateCodec::is_exact")]
    pub codec: UpdateCodec,
    /// How the model travels to sites.
    #[serde(skip_serializing_if = "BroadcastCodec::is_exact")]
    pub broadcast: BroadcastCodec,
}

impl Default for UpdateSpec {
    fn default() -> Self {
        Self {
            norm_max: Positive(100.0),
            weights: Weighting::Examples,
            weight_max: 1000,
            codec: UpdateCodec::Exact,
            broadcast: BroadcastCodec::Exact,
        }
    }
}

/// How updates are weighted in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// By the number of training examples, up to `weight_max` (McMahan et al. 2017).
    #[default]
    Examples,
    /// Every client counts the same.
    Uniform,
}

/// What every site must know of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The model.
    pub model: ModelSpec,
    /// The records.
    #[serde(default, skip_serializing_if = "DataSpec::is_own")]
    pub data: DataSpec,
    /// Local training.
    pub training: TrainingSpec,
    /// Bounds of an update.
    #[serde(default)]
    pub update: UpdateSpec,
    /// Layers, by the beginning of their tensors' names, that stay at the site.
    #[serde(default)]
    pub personal_layers: Vec<String>,
    /// FedProx (Li et al. 2020): weight of `mu / 2 * |w - w_global|^2` in the local objective; 0 is plain.
    #[serde(default)]
    pub proximal_mu: f64,
    /// The most updates one sum may hold; with `update` it fixes the lattice.
    pub cohort_max: u64,
    /// What is promised about privacy.
    #[serde(default, skip_serializing_if = "PrivacySpec::is_none")]
    pub privacy: PrivacySpec,
    /// On which of their records sites evaluate.
    #[serde(default, skip_serializing_if = "EvaluationRecords::are_test")]
    pub evaluation_records: EvaluationRecords,
    /// What external learners are told.
    #[serde(default, skip_serializing_if = "LearnerSpec::is_absent")]
    pub learner: LearnerSpec,
}

/// On which records a model is evaluated; neither are trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationRecords {
    /// Those for testing.
    #[default]
    Test,
    /// Those for validation: whoever chooses a model or a setting by what is measured has not looked at the test records.
    Validation,
}

impl EvaluationRecords {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn are_test(&self) -> bool {
        *self == Self::Test
    }

    /// As a plan says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }
}

impl Spec {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// [`SpecError`] names the setting at fault.
    pub fn checked(self) -> Result<Self, SpecError> {
        // First: everything after it may take time and memory that follows from these numbers.
        self.check_external()?;
        self.check_bounds()?;
        self.check_data()?;
        self.check_training()?;
        self.check_privacy()?;
        self.check_codec()?;
        match &self.model {
            ModelSpec::Mlp { hidden } if hidden.is_empty() || hidden.contains(&0) => Err(SpecError::new(
                "model.mlp.hidden",
                "give the width of at least one hidden layer, each above 0",
            )),
            ModelSpec::Cnn { channels, kernel, hidden } => self.check_cnn(channels, *kernel, *hidden),
            ModelSpec::Layers(layers) => layers::check(layers),
            ModelSpec::Values { shape } if shape.is_empty() || shape.contains(&0) => Err(SpecError::new(
                "model.values.shape",
                "give the shape of the method's values, each side above 0",
            )),
            ModelSpec::Logistic if self.target() == Target::Real => Err(SpecError::new(
                "model",
                "logistic regression needs classes; for a real target take `linear`",
            )),
            _ => Ok(()),
        }?;
        Ok(self)
    }

    /// The spec as JSON, as it travels.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every field has a JSON form")
    }

    /// Reads and checks a spec that came as JSON.
    ///
    /// # Errors
    /// [`SpecError`] says what is not understood or makes no sense.
    pub fn from_json(json: &str) -> Result<Self, SpecError> {
        serde_json::from_str::<Self>(json).map_err(|error| SpecError::new("", error.to_string()))?.checked()
    }

    /// What is predicted.
    pub fn target(&self) -> Target {
        match &self.data {
            DataSpec::Table(table) => table.target.target(),
            DataSpec::Tensor(tensor) => tensor.target.target(),
            DataSpec::Own => Target::Real,
        }
    }

    /// What each class is called, in the order of the model's outputs; empty for a real target.
    pub fn class_names(&self) -> Vec<String> {
        match &self.data {
            DataSpec::Table(table) => table.target.names(),
            DataSpec::Tensor(tensor) => tensor.target.names(),
            DataSpec::Own => Vec::new(),
        }
    }

    /// The loss with `auto` resolved.
    pub fn loss(&self) -> Loss {
        match (self.training.loss, self.target()) {
            (Loss::Auto, Target::Classes(_)) => Loss::CrossEntropy,
            (Loss::Auto, Target::Real) => Loss::MeanSquared,
            (chosen, _) => chosen,
        }
    }

    /// Whether the loss is a mean squared error, whose root is in the unit of the target. What the loss of an external learner is, only its
    /// script knows.
    pub fn is_squared(&self) -> bool {
        self.external().is_none() && self.loss() == Loss::MeanSquared
    }

    /// Shape of one sample as the model sees it, without the batch.
    pub fn input_shape(&self) -> Vec<usize> {
        self.data.input_shape()
    }

    /// Values the model gives for a sample.
    pub fn outputs(&self) -> usize {
        match (self.loss(), self.target()) {
            (Loss::CrossEntropy, Target::Classes(classes)) => classes,
            _ => 1,
        }
    }

    /// The names of the statistics that a statistics round sums: per numeric column the count of present cells, their
    /// sum and their sum of squares. Empty when the run needs no such round.
    pub fn statistics(&self) -> Vec<String> {
        match &self.data {
            DataSpec::Table(table) if table.standardise == Standardise::Federated => {
                let three =
                    |column: &String| ["count", "sum", "square"].map(|what| format!("{what}/{column}"));
                table.features.iter().flat_map(three).collect()
            }
            _ => Vec::new(),
        }
    }

    fn check_data(&self) -> Result<(), SpecError> {
        if let Target::Classes(classes) = self.target()
            && !(2..=100_000).contains(&classes)
        {
            return Err(SpecError::new(
                "data",
                format!("{classes} classes; give at least 2 and at most 100000"),
            ));
        }
        if let (DataSpec::Tensor(_), EvaluationRecords::Validation) = (&self.data, self.evaluation_records) {
            let message =
                "records = \"validation\" needs a table: arrays have training and test records alone";
            return Err(SpecError::new("evaluation.records", message));
        }
        match &self.data {
            DataSpec::Table(table) => table.check(),
            DataSpec::Tensor(tensor) if tensor.shape.is_empty() || tensor.shape.contains(&0) => {
                Err(SpecError::new("data.tensor.shape", "give the shape of one sample, each side above 0"))
            }
            DataSpec::Tensor(tensor) => tensor.check(),
            DataSpec::Own => Ok(()),
        }
    }

    fn check_training(&self) -> Result<(), SpecError> {
        let training = &self.training;
        if training.epochs == 0 {
            return Err(SpecError::new("training.epochs", "0 epochs train nothing; give at least 1"));
        }
        if training.accumulate == 0 {
            return Err(SpecError::new("training.accumulate", "0 batches make no step; give at least 1"));
        }
        let decay_at_least_zero = |decay: f64, key: &str| {
            let fine = decay.is_finite() && decay >= 0.0;
            if fine {
                Ok(())
            } else {
                Err(SpecError::new(key, format!("{decay} is not a decay; give 0 or more")))
            }
        };
        decay_at_least_zero(self.proximal_mu, "strategy.mu")?;
        match training.optimizer {
            OptimizerSpec::Sgd { momentum, .. } if !(0.0..1.0).contains(&momentum) => {
                let message = format!("{momentum} is not a momentum; give 0 or more and less than 1");
                return Err(SpecError::new("training.optimizer.sgd.momentum", message));
            }
            OptimizerSpec::Sgd { weight_decay, .. } => {
                decay_at_least_zero(weight_decay, "training.optimizer.sgd.weight_decay")?;
            }
            OptimizerSpec::AdamW { weight_decay, .. } => {
                decay_at_least_zero(weight_decay, "training.optimizer.adamw.weight_decay")?;
            }
            OptimizerSpec::Adam { .. } => {}
        }
        match (self.loss(), self.target()) {
            (Loss::CrossEntropy, Target::Classes(_))
            | (Loss::BinaryCrossEntropy, Target::Classes(2))
            | (Loss::MeanSquared, Target::Real) => Ok(()),
            (Loss::BinaryCrossEntropy, Target::Classes(classes)) => {
                let message =
                    format!("binary cross-entropy needs 2 classes, not {classes}; take `cross_entropy`");
                Err(SpecError::new("training.loss", message))
            }
            (loss, target) => {
                Err(SpecError::new("training.loss", format!("{loss:?} does not fit the target {target:?}")))
            }
        }
    }

    fn check_cnn(&self, channels: &[usize], kernel: usize, hidden: usize) -> Result<(), SpecError> {
        if channels.is_empty() || channels.contains(&0) || hidden == 0 {
            return Err(SpecError::new(
                "model.cnn",
                "channels and hidden must be above 0, with at least one channel",
            ));
        }
        if kernel.is_multiple_of(2) || kernel > 31 {
            let message =
                format!("a kernel of {kernel} has no centre or is too large; give an odd side up to 31");
            return Err(SpecError::new("model.cnn.kernel", message));
        }
        let [_, height, width] = self.input_shape()[..] else {
            return Err(SpecError::new("model", "a cnn needs samples of shape [channels, height, width]"));
        };
        if height.min(width) >> channels.len() == 0 {
            let message = format!("{} poolings leave nothing of {height} x {width}", channels.len());
            return Err(SpecError::new("model.cnn.channels", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
