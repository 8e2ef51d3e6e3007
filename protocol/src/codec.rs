//! How few bytes an update and a model take on the wire.
//!
//! A lossy codec chooses among lattice points: what it is given has been clipped and rounded to the lattice and is within bounds,
//! and what it gives has a short form and is within the same bounds, so that the server admits it like any other. The short
//! form says exactly those points, on every machine: nothing here computes with floating point. What a codec leaves out, the
//! client remembers and adds to its next delta (Seide et al. 2014; Karimireddy et al. 2019, error feedback).
//!
//! It refuses bytes that are not the one short form of any points, and takes no memory on the word of a length.

mod float;
mod integer;
mod model;
mod packed;
mod sparse;

use privacy::{Encoded, Lattice, Weight};
use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::{Seed, SpecError};
use float::Float;

/// How updates travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UpdateCodec {
    /// Every lattice point in 4 bytes.
    #[default]
    Exact,
    /// Every lattice point, in as many bits as the largest of its block needs. Nothing is lost.
    Packed,
    /// Every point rounded to 11 significant bits: 2 bytes.
    F16,
    /// Every point rounded to 8 significant bits: 2 bytes.
    Bf16,
    /// Every point as 8 bits and a power of two for each 1,024 of them, rounded up or down by chance so that the mean is right
    /// (Alistarh et al. 2017).
    Int8,
    /// The largest points alone (Aji, Heafield 2017; Lin et al. 2018).
    TopK {
        /// How many of all points, above 0 and at most 1.
        fraction: f64,
    },
}

/// How the model travels to sites. The rounded model is the one from which everybody starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BroadcastCodec {
    /// Every value in 4 bytes.
    #[default]
    Exact,
    /// IEEE 754 half precision: 2 bytes. Values beyond 65504 become that.
    F16,
    /// The upper half of the value: 2 bytes.
    Bf16,
}

/// Bytes that are not the short form of an update or a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackedError {
    /// There are fewer or more of them than the form has.
    #[error("the compressed values end too early or too late")]
    Length,
    /// They say something that no compressed value says, or say it at greater length than needed.
    #[error("the compressed values are malformed")]
    Malformed,
}

impl UpdateCodec {
    /// Whether points may change.
    pub fn is_lossy(self) -> bool {
        match self {
            Self::Exact | Self::Packed => false,
            Self::F16 | Self::Bf16 | Self::Int8 | Self::TopK { .. } => true,
        }
    }

    /// The most bytes that `len` points take.
    pub fn bytes_max(self, len: usize) -> u64 {
        match self {
            Self::Exact => 4 * len as u64,
            Self::Packed => packed::bytes_max(len),
            Self::F16 | Self::Bf16 => 2 * len as u64,
            Self::Int8 => integer::bytes(len) as u64,
            Self::TopK { fraction } => sparse::bytes_max(len, fraction),
        }
    }

    /// The admissible points nearest to `update` that have a short form. `seed` decides what chance decides.
    #[must_use]
    pub fn compress(self, update: Encoded, seed: &Seed) -> Encoded {
        if !self.is_lossy() {
            return update;
        }
        let (weight, lattice) = (update.weight(), update.lattice().clone());
        let near = self.nearest(update.points(), &mut seed.generator());
        let admitted = admit(near, weight, &lattice);
        // Rounding has lengthened what was as long as it may be. Nothing is longer after rounding towards zero.
        admitted.or_else(|| admit(self.shorter(update.points()), weight, &lattice)).unwrap_or(update)
    }

    fn nearest(self, points: &[i32], chance: &mut impl RngCore) -> Vec<i32> {
        match self {
            Self::Exact | Self::Packed => points.to_vec(),
            Self::F16 => Float::HALF.nearest(points),
            Self::Bf16 => Float::BRAIN.nearest(points),
            Self::Int8 => integer::by_chance(points, chance),
            Self::TopK { fraction } => sparse::largest(points, fraction),
        }
    }

    fn shorter(self, points: &[i32]) -> Vec<i32> {
        match self {
            Self::Exact | Self::Packed => points.to_vec(),
            Self::F16 => Float::HALF.shorter(points),
            Self::Bf16 => Float::BRAIN.shorter(points),
            Self::Int8 => integer::shorter(points),
            Self::TopK { fraction } => sparse::largest(points, fraction),
        }
    }

    /// The short form; `None` when these points have none, or it would not be short. They travel as they are then.
    pub fn pack(self, points: &[i32]) -> Option<Vec<u8>> {
        let bytes = match self {
            Self::Exact => return None,
            Self::Packed => packed::pack(points),
            Self::F16 => Float::HALF.pack(points)?,
            Self::Bf16 => Float::BRAIN.pack(points)?,
            Self::Int8 => integer::pack(points)?,
            Self::TopK { fraction } => sparse::pack(points, fraction)?,
        };
        (bytes.len() < 4 * points.len()).then_some(bytes)
    }

    /// The `len` points that `bytes` are the short form of. The caller has checked `len` against the plan.
    ///
    /// # Errors
    /// [`PackedError`].
    pub fn unpack(self, bytes: &[u8], len: usize) -> Result<Vec<i32>, PackedError> {
        match self {
            Self::Exact => Err(PackedError::Malformed),
            Self::Packed => packed::unpack(bytes, len),
            Self::F16 => Float::HALF.unpack(bytes, len),
            Self::Bf16 => Float::BRAIN.unpack(bytes, len),
            Self::Int8 => integer::unpack(bytes, len),
            Self::TopK { fraction } => sparse::unpack(bytes, len, fraction),
        }
    }

    /// Checks what the type cannot.
    pub(crate) fn check(self) -> Result<(), SpecError> {
        match self {
            Self::TopK { fraction } if !(fraction > 0.0 && fraction <= 1.0) => Err(SpecError::new(
                "update.codec",
                format!("top_k takes {fraction} of the points; give a fraction above 0 and at most 1"),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

/// As the server will.
fn admit(points: Vec<i32>, weight: Weight, lattice: &Lattice) -> Option<Encoded> {
    Encoded::admit(points, weight.value(), lattice).ok()
}

#[cfg(test)]
mod tests;
