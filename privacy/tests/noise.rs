//! The noise as a release meets it: through the public door, with the operating system's entropy.
//!
//! Nothing here is seeded, so every statistical bound is wide: all together raise a false alarm less than once in a hundred
//! thousand runs. The sharper, seeded battery is beside the samplers.

use privacy::noise::{NoiseSource, Provenance, Sigma, add_noise, reference};

const DRAWS: usize = 1_000_000;

fn noise(sigma: Sigma, count: usize) -> Vec<i64> {
    let mut values = vec![0; count];
    let source = NoiseSource::from_entropy().expect("the operating system has entropy");
    assert_eq!(add_noise(&mut values, sigma, source, 2), Ok(Provenance::Entropy));
    values
}

#[test]
fn fresh_noise_has_the_mean_and_the_spread_it_promises() {
    // Five standard deviations, six times: 4e-6.
    for sigma in [Sigma::whole(4).unwrap(), Sigma::whole(1 << 23).unwrap(), Sigma::whole(1 << 36).unwrap()] {
        let scaled: Vec<f64> =
            noise(sigma, DRAWS).iter().map(|value| *value as f64 / sigma.value()).collect();
        let mean = scaled.iter().sum::<f64>() / DRAWS as f64;
        let variance = scaled.iter().map(|value| value * value).sum::<f64>() / DRAWS as f64;
        assert!(mean.abs() < 5.0 / (DRAWS as f64).sqrt(), "{sigma:?}: {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / DRAWS as f64).sqrt(), "{sigma:?}: {variance}");
    }
}

#[test]
fn the_fast_and_the_plain_method_agree_value_by_value() {
    // Six standard deviations in each of 117 bins: 3e-7.
    for sigma in [Sigma::ratio(1, 2).unwrap(), Sigma::ratio(5, 2).unwrap(), Sigma::whole(20).unwrap()] {
        let fast = noise(sigma, DRAWS / 2);
        let mut plain = vec![0; DRAWS / 2];
        let source = NoiseSource::from_entropy().unwrap();
        assert_eq!(reference::add_noise(&mut plain, sigma, source, 2), Ok(Provenance::Entropy));
        let reach = (2.5 * sigma.value()) as i64;
        for point in -reach..=reach {
            let count = |draws: &[i64]| draws.iter().filter(|draw| **draw == point).count() as f64;
            let (fast, plain) = (count(&fast), count(&plain));
            assert!((fast - plain).abs() <= 6.0 * (fast + plain).sqrt(), "{sigma:?} {point}: {fast} {plain}");
        }
    }
}

#[test]
fn no_two_releases_and_no_two_blocks_repeat() {
    let sigma = Sigma::whole(1 << 40).unwrap();
    let (one, other) = (noise(sigma, 20_000), noise(sigma, 20_000));
    let mut all = [one, other].concat();
    all.sort_unstable();
    all.dedup();
    // Two of 40 000 values of this spread coincide once in a few thousand runs; ten do so never.
    assert!(all.len() > 39_990);
}
