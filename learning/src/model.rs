//! What a model is to the trainer, the families that come with the framework, and how a program adds its own.
//!
//! A model's variables are listed in layout order by the model itself: candle's `VarMap` iterates in random order and is
//! not used here. Nothing here reads data.

mod network;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use protocol::{
    Decline, Layout, LayoutError, LearnError, ModelSpec, PARAMETERS_MAX, Purpose, Round, Seed, Spec,
    VALUES_TENSOR,
};
use rand_chacha::ChaCha20Rng;

pub(crate) use plan::{Kind, Planned, Shape, Start, Step, steps};

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Training: dropout draws from this seed, which differs from step to step.
    Train(Seed),
    /// Evaluation: nothing is drawn.
    Evaluate,
}

impl Mode {
    /// The generator of one layer's masks in this pass; none in evaluation.
    pub fn generator(self, layer: u32) -> Option<ChaCha20Rng> {
        match self {
            Self::Train(seed) => Some(seed.derive(Purpose::Train, Round(layer), None).generator()),
            Self::Evaluate => None,
        }
    }
}

/// A model on candle. Implement it for your own, register a builder, and name it in the plan (`[model.custom]`).
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use learning::{Mode, Model, Trainer, ops};
///
/// struct Mine(Var, Var);
///
/// impl Model for Mine {
///     fn tensors(&self) -> Vec<(String, Var)> {
///         vec![("layer.weight".into(), self.0.clone()), ("layer.bias".into(), self.1.clone())]
///     }
///     fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
///         ops::linear(&ops::dropout(x, 0.1, mode, 0)?, &self.0, &self.1, ops::Activation::Identity)
///     }
/// }
///
/// let trainer = Trainer::without_data(Device::Cpu).with_model("mine", |spec, device| {
///     let weight = Var::zeros((spec.outputs(), spec.input_shape()[0]), DType::F32, device)?;
///     Ok(Box::new(Mine(weight, Var::zeros(spec.outputs(), DType::F32, device)?)))
/// });
/// ```
///
/// Unlike [`crate::ops`], candle's own products use as many threads as `RAYON_NUM_THREADS` says; set it to 1 where several
/// trainers share a machine.
pub trait Model: Send {
    /// The variables and their names in layout order: always the same variables in the same order, each contiguous f32.
    fn tensors(&self) -> Vec<(String, Var)>;

    /// Outputs `[batch, outputs]` of `x`, `[batch, ...]` with the shape of one sample. Must be differentiable in every
    /// variable, and must not draw randomness except from `mode` (see [`crate::ops::dropout`]).
    ///
    /// # Errors
    /// When candle fails.
    fn forward(&self, x: &Tensor, mode: Mode) -> candle_core::Result<Tensor>;
}

/// Why a model cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No builder of that name.
    #[error("no model is called `{name}`; this program knows {known}: register a builder under that name")]
    Unknown {
        /// The name in the plan.
        name: String,
        /// The names that have builders.
        known: String,
    },
    /// A method's values are computed, not run.
    #[error(
        "the values of a plan's method map no record to an output: they are not trained, evaluated or exported"
    )]
    Values,
    /// An external model is computed by a program of the site's own.
    #[error(
        "the plan's model is external: only a site's own program (`[learner]` in its site.toml) trains and evaluates it; such models are not \
         exported, since nothing here knows what computes with them"
    )]
    External,
    /// More parameters than allowed.
    #[error("the model has more than {PARAMETERS_MAX} parameters; choose a smaller one")]
    TooLarge,
    /// A cnn on samples that are not images.
    #[error(
        "a cnn needs samples of [channels, height, width] that its poolings leave something of, not {0:?}"
    )]
    NotAnImage(Vec<usize>),
    /// A layer that cannot work on what comes before it.
    #[error("`{layer}` needs {needs}, and is given {given}; change the layers or the shape of the records")]
    Misfit {
        /// The layer's name in the plan.
        layer: String,
        /// What it works on.
        needs: String,
        /// What it would get.
        given: String,
    },
    /// The tensors make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// candle failed.
    #[error("the model cannot be built: {0}")]
    Candle(String),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(first_line(&error))
    }
}

impl From<ModelError> for LearnError {
    fn from(error: ModelError) -> Self {
        Self::new(Decline::Unsupported, error.to_string())
    }
}

type Builder = dyn Fn(&Spec, &Device) -> candle_core::Result<Box<dyn Model>> + Send + Sync;

/// The models a program knows: the built-in families, and its own by name.
#[derive(Clone, Default)]
pub struct Models {
    builders: BTreeMap<String, Arc<Builder>>,
}

impl Models {
    /// The built-in families alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a model for `ModelSpec::Custom { name }`; a second one of the same name replaces the first.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<String>,
        build: impl Fn(&Spec, &Device) -> candle_core::Result<Box<dyn Model>> + Send + Sync + 'static,
    ) -> Self {
        self.builders.insert(name.into(), Arc::new(build));
        self
    }

    /// Builds the model of a spec. The values of its variables are unspecified until parameters are loaded.
    ///
    /// # Errors
    /// [`ModelError`] when the model is unknown, too large, or does not fit the samples.
    pub fn build(&self, spec: &Spec, device: &Device) -> Result<Box<dyn Model>, ModelError> {
        match &spec.model {
            ModelSpec::Custom { name } => {
                let unknown = || ModelError::Unknown {
                    name: name.clone(),
                    known: match self.builders.is_empty() {
                        true => "no custom models".into(),
                        false => self.builders.keys().cloned().collect::<Vec<_>>().join(", "),
                    },
                };
                let model = self.builders.get(name).ok_or_else(unknown)?(spec, device)?;
                Ok(model)
            }
            ModelSpec::Values { .. } => Err(ModelError::Values),
            ModelSpec::External(_) => Err(ModelError::External),
            _ => {
                self.layout_of(spec)?;
                Ok(Box::new(network::Network::build(spec, device)?))
            }
        }
    }

    /// The layout of a spec's model, with the spec's personal layers kept at the sites.
    ///
    /// # Errors
    /// [`ModelError`] as for [`Models::build`], or when a personal layer does not exist.
    pub fn layout_of(&self, spec: &Spec) -> Result<Layout, ModelError> {
        let layout = match steps(spec)? {
            None if let ModelSpec::Values { shape } = &spec.model => {
                Layout::new([(VALUES_TENSOR.to_owned(), shape.clone())])?
            }
            None if let ModelSpec::External(model) = &spec.model => {
                Layout::new(model.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())))?
            }
            None => layout_of_model(self.build(spec, &Device::Cpu)?.as_ref())?,
            Some(steps) => {
                let tensors = steps.iter().flat_map(Step::tensors);
                Layout::new(tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone())))?
            }
        };
        if layout.len() as u64 > PARAMETERS_MAX {
            return Err(ModelError::TooLarge);
        }
        Ok(layout.with_personal(&spec.personal_layers)?)
    }
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.builders.keys()).finish()
    }
}

/// The layout of a spec with a built-in model; for custom ones see [`Models::layout_of`].
///
/// # Errors
/// [`ModelError`] when the model is custom, too large or does not fit the samples, or a personal layer does not exist.
pub fn layout_of(spec: &Spec) -> Result<Layout, ModelError> {
    Models::new().layout_of(spec)
}

/// What candle says, without the backtrace that it appends when one is asked for.
pub(crate) fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The layout of a built model, all of it shared.
fn layout_of_model(model: &dyn Model) -> Result<Layout, LayoutError> {
    Layout::new(model.tensors().into_iter().map(|(name, var)| (name, var.dims().to_vec())))
}

#[cfg(test)]
mod tests;
