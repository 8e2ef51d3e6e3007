//! The lattice on which updates become integers, and the check every integer update passes.
//!
//! A coordinate `x` enters the sum as `weight * round(x / step)`. The step is the norm bound divided by a power of two
//! `reach` that is chosen from the largest cohort and weight, so that `cohort * weight_max * reach` fits an i64 with room
//! to spare: overflow is impossible, and the sum of integers is the same in every order. The integer norm of an update is
//! at most `reach`, checked *after* rounding, so that rounding cannot lengthen an update (Kairouz, Liu, Steinke 2021,
//! section 4, need a correction for that; the integer check needs none).

use crate::clipping::{Clipped, NormBound};

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

/// The step and the bounds of one run's updates. Two parties that agree on the plan agree on the lattice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lattice {
    bound: NormBound,
    reach_bits: u32,
    /// The largest magnitude of a coordinate that is sent: the reach, or more where updates are noised before.
    room: i32,
    weight_max: u32,
    clients_max: u64,
    dimension: usize,
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
        "a model of {dimension} parameters with weight_max {weight_max} and {clients_max} clients leaves {points} \
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
        let reach_bits = REACH_BITS_MAX.min(SUM_BITS.saturating_sub(cohort_bits + weight_bits));
        let lattice = Self { bound, reach_bits, room: 1 << reach_bits, weight_max, clients_max, dimension };
        let points = f64::from(lattice.reach()) / (dimension.max(1) as f64).sqrt();
        if points < 1.0 {
            return Err(LatticeError::Coarse { dimension, weight_max, clients_max, points });
        }
        Ok(lattice)
    }

    /// The distance between neighbouring points, in units of the parameters.
    pub fn step(&self) -> f64 {
        self.bound.value() / f64::from(self.reach())
    }

    /// The largest integer norm of an update: a power of two, at most 2^30.
    pub fn reach(&self) -> i32 {
        1 << self.reach_bits
    }

    /// The largest square of an integer norm.
    fn square_max(&self) -> u128 {
        1 << (2 * self.reach_bits)
    }

    /// How far one contribution can move an integer sum (L2): the reach at the largest weight.
    pub fn sensitivity(&self) -> u64 {
        u64::from(self.weight_max) * u64::from(self.reach().unsigned_abs())
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
    #[error("coordinate {index} is {found}, beyond the lattice's reach of {reach}")]
    Range {
        /// The first offending coordinate.
        index: usize,
        /// Its value.
        found: i32,
        /// The lattice's reach.
        reach: i32,
    },
    /// The integer norm is larger than the lattice's reach.
    #[error("the update is longer than the norm bound allows")]
    Norm,
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
    /// [`Inadmissible::Shape`] when the update has another dimension than the lattice.
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
        let (values, factor) = clipped.parts();
        let reach = f64::from(lattice.reach());
        let mut scale = factor / lattice.step();
        let round = |value: &f32, scale: f64| (f64::from(*value) * scale).round_ties_even() as i32;
        points.clear();
        points.extend(values.iter().map(|value| round(value, scale)));
        let mut square = square_norm(&points);
        while square > lattice.square_max() {
            scale *= (reach / (square as f64).sqrt()) * (1.0 - f64::powi(2.0, -20));
            points.iter_mut().zip(values).for_each(|(point, value)| *point = round(value, scale));
            square = square_norm(&points);
        }
        Ok(Self { points, weight, lattice: *lattice })
    }

    /// Checks an update that came from outside: dimension, weight, range and integer norm.
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
        let reach = lattice.room;
        if let Some(index) = points.iter().position(|point| !(-reach..=reach).contains(point)) {
            return Err(Inadmissible::Range { index, found: points[index], reach });
        }
        if !lattice.is_noised() && square_norm(&points) > lattice.square_max() {
            return Err(Inadmissible::Norm);
        }
        Ok(Self { points, weight: Weight(weight), lattice: *lattice })
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

/// The exact square of the integer L2 norm. Coordinates of at most 2^31 in magnitude square to 2^62: two fit a u64.
fn square_norm(points: &[i32]) -> u128 {
    let square = |point: &i32| u64::from(point.unsigned_abs()) * u64::from(point.unsigned_abs());
    if points.iter().all(|point| point.unsigned_abs() <= 1 << REACH_BITS_MAX) {
        // 2^60 each: eight fit.
        points.chunks(8).map(|block| u128::from(block.iter().map(square).sum::<u64>())).sum()
    } else {
        points.iter().map(|point| u128::from(square(point))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clipping::clip;
    use proptest::prelude::*;

    fn lattice(norm_max: f64, clients_max: u64, weight_max: u32, dimension: usize) -> Lattice {
        Lattice::plan(NormBound::new(norm_max).unwrap(), clients_max, weight_max, dimension).unwrap()
    }

    #[test]
    fn the_reach_shrinks_so_that_the_largest_cohort_cannot_overflow() {
        for (bits, weight_max) in
            (0..=40).flat_map(|bits| [1, 1000, 1 << 16].map(|weight_max| (bits, weight_max)))
        {
            let lattice = lattice(1.0, 1 << bits, weight_max, 1);
            assert!((1i128 << bits) * i128::from(weight_max) * i128::from(lattice.reach()) <= 1 << SUM_BITS);
        }
        assert_eq!(lattice(1.0, 1000, 1000, 4).reach(), 1 << 30);
    }

    #[test]
    fn a_plan_without_a_lattice_is_refused_with_the_number_at_fault() {
        let bound = NormBound::new(1.0).unwrap();
        assert_eq!(Lattice::plan(bound, 0, 1, 4).err(), Some(LatticeError::Cohort(0)));
        assert_eq!(Lattice::plan(bound, 1, 0, 4).err(), Some(LatticeError::WeightMax(0)));
        assert!(matches!(Lattice::plan(bound, 1 << 40, 1 << 20, 100), Err(LatticeError::Coarse { .. })));
    }

    #[test]
    fn adversarial_vectors_stay_within_the_integer_norm() {
        let alternating: Vec<f32> = (0..4096).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let cases =
            [vec![f32::MAX; 4096], vec![1e-45; 4096], alternating, vec![f32::MIN_POSITIVE; 1], vec![-3.0]];
        for values in cases {
            let lattice = lattice(0.5, 1000, 7, values.len());
            for weight in [1, 3, 7, 9] {
                let clipped = clip(values.clone(), lattice.bound()).unwrap();
                let encoded = Encoded::encode(&clipped, lattice.weigh(weight), &lattice).unwrap();
                let weight = encoded.weight().value();
                assert!(Encoded::admit(encoded.into_points(), weight, &lattice).is_ok());
            }
        }
    }

    #[test]
    fn every_way_to_be_inadmissible_has_its_own_name() {
        let lattice = lattice(1.0, 10, 10, 2);
        let why = |points: Vec<i32>, weight| Encoded::admit(points, weight, &lattice).err().unwrap();
        assert_eq!(why(vec![0], 1), Inadmissible::Shape { expected: 2, found: 1 });
        assert_eq!(why(vec![0, 0], 0), Inadmissible::Weight { weight_max: 10, found: 0 });
        assert_eq!(why(vec![0, 0], 11), Inadmissible::Weight { weight_max: 10, found: 11 });
        assert!(matches!(why(vec![0, i32::MIN], 1), Inadmissible::Range { index: 1, .. }));
        assert_eq!(why(vec![1 << 30, 1], 1), Inadmissible::Norm);
    }

    #[test]
    fn the_bits_of_a_positive_nan_or_infinity_are_out_of_range() {
        let lattice = lattice(1.0, 10, 1, 1);
        for bad in [f32::NAN, f32::INFINITY] {
            let refused = Encoded::admit(vec![bad.to_bits() as i32], 1, &lattice);
            assert!(matches!(refused.err(), Some(Inadmissible::Range { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_encodes_a_server_admits(
            values in prop::collection::vec(-1e3f32..1e3, 1..64), weight in 1u64..200, norm_max in 1e-3f64..1e4,
        ) {
            let lattice = lattice(norm_max, 100, 100, values.len());
            let clipped = clip(values.clone(), lattice.bound()).unwrap();
            let encoded = Encoded::encode(&clipped, lattice.weigh(weight), &lattice).unwrap();
            let weight = encoded.weight().value();
            let admitted = Encoded::admit(encoded.into_points(), weight, &lattice);
            prop_assert!(admitted.is_ok());
            let scale = clipped.parts().1;
            for (point, value) in admitted.unwrap().points().iter().zip(&values) {
                let off = f64::from(*point) * lattice.step() - f64::from(*value) * scale;
                prop_assert!(off.abs() <= lattice.step() + norm_max * 1e-5, "{off}");
            }
        }
    }
}
