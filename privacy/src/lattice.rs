//! The lattice on which updates become integers, and the check every integer update passes.
//!
//! A coordinate `x` enters the sum as `weight * round(x / step)`. The step is the norm bound divided by a power of two
//! `range` that is chosen from the largest cohort and weight, so that `cohort * weight_max * range` fits an i64 with room
//! to spare: overflow is impossible, and the sum of integers is the same in every order. The integer norm of an update is
//! at most `range`, checked *after* rounding, so that rounding cannot lengthen an update (Kairouz, Liu, Steinke 2021,
//! section 4, need a correction for that; the integer check needs none).
//!
//! A lattice may have layers, one for each tensor (McMahan, Ramage, Talwar, Zhang 2018, section 2). Each of the L has an equal
//! share of the squared norm, so that its integer norm is at most `floor(range / sqrt(L))`, checked layer by layer; the step is
//! that of the whole. Equal shares ask for equal noise, so that a layered sum is noised like any other, for how far one update
//! can move all layers together. What is refused: layers that hold nothing, and steps too coarse for the largest of them.

use std::sync::Arc;

use crate::clipping::{Clipped, NormBound, NotFinite, clip, clip_difference, clip_layers};
use crate::kernels;
use crate::layers::split;

mod noised;

pub use noised::LocalNoiseError;

/// Bits of an i64 that a sum may use. One is the sign and one is left free.
const SUM_BITS: u32 = 62;
/// Bits of one coordinate: it must fit an i32.
const REACH_BITS_MAX: u32 = 30;
/// The largest weight bound.
const WEIGHT_MAX: u32 = 1 << 20;

/// How much one update counts in the mean: an integer from 1 to the plan's `weight_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// The weight as a number.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// The step and the bounds of one run's updates. Two parties that agree on the plan, and on the lengths of the tensors where
/// it has layers, agree on the lattice.
#[derive(Clone, Debug, PartialEq)]
pub struct Lattice {
    bound: NormBound,
    range_bits: u32,
    /// The largest magnitude of a coordinate that is sent: the reach, or more where updates are noised before.
    headroom: i32,
    weight_max: u32,
    clients_max: u64,
    dimension: usize,
    /// The lengths of the layers, where there are any.
    layers: Option<Arc<[usize]>>,
}

/// Why no lattice exists for a plan.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LatticeError {
    /// No client, or more than an i64 sum can hold at the smallest reach.
    #[error("a cohort of {0} has no lattice: it must be from 1 to 2^42 clients")]
    Cohort(u64),
    /// The weight bound is out of range.
    #[error("weight_max is {0}; it must be from 1 to 1048576")]
    WeightMax(u32),
    /// The step is so coarse that an update would be mostly rounding.
    #[error(
        "a model of {dimension} parameters with weight_max {weight_max} and {clients_max} clients leaves {points:.3} \
         lattice points per coordinate; lower weight_max or the cohort"
    )]
    Coarse {
        /// Parameters in the update.
        dimension: usize,
        /// The plan's weight bound.
        weight_max: u32,
        /// The plan's largest cohort.
        clients_max: u64,
        /// Lattice points per coordinate of an update of full norm; at least 1 are needed.
        points: f64,
    },
    /// The step is too coarse for one layer's share.
    #[error(
        "tensor {layer}, of {parameters} parameters, has {points:.3} lattice points per coordinate in its share of the norm; \
         lower weight_max or the cohort, or clip the update as a whole"
    )]
    CoarseLayer {
        /// Which of the layers, from 0.
        layer: usize,
        /// Its parameters.
        parameters: usize,
        /// Lattice points per coordinate of a layer of full norm; at least 1 are needed.
        points: f64,
    },
    /// Layers that hold nothing.
    #[error("an update that is clipped tensor by tensor needs at least one tensor that holds values")]
    NoLayers,
}

impl Lattice {
    /// Chooses the step for updates of `dimension` coordinates, norm at most `bound`, weights from 1 to `weight_max` and
    /// at most `clients_max` contributions to one sum.
    ///
    /// # Errors
    /// [`LatticeError`] says which number leaves no room.
    pub fn plan(
        bound: NormBound,
        clients_max: u64,
        weight_max: u32,
        dimension: usize,
    ) -> Result<Self, LatticeError> {
        if !(1..=1 << 42).contains(&clients_max) {
            return Err(LatticeError::Cohort(clients_max));
        }
        if !(1..=WEIGHT_MAX).contains(&weight_max) {
            return Err(LatticeError::WeightMax(weight_max));
        }
        let cohort_bits = clients_max.next_power_of_two().trailing_zeros();
        let weight_bits = weight_max.next_power_of_two().trailing_zeros();
        let range_bits = REACH_BITS_MAX.min(SUM_BITS.saturating_sub(cohort_bits + weight_bits));
        let headroom = 1 << range_bits;
        let lattice = Self { bound, range_bits, headroom, weight_max, clients_max, dimension, layers: None };
        let points = f64::from(lattice.range()) / (dimension.max(1) as f64).sqrt();
        if points < 1.0 {
            return Err(LatticeError::Coarse { dimension, weight_max, clients_max, points });
        }
        Ok(lattice)
    }

    /// Chooses the step for updates that are clipped layer by layer: `lengths` are the coordinates of each layer, in order, and
    /// empty ones count for nothing. Each layer's norm is at most `bound` over the root of their number; otherwise as
    /// [`Lattice::plan`].
    ///
    /// # Errors
    /// [`LatticeError`] says which number, or which layer, leaves no room.
    pub fn layered(
        bound: NormBound,
        clients_max: u64,
        weight_max: u32,
        lengths: &[usize],
    ) -> Result<Self, LatticeError> {
        let layers: Arc<[usize]> = lengths.iter().copied().filter(|length| *length > 0).collect();
        let dimension = layers.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
        if layers.is_empty() {
            return Err(LatticeError::NoLayers);
        }
        let whole = Self::plan(bound, clients_max, weight_max, dimension)?;
        let lattice = Self { layers: Some(layers), ..whole };
        for (layer, parameters) in lattice.lengths().iter().copied().enumerate() {
            let points = f64::from(lattice.layer_range()) / (parameters as f64).sqrt();
            if points < 1.0 {
                return Err(LatticeError::CoarseLayer { layer, parameters, points });
            }
        }
        Ok(lattice)
    }

    /// Clips as the lattice says: the update as a whole, or layer by layer.
    ///
    /// # Errors
    /// [`NotFinite`] when a coordinate is NaN or infinite; nothing of the update is used then.
    pub fn clip(&self, delta: Vec<f32>) -> Result<Clipped, NotFinite> {
        match &self.layers {
            None => clip(delta, self.bound),
            Some(lengths) => clip_layers(delta, self.bound, lengths),
        }
    }

    /// [`Lattice::clip`] of what training changed: `trained` less `start`, in the memory of `trained` and in one pass.
    ///
    /// # Errors
    /// [`NotFinite`] when a coordinate of the difference is NaN or infinite.
    ///
    /// # Panics
    /// When the two have different lengths.
    pub fn clip_difference(&self, trained: Vec<f32>, start: &[f32]) -> Result<Clipped, NotFinite> {
        match &self.layers {
            None => clip_difference(trained, start, self.bound, &[start.len()]),
            Some(lengths) => clip_difference(trained, start, self.bound, lengths),
        }
    }

    /// The distance between neighbouring points, in units of the parameters.
    pub fn step(&self) -> f64 {
        self.bound.value() / f64::from(self.range())
    }

    /// The largest integer norm of an update: a power of two, at most 2^30.
    pub fn range(&self) -> i32 {
        1 << self.range_bits
    }

    /// The largest integer norm of one layer: the reach over the root of the number of layers, rounded down. Without layers, the
    /// reach.
    pub fn layer_range(&self) -> i32 {
        let share = (1u64 << (2 * self.range_bits)) / self.lengths().len() as u64;
        i32::try_from(share.isqrt()).expect("the reach is at most 2^30")
    }

    /// The largest square of a layer's integer norm.
    fn square_max(&self) -> u128 {
        u128::from(self.layer_range().unsigned_abs()).pow(2)
    }

    /// How far one contribution can move an integer sum (L2), rounded up: the reach at the largest weight, or with layers the
    /// root of the sum of their squares.
    pub fn sensitivity(&self) -> u64 {
        let layer = u128::from(self.weight_max) * u128::from(self.layer_range().unsigned_abs());
        // At most (2^20)^2 * 2^60: the layers' squares sum to at most the reach's.
        let square = self.lengths().len() as u128 * layer * layer;
        let root = square.isqrt();
        u64::try_from(root + u128::from(root * root < square)).expect("the root of 2^100 is 2^50")
    }

    /// The lengths of the layers, in order; `None` where the update is clipped as a whole.
    pub fn layers(&self) -> Option<&[usize]> {
        self.layers.as_deref()
    }

    /// The lengths of the parts that are checked each on their own.
    fn lengths(&self) -> &[usize] {
        self.layers.as_deref().unwrap_or_else(|| std::slice::from_ref(&self.dimension))
    }

    /// The norm bound in units of the parameters.
    pub fn bound(&self) -> NormBound {
        self.bound
    }

    /// The largest weight.
    pub fn weight_max(&self) -> u32 {
        self.weight_max
    }

    /// The most contributions one sum may hold.
    pub fn clients_max(&self) -> u64 {
        self.clients_max
    }

    /// Coordinates of an update.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The weight of a client with `examples` examples: bounded above by `weight_max`, and at least 1.
    pub fn weigh(&self, examples: u64) -> Weight {
        Weight(u32::try_from(examples).unwrap_or(u32::MAX).clamp(1, self.weight_max))
    }
}

/// Why a server does not admit an integer update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Inadmissible {
    /// Another number of coordinates than the plan's.
    #[error("the update has {found} coordinates where the plan has {expected}")]
    Shape {
        /// What the plan says.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A weight of zero or above the bound.
    #[error("the update claims weight {found}; the plan allows 1 to {weight_max}")]
    Weight {
        /// The plan's bound.
        weight_max: u32,
        /// What came.
        found: u32,
    },
    /// A coordinate beyond the lattice. What is sent is an integer, so NaN and infinities cannot be said at all; the bits
    /// of a positive NaN or infinity read as an integer land here.
    #[error("coordinate {index} is {found}, beyond the lattice's range of {range}")]
    Range {
        /// The first offending coordinate.
        index: usize,
        /// Its value.
        found: i32,
        /// The lattice's reach.
        range: i32,
    },
    /// The integer norm is larger than the lattice's reach.
    #[error("the update is longer than the norm bound allows")]
    Norm,
    /// The integer norm of one layer is larger than its share, whatever the norm of the whole.
    #[error("tensor {layer} of the update is longer than its share of the norm bound allows")]
    LayerNorm {
        /// The first offending layer, from 0.
        layer: usize,
    },
    /// Clipped as a whole where the lattice has layers, or the other way round.
    #[error("the update was clipped in {found} parts where the plan has {expected}")]
    Layers {
        /// What the plan says.
        expected: usize,
        /// What came.
        found: usize,
    },
}

/// An update on the lattice whose integer norm is within bounds. Not deserialisable: a server checks for itself.
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Encoded {
    points: Vec<i32>,
    weight: Weight,
    lattice: Lattice,
}

impl Encoded {
    /// Rounds `clipped` to the lattice, ties to even. The weight is applied in the sum, exactly.
    ///
    /// # Errors
    /// [`Inadmissible::Shape`] when the update has another dimension than the lattice, [`Inadmissible::Layers`] when it was not
    /// clipped as [`Lattice::clip`] does.
    pub fn encode(clipped: &Clipped, weight: Weight, lattice: &Lattice) -> Result<Self, Inadmissible> {
        Self::encode_into(clipped, weight, lattice, Vec::new())
    }

    /// [`Encoded::encode`] in memory that [`Encoded::into_points`] gave back; what it holds does not matter.
    ///
    /// # Errors
    /// As [`Encoded::encode`].
    pub fn encode_into(
        clipped: &Clipped,
        weight: Weight,
        lattice: &Lattice,
        mut points: Vec<i32>,
    ) -> Result<Self, Inadmissible> {
        if clipped.len() != lattice.dimension {
            return Err(Inadmissible::Shape { expected: lattice.dimension, found: clipped.len() });
        }
        let (values, factors) = clipped.parts();
        let expected = lattice.lengths().len();
        if factors.len() != expected {
            return Err(Inadmissible::Layers { expected, found: factors.len() });
        }
        // What is in it already is written over, and need not be cleared first.
        points.resize(values.len(), 0);
        let mut rest = &mut points[..];
        for (layer, factor) in split(values, lattice.lengths()).zip(factors) {
            let (rounded, after) = rest.split_at_mut(layer.len());
            round_within(layer, factor / lattice.step(), lattice, rounded);
            rest = after;
        }
        Ok(Self { points, weight, lattice: lattice.clone() })
    }

    /// Checks an update that came from outside: dimension, weight, range and the integer norm of every layer.
    ///
    /// # Errors
    /// [`Inadmissible`] names the first check it fails.
    pub fn admit(points: Vec<i32>, weight: u32, lattice: &Lattice) -> Result<Self, Inadmissible> {
        if points.len() != lattice.dimension {
            return Err(Inadmissible::Shape { expected: lattice.dimension, found: points.len() });
        }
        if !(1..=lattice.weight_max).contains(&weight) {
            return Err(Inadmissible::Weight { weight_max: lattice.weight_max, found: weight });
        }
        let (range, square_max) = (lattice.headroom, lattice.square_max());
        let (mut largest, mut too_long) = (0, None);
        for (layer, points) in split(&points, lattice.lengths()).enumerate() {
            let seen = kernels::measure(points);
            largest = seen.largest.max(largest);
            // Noise added at a client lengthens an update beyond any bound that could be checked here.
            if seen.square > square_max && !lattice.is_noised() {
                too_long = too_long.or(Some(layer));
            }
        }
        let beyond = |point: &i32| point.unsigned_abs() > range.unsigned_abs();
        if largest > range.unsigned_abs()
            && let Some(index) = points.iter().position(beyond)
        {
            return Err(Inadmissible::Range { index, found: points[index], range });
        }
        match too_long {
            Some(layer) if lattice.layers.is_some() => Err(Inadmissible::LayerNorm { layer }),
            Some(_) => Err(Inadmissible::Norm),
            None => Ok(Self { points, weight: Weight(weight), lattice: lattice.clone() }),
        }
    }

    /// The lattice points, in layout order.
    pub fn points(&self) -> &[i32] {
        &self.points
    }

    /// Its weight in the mean.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// The lattice it lies on.
    pub fn lattice(&self) -> &Lattice {
        &self.lattice
    }

    /// Gives the points away, to be sent.
    pub fn into_points(self) -> Vec<i32> {
        self.points
    }
}

/// Writes `values * scale` rounded, with a scale lowered until the integer norm is within that of a layer.
fn round_within(values: &[f32], mut scale: f64, lattice: &Lattice, points: &mut [i32]) {
    let range = f64::from(lattice.layer_range());
    let mut square = kernels::round(values, scale, points);
    while square > lattice.square_max() {
        scale *= (range / (square as f64).sqrt()) * (1.0 - f64::powi(2.0, -20));
        square = kernels::round(values, scale, points);
    }
}

#[cfg(test)]
mod tests;
