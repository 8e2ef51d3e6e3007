//! Correlated noise against dense matrices, against its own definition, and against the argument for its privacy.

use proptest::prelude::*;

use super::*;
use crate::accounting::tree;
use crate::noise::{NoiseSource, Sigma, add_noise};

const UNIT: i64 = 1 << WEIGHT_BITS;

type Draw = Box<dyn FnMut(&mut [i64]) -> Result<Provenance, NoiseError>>;

/// Draws these vectors, one after another.
fn scripted(draws: Vec<Vec<i64>>) -> Draw {
    let mut draws = draws.into_iter();
    Box::new(move |values| {
        let noise = draws.next().expect("the script is as long as the run");
        values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise);
        Ok(Provenance::Entropy)
    })
}

/// In each of `rounds` coordinates, `height` in the round of that number: the response to it is a column of the noise's matrix.
fn impulses(rounds: usize, height: i64) -> Vec<Vec<i64>> {
    (0..rounds).map(|at| (0..rounds).map(|i| if i == at { height } else { 0 }).collect()).collect()
}

fn run(correlation: &Correlation, inputs: &[Vec<i64>], draws: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let mut noise = CorrelatedNoise::new(correlation.clone(), inputs[0].len());
    let mut draw = scripted(draws.to_vec());
    inputs.iter().map(|totals| noise.release(totals.clone(), &mut draw).unwrap().0).collect()
}

/// The variance of the noise on every prefix sum, for draws of variance 1: the squared norms of the rows of B.
fn prefix_variances(correlation: &Correlation, rounds: usize) -> Vec<f64> {
    let zeros = vec![vec![0; rounds]; rounds];
    let mut sums = vec![0.0; rounds];
    let released = run(correlation, &zeros, &impulses(rounds, UNIT));
    let variance = |noise: Vec<i64>| {
        sums.iter_mut().zip(noise).for_each(|(sum, noise)| *sum += noise as f64 / UNIT as f64);
        sums.iter().map(|sum| sum * sum).sum()
    };
    released.into_iter().map(variance).collect()
}

fn bands(count: usize) -> Correlation {
    Correlation::Banded { weights: square_root_weights(count) }
}

fn every_kind() -> Vec<Correlation> {
    let odd = Correlation::Banded { weights: vec![524_287, 131_071, 65_535] };
    vec![Correlation::Independent, Correlation::Tree, Correlation::Banded { weights: vec![] }, odd, bands(8)]
}

/// Sums and draws that look like those of a run.
fn noisy_run(rounds: usize, dimension: usize, seed: u8) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let series = |first: u8| -> Vec<Vec<i64>> {
        let mut values = vec![0; rounds * dimension];
        let sigma = Sigma::whole(1 << 30).unwrap();
        assert!(add_noise(&mut values, sigma, NoiseSource::insecure([first; 32]), 1).is_ok());
        values.chunks(dimension).map(<[i64]>::to_vec).collect()
    };
    (series(seed), series(!seed))
}

#[test]
fn bands_are_the_product_with_their_matrix() {
    let (inputs, mut draws) = noisy_run(20, 5, 1);
    // Multiples of the weights' unit leave nothing to round.
    draws.iter_mut().flatten().for_each(|noise| *noise = *noise >> 20 << 20);
    let weights = square_root_weights(6);
    let released = run(&bands(6), &inputs, &draws);
    for (t, i) in (0..20_usize).flat_map(|t| (0..5).map(move |i| (t, i))) {
        let row: Vec<i64> = (0..20)
            .map(|s| match t.checked_sub(s) {
                Some(0) => UNIT,
                Some(back) if back <= 6 => -i64::from(weights[back - 1]),
                _ => 0,
            })
            .collect();
        let product: i64 = row.iter().zip(&draws).map(|(entry, draw)| entry * (draw[i] >> 20)).sum();
        assert_eq!(released[t][i], inputs[t][i] + product, "round {t}, coordinate {i}");
    }
}

#[test]
fn what_is_released_is_within_a_half_of_the_product() {
    let (inputs, draws) = noisy_run(24, 8, 2);
    let weights = [524_287_u32, 131_071, 65_535];
    let released = run(&Correlation::Banded { weights: weights.to_vec() }, &inputs, &draws);
    let mut off_most: f64 = 0.0;
    for (t, i) in (0..24).flat_map(|t| (0..8).map(move |i| (t, i))) {
        let taken = weights.iter().zip((0..t).rev());
        let taken: i128 = taken.map(|(w, s)| i128::from(*w) * i128::from(draws[s][i])).sum();
        let exact = (i128::from(inputs[t][i]) + i128::from(draws[t][i])) * i128::from(UNIT) - taken;
        let off = (i128::from(released[t][i]) * i128::from(UNIT) - exact) as f64 / UNIT as f64;
        off_most = off_most.max(off.abs());
    }
    assert!(off_most <= 0.5 && off_most > 0.25, "{off_most}");
}

#[test]
fn a_prefix_sum_of_the_tree_has_the_noise_of_its_nodes_and_no_other() {
    const ROUNDS: usize = 70;
    let mut noise = CorrelatedNoise::new(Correlation::Tree, ROUNDS);
    let mut draw = scripted(impulses(ROUNDS, 1));
    let mut prefix = vec![0.0; ROUNDS];
    for round in 1..=ROUNDS {
        let (released, _) = noise.release(vec![3; ROUNDS], &mut draw).unwrap();
        prefix.iter_mut().zip(released).for_each(|(sum, value)| *sum += value as f64);
        let nodes: Vec<f64> = prefix.iter().map(|sum| sum - 3.0 * round as f64).collect();
        // The node that ends at round t is named by t: those of a decomposition are found by clearing the lowest bit.
        let mut wanted = vec![0.0; ROUNDS];
        let mut end = round;
        while end > 0 {
            wanted[end - 1] = 1.0;
            end &= end - 1;
        }
        assert_eq!(nodes, wanted, "round {round}");
        assert_eq!(noise.memory().len(), round.count_ones() as usize);
    }
}

#[test]
fn the_nodes_that_are_drawn_cost_no_more_than_the_tree_that_is_accounted_for() {
    // A unit with these rounds moves the node that ends at `end` and covers its lowest bit by the rounds it has there.
    let squares = |rounds: &[u64], steps: u64| -> u64 {
        let below = |end: u64| {
            rounds.iter().filter(|t| (end - (end & end.wrapping_neg()) + 1..=end).contains(t)).count()
        };
        (1..=steps).map(|end| (below(end) as u64).pow(2)).sum()
    };
    for steps in 1..=9 {
        for chosen in 1_u64..1 << steps {
            let rounds: Vec<u64> = (1..=steps).filter(|t| chosen >> (t - 1) & 1 == 1).collect();
            let apart = rounds.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(1);
            let charged = tree::sensitivity_squared(steps, rounds.len() as u64, apart).unwrap();
            assert!(squares(&rounds, steps) as f64 <= charged, "{rounds:?} of {steps}");
        }
    }
}

#[test]
fn a_run_that_is_interrupted_goes_on_as_if_it_were_not() {
    let (inputs, draws) = noisy_run(21, 4, 3);
    for correlation in every_kind() {
        let whole = run(&correlation, &inputs, &draws);
        for stop in 0..=20 {
            let mut first = CorrelatedNoise::new(correlation.clone(), 4);
            let mut draw = scripted(draws.clone());
            for totals in &inputs[..stop] {
                assert!(first.release(totals.clone(), &mut draw).is_ok());
            }
            let kept = first.memory().to_vec();
            let mut second = CorrelatedNoise::restore(correlation.clone(), 4, first.round(), kept).unwrap();
            for (totals, wanted) in inputs[stop..].iter().zip(&whole[stop..]) {
                assert_eq!(
                    &second.release(totals.clone(), &mut draw).unwrap().0,
                    wanted,
                    "{correlation:?} {stop}"
                );
            }
            assert_eq!(second.round(), 21);
        }
    }
}

#[test]
fn memory_of_another_round_or_model_is_refused() {
    let restore = |correlation: &Correlation, round, memory| {
        CorrelatedNoise::restore(correlation.clone(), 2, round, memory).err()
    };
    for (correlation, kept) in every_kind().iter().zip([0, 2, 0, 3, 5]) {
        assert_eq!(restore(correlation, 5, vec![vec![1, 2]; kept]), None);
        let (expected, found) = (kept, kept + 1);
        let refused = restore(correlation, 5, vec![vec![1, 2]; found]);
        assert_eq!(refused, Some(MemoryError::Count { round: 5, expected, found }));
    }
    let refused = restore(&Correlation::Tree, 3, vec![vec![1, 2], vec![1]]);
    assert_eq!(refused, Some(MemoryError::Dimension { index: 1, expected: 2, found: 1 }));
}

#[test]
fn a_release_that_fails_leaves_everything_as_it_was() {
    let (inputs, draws) = noisy_run(7, 4, 4);
    for correlation in every_kind() {
        let whole = run(&correlation, &inputs, &draws);
        let mut noise = CorrelatedNoise::new(correlation, 4);
        let mut draw = scripted(draws.clone());
        for (totals, wanted) in inputs.iter().zip(&whole) {
            let (round, kept) = (noise.round(), noise.memory().to_vec());
            let mut fails = |values: &mut [i64]| {
                values.fill(7);
                Err(NoiseError::Overflow { index: 3 })
            };
            assert_eq!(noise.release(totals.clone(), &mut fails), Err(NoiseError::Overflow { index: 3 }));
            let mut large = |values: &mut [i64]| {
                for (index, value) in values.iter_mut().enumerate() {
                    *value = value.checked_add(i64::MAX).ok_or(NoiseError::Overflow { index })?;
                }
                Ok(Provenance::Entropy)
            };
            let full = noise.release(vec![0, i64::MAX, 0, 0], &mut large);
            assert!(matches!(full, Err(NoiseError::Overflow { .. })), "{full:?}");
            let short = noise.release(vec![0; 3], &mut large);
            assert_eq!(short, Err(NoiseError::Dimension { expected: 4, found: 3 }));
            assert_eq!((noise.round(), noise.memory()), (round, kept.as_slice()));
            assert_eq!(&noise.release(totals.clone(), &mut draw).unwrap().0, wanted);
        }
    }
}

#[test]
fn a_run_ends_when_its_rounds_cannot_be_counted() {
    let mut noise = CorrelatedNoise::restore(Correlation::Independent, 1, u32::MAX, Vec::new()).unwrap();
    let released = noise.release(vec![0], &mut |_| Ok(Provenance::Entropy));
    assert_eq!(released, Err(NoiseError::Rounds));
}

#[test]
fn noise_that_was_once_predictable_stays_so() {
    for correlation in every_kind() {
        let mut noise = CorrelatedNoise::new(correlation, 1);
        let mut release = |provenance| noise.release(vec![0], &mut |_| Ok(provenance)).unwrap().1;
        assert_eq!(release(Provenance::Entropy), Provenance::Entropy);
        assert_eq!(release(Provenance::InsecureTest), Provenance::InsecureTest);
        assert_eq!(release(Provenance::Entropy), Provenance::InsecureTest);
    }
}

#[test]
fn square_root_weights_are_those_of_the_series_and_stay_accountable() {
    let exact = [1 << 19, 1 << 17, 1 << 16, 5 << 13, 7 << 12, 21 << 10, 33 << 9, 429 << 5];
    assert_eq!(square_root_weights(8), exact);
    for count in 1..=64 {
        let weights = square_root_weights(count);
        let strategy = Toeplitz::inverse_of(2_000, &fractions(&weights));
        assert!(strategy.is_ok(), "{count}: {strategy:?}");
        assert!(weights.iter().map(|weight| u64::from(*weight)).sum::<u64>() < 1 << WEIGHT_BITS);
    }
}

#[test]
fn buffered_weights_undo_the_buffers() {
    let buffers = [(0.99, 0.2), (0.6, 0.25)];
    // The whole series gives the matrix back, but for the rounding of each weight.
    let weights = fractions(&buffered_weights(&buffers, 200));
    let rebuilt = Toeplitz::inverse_of(200, &weights).unwrap();
    let wanted = Toeplitz::buffered(200, &buffers).unwrap();
    for (times, apart) in [(1, 1), (5, 20)] {
        let (found, wanted) =
            (rebuilt.sensitivity(times, apart).unwrap(), wanted.sensitivity(times, apart).unwrap());
        assert!((found / wanted - 1.0).abs() < 1e-3 && found <= wanted, "{found} {wanted}");
    }
    // 0.45, and 0.2 * 0.99 + 0.25 * 0.6 - 0.45^2.
    assert_eq!(buffered_weights(&buffers, 2), [471_859, 152_567]);
    assert!(buffered_weights(&[(0.5, 9.0)], 3).iter().all(|weight| *weight <= 1 << WEIGHT_BITS));
}

/// The deviation of the noise on prefix sums, the worst and the root of the mean square over 64 rounds, in units of a noise
/// multiplier of 1 for the whole run and a clipping norm of 1.
fn errors(correlation: &Correlation, times: u32, apart: u32) -> (f64, f64) {
    let variances = prefix_variances(correlation, 64);
    let squared = match correlation {
        Correlation::Independent => f64::from(times),
        Correlation::Tree => tree::sensitivity_squared(64, times.into(), apart.into()).unwrap(),
        Correlation::Banded { .. } => correlation.noise_scale(64, times, apart, 1, 1 << 30).unwrap().powi(2),
    };
    let (largest, sum) =
        variances.iter().fold((0.0_f64, 0.0), |(largest, sum), v| (largest.max(*v), sum + v));
    ((largest * squared).sqrt(), (sum / 64.0 * squared).sqrt())
}

#[test]
fn over_64_rounds_correlated_noise_adds_up_to_what_the_documentation_says() {
    let banded = [1, 2, 4, 8, 16, 32].map(|count| (format!("square root, {count}"), bands(count)));
    let plain =
        [("independent".to_owned(), Correlation::Independent), ("tree".to_owned(), Correlation::Tree)];
    for (name, kind) in plain.into_iter().chain(banded) {
        let (once, often) = (errors(&kind, 1, 1), errors(&kind, 4, 16));
        let row = format!(
            "/// | {name:15} | {:5.2} | {:5.2} | {:5.2} | {:5.2} |",
            once.0, once.1, often.0, often.1
        );
        assert!(include_str!("../correlation.rs").contains(&row), "{row}");
    }
}

#[test]
fn rounding_is_paid_for_and_is_cheap() {
    let scale = |weights: &[u32], dimension, sensitivity| {
        Correlation::Banded { weights: weights.to_vec() }
            .noise_scale(100, 3, 10, dimension, sensitivity)
            .unwrap()
    };
    let weights = square_root_weights(8);
    let planned = scale(&weights, 0, 1 << 30);
    let paid = scale(&weights, 1_600_000, 1 << 30);
    assert!(paid > planned && paid < planned * 1.001, "{planned} {paid}");
    // On a coarse lattice it is not.
    assert!(scale(&weights, 1_600_000, 1 << 10) > 10.0 * planned);
    // Weights of 1 and 0 leave nothing to round, and none are independent noise.
    assert_eq!(scale(&[1 << 20], 1_600_000, 1), scale(&[1 << 20], 0, 1));
    assert_eq!(scale(&[], 10, 1), 3.0_f64.sqrt() * MARGIN);
    assert_eq!(Correlation::Tree.noise_scale(100, 3, 10, 10, 1), Ok(1.0));
    let rising = Correlation::Banded { weights: vec![0, 1 << 20] };
    assert!(rising.noise_scale(100, 3, 10, 1, 1).is_err() && bands(2).noise_scale(9, 0, 1, 1, 1).is_err());
    assert!(bands(2).noise_scale(9, 1, 1, 1, 0).is_err() && bands(2).noise_scale(0, 1, 1, 1, 1).is_err());
}

/// The noise with which `other` inputs would have given what `inputs` gave with `draws`.
fn explanation(
    correlation: &Correlation,
    inputs: &[Vec<i64>],
    draws: &[Vec<i64>],
    other: &[Vec<i64>],
) -> Vec<Vec<i64>> {
    let released = run(correlation, inputs, draws);
    let dimension = inputs[0].len();
    let mut noise = CorrelatedNoise::new(correlation.clone(), dimension);
    let mut found = Vec::new();
    for (totals, wanted) in other.iter().zip(&released) {
        let kept = noise.memory().to_vec();
        let mut probe =
            CorrelatedNoise::restore(correlation.clone(), dimension, noise.round(), kept).unwrap();
        let bare = probe.release(totals.clone(), &mut |_| Ok(Provenance::Entropy)).unwrap().0;
        let needed: Vec<i64> = wanted.iter().zip(bare).map(|(wanted, bare)| wanted - bare).collect();
        let (again, _) = noise.release(totals.clone(), &mut scripted(vec![needed.clone()])).unwrap();
        assert_eq!(&again, wanted);
        found.push(needed);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The heart of the argument for privacy: no more than the named factor lies between the noises that explain one release.
    #[test]
    fn neighbours_explain_the_same_releases_with_noise_that_is_no_further_off_than_paid_for(
        seed in 0_u8..128, which in 0_usize..4, start in 0_usize..6, apart in 5_usize..8, length in 1_i64..40,
        signs in prop::collection::vec(prop::bool::ANY, 3),
    ) {
        let kinds = [vec![524_287, 131_071, 65_535], square_root_weights(9), vec![1 << 20], vec![999_999]];
        let correlation = Correlation::Banded { weights: kinds[which].clone() };
        let (inputs, draws) = noisy_run(24, 3, seed);
        let mut other = inputs.clone();
        for (turn, sign) in signs.iter().enumerate() {
            // Norm 3 * length in three dimensions.
            for (value, part) in other[start + turn * apart].iter_mut().zip([2, -1, 2]) {
                *value += part * length * if *sign { 1 } else { -1 };
            }
        }
        let found = explanation(&correlation, &inputs, &draws, &other);
        let off = |(a, b): (&i64, &i64)| ((a - b) as f64).powi(2);
        let squared: f64 = found.iter().flatten().zip(draws.iter().flatten()).map(off).sum();
        let sensitivity = 3 * length as u64;
        let scale = correlation.noise_scale(24, 3, apart as u32, 3, sensitivity).unwrap();
        prop_assert!(squared.sqrt() <= scale * sensitivity as f64, "{} {}", squared.sqrt(), scale);
        prop_assert!(squared.sqrt() >= 0.5 * sensitivity as f64);
    }
}
