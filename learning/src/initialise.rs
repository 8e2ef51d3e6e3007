//! First values of a model from a seed.
//!
//! Weights are uniform within `1 / sqrt(fan_in)` of zero, and so is the bias of the same layer: Kaiming initialisation
//! (He et al. 2015, section 2.2) with the slope `sqrt 5` that PyTorch takes by default. Linear and logistic models start at
//! zero. candle's initialisers draw from a generator that cannot be seeded and are not used.

use candle_core::Device;
use protocol::{ModelSpec, Seed, Spec};
use rand::Rng;

use crate::model::{Model, ModelError, Models, Planned, Start, Step, steps};

/// The first full parameter vector, in layout order, of a spec with a built-in model; for custom ones see
/// [`Models::initial_parameters`].
///
/// # Errors
/// [`ModelError`] when the model cannot be built.
pub fn initial_parameters(spec: &Spec, seed: Seed) -> Result<Vec<f32>, ModelError> {
    Models::new().initial_parameters(spec, seed)
}

impl Models {
    /// The first full parameter vector of a spec, in layout order. The same seed gives the same values on every machine.
    ///
    /// In a custom model, tensors of two or more dimensions count as weights, and a tensor `x.bias` shares the range of
    /// `x.weight`; all others (the scale of a normalisation, say) keep the value their builder gave them.
    ///
    /// # Errors
    /// [`ModelError`] when the model cannot be built.
    pub fn initial_parameters(&self, spec: &Spec, seed: Seed) -> Result<Vec<f32>, ModelError> {
        match &spec.model {
            ModelSpec::Values { .. } => Ok(spread(self.layout_of(spec)?.len(), seed)),
            ModelSpec::External(_) => Err(ModelError::External),
            ModelSpec::Linear | ModelSpec::Logistic => Ok(vec![0.0; self.layout_of(spec)?.len()]),
            _ => {
                self.layout_of(spec)?;
                match steps(spec)? {
                    Some(steps) => Ok(draw(steps.iter().flat_map(Step::tensors).map(planned), seed)),
                    None => Ok(draw(built_by(self.build(spec, &Device::Cpu)?.as_ref())?, seed)),
                }
            }
        }
    }
}

/// Values of a method: uniform from -1 to 1, that is within one standard deviation where columns are standardised.
fn spread(len: usize, seed: Seed) -> Vec<f32> {
    let mut generator = seed.generator();
    (0..len).map(|_| generator.random_range(-1.0..1.0)).collect()
}

/// A tensor as its builder left it.
struct Built {
    name: String,
    shape: Vec<usize>,
    /// Empty where every value will be drawn.
    values: Vec<f32>,
}

/// A tensor that has a plan.
fn planned(tensor: &Planned) -> Built {
    let values = match tensor.start {
        Start::Drawn => Vec::new(),
        Start::Constant(value) => vec![f32::from(value); tensor.shape.iter().product()],
    };
    Built { name: tensor.name.clone(), shape: tensor.shape.clone(), values }
}

/// Every tensor of a built model.
fn built_by(model: &dyn Model) -> candle_core::Result<Vec<Built>> {
    let built = |(name, var): (String, candle_core::Var)| {
        Ok(Built { name, shape: var.dims().to_vec(), values: var.flatten_all()?.to_vec1()? })
    };
    model.tensors().into_iter().map(built).collect()
}

/// Draws in layout order; a tensor that is neither weight nor a weight's bias keeps its value.
fn draw(tensors: impl IntoIterator<Item = Built>, seed: Seed) -> Vec<f32> {
    let mut generator = seed.generator();
    let mut values = Vec::new();
    let mut last_weight: Option<(String, f32)> = None;
    for Built { name, shape, values: built } in tensors {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        let bound = match &last_weight {
            _ if shape.len() >= 2 => {
                let fan_in: usize = shape[1..].iter().product();
                Some(1.0 / (fan_in.max(1) as f32).sqrt())
            }
            Some((weight, bound)) if weight == layer && (name.ends_with(".bias") || built.is_empty()) => {
                Some(*bound)
            }
            _ => None,
        };
        let Some(bound) = bound else {
            values.extend(built);
            continue;
        };
        let count: usize = shape.iter().product();
        values.extend((0..count).map(|_| (generator.random::<f32>() * 2.0 - 1.0) * bound));
        last_weight = (shape.len() >= 2).then(|| (layer.to_owned(), bound)).or(last_weight);
    }
    values
}
