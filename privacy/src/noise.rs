//! The noise of a release: samples of the discrete Gaussian on the integers, added before anything else happens to a sum.
//!
//! Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (2020), definition 1: an integer x has
//! probability proportional to `exp(-x^2 / (2 sigma^2))`. Sums are integers, noise is integers, and no float is involved:
//! textbook noise in floats leaks through the bits it cannot reach (Mironov 2012) and through its precision (Haney et al.
//! 2022). Sampling is exact, not approximate; `sliced.rs` has the method and its proof.
//!
//! How long a sample takes depends on its magnitude (Jin et al. 2022), so noise is drawn for the whole vector at once, away
//! from any connection, and nobody may time a single coordinate.
//!
//! What this module refuses: a sigma of zero (a sum without noise is not a release with privacy), a second release from one
//! source, entropy that fails, and sums that overflow.

mod exact;
pub mod reference;
mod sliced;
mod source;
#[cfg(test)]
mod tests;

use std::thread;

use serde::{Deserialize, Serialize};

pub use source::{EntropyError, NoiseSource, Provenance};

use sliced::Sliced;
use source::Stream;

/// Coordinates that share a stream. Part of what a seed means: another size gives other noise.
const BLOCK: usize = 4096;
/// Samples are below two to this power in magnitude, so that noise cannot overflow an i64 on a sum of at most 2^62.
const MAGNITUDE_BITS: u32 = 62;
/// The least sigma, in points of the lattice, of noise that protects anything.
///
/// Accountants compute with the continuous Gaussian. Where noise is about one point wide, the discrete one tells more: with
/// sigma 1, three percent more epsilon. At ten points the two differ by less than two percent of delta, and the lattices of
/// plans are finer by orders of magnitude; no coarser noise is made.
pub const SIGMA_LEAST: u64 = 10;
const NUMERATOR_MAX: u64 = 1 << 56;
const DENOMINATOR_MAX: u64 = 1 << 20;

/// The sigma of the discrete Gaussian in lattice units: a fraction, greater than zero, at most 2^56.
///
/// It is the parameter of the definition. The standard deviation equals it to twelve digits from sigma = 2 on, and is
/// smaller below (0.4637 at one half). It is written down as its two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fraction", into = "Fraction")]
pub struct Sigma {
    numerator: u64,
    denominator: u64,
}

/// A sigma that cannot be sampled.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SigmaError {
    /// A numerator or denominator out of range.
    #[error(
        "sigma is {numerator}/{denominator}; the numerator must be from 1 to 2^56 and the denominator from 1 to 2^20"
    )]
    Range {
        /// What came.
        numerator: u64,
        /// What came.
        denominator: u64,
    },
    /// Noise so narrow that the lattice shows: the accountants have no bound for it.
    #[error(
        "noise multiplier {multiplier} times sensitivity {sensitivity} is a sigma of {sigma} lattice points; below \
         {SIGMA_LEAST} discrete noise tells more than is accounted for: raise the noise multiplier"
    )]
    Coarse {
        /// What came.
        multiplier: f64,
        /// What came.
        sensitivity: u64,
        /// Their product, rounded up.
        sigma: u64,
    },
    /// A multiplier that is no positive number, or a product beyond 2^56.
    #[error("noise multiplier {multiplier} times sensitivity {sensitivity} must be above 0 and at most 2^56")]
    Product {
        /// What came.
        multiplier: f64,
        /// What came.
        sensitivity: u64,
    },
}

impl Sigma {
    /// A whole sigma, from 1 to 2^56.
    ///
    /// # Errors
    /// [`SigmaError::Range`].
    pub fn whole(sigma: u64) -> Result<Self, SigmaError> {
        Self::ratio(sigma, 1)
    }

    /// A sigma of `numerator / denominator`, the first from 1 to 2^56 and the second from 1 to 2^20.
    ///
    /// # Errors
    /// [`SigmaError::Range`].
    pub fn ratio(numerator: u64, denominator: u64) -> Result<Self, SigmaError> {
        if (1..=NUMERATOR_MAX).contains(&numerator) && (1..=DENOMINATOR_MAX).contains(&denominator) {
            Ok(Self { numerator, denominator })
        } else {
            Err(SigmaError::Range { numerator, denominator })
        }
    }

    /// The least whole sigma that is at least `multiplier * sensitivity` (the latter in lattice units): rounding is always
    /// towards more noise. Every release that is accounted for takes its sigma from here.
    ///
    /// # Errors
    /// [`SigmaError::Product`] for a multiplier that is NaN, infinite, zero or negative, for a sensitivity of zero, and for
    /// a product above 2^56; [`SigmaError::Coarse`] for a sigma below [`SIGMA_LEAST`].
    pub fn covering(multiplier: f64, sensitivity: u64) -> Result<Self, SigmaError> {
        let refusal = SigmaError::Product { multiplier, sensitivity };
        if !(multiplier.is_finite() && multiplier > 0.0 && sensitivity > 0) {
            return Err(refusal);
        }
        let least = ceiling_product(multiplier, sensitivity).ok_or(refusal)?;
        if least < SIGMA_LEAST {
            return Err(SigmaError::Coarse { multiplier, sensitivity, sigma: least });
        }
        Self::whole(least).map_err(|_| refusal)
    }

    /// Numerator and denominator, for the record.
    pub fn parts(self) -> (u64, u64) {
        (self.numerator, self.denominator)
    }

    /// Sigma as a float, for accounting. Not rounded for whole sigmas up to 2^53.
    pub fn value(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fraction {
    numerator: u64,
    denominator: u64,
}

impl From<Sigma> for Fraction {
    fn from(Sigma { numerator, denominator }: Sigma) -> Self {
        Self { numerator, denominator }
    }
}

impl TryFrom<Fraction> for Sigma {
    type Error = SigmaError;

    fn try_from(Fraction { numerator, denominator }: Fraction) -> Result<Self, SigmaError> {
        Self::ratio(numerator, denominator)
    }
}

/// The ceiling of the exact product of a positive float and an integer; `None` beyond 2^64.
fn ceiling_product(multiplier: f64, factor: u64) -> Option<u64> {
    let bits = multiplier.to_bits();
    let (exponent, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
    let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
    let product = u128::from(mantissa) * u128::from(factor);
    // The multiplier is mantissa * 2^-places.
    let places = 1075 - exponent.max(1);
    let whole = match u32::try_from(places) {
        Ok(places) if places < 128 => (product >> places) + u128::from(product & ((1 << places) - 1) > 0),
        Ok(_) => 1,
        Err(_) => product.checked_mul(1u128.checked_shl(places.unsigned_abs())?)?,
    };
    u64::try_from(whole).ok()
}

/// Why a sum could not be noised. The sum is wiped: half-noised values are as secret as raw ones.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// A value plus its noise does not fit an i64.
    #[error("coordinate {index} of the sum leaves no room for noise in 64 bits; sums must stay within 2^62")]
    Overflow {
        /// The coordinate.
        index: usize,
    },
    /// Other coordinates than the noise was planned for.
    #[error("the sum has {found} coordinates where the noise was planned for {expected}")]
    Dimension {
        /// What was planned.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A run with more releases than can be counted.
    #[error("a run makes at most 2^32 - 1 releases; begin another run")]
    Rounds,
    /// Sigma is beyond the 128 bits of the plain method.
    #[error("the plain sampler takes sigmas whose numerator and denominator are at most 2^28, not {0:?}")]
    Wide(Sigma),
}

/// Adds an independent sample of N_Z(0, sigma^2) to every value, and says whether the noise can be predicted.
///
/// `threads` of 0 and 1 both mean the caller's own thread. The result depends on the source alone and not on `threads`.
/// The source is spent:
///
/// ```compile_fail,E0382
/// use privacy::noise::{NoiseSource, Sigma, add_noise};
/// let (source, sigma) = (NoiseSource::from_entropy().unwrap(), Sigma::whole(1 << 20).unwrap());
/// let (mut one, mut other) = ([0; 8], [0; 8]);
/// let _ = add_noise(&mut one, sigma, source, 1);
/// let _ = add_noise(&mut other, sigma, source, 1);
/// ```
///
/// # Errors
/// [`NoiseError::Overflow`] when a value is beyond 2^62 in magnitude; all values are zero then.
pub fn add_noise(
    values: &mut [i64],
    sigma: Sigma,
    source: NoiseSource,
    threads: usize,
) -> Result<Provenance, NoiseError> {
    let sampler = Sliced::new(sigma);
    fold(values, source, threads, &|stream| sampler.draw(stream))
}

/// Adds what `draw` draws, block by block, each from its own stream.
fn fold(
    values: &mut [i64],
    source: NoiseSource,
    threads: usize,
    draw: &(impl Fn(&mut Stream) -> i64 + Sync),
) -> Result<Provenance, NoiseError> {
    let blocks = values.len().div_ceil(BLOCK);
    let share = blocks.div_ceil(threads.max(1)).max(1);
    let run = |first: usize, part: &mut [i64]| -> Result<(), NoiseError> {
        for (block, values) in (first..).zip(part.chunks_mut(BLOCK)) {
            let mut stream = source.stream(block as u64);
            for (place, value) in values.iter_mut().enumerate() {
                let noised = value.checked_add(draw(&mut stream));
                *value = noised.ok_or(NoiseError::Overflow { index: block * BLOCK + place })?;
            }
        }
        Ok(())
    };
    let outcome = if share >= blocks {
        run(0, values)
    } else {
        thread::scope(|scope| {
            let parts = values.chunks_mut(share * BLOCK).enumerate();
            let workers: Vec<_> =
                parts.map(|(part, values)| scope.spawn(move || run(part * share, values))).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).fold(Ok(()), Result::and)
        })
    };
    match outcome {
        Ok(()) => Ok(source.provenance()),
        Err(error) => {
            values.fill(0);
            Err(error)
        }
    }
}
