//! AUD-1 and AUD-2: an honest aggregator is not accused, and every way to build it wrong is found.

use privacy::noise::{EntropyError, NoiseSource, Sigma, add_noise};
use protocol::Seed;

use super::*;

/// One release at z = 1, epsilon 4.38 at delta 1e-5.
const AUDIT: GdpAudit = GdpAudit {
    dimension: 2048,
    canaries: 2048,
    norm_max: 0.5,
    weight_max: 1,
    noise_multiplier: 1.0,
    noise_scale: 1.0,
    denominator: 1000.0,
    delta: 1e-5,
    significance: 0.05,
};

/// Noise that repeats with the seed, another one each time it is asked for.
pub(super) fn noise(seed: u64) -> impl FnMut() -> Result<NoiseSource, EntropyError> {
    let mut turn = 0u64;
    move || {
        turn += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&turn.to_le_bytes());
        Ok(NoiseSource::insecure(bytes))
    }
}

/// An aggregator built wrongly. Its noise is the real one; what surrounds it is not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mutant {
    /// None at all: shows that the wrong path accuses nobody by itself.
    Faithful,
    NoNoise,
    NoiseTimes(f64),
    NoClipping,
    WeightsUnbounded,
    NoiseReused,
    DividedByExamples,
}

impl Mutant {
    /// How much a canary counts.
    fn weight(self) -> f64 {
        if matches!(self, Self::WeightsUnbounded | Self::DividedByExamples) { 50.0 } else { 1.0 }
    }

    /// Two releases, with and without canaries, of a cohort of a thousand others with one example and no update.
    fn releases(self, canaries: &Canaries, seed: u64) -> [Vec<f64>; 2] {
        let length = if self == Self::NoClipping { 4.0 } else { 1.0 };
        let step = AUDIT.norm_max / f64::from(1 << 20);
        let mut sum = vec![0i64; AUDIT.dimension];
        for number in canaries.members() {
            let update = canaries.update(number, length * AUDIT.norm_max);
            for (total, value) in sum.iter_mut().zip(update) {
                *total += (self.weight() * f64::from(value) / step).round() as i64;
            }
        }
        let sigma = match self {
            Self::NoNoise => None,
            Self::NoiseTimes(factor) => Some(factor),
            _ => Some(1.0),
        };
        let mut entropy = noise(seed);
        let mut again = noise(seed);
        let examples = 1000.0 + self.weight() * canaries.members().count() as f64;
        let cohort = 1000.0 + canaries.members().count() as f64;
        let release = |mut totals: Vec<i64>, source: NoiseSource| {
            if let Some(factor) = sigma {
                // The mean by examples, with noise for a mean by heads: its deviation is z C / cohort.
                let share = if self == Self::DividedByExamples { examples / cohort } else { 1.0 };
                let sigma = Sigma::covering(factor * share * AUDIT.noise_multiplier, 1 << 20).unwrap();
                let _ = add_noise(&mut totals, sigma, source, 1).unwrap();
            }
            let divisor = if self == Self::DividedByExamples { examples / cohort } else { 1.0 };
            let unit = step / (AUDIT.denominator * divisor);
            totals.into_iter().map(|total| total as f64 * unit).collect::<Vec<f64>>()
        };
        let with = release(sum, entropy().unwrap());
        let second = if self == Self::NoiseReused { again().unwrap() } else { entropy().unwrap() };
        [with, release(vec![0; AUDIT.dimension], second)]
    }

    fn audit(self, seed: u64) -> AuditReport {
        let canaries = Canaries::new(AUDIT.canaries, AUDIT.dimension, Seed::from_number(seed)).unwrap();
        let [with, without] = self.releases(&canaries, seed);
        audit_scores(&AUDIT, &canaries, &with, &without).unwrap()
    }
}

/// AUD-1. Over 100 seeds the bound was 3.43 with a deviation of 0.29 where 4.38 is claimed, so that it is wrong with a
/// chance of 0.0007 a seed: three or more of 40 fresh seeds with a chance below 1e-5. The power is checked by a bound
/// that lies more than six deviations below the mean.
#[test]
fn an_honest_aggregator_is_not_accused() {
    let mut refuted = 0;
    for seed in 0..40 {
        let report = AUDIT.run(Seed::from_number(seed), &mut noise(seed)).unwrap();
        assert!((report.epsilon_claimed - 4.377).abs() < 0.01 && report.members > 800);
        assert!(report.epsilon_found > 1.5, "the audit has lost its power: {report}");
        refuted += u32::from(report.refutes());
    }
    assert!(refuted <= 2, "{refuted} of 40 honest aggregators were accused");
}

/// The wrong path itself is sound: without a defect it accuses nobody (a false alarm has a chance of 0.0007 a seed).
#[test]
fn the_faithful_mutant_is_not_accused() {
    let refuted = (0..5).filter(|seed| Mutant::Faithful.audit(*seed).refutes()).count();
    assert_eq!(refuted, 0);
}

/// AUD-2. Each defect is found at every one of five seeds. The weakest is sigma / sqrt 2: over 100 seeds its bound was 5.52
/// with a deviation of 0.34, against a claim of 4.38, so that five fresh seeds would miss it with a chance of 0.002. All
/// others are more than seven deviations above the claim.
#[test]
fn every_mutant_is_found() {
    let mutants = [
        Mutant::NoNoise,
        Mutant::NoiseTimes(0.5),
        Mutant::NoiseTimes(0.5f64.sqrt()),
        Mutant::NoClipping,
        Mutant::WeightsUnbounded,
        Mutant::NoiseReused,
        Mutant::DividedByExamples,
    ];
    for mutant in mutants {
        for seed in 0..5 {
            let report = mutant.audit(seed);
            assert!(report.refutes(), "{mutant:?} with seed {seed} was not found: {report}");
        }
    }
}

#[test]
fn an_audit_says_what_it_found_and_against_whom() {
    let report = AUDIT.run(Seed::from_number(1), &mut noise(1)).unwrap();
    let text = report.to_string();
    assert!(text.contains("claimed 4.377") && text.contains("not refuted") && text.contains("knows every"));
    let found = AuditReport { epsilon_found: 9.0, ..report };
    assert!(found.to_string().contains("THE CLAIM IS REFUTED"));
    let estimate = AuditReport { significance: None, ..found };
    assert!(!estimate.refutes() && estimate.to_string().contains("estimated at 9.000"));
}

#[test]
fn oversized_and_overweight_updates_are_cut_to_what_is_allowed() {
    let audit = GdpAudit { weight_max: 20, noise_multiplier: 0.01, ..AUDIT };
    let canaries = Canaries::new(4, audit.dimension, Seed::from_number(2)).unwrap().all_in();
    let mut aggregator = audit.aggregator().unwrap();
    let updates = [canaries.update(0, 40.0 * audit.norm_max)];
    let mean = aggregator.release(updates, &mut noise(2)).unwrap();
    let score = canaries.scores(&mean).members[0] * audit.denominator / audit.norm_max;
    // The noise on a score has deviation 0.01: beyond 0.06 with a chance below 1e-8.
    assert!((score - 1.0).abs() < 0.06, "{score}");
}

#[test]
fn models_of_another_length_are_refused() {
    let canaries = Canaries::new(4, 8, Seed::from_number(1)).unwrap();
    let (short, long) = (protocol::Parameters::new(vec![0.0; 7]), protocol::Parameters::new(vec![0.0; 8]));
    let wrong = AuditError::Dimension { expected: 8, found: 7 };
    assert_eq!(one_run(&canaries, &long, &short, 1.0, 1e-5, 0.05), Err(wrong.clone()));
    assert_eq!(one_shot(&canaries, &short, &long, 1.0, 1e-5), Err(wrong.clone()));
    assert_eq!(audit_scores(&AUDIT, &canaries, &[0.0; 8], &[0.0; 7]), Err(wrong));
}
