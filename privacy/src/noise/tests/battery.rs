//! Statistics that tell the discrete Gaussian from what merely resembles it, with seeds that are fixed.
//!
//! False alarms, if seeds were drawn: each check of four standard deviations 6.3e-5, chi-square 1e-4, Kolmogorov-Smirnov
//! 1e-3. One examination is at most 1.3e-3 and the whole file below 3 in 100, once, when the seeds were written down.

use super::*;

/// One million draws decide.
pub(super) const DRAWS: usize = 1_000_000;
/// From this sigma on the bell is smooth to all digits of an f64, and is compared as a continuous one.
const SMOOTH: f64 = 200.0;

/// The check that something failed.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    Mean,
    Variance,
    Shape,
    Neighbours,
    LowBits,
    Tails,
    Shared,
}

/// Probabilities of 0, 1, 2, ... from the definition.
fn probabilities(sigma: f64) -> Vec<f64> {
    let weights: Vec<f64> =
        (0..(40.0 * sigma) as u64 + 2).map(|x| (-(x as f64 / sigma).powi(2) / 2.0).exp()).collect();
    let whole = 2.0 * weights.iter().sum::<f64>() - 1.0;
    weights.iter().map(|weight| weight / whole).collect()
}

/// Second and fourth moment of the definition.
fn moments(sigma: f64) -> (f64, f64) {
    if sigma >= SMOOTH {
        return (sigma.powi(2), 3.0 * sigma.powi(4));
    }
    let moment =
        |power| (0..).zip(probabilities(sigma)).map(|(x, p)| 2.0 * p * f64::from(x).powi(power)).sum();
    (moment(2), moment(4))
}

/// Examines draws that claim to be of N_Z(0, sigma^2).
pub(super) fn examine(draws: &[i64], sigma: f64) -> Result<(), Fault> {
    let count = draws.len() as f64;
    let (second, fourth) = moments(sigma);
    let mean = draws.iter().map(|x| *x as f64).sum::<f64>() / count;
    check(mean.abs() < 4.0 * (second / count).sqrt(), Fault::Mean)?;
    let variance = draws.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / count;
    check((variance - second).abs() < 4.0 * ((fourth - second * second) / count).sqrt(), Fault::Variance)?;
    let shaped = if sigma < SMOOTH { matches_points(draws, sigma) } else { matches_curve(draws, sigma) };
    check(shaped, Fault::Shape)?;
    check(correlation(draws, &draws[1..], second).abs() < 4.0 / count.sqrt(), Fault::Neighbours)?;
    check(sigma < SMOOTH || low_bits_are_uniform(draws), Fault::LowBits)
}

fn check(holds: bool, fault: Fault) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(fault) }
}

/// Correlation of pairs, given the variance.
fn correlation(left: &[i64], right: &[i64], variance: f64) -> f64 {
    let products = left.iter().zip(right).map(|(a, b)| *a as f64 * *b as f64);
    products.sum::<f64>() / variance / left.len().min(right.len()) as f64
}

/// Two releases have nothing to do with each other.
pub(super) fn examine_pair(one: &[i64], other: &[i64], sigma: f64) -> Result<(), Fault> {
    let pairs = one.len().min(other.len()) as f64;
    check(correlation(one, other, moments(sigma).0).abs() < 4.0 / pairs.sqrt(), Fault::Shared)
}

/// Ten million draws of sigma 2^20 and more: 633 are expected beyond four sigma and 5.7 beyond five. False alarms 6e-5,
/// 2e-7 for too many beyond five, and 3e-3 for none.
pub(super) fn examine_tails(draws: &[i64], sigma: f64) -> Result<(), Fault> {
    assert_eq!(draws.len(), 10 * DRAWS);
    let beyond = |reach: f64| draws.iter().filter(|x| (**x as f64).abs() > reach * sigma).count() as i64;
    check((beyond(4.0) - 633).abs() <= 101 && (1..=20).contains(&beyond(5.0)), Fault::Tails)
}

/// Chi-square against the exact probabilities, in bins that expect at least ten; the ends go to the last bins.
pub(super) fn matches_points(draws: &[i64], sigma: f64) -> bool {
    let count = draws.len() as f64;
    let probabilities = probabilities(sigma);
    let last = probabilities.iter().rposition(|p| p * count >= 10.0).unwrap();
    let end = probabilities[last..].iter().sum::<f64>();
    let mut bins = vec![0.0; 2 * last + 1];
    draws.iter().for_each(|x| bins[(x.clamp(&-(last as i64), &(last as i64)) + last as i64) as usize] += 1.0);
    let expected = |bin: usize| {
        let place = bin.abs_diff(last);
        count * if place == last { end } else { probabilities[place] }
    };
    let square =
        bins.iter().enumerate().map(|(bin, seen)| (seen - expected(bin)).powi(2) / expected(bin)).sum();
    chance_above(square, 2 * last) > 1e-4
}

/// Kolmogorov-Smirnov against the continuous curve.
fn matches_curve(draws: &[i64], sigma: f64) -> bool {
    let mut sorted = draws.to_vec();
    sorted.sort_unstable();
    let count = draws.len() as f64;
    let distance = (0..).zip(&sorted).fold(0.0f64, |distance, (rank, x)| {
        let curve = libm::erfc(-(*x as f64) / sigma / std::f64::consts::SQRT_2) / 2.0;
        distance.max((curve - f64::from(rank) / count).abs()).max((f64::from(rank + 1) / count - curve).abs())
    });
    distance < 1.95 / count.sqrt()
}

/// Chi-square of the lowest byte; for a smooth bell all 256 are equally likely.
fn low_bits_are_uniform(draws: &[i64]) -> bool {
    let mut bins = [0.0; 256];
    draws.iter().for_each(|x| bins[(x & 255) as usize] += 1.0);
    let expected = draws.len() as f64 / 256.0;
    chance_above(bins.iter().map(|seen| (seen - expected).powi(2) / expected).sum(), 255) > 1e-4
}

/// The chance that chi-square of so many degrees of freedom exceeds `square`: the regularised incomplete gamma function,
/// by its series below the mean and by Lentz's continued fraction above (Abramowitz, Stegun 6.5.29 and 6.5.31).
fn chance_above(square: f64, freedom: usize) -> f64 {
    let (a, x) = (freedom as f64 / 2.0, square / 2.0);
    let front = (a * x.ln() - x - libm::lgamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        (1..2000).for_each(|place| {
            term *= x / (a + f64::from(place));
            sum += term;
        });
        return 1.0 - front * sum;
    }
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1e300, 1.0 / b);
    let mut fraction = d;
    for place in (1..2000).map(f64::from) {
        let numerator = -place * (place - a);
        b += 2.0;
        d = 1.0 / (numerator * d + b);
        c = b + numerator / c;
        fraction *= d * c;
    }
    front * fraction
}

#[test]
fn the_battery_knows_its_distributions() {
    // Quantiles from any table of chi-square.
    for (square, freedom, chance) in
        [(3.841_459, 1, 0.05), (10.0, 5, 0.075_235_2), (3.940_299, 10, 0.95), (293.247_8, 255, 0.05)]
    {
        assert!((chance_above(square, freedom) - chance).abs() < 1e-4, "{square} {freedom}");
    }
    // From the project's reference table, made with 50 digits.
    for (sigma, variance, zero, two) in [
        (0.5, 0.215012675088, 7.865707070419e-01, 2.638650764154e-04),
        (1.0, 0.999999788768, 3.989422782669e-01, 5.399096622431e-02),
        (2.5, 6.25, 1.595769121606e-01, 1.158766211046e-01),
    ] {
        let probabilities = probabilities(sigma);
        assert!((moments(sigma).0 - variance).abs() < 1e-11);
        assert!((probabilities[0] - zero).abs() < 1e-12 && (probabilities[2] - two).abs() < 1e-12);
    }
}

#[test]
fn narrow_noise_has_the_exact_probabilities() {
    for (seed, (numerator, denominator)) in
        (10..).zip([(1, 2), (1, 1), (5, 2), (4, 1), (16, 1), (17, 1), (100, 3), (64, 1), (199, 1)])
    {
        let sigma = sigma(numerator, denominator);
        let sampler = Sliced::new(sigma);
        let draws = sample(DRAWS, seed, &|stream| sampler.draw(stream));
        assert_eq!(examine(&draws, sigma.value()), Ok(()), "{sigma:?}");
    }
}

#[test]
fn the_plain_method_has_the_exact_probabilities_too() {
    for (seed, (numerator, denominator)) in
        (30..).zip([(1, 2), (1, 1), (5, 2), (4, 1), (64, 1), (1 << 20, 1)])
    {
        let sigma = sigma(numerator, denominator);
        let sampler = Reference::new(sigma).unwrap();
        let draws = sample(DRAWS, seed, &|stream| sampler.draw(stream));
        assert_eq!(examine(&draws, sigma.value()), Ok(()), "{sigma:?}");
    }
}

#[test]
fn wide_noise_follows_the_curve_to_its_lowest_bits() {
    for (seed, numerator) in (50..).zip([1 << 20, (1 << 20) - 12_345, 1 << 28, 1 << 40, 1 << 56]) {
        let sampler = Sliced::new(sigma(numerator, 1));
        let draws = sample(DRAWS, seed, &|stream| sampler.draw(stream));
        assert_eq!(examine(&draws, numerator as f64), Ok(()), "{numerator}");
    }
}

#[test]
fn what_a_release_adds_is_what_the_sampler_draws() {
    // The others ask the sampler; this asks the door that releases use.
    for (seed, (numerator, denominator)) in (80..).zip([(5, 2), (1 << 20, 1)]) {
        let sigma = sigma(numerator, denominator);
        assert_eq!(examine(&noised(&vec![0; DRAWS], sigma, seed, 2), sigma.value()), Ok(()), "{sigma:?}");
    }
}

#[test]
fn the_tails_are_neither_cut_nor_swollen() {
    let sampler = Sliced::new(sigma(1 << 20, 1));
    let draws = sample(10 * DRAWS, 60, &|stream| sampler.draw(stream));
    assert_eq!(examine_tails(&draws, f64::from(1 << 20)), Ok(()));
}

#[test]
fn releases_and_blocks_of_one_release_are_independent() {
    let sampler = Sliced::new(sigma(1 << 20, 1));
    let one = sample(DRAWS, 70, &|stream| sampler.draw(stream));
    let other = sample(DRAWS, 71, &|stream| sampler.draw(stream));
    assert_eq!(examine_pair(&one, &other, f64::from(1 << 20)), Ok(()));
    assert_eq!(examine_pair(&one, &one[BLOCK..], f64::from(1 << 20)), Ok(()));
}
