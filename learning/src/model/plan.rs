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

/// A spec's steps in order; none for a custom model.
///
/// # Errors
/// [`ModelError`] when layers and data do not fit, or a size overflows.
pub(crate) fn steps(spec: &Spec) -> Result<Option<Vec<Step>>, ModelError> {
    let row = |spec: &Spec| Ok::<_, ModelError>(Shape::Row(product(&spec.input_shape())?));
    let (start, layers) = match &spec.model {
        ModelSpec::Custom { .. } => return Ok(None),
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
    let mut steps = draft.chain(&layers, start)?;
    let end = steps.last().map_or(start, |step| step.to);
    let end = Shape::Row(end.length());
    steps.push(draft.step(&LayerSpec::Dense { outputs: spec.outputs() }, end)?);
    Ok(Some(steps))
}

fn product(sides: &[usize]) -> Result<usize, ModelError> {
    let product = sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    product.filter(|product| *product > 0).ok_or(ModelError::TooLarge)
}

/// A model being planned.
struct Draft {
    /// Of names, inside of residual connections.
    prefix: String,
    counts: BTreeMap<String, u32>,
    dropouts: u32,
}

impl Draft {
    fn chain(&mut self, layers: &[LayerSpec], start: Shape) -> Result<Vec<Step>, ModelError> {
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
            let step = self.step(layer, from)?;
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
    fn step(&mut self, layer: &LayerSpec, from: Shape) -> Result<Step, ModelError> {
        let misfit = |needs: &str| ModelError::Misfit {
            layer: layer.name().to_owned(),
            needs: needs.into(),
            given: from.to_string(),
        };
        let step = |kind, to, tensors| Ok(Step { kind, from, to, tensors });
        let plain = |kind, to| Ok(Step { kind, from, to, tensors: Vec::new() });
        match (layer, from) {
            (LayerSpec::Dense { outputs }, _) => {
                let (inputs, from, to) = match from {
                    Shape::Sequence { steps, features } => {
                        (features, from, Shape::Sequence { steps, features: *outputs })
                    }
                    other => (other.length(), other, Shape::Row(*outputs)),
                };
                let tensors = weight_and_bias(&self.name("dense"), &[*outputs, inputs])?;
                Ok(Step { kind: Kind::Dense(Activation::Identity), from, to, tensors })
            }
            (
                LayerSpec::Convolution { channels, kernel, stride, padding },
                Shape::Image { channels: inputs, height, width },
            ) => {
                let (side, padding) = (*kernel, padding.unwrap_or(kernel / 2));
                let window = Window { channels: inputs, height, width, side, stride: *stride, padding };
                let to = image(*channels, window)
                    .ok_or_else(|| misfit("an image at least as large as the kernel"))?;
                let tensors = weight_and_bias(&self.name("conv"), &[*channels, inputs, side, side])?;
                step(Kind::Convolution(window, Activation::Identity), to, tensors)
            }
            (LayerSpec::MaxPool { size, stride }, Shape::Image { channels, height, width }) => {
                let (side, stride) = (*size, stride.unwrap_or(*size));
                let window = Window { channels, height, width, side, stride, padding: 0 };
                let to = image(channels, window)
                    .ok_or_else(|| misfit("an image at least as large as the window"))?;
                plain(Kind::MaxPool(window), to)
            }
            (LayerSpec::AveragePool, Shape::Image { channels, .. }) => {
                plain(Kind::AveragePool, Shape::Row(channels))
            }
            (LayerSpec::AveragePool, Shape::Sequence { features, .. }) => {
                plain(Kind::AveragePool, Shape::Row(features))
            }
            (LayerSpec::Relu, _) => plain(Kind::Elementwise(Elementwise::Relu), from),
            (LayerSpec::Gelu, _) => plain(Kind::Elementwise(Elementwise::Gelu), from),
            (LayerSpec::Tanh, _) => plain(Kind::Elementwise(Elementwise::Tanh), from),
            (LayerSpec::Sigmoid, _) => plain(Kind::Elementwise(Elementwise::Sigmoid), from),
            (LayerSpec::Dropout(probability), _) => {
                self.dropouts += 1;
                plain(Kind::Dropout { probability: *probability, number: self.dropouts - 1 }, from)
            }
            (LayerSpec::GroupNorm { groups }, Shape::Image { channels, .. }) if channels % groups == 0 => {
                step(Kind::GroupNorm { groups: *groups }, from, self.scale_and_shift(channels))
            }
            (LayerSpec::LayerNorm, Shape::Row(width) | Shape::Sequence { features: width, .. }) => {
                step(Kind::LayerNorm, from, self.scale_and_shift(width))
            }
            (LayerSpec::Residual { layers, shortcut }, _) => self.residual(layers, shortcut, from),
            (LayerSpec::Embedding { symbols, width }, Shape::Row(steps)) => {
                let name = format!("{}.weight", self.name("embedding"));
                let tensors = vec![Planned { name, shape: vec![*symbols, *width], start: Start::Drawn }];
                product(&[*symbols, *width])?;
                step(
                    Kind::Embedding { symbols: *symbols },
                    Shape::Sequence { steps, features: *width },
                    tensors,
                )
            }
            (LayerSpec::Lstm { hidden }, Shape::Sequence { steps, features }) => {
                let tensors = self.recurrent("lstm", 4, *hidden, features)?;
                step(Kind::Lstm, Shape::Sequence { steps, features: *hidden }, tensors)
            }
            (LayerSpec::Gru { hidden }, Shape::Sequence { steps, features }) => {
                let tensors = self.recurrent("gru", 3, *hidden, features)?;
                step(Kind::Gru, Shape::Sequence { steps, features: *hidden }, tensors)
            }
            (LayerSpec::Last, Shape::Sequence { features, .. }) => plain(Kind::Last, Shape::Row(features)),
            (LayerSpec::Convolution { .. } | LayerSpec::MaxPool { .. }, _) => {
                Err(misfit("images [channels, height, width]"))
            }
            (LayerSpec::AveragePool, _) => Err(misfit("images or sequences")),
            (LayerSpec::GroupNorm { groups }, _) => {
                Err(misfit(&format!("images with channels in {groups} equal groups")))
            }
            (LayerSpec::LayerNorm, _) => Err(misfit("rows or sequences")),
            (LayerSpec::Embedding { .. }, _) => Err(misfit("a row of symbols")),
            (LayerSpec::Lstm { .. } | LayerSpec::Gru { .. } | LayerSpec::Last, _) => {
                Err(misfit("sequences [steps, features]"))
            }
        }
    }

    fn residual(
        &mut self,
        layers: &[LayerSpec],
        shortcut: &[LayerSpec],
        from: Shape,
    ) -> Result<Step, ModelError> {
        let name = self.name("block");
        let outer = std::mem::replace(&mut self.prefix, format!("{name}."));
        let layers = self.chain(layers, from)?;
        self.prefix = format!("{name}.shortcut.");
        let shortcut = self.chain(shortcut, from)?;
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
