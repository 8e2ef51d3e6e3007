//! What training promises: it learns, it repeats to the bit, and every setting of a plan does what it says.

use candle_core::{Tensor, Var};
use protocol::{Placement, Round};

use super::*;
use crate::ops::dropout;
use crate::{Dataset, Labels, Mode, View, initial_parameters};

const SGD: &str = r#""optimizer": {"sgd": {"learning_rate": 0.5}}"#;

pub(super) fn spec(model: &str, shape: &str, target: &str, training: &str, rest: &str) -> Arc<Spec> {
    let json = format!(
        r#"{{"model": {model}, "data": {{"tensor": {{"shape": {shape}, "target": {target}}}}},
        "training": {{{training}}}, "cohort_max": 10 {rest}}}"#
    );
    Arc::new(Spec::from_json(&json).unwrap())
}

fn logistic(training: &str, rest: &str) -> Arc<Spec> {
    spec(r#""logistic""#, "[2]", r#"{"classes": 2}"#, training, rest)
}

/// Points on a grid; the class is the side of the line `x = y`.
pub(super) fn toy(count: u32) -> View {
    let point = |row: u32| [(row % 7) as f32 / 3.0 - 1.0, (row * 5 % 11) as f32 / 5.0 - 1.05];
    let features: Vec<f32> = (0..count).flat_map(point).collect();
    let classes = features.chunks_exact(2).map(|point| u32::from(point[0] > point[1])).collect();
    View::whole(Arc::new(Dataset {
        shape: vec![2],
        features: features.into(),
        labels: Labels::Classes(classes),
    }))
}

pub(super) fn site(train: View) -> SiteData {
    SiteData { test: Some(train.clone()), train }
}

fn trainer(spec: &Arc<Spec>, train: View) -> Trainer {
    let mut trainer = Trainer::new(Box::new(site(train)), Device::Cpu);
    trainer.prepare(spec).unwrap();
    trainer
}

pub(super) fn order(seed: u64) -> TrainOrder {
    TrainOrder {
        round: Round(1),
        seed: Seed::from_number(seed),
        learning_rate_scale: 1.0,
        standardiser: None,
        permit: None,
    }
}

fn trained(spec: &Arc<Spec>, train: View, from: &[f32]) -> (Vec<f32>, Metrics) {
    let mut parameters = from.to_vec();
    let metrics = trainer(spec, train).train(&mut parameters, &order(1), &Stop::default()).unwrap();
    (parameters, metrics)
}

pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

#[test]
fn a_logistic_model_learns_what_can_be_separated() {
    for loss in ["cross_entropy", "binary_cross_entropy"] {
        let spec = logistic(&format!(r#""batch_size": 8, "epochs": 30, "loss": "{loss}", {SGD}"#), "");
        let mut trainer = trainer(&spec, toy(70));
        let mut parameters = trainer.initialise(Seed::from_number(0)).unwrap();
        let before =
            trainer.evaluate(&parameters, &EvaluateOrder { standardiser: None }, &Stop::default()).unwrap();
        let during = trainer.train(&mut parameters, &order(1), &Stop::default()).unwrap();
        let after =
            trainer.evaluate(&parameters, &EvaluateOrder { standardiser: None }, &Stop::default()).unwrap();
        assert!((before.loss - 2f64.ln()).abs() < 1e-6, "{loss}: {before:?}");
        assert!(
            after.accuracy.unwrap() > 0.97 && after.loss < during.loss && during.loss < before.loss,
            "{after:?}"
        );
        assert!(during.is_sound() && during.examples == 70 && after.examples == 70);
    }
}

#[test]
fn a_linear_model_finds_the_line() {
    let features: Vec<f32> = (0u8..20).map(|row| f32::from(row) / 10.0 - 1.0).collect();
    let labels = Labels::Real(features.iter().map(|x| 3.0 * x - 0.5).collect());
    let train = View::whole(Arc::new(Dataset { shape: vec![1], features: features.into(), labels }));
    let training = r#""batch_size": 5, "epochs": 100, "optimizer": {"sgd": {"learning_rate": 0.1}}"#;
    let spec = spec(r#""linear""#, "[1]", r#""real""#, training, "");
    let (parameters, metrics) = trained(&spec, train, &[0.0, 0.0]);
    assert!(distance(&parameters, &[3.0, -0.5]) < 1e-3, "{parameters:?}");
    assert_eq!(metrics.accuracy, None);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_other_ones() {
    let spec = spec(
        r#"{"mlp": {"hidden": [16]}}"#,
        "[2]",
        r#"{"classes": 2}"#,
        &format!(r#""batch_size": 7, "epochs": 3, {SGD}"#),
        "",
    );
    let mut trainer = trainer(&spec, toy(50));
    let start = trainer.initialise(Seed::from_number(5)).unwrap();
    let mut run = |seed| {
        let mut parameters = start.clone();
        trainer.train(&mut parameters, &order(seed), &Stop::default()).unwrap();
        parameters.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let first = run(1);
    assert_ne!(first, run(2));
    assert_eq!(first, run(1));
}

/// Images whose class is the quadrant that is bright.
pub(super) fn images(count: u32) -> View {
    let pixel = |row: u32, place: u32| {
        let (y, x) = (place / 9, place % 9);
        let bright = u32::from(y > 4) * 2 + u32::from(x > 4) == row % 4;
        f32::from(u8::from(bright)) + ((row * 31 + place * 17) % 13) as f32 / 26.0
    };
    let features: Vec<f32> = (0..count).flat_map(|row| (0..90).map(move |place| pixel(row, place))).collect();
    let labels = Labels::Classes((0..count).map(|row| row % 4).collect());
    View::whole(Arc::new(Dataset { shape: vec![1, 10, 9], features: features.into(), labels }))
}

#[test]
fn a_small_cnn_learns_on_images_that_are_not_square_and_another_thread_changes_no_bit() {
    let model = r#"{"cnn": {"channels": [4, 6], "kernel": 3, "hidden": 12}}"#;
    let training = r#""batch_size": 8, "epochs": 12, "optimizer": {"adam": {"learning_rate": 0.01}}"#;
    let spec = spec(model, "[1, 10, 9]", r#"{"classes": 4}"#, training, "");
    let start = initial_parameters(&spec, Seed::from_number(2)).unwrap();
    let (once, _) = trained(&spec, images(40), &start);
    let elsewhere = || trained(&spec, images(40), &start).0;
    let again = std::thread::scope(|scope| scope.spawn(elsewhere).join()).unwrap();
    assert!(once.iter().zip(&again).all(|(once, again)| once.to_bits() == again.to_bits()));
    let mut trainer = trainer(&spec, images(40));
    let order = EvaluateOrder { standardiser: None };
    let before = trainer.evaluate(&start, &order, &Stop::default()).unwrap();
    let after = trainer.evaluate(&once, &order, &Stop::default()).unwrap();
    assert!(after.loss < 0.5 * before.loss && after.accuracy > before.accuracy, "{before:?} {after:?}");
}

#[test]
fn accumulated_batches_are_one_batch_of_their_size() {
    let start = [0.1, -0.2, 0.3, 0.05, 0.0, 0.1];
    let together = trained(&logistic(&format!(r#""batch_size": 12, {SGD}"#), ""), toy(40), &start).0;
    let parts =
        trained(&logistic(&format!(r#""batch_size": 3, "accumulate": 4, {SGD}"#), ""), toy(40), &start).0;
    let apart = trained(&logistic(&format!(r#""batch_size": 3, {SGD}"#), ""), toy(40), &start).0;
    assert!(distance(&together, &parts) < 1e-5, "{together:?} {parts:?}");
    assert!(distance(&together, &apart) > 1e-2);
}

#[test]
fn a_batch_size_of_zero_takes_all_records_in_one_step() {
    let start = [0.0; 6];
    let all = trained(&logistic(&format!(r#""batch_size": 0, {SGD}"#), ""), toy(40), &start).0;
    let forty = trained(&logistic(&format!(r#""batch_size": 40, {SGD}"#), ""), toy(40), &start).0;
    assert_eq!(all, forty);
    assert!(distance(&all, &start) > 1e-3);
}

#[test]
fn the_proximal_term_pulls_towards_the_start() {
    let training = format!(r#""batch_size": 10, "epochs": 20, {SGD}"#);
    let start = [0.2, -0.1, 0.0, 0.3, 0.1, -0.1];
    let away = |mu: &str| distance(&trained(&logistic(&training, mu), toy(40), &start).0, &start);
    let (free, pulled) = (away(""), away(r#", "proximal_mu": 1.0"#));
    assert!(pulled < 0.5 * free && pulled > 0.0, "{pulled} {free}");
}

#[test]
fn a_clipped_gradient_makes_a_step_of_at_most_its_bound() {
    let start = [0.0; 6];
    let training = format!(r#""batch_size": 0, "gradient_norm_max": 0.01, {SGD}"#);
    let moved = distance(&trained(&logistic(&training, ""), toy(40), &start).0, &start);
    assert!((moved - 0.005).abs() < 1e-6, "{moved}");
}

#[test]
fn the_schedules_factor_scales_the_step() {
    let spec = logistic(&format!(r#""batch_size": 0, {SGD}"#), "");
    let moved = |learning_rate_scale| {
        let mut parameters = [0.0; 6];
        let order = TrainOrder { learning_rate_scale, ..order(1) };
        trainer(&spec, toy(40)).train(&mut parameters, &order, &Stop::default()).unwrap();
        distance(&parameters, &[0.0; 6])
    };
    assert!((moved(1.0) / moved(0.25) - 4.0).abs() < 1e-4);
}

#[test]
fn work_that_was_stopped_says_so() {
    let spec = logistic(&format!(r#""batch_size": 4, {SGD}"#), "");
    let stop = Stop::default();
    stop.stop();
    let error = trainer(&spec, toy(9)).train(&mut [0.0; 6], &order(1), &stop).unwrap_err();
    assert_eq!(error.reason, Decline::Stopped);
}

#[test]
fn training_that_diverges_names_the_batch_and_what_to_do() {
    let training = r#""batch_size": 4, "epochs": 50, "optimizer": {"sgd": {"learning_rate": 1e30}}"#;
    let spec = spec(r#"{"mlp": {"hidden": [8]}}"#, "[2]", r#"{"classes": 2}"#, training, "");
    let mut parameters = initial_parameters(&spec, Seed::from_number(1)).unwrap();
    let error = trainer(&spec, toy(20)).train(&mut parameters, &order(1), &Stop::default()).unwrap_err();
    assert_eq!(error.reason, Decline::NotFinite);
    assert!(error.message.contains("epoch") && error.message.contains("lower learning rate"), "{error}");
}

#[test]
fn no_test_records_are_no_error_and_no_training_records_are_one() {
    let spec = logistic(&format!(r#""batch_size": 4, {SGD}"#), "");
    let mut trainer = trainer(&spec, toy(20));
    let none = View { rows: Arc::new([]), ..toy(20) };
    trainer.set_site(SiteData { train: none, test: None });
    let metrics =
        trainer.evaluate(&[0.0; 6], &EvaluateOrder { standardiser: None }, &Stop::default()).unwrap();
    assert_eq!((metrics.examples, metrics.accuracy), (0, None));
    let error = trainer.train(&mut [0.0; 6], &order(1), &Stop::default()).unwrap_err();
    assert_eq!(error.reason, Decline::Data);
}

#[test]
fn a_worker_that_changes_sites_trains_as_a_fresh_trainer_would() {
    let spec = logistic(&format!(r#""batch_size": 4, {SGD}"#), "");
    let mut worker = Trainer::without_data(Device::Cpu);
    worker.prepare(&spec).unwrap();
    assert_eq!(worker.train(&mut [0.0; 6], &order(1), &Stop::default()).unwrap_err().reason, Decline::Data);
    for count in [20, 33, 20] {
        worker.set_site(site(toy(count)));
        let mut parameters = [0.0; 6];
        worker.prepare(&spec).unwrap();
        worker.train(&mut parameters, &order(1), &Stop::default()).unwrap();
        assert_eq!(parameters.to_vec(), trained(&spec, toy(count), &[0.0; 6]).0);
    }
}

#[test]
fn a_spec_that_changes_only_the_training_keeps_the_model() {
    let mut trainer = trainer(&logistic(&format!(r#""batch_size": 4, {SGD}"#), ""), toy(20));
    let engine = |trainer: &Trainer| {
        std::ptr::from_ref(trainer.resident().unwrap().engine.as_deref().unwrap()).cast::<()>()
    };
    let before = engine(&trainer);
    let longer = format!(r#""batch_size": 4, "epochs": 2, {SGD}"#);
    trainer.prepare(&logistic(&longer, r#", "personal_layers": ["dense1.bias"]"#)).unwrap();
    assert_eq!(engine(&trainer), before);
    assert_eq!(trainer.layout().tensors()[1].placement, Placement::Site);
    trainer
        .prepare(&spec(
            r#"{"mlp": {"hidden": [3]}}"#,
            "[2]",
            r#"{"classes": 2}"#,
            &format!(r#""batch_size": 4, {SGD}"#),
            "",
        ))
        .unwrap();
    assert_eq!(trainer.layout().len(), 17);
}

#[test]
fn parameters_of_another_length_are_refused() {
    let spec = logistic(&format!(r#""batch_size": 4, {SGD}"#), "");
    let error = trainer(&spec, toy(9)).train(&mut [0.0; 5], &order(1), &Stop::default()).unwrap_err();
    assert!(error.message.contains("5 parameters came for a model of 6"), "{error}");
}

/// A user's own model: one layer behind dropout.
pub(super) struct Forgetful(pub(super) Var);

impl Model for Forgetful {
    fn tensors(&self) -> Vec<(String, Var)> {
        vec![("layer.weight".into(), self.0.clone())]
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        dropout(x, 0.5, mode, 0)?.matmul(&self.0.t()?)
    }
}

#[test]
fn a_model_of_ones_own_trains_and_its_dropout_repeats() {
    let spec = spec(
        r#"{"custom": {"name": "mine"}}"#,
        "[2]",
        r#"{"classes": 2}"#,
        &format!(r#""batch_size": 4, "epochs": 5, {SGD}"#),
        "",
    );
    let build = |_: &Spec, device: &Device| {
        Ok(Box::new(Forgetful(Var::zeros((2, 2), candle_core::DType::F32, device)?)) as Box<dyn Model>)
    };
    let mut trainer = Trainer::new(Box::new(site(toy(40))), Device::Cpu).with_model("mine", build);
    trainer.prepare(&spec).unwrap();
    let start = trainer.initialise(Seed::from_number(1)).unwrap();
    let mut run = |seed| {
        let mut parameters = start.clone();
        trainer.train(&mut parameters, &order(seed), &Stop::default()).unwrap();
        parameters
    };
    let (first, second) = (run(1), run(1));
    assert_eq!(first, second);
    assert!(distance(&first, &start) > 0.1);
}
