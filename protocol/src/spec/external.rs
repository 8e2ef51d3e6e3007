//! Models that an external learner holds: what a plan says of them, and what it gives the learner.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DataSpec, ModelSpec, Spec, SpecError};
use crate::bounds::{DIMENSIONS_MAX, PARAMETERS_MAX, TEXT_MAX};

/// Tensors of a model, at most.
pub const EXTERNAL_TENSORS_MAX: usize = 10_000;
/// Bytes of `[learner.config]` as JSON, at most.
pub const CONFIG_MAX: usize = 64 << 10;
/// Further metrics, at most.
pub const EXTERNAL_METRICS_MAX: usize = 32;

/// A model of which the framework knows the tensors alone: what computes with them is the site's own program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalModel {
    /// The safetensors file that the run begins with, by its path from the plan's folder.
    pub start: String,
    /// Its tensors, in the order of the file. A plan leaves them out: they are read from the file when the run is submitted or simulated, and
    /// travel with every task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<ExternalTensor>,
}

/// A tensor of f32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalTensor {
    /// Unique in its model.
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<usize>,
}

impl ExternalTensor {
    /// Number of values; `None` where nobody can count them.
    pub fn count(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |all, side| all.checked_mul(*side as u64))
    }
}

/// What a plan says to external learners: the table `[learner]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnerSpec {
    /// A free table, given to the learner as it is.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Names of further metrics that the learner may tell, beside `loss` and `accuracy`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
}

impl LearnerSpec {
    /// Whether a plan has no such table.
    pub fn is_absent(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), SpecError> {
        let bytes = Value::from(self.config.clone()).to_string().len();
        if bytes > CONFIG_MAX {
            let message = format!("{bytes} bytes as JSON; at most {CONFIG_MAX} travel with every task");
            return Err(SpecError::new("learner.config", message));
        }
        self.config
            .iter()
            .try_for_each(|(name, value)| check_config(&format!("learner.config.{name}"), value))?;
        let wrong = |message: String| Err(SpecError::new("learner.metrics", message));
        if self.metrics.len() > EXTERNAL_METRICS_MAX {
            return wrong(format!(
                "{} names; at most {EXTERNAL_METRICS_MAX} are allowed",
                self.metrics.len()
            ));
        }
        let mut seen = BTreeSet::from(["loss", "accuracy", "examples", "seconds"]);
        for name in &self.metrics {
            let is_word =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
            if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
                return wrong(format!("`{name}` is no name of a metric: 1 to 64 of a-z, 0-9 and _"));
            }
            if !seen.insert(name) {
                return wrong(format!("`{name}` is named twice, or is one that every run has"));
            }
        }
        Ok(())
    }
}

/// What a file may say and JSON cannot: numbers that are not finite, and dates.
fn check_config(key: &str, value: &Value) -> Result<(), SpecError> {
    match value {
        Value::Null => Err(SpecError::new(
            key,
            "an infinity, or not a number, has no form in which it could travel; give a finite number or a text",
        )),
        Value::Array(all) => {
            all.iter().enumerate().try_for_each(|(place, one)| check_config(&format!("{key}.{place}"), one))
        }
        Value::Object(table) if table.contains_key("$__toml_private_datetime") => {
            Err(SpecError::new(key, "a date travels as a text; write it in quotation marks"))
        }
        Value::Object(table) => {
            table.iter().try_for_each(|(name, one)| check_config(&format!("{key}.{name}"), one))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// What a plan with an external model says of it.
#[derive(Clone, Copy, Debug)]
pub struct External<'a> {
    /// The model's tensors.
    pub tensors: &'a [ExternalTensor],
    /// What the learner is given.
    pub learner: &'a LearnerSpec,
}

impl ExternalModel {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let wrong = |message: String| Err(SpecError::new("model.external", message));
        if self.start.is_empty() || self.start.len() > TEXT_MAX {
            let message =
                "name the safetensors file that the run begins with, as `consortia.save_initial` writes it";
            return Err(SpecError::new("model.external.start", message));
        }
        if self.tensors.len() > EXTERNAL_TENSORS_MAX {
            return wrong(format!(
                "{} tensors; at most {EXTERNAL_TENSORS_MAX} are allowed",
                self.tensors.len()
            ));
        }
        let (mut names, mut parameters) = (BTreeSet::new(), 0u64);
        for tensor in &self.tensors {
            let ExternalTensor { name, shape } = tensor;
            if name.is_empty() || name.len() > TEXT_MAX {
                return wrong(format!(
                    "a tensor's name has {} bytes; 1 to {TEXT_MAX} are allowed",
                    name.len()
                ));
            }
            if !names.insert(&**name) {
                return wrong(format!("two tensors are named `{name}`"));
            }
            if shape.len() > DIMENSIONS_MAX || shape.contains(&0) {
                return wrong(format!(
                    "tensor `{name}` has shape {shape:?}; at most {DIMENSIONS_MAX} sides are allowed, each above 0"
                ));
            }
            let count = tensor.count().and_then(|count| parameters.checked_add(count));
            parameters = match count.filter(|all| *all <= PARAMETERS_MAX) {
                Some(all) => all,
                None => return wrong(format!("more than {PARAMETERS_MAX} parameters, at tensor `{name}`")),
            };
        }
        Ok(())
    }

    /// Whether its start file was read.
    pub fn is_known(&self) -> bool {
        !self.tensors.is_empty()
    }

    /// Values of all tensors together.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().filter_map(ExternalTensor::count).fold(0, u64::saturating_add)
    }
}

impl Spec {
    /// That model and records go together: an external learner reads its own records, and nobody else does.
    pub(super) fn check_external(&self) -> Result<(), SpecError> {
        match (&self.model, &self.data) {
            (ModelSpec::External(_), DataSpec::Own) if !self.personal_layers.is_empty() => {
                let message = "which tensors of an external model stay at the sites is for its script to say (`personal=`); leave this out";
                Err(SpecError::new("personal_layers", message))
            }
            (ModelSpec::External(model), DataSpec::Own) => {
                model.check()?;
                self.learner.check()
            }
            (ModelSpec::External(_), _) => {
                let message = "an external learner reads its own records; leave `[data]` out";
                Err(SpecError::new("data", message))
            }
            (_, DataSpec::Own) => {
                let message = "say what a record looks like: `[data.table]` or `[data.tensor]`";
                Err(SpecError::new("data", message))
            }
            _ if !self.learner.is_absent() => {
                let message = "`[learner]` is for plans whose model is `external`";
                Err(SpecError::new("learner", message))
            }
            _ => Ok(()),
        }
    }

    /// What a plan with an external model says of it; `None` for the models of this program.
    pub fn external(&self) -> Option<External<'_>> {
        match &self.model {
            ModelSpec::External(model) => Some(External { tensors: &model.tensors, learner: &self.learner }),
            _ => None,
        }
    }

    /// The names of the further metrics that answers to trainings and evaluations carry; none where the plan keeps metrics at the sites.
    pub fn further_metrics(&self) -> &[String] {
        if self.privacy.hides_metrics() { &[] } else { &self.learner.metrics }
    }

    /// The same of a plan with an external model, with the tensors of its start file.
    ///
    /// # Errors
    /// [`SpecError`] when the model is not external, or its tensors are too many, too large or named twice.
    pub fn with_tensors(
        mut self,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self, SpecError> {
        let ModelSpec::External(model) = &mut self.model else {
            let message = "only an external model begins with the tensors of a file";
            return Err(SpecError::new("model", message));
        };
        let tensor = |(name, shape)| ExternalTensor { name, shape };
        model.tensors = tensors.into_iter().map(tensor).collect();
        if !model.is_known() {
            let message = format!("{} has no tensors; there is nothing to train", model.start);
            return Err(SpecError::new("model.external.start", message));
        }
        self.checked()
    }
}
