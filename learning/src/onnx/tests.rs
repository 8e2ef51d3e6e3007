//! What a file says, without a program that runs it: `tests/onnx.rs` of the whole program compares numbers with ONNX Runtime.

use std::collections::BTreeMap;

use protocol::Seed;

use super::proto::GraphProto;
use super::*;
use crate::initial_parameters;

const TRAINING: &str =
    r#""training": { "batch_size": 8, "optimizer": { "sgd": { "learning_rate": 0.1 } } }, "cohort_max": 1"#;

fn spec(model: &str, data: &str) -> Spec {
    Spec::from_json(&format!(r#"{{ "model": {model}, "data": {data}, {TRAINING} }}"#)).unwrap()
}

fn image(model: &str) -> Spec {
    spec(model, r#"{ "tensor": { "shape": [1, 4, 4], "target": { "classes": 3 }, "divide_by": 255 } }"#)
}

fn table(standardise: &str, missing: &str) -> Spec {
    let data = format!(
        r#"{{ "table": {{ "label": "ill", "target": "real", "features": ["age", "chol"], "standardise": {standardise},
              "missing": {missing}, "categorical": [{{ "column": "cp", "values": ["a", "b"] }}] }} }}"#
    );
    spec(r#""linear""#, &data)
}

fn parameters(spec: &Spec) -> Vec<f32> {
    initial_parameters(spec, Seed::from_number(3)).unwrap()
}

fn written(spec: &Spec, inputs: Inputs<'_>) -> Result<ModelProto, OnnxError> {
    write(Export { name: "test", spec, parameters: &parameters(spec), inputs })
}

fn raw<'a>() -> Inputs<'a> {
    Inputs::Raw { standardiser: None }
}

fn graph(spec: &Spec, inputs: Inputs<'_>) -> GraphProto {
    written(spec, inputs).unwrap().graph.unwrap()
}

fn kinds(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

#[test]
fn a_small_network_has_the_operations_of_its_layers_in_order() {
    let spec = image(
        r#"{ "layers": [
            { "convolution": { "channels": 2, "kernel": 3 } }, "relu", { "dropout": 0.5 },
            { "residual": { "layers": [{ "convolution": { "channels": 2, "kernel": 3 } }, { "group_norm": { "groups": 2 } }] } },
            { "max_pool": { "size": 2 } }, { "dense": { "outputs": 5 } }, "gelu"
        ] }"#,
    );
    let graph = graph(&spec, raw());
    let expected = "Div Conv Relu Conv Reshape InstanceNormalization Reshape Mul Add Add MaxPool Flatten Gemm \
                    Div Erf Add Mul Mul Gemm Identity Softmax";
    assert_eq!(kinds(&graph).join(" "), expected);
    // Every name is somebody's before it is used, and nobody's twice.
    let mut known: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    known.push("input");
    for node in &graph.node {
        assert!(node.input.iter().all(|name| known.contains(&name.as_str())), "{node:?}");
        assert!(!known.contains(&node.output[0].as_str()), "{node:?}");
        known.push(&node.output[0]);
    }
    for output in &graph.output {
        assert!(known.contains(&output.name.as_str()), "{output:?}");
    }
}

#[test]
fn tensors_keep_their_names_and_values() {
    let spec = image(r#"{ "mlp": { "hidden": [3] } }"#);
    let graph = graph(&spec, Inputs::Prepared);
    assert_eq!(kinds(&graph), ["Flatten", "Gemm", "Relu", "Gemm", "Identity", "Softmax"]);
    let layout = crate::layout_of(&spec).unwrap();
    let values = parameters(&spec);
    let found: BTreeMap<&str, _> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    assert_eq!(found.len(), layout.tensors().len());
    for tensor in layout.tensors() {
        let bytes: Vec<u8> = values[tensor.range()].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(found[tensor.name.as_str()].raw_data, bytes, "{}", tensor.name);
    }
}

#[test]
fn the_file_says_what_goes_in_and_where_it_comes_from() {
    let standardiser = Standardiser { mean: vec![50.0, 200.0], std: vec![10.0, 40.0] };
    let spec = table(r#""federated""#, r#""mean""#);
    let model = written(&spec, Inputs::Raw { standardiser: Some(&standardiser) }).unwrap();
    let lines: BTreeMap<&str, &str> =
        model.metadata_props.iter().map(|line| (line.key.as_str(), line.value.as_str())).collect();
    assert_eq!(lines["plan"], "test");
    assert_eq!(lines["columns"], r#"["age","chol","cp=a","cp=b"]"#);
    assert_eq!((lines["label"], lines["target"], lines["input"]), ("ill", "real", "raw"));
    assert_eq!(lines["model_sha256"], Parameters::new(parameters(&spec)).sha256());
    let graph = model.graph.as_ref().unwrap();
    let expected = ["IsNaN", "Where", "Sub", "Div", "Cast", "Gemm", "Identity"];
    assert_eq!(kinds(graph), expected);
    let shape = graph.input[0].kind.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
    assert_eq!(shape.dim[0].dim_param.as_deref(), Some("batch"));
    assert_eq!(shape.dim[1].dim_value, Some(4));
    assert_eq!(ModelProto::decode(model.encode_to_vec().as_slice()).unwrap(), model);
    let prepared = self::graph(&spec, Inputs::Prepared);
    assert_eq!(kinds(&prepared), ["Gemm", "Identity"]);
    let numbers =
        |graph: &GraphProto| graph.input[0].kind.as_ref().unwrap().tensor_type.as_ref().unwrap().elem_type;
    assert_eq!((numbers(graph), numbers(&prepared)), (TensorProto::DOUBLE, TensorProto::FLOAT));
}

#[test]
fn what_is_filled_and_standardised_follows_the_plan() {
    let given = table(r#"{ "given": { "mean": [1, 2], "std": [3, 4] } }"#, r#""refuse""#);
    assert_eq!(kinds(&graph(&given, raw())), ["Sub", "Div", "Cast", "Gemm", "Identity"]);
    let filled = table(r#""none""#, r#"{ "constant": 7 }"#);
    assert_eq!(kinds(&graph(&filled, raw())), ["IsNaN", "Where", "Cast", "Gemm", "Identity"]);
    assert_eq!(kinds(&graph(&table(r#""none""#, r#""mean""#), raw())), ["Gemm", "Identity"]);
}

#[test]
fn without_the_federation_s_standardiser_raw_columns_are_refused() {
    let spec = table(r#""federated""#, r#""refuse""#);
    assert_eq!(written(&spec, raw()).unwrap_err(), OnnxError::NoStandardiser { columns: 2 });
    let short = Standardiser { mean: vec![1.0], std: vec![1.0] };
    let error = written(&spec, Inputs::Raw { standardiser: Some(&short) }).unwrap_err();
    assert_eq!(error, OnnxError::Standardiser { means: 1, deviations: 1, columns: 2 });
    let site = table(r#""site""#, r#""refuse""#);
    assert_eq!(written(&site, raw()).unwrap_err(), OnnxError::SiteStandardiser);
    assert!(written(&site, Inputs::Prepared).is_ok());
}

#[test]
fn a_model_without_its_personal_part_is_refused_and_with_it_is_not() {
    let mut spec = image(r#"{ "mlp": { "hidden": [3] } }"#);
    spec.personal_layers = vec!["dense2".into()];
    let all = parameters(&spec);
    let shared = crate::layout_of(&spec).unwrap().gather_shared(&all);
    let of = |parameters: &[f32]| write(Export { name: "test", spec: &spec, parameters, inputs: raw() });
    let error = of(&shared).unwrap_err();
    assert!(matches!(error, OnnxError::SharedOnly { found: 51, needed: 63, .. }), "{error:?}");
    assert!(error.to_string().contains("`dense2.weight`, `dense2.bias` at the sites"), "{error}");
    let whole = of(&all).unwrap();
    let sha256 = whole.metadata_props.iter().find(|line| line.key == "model_sha256").unwrap();
    assert_eq!(
        sha256.value,
        Parameters::new(shared).sha256(),
        "the fingerprint is that of the federation's model"
    );
    assert_eq!(of(&all[1..]).unwrap_err(), OnnxError::Length { found: 62, needed: 63 });
}

#[test]
fn code_of_one_s_own_and_what_no_file_can_hold_are_refused_by_name() {
    let custom = image(r#"{ "custom": { "name": "mine" } }"#);
    let inputs = raw();
    let error = write(Export { name: "test", spec: &custom, parameters: &[], inputs }).unwrap_err();
    assert_eq!(error, OnnxError::Custom("mine".into()));
    let large = spec(
        r#"{ "mlp": { "hidden": [250000000] } }"#,
        r#"{ "tensor": { "shape": [1], "target": "real" } }"#,
    );
    let error = write(Export { name: "test", spec: &large, parameters: &[], inputs }).unwrap_err();
    assert_eq!(error, OnnxError::TooLarge(4 * 750_000_001));
}
