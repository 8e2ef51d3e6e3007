//! The largest number and length of everything in a plan, checked before anything is computed or allocated from it.
//!
//! A [`Spec`] that exists is within these bounds, whether it was typed or came over the wire, so that what follows (the
//! sensitivity of correlated noise, a layout, a lattice, epsilon) takes a known time and memory at most. Nothing is built
//! here: a model's parameters are counted from its layers with checked arithmetic. `docs/federation.md` lists the bounds.

use crate::layers::{DEPTH_MAX, LAYERS_MAX};
use crate::{
    CentralPrivacy, ClassName, DataSpec, LayerSpec, ModelSpec, NoiseCorrelation, Spec, SpecError,
    Standardise, TableSpec,
};

/// Rounds of a run.
pub const ROUNDS_MAX: u32 = 1_000_000;
/// Rounds times bands of correlated noise: multiplications to find its sensitivity.
pub const BAND_ROUNDS_MAX: u64 = 1 << 24;
/// Bands of correlated noise, and buffers from which bands are made.
pub const BANDS_MAX: usize = 64;
/// Updates in one sum.
pub const COHORT_MAX: u64 = 1 << 20;
/// Parameters of a whole model, those that stay at the sites included.
pub const PARAMETERS_MAX: u64 = 1 << 30;
/// Values of one sample, before the first layer and after each.
pub const VALUES_MAX: u64 = 1 << 28;
/// Examples that one site can say it has measured.
pub const EXAMPLES_MAX: u64 = 1 << 48;
/// Bytes of a plan's text.
pub const PLAN_BYTES_MAX: usize = 1 << 20;
/// Bytes of a column's name, a category, a prefix of layers, a custom model's name.
pub(crate) const TEXT_MAX: usize = 256;
/// Columns of a table.
const COLUMNS_MAX: usize = 65_536;
/// Categories of all columns together.
const CATEGORIES_MAX: usize = 65_536;
/// Dimensions of a sample.
pub(crate) const DIMENSIONS_MAX: usize = 8;
/// Poolings of a cnn: each halves an image's sides.
const POOLINGS_MAX: usize = 32;
/// Layers that are named to stay at the sites.
const PERSONAL_MAX: usize = 1024;
/// Passes over the data, batches of a step.
const REPEATS_MAX: u32 = 1_000_000;
/// Samples of a batch.
const BATCH_MAX: usize = 1 << 30;

fn at_most(key: &str, what: &str, found: u64, most: u64) -> Result<(), SpecError> {
    if found <= most {
        return Ok(());
    }
    Err(SpecError::new(key, format!("{found} {what}; at most {most} are allowed")))
}

fn text(key: &str, what: &str, text: &str) -> Result<(), SpecError> {
    if text.len() <= TEXT_MAX {
        return Ok(());
    }
    let begin: String = text.chars().take(40).collect();
    let message = format!("{what} `{begin}...` has {} bytes; at most {TEXT_MAX} are allowed", text.len());
    Err(SpecError::new(key, message))
}

impl Spec {
    /// Checks that every number and length is within bounds, in a time that is linear in the spec's own size.
    ///
    /// # Errors
    /// [`SpecError`] names the setting, what was found, and the bound.
    pub(crate) fn check_bounds(&self) -> Result<(), SpecError> {
        if let Some(central) = &self.privacy.central {
            central.check_bounds()?;
        }
        at_most("cohort", "updates in one sum", self.cohort_max, COHORT_MAX)?;
        at_most("training.epochs", "epochs", self.training.epochs.into(), REPEATS_MAX.into())?;
        at_most("training.accumulate", "batches", self.training.accumulate.into(), REPEATS_MAX.into())?;
        at_most("training.batch_size", "samples", self.training.batch_size as u64, BATCH_MAX as u64)?;
        at_most("personal_layers", "names", self.personal_layers.len() as u64, PERSONAL_MAX as u64)?;
        self.personal_layers.iter().try_for_each(|name| text("personal_layers", "the name", name))?;
        match &self.data {
            DataSpec::Table(table) => check_table(table)?,
            DataSpec::Tensor(tensor) => {
                let key = "data.tensor.shape";
                at_most(key, "dimensions", tensor.shape.len() as u64, DIMENSIONS_MAX as u64)?;
            }
            DataSpec::Own => {}
        }
        self.check_lists()?;
        self.check_size()
    }

    /// Lists whose elements are counted one by one later.
    fn check_lists(&self) -> Result<(), SpecError> {
        match &self.model {
            ModelSpec::Linear | ModelSpec::Logistic | ModelSpec::External(_) => Ok(()),
            ModelSpec::Mlp { hidden } => {
                at_most("model.mlp.hidden", "hidden layers", hidden.len() as u64, LAYERS_MAX as u64)
            }
            ModelSpec::Cnn { channels, .. } => {
                at_most("model.cnn.channels", "convolutions", channels.len() as u64, POOLINGS_MAX as u64)
            }
            ModelSpec::Layers(layers) => check_depth(layers),
            ModelSpec::Custom { name } => text("model.custom.name", "the name", name),
            ModelSpec::Values { shape } => {
                at_most("model.values.shape", "dimensions", shape.len() as u64, DIMENSIONS_MAX as u64)
            }
        }
    }

    /// The parameters of the whole model and the values between its layers. Of a custom model nothing is known here.
    fn check_size(&self) -> Result<(), SpecError> {
        let too_large = |(key, most): (&str, u64)| {
            let what = if most == PARAMETERS_MAX {
                "the model has more parameters than"
            } else {
                "a sample has more values than"
            };
            Err(SpecError::new(key, format!("{what} {most}; choose a smaller one")))
        };
        match self.count() {
            Ok(_) | Err(Stop::Misfit) => Ok(()),
            Err(Stop::Sample) => too_large(("data", VALUES_MAX)),
            Err(Stop::Parameters) => too_large(("model", PARAMETERS_MAX)),
            Err(Stop::Values) => too_large(("model", VALUES_MAX)),
        }
    }

    /// Parameters of the whole model, those that stay at the sites included, counted from its layers without building it. `None`
    /// for a custom model and for one that does not fit the records.
    pub fn parameters(&self) -> Option<u64> {
        match &self.model {
            ModelSpec::Custom { .. } => None,
            _ => self.count().ok(),
        }
    }

    fn count(&self) -> Result<u64, Stop> {
        let sides = self.input_shape();
        let sample = sides.iter().try_fold(1u64, |all, side| all.checked_mul(*side as u64));
        let sample = sample.filter(|sample| *sample <= VALUES_MAX).ok_or(Stop::Sample)?;
        let mut size = Size { parameters: 0 };
        let start = match sides[..] {
            [channels, height, width] => Shape::Image([channels, height, width].map(|side| side as u64)),
            [steps, features] => Shape::Sequence(steps as u64, features as u64),
            _ => Shape::Row(sample),
        };
        size.model(&self.model, start, sample, self.outputs() as u64)?;
        Ok(size.parameters)
    }
}

impl CentralPrivacy {
    /// The same for a promise of privacy, whose sensitivity takes work for every round.
    pub(crate) fn check_bounds(&self) -> Result<(), SpecError> {
        let NoiseCorrelation::Banded { weights } = &self.noise else {
            return check_rounds(self.rounds, 0);
        };
        check_rounds(self.rounds, weights.len())
    }
}

/// Checks a run's rounds and the bands of its noise, before the bands themselves are made.
///
/// # Errors
/// [`SpecError`] names the setting, what was found, and the bound.
pub fn check_rounds(rounds: u32, bands: usize) -> Result<(), SpecError> {
    at_most("rounds", "rounds", rounds.into(), ROUNDS_MAX.into())?;
    at_most("privacy.central.noise", "bands", bands as u64, BANDS_MAX as u64)?;
    let work = u64::from(rounds) * bands as u64;
    if work <= BAND_ROUNDS_MAX {
        return Ok(());
    }
    let message = format!(
        "{rounds} rounds times {bands} bands are {work}; at most {BAND_ROUNDS_MAX} are allowed: take fewer bands or rounds"
    );
    Err(SpecError::new("privacy.central.noise", message))
}

fn check_table(table: &TableSpec) -> Result<(), SpecError> {
    let columns = table.features.len() + table.categorical.len();
    at_most("data.table.features", "columns", columns as u64, COLUMNS_MAX as u64)?;
    let categories: usize = table.categorical.iter().map(|one| one.values.len()).sum();
    at_most("data.table.categorical", "categories", categories as u64, CATEGORIES_MAX as u64)?;
    text("data.table.label", "the column", &table.label)?;
    table.target.classes().iter().try_for_each(|class| match class {
        ClassName::Word(word) => text("data.table.target", "the class", word),
        ClassName::Number(_) | ClassName::Flag(_) => Ok(()),
    })?;
    table.features.iter().try_for_each(|name| text("data.table.features", "the column", name))?;
    for one in &table.categorical {
        text("data.table.categorical", "the column", &one.column)?;
        one.values.iter().try_for_each(|value| text("data.table.categorical", "the value", value))?;
    }
    if let Standardise::Given { mean, std } = &table.standardise {
        let numbers = mean.len().max(std.len()) as u64;
        at_most("data.table.standardise", "numbers", numbers, COLUMNS_MAX as u64)?;
    }
    Ok(())
}

/// Counts layers without going deeper than a model may be: its depth is judged before anything walks it by recursion.
fn check_depth(layers: &[LayerSpec]) -> Result<(), SpecError> {
    let (mut count, mut open) = (0, vec![(layers, 0)]);
    while let Some((layers, depth)) = open.pop() {
        count += layers.len();
        if count > LAYERS_MAX || depth > DEPTH_MAX {
            let message = format!(
                "a model has at most {LAYERS_MAX} layers, and residual connections at most {DEPTH_MAX} deep"
            );
            return Err(SpecError::new("model.layers", message));
        }
        for layer in layers {
            if let LayerSpec::Residual { layers, shortcut } = layer {
                open.extend([(&layers[..], depth + 1), (&shortcut[..], depth + 1)]);
            }
        }
    }
    Ok(())
}

/// What one sample looks like between two layers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Row(u64),
    Image([u64; 3]),
    Sequence(u64, u64),
}

/// Why counting ends early.
enum Stop {
    Parameters,
    /// Of the records themselves, or between two layers.
    Sample,
    Values,
    /// A layer that does not fit what comes before it: the model is refused when it is built, before it takes memory.
    Misfit,
}

/// What has been counted.
struct Size {
    parameters: u64,
}

impl Size {
    fn model(&mut self, model: &ModelSpec, start: Shape, sample: u64, outputs: u64) -> Result<(), Stop> {
        let end = match model {
            ModelSpec::Custom { .. } => return Ok(()),
            ModelSpec::External(model) => {
                self.parameters = model.parameters();
                return Ok(());
            }
            ModelSpec::Values { shape } => {
                let sides: Vec<u64> = shape.iter().map(|side| *side as u64).collect();
                return self.add(&sides);
            }
            ModelSpec::Linear | ModelSpec::Logistic => Shape::Row(sample),
            ModelSpec::Mlp { hidden } => hidden.iter().try_fold(Shape::Row(sample), |from, width| {
                self.layer(&LayerSpec::Dense { outputs: *width }, from)
            })?,
            ModelSpec::Cnn { channels, kernel, hidden } => {
                let mut shape = start;
                for channels in channels {
                    let (channels, kernel) = (*channels, *kernel);
                    let convolution = LayerSpec::Convolution { channels, kernel, stride: 1, padding: None };
                    shape = self.layer(&convolution, shape)?;
                    shape = self.layer(&LayerSpec::MaxPool { size: 2, stride: None }, shape)?;
                }
                self.layer(&LayerSpec::Dense { outputs: *hidden }, shape)?
            }
            ModelSpec::Layers(layers) => self.chain(layers, start)?,
        };
        let end = length(end)?;
        self.dense(end, outputs)
    }

    fn chain(&mut self, layers: &[LayerSpec], start: Shape) -> Result<Shape, Stop> {
        layers.iter().try_fold(start, |from, layer| self.layer(layer, from))
    }

    /// What comes out of a layer; its parameters are added.
    fn layer(&mut self, layer: &LayerSpec, from: Shape) -> Result<Shape, Stop> {
        let to = match (layer, from) {
            (LayerSpec::Residual { layers, shortcut }, _) => {
                let (to, aside) = (self.chain(layers, from)?, self.chain(shortcut, from)?);
                if to != aside {
                    return Err(Stop::Misfit);
                }
                to
            }
            (
                LayerSpec::Relu
                | LayerSpec::Gelu
                | LayerSpec::Tanh
                | LayerSpec::Sigmoid
                | LayerSpec::Dropout(_),
                _,
            ) => from,
            (_, Shape::Image(sides)) => self.on_image(layer, sides)?,
            (_, Shape::Sequence(steps, features)) => self.on_sequence(layer, steps, features)?,
            (_, Shape::Row(length)) => self.on_row(layer, length)?,
        };
        length(to)?;
        Ok(to)
    }

    fn on_row(&mut self, layer: &LayerSpec, inputs: u64) -> Result<Shape, Stop> {
        match layer {
            LayerSpec::Dense { outputs } => {
                self.dense(inputs, *outputs as u64)?;
                Ok(Shape::Row(*outputs as u64))
            }
            LayerSpec::LayerNorm => {
                self.add(&[2, inputs])?;
                Ok(Shape::Row(inputs))
            }
            LayerSpec::Embedding { symbols, width } => {
                self.add(&[*symbols as u64, *width as u64])?;
                Ok(Shape::Sequence(inputs, *width as u64))
            }
            _ => Err(Stop::Misfit),
        }
    }

    fn on_image(&mut self, layer: &LayerSpec, sides: [u64; 3]) -> Result<Shape, Stop> {
        let [channels, height, width] = sides;
        match layer {
            LayerSpec::Dense { outputs } => {
                self.dense(length(Shape::Image(sides))?, *outputs as u64)?;
                Ok(Shape::Row(*outputs as u64))
            }
            LayerSpec::Convolution { channels: outputs, kernel, stride, padding } => {
                let (outputs, kernel) = (*outputs as u64, *kernel as u64);
                let padding = padding.map_or(kernel / 2, |padding| padding as u64);
                let along = |side| positions(side, kernel, *stride as u64, padding).ok_or(Stop::Misfit);
                let (rows, columns) = (along(height)?, along(width)?);
                self.add(&[outputs, channels, kernel, kernel])?;
                self.add(&[outputs])?;
                Ok(Shape::Image([outputs, rows, columns]))
            }
            LayerSpec::MaxPool { size, stride } => {
                let stride = stride.unwrap_or(*size) as u64;
                let along = |side| positions(side, *size as u64, stride, 0).ok_or(Stop::Misfit);
                Ok(Shape::Image([channels, along(height)?, along(width)?]))
            }
            LayerSpec::AveragePool => Ok(Shape::Row(channels)),
            LayerSpec::GroupNorm { .. } => {
                self.add(&[2, channels])?;
                Ok(Shape::Image(sides))
            }
            _ => Err(Stop::Misfit),
        }
    }

    fn on_sequence(&mut self, layer: &LayerSpec, steps: u64, features: u64) -> Result<Shape, Stop> {
        match layer {
            LayerSpec::Dense { outputs } => {
                self.dense(features, *outputs as u64)?;
                Ok(Shape::Sequence(steps, *outputs as u64))
            }
            LayerSpec::AveragePool | LayerSpec::Last => Ok(Shape::Row(features)),
            LayerSpec::LayerNorm => {
                self.add(&[2, features])?;
                Ok(Shape::Sequence(steps, features))
            }
            LayerSpec::Lstm { hidden } => self.recurrent(4, 1, *hidden as u64, steps, features),
            LayerSpec::Gru { hidden } => self.recurrent(3, 2, *hidden as u64, steps, features),
            _ => Err(Stop::Misfit),
        }
    }

    fn recurrent(
        &mut self,
        gates: u64,
        biases: u64,
        hidden: u64,
        steps: u64,
        features: u64,
    ) -> Result<Shape, Stop> {
        self.add(&[gates, hidden, features])?;
        self.add(&[gates, hidden, hidden])?;
        self.add(&[gates, hidden, biases])?;
        Ok(Shape::Sequence(steps, hidden))
    }

    fn dense(&mut self, inputs: u64, outputs: u64) -> Result<(), Stop> {
        self.add(&[inputs, outputs])?;
        self.add(&[outputs])
    }

    /// Adds a tensor of these sides.
    fn add(&mut self, sides: &[u64]) -> Result<(), Stop> {
        let count = sides.iter().try_fold(1u64, |all, side| all.checked_mul(*side));
        let sum = count.and_then(|count| self.parameters.checked_add(count));
        self.parameters = sum.filter(|sum| *sum <= PARAMETERS_MAX).ok_or(Stop::Parameters)?;
        Ok(())
    }
}

/// Values of a sample, if they are not too many.
fn length(shape: Shape) -> Result<u64, Stop> {
    let sides = match shape {
        Shape::Row(length) => [length, 1, 1],
        Shape::Image(sides) => sides,
        Shape::Sequence(steps, features) => [steps, features, 1],
    };
    let all = sides.iter().try_fold(1u64, |all, side| all.checked_mul(*side));
    all.filter(|all| *all <= VALUES_MAX).ok_or(Stop::Values)
}

/// Positions of a window along a side; none where it does not fit.
fn positions(side: u64, window: u64, stride: u64, padding: u64) -> Option<u64> {
    let room = padding.checked_mul(2)?.checked_add(side)?.checked_sub(window)?;
    Some(room.checked_div(stride)? + 1)
}

#[cfg(test)]
mod tests;
