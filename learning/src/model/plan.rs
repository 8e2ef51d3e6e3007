//! A spec's model as steps with known shapes: what both ways to a gradient are built from, before anything is allocated.

use std::collections::BTreeMap;

use protocol::{LayerSpec, ModelSpec, Spec};

use super::ModelError;
use crate::kernels::Window;
use crate::layers::Elementwise;
use crate::ops::Activation;

/// What one sample looks like between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Numbers in a row.
    Row(usize),
    /// Channels, rows and columns.
    Image { channels: usize, height: usize, width: usize },
    /// Steps of so many features.
    Sequence { steps: usize, features: usize },
}

impl Shape {
    fn of(shape: &[usize]) -> Result<Self, ModelError> {
        match *shape {
            [channels, height, width] => {
                product(shape)?;
                Ok(Self::Image { channels, height, width })
            }
            [steps, features] => {
                product(shape)?;
                Ok(Self::Sequence { steps, features })
            }
            _ => Ok(Self::Row(product(shape)?)),
        }
    }

    /// Values of a sample.
    pub(crate) fn length(&self) -> usize {
        match *self {
            Self::Row(length) => length,
            Self::Image { channels, height, width } => channels * height * width,
            Self::Sequence { steps, features } => steps * features,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Row(length) => write!(f, "a row of {length}"),
            Self::Image { channels, height, width } => write!(f, "an image [{channels}, {height}, {width}]"),
            Self::Sequence { steps, features } => write!(f, "a sequence [{steps}, {features}]"),
        }
    }
}

/// First values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Drawn from the seed.
    Drawn,
    /// All the same.
    Constant(u8),
}

/// A tensor of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Its full name.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: Start,
}

/// One step of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) from: Shape,
    pub(crate) to: Shape,
    /// Those of the step itself; a residual connection has its layers' own.
    tensors: Vec<Planned>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Dense(Activation),
    Convolution(Window, Activation),
    MaxPool(Window),
    AveragePool,
    Elementwise(Elementwise),
    /// The number tells the dropouts of one model apart.
    Dropout {
        probability: f64,
        number: u32,
    },
    GroupNorm {
        groups: usize,
    },
    LayerNorm,
    Residual {
        layers: Vec<Step>,
        shortcut: Vec<Step>,
    },
    Embedding {
        symbols: usize,
    },
    Lstm,
    Gru,
    Last,
}

impl Step {
    /// All tensors in layout order, those of inner layers included.
    pub(crate) fn tensors(&self) -> Vec<&Planned> {
        match &self.kind {
            Kind::Residual { layers, shortcut } => {
                layers.iter().chain(shortcut).flat_map(Self::tensors).collect()
            }
            _ => self.tensors.iter().collect(),
        }
    }

    /// Parameters of all its tensors.
    pub(crate) fn parameters(&self) -> usize {
        self.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }
}

/// A spec's steps in order; none for a custom model and for the values of a method.
///
/// # Errors
/// [`ModelError`] when layers and data do not fit, or a size overflows.
pub(crate) fn steps(spec: &Spec) -> Result<Option<Vec<Step>>, ModelError> {
    let row = |spec: &Spec| Ok::<_, ModelError>(Shape::Row(product(&spec.input_shape())?));
    let (start, layers) = match &spec.model {
        ModelSpec::Custom { .. } | ModelSpec::Values { .. } | ModelSpec::External(_) => return Ok(None),
        ModelSpec::Linear | ModelSpec::Logistic => (row(spec)?, Vec::new()),
        ModelSpec::Mlp { hidden } => {
            let layers =
                hidden.iter().flat_map(|width| [LayerSpec::Dense { outputs: *width }, LayerSpec::Relu]);
            (row(spec)?, layers.collect())
        }
        ModelSpec::Cnn { channels, kernel, hidden } => {
            let shape = spec.input_shape();
            let [_, height, width] = shape[..] else { return Err(ModelError::NotAnImage(shape)) };
            if channels.iter().fold(height.min(width), |side, _| side / 2) == 0 {
                return Err(ModelError::NotAnImage(shape));
            }
            let block = |channels: &usize| {
                let (channels, kernel) = (*channels, *kernel);
                let convolution = LayerSpec::Convolution { channels, kernel, stride: 1, padding: None };
                [convolution, LayerSpec::Relu, LayerSpec::MaxPool { size: 2, stride: None }]
            };
            let mut layers: Vec<LayerSpec> = channels.iter().flat_map(block).collect();
            layers.extend([LayerSpec::Dense { outputs: *hidden }, LayerSpec::Relu]);
            (Shape::of(&shape)?, layers)
        }
        ModelSpec::Layers(layers) => (Shape::of(&spec.input_shape())?, layers.clone()),
    };
    let mut draft = Draft { prefix: String::new(), counts: BTreeMap::new(), dropouts: 0 };
    let mut steps = draft.chain(&layers, start, Source::Records)?;
    let end = steps.last().map_or(start, |step| step.to);
    let end = Shape::Row(end.length());
    steps.push(draft.step(&LayerSpec::Dense { outputs: spec.outputs() }, end, Source::Layers)?);
    Ok(Some(steps))
}

fn product(sides: &[usize]) -> Result<usize, ModelError> {
    let product = sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    product.filter(|product| *product > 0).ok_or(ModelError::TooLarge)
}

/// What a step does, what comes out, and its tensors.
type Found = (Kind, Shape, Vec<Planned>);

/// What a layer works on.
fn needs(layer: &LayerSpec) -> &'static str {
    match layer {
        LayerSpec::Convolution { .. } | LayerSpec::MaxPool { .. } => {
            "images [channels, height, width] at least as large as its window"
        }
        LayerSpec::AveragePool => "images or sequences",
        LayerSpec::GroupNorm { .. } => "images whose channels fall into its groups",
        LayerSpec::LayerNorm => "rows or sequences",
        LayerSpec::Embedding { .. } => "a row of symbols, which records are and results of layers are not",
        LayerSpec::Lstm { .. } | LayerSpec::Gru { .. } | LayerSpec::Last => "sequences [steps, features]",
        _ => "another shape",
    }
}

/// Where a layer's input comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The records as they are.
    Records,
    /// Another layer.
    Layers,
}

/// A model being planned.
struct Draft {
    /// Of names, inside of residual connections.
    prefix: String,
    counts: BTreeMap<String, u32>,
    dropouts: u32,
}

impl Draft {
    fn chain(&mut self, layers: &[LayerSpec], start: Shape, source: Source) -> Result<Vec<Step>, ModelError> {
        let mut steps: Vec<Step> = Vec::new();
        for layer in layers {
            let from = steps.last().map_or(start, |step| step.to);
            // ReLU right after a product is done where the product is.
            if let (LayerSpec::Relu, Some(Step { kind, .. })) = (layer, steps.last_mut())
                && let Kind::Dense(activation) | Kind::Convolution(_, activation) = kind
                && *activation == Activation::Identity
            {
                *activation = Activation::Relu;
                continue;
            }
            let source = if steps.is_empty() { source } else { Source::Layers };
            let step = self.step(layer, from, source)?;
            steps.push(step);
        }
        Ok(steps)
    }

    /// The next name of this kind.
    fn name(&mut self, kind: &str) -> String {
        let name = format!("{}{kind}", self.prefix);
        let count = self.counts.entry(name.clone()).or_default();
        *count += 1;
        format!("{name}{count}")
    }

    /// One step from samples of shape `from`.
    fn step(&mut self, layer: &LayerSpec, from: Shape, source: Source) -> Result<Step, ModelError> {
        if let LayerSpec::Residual { layers, shortcut } = layer {
            return self.residual(layers, shortcut, from, source);
        }
        let found = match from {
            // What layers compute is no symbol: one way to a gradient would see NaN there, and the other fail.
            _ if matches!(layer, LayerSpec::Embedding { .. }) && source == Source::Layers => None,
            Shape::Image { .. } => self.on_image(layer, from)?,
            Shape::Sequence { steps, features } => self.on_sequence(layer, steps, features)?,
            Shape::Row(length) => self.on_row(layer, length)?,
        };
        let misfit = || ModelError::Misfit {
            layer: layer.name().to_owned(),
            needs: needs(layer).to_owned(),
            given: from.to_string(),
        };
        let (kind, to, tensors) = found.or_else(|| self.value_by_value(layer, from)).ok_or_else(misfit)?;
        Ok(Step { kind, from, to, tensors })
    }

    fn on_image(&mut self, layer: &LayerSpec, from: Shape) -> Result<Option<Found>, ModelError> {
        let Shape::Image { channels: inputs, height, width } = from else { return Ok(None) };
        let window =
            |side, stride, padding| Window { channels: inputs, height, width, side, stride, padding };
        Ok(match layer {
            LayerSpec::Dense { outputs } => {
                Some(self.dense(from.length(), *outputs, Shape::Row(*outputs))?)
            }
            LayerSpec::Convolution { channels, kernel: side, stride, padding } => {
                let window = window(*side, *stride, padding.unwrap_or(side / 2));
                let Some(to) = image(*channels, window) else { return Ok(None) };
                let tensors = weight_and_bias(&self.name("conv"), &[*channels, inputs, *side, *side])?;
                Some((Kind::Convolution(window, Activation::Identity), to, tensors))
            }
            LayerSpec::MaxPool { size, stride } => {
                let window = window(*size, stride.unwrap_or(*size), 0);
                image(inputs, window).map(|to| (Kind::MaxPool(window), to, Vec::new()))
            }
            LayerSpec::AveragePool => Some((Kind::AveragePool, Shape::Row(inputs), Vec::new())),
            LayerSpec::GroupNorm { groups } if inputs % groups == 0 => {
                Some((Kind::GroupNorm { groups: *groups }, from, self.scale_and_shift(inputs)))
            }
            _ => None,
        })
    }

    fn on_sequence(
        &mut self,
        layer: &LayerSpec,
        steps: usize,
        features: usize,
    ) -> Result<Option<Found>, ModelError> {
        let of = |features: usize| Shape::Sequence { steps, features };
        Ok(match layer {
            LayerSpec::Dense { outputs } => Some(self.dense(features, *outputs, of(*outputs))?),
            LayerSpec::AveragePool => Some((Kind::AveragePool, Shape::Row(features), Vec::new())),
            LayerSpec::LayerNorm => Some((Kind::LayerNorm, of(features), self.scale_and_shift(features))),
            LayerSpec::Lstm { hidden } => {
                Some((Kind::Lstm, of(*hidden), self.recurrent("lstm", 4, *hidden, features)?))
            }
            LayerSpec::Gru { hidden } => {
                Some((Kind::Gru, of(*hidden), self.recurrent("gru", 3, *hidden, features)?))
            }
            LayerSpec::Last => Some((Kind::Last, Shape::Row(features), Vec::new())),
            _ => None,
        })
    }

    fn on_row(&mut self, layer: &LayerSpec, length: usize) -> Result<Option<Found>, ModelError> {
        Ok(match layer {
            LayerSpec::Dense { outputs } => Some(self.dense(length, *outputs, Shape::Row(*outputs))?),
            LayerSpec::LayerNorm => Some((Kind::LayerNorm, Shape::Row(length), self.scale_and_shift(length))),
            LayerSpec::Embedding { symbols, width } => {
                product(&[*symbols, *width])?;
                let name = format!("{}.weight", self.name("embedding"));
                let tensors = vec![Planned { name, shape: vec![*symbols, *width], start: Start::Drawn }];
                let to = Shape::Sequence { steps: length, features: *width };
                Some((Kind::Embedding { symbols: *symbols }, to, tensors))
            }
            _ => None,
        })
    }

    /// Layers that take any shape and keep it.
    fn value_by_value(&mut self, layer: &LayerSpec, from: Shape) -> Option<Found> {
        let kind = match layer {
            LayerSpec::Relu => Kind::Elementwise(Elementwise::Relu),
            LayerSpec::Gelu => Kind::Elementwise(Elementwise::Gelu),
            LayerSpec::Tanh => Kind::Elementwise(Elementwise::Tanh),
            LayerSpec::Sigmoid => Kind::Elementwise(Elementwise::Sigmoid),
            LayerSpec::Dropout(probability) => {
                self.dropouts += 1;
                Kind::Dropout { probability: *probability, number: self.dropouts - 1 }
            }
            _ => return None,
        };
        Some((kind, from, Vec::new()))
    }

    fn dense(&mut self, inputs: usize, outputs: usize, to: Shape) -> Result<Found, ModelError> {
        let tensors = weight_and_bias(&self.name("dense"), &[outputs, inputs])?;
        Ok((Kind::Dense(Activation::Identity), to, tensors))
    }

    fn residual(
        &mut self,
        layers: &[LayerSpec],
        shortcut: &[LayerSpec],
        from: Shape,
        source: Source,
    ) -> Result<Step, ModelError> {
        let name = self.name("block");
        let outer = std::mem::replace(&mut self.prefix, format!("{name}."));
        let layers = self.chain(layers, from, source)?;
        self.prefix = format!("{name}.shortcut.");
        let shortcut = self.chain(shortcut, from, source)?;
        self.prefix = outer;
        let end = |steps: &[Step]| steps.last().map_or(from, |step| step.to);
        let (to, aside) = (end(&layers), end(&shortcut));
        if to != aside {
            let (layer, needs) = (name, format!("a shortcut that ends in {to} too"));
            return Err(ModelError::Misfit { layer, needs, given: aside.to_string() });
        }
        Ok(Step { kind: Kind::Residual { layers, shortcut }, from, to, tensors: Vec::new() })
    }

    fn scale_and_shift(&mut self, width: usize) -> Vec<Planned> {
        let name = self.name("norm");
        let tensor = |last: &str, start| Planned {
            name: format!("{name}.{last}"),
            shape: vec![width],
            start: Start::Constant(start),
        };
        vec![tensor("weight", 1), tensor("bias", 0)]
    }

    /// Weights for inputs and for the state, and a bias for each, with the gates one after another.
    fn recurrent(
        &mut self,
        kind: &str,
        gates: usize,
        hidden: usize,
        features: usize,
    ) -> Result<Vec<Planned>, ModelError> {
        let name = self.name(kind);
        let gates = product(&[gates, hidden])?;
        let (_, _) = (product(&[gates, features])?, product(&[gates, hidden])?);
        let tensor = |last: &str, shape: Vec<usize>| Planned {
            name: format!("{name}.{last}"),
            shape,
            start: Start::Drawn,
        };
        let mut tensors =
            vec![tensor("weight_ih", vec![gates, features]), tensor("weight_hh", vec![gates, hidden])];
        match kind {
            // The reset gate stands between the two biases of the candidate state.
            "gru" => tensors.extend([tensor("bias_ih", vec![gates]), tensor("bias_hh", vec![gates])]),
            _ => tensors.push(tensor("bias", vec![gates])),
        }
        Ok(tensors)
    }
}

fn image(channels: usize, window: Window) -> Option<Shape> {
    let (height, width) = window.positions();
    (height > 0 && width > 0).then_some(Shape::Image { channels, height, width })
}

fn weight_and_bias(name: &str, weight: &[usize]) -> Result<Vec<Planned>, ModelError> {
    product(weight)?;
    let tensor = |last: &str, shape: &[usize]| Planned {
        name: format!("{name}.{last}"),
        shape: shape.to_vec(),
        start: Start::Drawn,
    };
    Ok(vec![tensor("weight", weight), tensor("bias", &weight[..1])])
}
