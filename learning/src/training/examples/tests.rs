//! One record's gradient: the same by both ways, the same in every company, and a part of the batch's.

use std::sync::Arc;

use proptest::prelude::*;
use protocol::Spec;

use super::*;
use crate::model::Model;
use crate::training::Trainer;
use crate::training::tests::{Forgetful, spec};
use crate::{SiteData, View, initial_parameters};

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
    let train = View::whole(Arc::new(Dataset { shape, features, labels }));
    let mut trainer = Trainer::new(Box::new(SiteData { train, test: None }), Device::Cpu);
    protocol::Learner::prepare(&mut trainer, spec).unwrap();
    let parameters: Vec<f32> = initial_parameters(spec, Seed::from_number(salt)).unwrap();
    let bent: Vec<f32> =
        parameters.iter().zip(numbers(parameters.len(), salt + 2)).map(|(p, n)| p + 0.2 * n).collect();
    trainer.loaded(&bent, None).unwrap();
    trainer
}

fn examples(trainer: &Trainer) -> Examples<'_> {
    let (resident, records) = (trainer.resident.as_ref().unwrap(), trainer.prepared.as_ref().unwrap());
    let mut examples =
        Examples::new(resident, &trainer.layout, &records.records.train, &Device::Cpu).unwrap();
    examples.refresh().unwrap();
    examples
}

fn gradients(examples: &mut Examples<'_>) -> Vec<(Seen, Vec<f32>)> {
    let rows = 0..examples.data.len() as u32;
    let one = |row| {
        let mut gradient = vec![f32::NAN; examples.dimension()];
        let seen = examples.gradient(row, Seed::from_number(9), &mut gradient).unwrap();
        (seen, gradient)
    };
    rows.map(one).collect()
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
        let trainer = loaded(&spec, rows, salt);
        let fast = gradients(&mut examples(&trainer));
        let mut by_graph = examples(&trainer);
        by_graph.fast = None;
        let slow = gradients(&mut by_graph);
        let mut sum = vec![0.0f32; trainer.layout.len()];
        for ((seen, fast), (seen_slowly, slow)) in fast.iter().zip(&slow) {
            prop_assert!(difference(fast, slow) <= 1e-5 * length(slow) + 1e-12);
            prop_assert!((seen.loss - seen_slowly.loss).abs() <= 1e-5 * (1.0 + seen.loss));
            prop_assert_eq!(seen.correct, seen_slowly.correct);
            sum.iter_mut().zip(fast).for_each(|(sum, value)| *sum += value / rows as f32);
        }
        let (resident, data) = (by_graph.resident, by_graph.data);
        let all: Vec<u32> = (0..rows as u32).collect();
        let batch = Batch::gather(data, &all, by_graph.loss, &Device::Cpu).unwrap();
        let pass = Pass::run(resident, &batch, by_graph.loss, Mode::Evaluate).unwrap();
        let mut together = vec![0.0; sum.len()];
        for (tensor, found) in trainer.layout.tensors().iter().zip(pass.gradients(resident).unwrap()) {
            copy(found.as_ref(), &mut together[tensor.range()]).unwrap();
        }
        prop_assert!(difference(&sum, &together) <= 1e-5 * length(&together) + 1e-6, "{} of {}", difference(&sum, &together), length(&together));
    }

    #[test]
    fn a_gradient_has_the_same_bits_whatever_was_measured_before(spec in any_spec(), salt in 0u64..1000) {
        let trainer = loaded(&spec, 5, salt);
        let mut examples = examples(&trainer);
        let together = gradients(&mut examples);
        let (mut alone, seed) = (vec![0.0; examples.dimension()], Seed::from_number(9));
        for row in [4u32, 1, 3, 0, 2] {
            let seen = examples.gradient(row, seed, &mut alone).unwrap();
            let (seen_before, before) = &together[row as usize];
            prop_assert_eq!(&seen, seen_before);
            prop_assert!(alone.iter().zip(before).all(|(alone, before)| alone.to_bits() == before.to_bits()));
        }
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
    let train =
        View::whole(Arc::new(Dataset { shape: vec![40], features, labels: Labels::Classes(vec![0, 1]) }));
    let site = SiteData { train, test: None };
    let mut trainer = Trainer::new(Box::new(site), Device::Cpu).with_model("mine", build);
    protocol::Learner::prepare(&mut trainer, &spec).unwrap();
    trainer.loaded(&[0.5; 80], None).unwrap();
    let mut examples = examples(&trainer);
    assert!(examples.fast.is_none());
    let mut dropped = |row, seed| {
        let mut gradient = vec![0.0; 80];
        examples.gradient(row, Seed::from_number(seed), &mut gradient).unwrap();
        gradient[..40].iter().map(|value| *value == 0.0).collect::<Vec<_>>()
    };
    assert_eq!(dropped(0, 1), dropped(0, 1));
    assert_ne!(dropped(0, 1), dropped(1, 1));
    assert_ne!(dropped(0, 1), dropped(0, 2));
}
