//! Names, shapes, placement and first values of every family.

use protocol::Placement;

use super::*;
use crate::initial_parameters;

fn spec(model: &str, shape: &str, personal: &str) -> Spec {
    Spec::from_json(&format!(
        r#"{{"model": {model}, "data": {{"tensor": {{"shape": {shape}, "target": {{"classes": 10}}}}}},
        "training": {{"batch_size": 10, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}},
        "personal_layers": {personal}, "cohort_max": 10}}"#
    ))
    .unwrap()
}

#[test]
fn the_default_cnn_is_the_network_of_1_663_370_parameters() {
    let layout = layout_of(&spec(r#"{"cnn": {}}"#, "[1, 28, 28]", "[]")).unwrap();
    assert_eq!(layout.len(), 1_663_370);
    let tensors: Vec<(&str, &[usize])> =
        layout.tensors().iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..])).collect();
    let expected: [(&str, &[usize]); 8] = [
        ("conv1.weight", &[32, 1, 5, 5]),
        ("conv1.bias", &[32]),
        ("conv2.weight", &[64, 32, 5, 5]),
        ("conv2.bias", &[64]),
        ("dense1.weight", &[512, 3136]),
        ("dense1.bias", &[512]),
        ("dense2.weight", &[10, 512]),
        ("dense2.bias", &[10]),
    ];
    assert_eq!(tensors, expected);
}

#[test]
fn a_built_model_has_the_layout_that_was_promised() {
    for model in
        [r#""linear""#, r#""logistic""#, r#"{"mlp": {"hidden": [7, 5]}}"#, r#"{"cnn": {"hidden": 9}}"#]
    {
        let spec = spec(model, "[2, 9, 12]", "[]");
        let built = Models::new().build(&spec, &Device::Cpu).unwrap();
        assert_eq!(layout_of_model(built.as_ref()).unwrap(), layout_of(&spec).unwrap(), "{model}");
        let x = Tensor::zeros((3, 2, 9, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(built.forward(&x, Mode::Evaluate).unwrap().dims(), [3, 10]);
    }
}

#[test]
fn personal_layers_stay_at_the_site_and_unknown_ones_are_refused() {
    let layout = layout_of(&spec(r#"{"mlp": {"hidden": [4]}}"#, "[3]", r#"["dense2"]"#)).unwrap();
    let site = |tensor: &&protocol::Tensor| tensor.placement == Placement::Site;
    let names: Vec<_> = layout.tensors().iter().filter(site).map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["dense2.weight", "dense2.bias"]);
    assert!(matches!(layout_of(&spec(r#""logistic""#, "[3]", r#"["head"]"#)), Err(ModelError::Layout(_))));
}

#[test]
fn first_values_follow_from_the_seed_and_stay_within_the_layers_range() {
    let spec = spec(r#"{"mlp": {"hidden": [50]}}"#, "[16]", "[]");
    let values = initial_parameters(&spec, Seed::from_number(1)).unwrap();
    assert_eq!(values, initial_parameters(&spec, Seed::from_number(1)).unwrap());
    assert_ne!(values, initial_parameters(&spec, Seed::from_number(2)).unwrap());
    let layout = layout_of(&spec).unwrap();
    assert_eq!(values.len(), layout.len());
    let largest =
        |tensor: &protocol::Tensor| values[tensor.range()].iter().fold(0f32, |max, v| max.max(v.abs()));
    let [weight1, bias1, weight2, _] = layout.tensors() else { panic!("four tensors") };
    assert!((0.245..=0.25).contains(&largest(weight1)) && (0.2..=0.25).contains(&largest(bias1)));
    assert!((0.135..=0.1415).contains(&largest(weight2)));
}

#[test]
fn a_logistic_model_starts_at_zero() {
    let spec = spec(r#""logistic""#, "[4]", "[]");
    assert_eq!(initial_parameters(&spec, Seed::from_number(1)).unwrap(), vec![0.0; 50]);
}

#[test]
fn a_size_that_cannot_be_is_refused_before_it_is_allocated() {
    let json = |model: &str, shape: &str| {
        Spec::from_json(&format!(
            r#"{{"model": {model}, "data": {{"tensor": {{"shape": {shape}, "target": {{"classes": 10}}}}}},
            "training": {{"batch_size": 10, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}}, "cohort_max": 10}}"#
        ))
    };
    let logistic = r#""logistic""#;
    assert_eq!(json(logistic, &format!("[{}, 2]", usize::MAX)).unwrap_err().key, "data");
    assert_eq!(json(logistic, "[1000000, 1000000]").unwrap_err().key, "data");
    assert_eq!(json(r#"{"mlp": {"hidden": [100000, 100000]}}"#, "[4]").unwrap_err().key, "model");
}

#[test]
fn what_a_spec_is_counted_to_have_is_what_its_layout_has() {
    let image = "[3, 16, 20]";
    let sequence = "[12, 5]";
    for (model, shape) in [
        (r#""linear""#, "[4]"),
        (r#"{"mlp": {"hidden": [7, 3]}}"#, image),
        (r#"{"cnn": {"channels": [4, 6, 2], "kernel": 3, "hidden": 9}}"#, image),
        (r#"{"layers": [{"dense": {"outputs": 5}}, "relu", "layer_norm", {"dropout": 0.5}]}"#, "[4]"),
        (r#"{"layers": [{"dense": {"outputs": 5}}, "gelu"]}"#, image),
        (
            r#"{"layers": [{"convolution": {"channels": 8, "kernel": 4, "stride": 3, "padding": 1}}, {"group_norm": {"groups": 4}},
            "tanh", {"max_pool": {"size": 3, "stride": 2}}, "average_pool"]}"#,
            image,
        ),
        (
            r#"{"layers": [{"residual": {"layers": [{"convolution": {"channels": 6, "kernel": 3}}],
            "shortcut": [{"convolution": {"channels": 6, "kernel": 1}}]}}, {"max_pool": {"size": 2}}]}"#,
            image,
        ),
        (
            r#"{"layers": [{"lstm": {"hidden": 6}}, "layer_norm", {"gru": {"hidden": 4}}, {"dense": {"outputs": 3}}, "last"]}"#,
            sequence,
        ),
        (r#"{"layers": [{"gru": {"hidden": 4}}, "average_pool"]}"#, sequence),
        (r#"{"layers": [{"embedding": {"symbols": 20, "width": 3}}, {"lstm": {"hidden": 4}}]}"#, "[9]"),
    ] {
        let spec = spec(model, shape, "[]");
        assert_eq!(spec.parameters(), Some(layout_of(&spec).unwrap().len() as u64), "{model}");
    }
    let misfit = spec(r#"{"layers": ["last"]}"#, "[4]", "[]");
    assert!(misfit.parameters().is_none() && layout_of(&misfit).is_err());
}

struct Scaled(Var, Var);

impl Model for Scaled {
    fn tensors(&self) -> Vec<(String, Var)> {
        vec![("scale".into(), self.0.clone()), ("layer.weight".into(), self.1.clone())]
    }

    fn forward(&self, x: &Tensor, _mode: Mode) -> candle_core::Result<Tensor> {
        x.broadcast_mul(&self.0)?.matmul(&self.1.t()?)
    }
}

#[test]
fn a_custom_model_is_found_by_its_name_and_keeps_the_scale_it_was_built_with() {
    let spec = spec(r#"{"custom": {"name": "scaled"}}"#, "[4]", "[]");
    let error = layout_of(&spec).unwrap_err().to_string();
    assert!(error.contains("`scaled`") && error.contains("no custom models"), "{error}");
    let models = Models::new().with("scaled", |_, device| {
        let scale = Var::ones(4, candle_core::DType::F32, device)?;
        Ok(Box::new(Scaled(scale, Var::zeros((10, 4), candle_core::DType::F32, device)?)))
    });
    assert_eq!(models.layout_of(&spec).unwrap().len(), 44);
    let values = models.initial_parameters(&spec, Seed::from_number(1)).unwrap();
    assert_eq!(values[..4], [1.0; 4]);
    assert!(values[4..].iter().all(|value| value.abs() <= 0.5 && *value != 0.0));
}
