//! What private training promises: its sum moves by no more than its noise is made for, batches are chance alone, nothing is
//! trained without a permit, and it still learns.

use std::sync::Arc;

use candle_core::Device;
use privacy::accounting::Relation;
use privacy::ledger::{Charge, Composition, Ledger, Terms, Unit};
use privacy::noise::NoiseSource;
use proptest::prelude::*;
use protocol::{Learner, LentPermit, RecordCount, Spec};

use super::*;
use crate::training::Trainer;
use crate::training::tests::{distance, images, order, site, spec, toy};
use crate::{Dataset, Labels, View, initial_parameters};

mod heart;

const SGD: &str = r#""optimizer": {"sgd": {"learning_rate": 0.5}}"#;

fn private(model: &str, training: &str, noise_multiplier: f64, norm_max: f64) -> Arc<Spec> {
    private_on("[2]", model, training, noise_multiplier, norm_max)
}

fn private_on(shape: &str, model: &str, training: &str, noise_multiplier: f64, norm_max: f64) -> Arc<Spec> {
    let classes = if shape == "[2]" { 2 } else { 4 };
    let guarantee = format!(
        r#", "privacy": {{"examples": {{"noise_multiplier": {noise_multiplier}, "norm_max": {norm_max}, "delta": 1e-5,
        "epsilon_max": 100}}}}"#
    );
    spec(model, shape, &format!(r#"{{"classes": {classes}}}"#), training, &guarantee)
}

/// What a ledger with enough budget gives for these releases.
fn permit_for(releases: &ExampleReleases, noise_multiplier: f64) -> LentPermit {
    let (unit, relation) = (Unit::Example, Relation::ZeroOut);
    let terms = Terms { population: "records".into(), unit, relation, delta: 1e-5, epsilon_max: 1e12 };
    let (mut ledger, _) = Ledger::found(terms).unwrap();
    let mechanism = releases.mechanism(noise_multiplier);
    let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
    LentPermit::new(ledger.reserve("run", 1, &charge, releases.steps).unwrap().0)
}

fn trainer(spec: &Arc<Spec>, train: View) -> Trainer {
    let mut trainer =
        Trainer::new(Box::new(site(train)), Device::Cpu).with_counted_records().with_insecure_test_noise();
    trainer.prepare(spec).unwrap();
    trainer
}

/// An order that is paid for.
fn paid(trainer: &mut Trainer, spec: &Spec, seed: u64) -> TrainOrder {
    let releases = trainer.example_releases().unwrap().unwrap();
    let noise_multiplier = spec.privacy.examples.unwrap().noise_multiplier.value();
    TrainOrder { permit: Some(permit_for(&releases, noise_multiplier)), ..order(seed) }
}

fn trained(spec: &Arc<Spec>, train: View, start: &[f32], seed: u64) -> Vec<f32> {
    let mut trainer = trainer(spec, train);
    let order = paid(&mut trainer, spec, seed);
    let mut parameters = start.to_vec();
    let metrics = trainer.train(&mut parameters, &order, &Stop::default()).unwrap();
    assert!(metrics.is_sound());
    parameters
}

/// The integers of a step's sum without noise, and the reach of one record.
fn totals(trainer: &mut Trainer, parameters: &[f32], rate: f64, seed: u64) -> (Vec<i64>, i64) {
    let (records, engine, spec, layout) = trainer.loaded(parameters, None).unwrap();
    let (guarantee, data) = (spec.privacy.examples.unwrap(), &records.train);
    let mut batch = Batch::new(&guarantee, layout.len()).unwrap();
    let mut running = RunningMetrics::new(spec.loss());
    let seed = Seed::from_number(seed);
    let mut chance = Draws { coins: &mut Coins::new(rate, seed), seed };
    let stop = Stop::default();
    let sum = batch.sum(engine, data, &mut chance, &mut running, &stop).unwrap();
    let reach = i64::from(batch.lattice.range());
    let Some(released) = Released::unprotected(sum) else { return (vec![0; layout.len()], reach) };
    let units = released.weight() as f64 / batch.lattice.step();
    (released.mean().map(|mean| (mean * units).round() as i64).collect(), reach)
}

fn without(view: &View, row: u32) -> View {
    View { rows: view.rows.iter().copied().filter(|other| *other != row).collect(), ..view.clone() }
}

fn square(points: impl Iterator<Item = i64>) -> i128 {
    points.map(|point| i128::from(point) * i128::from(point)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn taking_a_record_out_takes_out_its_own_points_and_they_are_within_reach(
        family in 0usize..3, removed in 0u32..20, norm_max in 1e-3f64..10.0, seed in 0u64..100,
    ) {
        let training = format!(r#""batch_size": 0, {SGD}"#);
        let cnn = r#"{"cnn": {"channels": [3], "kernel": 3, "hidden": 7}}"#;
        let (spec, all) = match family {
            0 => (private(r#""logistic""#, &training, 1.0, norm_max), toy(20)),
            1 => (private(r#"{"mlp": {"hidden": [9, 5]}}"#, &training, 1.0, norm_max), toy(20)),
            _ => (private_on("[1, 10, 9]", cnn, &training, 1.0, norm_max), images(20)),
        };
        let start: Vec<f32> = initial_parameters(&spec, Seed::from_number(seed)).unwrap();
        let of = |view: View| totals(&mut trainer(&spec, view), &start, 1.0, seed);
        let (with, reach) = of(all.clone());
        let (without_it, _) = of(without(&all, removed));
        let (alone, _) = of(View { rows: Arc::new([removed]), ..all });
        let moved = with.iter().zip(&without_it).map(|(with, without)| with - without);
        prop_assert!(moved.clone().eq(alone.iter().copied()));
        prop_assert!(square(moved) <= i128::from(reach) * i128::from(reach));
        prop_assert!(square(alone.into_iter()) > 0);
    }
}

#[test]
fn batch_sizes_are_binomial_and_no_record_is_favoured() {
    // 2000 batches of 1000 records at rate 0.1. Each of the three statistics is within five of its standard deviations, which
    // fails by chance less than once in a million (and, the seed being fixed, never).
    let (batches, records, rate) = (2000usize, 1000usize, 0.1f64);
    let mut coins = Coins::new(rate, Seed::from_number(4));
    let mut chosen = vec![0f64; records];
    let mut sizes = Vec::new();
    for _ in 0..batches {
        let mut size = 0.0;
        for chosen in &mut chosen {
            if coins.flip() {
                *chosen += 1.0;
                size += 1.0;
            }
        }
        sizes.push(size);
    }
    let (mean, variance) = (rate * records as f64, rate * (1.0 - rate) * records as f64);
    let found = sizes.iter().sum::<f64>() / batches as f64;
    assert!((found - mean).abs() < 5.0 * (variance / batches as f64).sqrt(), "{found}");
    let found = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / batches as f64;
    assert!((found / variance - 1.0).abs() < 5.0 * (2.0 / batches as f64).sqrt(), "{found}");
    let (mean, variance) = (rate * batches as f64, rate * (1.0 - rate) * batches as f64);
    let found: f64 = chosen.iter().map(|count| (count - mean).powi(2) / variance).sum();
    assert!((found - records as f64).abs() < 5.0 * (2.0 * records as f64).sqrt(), "{found}");
}

#[test]
fn a_coin_is_never_more_likely_than_its_rate_and_certain_at_one() {
    for rate in [1e-9, 0.1, 1.0 / 3.0, 0.999_999] {
        let coins = Coins::new(rate, Seed::from_number(1));
        assert!(coins.threshold as f64 / 2f64.powi(64) <= rate && coins.threshold > 0, "{rate}");
    }
    let (mut always, mut never) =
        (Coins::new(1.0, Seed::from_number(1)), Coins::new(0.0, Seed::from_number(1)));
    assert!((0..10_000).all(|_| always.flip() && !never.flip()));
}

#[test]
fn an_empty_batch_is_noise_alone_and_the_model_takes_the_step() {
    let training = format!(r#""batch_size": 4, {SGD}"#);
    let spec = private(r#"{"mlp": {"hidden": [800]}}"#, &training, 2.0, 3.0);
    let mut trainer = trainer(&spec, toy(40));
    let start = initial_parameters(&spec, Seed::from_number(1)).unwrap();
    let (none, _) = totals(&mut trainer, &start, 0.0, 1);
    assert!(none.iter().all(|total| *total == 0));
    let releases = trainer.example_releases().unwrap().unwrap();
    let permit = permit_for(&releases, 2.0);
    let bound = NormBound::new(3.0).unwrap();
    let sum = Sum::new(&Lattice::plan(bound, 40, 1, start.len()).unwrap());
    let mut source = || Ok(NoiseSource::insecure([7; 32]));
    let released = noised(sum, &releases, &mut permit.lock(), &mut source).unwrap();
    let mean: Vec<f64> = released.mean().collect();
    // The deviation of 4002 coordinates is known to 1.1 %, five times that fails by chance less than once in a million.
    let deviation = (mean.iter().map(|value| value * value).sum::<f64>() / mean.len() as f64).sqrt();
    assert!((deviation / (2.0 * 3.0 / 4.0) - 1.0).abs() < 0.056, "{deviation}");
}

#[test]
fn a_training_of_empty_batches_moves_by_its_noise() {
    // One record at rate 1 makes no empty batch, 40 at rate 1/40 make one in e: the seed is one whose first batch is empty.
    let training = format!(r#""batch_size": 1, {SGD}"#);
    let spec = private(r#""logistic""#, &training, 1e-3, 1.0);
    let is_empty = |seed: &u64| {
        let mut coins = Coins::new(1.0 / 40.0, Seed::from_number(*seed));
        (0..40).all(|_| !coins.flip())
    };
    let seed = (0..).find(is_empty).unwrap();
    let mut trainer = trainer(&spec, toy(40));
    let (first, _) = totals(&mut trainer, &[0.0; 6], 1.0 / 40.0, seed);
    assert!(first.iter().all(|total| *total == 0));
    let releases = trainer.example_releases().unwrap().unwrap();
    assert_eq!(releases, ExampleReleases { steps: 40, sampling_rate: 0.025, batch_size: 1 });
    assert!(distance(&trained(&spec, toy(40), &[0.0; 6], seed), &[0.0; 6]) > 0.1);
}

#[test]
fn it_learns_with_little_noise_and_not_with_much() {
    let accuracy = |noise_multiplier: f64| {
        let training = format!(r#""batch_size": 10, "epochs": 40, {SGD}"#);
        let spec = private(r#""logistic""#, &training, noise_multiplier, 1.0);
        let parameters = trained(&spec, toy(70), &[0.0; 6], 3);
        let order = protocol::EvaluateOrder { standardiser: None };
        trainer(&spec, toy(70)).evaluate(&parameters, &order, &Stop::default()).unwrap().accuracy.unwrap()
    };
    assert!(accuracy(0.1) > 0.95, "{}", accuracy(0.1));
    assert!(accuracy(1000.0) < accuracy(0.1));
}

#[test]
fn every_optimizer_and_the_proximal_term_work_on_noised_gradients() {
    for optimizer in [
        r#"{"sgd": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}}"#,
        r#"{"adam": {"learning_rate": 0.05}}"#,
        r#"{"adamw": {"learning_rate": 0.05, "weight_decay": 0.01}}"#,
    ] {
        let training = format!(r#""batch_size": 10, "epochs": 5, "optimizer": {optimizer}"#);
        let spec = private(r#""logistic""#, &training, 0.1, 1.0);
        let free = distance(&trained(&spec, toy(70), &[0.0; 6], 3), &[0.0; 6]);
        let pulled = Arc::new(Spec { proximal_mu: 5.0, ..(*spec).clone() });
        let pulled = distance(&trained(&pulled, toy(70), &[0.0; 6], 3), &[0.0; 6]);
        assert!(pulled > 0.0 && pulled < free, "{optimizer}: {pulled} {free}");
    }
}

#[test]
fn the_same_seeds_give_the_same_bits_on_any_number_of_threads() {
    let training = r#""batch_size": 6, "epochs": 2, "optimizer": {"adam": {"learning_rate": 0.01}}"#;
    let spec = private_on(
        "[1, 10, 9]",
        r#"{"cnn": {"channels": [4], "kernel": 3, "hidden": 12}}"#,
        training,
        0.5,
        1.0,
    );
    let start = initial_parameters(&spec, Seed::from_number(2)).unwrap();
    let bits = |seed| {
        trained(&spec, images(30), &start, seed).iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let once = bits(1);
    assert_ne!(once, bits(2));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| bits(1))).collect();
        assert!(workers.into_iter().all(|worker| worker.join().unwrap() == once));
    });
}

#[test]
fn noise_of_the_operating_system_never_repeats() {
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 0, {SGD}"#), 1.0, 1.0);
    let run = || {
        let mut trainer = Trainer::new(Box::new(site(toy(20))), Device::Cpu).with_counted_records();
        trainer.prepare(&spec).unwrap();
        let (order, mut parameters) = (paid(&mut trainer, &spec, 1), [0.0; 6]);
        trainer.train(&mut parameters, &order, &Stop::default()).unwrap();
        parameters
    };
    assert_ne!(run(), run());
}

#[test]
fn without_entropy_the_task_is_declined_and_nothing_is_released() {
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 4, {SGD}"#), 1.0, 1.0);
    let mut trainer = trainer(&spec, toy(20));
    trainer.noise = |_| NoiseSource::from_failing_entropy();
    let (order, mut parameters) = (paid(&mut trainer, &spec, 1), [0.25; 6]);
    let error = trainer.train(&mut parameters, &order, &Stop::default()).unwrap_err();
    assert_eq!((error.reason, parameters), (Decline::Failed, [0.25; 6]));
    assert!(error.message.contains("entropy"), "{error}");
}

#[test]
fn nothing_is_trained_without_a_permit_that_covers_it() {
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 5, "epochs": 3, {SGD}"#), 1.0, 1.0);
    let mut trainer = trainer(&spec, toy(20));
    let releases = trainer.example_releases().unwrap().unwrap();
    assert_eq!(releases, ExampleReleases { steps: 12, sampling_rate: 0.25, batch_size: 5 });
    let fewer = ExampleReleases { steps: 11, ..releases };
    let rarer = ExampleReleases { sampling_rate: 0.2, ..releases };
    let all = ExampleReleases { sampling_rate: 1.0, ..releases };
    for (permit, says) in [
        (None, "no permit"),
        (Some(permit_for(&fewer, 1.0)), "11 releases and the training makes 12"),
        (Some(permit_for(&releases, 0.5)), "noise multiplier 0.5"),
        (Some(permit_for(&rarer, 1.0)), "probability 0.25"),
    ] {
        let (order, mut parameters) = (TrainOrder { permit, ..order(1) }, [0.0; 6]);
        let error = trainer.train(&mut parameters, &order, &Stop::default()).unwrap_err();
        assert!(error.reason == Decline::Budget && error.message.contains(says), "{error}");
        assert_eq!(parameters, [0.0; 6]);
    }
    for permit in [permit_for(&releases, 1.0), permit_for(&all, 2.0)] {
        let order = TrainOrder { permit: Some(permit.clone()), ..order(1) };
        trainer.train(&mut [0.0; 6], &order, &Stop::default()).unwrap();
        drop(order);
        assert_eq!(permit.into_permit().unwrap().left(), 0);
    }
}

#[test]
fn a_record_whose_gradient_is_not_finite_counts_as_a_zero_and_nobody_hears_of_it() {
    let training = format!(r#""batch_size": 0, {SGD}"#);
    let spec = private(r#""logistic""#, &training, 1.0, 1.0);
    let features = vec![0.5, -0.5, 3e38, 3e38, 0.1, 0.9];
    let data = Dataset { shape: vec![2], features: features.into(), labels: Labels::Classes(vec![0, 1, 1]) };
    let all = View::whole(Arc::new(data));
    let start = [2.0; 6];
    let (with, _) = totals(&mut trainer(&spec, all.clone()), &start, 1.0, 1);
    let (rest, _) = totals(&mut trainer(&spec, without(&all, 1)), &start, 1.0, 1);
    assert!(with == rest && with.iter().any(|total| *total != 0), "{with:?} {rest:?}");
    assert!(trained(&spec, all, &start, 1).iter().all(|value| value.is_finite()));
}

#[test]
fn training_that_diverges_changes_nothing_and_only_the_site_hears_of_it() {
    let training = r#""batch_size": 4, "optimizer": {"sgd": {"learning_rate": 1e39}}"#;
    let spec = private(r#""logistic""#, training, 1.0, 1.0);
    let mut trainer = trainer(&spec, toy(20));
    let (order, mut parameters) = (paid(&mut trainer, &spec, 1), [0.25; 6]);
    trainer.train(&mut parameters, &order, &Stop::default()).unwrap();
    assert_eq!(parameters, [0.25; 6]);
    let complaint = trainer.take_complaint().unwrap();
    assert!(complaint.contains("lower learning rate"), "{complaint}");
    assert_eq!(trainer.take_complaint(), None);
}

/// Records of which the last two cannot be used: by a cell, by a label.
fn with_unusable() -> View {
    let data = toy(9).copied();
    let mut features = data.features.to_vec();
    features[7 * 2] = f32::NAN;
    let Labels::Classes(mut labels) = data.labels else { unreachable!("the toy has classes") };
    labels[8] = u32::MAX;
    let labels = Labels::Classes(labels);
    View::whole(Arc::new(Dataset { shape: vec![2], features: features.into(), labels }))
}

#[test]
fn records_that_cannot_be_used_count_as_zeros_one_by_one() {
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 4, {SGD}"#), 1.0, 1.0);
    let hidden = |view: View| {
        let trainer = Trainer::new(Box::new(site(view)), Device::Cpu).with_insecure_test_noise();
        let mut trainer = trainer.with_record_count(RecordCount::Hidden);
        trainer.prepare(&spec).unwrap();
        trainer
    };
    let usable = without(&without(&with_unusable(), 8), 7);
    let sum = |view: &View| totals(&mut hidden(view.clone()), &[0.0; 6], 1.0, 1).0;
    assert_eq!(sum(&with_unusable()), sum(&usable));
    assert!(sum(&usable).iter().any(|total| *total != 0));
    // Nothing at all is noise, and an answer like any other.
    let nothing = View { rows: Vec::new().into(), ..toy(3) };
    for (view, says) in [(with_unusable(), Some("2 records")), (nothing, Some("noise alone")), (usable, None)]
    {
        let mut trainer = hidden(view);
        let (order, mut parameters) = (paid(&mut trainer, &spec, 1), [0.0; 6]);
        trainer.train(&mut parameters, &order, &Stop::default()).unwrap();
        assert!(parameters.iter().any(|value| *value != 0.0));
        let complaint = trainer.take_complaint();
        assert!(complaint.as_deref().unwrap_or_default().contains(says.unwrap_or_default()), "{complaint:?}");
        assert_eq!(complaint.is_some(), says.is_some());
    }
}

#[test]
fn making_ready_reads_no_record() {
    struct Unreadable;
    impl crate::DataSource for Unreadable {
        fn load(&mut self, _: &Spec) -> Result<crate::SiteData, LearnError> {
            Err(LearnError::new(Decline::Data, "the file is not there"))
        }
    }
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 4, {SGD}"#), 1.0, 1.0);
    let mut trainer = Trainer::new(Box::new(Unreadable), Device::Cpu);
    assert_eq!(trainer.parameter_count(&spec), Some(6));
    trainer.prepare(&spec).unwrap();
    let releases = trainer.example_releases().unwrap();
    assert_eq!(releases, Some(ExampleReleases { steps: 1, sampling_rate: 1.0, batch_size: 4 }));
    let order = paid(&mut trainer, &spec, 1);
    assert_eq!(trainer.train(&mut [0.0; 6], &order, &Stop::default()).unwrap_err().reason, Decline::Data);
}

#[test]
fn the_releases_follow_from_the_plan_and_what_is_known_of_the_number_of_records() {
    let of = |training: &str, count| {
        let spec = private(r#""logistic""#, &format!("{training}, {SGD}"), 1.0, 1.0);
        let ExampleReleases { steps, sampling_rate, batch_size } =
            trainer(&spec, toy(count)).example_releases().unwrap().unwrap();
        (steps, sampling_rate, batch_size)
    };
    assert_eq!(of(r#""batch_size": 16, "epochs": 3"#, 50), (12, 0.32, 16));
    assert_eq!(of(r#""batch_size": 16"#, 48), (3, 1.0 / 3.0, 16));
    assert_eq!(of(r#""batch_size": 0, "epochs": 2"#, 50), (2, 1.0, 50));
    assert_eq!(of(r#""batch_size": 64"#, 50), (1, 1.0, 50));
    let known = |training: &str, records| {
        let spec = private(r#""logistic""#, &format!("{training}, {SGD}"), 1.0, 1.0);
        ExampleReleases::of(&spec.training, records)
    };
    let hidden = known(r#""batch_size": 16, "epochs": 3"#, RecordCount::Hidden);
    assert_eq!(hidden, Some(ExampleReleases { steps: 3, sampling_rate: 1.0, batch_size: 16 }));
    assert_eq!(known(r#""batch_size": 0"#, RecordCount::Hidden), None, "there is nothing to divide by");
    assert_eq!(known(r#""batch_size": 16"#, RecordCount::Public(0)), None);
    let open = spec(r#""logistic""#, "[2]", r#"{"classes": 2}"#, &format!(r#""batch_size": 4, {SGD}"#), "");
    assert_eq!(trainer(&open, toy(9)).example_releases().unwrap(), None);
}

#[test]
fn work_that_was_stopped_releases_nothing_more() {
    let spec = private(r#""logistic""#, &format!(r#""batch_size": 4, {SGD}"#), 1.0, 1.0);
    let mut trainer = trainer(&spec, toy(9));
    let (order, stop) = (paid(&mut trainer, &spec, 1), Stop::default());
    stop.stop();
    let error = trainer.train(&mut [0.0; 6], &order, &stop).unwrap_err();
    assert_eq!(error.reason, Decline::Stopped);
    assert_eq!(order.permit.unwrap().lock().left(), 3);
}
