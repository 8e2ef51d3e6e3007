//! Named statistics (counts, sums, sums of squares) as integers for the same exact sum.
//!
//! Statistics differ in scale by many orders of magnitude (a count of rows, a sum of squared salaries), so no single
//! lattice step fits them. Each is written as a fixed-point number of 120 bits with 60 behind the point and cut into
//! three limbs of 40 bits; limbs are added as i64 and joined after the sum. 2^22 sites can be added without overflow.

/// Integers that carry one statistic.
pub const LIMBS: usize = 3;
const LIMB_BITS: u32 = 40;
const POINT_BITS: i32 = 60;
/// Values at or above this magnitude do not fit.
const VALUE_MAX: f64 = (1u64 << 58) as f64;

/// One site's statistics, in the order the plan names them.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Tally(Vec<i64>);

/// Why statistics cannot be summed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TallyError {
    /// NaN, infinite or at least 2^58.
    #[error("statistic {index} is {value}; it must be finite and below 2^58 in magnitude")]
    Value {
        /// Its place.
        index: usize,
        /// The value at fault.
        value: f64,
    },
    /// A limb beyond 40 bits, from outside.
    #[error("limb {index} of the statistics is {found}, beyond 40 bits")]
    Limb {
        /// Its place.
        index: usize,
        /// What came.
        found: i64,
    },
    /// Another number of limbs than the plan's.
    #[error("{found} limbs came where the plan has {expected}")]
    Shape {
        /// What the plan says.
        expected: usize,
        /// What came.
        found: usize,
    },
}

impl Tally {
    /// Encodes `values` with a resolution of 2^-60.
    ///
    /// # Errors
    /// [`TallyError::Value`] for a value that is not finite or too large.
    pub fn encode(values: &[f64]) -> Result<Self, TallyError> {
        let mut limbs = Vec::with_capacity(values.len() * LIMBS);
        for (index, &value) in values.iter().enumerate() {
            if !value.is_finite() || value.abs() >= VALUE_MAX {
                return Err(TallyError::Value { index, value });
            }
            let fixed = (value * f64::powi(2.0, POINT_BITS)).round_ties_even() as i128;
            let mask = (1i128 << LIMB_BITS) - 1;
            limbs.push((fixed & mask) as i64);
            limbs.push(((fixed >> LIMB_BITS) & mask) as i64);
            limbs.push((fixed >> (2 * LIMB_BITS)) as i64);
        }
        Ok(Self(limbs))
    }

    /// Checks limbs that came from outside, for `count` statistics.
    ///
    /// # Errors
    /// [`TallyError`] names the first check they fail.
    pub fn admit(limbs: Vec<i64>, count: usize) -> Result<Self, TallyError> {
        let expected = count * LIMBS;
        if limbs.len() != expected {
            return Err(TallyError::Shape { expected, found: limbs.len() });
        }
        let bound = 1i64 << LIMB_BITS;
        match limbs.iter().position(|limb| !(-bound..=bound).contains(limb)) {
            Some(index) => Err(TallyError::Limb { index, found: limbs[index] }),
            None => Ok(Self(limbs)),
        }
    }

    /// The limbs: three a statistic, lowest first.
    pub fn limbs(&self) -> &[i64] {
        &self.0
    }

    /// Gives the limbs away, to be sent.
    pub fn into_limbs(self) -> Vec<i64> {
        self.0
    }
}

/// Joins summed limbs.
pub(crate) fn decode(limbs: &[i64]) -> Vec<f64> {
    let join = |limbs: &[i64]| {
        limbs.iter().rev().fold(0i128, |whole, limb| (whole << LIMB_BITS) + i128::from(*limb)) as f64
    };
    limbs.chunks(LIMBS).map(|limbs| join(limbs) * f64::powi(2.0, -POINT_BITS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Released, Sum};
    use proptest::prelude::*;

    #[test]
    fn values_that_do_not_fit_are_refused_by_place() {
        for bad in [f64::NAN, f64::INFINITY, 1e18] {
            assert!(matches!(Tally::encode(&[0.0, bad]), Err(TallyError::Value { index: 1, .. })));
        }
        assert!(matches!(Tally::admit(vec![0, 0, 1 << 41], 1), Err(TallyError::Limb { index: 2, .. })));
        assert!(matches!(Tally::admit(vec![0; 2], 1), Err(TallyError::Shape { expected: 3, found: 2 })));
    }

    proptest! {
        #[test]
        fn sums_are_exact_to_the_last_bit_of_f64(values in prop::collection::vec(-1e15f64..1e15, 1..30)) {
            let mut sum = Sum::of_tallies(1, 100);
            let mut exact = 0i128;
            for value in &values {
                let whole = value.trunc();
                exact += whole as i128;
                let tally = Tally::encode(&[whole]).unwrap();
                sum.add_tally(&Tally::admit(tally.into_limbs(), 1).unwrap()).unwrap();
            }
            prop_assert_eq!(Released::unprotected(sum).unwrap().totals(), vec![exact as f64]);
        }

        #[test]
        fn small_values_keep_their_digits(value in -1e-3f64..1e-3) {
            let mut sum = Sum::of_tallies(1, 1);
            sum.add_tally(&Tally::encode(&[value]).unwrap()).unwrap();
            prop_assert!((Released::unprotected(sum).unwrap().totals()[0] - value).abs() < 1e-18);
        }
    }
}
