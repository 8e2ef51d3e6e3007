//! The loops over all coordinates of an update, each written plainly once and compiled for every instruction set that `pulp`
//! chooses from at run time.
//!
//! No result depends on which one it was: integers are exact in every order, and floating-point sums are taken in one fixed
//! order, in [`LANES`] interleaved sums that are folded by halves at the end of every [`BLOCK`]. Nothing here judges what
//! it is given, and nothing takes memory.

use pulp::{Arch, Simd, WithSimd};

/// Sums that run side by side: more than any register holds, so that a row of them is a loop that compilers know how to widen.
const LANES: usize = 256;
/// Coordinates between two folds of the lanes, so that rounding grows with the number of blocks. They fit the first cache.
const BLOCK: usize = 4096;
/// 1.5 * 2^52: added to an f64 below 2^51, it leaves the nearest integer, ties to even, in the low bits.
const ROUNDING: f64 = 6_755_399_441_055_744.0;

/// The sum of squares in f64; not finite when a value is not.
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    Arch::new().dispatch(SquareSum(values))
}

/// Whether all values are finite.
fn are_finite(values: &[f32]) -> bool {
    Arch::new().dispatch(AreFinite(values))
}

/// The place of the first value that is NaN or infinite.
pub fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Looking for it stops early, which no compiler widens; it is hardly ever there.
    if are_finite(values) { None } else { values.iter().position(|value| !value.is_finite()) }
}

/// Takes `start` from `values`, and gives the sum of the squares of what is left, as [`square_sum`] would.
pub(crate) fn subtract(values: &mut [f32], start: &[f32]) -> f64 {
    Arch::new().dispatch(Subtract { values, start })
}

/// Writes `values * scale`, rounded with ties to even, into `points`; gives the exact sum of their squares. No product may be
/// beyond 2^30 by more than a few units.
pub(crate) fn round(values: &[f32], scale: f64, points: &mut [i32]) -> u128 {
    Arch::new().dispatch(Round { values, scale, points })
}

/// The largest magnitude among `points`, and the exact sum of their squares.
pub(crate) fn measure(points: &[i32]) -> Measure {
    Arch::new().dispatch(Squares(points))
}

/// Adds `weight * points` to `totals`.
pub(crate) fn add(totals: &mut [i64], points: &[i32], weight: i32) {
    Arch::new().dispatch(Add { totals, points, weight });
}

/// Replaces every value by `rule(value, total * factor)`.
pub(crate) fn apply(values: &mut [f32], totals: &[i64], factor: f64, rule: impl Fn(f32, f64) -> f32) {
    Arch::new().dispatch(Apply { values, totals, factor, rule });
}

/// What a look at all points of a part of an update shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) largest: u32,
    pub(crate) square: u128,
}

struct SquareSum<'a>(&'a [f32]);

impl WithSimd for SquareSum<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut sum = 0.0;
        for values in self.0.chunks(BLOCK) {
            sum += block_square_sum(values);
        }
        sum
    }
}

struct AreFinite<'a>(&'a [f32]);

impl WithSimd for AreFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        self.0.iter().fold(true, |finite, value| finite & value.is_finite())
    }
}

struct Subtract<'a> {
    values: &'a mut [f32],
    start: &'a [f32],
}

impl WithSimd for Subtract<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut sum = 0.0;
        for (values, start) in self.values.chunks_mut(BLOCK).zip(self.start.chunks(BLOCK)) {
            values.iter_mut().zip(start).for_each(|(value, start)| *value -= start);
            sum += block_square_sum(values);
        }
        sum
    }
}

#[inline(always)]
fn block_square_sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    for row in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(row) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (left, right) = lanes.split_at_mut(width);
        left.iter_mut().zip(right).for_each(|(left, right)| *left += *right);
    }
    lanes[0]
}

struct Round<'a> {
    values: &'a [f32],
    scale: f64,
    points: &'a mut [i32],
}

impl WithSimd for Round<'_> {
    type Output = u128;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> u128 {
        let mut square = 0;
        for (values, points) in self.values.chunks(BLOCK).zip(self.points.chunks_mut(BLOCK)) {
            for (point, value) in points.iter_mut().zip(values) {
                *point = (f64::from(*value) * self.scale + ROUNDING).to_bits() as i32;
            }
            square += block_measure(points).square;
        }
        square
    }
}

struct Squares<'a>(&'a [i32]);

impl WithSimd for Squares<'_> {
    type Output = Measure;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Measure {
        let mut seen = Measure::default();
        for points in self.0.chunks(BLOCK) {
            let block = block_measure(points);
            seen.largest = seen.largest.max(block.largest);
            seen.square += block.square;
        }
        seen
    }
}

#[inline(always)]
fn block_measure(points: &[i32]) -> Measure {
    let (mut largest, mut low, mut high) = (0u32, 0u64, 0u64);
    for point in points {
        let size = point.unsigned_abs();
        let square = u64::from(size) * u64::from(size);
        largest = largest.max(size);
        // Halves of squares, of which a block has too few to overflow.
        low += square & u64::from(u32::MAX);
        high += square >> 32;
    }
    Measure { largest, square: u128::from(low) + (u128::from(high) << 32) }
}

struct Add<'a> {
    totals: &'a mut [i64],
    points: &'a [i32],
    weight: i32,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Where overflow is checked, a build whose planned bounds are wrong stops here instead of wrapping.
        for (total, point) in self.totals.iter_mut().zip(self.points) {
            *total += i64::from(*point) * i64::from(self.weight);
        }
    }
}

struct Apply<'a, F> {
    values: &'a mut [f32],
    totals: &'a [i64],
    factor: f64,
    rule: F,
}

impl<F: Fn(f32, f64) -> f32> WithSimd for Apply<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (value, total) in self.values.iter_mut().zip(self.totals) {
            *value = (self.rule)(*value, *total as f64 * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lengths around every edge of a block and a row.
    fn any_length() -> impl Strategy<Value = usize> {
        let edge = prop::sample::select(vec![0usize, LANES, BLOCK, 2 * BLOCK]);
        (edge, 0usize..40).prop_map(|(edge, by)| (edge + by).saturating_sub(20))
    }

    fn floats() -> impl Strategy<Value = Vec<f32>> {
        any_length().prop_flat_map(|length| prop::collection::vec(-1e3f32..1e3, length))
    }

    fn points() -> impl Strategy<Value = Vec<i32>> {
        let point = prop_oneof![i32::MIN..=i32::MAX, -9i32..9];
        any_length().prop_flat_map(move |length| prop::collection::vec(point.clone(), length))
    }

    proptest! {
        #[test]
        fn the_first_value_that_is_not_finite_is_found(
            values in floats(),
            wrong in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
            at in any::<prop::sample::Index>(),
        ) {
            prop_assert_eq!(first_not_finite(&values), None);
            prop_assume!(!values.is_empty());
            let mut spoilt = values;
            let place = at.index(spoilt.len());
            spoilt[place..].fill(wrong);
            prop_assert_eq!(first_not_finite(&spoilt), Some(place));
        }
    }

    fn exact(points: &[i32]) -> u128 {
        points.iter().map(|point| (i128::from(*point) * i128::from(*point)) as u128).sum()
    }

    /// The documented order, spelt out without a loop that could be vectorised.
    fn in_lanes(values: &[f32]) -> f64 {
        let block = |block: &[f32]| {
            let lane = |lane: usize| {
                let squares = block.iter().skip(lane).step_by(LANES).map(|v| f64::from(*v) * f64::from(*v));
                squares.fold(0.0, |sum, square| sum + square)
            };
            let mut lanes: Vec<f64> = (0..LANES).map(lane).collect();
            while lanes.len() > 1 {
                let half = lanes.len() / 2;
                lanes = (0..half).map(|at| lanes[at] + lanes[at + half]).collect();
            }
            lanes[0]
        };
        values.chunks(BLOCK).map(block).fold(0.0, |sum, block| sum + block)
    }

    #[test]
    fn one_value_that_is_not_finite_shows_in_the_sum() {
        for at in [0, 5, 4095, 4096, 5000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![f32::MAX; 5001];
                assert!(square_sum(&values).is_finite());
                values[at] = bad;
                assert!(!square_sum(&values).is_finite());
                assert!(!subtract(&mut values, &[1.0; 5001]).is_finite());
            }
        }
    }

    #[test]
    fn the_largest_magnitude_is_seen_wherever_it_is() {
        for length in [1, 256, 4096, 4097, 9000] {
            for at in [0, length / 2, length - 1] {
                let mut points = vec![-3; length];
                points[at] = i32::MIN;
                assert_eq!(measure(&points).largest, 1 << 31);
            }
        }
        assert_eq!(measure(&[1 << 30; 9000]), Measure { largest: 1 << 30, square: 9000 << 60 });
    }

    proptest! {
        #[test]
        fn every_instruction_set_sums_in_the_documented_order(values in floats(), shift in -1f32..1.0) {
            prop_assert_eq!(square_sum(&values).to_bits(), in_lanes(&values).to_bits());
            let (mut moved, start) = (values.clone(), vec![shift; values.len()]);
            let square = subtract(&mut moved, &start);
            let expected: Vec<f32> = values.iter().map(|value| value - shift).collect();
            prop_assert_eq!(&moved, &expected);
            prop_assert_eq!(square.to_bits(), in_lanes(&expected).to_bits());
        }

        #[test]
        fn rounding_is_to_the_nearest_and_ties_to_even(values in floats(), scale in 1e-3f64..1e6) {
            for (values, scale) in [(values.clone(), scale), (values.iter().map(|v| v.round() / 2.0).collect(), 1.0)] {
                let mut points = vec![7; values.len()];
                let square = round(&values, scale, &mut points);
                let expected: Vec<i32> =
                    values.iter().map(|value| (f64::from(*value) * scale).round_ties_even() as i32).collect();
                prop_assert_eq!(&points, &expected);
                prop_assert_eq!(square, exact(&points));
            }
        }

        #[test]
        fn squares_and_sums_are_exact(points in points(), weight in 1i32..=1 << 20) {
            prop_assert_eq!(measure(&points).square, exact(&points));
            let mut totals: Vec<i64> = (0..points.len() as i64).collect();
            add(&mut totals, &points, weight);
            add(&mut totals, &points, 1);
            for (at, (total, point)) in totals.iter().zip(&points).enumerate() {
                prop_assert_eq!(*total, at as i64 + i64::from(*point) * (i64::from(weight) + 1));
            }
            let mut values = vec![0.5; points.len()];
            apply(&mut values, &totals, 0.1, |value, mean| (f64::from(value) + 2.0 * mean) as f32);
            for (value, total) in values.iter().zip(&totals) {
                prop_assert_eq!(*value, (0.5 + 2.0 * (*total as f64 * 0.1)) as f32);
            }
        }
    }
}
