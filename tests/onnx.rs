//! What leaves as ONNX computes what our own forward pass computes: every architecture of `examples/*.toml`, every layer that a
//! plan may name, and what happens to a record before the model sees it, run by ONNX Runtime.
//!
//! `CONSORTIA_PYTHON` is an interpreter that can `import onnxruntime, numpy`; without it the comparison says that it skips.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/chance.rs"]
mod chance;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use consortia::learning::onnx::{Export, Inputs, export};
use consortia::learning::{Dataset, Labels, Mode, Models, SiteData, View, layout_of};
use consortia::methods::Registry;
use consortia::protocol::{
    DataSpec, LayerSpec, Loss, ModelSpec, Parameters, Spec, Standardise, Standardiser, Target,
};
use serde_json::{Value, json};

/// The wrong answer that the comparison must notice.
const CONTROL: &str = "control";

/// A file, and what it must compute.
struct Case {
    name: String,
    spec: Spec,
}

/// `model` on `data`, with the rest of a plan around it.
fn case(name: &str, model: &str, data: &str) -> Case {
    case_with_loss(name, model, data, "auto")
}

fn case_with_loss(name: &str, model: &str, data: &str, loss: &str) -> Case {
    let spec = Spec::from_json(&format!(
        r#"{{ "model": {model}, "data": {data}, "cohort_max": 1,
              "training": {{ "batch_size": 8, "loss": "{loss}", "optimizer": {{ "sgd": {{ "learning_rate": 0.1 }} }} }} }}"#
    ));
    Case { name: name.to_owned(), spec: spec.unwrap_or_else(|error| panic!("{name}: {error}")) }
}

/// The plans of the examples.
fn examples() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let plans =
        files.filter(|path| path.extension().is_some_and(|found| found == "toml")).filter_map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let plan = Registry::standard().server().parse(&text).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // What a method computes maps no record to an output.
            plan.method.is_none().then(|| Case { name, spec: (*plan.spec).clone() })
        });
    plans.collect()
}

/// A model with every layer for images.
const EVERY_IMAGE_LAYER: &str = r#"{ "layers": [
        { "convolution": { "channels": 6, "kernel": 4, "stride": 2, "padding": 1 } }, "gelu", { "dropout": 0.4 },
        { "group_norm": { "groups": 3 } },
        { "residual": { "layers": [
            { "convolution": { "channels": 4, "kernel": 3 } }, "sigmoid",
            { "residual": { "layers": [{ "group_norm": { "groups": 1 } }, "tanh"] } }
        ], "shortcut": [{ "convolution": { "channels": 4, "kernel": 1 } }, "relu"] } },
        { "max_pool": { "size": 3, "stride": 2 } }, "average_pool", "layer_norm", { "dense": { "outputs": 9 } }, "tanh"
    ] }"#;

/// A model with every layer for sequences.
const EVERY_SEQUENCE_LAYER: &str = r#"{ "layers": [
        { "embedding": { "symbols": 11, "width": 5 } }, { "lstm": { "hidden": 7 } }, "layer_norm",
        { "residual": { "layers": [{ "dense": { "outputs": 7 } }, "relu", { "dropout": 0.1 }] } },
        { "gru": { "hidden": 6 } }, "last"
    ] }"#;

/// What the examples do not have.
fn others() -> Vec<Case> {
    let classes =
        |shape: &str| format!(r#"{{ "tensor": {{ "shape": {shape}, "target": {{ "classes": 3 }} }} }}"#);
    let table = |target: &str, more: &str| {
        format!(
            r#"{{ "table": {{ "label": "y", "target": {target}, "features": ["a", "b", "c"], {more}
                  "categorical": [{{ "column": "d", "values": ["u", "v"] }}] }} }}"#
        )
    };
    let real = |more: &str| table(r#""real""#, more);
    vec![
        case("every image layer", EVERY_IMAGE_LAYER, &classes("[2, 13, 11]")),
        case("every sequence layer", EVERY_SEQUENCE_LAYER, &classes("[9]")),
        case("lstm, one step", r#"{ "layers": [{ "lstm": { "hidden": 3 } }, "last"] }"#, &classes("[1, 4]")),
        case(
            "gru to a mean",
            r#"{ "layers": [{ "gru": { "hidden": 40 } }, "average_pool"] }"#,
            &classes("[6, 4]"),
        ),
        case("a whole sequence", r#"{ "layers": [{ "gru": { "hidden": 3 } }] }"#, &classes("[6, 4]")),
        case("a whole image", r#"{ "layers": [{ "max_pool": { "size": 2 } }] }"#, &classes("[3, 4, 5]")),
        case(
            "a row of a block",
            r#"{ "layers": ["tanh", { "dense": { "outputs": 4 } }] }"#,
            &classes("[2, 3, 2, 2]"),
        ),
        case(
            "rows of a block, normalised",
            r#"{ "layers": ["layer_norm", { "residual": { "layers": ["tanh"] } }] }"#,
            &classes("[2, 3, 2, 2]"),
        ),
        case(
            "residual connections without layers",
            r#"{ "layers": [{ "residual": { "layers": [], "shortcut": ["gelu"] } }, { "residual": { "layers": [] } }] }"#,
            &classes("[2, 3, 4]"),
        ),
        case("linear on an image", r#""linear""#, &classes("[2, 3, 4]")),
        case("no layers", r#"{ "layers": [] }"#, &classes("[2, 3]")),
        case_with_loss(
            "one logit",
            r#"{ "mlp": { "hidden": [5] } }"#,
            &table(r#"{ "classes": 2 }"#, ""),
            "binary_cross_entropy",
        ),
        case(
            "a mean for what is missing",
            r#""linear""#,
            &real(r#""standardise": "federated", "missing": "mean","#),
        ),
        case("a constant for what is missing", r#""linear""#, &real(r#""missing": { "constant": 0.5 },"#)),
        case(
            "given deviations",
            r#"{ "mlp": { "hidden": [4, 3] } }"#,
            &real(r#""standardise": { "given": { "mean": [1, 1e6, -3], "std": [2, 1, 0.5] } },"#),
        ),
        case(CONTROL, r#"{ "mlp": { "hidden": [4] } }"#, &classes("[5]")),
    ]
}

/// A number from -1 to 1 that follows from two.
fn chance(seed: u64, place: usize) -> f32 {
    (chance::draw(seed.wrapping_mul(1 << 32).wrapping_add(place as u64), 1 << 24) as f32 / (1 << 23) as f32)
        - 1.0
}

/// Parameters of the size that training leaves, none of them zero.
fn parameters(spec: &Spec) -> Vec<f32> {
    let layout = layout_of(spec).unwrap();
    let scales = layout.tensors().iter().flat_map(|tensor| {
        let scale = match tensor.shape[..] {
            [_] => 0.5,
            _ => 2.0 / ((tensor.len() / tensor.shape[0]) as f32).sqrt(),
        };
        vec![scale; tensor.len()]
    });
    scales.enumerate().map(|(place, scale)| scale * chance(7, place)).collect()
}

/// Records as a file of this plan would have them.
fn records(spec: &Spec, rows: usize) -> Vec<f32> {
    let width: usize = spec.input_shape().iter().product();
    let value = |place: usize| {
        let value = chance(11, place);
        match &spec.data {
            DataSpec::Table(table) => {
                let column = place % width;
                let missing = table.missing != Default::default() && place.is_multiple_of(4);
                match table.features.get(column) {
                    Some(_) if missing => f32::NAN,
                    Some(_) if matches!(table.standardise, Standardise::Given { .. }) && column == 1 => {
                        1e6 + 3.0 * value
                    }
                    Some(_) => 3.0 * value,
                    None => f32::from(value > 0.0),
                }
            }
            _ if is_of_symbols(spec) => (5.0 * (value + 1.0)).floor(),
            DataSpec::Tensor(tensor) if tensor.divide_by.value() != 1.0 => (127.5 * (value + 1.0)).floor(),
            DataSpec::Tensor(_) | DataSpec::Own => value,
        }
    };
    (0..rows * width).map(value).collect()
}

/// Whether the records are symbols: here, of eleven.
fn is_of_symbols(spec: &Spec) -> bool {
    let ModelSpec::Layers(layers) = &spec.model else { return false };
    matches!(layers.first(), Some(LayerSpec::Embedding { symbols: 11, .. }))
}

fn standardiser(spec: &Spec) -> Option<Standardiser> {
    let DataSpec::Table(table) = &spec.data else { return None };
    let count = table.features.len();
    (table.standardise == Standardise::Federated).then(|| Standardiser {
        mean: (0..count).map(|column| f64::from(chance(13, column)) * 100.0).collect(),
        std: (0..count).map(|column| f64::from(chance(17, column)).abs() * 50.0 + 1.0).collect(),
    })
}

/// The records as the model sees them, by the code that prepares them at a site.
fn prepared(spec: &Spec, records: &[f32], rows: usize) -> Vec<f32> {
    if let DataSpec::Tensor(tensor) = &spec.data {
        let by = tensor.divide_by.value();
        return records.iter().map(|value| (f64::from(*value) / by) as f32).collect();
    }
    let labels = match spec.target() {
        Target::Classes(_) => Labels::Classes(vec![0; rows]),
        Target::Real => Labels::Real(vec![0.0; rows]),
    };
    let dataset = Dataset { shape: spec.input_shape(), features: records.to_vec().into(), labels };
    let data = SiteData { train: View::whole(Arc::new(dataset)), test: None };
    let prepared = data.prepared(spec, standardiser(spec).as_ref()).unwrap();
    prepared.train.dataset.features.to_vec()
}

/// What our own forward pass gives.
fn outputs(spec: &Spec, parameters: &[f32], records: &[f32], rows: usize) -> Vec<f32> {
    let model = Models::new().build(spec, &Device::Cpu).unwrap();
    let mut start = 0;
    for (_, var) in model.tensors() {
        let values = &parameters[start..start + var.elem_count()];
        var.set(&Tensor::from_slice(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        start += var.elem_count();
    }
    assert_eq!(start, parameters.len());
    let shape = [&[rows], spec.input_shape().as_slice()].concat();
    let x = Tensor::from_vec(prepared(spec, records, rows), shape, &Device::Cpu).unwrap();
    let y = model.forward(&x, Mode::Evaluate).unwrap();
    y.flatten_all().unwrap().to_vec1().unwrap()
}

/// The probabilities of classes, in f64.
fn probabilities(spec: &Spec, logits: &[f32]) -> Option<Vec<f32>> {
    let exp = |logit: &f32| f64::from(*logit).exp();
    match spec.loss() {
        Loss::CrossEntropy => {
            let rows = logits.chunks(spec.outputs());
            let row = |row: &[f32]| -> Vec<f32> {
                let total: f64 = row.iter().map(exp).sum();
                row.iter().map(|logit| (exp(logit) / total) as f32).collect()
            };
            Some(rows.flat_map(row).collect())
        }
        Loss::BinaryCrossEntropy => {
            Some(logits.iter().map(|logit| (1.0 / (1.0 + exp(&-logit))) as f32).collect())
        }
        Loss::MeanSquared | Loss::Auto => None,
    }
}

/// Writes a case's files into the folder, and gives its entry of the manifest.
fn write(folder: &Path, number: usize, case: &Case) -> Value {
    let Case { name, spec } = case;
    let parameters = parameters(spec);
    let scale = standardiser(spec);
    let inputs = Inputs::Raw { standardiser: scale.as_ref() };
    let file = export(Export { name, spec, parameters: &parameters, inputs }).unwrap();
    let model = format!("{number}.onnx");
    std::fs::write(folder.join(&model), file).unwrap();
    let numbers = |what: &str, rows: usize, shape: &[usize], values: &[f32]| {
        let file = format!("{number}.{rows}.{what}");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.join(&file), bytes).unwrap();
        let shape = [&[rows], shape].concat();
        json!({ "file": file, "shape": shape })
    };
    let batches = [1, 7].map(|rows| {
        let records = records(spec, rows);
        let mut outputs = outputs(spec, &parameters, &records, rows);
        assert!(outputs.iter().all(|value| value.is_finite()), "{name}: {outputs:?}");
        if name == CONTROL {
            outputs[0] += 1e-3;
        }
        let mut expected = vec![numbers("outputs", rows, &[spec.outputs()], &outputs)];
        let probabilities = probabilities(spec, &outputs);
        expected
            .extend(probabilities.map(|values| numbers("probabilities", rows, &[spec.outputs()], &values)));
        json!({ "input": numbers("input", rows, &spec.input_shape(), &records), "expected": expected })
    });
    // Symbols on both sides of those that the table has: none of them may quietly become another.
    let refused = [-1.0, 11.0].map(|symbol| {
        let rows = 1 + usize::from(symbol > 0.0);
        let mut records = records(spec, rows);
        *records.last_mut().unwrap() = symbol;
        numbers("refused", rows, &spec.input_shape(), &records)
    });
    let refused = if is_of_symbols(spec) { refused.to_vec() } else { Vec::new() };
    let outputs = match spec.loss() {
        Loss::MeanSquared | Loss::Auto => vec!["prediction"],
        Loss::CrossEntropy | Loss::BinaryCrossEntropy => vec!["logits", "probabilities"],
    };
    let sha256 = Parameters::new(parameters).sha256();
    json!({ "name": name, "model": model, "outputs": outputs, "batches": batches, "refused": refused,
            "metadata": { "plan": name, "model_sha256": sha256, "input": "raw" } })
}

#[test]
fn onnx_runtime_gives_what_our_own_forward_pass_gives() {
    let Ok(python) = std::env::var("CONSORTIA_PYTHON") else {
        eprintln!("skipped: CONSORTIA_PYTHON is not set to a Python with onnxruntime and numpy");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let cases: Vec<Case> = examples().into_iter().chain(others()).collect();
    let entries: Vec<Value> =
        cases.iter().enumerate().map(|(number, case)| write(folder.path(), number, case)).collect();
    std::fs::write(folder.path().join("cases.json"), Value::from(entries).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx/compare.py");
    let output = Command::new(&python).arg(script).arg(folder.path()).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{python}: {talk}");
    let mut worst: BTreeMap<String, f64> = serde_json::from_slice(&output.stdout).unwrap();
    println!("in tolerances: {worst:?}");
    assert_eq!(worst.len(), cases.len());
    let control = worst.remove(CONTROL).unwrap();
    assert!(control > 10.0, "the comparison misses a wrong answer: {control}");
    let far: Vec<_> = worst.iter().filter(|(_, distance)| **distance > 1.0).collect();
    assert!(far.is_empty(), "in tolerances of 1e-5 + 1e-5 |x|: {far:?}");
}

#[test]
fn every_layer_that_a_plan_may_name_is_compared() {
    let mut seen = BTreeSet::new();
    let mut models = BTreeSet::new();
    for Case { spec, .. } in examples().iter().chain(&others()) {
        models.insert(match &spec.model {
            ModelSpec::Linear => "linear",
            ModelSpec::Logistic => "logistic",
            ModelSpec::Mlp { .. } => "mlp",
            ModelSpec::Cnn { .. } => "cnn",
            ModelSpec::Layers(layers) => {
                collect(layers, &mut seen);
                "layers"
            }
            ModelSpec::Custom { .. } | ModelSpec::Values { .. } | ModelSpec::External(_) => continue,
        });
    }
    assert_eq!(models.len(), 5, "{models:?}");
    // The names that docs/federation.md lists.
    let page = include_str!("../docs/federation.md");
    let table = page.split("| layer | works on | gives |").nth(1).unwrap().split("\n\n").next().unwrap();
    let cells = table.lines().filter_map(|line| line.split('|').nth(1)).filter(|cell| cell.contains('`'));
    let named: BTreeSet<&str> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|word| word.trim_start_matches(['{', ' ', '"']).split([' ', '"']).next().unwrap())
        .collect();
    assert_eq!(seen, named);
}

fn collect(layers: &[LayerSpec], seen: &mut BTreeSet<&'static str>) {
    for layer in layers {
        seen.insert(layer.name());
        if let LayerSpec::Residual { layers, shortcut } = layer {
            collect(layers, seen);
            collect(shortcut, seen);
        }
    }
}
