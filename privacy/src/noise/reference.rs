//! The discrete Gaussian as its authors give it: slow, short, and the yardstick for the fast sampler.
//!
//! Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (2020): algorithm 1 (`exp(-gamma)` coins),
//! algorithm 2 (discrete Laplace) and algorithm 3 (discrete Gaussian), in u128. A candidate whose arithmetic would overflow
//! is refused; it lies beyond 128 sigma, and what is lost by it is below `exp(-8000)`. Releases use the fast sampler; this
//! one is for tests and benchmarks.

use super::source::{NoiseSource, Provenance, Stream};
use super::{NoiseError, Sigma, fold};

/// The largest numerator and denominator of sigma the 128-bit arithmetic has room for.
const PART_MAX: u64 = 1 << 28;

/// Adds a sample of N_Z(0, sigma^2) to every value, as [`super::add_noise`] does, by the plain method.
///
/// # Errors
/// As [`super::add_noise`], and [`NoiseError::Wide`] for a sigma above 2^28.
pub fn add_noise(
    values: &mut [i64],
    sigma: Sigma,
    source: NoiseSource,
    threads: usize,
) -> Result<Provenance, NoiseError> {
    let sampler = Reference::new(sigma)?;
    fold(values, source, threads, &|stream| sampler.draw(stream))
}

/// Algorithm 3 for one sigma.
pub(super) struct Reference {
    /// t of the discrete Laplace distribution: `floor(sigma) + 1`.
    scale: u64,
    /// `t b^2`, `a^2` and `2 (a b t)^2` for sigma = a / b.
    slope: u128,
    shift: u128,
    divisor: u128,
}

impl Reference {
    pub(super) fn new(sigma: Sigma) -> Result<Self, NoiseError> {
        let Sigma { numerator, denominator } = sigma;
        if numerator.max(denominator) > PART_MAX {
            return Err(NoiseError::Wide(sigma));
        }
        let (a, b) = (u128::from(numerator), u128::from(denominator));
        let t = a / b + 1;
        let product = a * b * t;
        Ok(Self { scale: t as u64, slope: t * b * b, shift: a * a, divisor: 2 * product * product })
    }

    pub(super) fn draw(&self, stream: &mut Stream) -> i64 {
        loop {
            let candidate = laplace(self.scale, stream);
            if self.is_taken(candidate.unsigned_abs(), stream) == Some(true) {
                return candidate;
            }
        }
    }

    /// A coin of `exp(-(|y| - sigma^2 / t)^2 / (2 sigma^2))`; `None` when it does not fit 128 bits.
    fn is_taken(&self, magnitude: u64, stream: &mut Stream) -> Option<bool> {
        let distance = u128::from(magnitude).checked_mul(self.slope)?.abs_diff(self.shift);
        exponential_coin(distance.checked_mul(distance)?, self.divisor, stream)
    }
}

/// Algorithm 2: magnitude x with probability proportional to `exp(-x / t)`.
fn laplace(scale: u64, stream: &mut Stream) -> i64 {
    loop {
        let low = stream.below(scale);
        if small_coin(u128::from(low), u128::from(scale), stream) != Some(true) {
            continue;
        }
        let mut high = 0u64;
        while small_coin(1, 1, stream) == Some(true) {
            high += 1;
        }
        let magnitude = high.checked_mul(scale).and_then(|high| i64::try_from(high + low).ok());
        let negative = stream.bit();
        match magnitude {
            Some(magnitude) if !(negative && magnitude == 0) => {
                return if negative { -magnitude } else { magnitude };
            }
            _ => continue,
        }
    }
}

/// Algorithm 1: a coin of `exp(-a / b)`.
fn exponential_coin(mut a: u128, b: u128, stream: &mut Stream) -> Option<bool> {
    while a > b {
        if !small_coin(1, 1, stream)? {
            return Some(false);
        }
        a -= b;
    }
    small_coin(a, b, stream)
}

/// A coin of `exp(-a / b)` for a at most b: the alternating series, as von Neumann plays it.
fn small_coin(a: u128, b: u128, stream: &mut Stream) -> Option<bool> {
    let mut place = 1u128;
    while rational_coin(a, b.checked_mul(place).filter(|product| product >> 127 == 0)?, stream) {
        place += 1;
    }
    Some(place % 2 == 1)
}

/// A coin of `a / b`, b below 2^127: compares fair bits with the binary digits of the quotient until they differ.
fn rational_coin(mut a: u128, b: u128, stream: &mut Stream) -> bool {
    if a >= b {
        return true;
    }
    loop {
        a *= 2;
        let digit = a >= b;
        if digit {
            a -= b;
        }
        if stream.bit() != digit {
            return digit;
        }
    }
}
