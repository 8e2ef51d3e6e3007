//! Both ways to a gradient: one record's is the same by both and in every company, and a part of the batch's; steps are the
//! same by both under every rule; and the closed form takes no memory after the first batch.

use std::sync::Arc;

use proptest::prelude::*;
use protocol::{Learner, Spec, Stop};

use super::*;
use crate::model::Model;
use crate::training::Trainer;
use crate::training::tests::{Forgetful, order, spec};
use crate::{Dataset, SiteData, View, initial_parameters};

/// Numbers without a pattern in (-1, 1).
fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A trainer with its model loaded and `rows` records of noise.
fn loaded(spec: &Arc<Spec>, rows: usize, salt: u64) -> Trainer {
    let shape = spec.input_shape();
    let features = numbers(rows * shape.iter().product::<usize>(), salt);
    let labels = match spec.target() {
        protocol::Target::Classes(classes) => {
            Labels::Classes((0..rows as u32).map(|row| (row * 7 + salt as u32) % classes as u32).collect())
        }
        protocol::Target::Real => Labels::Real(numbers(rows, salt + 1)),
    };
    let train = View::whole(Arc::new(Dataset { shape, features: features.into(), labels }));
    let mut trainer = Trainer::new(Box::new(SiteData { train, test: None }), Device::Cpu);
    Learner::prepare(&mut trainer, spec).unwrap();
    let parameters: Vec<f32> = initial_parameters(spec, Seed::from_number(salt)).unwrap();
    let bent: Vec<f32> =
        parameters.iter().zip(numbers(parameters.len(), salt + 2)).map(|(p, n)| p + 0.2 * n).collect();
    trainer.loaded(&bent, None).unwrap();
    trainer
}

/// The same spec by another way.
fn by(spec: &Spec, gradient: GradientPath) -> Arc<Spec> {
    let mut spec = spec.clone();
    spec.training.gradient = gradient;
    Arc::new(spec)
}

/// Every record's gradient.
fn gradients(trainer: &mut Trainer) -> Vec<(Seen, Vec<f32>)> {
    let count = trainer.prepared.as_ref().unwrap().records.train.len() as u32;
    (0..count).map(|row| example(trainer, row, 9)).collect()
}

fn example(trainer: &mut Trainer, row: u32, seed: u64) -> (Seen, Vec<f32>) {
    let mut gradient = vec![f32::NAN; trainer.layout.len()];
    let (resident, records) = (trainer.resident.as_mut().unwrap(), trainer.prepared.as_ref().unwrap());
    let data = &records.records.train;
    let seen =
        resident.engine.as_mut().unwrap().example(data, row, Seed::from_number(seed), &mut gradient).unwrap();
    (seen, gradient)
}

fn parameters(trainer: &mut Trainer) -> Vec<f32> {
    let mut values = vec![0.0; trainer.layout.len()];
    trainer.resident.as_mut().unwrap().engine.as_mut().unwrap().store(&mut values).unwrap();
    values
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    length(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// A spec of every family and loss, of any small size.
fn any_spec() -> impl Strategy<Value = Arc<Spec>> {
    let sizes = (1usize..20, 2usize..6, prop::collection::vec(1usize..24, 1..4));
    let image = (1usize..4, 4usize..10, 4usize..10, prop::collection::vec(1usize..5, 1..3));
    let choice = (0usize..6, prop::sample::select(vec![1usize, 3, 5]));
    (sizes, image, choice).prop_map(
        |((inputs, classes, hidden), (depth, height, width, channels), (family, kernel))| {
            let flat = format!("[{inputs}]");
            let (model, shape, target, loss) = match family {
                0 => (r#""linear""#.into(), flat, r#""real""#.into(), "mean_squared"),
                1 => (r#""logistic""#.into(), flat, format!(r#"{{"classes": {classes}}}"#), "cross_entropy"),
                2 => (r#""logistic""#.into(), flat, r#"{"classes": 2}"#.into(), "binary_cross_entropy"),
                3 => (
                    format!(r#"{{"mlp": {{"hidden": {hidden:?}}}}}"#),
                    flat,
                    format!(r#"{{"classes": {classes}}}"#),
                    "auto",
                ),
                4 => (format!(r#"{{"mlp": {{"hidden": {hidden:?}}}}}"#), flat, r#""real""#.into(), "auto"),
                _ => (
                    format!(
                        r#"{{"cnn": {{"channels": {channels:?}, "kernel": {kernel}, "hidden": {}}}}}"#,
                        hidden[0]
                    ),
                    format!("[{depth}, {height}, {width}]"),
                    format!(r#"{{"classes": {classes}}}"#),
                    "auto",
                ),
            };
            let training = format!(
                r#""batch_size": 4, "loss": "{loss}", "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}"#
            );
            spec(&model, &shape, &target, &training, "")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ways_give_one_gradient_and_its_parts_sum_to_the_batchs(spec in any_spec(), rows in 1usize..7, salt in 0u64..1000) {
        let mut trainer = loaded(&spec, rows, salt);
        prop_assert_eq!(gradient_path(&spec, &Device::Cpu).unwrap(), GradientPath::ClosedForm);
        let fast = gradients(&mut trainer);
        let slow = gradients(&mut loaded(&by(&spec, GradientPath::Autograd), rows, salt));
        let mut sum = vec![0.0f32; trainer.layout.len()];
        for ((seen, fast), (seen_slowly, slow)) in fast.iter().zip(&slow) {
            prop_assert!(difference(fast, slow) <= 1e-5 * length(slow) + 1e-12);
            prop_assert!((seen.loss - seen_slowly.loss).abs() <= 1e-5 * (1.0 + seen.loss));
            prop_assert_eq!(seen.correct, seen_slowly.correct);
            sum.iter_mut().zip(fast).for_each(|(sum, value)| *sum += value / rows as f32);
        }
        let before = parameters(&mut trainer);
        let (resident, records) = (trainer.resident.as_mut().unwrap(), trainer.prepared.as_ref().unwrap());
        resident.engine.as_mut().unwrap().begin(&spec, 1.0).unwrap();
        let all: Vec<u32> = (0..rows as u32).collect();
        resident.engine.as_mut().unwrap().learn(&records.records.train, &all, rows, Mode::Evaluate).unwrap();
        resident.engine.as_mut().unwrap().step().unwrap();
        let moved: Vec<f32> = before.iter().zip(parameters(&mut trainer)).map(|(a, b)| (a - b) / 0.1).collect();
        prop_assert!(difference(&sum, &moved) <= 1e-4 * length(&sum) + 1e-5, "{} of {}", difference(&sum, &moved), length(&sum));
    }

    #[test]
    fn a_gradient_has_the_same_bits_whatever_was_measured_before(spec in any_spec(), salt in 0u64..1000) {
        let mut trainer = loaded(&spec, 5, salt);
        let together = gradients(&mut trainer);
        for row in [4u32, 1, 3, 0, 2] {
            let (seen, alone) = example(&mut trainer, row, 9);
            let (seen_before, before) = &together[row as usize];
            prop_assert_eq!(&seen, seen_before);
            prop_assert!(alone.iter().zip(before).all(|(alone, before)| alone.to_bits() == before.to_bits()));
        }
    }

    #[test]
    fn both_ways_train_alike_under_every_rule(
        spec in any_spec(),
        rule in prop::sample::select(vec![
            r#"{"sgd": {"learning_rate": 0.05}}"#,
            r#"{"sgd": {"learning_rate": 0.05, "weight_decay": 0.1}}"#,
            r#"{"sgd": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.1}}"#,
            r#"{"adamw": {"learning_rate": 0.01, "weight_decay": 0.1}}"#,
        ]),
        (clipped, pulled, accumulate) in (any::<bool>(), any::<bool>(), 1u32..3),
        salt in 0u64..1000,
    ) {
        let mut spec = (*spec).clone();
        spec.training.optimizer = serde_json::from_str(rule).unwrap();
        spec.training.gradient_norm_max = clipped.then(|| protocol::Positive::new(0.5).unwrap());
        spec.proximal_mu = if pulled { 0.3 } else { 0.0 };
        (spec.training.accumulate, spec.training.epochs) = (accumulate, 2);
        let run = |gradient| {
            let spec = by(&spec, gradient);
            let mut trainer = loaded(&spec, 11, salt);
            let start = parameters(&mut trainer);
            let mut trained = start.clone();
            let metrics = trainer.train(&mut trained, &order(salt), &Stop::default()).unwrap();
            (start, trained, metrics)
        };
        let ((start, fast, metrics), (_, slow, metrics_slow)) =
            (run(GradientPath::ClosedForm), run(GradientPath::Autograd));
        // Adam divides by the root of tiny squares: where a gradient is rounding alone, so is its direction.
        let allowed = if rule.contains("adamw") { 0.05 } else { 1e-3 };
        let moved = difference(&slow, &start);
        prop_assert!(moved > 0.0 && difference(&fast, &slow) <= allowed * moved, "{} of {moved}", difference(&fast, &slow));
        prop_assert!((metrics.loss - metrics_slow.loss).abs() <= 1e-3 * (1.0 + metrics.loss));
    }
}

#[test]
fn a_model_of_ones_own_goes_by_the_graph_and_drops_out_by_step_and_row() {
    let training = r#""batch_size": 4, "optimizer": {"sgd": {"learning_rate": 0.1}}"#;
    let spec = spec(r#"{"custom": {"name": "mine"}}"#, "[40]", r#"{"classes": 2}"#, training, "");
    let build = |_: &Spec, device: &Device| {
        Ok(Box::new(Forgetful(candle_core::Var::ones((2, 40), candle_core::DType::F32, device)?))
            as Box<dyn Model>)
    };
    let features = numbers(80, 1);
    let train = View::whole(Arc::new(Dataset {
        shape: vec![40],
        features: features.into(),
        labels: Labels::Classes(vec![0, 1]),
    }));
    let site = SiteData { train, test: None };
    let mut trainer = Trainer::new(Box::new(site), Device::Cpu).with_model("mine", build);
    Learner::prepare(&mut trainer, &spec).unwrap();
    trainer.loaded(&[0.5; 80], None).unwrap();
    assert_eq!(gradient_path(&spec, &Device::Cpu).unwrap(), GradientPath::Autograd);
    assert!(gradient_path(&by(&spec, GradientPath::ClosedForm), &Device::Cpu).is_err());
    let mut dropped = |row, seed| {
        let gradient = example(&mut trainer, row, seed).1;
        gradient[..40].iter().map(|value| *value == 0.0).collect::<Vec<_>>()
    };
    assert_eq!(dropped(0, 1), dropped(0, 1));
    assert_ne!(dropped(0, 1), dropped(1, 1));
    assert_ne!(dropped(0, 1), dropped(0, 2));
}
