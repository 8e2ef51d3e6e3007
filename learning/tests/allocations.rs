//! After its first steps, training in closed form takes no memory: twice the steps allocate as often as once.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::sync::Arc;

use learning::device::Device;
use learning::{Dataset, Labels, SiteData, Trainer, View, initial_parameters};
use protocol::{Learner, Round, Seed, Spec, Stop, TrainOrder};

const RECORDS: usize = 23;

fn spec(model: &str, shape: &str, epochs: u32, training: &str) -> Arc<Spec> {
    let json = format!(
        r#"{{"model": {model}, "data": {{"tensor": {{"shape": {shape}, "target": {{"classes": 4}}}}}},
        "training": {{"batch_size": 5, "epochs": {epochs}, {training}}}, "cohort_max": 4}}"#
    );
    Arc::new(Spec::from_json(&json).unwrap())
}

/// Allocations of one training by a trainer that has trained before.
fn allocations(model: &str, shape: &str, epochs: u32, training: &str) -> u64 {
    let spec = spec(model, shape, epochs, training);
    let width: usize = spec.input_shape().iter().product();
    let features: Vec<f32> = (0..RECORDS * width).map(|place| (place * 7 % 4) as f32).collect();
    let labels = Labels::Classes((0..RECORDS as u32).map(|row| row % 4).collect());
    let train =
        View::whole(Arc::new(Dataset { shape: spec.input_shape(), features: features.into(), labels }));
    let mut trainer = Trainer::new(Box::new(SiteData { train, test: None }), Device::Cpu);
    trainer.prepare(&spec).unwrap();
    let mut parameters = initial_parameters(&spec, Seed::from_number(1)).unwrap();
    let (round, seed) = (Round(1), Seed::from_number(2));
    let order = TrainOrder { round, seed, learning_rate_scale: 0.01, standardiser: None, permit: None };
    let mut train = || {
        trainer.train(&mut parameters, &order, &Stop::default()).unwrap();
    };
    train();
    allocation_counter::measure(train).count_total
}

#[test]
fn steps_after_the_first_allocate_nothing() {
    let sgd = r#""optimizer": {"sgd": {"learning_rate": 0.1}}"#;
    let momentum =
        r#""optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}}, "gradient_norm_max": 1.0"#;
    let convolutions = r#"{"layers": [
        {"convolution": {"channels": 8, "kernel": 3}}, "relu", {"max_pool": {"size": 2}},
        {"residual": {"layers": [{"convolution": {"channels": 8, "kernel": 5}}, "tanh"]}}, {"dropout": 0.2},
        {"convolution": {"channels": 6, "kernel": 3, "stride": 2}}, "gelu", {"dense": {"outputs": 9}}, "sigmoid"
    ]}"#;
    let normalised = r#"{"layers": [
        {"convolution": {"channels": 8, "kernel": 3, "stride": 2}}, {"group_norm": {"groups": 4}}, "average_pool",
        {"dense": {"outputs": 12}}, "layer_norm"
    ]}"#;
    let recurrent = r#"{"layers": [
        {"embedding": {"symbols": 4, "width": 5}}, {"lstm": {"hidden": 6}}, {"gru": {"hidden": 7}}, "layer_norm", "last"
    ]}"#;
    for (model, shape) in [
        (normalised, "[3, 9, 8]"),
        (recurrent, "[11]"),
        (r#""logistic""#, "[7]"),
        (r#"{"mlp": {"hidden": [8, 9]}}"#, "[7]"),
        (r#"{"cnn": {"channels": [8, 9], "hidden": 7}}"#, "[1, 12, 12]"),
        (convolutions, "[2, 14, 13]"),
    ] {
        for training in [sgd, momentum] {
            let (once, thrice) =
                (allocations(model, shape, 1, training), allocations(model, shape, 3, training));
            assert_eq!(once, thrice, "{model} with {training}");
            assert!(once < 40, "{once} allocations before the first step of {model}");
        }
    }
}
