//! Where noise takes its chance from: 32 bytes of the operating system, stretched by ChaCha20.
//!
//! A [`NoiseSource`] serves one release. It is consumed by value, cannot be cloned, printed or stored, and wipes its seed
//! when dropped, so a second release cannot meet the same noise by accident, nor a restored snapshot or a forked process.
//! Entropy that fails is an error and the release is off: there is no second-best generator to fall back to.
//!
//! ChaCha20: Bernstein, "ChaCha, a variant of Salsa20" (2008), with 64 bits of counter and 64 of stream number. Every
//! block of coordinates has a stream of its own, so the noise does not depend on how blocks are shared among threads.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Whether the noise of a release can be predicted. A release carries it, and what is predictable must not be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[must_use = "noise from a seed somebody knows protects nobody; record where it came from"]
pub enum Provenance {
    /// Seeded by the operating system.
    Entropy,
    /// INSECURE: seeded by a test. Whoever knows the seed can take the noise off again.
    InsecureTest,
}

impl Provenance {
    /// That of noise drawn from both.
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Entropy, Self::Entropy) => Self::Entropy,
            _ => Self::InsecureTest,
        }
    }
}

/// The operating system gave no entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no entropy ({0}); nothing is released, repeat the round when it does")]
pub struct EntropyError(getrandom::Error);

/// The chance behind one release.
///
/// There is no `Debug`, `Clone` or serialisation on purpose: the seed is worth as much as the raw sum.
///
/// ```compile_fail,E0277
/// fn copy(_: impl Clone) {}
/// fn take(source: privacy::noise::NoiseSource) { copy(source) }
/// ```
///
/// ```compile_fail,E0277
/// fn print(_: impl std::fmt::Debug) {}
/// fn take(source: privacy::noise::NoiseSource) { print(source) }
/// ```
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct NoiseSource {
    seed: Zeroizing<[u8; 32]>,
    provenance: Provenance,
}

impl NoiseSource {
    /// A source for one release, seeded by the operating system.
    ///
    /// # Errors
    /// [`EntropyError`] when the system refuses; the round must then be abandoned or repeated.
    pub fn from_entropy() -> Result<Self, EntropyError> {
        Self::filled_by(getrandom::fill)
    }

    /// INSECURE: a source whose noise anybody who knows `seed` can reproduce. What it noises says so for ever.
    #[cfg(any(test, feature = "insecure-test-noise"))]
    pub fn insecure(seed: [u8; 32]) -> Self {
        Self { seed: Zeroizing::new(seed), provenance: Provenance::InsecureTest }
    }

    /// What [`NoiseSource::from_entropy`] returns on a machine without entropy, for tests of those who call it.
    ///
    /// # Errors
    /// Always.
    #[cfg(any(test, feature = "insecure-test-noise"))]
    pub fn from_failing_entropy() -> Result<Self, EntropyError> {
        Self::filled_by(|_| Err(getrandom::Error::UNSUPPORTED))
    }

    /// Whether its noise can be predicted.
    pub fn provenance(&self) -> Provenance {
        self.provenance
    }

    fn filled_by(fill: impl FnOnce(&mut [u8]) -> Result<(), getrandom::Error>) -> Result<Self, EntropyError> {
        let mut seed = Zeroizing::new([0; 32]);
        fill(seed.as_mut_slice()).map_err(EntropyError)?;
        Ok(Self { seed, provenance: Provenance::Entropy })
    }

    /// The stream of one block of coordinates.
    pub(super) fn stream(&self, block: u64) -> Stream {
        let mut rng = ChaCha20Rng::from_seed(*self.seed);
        rng.set_stream(block);
        Stream { rng, bits: 0, bits_left: 0 }
    }
}

/// Uniform bits of one block. ChaCha's state wipes itself when dropped.
pub(super) struct Stream {
    rng: ChaCha20Rng,
    bits: u64,
    bits_left: u32,
}

impl Stream {
    /// 64 fair bits.
    #[inline]
    pub(super) fn word(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// One fair bit.
    #[inline]
    pub(super) fn bit(&mut self) -> bool {
        if self.bits_left == 0 {
            (self.bits, self.bits_left) = (self.word(), 64);
        }
        let bit = self.bits & 1 == 1;
        self.bits >>= 1;
        self.bits_left -= 1;
        bit
    }

    /// A uniform integer below `bound`, which is at least 1; exact by rejection (Lemire, "Fast random integer generation
    /// in an interval", 2019, algorithm 5).
    #[inline]
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let mut wide = u128::from(self.word()) * u128::from(bound);
        if (wide as u64) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (wide as u64) < threshold {
                wide = u128::from(self.word()) * u128::from(bound);
            }
        }
        (wide >> 64) as u64
    }

    /// How often a fair coin shows tails before it first shows heads.
    pub(super) fn tails(&mut self) -> u64 {
        let mut count = 0;
        while !self.bit() {
            count += 1;
        }
        count
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.bits);
    }
}
