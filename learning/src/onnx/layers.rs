//! A model's steps as operations of ONNX, opset 17. Dropout rests when a model is used and leaves nothing behind.
//!
//! Tensors keep their names and their order of values wherever ONNX has the same; recurrent layers, whose gates it orders
//! otherwise, get tensors of their own.

use std::collections::BTreeMap;

use protocol::Layout;

use super::OnnxError;
use super::graph::Graph;
use super::proto::{AttributeProto, TensorProto};
use crate::layers::Elementwise;
use crate::model::{Kind, Planned, Shape, Step};
use crate::ops::{Activation, EPSILON};

/// Writes steps into a graph.
pub(super) struct Writer<'a> {
    pub(super) graph: Graph,
    values: BTreeMap<&'a str, &'a [f32]>,
}

/// A result of the graph.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) name: String,
    /// How many sides it has, the batch included.
    pub(super) rank: usize,
}

impl<'a> Writer<'a> {
    /// `parameters` is a full vector in the layout's order.
    pub(super) fn new(layout: &'a Layout, parameters: &'a [f32]) -> Self {
        let values = layout.tensors().iter();
        let values = values.map(|tensor| (tensor.name.as_str(), &parameters[tensor.range()])).collect();
        Self { graph: Graph::default(), values }
    }

    /// Steps one after another.
    pub(super) fn chain(&mut self, steps: &[Step], x: Value) -> Result<Value, OnnxError> {
        steps.iter().try_fold(x, |x, step| self.step(step, x))
    }

    fn step(&mut self, step: &Step, x: Value) -> Result<Value, OnnxError> {
        let as_row = match (step.from, &step.kind) {
            (Shape::Row(_), _) | (Shape::Image { .. }, Kind::Dense(_)) => true,
            (Shape::Image { .. } | Shape::Sequence { .. }, _) => false,
        };
        let x = if as_row && x.rank != 2 { self.one("Flatten", &x.name, int("axis", 1)) } else { x.name };
        let tensors = step.tensors();
        let name = match &step.kind {
            Kind::Dense(activation) => self.dense(step.from, &tensors, &x, *activation),
            Kind::Convolution(window, activation) => {
                let (side, stride, padding) =
                    (window.side as i64, window.stride as i64, window.padding as i64);
                let attributes = vec![
                    AttributeProto::ints("kernel_shape", [side; 2]),
                    AttributeProto::ints("strides", [stride; 2]),
                    AttributeProto::ints("pads", [padding; 4]),
                ];
                let [weight, bias] = [self.known(tensors[0]), self.known(tensors[1])];
                let sums = self.graph.node("Conv", &[&x, weight, bias], attributes);
                self.activate(*activation, sums)
            }
            Kind::MaxPool(window) => {
                let (side, stride) = (window.side as i64, window.stride as i64);
                let kernel = AttributeProto::ints("kernel_shape", [side; 2]);
                let strides = AttributeProto::ints("strides", [stride; 2]);
                self.graph.node("MaxPool", &[&x], vec![kernel, strides])
            }
            Kind::AveragePool => {
                let axes = match step.from {
                    Shape::Image { .. } => vec![2, 3],
                    Shape::Sequence { .. } => vec![1],
                    Shape::Row(_) => return Err(refused("average_pool", step)),
                };
                let axes = AttributeProto::ints("axes", axes);
                self.graph.node("ReduceMean", &[&x], vec![axes, int("keepdims", 0)])
            }
            Kind::Elementwise(function) => self.elementwise(*function, &x),
            Kind::Dropout { .. } => x,
            Kind::GroupNorm { groups } => self.group_norm(step, *groups, &x)?,
            Kind::LayerNorm => {
                let [weight, bias] = [self.known(tensors[0]), self.known(tensors[1])];
                let attributes = vec![int("axis", -1), AttributeProto::float("epsilon", EPSILON as f32)];
                self.graph.node("LayerNormalization", &[&x, weight, bias], attributes)
            }
            Kind::Residual { layers, shortcut } => {
                let x = Value { name: x, rank: rank(step.from) };
                let (through, aside) = (self.chain(layers, x.clone())?, self.chain(shortcut, x)?);
                self.graph.node("Add", &[&through.name, &aside.name], Vec::new())
            }
            Kind::Embedding { symbols } => self.embedding(*symbols, tensors[0], &x),
            Kind::Lstm => self.recurrent("LSTM", &tensors, [0, 3, 1, 2], &x),
            Kind::Gru => self.recurrent("GRU", &tensors, [1, 0, 2], &x),
            Kind::Last => {
                let last = self.graph.integers("last", &[], &[-1]);
                self.graph.node("Gather", &[&x, last], vec![int("axis", 1)])
            }
        };
        Ok(Value { name, rank: rank(step.to) })
    }

    /// An operation with one input and one setting.
    pub(super) fn one(&mut self, operation: &'static str, x: &str, attribute: AttributeProto) -> String {
        self.graph.node(operation, &[x], vec![attribute])
    }

    /// A tensor of the layout under its own name.
    fn known<'b>(&mut self, tensor: &'b Planned) -> &'b str {
        let values = self.values[tensor.name.as_str()];
        self.graph.floats(&tensor.name, &tensor.shape, values.iter().copied())
    }

    fn activate(&mut self, activation: Activation, sums: String) -> String {
        match activation {
            Activation::Identity => sums,
            Activation::Relu => self.graph.node("Relu", &[&sums], Vec::new()),
        }
    }

    fn dense(&mut self, from: Shape, tensors: &[&Planned], x: &str, activation: Activation) -> String {
        let [weight, bias] = [self.known(tensors[0]), self.known(tensors[1])];
        let sums = match from {
            Shape::Row(_) | Shape::Image { .. } => {
                self.graph.node("Gemm", &[x, weight, bias], vec![int("transB", 1)])
            }
            Shape::Sequence { .. } => {
                let turned = self.one("Transpose", weight, AttributeProto::ints("perm", [1, 0]));
                let product = self.graph.node("MatMul", &[x, &turned], Vec::new());
                self.graph.node("Add", &[&product, bias], Vec::new())
            }
        };
        self.activate(activation, sums)
    }

    fn elementwise(&mut self, function: Elementwise, x: &str) -> String {
        match function {
            Elementwise::Relu => self.graph.node("Relu", &[x], Vec::new()),
            Elementwise::Tanh => self.graph.node("Tanh", &[x], Vec::new()),
            Elementwise::Sigmoid => self.graph.node("Sigmoid", &[x], Vec::new()),
            // Opset 17 has no operation of that name: x / 2 * (1 + erf(x / sqrt 2)).
            Elementwise::Gelu => {
                let [root, one, half] = [("sqrt2", std::f32::consts::SQRT_2), ("one", 1.0), ("half", 0.5)]
                    .map(|(name, value)| self.graph.floats(name, &[], [value]));
                let scaled = self.graph.node("Div", &[x, root], Vec::new());
                let bent = self.graph.node("Erf", &[&scaled], Vec::new());
                let share = self.graph.node("Add", &[&bent, one], Vec::new());
                let product = self.graph.node("Mul", &[x, &share], Vec::new());
                self.graph.node("Mul", &[&product, half], Vec::new())
            }
        }
    }

    /// Groups as the channels of an instance normalisation, then each channel's own scale and shift. Opset 17 has no group
    /// normalisation, and that of opset 18 scales groups and not channels.
    fn group_norm(&mut self, step: &Step, groups: usize, x: &str) -> Result<String, OnnxError> {
        let Shape::Image { channels, height, width } = step.from else {
            return Err(refused("group_norm", step));
        };
        let tensors = step.tensors();
        let name = tensors[0].name.trim_end_matches(".weight");
        let grouped = format!("{name}.groups");
        let grouped = self.graph.integers(&grouped, &[3], &[0, groups as i64, -1]);
        let shape = format!("{name}.shape");
        let shape = self.graph.integers(&shape, &[4], &[0, channels as i64, height as i64, width as i64]);
        let [ones, zeros] = [(format!("ones.{groups}"), 1.0), (format!("zeros.{groups}"), 0.0)];
        let ones = self.graph.floats(&ones.0, &[groups], vec![ones.1; groups]);
        let zeros = self.graph.floats(&zeros.0, &[groups], vec![zeros.1; groups]);
        let apart = self.graph.node("Reshape", &[x, grouped], Vec::new());
        let epsilon = vec![AttributeProto::float("epsilon", EPSILON as f32)];
        let normal = self.graph.node("InstanceNormalization", &[&apart, ones, zeros], epsilon);
        let image = self.graph.node("Reshape", &[&normal, shape], Vec::new());
        // A value a channel, for every pixel of it.
        let [weight, bias] = [tensors[0], tensors[1]].map(|tensor| {
            let values = self.values[tensor.name.as_str()];
            self.graph.floats(&tensor.name, &[channels, 1, 1], values.iter().copied())
        });
        let scaled = self.graph.node("Mul", &[&image, weight], Vec::new());
        Ok(self.graph.node("Add", &[&scaled, bias], Vec::new()))
    }

    /// Symbols arrive as numbers, whose fractions are cut off. A negative place would count from the table's end: it is sent
    /// beyond it, so that whoever runs the model is told.
    fn embedding(&mut self, symbols: usize, table: &Planned, x: &str) -> String {
        let weight = self.known(table);
        let beyond = format!("{}.beyond", table.name);
        let beyond = self.graph.integers(&beyond, &[], &[symbols as i64]);
        let zero = self.graph.integers("zero", &[], &[0]);
        let place = self.one("Cast", x, int("to", i64::from(TensorProto::INT64)));
        let wrong = self.graph.node("Less", &[&place, zero], Vec::new());
        let place = self.graph.node("Where", &[&wrong, beyond, &place], Vec::new());
        self.graph.node("Gather", &[weight, &place], vec![int("axis", 0)])
    }

    /// A recurrent layer. `order` says which of our gates is each of ONNX's. Of one bias, the second is zeros.
    fn recurrent<const GATES: usize>(
        &mut self,
        operation: &'static str,
        tensors: &[&Planned],
        order: [usize; GATES],
        x: &str,
    ) -> String {
        let hidden = tensors[1].shape[1];
        let name = tensors[0].name.trim_end_matches(".weight_ih");
        let gates = |values: &[f32]| -> Vec<f32> {
            let gate = values.len() / GATES;
            order.iter().flat_map(|at| &values[at * gate..][..gate]).copied().collect()
        };
        let values = |tensor: &Planned| gates(self.values[tensor.name.as_str()]);
        let [input, state] = [tensors[0], tensors[1]].map(|tensor| (values(tensor), tensor.shape[1]));
        let mut bias = values(tensors[2]);
        bias.extend(tensors.get(3).map_or_else(|| vec![0.0; GATES * hidden], |tensor| values(tensor)));
        let [w, r, b] = ["W", "R", "B"].map(|last| format!("{name}.{last}"));
        let w = self.graph.floats(&w, &[1, GATES * hidden, input.1], input.0);
        let r = self.graph.floats(&r, &[1, GATES * hidden, state.1], state.0);
        let b = self.graph.floats(&b, &[1, 2 * GATES * hidden], bias);
        let mut attributes = vec![int("hidden_size", hidden as i64)];
        if operation == "GRU" {
            attributes.push(int("linear_before_reset", 1));
        }
        let turn = || AttributeProto::ints("perm", [1, 0, 2]);
        let steps_first = self.one("Transpose", x, turn());
        let states = self.graph.node(operation, &[&steps_first, w, r, b], attributes);
        // One direction, which has a side of its own.
        let direction = self.graph.integers("direction", &[1], &[1]);
        let states = self.graph.node("Squeeze", &[&states, direction], Vec::new());
        self.one("Transpose", &states, turn())
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

fn rank(shape: Shape) -> usize {
    match shape {
        Shape::Row(_) => 2,
        Shape::Sequence { .. } => 3,
        Shape::Image { .. } => 4,
    }
}

fn refused(layer: &str, step: &Step) -> OnnxError {
    OnnxError::Layer { layer: layer.to_owned(), given: step.from.to_string() }
}
