//! What the noise promises: the contract here, the distribution in `battery`, and in `mutants` what the battery must catch.

mod battery;
mod mutants;

use super::exact::{enclose, falls_below};
use super::reference::Reference;
use super::sliced::Sliced;
use super::*;

use proptest::prelude::*;

fn sigma(numerator: u64, denominator: u64) -> Sigma {
    Sigma::ratio(numerator, denominator).unwrap()
}

/// `count` samples of `draw`, taken the way a release takes them.
fn sample(count: usize, seed: u8, draw: &(impl Fn(&mut Stream) -> i64 + Sync)) -> Vec<i64> {
    let mut values = vec![0; count];
    assert_eq!(fold(&mut values, NoiseSource::insecure([seed; 32]), 2, draw), Ok(Provenance::InsecureTest));
    values
}

fn noised(values: &[i64], sigma: Sigma, seed: u8, threads: usize) -> Vec<i64> {
    let mut values = values.to_vec();
    assert_eq!(
        add_noise(&mut values, sigma, NoiseSource::insecure([seed; 32]), threads),
        Ok(Provenance::InsecureTest)
    );
    values
}

#[test]
fn the_noise_does_not_depend_on_the_number_of_threads() {
    let values: Vec<i64> = (0..3 * BLOCK as i64 + 17).collect();
    let alone = noised(&values, sigma(1 << 20, 1), 1, 1);
    for threads in [0, 2, 3, 4, 5, 64] {
        assert!(alone == noised(&values, sigma(1 << 20, 1), 1, threads), "{threads}");
    }
    assert!(noised(&[], sigma(1, 1), 1, 4).is_empty());
}

#[test]
fn noise_is_added_and_not_put_in_place_of_the_sum() {
    let values: Vec<i64> = (0..5000).map(|place| place * 1_000_003 - (1 << 61)).collect();
    let noise = noised(&vec![0; values.len()], sigma(1 << 30, 1), 9, 2);
    let expected: Vec<i64> = values.iter().zip(&noise).map(|(value, noise)| value + noise).collect();
    assert!(expected == noised(&values, sigma(1 << 30, 1), 9, 2));
}

#[test]
fn a_seed_means_the_same_noise_for_ever() {
    assert_eq!(noised(&[0; 4], sigma(1 << 20, 1), 7, 1), [94_329, -910_781, 95_897, -617_439]);
    assert_eq!(noised(&[0; 8], sigma(1, 1), 7, 1), [0, -1, 0, 0, -1, 0, 1, 3]);
}

#[test]
fn two_releases_never_share_their_noise() {
    let release = || {
        let mut values = vec![0; 64];
        let source = NoiseSource::from_entropy().unwrap();
        assert_eq!(add_noise(&mut values, sigma(1 << 40, 1), source, 1), Ok(Provenance::Entropy));
        values
    };
    assert_ne!(release(), release());
}

#[test]
fn without_entropy_there_is_no_source_and_so_no_release() {
    let error = NoiseSource::from_failing_entropy().err().unwrap();
    assert!(error.to_string().starts_with("the operating system gave no entropy"), "{error}");
}

#[test]
fn a_sum_without_room_for_noise_is_named_and_wiped() {
    for threads in [1, 2] {
        let mut values = vec![5; 3 * BLOCK];
        values[BLOCK + 3..].fill(i64::MAX);
        let source = NoiseSource::insecure([3; 32]);
        let error = add_noise(&mut values, sigma(1 << 20, 1), source, threads).unwrap_err();
        assert!(matches!(error, NoiseError::Overflow { index } if (BLOCK + 3..BLOCK + 40).contains(&index)));
        assert!(values.iter().all(|value| *value == 0));
    }
}

#[test]
fn a_sigma_of_zero_or_out_of_range_is_refused() {
    for (numerator, denominator) in
        [(0, 1), (1, 0), ((1 << 56) + 1, 1), (1, (1 << 20) + 1), (u64::MAX, u64::MAX)]
    {
        assert_eq!(Sigma::ratio(numerator, denominator), Err(SigmaError::Range { numerator, denominator }));
    }
    for multiplier in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
        assert!(Sigma::covering(multiplier, 1 << 30).is_err(), "{multiplier}");
    }
    assert!(Sigma::covering(1.0, 0).is_err());
    // Noise about as wide as a point of its lattice tells more than any accountant of Gaussians says.
    for (multiplier, sensitivity, sigma) in [
        (1.0, 1, 1),
        (1.1, 1, 2),
        (9.0, 1, 9),
        (0.5, 17, 9),
        (1e-300, 1 << 40, 1),
        (f64::from_bits(1), u64::MAX, 1),
    ] {
        let refused = Sigma::covering(multiplier, sensitivity);
        assert_eq!(refused, Err(SigmaError::Coarse { multiplier, sensitivity, sigma }));
    }
    assert_eq!(Sigma::covering(9.1, 1), Sigma::whole(10));
    assert!(matches!(
        reference::add_noise(&mut [0], sigma((1 << 28) + 1, 1), NoiseSource::insecure([0; 32]), 1),
        Err(NoiseError::Wide(_))
    ));
}

#[test]
fn a_sigma_is_rounded_towards_more_noise() {
    for (multiplier, sensitivity, expected) in [
        (1.0, 1 << 30, 1 << 30),
        (1.1, 10, 12),
        (0.5, 31, 16),
        (1e-11, 1 << 40, 11),
        (64.0, 1 << 50, 1 << 56),
        (1.0 + f64::EPSILON, 1 << 52, (1 << 52) + 1),
        (1.0 + f64::EPSILON, 1 << 20, (1 << 20) + 1),
        (f64::powi(2.0, 56), 1, 1 << 56),
    ] {
        assert_eq!(
            Sigma::covering(multiplier, sensitivity),
            Sigma::whole(expected),
            "{multiplier} {sensitivity}"
        );
    }
}

#[test]
fn the_widest_sigma_keeps_its_noise_below_two_to_the_62() {
    let noise = noised(&vec![0; 100_000], sigma(1 << 56, 1), 2, 2);
    assert!(noise.iter().all(|value| value.unsigned_abs() >> MAGNITUDE_BITS == 0));
    assert!(noise.iter().any(|value| value.unsigned_abs() >> 57 > 0));
}

#[test]
fn a_tiny_sigma_is_almost_always_zero_and_ends() {
    let noise = noised(&vec![0; 10_000], sigma(1, 1 << 20), 2, 2);
    assert!(noise.iter().all(|value| *value == 0));
}

#[test]
fn when_the_first_bits_leave_it_open_the_next_ones_decide() {
    // exp(-1/2) * 2^64 = 11188515852577165299.8377325137...: a number that begins with the whole part is below it as often
    // as the fraction says.
    let (low, _) = enclose(1, sigma(1, 1), 1, 1);
    assert_eq!(low, 11_188_515_852_577_165_299);
    let next = 0.837_732_513_7_f64;
    let mut stream = NoiseSource::insecure([4; 32]).stream(0);
    let below = (0..20_000)
        .filter(|_| falls_below(vec![low as u64], &mut stream, 1, sigma(1, 1), 1, 1))
        .count() as f64;
    // Four standard deviations: a false alarm once in 15 000 seeds, and the seed is fixed.
    let spread = (20_000.0 * next * (1.0 - next)).sqrt();
    assert!((below - 20_000.0 * next).abs() < 4.0 * spread, "{below}");
}

#[test]
fn a_coin_of_the_bell_over_a_column_is_fair() {
    let mut stream = NoiseSource::insecure([5; 32]).stream(0);
    for (x, density, count) in [(1, 1, 1), (3, 100, 2), (2, 7, 5)] {
        let chance = (-f64::from(x) * f64::from(x) / 2.0).exp() * f64::from(density) / f64::from(count);
        let falls = |stream: &mut Stream| {
            falls_below(Vec::new(), stream, x as u64, sigma(1, 1), density as u64, count as u64)
        };
        let below = (0..20_000).filter(|_| falls(&mut stream)).count() as f64;
        assert!((below - 20_000.0 * chance).abs() < 4.0 * (20_000.0 * chance * (1.0 - chance)).sqrt(), "{x}");
    }
}

#[test]
fn what_is_written_down_is_checked_when_it_is_read() {
    let written = serde_json::to_string(&sigma(3, 2)).unwrap();
    assert_eq!(written, r#"{"numerator":3,"denominator":2}"#);
    assert_eq!(serde_json::from_str::<Sigma>(&written).unwrap(), sigma(3, 2));
    for wrong in [
        r#"{"numerator":0,"denominator":1}"#,
        r#"{"numerator":1,"denominator":0}"#,
        r#"{"numerator":1,"denominator":1,"unit":1}"#,
        r#"{"numerator":1}"#,
    ] {
        assert!(serde_json::from_str::<Sigma>(wrong).is_err(), "{wrong}");
    }
    for (provenance, name) in
        [(Provenance::Entropy, r#""entropy""#), (Provenance::InsecureTest, r#""insecure_test""#)]
    {
        assert_eq!(serde_json::to_string(&provenance).unwrap(), name);
        assert_eq!(serde_json::from_str::<Provenance>(name).unwrap(), provenance);
    }
    assert!(serde_json::from_str::<Provenance>(r#""tested""#).is_err());
}

proptest! {
    #[test]
    fn a_sigma_from_a_multiplier_is_never_below_it(multiplier in 1e-6f64..64.0, sensitivity in 10_000_000u64..1 << 50) {
        let sigma = Sigma::covering(multiplier, sensitivity).unwrap();
        prop_assert_eq!(sigma.denominator, 1);
        let product = multiplier * sensitivity as f64;
        prop_assert!(sigma.value() >= product * (1.0 - 1e-15));
        prop_assert!(sigma.value() <= product * (1.0 + 1e-15) + 1.0);
    }
}
