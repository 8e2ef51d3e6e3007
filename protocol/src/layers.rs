//! A model written down layer by layer, as a plan has it. What follows from the data (inputs, outputs, the sides of images) is
//! not repeated here, and the dense layer that gives the outputs comes by itself.

use serde::{Deserialize, Serialize};

use crate::SpecError;

/// The most layers of a model, those inside of residual connections included.
pub(crate) const LAYERS_MAX: usize = 1024;
/// Residual connections inside of one another.
pub(crate) const DEPTH_MAX: usize = 4;

/// One layer. Images are `[channels, height, width]`, sequences `[steps, features]`, everything else a row of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSpec {
    /// A dense layer; of a sequence, at every step. An image becomes a row first.
    Dense {
        /// Its width.
        outputs: usize,
    },
    /// A convolution with square kernels.
    Convolution {
        /// Output channels.
        channels: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Steps between positions.
        #[serde(default = "one")]
        stride: usize,
        /// Zeros around the image; by default half the kernel, which keeps the size at stride 1 and an odd kernel.
        #[serde(default)]
        padding: Option<usize>,
    },
    /// The maximum of square windows.
    MaxPool {
        /// Side of the window, 1 to 16.
        size: usize,
        /// Steps between windows; by default the side.
        #[serde(default)]
        stride: Option<usize>,
    },
    /// The mean of each channel of an image, or of each feature of a sequence over its steps.
    AveragePool,
    /// `max(0, x)`.
    Relu,
    /// `x` times the normal distribution function of `x` (Hendrycks, Gimpel 2016).
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// In training, sets values to 0 with this probability, from 0 to below 1, and scales the others.
    Dropout(f64),
    /// Normalises an image by groups of channels, sample by sample (Wu, He 2018).
    GroupNorm {
        /// How many groups; divides the channels.
        groups: usize,
    },
    /// Normalises each row, or each step of a sequence (Ba, Kiros, Hinton 2016).
    LayerNorm,
    /// `x` plus what these layers make of it (He et al. 2016); without layers, `x` twice.
    Residual {
        /// The layers.
        layers: Vec<Self>,
        /// What is done to `x` where the layers change its shape; by default nothing.
        #[serde(default)]
        shortcut: Vec<Self>,
    },
    /// Turns a row of symbols (whole numbers from 0) into a sequence of learned vectors.
    Embedding {
        /// How many symbols there are.
        symbols: usize,
        /// Length of a vector.
        width: usize,
    },
    /// Long short-term memory over a sequence (Hochreiter, Schmidhuber 1997, with forget gates): its state at every step.
    Lstm {
        /// Length of the state.
        hidden: usize,
    },
    /// Gated recurrent units over a sequence (Cho et al. 2014, with the reset after the product): their state at every step.
    Gru {
        /// Length of the state.
        hidden: usize,
    },
    /// The last step of a sequence.
    Last,
}

impl LayerSpec {
    /// Its name in a plan.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense",
            Self::Convolution { .. } => "convolution",
            Self::MaxPool { .. } => "max_pool",
            Self::AveragePool => "average_pool",
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
            Self::Dropout(_) => "dropout",
            Self::GroupNorm { .. } => "group_norm",
            Self::LayerNorm => "layer_norm",
            Self::Residual { .. } => "residual",
            Self::Embedding { .. } => "embedding",
            Self::Lstm { .. } => "lstm",
            Self::Gru { .. } => "gru",
            Self::Last => "last",
        }
    }
}

fn one() -> usize {
    1
}

/// Checks the numbers of a model's layers; whether shapes fit together is seen when the model is built.
pub(crate) fn check(layers: &[LayerSpec]) -> Result<(), SpecError> {
    let mut count = 0;
    check_at(layers, "model.layers", 0, &mut count)
}

fn check_at(layers: &[LayerSpec], key: &str, depth: usize, count: &mut usize) -> Result<(), SpecError> {
    *count += layers.len();
    if *count > LAYERS_MAX || depth > DEPTH_MAX {
        let message = format!(
            "a model has at most {LAYERS_MAX} layers, and residual connections at most {DEPTH_MAX} deep"
        );
        return Err(SpecError::new(key, message));
    }
    for (number, layer) in layers.iter().enumerate() {
        let key = format!("{key}[{number}]");
        let positive = |name: &str, value: usize| {
            if value > 0 && u32::try_from(value).is_ok() {
                return Ok(());
            }
            Err(SpecError::new(format!("{key}.{name}"), format!("{value} is not from 1 to {}", u32::MAX)))
        };
        match layer {
            LayerSpec::Dense { outputs } => positive("dense.outputs", *outputs)?,
            LayerSpec::Convolution { channels, kernel, stride, padding } => {
                positive("convolution.channels", *channels)?;
                positive("convolution.kernel", *kernel)?;
                positive("convolution.stride", *stride)?;
                if padding.is_some_and(|padding| padding >= *kernel) {
                    let message = "a padding as large as the kernel only adds zeros; give less";
                    return Err(SpecError::new(format!("{key}.convolution.padding"), message));
                }
            }
            LayerSpec::MaxPool { size, stride } => {
                positive("max_pool.stride", stride.unwrap_or(1))?;
                if !(1..=16).contains(size) {
                    let message = format!("{size} is not from 1 to 16");
                    return Err(SpecError::new(format!("{key}.max_pool.size"), message));
                }
            }
            LayerSpec::Dropout(probability) if !(0.0..1.0).contains(probability) => {
                let message = format!("{probability} is not from 0 to below 1");
                return Err(SpecError::new(format!("{key}.dropout"), message));
            }
            LayerSpec::GroupNorm { groups } => positive("group_norm.groups", *groups)?,
            LayerSpec::Residual { layers, shortcut } => {
                check_at(layers, &format!("{key}.residual.layers"), depth + 1, count)?;
                check_at(shortcut, &format!("{key}.residual.shortcut"), depth + 1, count)?;
            }
            LayerSpec::Embedding { symbols, width } => {
                positive("embedding.symbols", *symbols)?;
                positive("embedding.width", *width)?;
            }
            LayerSpec::Lstm { hidden } => positive("lstm.hidden", *hidden)?,
            LayerSpec::Gru { hidden } => positive("gru.hidden", *hidden)?,
            LayerSpec::AveragePool
            | LayerSpec::Relu
            | LayerSpec::Gelu
            | LayerSpec::Tanh
            | LayerSpec::Sigmoid
            | LayerSpec::Dropout(_)
            | LayerSpec::LayerNorm
            | LayerSpec::Last => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> SpecError {
        let layers: Vec<LayerSpec> = serde_json::from_str(json).unwrap();
        check(&layers).unwrap_err()
    }

    #[test]
    fn a_layer_that_makes_no_sense_is_named_by_its_place() {
        let error = refused(r#"["relu", {"residual": {"layers": [{"dense": {"outputs": 0}}]}}]"#);
        assert_eq!(error.key, "model.layers[1].residual.layers[0].dense.outputs");
        assert_eq!(refused(r#"[{"dropout": 1.0}]"#).key, "model.layers[0].dropout");
        assert_eq!(refused(r#"[{"max_pool": {"size": 17}}]"#).key, "model.layers[0].max_pool.size");
        let padded = r#"[{"convolution": {"channels": 1, "kernel": 3, "padding": 3}}]"#;
        assert_eq!(refused(padded).key, "model.layers[0].convolution.padding");
    }

    #[test]
    fn residual_connections_end_somewhere() {
        let mut json = r#""relu""#.to_owned();
        for _ in 0..6 {
            json = format!(r#"{{"residual": {{"layers": [{json}]}}}}"#);
        }
        assert!(refused(&format!("[{json}]")).message.contains("deep"));
        assert!(refused(&format!("[{}]", vec![r#""relu""#; 1025].join(","))).message.contains("1024"));
    }

    #[test]
    fn defaults_need_not_be_written() {
        let layers: Vec<LayerSpec> =
            serde_json::from_str(r#"[{"convolution": {"channels": 4, "kernel": 3}}, "last"]"#).unwrap();
        let convolution = LayerSpec::Convolution { channels: 4, kernel: 3, stride: 1, padding: None };
        assert_eq!(layers, [convolution, LayerSpec::Last]);
    }
}
