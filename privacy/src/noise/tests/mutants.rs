//! Samplers with a mistake, one each, that the battery must catch, and by which check.
//!
//! Every mistake here has been made in some released library or is one change away from ours. The seeds are fixed; how
//! often the check would miss the mistake with another seed is said at each, and the battery's own docs say how often it
//! would accuse a right sampler.

use super::battery::{DRAWS, Fault, examine, examine_pair, examine_tails, matches_points};
use super::*;

/// The sigma of the wide mutants.
const WIDE: u64 = 1 << 20;

/// A sample of the continuous standard Gaussian (Box, Muller 1958).
fn continuous(stream: &mut Stream) -> f64 {
    let mut uniform = || ((stream.word() >> 11) as f64 + 0.5) / f64::powi(2.0, 53);
    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

/// What the battery says of a sampler that claims `WIDE`.
fn verdict(seed: u8, draw: &(impl Fn(&mut Stream) -> i64 + Sync)) -> Result<(), Fault> {
    examine(&sample(DRAWS, seed, draw), WIDE as f64)
}

#[test]
fn noise_that_is_too_small_by_the_root_of_two_is_caught() {
    // The variance is off by 350 standard deviations: never missed.
    let sampler = Sliced::new(sigma(741_455, 1));
    assert_eq!(verdict(100, &|stream| sampler.draw(stream)), Err(Fault::Variance));
}

#[test]
fn noise_that_is_two_percent_too_large_is_caught() {
    // The variance is off by 28 standard deviations: missed less than once in 1e100.
    let sampler = Sliced::new(sigma(WIDE * 102 / 100, 1));
    assert_eq!(verdict(101, &|stream| sampler.draw(stream)), Err(Fault::Variance));
}

#[test]
fn a_seed_used_for_two_releases_is_caught() {
    // The correlation is one.
    let draws = [sigma(WIDE, 1); 2].map(|sigma| noised(&vec![0; DRAWS], sigma, 102, 2));
    assert_eq!(examine_pair(&draws[0], &draws[1], WIDE as f64), Err(Fault::Shared));
}

#[test]
fn a_stream_used_for_two_blocks_is_caught() {
    let sampler = Sliced::new(sigma(WIDE, 1));
    let block = sample(BLOCK, 103, &|stream| sampler.draw(stream));
    let draws = block.repeat(DRAWS / BLOCK);
    assert_eq!(examine_pair(&draws, &draws[BLOCK..], WIDE as f64), Err(Fault::Shared));
}

#[test]
fn noise_cut_off_at_four_sigma_is_caught() {
    // None is beyond where 633 are expected: never missed.
    let sampler = Sliced::new(sigma(WIDE, 1));
    let cut = |stream: &mut Stream| {
        loop {
            let draw = sampler.draw(stream);
            if draw.unsigned_abs() <= 4 * WIDE {
                return draw;
            }
        }
    };
    assert_eq!(examine_tails(&sample(10 * DRAWS, 104, &cut), WIDE as f64), Err(Fault::Tails));
}

#[test]
fn noise_that_went_through_f32_is_caught() {
    // At 2^28 most values lose up to five low bits: chi-square of the lowest byte is about ten million.
    let sampler = Sliced::new(sigma(1 << 28, 1));
    let draws = sample(DRAWS, 105, &|stream| sampler.draw(stream) as f32 as i64);
    assert_eq!(examine(&draws, f64::from(1 << 28)), Err(Fault::LowBits));
}

#[test]
fn noise_that_prefers_even_numbers_is_caught() {
    // Half of the 256 low bytes never come up: chi-square is about a million, and at sigma 1 the shape shows it too.
    let sampler = Sliced::new(sigma(WIDE, 1));
    assert_eq!(verdict(111, &|stream| sampler.draw(stream) & !1), Err(Fault::LowBits));
    let sampler = Sliced::new(sigma(4, 1));
    assert!(!matches_points(&sample(DRAWS, 112, &|stream| sampler.draw(stream) & !1), 4.0));
}

#[test]
fn noise_in_single_precision_is_caught() {
    // A continuous Gaussian in f32, scaled to 2^28 and made whole: 24 bits of it are chance, the lowest are not.
    let draws = sample(DRAWS, 113, &|stream| (continuous(stream) as f32 * (1u64 << 28) as f32) as i64);
    assert_eq!(examine(&draws, f64::from(1 << 28)), Err(Fault::LowBits));
}

#[test]
fn a_zero_that_never_comes_up_is_caught() {
    // Both signs of zero are refused.
    let sampler = Sliced::new(sigma(2, 1));
    let without_zero = |stream: &mut Stream| {
        loop {
            let draw = sampler.draw(stream);
            if draw != 0 {
                return draw;
            }
        }
    };
    let draws = sample(DRAWS, 114, &without_zero);
    assert_eq!(examine(&draws, 2.0), Err(Fault::Variance));
    assert!(!matches_points(&draws, 2.0));
}

#[test]
fn a_rounded_continuous_gaussian_is_caught() {
    // At sigma 1 the variance is 13/12: 59 standard deviations; chi-square, asked alone, sees it as well.
    let draws = sample(DRAWS, 106, &|stream| continuous(stream).round_ties_even() as i64);
    assert_eq!(examine(&draws, 1.0), Err(Fault::Variance));
    assert!(!matches_points(&draws, 1.0));
}

#[test]
fn a_zero_that_counts_for_both_signs_is_caught() {
    // Minus zero is not refused, so zero comes up 0.57 of the time where 0.40 is right: never missed.
    let sampler = Sliced::new(sigma(1, 1));
    let doubled = |stream: &mut Stream| {
        loop {
            let draw = sampler.draw(stream);
            if draw == 0 || stream.bit() {
                return draw;
            }
        }
    };
    let draws = sample(DRAWS, 108, &doubled);
    assert_eq!(examine(&draws, 1.0), Err(Fault::Variance));
    assert!(!matches_points(&draws, 1.0));
}

#[test]
fn a_sampler_that_takes_every_candidate_is_caught() {
    // The stepped cover is wider than the bell: its variance is off by seven percent, 50 standard deviations.
    let sampler = Sliced::new(sigma(WIDE, 1));
    assert_eq!(verdict(109, &|stream| sampler.draw_any(stream)), Err(Fault::Variance));
}

#[test]
fn a_continuous_gaussian_rounded_down_is_caught() {
    // The mean is off by a half: 31 standard deviations at sigma 16.
    let draws = sample(DRAWS, 110, &|stream| (16.0 * continuous(stream)).floor() as i64);
    assert_eq!(examine(&draws, 16.0), Err(Fault::Mean));
}
