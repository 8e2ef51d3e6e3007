//! Every layer and whole models in closed form against candle's automatic differentiation of its own operations in f64, over
//! shapes drawn from a fixed seed.

use candle_core::{DType, Device, Result, Tensor, Var};
use protocol::{Seed, Spec};
use rand::Rng;
use rand_chacha::ChaCha20Rng;

use super::{Chain, Elementwise, Weights, build};
use crate::model::{Kind, Mode, Models, Planned, Shape, Start, Step, steps};
use crate::ops::{self, composed};

#[path = "tests/any.rs"]
mod any;

/// Relative to the norm of a tensor's gradient and a twentieth of that of all.
const TOLERANCE: f64 = 1e-5;

struct Case {
    what: String,
    spec: Spec,
    steps: Vec<Step>,
    batch: usize,
    x: Vec<f32>,
    /// In layout order.
    parameters: Vec<f32>,
    /// What results are weighed by.
    weights: Vec<f32>,
    mode: Mode,
    tolerance: f64,
    /// What norms are at least taken for.
    floor: f64,
}

/// Results, and gradients of the parameters in layout order and of the input.
struct Found {
    y: Vec<f64>,
    parameters: Vec<f64>,
    x: Vec<f64>,
}

fn drawn(count: usize, range: f32, generator: &mut ChaCha20Rng) -> Vec<f32> {
    (0..count).map(|_| generator.random_range(-range..range)).collect()
}

fn first_values(tensor: &Planned, generator: &mut ChaCha20Rng) -> Vec<f32> {
    let inputs: usize = tensor.shape[1..].iter().product();
    match tensor.start {
        Start::Drawn => {
            drawn(tensor.shape.iter().product(), 1.5 / (inputs as f32).sqrt().max(1.0), generator)
        }
        Start::Constant(value) => {
            drawn(tensor.shape[0], 0.5, generator).into_iter().map(|v| v + f32::from(value)).collect()
        }
    }
}

fn spec_of(layers: &str, shape: &[usize], batch: usize) -> std::result::Result<Spec, protocol::SpecError> {
    Spec::from_json(&format!(
        r#"{{"model": {{"layers": {layers}}}, "data": {{"tensor": {{"shape": {shape:?}, "target": {{"classes": 3}}}}}},
        "training": {{"batch_size": {batch}, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 1}}"#
    ))
}

impl Case {
    fn new(layers: &str, shape: &[usize], batch: usize, generator: &mut ChaCha20Rng) -> Self {
        let spec = spec_of(layers, shape, batch).unwrap_or_else(|error| panic!("{layers}: {error:?}"));
        let steps = steps(&spec).unwrap_or_else(|error| panic!("{layers} of {shape:?}: {error}")).unwrap();
        let count = batch * shape.iter().product::<usize>();
        let x = match crate::data::symbols(&spec) {
            Some(symbols) => (0..count).map(|_| generator.random_range(0..symbols) as f32).collect(),
            None => drawn(count, 1.5, generator),
        };
        let tensors: Vec<&Planned> = steps.iter().flat_map(Step::tensors).collect();
        let parameters = tensors.iter().flat_map(|tensor| first_values(tensor, generator)).collect();
        let weights = drawn(batch * spec.outputs(), 1.0, generator);
        let mode = Mode::Train(Seed::from_number(generator.random()));
        let what = format!("{layers} of {batch} x {shape:?}");
        let (tolerance, floor) = (TOLERANCE, 0.0);
        Self { what, spec, steps, batch, x, parameters, weights, mode, tolerance, floor }
    }

    fn chain(&self) -> Chain {
        build(&self.steps, self.batch).unwrap_or_else(|| panic!("{} has no closed form", self.what))
    }

    /// In closed form.
    fn closed(&self) -> Found {
        let mut chain = self.chain();
        let length = self.parameters.len();
        let (mut own, mut gradient, mut natural) =
            (vec![0.0; length], vec![f32::NAN; length], vec![0.0; length]);
        chain.import(&self.parameters, &mut own);
        let mut back = vec![0.0; length];
        chain.export(&own, &mut back);
        assert_eq!(back, self.parameters, "{}: the orders are not each other's inverse", self.what);
        let y = chain.run(self.batch, self.mode, &own, &self.x).to_vec();
        chain.results_and_gradient(self.batch).1.copy_from_slice(&self.weights);
        let mut x_gradient = vec![f32::NAN; self.x.len()];
        let weights = Weights::Measure { parameters: &own, gradient: &mut gradient, keep: 0.0 };
        chain.back(self.batch, weights, &self.x, Some(&mut x_gradient));
        chain.export(&gradient, &mut natural);
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        Found { y: wide(y), parameters: wide(natural), x: wide(x_gradient) }
    }

    /// By automatic differentiation of candle's operations in f64.
    fn composed(&self) -> Result<Found> {
        let (device, mut start) = (&Device::Cpu, 0);
        let mut vars = Vec::new();
        for tensor in self.steps.iter().flat_map(Step::tensors) {
            let range = start..start + tensor.shape.iter().product::<usize>();
            start = range.end;
            let values = Tensor::from_slice(&self.parameters[range], tensor.shape.as_slice(), device)?;
            vars.push(Var::from_tensor(&values.to_dtype(DType::F64)?)?);
        }
        let shape: Vec<usize> = [self.batch].into_iter().chain(self.spec.input_shape()).collect();
        let x = Var::from_tensor(&Tensor::from_slice(&self.x, shape, device)?.to_dtype(DType::F64)?)?;
        let y = reference(&self.steps, &mut vars.iter(), x.as_tensor().clone(), self.mode)?;
        let weights = Tensor::from_slice(&self.weights, y.shape(), device)?.to_dtype(DType::F64)?;
        let gradients = y.mul(&weights)?.sum_all()?.backward()?;
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f64>();
        let mut parameters = Vec::new();
        for var in &vars {
            parameters.extend(gradients.get(var).map_or(Ok(vec![0.0; var.elem_count()]), values)?);
        }
        let x = gradients.get(&x).map_or(Ok(vec![0.0; self.x.len()]), values)?;
        Ok(Found { y: values(&y)?, parameters, x })
    }

    /// By automatic differentiation of the model that a spec builds.
    fn built(&self) -> Result<Found> {
        let (device, mut start) = (&Device::Cpu, 0);
        let model = Models::new().build(&self.spec, device).expect("the spec is good");
        let vars: Vec<Var> = model.tensors().into_iter().map(|(_, var)| var).collect();
        for var in &vars {
            let range = start..start + var.elem_count();
            start = range.end;
            var.set(&Tensor::from_slice(&self.parameters[range], var.shape(), device)?)?;
        }
        let shape: Vec<usize> = [self.batch].into_iter().chain(self.spec.input_shape()).collect();
        let x = Var::from_slice(&self.x, shape, device)?;
        let y = model.forward(&x, self.mode)?;
        let weights = Tensor::from_slice(&self.weights, y.shape(), device)?;
        let gradients = y.mul(&weights)?.sum_all()?.backward()?;
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let mut parameters = Vec::new();
        for var in &vars {
            parameters.extend(gradients.get(var).map_or(Ok(vec![0.0; var.elem_count()]), values)?);
        }
        let x = gradients.get(&x).map_or(Ok(vec![0.0; self.x.len()]), values)?;
        Ok(Found { y: values(&y)?, parameters, x })
    }

    fn compare(&self, way: &str, found: &Found, expected: &Found) {
        let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let all = norm(&expected.parameters);
        let near = |name: &str, found: &[f64], expected: &[f64], floor: f64| {
            let difference: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            let allowed = self.tolerance * (norm(expected) + floor + self.floor);
            let error = norm(&difference);
            assert!(error <= allowed, "{} {way}: {name} errs by {error:e}, more than {allowed:e}", self.what);
        };
        near("the result", &found.y, &expected.y, 0.0);
        near("the input's gradient", &found.x, &expected.x, 0.0);
        let mut start = 0;
        for tensor in self.steps.iter().flat_map(Step::tensors) {
            let range = start..start + tensor.shape.iter().product::<usize>();
            start = range.end;
            near(&tensor.name, &found.parameters[range.clone()], &expected.parameters[range], 0.05 * all);
        }
    }

    fn check(&self) {
        let expected = self.composed().unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let closed = self.closed();
        self.compare("in closed form", &closed, &expected);
        self.compare("built", &self.built().unwrap(), &expected);
        self.descend(&closed);
    }

    /// Steps and sums agree with the measured gradient.
    fn descend(&self, closed: &Found) {
        let length = self.parameters.len();
        let (mut chain, mut own, mut natural) = (self.chain(), vec![0.0; length], vec![0.0; length]);
        chain.import(&self.parameters, &mut own);
        let mut sum = own.clone();
        let run = |chain: &mut Chain, own: &[f32]| {
            chain.run(self.batch, self.mode, own, &self.x);
            chain.results_and_gradient(self.batch).1.copy_from_slice(&self.weights);
        };
        run(&mut chain, &own);
        let weights = Weights::Measure { parameters: &own, gradient: &mut sum, keep: 1.0 };
        chain.back(self.batch, weights, &self.x, None);
        run(&mut chain, &own);
        let weights = Weights::Descend { parameters: &mut own, rate: 0.25, keep: 0.875 };
        chain.back(self.batch, weights, &self.x, None);
        for (what, own, scale, keep) in [("a sum", sum, 1.0, 1.0), ("a step", own, -0.25, 0.875)] {
            chain.export(&own, &mut natural);
            for (place, value) in natural.iter().enumerate() {
                let before = f64::from(self.parameters[place]);
                let expected = keep * before + scale * closed.parameters[place];
                let allowed = 1e-5 * (before.abs() + closed.parameters[place].abs() + 1.0);
                let error = (f64::from(*value) - expected).abs();
                assert!(error <= allowed, "{}: {what} at {place} is {value}, not {expected}", self.what);
            }
        }
    }
}

fn reference<'a>(
    steps: &[Step],
    vars: &mut impl Iterator<Item = &'a Var>,
    x: Tensor,
    mode: Mode,
) -> Result<Tensor> {
    steps
        .iter()
        .try_fold(x, |x, step| step_of(step, &mut *vars as &mut dyn Iterator<Item = &'a Var>, x, mode))
}

fn step_of(step: &Step, mut vars: &mut dyn Iterator<Item = &Var>, x: Tensor, mode: Mode) -> Result<Tensor> {
    let mut var = || vars.next().expect("as many variables as tensors").as_tensor();
    let x = if matches!(step.from, Shape::Row(_)) && x.rank() != 2 { x.flatten_from(1)? } else { x };
    match &step.kind {
        Kind::Dense(activation) => {
            let x = if matches!(step.from, Shape::Sequence { .. }) { x } else { x.flatten_from(1)? };
            composed::linear(&x, var(), var(), *activation)
        }
        Kind::Convolution(window, activation) => {
            composed::convolution(&x, var(), var(), (window.stride, window.padding), *activation)
        }
        Kind::MaxPool(window) => composed::max_pool(&x, window.side, window.stride),
        Kind::AveragePool if x.rank() == 4 => x.flatten_from(2)?.mean(2),
        Kind::AveragePool => x.mean(1),
        Kind::Elementwise(Elementwise::Relu) => x.relu(),
        Kind::Elementwise(Elementwise::Gelu) => x.gelu_erf(),
        Kind::Elementwise(Elementwise::Tanh) => x.tanh(),
        Kind::Elementwise(Elementwise::Sigmoid) => candle_nn::ops::sigmoid(&x),
        Kind::Dropout { probability, number } => {
            let ones = Tensor::ones(x.shape(), DType::F32, x.device())?;
            x.mul(&ops::dropout(&ones, *probability, mode, *number)?.to_dtype(DType::F64)?)
        }
        Kind::GroupNorm { groups } => composed::group_norm(&x, var(), var(), *groups),
        Kind::LayerNorm => composed::layer_norm(&x, var(), var()),
        Kind::Residual { layers, shortcut } => {
            let y = reference(layers, &mut vars, x.clone(), mode)?;
            y + reference(shortcut, &mut vars, x, mode)?
        }
        Kind::Embedding { .. } => composed::embedding(&x, var()),
        Kind::Lstm => composed::lstm(&x, var(), var(), var()),
        Kind::Gru => composed::gru(&x, [var(), var()], [var(), var()]),
        Kind::Last => x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1),
    }
}

/// Cases of one kind of layer, with numbers from a generator.
fn cases(count: u64, case: impl Fn(&mut ChaCha20Rng) -> (String, Vec<usize>)) {
    for number in 0..count {
        let generator = &mut Seed::from_number(number).generator();
        let (layers, shape) = case(generator);
        let batch = generator.random_range(1..13);
        Case::new(&layers, &shape, batch, generator).check();
    }
}

#[test]
fn dense_layers_of_rows_images_and_sequences() {
    cases(24, |generator| {
        let activation = ["", r#", "relu""#][generator.random_range(0..2)];
        let shape: Vec<usize> =
            (0..generator.random_range(1..4)).map(|_| generator.random_range(1..12)).collect();
        (format!(r#"[{{"dense": {{"outputs": {}}}}}{activation}]"#, generator.random_range(1..40)), shape)
    });
}

#[test]
fn convolutions_of_any_side_stride_and_padding() {
    cases(40, |generator| {
        let kernel = [1, 2, 3, 3, 4, 5, 5, 7][generator.random_range(0..8)];
        let (stride, padding) = (generator.random_range(1..4), generator.random_range(0..kernel));
        let mut side = || generator.random_range(kernel..kernel + 9);
        let (height, width) = (side(), side());
        let (inputs, channels) = (generator.random_range(1..20), generator.random_range(1..20));
        let activation = ["", r#", "relu""#][generator.random_range(0..2)];
        let layers = format!(
            r#"[{{"convolution": {{"channels": {channels}, "kernel": {kernel}, "stride": {stride}, "padding": {padding}}}}}{activation}]"#
        );
        (layers, vec![inputs, height, width])
    });
}

#[test]
fn pools_of_any_size_and_stride() {
    cases(24, |generator| {
        let (size, stride) = (generator.random_range(1..5), generator.random_range(1..4));
        let mut side = || generator.random_range(size..size + 7);
        let (height, width) = (side(), side());
        let layer = match generator.random_range(0..4) {
            0 => r#""average_pool""#.to_owned(),
            _ => format!(r#"{{"max_pool": {{"size": {size}, "stride": {stride}}}}}"#),
        };
        (format!("[{layer}]"), vec![generator.random_range(1..20), height, width])
    });
}

#[test]
fn activations_and_dropout_on_images_and_rows() {
    cases(24, |generator| {
        let layer = [r#""relu""#, r#""gelu""#, r#""tanh""#, r#""sigmoid""#, r#"{"dropout": 0.3}"#];
        let layer = layer[generator.random_range(0..5)];
        let convolution = r#"{"convolution": {"channels": 5, "kernel": 2}}"#;
        match generator.random_range(0..2) {
            0 => (format!("[{layer}, {convolution}, {layer}]"), vec![3, 6, 5]),
            _ => {
                (format!(r#"[{{"dense": {{"outputs": 70}}}}, {layer}]"#), vec![generator.random_range(1..40)])
            }
        }
    });
}

#[test]
fn normalisations_of_images_rows_and_sequences() {
    cases(30, |generator| {
        let (groups, each) = (generator.random_range(1..6), generator.random_range(1..6));
        let (height, width) = (generator.random_range(1..8), generator.random_range(2..8));
        let group = format!(r#"[{{"group_norm": {{"groups": {groups}}}}}, "relu"]"#);
        match generator.random_range(0..3) {
            0 => (r#"["layer_norm"]"#.into(), vec![generator.random_range(2..80)]),
            1 => (r#"["layer_norm", "average_pool"]"#.into(), vec![height, generator.random_range(2..80)]),
            _ => (group, vec![groups * each, height, width]),
        }
    });
}

#[test]
fn recurrent_layers_over_sequences_of_any_length() {
    cases(24, |generator| {
        let kind = ["lstm", "gru"][generator.random_range(0..2)];
        let hidden = generator.random_range(1..40);
        let end = ["", r#", "last""#, r#", "average_pool""#, r#", {"dense": {"outputs": 4}}"#]
            [generator.random_range(0..4)];
        let layers = format!(r#"[{{"{kind}": {{"hidden": {hidden}}}}}{end}]"#);
        (layers, vec![generator.random_range(1..9), generator.random_range(1..20)])
    });
}

#[test]
fn embeddings_of_symbols_that_come_again() {
    cases(8, |generator| {
        let (symbols, width) = (generator.random_range(1..9), generator.random_range(1..20));
        (format!(r#"[{{"embedding": {{"symbols": {symbols}, "width": {width}}}}}]"#), vec![7])
    });
}

#[test]
fn whole_models() {
    let block = |channels: usize, stride: usize| {
        let convolution = |stride: usize| {
            format!(r#"{{"convolution": {{"channels": {channels}, "kernel": 3, "stride": {stride}}}}}"#)
        };
        let shortcut = match stride {
            1 => String::new(),
            _ => format!(
                r#", "shortcut": [{{"convolution": {{"channels": {channels}, "kernel": 1, "stride": {stride}}}}}, {{"group_norm": {{"groups": 2}}}}]"#
            ),
        };
        format!(
            r#"{{"residual": {{"layers": [{}, {{"group_norm": {{"groups": 2}}}}, "relu", {}, {{"group_norm": {{"groups": 4}}}}]{shortcut}}}}}, "relu""#,
            convolution(stride),
            convolution(1)
        )
    };
    let stem = r#"{"convolution": {"channels": 8, "kernel": 3}}, {"group_norm": {"groups": 2}}, "relu""#;
    let residual =
        format!(r#"[{stem}, {}, {}, {}, "average_pool"]"#, block(8, 1), block(16, 2), block(16, 1));
    let text = |kind: &str| {
        format!(
            r#"[{{"embedding": {{"symbols": 11, "width": 8}}}}, {{"{kind}": {{"hidden": 24}}}}, {{"{kind}": {{"hidden": 20}}}}, "last"]"#
        )
    };
    let mlp = r#"[{"dense": {"outputs": 40}}, "layer_norm", "gelu", {"dropout": 0.25},
        {"residual": {"layers": [{"dense": {"outputs": 40}}, "tanh", {"dropout": 0.5}]}}, {"dense": {"outputs": 9}}, "sigmoid"]"#;
    let cnn = r#"[{"convolution": {"channels": 8, "kernel": 5}}, "relu", {"max_pool": {"size": 3, "stride": 2}}, {"dropout": 0.5},
        {"convolution": {"channels": 12, "kernel": 3, "padding": 0}}, "gelu", {"max_pool": {"size": 2}}, {"dense": {"outputs": 30}}, "relu"]"#;
    let models: [(&str, &[usize]); 5] = [
        (&residual, &[3, 13, 10]),
        (&text("lstm"), &[12]),
        (&text("gru"), &[12]),
        (mlp, &[17]),
        (cnn, &[3, 14, 17]),
    ];
    for (number, (layers, shape)) in models.into_iter().enumerate() {
        for batch in [1, 10] {
            Case::new(layers, shape, batch, &mut Seed::from_number(number as u64).generator()).check();
        }
    }
}

#[test]
fn a_symbol_that_the_table_does_not_have_is_not_hidden() {
    let layers = r#"[{"embedding": {"symbols": 5, "width": 3}}]"#;
    for symbol in [-1.0, 5.0, f32::NAN] {
        let mut case = Case::new(layers, &[4], 2, &mut Seed::from_number(1).generator());
        case.x[6] = symbol;
        let found = case.closed();
        assert!(found.y[..3].iter().all(|value| value.is_finite()), "the other record is as it was");
        assert!(found.y[3..].iter().all(|value| value.is_nan()));
        assert!(case.built().is_err());
    }
}
