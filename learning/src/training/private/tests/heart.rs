//! The plan of `examples/heart_private.toml` on its records: four hospitals whose parameters are averaged by examples, at
//! epsilon 1.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use privacy::accounting::{Event, Relation, pld};
use protocol::{EvaluateOrder, ExampleReleases, Learner, RecordCount, Spec, Stop, TrainOrder};

use super::{order, permit_for};
use crate::training::Trainer;
use crate::{Dataset, Labels, SiteData, View};

const DELTA: f64 = 1e-5;

/// All of these as in `examples/heart_private.toml`: every record in one step a round.
const ROUNDS: u32 = 20;
const LEARNING_RATE: f64 = 0.5;
const NORM_MAX: f64 = 1.0;

/// The noise multiplier of `examples/heart_private.toml`.
const NOISE: f64 = 16.7;

/// Public centres and scales, not computed from these records: round numbers for people of middle age, and 0.5 for what is
/// 0 or 1.
const MEAN: [f64; 13] = [55.0, 0.5, 130.0, 220.0, 0.5, 140.0, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5];
const STD: [f64; 13] = [10.0, 0.5, 20.0, 50.0, 0.5, 25.0, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5];

/// The training and test rows of each hospital, standardised.
fn hospitals() -> Vec<SiteData> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/heart_disease.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let chosen = |site: &str, split: &str| {
        let (mut features, mut classes) = (Vec::new(), Vec::new());
        for row in rows.iter().filter(|row| &row[0] == site && &row[1] == split) {
            let numbers = (2..15).map(|column| row[column].parse::<f64>().unwrap());
            features
                .extend(numbers.zip(MEAN.iter().zip(STD)).map(|(x, (mean, std))| ((x - mean) / std) as f32));
            classes.push(row[15].parse().unwrap());
        }
        View::whole(Arc::new(Dataset {
            shape: vec![13],
            features: features.into(),
            labels: Labels::Classes(classes),
        }))
    };
    let of = |site| SiteData { train: chosen(site, "train"), test: Some(chosen(site, "test")) };
    ["cleveland", "hungarian", "switzerland", "va"].map(of).into()
}

fn spec(noise_multiplier: f64) -> Arc<Spec> {
    let json = format!(
        r#"{{"model": "logistic", "data": {{"tensor": {{"shape": [13], "target": {{"classes": 2}}}}}}, "cohort_max": 4,
        "training": {{"batch_size": 0, "optimizer": {{"sgd": {{"learning_rate": {LEARNING_RATE}}}}}}},
        "privacy": {{"examples": {{"noise_multiplier": {noise_multiplier}, "norm_max": {NORM_MAX}, "delta": {DELTA},
        "epsilon_max": 1000}}}}}}"#
    );
    Arc::new(Spec::from_json(&json).unwrap())
}

/// Epsilon of the records of the hospital where it is largest, after all rounds.
fn epsilon(noise_multiplier: f64, records: &[u64]) -> f64 {
    let spec = spec(noise_multiplier);
    let of = |records: &u64| {
        let releases = ExampleReleases::of(&spec.training, RecordCount::Public(*records)).unwrap();
        let event = Event::new(releases.mechanism(noise_multiplier), releases.steps * u64::from(ROUNDS));
        pld::epsilon(&[event.unwrap()], Relation::ZeroOut, DELTA).unwrap()
    };
    records.iter().map(of).fold(0.0, f64::max)
}

/// Accuracy over the test rows of all hospitals after all rounds.
fn accuracy(noise_multiplier: f64, sites: &[SiteData], seed: u64) -> f64 {
    let spec = spec(noise_multiplier);
    let trainer = |site: &SiteData| {
        let mut trainer = Trainer::new(Box::new(site.clone()), Device::Cpu)
            .with_counted_records()
            .with_insecure_test_noise();
        trainer.prepare(&spec).unwrap();
        trainer
    };
    let mut trainers: Vec<Trainer> = sites.iter().map(trainer).collect();
    let mut model = vec![0f32; 28];
    for round in 0..ROUNDS {
        let (mut sum, mut records) = (vec![0f64; 28], 0.0);
        for (place, trainer) in trainers.iter_mut().enumerate() {
            let releases = trainer.example_releases().unwrap().unwrap();
            let permit = Some(permit_for(&releases, noise_multiplier));
            let number = seed * 1_000_000 + u64::from(round) * 100 + place as u64;
            let scale = 0.5 * (1.0 + (std::f64::consts::PI * f64::from(round) / f64::from(ROUNDS)).cos());
            let order = TrainOrder { permit, learning_rate_scale: scale, ..order(number) };
            let mut local = model.clone();
            let metrics = trainer.train(&mut local, &order, &Stop::default()).unwrap();
            let weight = metrics.examples as f64;
            records += weight;
            sum.iter_mut().zip(&local).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
        model = sum.iter().map(|sum| (sum / records) as f32).collect();
    }
    let (mut right, mut rows) = (0.0, 0.0);
    for trainer in &mut trainers {
        let order = EvaluateOrder { standardiser: None };
        let metrics = trainer.evaluate(&model, &order, &Stop::default()).unwrap();
        right += metrics.accuracy.unwrap() * metrics.examples as f64;
        rows += metrics.examples as f64;
    }
    right / rows
}

fn records(sites: &[SiteData]) -> Vec<u64> {
    sites.iter().map(|site| site.train.len() as u64).collect()
}

#[test]
fn four_hospitals_learn_heart_disease_at_epsilon_one() {
    let sites = hospitals();
    assert_eq!(records(&sites), [199, 172, 30, 85]);
    let spent = epsilon(NOISE, &records(&sites));
    assert!(spent > 0.99 && spent <= 1.0, "{spent}");
    // Guessing the more frequent class is right for 0.52 of the test rows.
    let found = accuracy(NOISE, &sites, 1);
    assert!(found > 0.75, "{found}");
}
