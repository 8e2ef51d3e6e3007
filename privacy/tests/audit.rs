//! Audits must find what is broken and must not accuse what is sound.
//!
//! The bounds are held to the reference table; then to simulated white-box attacks on Gaussian releases, sound
//! ones and ones with less noise than promised. Seeds are fixed; a sound audit errs in one run of twenty by
//! design.

use privacy::accounting::{Relation, pld};
use privacy::audit::{
    Attack, AuditError, Threshold, clopper_pearson_lower_bound, gaussian_lower_bound, one_run_from_scores,
    one_run_lower_bound, one_shot_estimate,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SIGNIFICANCE: f64 = 0.05;
const DELTA: f64 = 1e-5;

fn gaussian(rng: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// The scores of a white-box attack: 1 or 0, and the noise.
fn scores(seed: u64, canaries: usize, noise: f64) -> (Vec<f64>, Vec<f64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let members = (0..canaries).map(|_| 1.0 + noise * gaussian(&mut rng)).collect();
    (members, (0..canaries).map(|_| noise * gaussian(&mut rng)).collect())
}

fn promised(noise_multiplier: f64) -> f64 {
    pld::single_release_epsilon(noise_multiplier, 1.0, Relation::AddOrRemoveOne, DELTA)
        .expect("the noise is in range")
}

fn median_of(bound: impl Fn(u64) -> f64) -> f64 {
    let mut bounds: Vec<f64> = (0..11).map(bound).collect();
    bounds.sort_by(f64::total_cmp);
    bounds[5]
}

fn assert_close(found: f64, given: f64) {
    assert!((found - given).abs() <= 1e-6 * given.abs() + 1e-9, "{found} against {given}");
}

#[test]
fn the_one_run_bound_is_that_of_the_reference() {
    for (canaries, guesses, correct, delta, given) in [
        (1000, 100, 90, 1e-5, 1.626_143_480_695_726_2),
        (1000, 200, 200, 0.0, 4.193_629_987_171_006),
        (500, 500, 300, 1e-5, 0.251_445_480_527_871_86),
        (100, 50, 25, 1e-5, 0.0),
    ] {
        assert_close(one_run_lower_bound(canaries, guesses, correct, delta, SIGNIFICANCE).unwrap(), given);
    }
}

#[test]
fn the_threshold_bound_is_that_of_the_reference() {
    for (true_positives, false_positives, given) in
        [(480, 5, 3.652_640_321_822_714_6), (950, 100, 2.050_229_768_570_776_7)]
    {
        let attack = Attack { members: 1000, true_positives, others: 1000, false_positives };
        assert_close(clopper_pearson_lower_bound(attack, DELTA, SIGNIFICANCE).unwrap(), given);
    }
}

#[test]
fn a_sound_release_is_hardly_ever_accused() {
    for noise in [0.5, 1.0, 2.0] {
        for threshold in [Threshold::Above(0.5), Threshold::Ranks(8)] {
            let accused = (0..40).filter(|&seed| {
                let (members, others) = scores(seed, 500, noise);
                let bound = gaussian_lower_bound(&members, &others, threshold, DELTA, SIGNIFICANCE).unwrap();
                bound > promised(noise)
            });
            // If each is accused with chance 1/20, more than 6 of 40 are in one of 250 batches.
            let accused = accused.count();
            assert!(accused <= 6, "{accused} of 40 at {noise} by {threshold:?}");
        }
        let accused = (0..40).filter(|&seed| {
            let (members, others) = scores(seed, 500, noise);
            one_run_from_scores(&members, &others, 100, DELTA, SIGNIFICANCE).unwrap() > promised(noise)
        });
        assert_eq!(accused.count(), 0);
    }
}

#[test]
fn noise_that_is_too_small_is_exposed() {
    let claim = promised(1.0);
    for (noise, least) in [(1.0 / 2.0_f64.sqrt(), 0.0), (0.5, 2.0), (1e-9, 100.0)] {
        for threshold in [Threshold::Above(0.5), Threshold::Ranks(8)] {
            let bound = median_of(|seed| {
                let (members, others) = scores(seed, 1000, noise);
                gaussian_lower_bound(&members, &others, threshold, DELTA, SIGNIFICANCE).unwrap()
            });
            // Perfect separation of a thousand pairs can prove no more than so many can.
            let least = if noise < 1e-6 { 2.0 * claim } else { claim + least };
            assert!(bound > least, "{bound} does not refute {claim} at noise {noise} by {threshold:?}");
        }
    }
    // Noise used twice cancels in the difference of the two releases: every score is exact.
    let (members, others) = scores(3, 1000, 0.0);
    let bound = gaussian_lower_bound(&members, &others, Threshold::Above(0.5), DELTA, SIGNIFICANCE).unwrap();
    assert!(bound > claim, "{bound}");
}

#[test]
fn the_gaussian_audit_is_the_strongest() {
    let gaussian = median_of(|seed| {
        let (members, others) = scores(seed, 1000, 1.0);
        gaussian_lower_bound(&members, &others, Threshold::Above(0.5), DELTA, SIGNIFICANCE).unwrap()
    });
    let one_run = median_of(|seed| {
        let (members, others) = scores(seed, 1000, 1.0);
        one_run_from_scores(&members, &others, 100, DELTA, SIGNIFICANCE).unwrap()
    });
    assert!(gaussian > 3.0 && gaussian < promised(1.0), "{gaussian}");
    assert!(one_run > 0.8 && one_run < gaussian, "{one_run}");
}

#[test]
fn the_one_shot_estimate_finds_the_noise() {
    // Canaries in 10,000 dimensions whose cosines have mean 0.03 and the unseen spread 0.01 are a Gaussian
    // release of noise 1/3.
    let mut rng = StdRng::seed_from_u64(5);
    let cosines: Vec<f64> = (0..20_000).map(|_| 0.03 + 0.01 * gaussian(&mut rng)).collect();
    let estimate = one_shot_estimate(&cosines, 10_000, DELTA).unwrap();
    assert!((estimate / promised(1.0 / 3.0) - 1.0).abs() < 0.05, "{estimate}");
    let unseen: Vec<f64> = (0..20_000).map(|_| 0.01 * gaussian(&mut rng)).collect();
    let estimate = one_shot_estimate(&unseen, 10_000, DELTA).unwrap();
    assert!(estimate < 0.3, "{estimate}");
}

#[test]
fn audits_of_nonsense_are_refused() {
    let scores = [0.0, 1.0];
    let audit = |members: &[f64], delta, significance| {
        gaussian_lower_bound(members, &scores, Threshold::Ranks(2), delta, significance)
    };
    assert_eq!(audit(&[], DELTA, 0.05), Err(AuditError::Few { scores: 0, least: 1 }));
    assert_eq!(audit(&[0.0, f64::NAN], DELTA, 0.05), Err(AuditError::Score(1)));
    assert_eq!(audit(&scores, 0.0, 0.05), Err(AuditError::Delta(0.0)));
    assert_eq!(audit(&scores, DELTA, 0.5), Err(AuditError::Significance(0.5)));
    assert!(one_run_lower_bound(10, 11, 1, DELTA, 0.05).is_err());
    assert!(one_run_lower_bound(0, 0, 0, DELTA, 0.05).is_err());
    assert!(one_shot_estimate(&[0.1], 10, DELTA).is_err());
    assert!(one_shot_estimate(&[0.1, 2.0], 10, DELTA).is_err());
    let attack = Attack { members: 1, true_positives: 2, others: 1, false_positives: 0 };
    assert!(clopper_pearson_lower_bound(attack, DELTA, 0.05).is_err());
}
