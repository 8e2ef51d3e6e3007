//! Mean and deviation of a column from exact totals, with no cancellation and on any scale.
//!
//! Count, sum and sum of squares are known without rounding, so `count * squares - sum^2` is exact, too: what textbooks warn of
//! (Chan, Golub, LeVeque 1983) does not happen, and nothing has to be centred first. Two divisions and a root round, once each.

use std::cmp::Ordering;

use crate::wide::{NotSummable, WideSum};

/// What a mean and a deviation are made of: how many numbers there are, their sum, and the sum of their squares. Totals of several
/// sites are added one by one.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// How many numbers.
    pub count: WideSum,
    /// Their sum.
    pub sum: WideSum,
    /// The sum of their squares.
    pub square: WideSum,
}

/// A deviation of at most so many means is what rounding has made of one value, such as 0.1 + 0.2 beside 0.3.
const ROUNDED_AWAY: f64 = f64::EPSILON;

impl Moments {
    /// Counts a number in.
    ///
    /// # Errors
    /// [`NotSummable`]; nothing has changed then.
    pub fn add(&mut self, value: f64) -> Result<(), NotSummable> {
        self.sum.add(value)?;
        self.square.add_square(value)?;
        self.count.add(1.0)
    }

    /// Whether finite numbers can have these totals: a whole count of at most 2^53, and sums within what so many numbers can reach.
    pub fn are_possible(&self) -> bool {
        let Self { count, sum, square } = self;
        let numbers = count.value();
        if numbers == 0.0 {
            return [count, sum, square].iter().all(|total| total.sign() == Ordering::Equal);
        }
        let is_count = (1.0..=2f64.powi(53)).contains(&numbers)
            && numbers.fract() == 0.0
            && WideSum::of(numbers).is_ok_and(|whole| whole == *count);
        // Of numbers below 2^1024; rounding may have made a sum that is sent a little larger.
        let within = |total: &WideSum, bits: i32| {
            let (significand, exponent) = total.scaled();
            let bits_of = |value: f64| value.abs().log2();
            bits_of(significand) + f64::from(exponent) <= bits_of(numbers) + f64::from(bits) + 1e-9
        };
        is_count && within(sum, 1024) && square.sign() != Ordering::Less && within(square, 2048)
    }

    /// The mean; 0 without any number.
    pub fn mean(&self) -> f64 {
        if self.count.sign() != Ordering::Greater {
            return 0.0;
        }
        let ((sum, up), (count, down)) = (self.sum.scaled(), self.count.scaled());
        libm::scalbn(sum / count, up - down).clamp(-f64::MAX, f64::MAX)
    }

    /// The deviation of the numbers, not of a sample: the root of the mean squared distance from the mean. `None` where there is no
    /// spread: without any number, where all are the same, and where they differ by no more than writing them in f64 makes them differ.
    pub fn deviation(&self) -> Option<f64> {
        let spread = self.count.times(&self.square).minus(&self.sum.times(&self.sum));
        if spread.sign() != Ordering::Greater || self.count.sign() != Ordering::Greater {
            return None;
        }
        let ((spread, up), (count, down)) = (spread.scaled(), self.count.scaled());
        let (variance, exponent) = (spread / (count * count), up - 2 * down);
        // An even exponent halves; the root of a variance that f64 could not hold may be one that it can.
        let odd = exponent.rem_euclid(2);
        let deviation = libm::scalbn((variance * f64::from(1 + odd)).sqrt(), (exponent - odd) / 2);
        let deviation = deviation.clamp(f64::from_bits(1), f64::MAX);
        (deviation > self.mean().abs() * ROUNDED_AWAY).then_some(deviation)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moments(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        values.iter().for_each(|value| moments.add(*value).unwrap());
        moments
    }

    #[test]
    fn known_columns_have_their_mean_and_deviation() {
        let four = moments(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((four.mean(), four.deviation()), (2.5, Some(1.25f64.sqrt())));
        assert_eq!((moments(&[]).mean(), moments(&[]).deviation()), (0.0, None));
        assert_eq!((moments(&[7.0]).mean(), moments(&[7.0]).deviation()), (7.0, None));
    }

    #[test]
    fn a_column_without_spread_has_none_however_it_was_rounded() {
        assert_eq!(moments(&[0.1; 1000]).deviation(), None);
        assert_eq!(moments(&[0.1 + 0.2, 0.3, 0.3]).deviation(), None);
        assert_eq!(moments(&[1e300; 3]).deviation(), None);
        assert!(moments(&[1e8, 1e8 + 1.0]).deviation().is_some());
    }

    #[test]
    fn the_ends_of_f64_have_a_deviation_too() {
        assert_eq!(moments(&[-1e308, 1e308]).deviation(), Some(1e308));
        assert_eq!(moments(&[-1e-300, 1e-300]).deviation(), Some(1e-300));
        assert_eq!(moments(&[0.0, 1e-323]).deviation(), Some(5e-324));
        assert_eq!(moments(&[f64::MAX; 2]).mean(), f64::MAX);
    }

    #[test]
    fn totals_that_no_numbers_have_are_told() {
        let total = |value: f64| WideSum::of(value).unwrap();
        let made = |count: f64, sum: f64, square: f64| Moments {
            count: total(count),
            sum: total(sum),
            square: total(square),
        };
        assert!(moments(&[]).are_possible() && moments(&[f64::MAX, -f64::MAX, 5e-324]).are_possible());
        assert!(moments(&[f64::MAX; 5]).are_possible());
        for (count, sum, square) in [
            (0.0, 1.0, 0.0),
            (0.0, 0.0, 1.0),
            (-1.0, 0.0, 0.0),
            (0.5, 1.0, 1.0),
            (1e300, 1.0, 1.0),
            (3.0, 1.0, -1.0),
        ] {
            assert!(!made(count, sum, square).are_possible(), "{count} {sum} {square}");
        }
        let mut large = made(1.0, f64::MAX, 1.0);
        (0..3).for_each(|_| large.sum.add(f64::MAX).unwrap());
        assert!(!large.are_possible());
    }

    proptest! {
        #[test]
        fn scale_and_offset_change_what_they_say_and_no_more(
            values in prop::collection::vec(-1000i32..1000, 2..60), scale in -480i32..480, offset in -40i64..40,
        ) {
            let factor = 2f64.powi(scale);
            let shift = offset as f64 * 1e9;
            let plain = moments(&values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
            let moved: Vec<f64> = values.iter().map(|value| (f64::from(*value) + shift) * factor).collect();
            let moved = moments(&moved);
            let (mean, deviation) = (plain.mean(), plain.deviation());
            prop_assert!((moved.mean() / factor - shift - mean).abs() <= (shift.abs() + 1000.0) * 1e-15);
            prop_assert_eq!(moved.deviation().map(|deviation| deviation / factor), deviation);
        }
    }
}
