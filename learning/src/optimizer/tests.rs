//! Steps against hand calculation, and the fused rules against the composed ones.

use candle_core::Device;
use protocol::Positive;

use super::*;

/// Reads an optimizer from the text that a plan's JSON would hold, through a whole spec.
fn spec(json: &str) -> OptimizerSpec {
    let spec = format!(
        r#"{{"model": "logistic", "data": {{"tensor": {{"shape": [1], "target": {{"classes": 2}}}}}},
        "training": {{"batch_size": 1, "optimizer": {json}}}, "cohort_max": 1}}"#
    );
    protocol::Spec::from_json(&spec).unwrap().training.optimizer
}

fn var(values: &[f32]) -> Var {
    Var::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

fn gradient(values: &[f32]) -> Option<Tensor> {
    Some(Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap())
}

#[test]
fn momentum_and_decay_match_hand_calculation() {
    let var = var(&[1.0]);
    let spec = spec(r#"{"sgd": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.5}}"#);
    let mut optimizer = Optimizer::new(&spec, 1.0, std::slice::from_ref(&var)).unwrap();
    // v = 2 + 0.5 * 1 = 2.5, w = 0.75; v = 0.9 * 2.5 + 2 + 0.5 * 0.75 = 4.625, w = 0.2875
    for expected in [0.75f32, 0.2875] {
        optimizer.step(&[gradient(&[2.0])]).unwrap();
        let value = var.to_vec1::<f32>().unwrap()[0];
        assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
    }
}

#[test]
fn adams_first_step_has_the_length_of_the_learning_rate_whatever_the_gradients_scale() {
    let var = var(&[1.0, 1.0]);
    let adam = OptimizerSpec::Adam { learning_rate: Positive::new(0.1).unwrap() };
    let mut optimizer = Optimizer::new(&adam, 0.5, std::slice::from_ref(&var)).unwrap();
    optimizer.step(&[gradient(&[100.0, -0.01])]).unwrap();
    let values = var.to_vec1::<f32>().unwrap();
    assert!((values[0] - 0.95).abs() < 1e-5 && (values[1] - 1.05).abs() < 1e-5, "{values:?}");
}

#[test]
fn fused_and_composed_rules_take_the_same_steps() {
    for json in [
        r#"{"sgd": {"learning_rate": 0.1}}"#,
        r#"{"sgd": {"learning_rate": 0.1, "momentum": 0.8, "weight_decay": 0.01}}"#,
        r#"{"adam": {"learning_rate": 0.1}}"#,
        r#"{"adamw": {"learning_rate": 0.1, "weight_decay": 0.1}}"#,
    ] {
        let rule = Rule::of(&spec(json), 0.5);
        let (one, other) = (var(&[1.0, -2.0, 0.5]), var(&[1.0, -2.0, 0.5]));
        let mut fused = fused::Optimizer::new(rule, std::slice::from_ref(&one));
        let mut composed = composed::Optimizer::new(rule, std::slice::from_ref(&other)).unwrap();
        for step in [1.0f32, -0.5, 3.0, 0.0] {
            let gradients = [gradient(&[step, 2.0 - step, 0.1])];
            fused.step(&gradients).unwrap();
            composed.step(&gradients).unwrap();
        }
        for (one, other) in one.to_vec1::<f32>().unwrap().iter().zip(other.to_vec1::<f32>().unwrap()) {
            assert!((one - other).abs() < 1e-5, "{json}: {one} is not {other}");
        }
    }
}

#[test]
fn a_variable_without_gradient_stays_as_it_is() {
    let var = var(&[1.0]);
    let spec = spec(r#"{"sgd": {"learning_rate": 0.1, "weight_decay": 0.5}}"#);
    Optimizer::new(&spec, 1.0, std::slice::from_ref(&var)).unwrap().step(&[None]).unwrap();
    assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0]);
}
