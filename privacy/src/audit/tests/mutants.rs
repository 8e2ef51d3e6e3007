//! Releases with one mistake each, and the white-box audit that must accuse every one of them.
//!
//! [`Build`] says once more, plainly and with switches, what a release is: uploads are checked and summed as integers,
//! noise is added, the sum is divided. Without a mistake it equals the real path to the bit; with one, canaries that
//! went in are told from those that stayed out more often than the promise allows. Mistakes of the sampler itself are
//! in `noise/tests/mutants.rs`.
//!
//! Seeds are fixed. The significance of the audit allows one seed of twenty to accuse a sound build; none of the forty
//! tried here does more than the test's name says.

use crate::accounting::{Mechanism, Relation, gaussian};
use crate::audit::{Threshold, gaussian_lower_bound};
use crate::ledger::{Charge, Composition, Ledger, Terms, Unit};
use crate::noise::{NoiseSource, Sigma, add_noise};
use crate::{Encoded, Inadmissible, Lattice, Noising, NormBound, Released, Sum};

const DELTA: f64 = 1e-5;
const SIGNIFICANCE: f64 = 0.05;
/// The noise that is promised, over the sensitivity.
const MULTIPLIER: f64 = 1.0;
const WEIGHT_MAX: u32 = 4;
const NORM_MAX: f64 = 0.5;
/// Canaries that went in, and as many that stayed out.
const CANARIES: usize = 1000;

/// What a server gets from a client it does not trust.
struct Upload {
    points: Vec<i32>,
    weight: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Admission {
    Checked,
    WithoutNorm,
    AnyWeight,
}

#[derive(Clone, Copy)]
enum Denominator {
    Planned,
    Arrived,
}

#[derive(Clone, Copy)]
struct Build {
    /// Times the noise that is right.
    noise: f64,
    admission: Admission,
    denominator: Denominator,
}

const SOUND: Build = Build { noise: 1.0, admission: Admission::Checked, denominator: Denominator::Planned };

impl Build {
    /// The released mean.
    fn release(self, uploads: &[Upload], lattice: &Lattice, planned: f64, seed: u64) -> Vec<f64> {
        let mut totals = vec![0i64; lattice.dimension()];
        let mut arrived = 0.0;
        for Upload { points, weight } in uploads.iter().filter(|upload| self.admits(upload, lattice)) {
            let moved = points.iter().map(|point| i64::from(*weight) * i64::from(*point));
            totals.iter_mut().zip(moved).for_each(|(total, moved)| *total += moved);
            arrived += f64::from(*weight);
        }
        if self.noise > 0.0 {
            let sigma = Sigma::covering(MULTIPLIER * self.noise, lattice.sensitivity())
                .expect("the multiplier is above 0");
            let _ = add_noise(&mut totals, sigma, source(seed), 1).expect("totals stay within 2^62");
        }
        let divisor = match self.denominator {
            Denominator::Planned => planned * f64::from(lattice.weight_max()),
            Denominator::Arrived => arrived,
        };
        totals.iter().map(|total| *total as f64 * (lattice.step() / divisor)).collect()
    }

    fn admits(self, upload: &Upload, lattice: &Lattice) -> bool {
        match Encoded::admit(upload.points.clone(), upload.weight, lattice) {
            Ok(_) => true,
            Err(Inadmissible::Norm | Inadmissible::LayerNorm { .. }) => {
                self.admission == Admission::WithoutNorm
            }
            Err(Inadmissible::Weight { .. }) => self.admission == Admission::AnyWeight,
            Err(Inadmissible::Shape { .. } | Inadmissible::Range { .. } | Inadmissible::Layers { .. }) => {
                false
            }
        }
    }
}

/// The released mean of the real path: admission, exact sum, a permit of a ledger, noise.
fn released(uploads: &[Upload], lattice: &Lattice, planned: f64, seed: u64) -> Vec<f64> {
    let terms = Terms {
        population: "canaries".into(),
        unit: Unit::Client,
        relation: Relation::ZeroOut,
        delta: DELTA,
        epsilon_max: 100.0,
    };
    let charge = Charge {
        mechanism: Mechanism::Gaussian { noise_multiplier: MULTIPLIER },
        composition: Composition::Each { at_most: None },
    };
    let (mut ledger, _) = Ledger::found(terms).unwrap();
    let (mut permit, _) = ledger.reserve("audit", 1, &charge, 1).unwrap();
    let mut sum = Sum::new(lattice);
    for Upload { points, weight } in uploads {
        if let Ok(update) = Encoded::admit(points.clone(), *weight, lattice) {
            sum.add(&update).unwrap();
        }
    }
    let noising = Noising::new(planned);
    Released::noised(sum, &mut permit, &noising, &mut || Ok(source(seed))).unwrap().mean().collect()
}

fn source(seed: u64) -> NoiseSource {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    NoiseSource::insecure(bytes)
}

fn lattice(dimension: usize) -> Lattice {
    Lattice::plan(NormBound::new(NORM_MAX).unwrap(), 4096, WEIGHT_MAX, dimension).unwrap()
}

/// What every second canary uploads: the lattice's reach in each of `spread` coordinates that are its own.
fn canaries(spread: usize, weight: u32) -> (Vec<Upload>, Lattice) {
    let lattice = lattice(2 * CANARIES * spread);
    let upload = |canary: usize| {
        let mut points = vec![0; lattice.dimension()];
        points[canary * spread..][..spread].fill(lattice.range());
        Upload { points, weight }
    };
    ((0..2 * CANARIES).step_by(2).map(upload).collect(), lattice)
}

/// Inner products of a mean of `planned` uploads with the unit canaries, over the norm: for honest canaries 1, or 0 for
/// those that stayed out, and the noise.
fn scores(mean: &[f64], spread: usize, planned: f64) -> (Vec<f64>, Vec<f64>) {
    let score = |own: &[f64]| own.iter().sum::<f64>() * planned / NORM_MAX / (spread as f64).sqrt();
    let all: Vec<f64> = mean.chunks(spread).map(score).collect();
    let every_second = |from: usize| all[from..].iter().step_by(2).copied().collect();
    (every_second(0), every_second(1))
}

/// The epsilon that is refuted, for canaries whose score is `signal` when they went in.
fn refuted((members, others): &(Vec<f64>, Vec<f64>), signal: f64) -> f64 {
    gaussian_lower_bound(members, others, Threshold::Above(signal / 2.0), DELTA, SIGNIFICANCE).unwrap()
}

fn promised(releases: f64) -> f64 {
    gaussian::epsilon(MULTIPLIER / releases.sqrt(), DELTA).unwrap()
}

/// What the audit refutes of one release of all canaries.
fn refuted_of(build: Build, spread: usize, weight: u32, signal: f64) -> f64 {
    let (uploads, lattice) = canaries(spread, weight);
    let planned = CANARIES as f64;
    refuted(&scores(&build.release(&uploads, &lattice, planned, 1), spread, planned), signal)
}

#[test]
fn a_release_is_to_the_bit_the_checked_sum_and_the_noise_of_the_tested_sampler() {
    let (mut uploads, lattice) = canaries(1, WEIGHT_MAX);
    let reach = lattice.range();
    // One that is too long, and one that is too heavy: neither may count.
    uploads.push(Upload { points: vec![reach; lattice.dimension()], weight: 1 });
    uploads.push(Upload { points: vec![1; lattice.dimension()], weight: WEIGHT_MAX + 1 });
    let bits = |mean: Vec<f64>| mean.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    for (seed, planned) in [(1, 1001.0), (2, 7.0), (3, 1.5)] {
        let real = bits(released(&uploads, &lattice, planned, seed));
        let of = |build: Build| bits(build.release(&uploads, &lattice, planned, seed));
        assert!(real == of(SOUND), "{seed}");
        for noise in [0.0, 0.5, 0.5_f64.sqrt(), 0.99, 1.02] {
            assert!(real != of(Build { noise, ..SOUND }), "{noise}");
        }
        assert!(real != of(Build { admission: Admission::WithoutNorm, ..SOUND }));
        assert!(real != of(Build { admission: Admission::AnyWeight, ..SOUND }));
        assert!(real != of(Build { denominator: Denominator::Arrived, ..SOUND }));
        assert!(real != bits(SOUND.release(&uploads, &lattice, planned, seed + 10)));
    }
}

#[test]
fn the_real_release_is_not_accused_by_more_than_two_of_forty_seeds() {
    let (uploads, lattice) = canaries(1, WEIGHT_MAX);
    let planned = CANARIES as f64;
    let mut bounds: Vec<f64> = (0..40)
        .map(|seed| refuted(&scores(&released(&uploads, &lattice, planned, 100 + seed), 1, planned), 1.0))
        .collect();
    bounds.sort_by(f64::total_cmp);
    assert!(bounds[37] <= promised(1.0), "{bounds:?}");
    // The audit is not sound for being blind.
    assert!(bounds[20] > 3.0, "{bounds:?}");
}

#[test]
fn too_little_noise_is_accused() {
    for noise in [0.0, 0.5, 0.5_f64.sqrt()] {
        let found = refuted_of(Build { noise, ..SOUND }, 1, WEIGHT_MAX, 1.0);
        assert!(found > promised(1.0), "{noise}: {found}");
    }
}

#[test]
fn admission_without_the_norm_check_is_accused() {
    // Four coordinates at full reach are twice the norm.
    let build = Build { admission: Admission::WithoutNorm, ..SOUND };
    let [found, sound] = [build, SOUND].map(|build| refuted_of(build, 4, WEIGHT_MAX, 2.0));
    assert!(found > promised(1.0) && sound == 0.0, "{found} {sound}");
}

#[test]
fn admission_of_any_weight_is_accused() {
    let build = Build { admission: Admission::AnyWeight, ..SOUND };
    let [found, sound] = [build, SOUND].map(|build| refuted_of(build, 1, 4 * WEIGHT_MAX, 4.0));
    assert!(found > promised(1.0) && sound == 0.0, "{found} {sound}");
}

#[test]
fn noise_that_serves_two_releases_is_accused() {
    let (uploads, lattice) = canaries(1, WEIGHT_MAX);
    let planned = CANARIES as f64;
    // The same cohort before and after the canaries join: what changed is theirs, and two draws of noise or none.
    let bound = |seeds: [u64; 2]| {
        let (before, after) = (
            SOUND.release(&[], &lattice, planned, seeds[0]),
            SOUND.release(&uploads, &lattice, planned, seeds[1]),
        );
        let change: Vec<f64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        refuted(&scores(&change, 1, planned), 1.0)
    };
    let (found, sound) = (bound([5, 5]), bound([5, 6]));
    assert!(found > promised(2.0) && sound <= promised(2.0), "{found} {sound}");
}

#[test]
fn a_mean_over_those_who_came_is_accused() {
    // Twenty clients agree, and the canary says the opposite: over those who came, its coming costs two shares of the mean
    // where the noise covers one. One canary a release, so there are many releases.
    let lattice = lattice(1);
    let (honest, planned) = (20, 20.0);
    let bound = |build: Build| {
        let score = |seed: u64, canary: bool| {
            let points =
                std::iter::repeat_n(lattice.range(), honest).chain(canary.then_some(-lattice.range()));
            let uploads: Vec<Upload> =
                points.map(|point| Upload { points: vec![point], weight: WEIGHT_MAX }).collect();
            (1.0 - build.release(&uploads, &lattice, planned, seed)[0] / NORM_MAX) * planned
        };
        let of = |canary: bool| {
            (0..CANARIES as u64 / 2).map(|seed| score(2 * seed + u64::from(canary), canary)).collect()
        };
        (of(true), of(false))
    };
    let found = refuted(&bound(Build { denominator: Denominator::Arrived, ..SOUND }), 2.0);
    let sound = refuted(&bound(SOUND), 1.0);
    assert!(found > promised(1.0) && sound <= promised(1.0), "{found} {sound}");
}
