//! OpenDP's samples in our types, and the test that they and ours are of one distribution.

use std::error::Error;

use dashu::rational::RBig;
use opendp::traits::samplers::sample_discrete_gaussian;
use privacy::noise::Sigma;

/// `count` samples of OpenDP.
///
/// # Errors
/// Those of OpenDP, and a sample beyond 64 bits.
pub fn opendp(count: usize, sigma: Sigma) -> Result<Vec<i64>, Box<dyn Error>> {
    let (numerator, denominator) = sigma.parts();
    let scale = RBig::from_parts(numerator.into(), denominator.into());
    (0..count)
        .map(|_| {
            Ok(i64::try_from(sample_discrete_gaussian(scale.clone()).map_err(|error| format!("{error:?}"))?)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use privacy::noise::{NoiseSource, add_noise};

    const DRAWS: usize = 300_000;

    fn ours(sigma: Sigma) -> Vec<i64> {
        let mut values = vec![0; DRAWS];
        let source = NoiseSource::from_entropy().unwrap();
        let _ = add_noise(&mut values, sigma, source, 1).unwrap();
        values
    }

    /// Chi-square of two samples of one size in the same bins, over its standard deviation from its mean. Bins are `width` wide;
    /// those with fewer than 20 of both are left out.
    fn excess(one: &[i64], other: &[i64], width: i64, bins: i64) -> f64 {
        let (mut square, mut counted) = (0.0, 0.0);
        let count = |draws: &[i64], bin: i64| {
            draws.iter().filter(|draw| draw.div_euclid(width) == bin).count() as f64
        };
        for bin in -bins..bins {
            let (one, other) = (count(one, bin), count(other, bin));
            if one + other >= 20.0 {
                square += (one - other).powi(2) / (one + other);
                counted += 1.0;
            }
        }
        assert!(counted >= 3.0);
        (square - counted) / (2.0_f64 * counted).sqrt()
    }

    // Beyond eight standard deviations: 4.3e-6 for the four degrees of freedom of sigma 1/2, 9e-7 for the eight of sigma 1, and
    // less for the others; below 1e-5 in all. Nothing here is seeded: OpenDP cannot be.
    #[test]
    fn opendp_and_the_sampler_of_releases_draw_one_distribution() {
        for (numerator, denominator) in [(1, 2), (1, 1), (5, 2), (4, 1), (64, 1), (1 << 20, 1), (1 << 28, 1)]
        {
            let sigma = Sigma::ratio(numerator, denominator).unwrap();
            let width = (sigma.value() / 4.0).floor().max(1.0) as i64;
            let found = excess(&opendp(DRAWS, sigma).unwrap(), &ours(sigma), width, 20);
            assert!(found < 8.0, "{sigma:?}: {found}");
        }
    }

    #[test]
    fn the_comparison_tells_four_percent_of_sigma() {
        // Chi-square is larger by n/2 times 2 * 0.04^2, which is 480, over some 34 bins: 58 standard deviations of its mean, give
        // or take 6, where 8 are asked for. Never missed.
        let other = Sigma::ratio(6656, 100).unwrap();
        assert!(excess(&opendp(DRAWS, Sigma::whole(64).unwrap()).unwrap(), &ours(other), 16, 20) > 8.0);
    }
}
