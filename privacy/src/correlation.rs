//! Noise that is correlated between the rounds of a run, so that less of it is left in their sum: DP-FTRL on the lattice.
//!
//! Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning without Sampling or Shuffling" (2021,
//! arXiv 2103.00039), for the tree; Denisov, McMahan, Rush, Smith, Thakurta (2022, arXiv 2202.08312) and Choquette-Choo et al.
//! (2023, arXiv 2306.08153) for bands.
//!
//! **Tree.** Every round completes one node of the binary decomposition of its number, and that node's noise is drawn then. The
//! release of round t is x_t + N_t - N_(t-1), where N_t sums the noise of the nodes that t consists of: a whole number, computed
//! from noised node sums alone. These nodes are some of those that [`crate::accounting::tree`] charges for.
//!
//! **Bands.** The release of round t is x_t + z_t - round(sum of w_j z_(t-j)), a whole number as well. Without the rounding it
//! would be C^-1 (C x + z), where C is the inverse of the weights' matrix; and it would not be private at all: z is a whole
//! number and C x is not, so the fraction of the second release tells z_1 modulo 2^20, and with it x_1, whatever sigma is.
//! With the rounding, the argument goes round by round. Given the releases so far, an input x' that differs from x by u
//! explains the next one with other noise z'; the difference z_t - z'_t is a whole number, known from the past, and equal to
//! entry t of C (u + e), where e is the difference of two roundings and so below 1 in every coordinate. Hence its squares over
//! all rounds and coordinates sum to at most
//!
//! ```text
//! (sensitivity of C * sensitivity of x + |C 1| * sqrt(dimension))^2
//! ```
//!
//! whatever happens, and the Rényi divergence of the run is that of one Gaussian release moved by the root of it (each round's
//! is exact for whole shifts: Canonne, Kamath, Steinke 2020; shifts that depend on the past compose: Feldman and Zrnic,
//! "Individual Privacy Accounting via a Renyi Filter" 2021, section 3). [`Correlation::noise_scale`] is that root over the
//! sensitivity of x. The last step to f64 comes after all this and can be as inexact as it likes.
//!
//! This module draws no noise of its own, knows no budget, and refuses memory that does not fit the round.

mod presets;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use zeroize::{Zeroize as _, Zeroizing};

pub use presets::{buffered_weights, square_root_weights};

use crate::accounting::AccountingError;
use crate::accounting::matrix::Toeplitz;
use crate::noise::{NoiseError, Provenance};

/// Binary places of a weight.
const WEIGHT_BITS: u32 = 20;
/// What floating point may have lost in a sensitivity, many times over.
const MARGIN: f64 = 1.0 + 1e-9;

/// How the noise of one round follows from that of the rounds before.
///
/// Standard deviation of the noise on prefix sums over 64 rounds, at an equal guarantee for the whole run, in units of its noise
/// multiplier times the clipping norm: the worst prefix, and the root of the mean square over all of them. A unit takes
/// part once, or four times 16 rounds apart. The tree is charged for nodes that no prefix needs.
///
/// | noise           | once: worst | mean | four times: worst | mean |
/// |-----------------|------:|------:|------:|------:|
/// | independent     |  8.00 |  5.70 | 16.00 | 11.40 |
/// | tree            |  6.48 |  4.59 | 16.25 | 11.52 |
/// | square root, 1  |  4.73 |  3.44 |  9.45 |  6.88 |
/// | square root, 2  |  3.88 |  2.89 |  7.77 |  5.79 |
/// | square root, 4  |  3.19 |  2.48 |  6.53 |  5.08 |
/// | square root, 8  |  2.73 |  2.25 |  6.01 |  4.97 |
/// | square root, 16 |  2.48 |  2.18 |  6.02 |  5.30 |
/// | square root, 32 |  2.40 |  2.21 |  6.11 |  5.62 |
///
/// The number is that of the bands of [`square_root_weights`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Correlation {
    /// Not at all.
    Independent,
    /// By a binary tree over the rounds.
    Tree,
    /// Part of the noise of the last rounds is taken back: `z_t - round(sum_j w_j z_(t-j))`.
    Banded {
        /// The w, in units of 2^-20, most recent round first; from 0 to 2^20 each.
        weights: Vec<u32>,
    },
}

impl Correlation {
    /// The factor by which sigma must exceed noise multiplier times `sensitivity` so that all `rounds` releases together are as
    /// private as one Gaussian release of that multiplier; for a tree, so that each node is. At least 1.
    ///
    /// `sensitivity` is how far one participation can move the sum of a round, in lattice units, at least 1; a unit takes part
    /// at most `participations_max` times, in rounds whose numbers differ by at least `separation_min` (1 or more each).
    ///
    /// # Errors
    /// [`AccountingError::Parameter`] for a number out of range, and for weights whose inverse is not non-increasing: its
    /// sensitivity has no simple form.
    pub fn noise_scale(
        &self,
        rounds: u32,
        participations_max: u32,
        separation_min: u32,
        dimension: usize,
        sensitivity: u64,
    ) -> Result<f64, AccountingError> {
        let Self::Banded { weights } = self else { return Ok(1.0) };
        if sensitivity == 0 {
            let range = "the whole numbers from 1";
            return Err(AccountingError::Parameter { name: "the sensitivity of a sum", value: 0.0, range });
        }
        let strategy = Toeplitz::inverse_of(rounds as usize, &fractions(weights))?;
        let planned = strategy.sensitivity(participations_max.into(), separation_min.into())?;
        let is_whole = weights.iter().all(|weight| weight.trailing_zeros() >= WEIGHT_BITS);
        let rounded = if is_whole { 0.0 } else { strategy.sensitivity_of_every_round() };
        Ok((planned + rounded * (dimension as f64).sqrt() / sensitivity as f64) * MARGIN)
    }

    /// How many vectors of noise are kept after `round` releases.
    fn memory_length(&self, round: u32) -> usize {
        match self {
            Self::Independent => 0,
            Self::Tree => round.count_ones() as usize,
            Self::Banded { weights } => weights.len().min(round as usize),
        }
    }
}

/// Weights as numbers.
fn fractions(weights: &[u32]) -> Vec<f64> {
    weights.iter().map(|weight| f64::from(*weight) / f64::from(1 << WEIGHT_BITS)).collect()
}

/// Memory that belongs to another run or round. It is wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Another number of vectors.
    #[error(
        "the noise kept after {round} releases is {found} vectors where it must be {expected}; restore what was kept with the \
         last release of this very run"
    )]
    Count {
        /// Releases made.
        round: u32,
        /// What they leave.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A vector of another length.
    #[error(
        "vector {index} of the kept noise has {found} coordinates where the model has {expected}; restore what was kept with \
         the last release of this very run"
    )]
    Dimension {
        /// Which of them, from 0.
        index: usize,
        /// The model's coordinates.
        expected: usize,
        /// What came.
        found: usize,
    },
}

/// What must be kept between rounds, as secret as a raw sum. Cheap to clone; wiped with its last clone.
#[derive(Clone, Default)]
pub struct NoiseMemory(Arc<Kept>);

#[derive(Default)]
struct Kept(Vec<Vec<i64>>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|noise| noise.zeroize());
    }
}

impl NoiseMemory {
    /// Memory that was written down.
    pub fn new(vectors: Vec<Vec<i64>>) -> Self {
        Self(Arc::new(Kept(vectors)))
    }

    /// The vectors, each as long as the model.
    pub fn vectors(&self) -> &[Vec<i64>] {
        &self.0.0
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }
}

impl PartialEq for NoiseMemory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.vectors() == other.vectors()
    }
}

impl fmt::Debug for NoiseMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoiseMemory({} vectors)", self.vectors().len())
    }
}

/// The noise of one run: what has been drawn and will be met again.
///
/// There is no `Debug` and no `Clone`: whoever knows it can take the noise off what was released. It is wiped when dropped.
///
/// ```compile_fail,E0277
/// fn copy(_: impl Clone) {}
/// copy(privacy::correlation::CorrelatedNoise::new(privacy::correlation::Correlation::Tree, 1));
/// ```
///
/// ```compile_fail,E0277
/// fn print(_: impl std::fmt::Debug) {}
/// print(privacy::correlation::CorrelatedNoise::new(privacy::correlation::Correlation::Tree, 1));
/// ```
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct CorrelatedNoise {
    correlation: Correlation,
    dimension: usize,
    round: u32,
    /// Tree: the nodes that the round consists of, largest first. Bands: the last draws, most recent first.
    memory: Vec<Vec<i64>>,
    provenance: Provenance,
}

impl CorrelatedNoise {
    /// Before the first release of sums of `dimension` coordinates.
    pub fn new(correlation: Correlation, dimension: usize) -> Self {
        Self { correlation, dimension, round: 0, memory: Vec::new(), provenance: Provenance::Entropy }
    }

    /// Brings back what [`CorrelatedNoise::memory`] gave after `round` releases.
    ///
    /// The lengths are checked; the values cannot be. Memory of another release gives noise that does not cancel and privacy
    /// that was not accounted for.
    ///
    /// # Errors
    /// [`MemoryError`] when the lengths do not fit.
    pub fn restore(
        correlation: Correlation,
        dimension: usize,
        round: u32,
        memory: Vec<Vec<i64>>,
    ) -> Result<Self, MemoryError> {
        let mut restored = Self::new(correlation, dimension);
        (restored.round, restored.memory) = (round, memory);
        let (expected, found) = (restored.correlation.memory_length(round), restored.memory.len());
        if found != expected {
            return Err(MemoryError::Count { round, expected, found });
        }
        match restored.memory.iter().position(|noise| noise.len() != dimension) {
            Some(index) => {
                let found = restored.memory[index].len();
                Err(MemoryError::Dimension { index, expected: dimension, found })
            }
            None => Ok(restored),
        }
    }

    /// Releases made.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// What must be kept between rounds, as secret as a raw sum: nothing for independent noise, at most 32 vectors for a tree,
    /// as many as there are weights for bands.
    pub fn memory(&self) -> &[Vec<i64>] {
        &self.memory
    }

    /// The values of the next release: `totals` plus this round's noise, in lattice units.
    ///
    /// `draw` adds fresh independent noise to what it is given; it is called once a release. The provenance is the
    /// worst of all draws since this value was made.
    ///
    /// # Errors
    /// What `draw` says, [`NoiseError::Overflow`] for a value beyond 64 bits, [`NoiseError::Dimension`], and
    /// [`NoiseError::Rounds`]. The totals and the noise drawn are wiped then, the memory is as before, and the round does
    /// not count.
    pub fn release(
        &mut self,
        totals: Vec<i64>,
        draw: &mut dyn FnMut(&mut [i64]) -> Result<Provenance, NoiseError>,
    ) -> Result<(Vec<i64>, Provenance), NoiseError> {
        let mut totals = Zeroizing::new(totals);
        if totals.len() != self.dimension {
            return Err(NoiseError::Dimension { expected: self.dimension, found: totals.len() });
        }
        let round = self.round.checked_add(1).ok_or(NoiseError::Rounds)?;
        let provenance;
        let released = if self.correlation == Correlation::Independent {
            // Nothing will be taken back, so the noise needs no place of its own.
            provenance = draw(totals.as_mut_slice())?;
            std::mem::take(&mut *totals)
        } else {
            let mut fresh = Zeroizing::new(vec![0; self.dimension]);
            provenance = draw(fresh.as_mut_slice())?;
            let released = self.noised(&totals, &fresh, round)?;
            self.remember(std::mem::take(&mut *fresh), round);
            released
        };
        self.round = round;
        self.provenance = self.provenance.worse(provenance);
        Ok((released, self.provenance))
    }

    /// The release of `round` with `fresh` noise.
    fn noised(&self, totals: &[i64], fresh: &[i64], round: u32) -> Result<Vec<i64>, NoiseError> {
        // Wiped when a later coordinate overflows.
        let mut released = Zeroizing::new(Vec::with_capacity(self.dimension));
        for (index, (total, fresh)) in totals.iter().zip(fresh).enumerate() {
            let value = i128::from(*total) + i128::from(*fresh) - self.taken_back(index, round);
            released.push(i64::try_from(value).map_err(|_| NoiseError::Overflow { index })?);
        }
        Ok(std::mem::take(&mut *released))
    }

    /// What the noise of earlier rounds gives back in `round`, at one coordinate.
    fn taken_back(&self, index: usize, round: u32) -> i128 {
        match &self.correlation {
            Correlation::Independent => 0,
            Correlation::Tree => {
                let merged = &self.memory[self.memory.len() - round.trailing_zeros() as usize..];
                merged.iter().map(|node| i128::from(node[index])).sum()
            }
            Correlation::Banded { weights } => {
                // 32 bits times 64 bits: the sum of 2^31 of them fits.
                let term =
                    |(weight, noise): (&u32, &Vec<i64>)| i128::from(*weight) * i128::from(noise[index]);
                let sum: i128 = weights.iter().zip(&self.memory).map(term).sum();
                (sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS
            }
        }
    }

    /// Keeps what later rounds need, and wipes what they do not.
    fn remember(&mut self, fresh: Vec<i64>, round: u32) {
        let place = match self.correlation {
            // The node that ends here holds the smaller ones that ended before.
            Correlation::Tree => self.memory.len() - round.trailing_zeros() as usize,
            Correlation::Independent | Correlation::Banded { .. } => 0,
        };
        let length = self.correlation.memory_length(round);
        self.memory.insert(place, fresh);
        for mut forgotten in self.memory.drain(length..) {
            forgotten.zeroize();
        }
    }
}

impl Drop for CorrelatedNoise {
    fn drop(&mut self) {
        self.memory.iter_mut().for_each(|noise| noise.zeroize());
    }
}
