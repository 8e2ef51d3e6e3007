//! One site's named statistics (counts, sums, sums of squares) in the form in which they travel.
//!
//! Statistics differ in scale by many orders of magnitude: a count of rows, a sum of concentrations in mol/l, a sum of squared
//! times in seconds. No single step fits them, so each travels as a [`WideSum`] in words, which has no step and no bound
//! that a column of f64 could leave. Words are not added but read: what is added is what they say, exactly.

use crate::wide::{WORDS, WideSum};

/// One site's statistics, in the order the plan names them.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_debug_implementations, reason = "what it holds is never printed")]
pub struct Statistics(Vec<i64>);

/// Why statistics cannot be summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatisticsError {
    /// Words from outside that no sum has.
    #[error("statistic {index} is no number in the form that statistics travel in")]
    Words {
        /// Its place.
        index: usize,
    },
    /// Another number of words than the plan's.
    #[error(
        "{found} words came where the plan's statistics take {expected}; a site of another release counts in another form: \
         install the same one on both sides"
    )]
    Shape {
        /// What the plan says.
        expected: usize,
        /// What came.
        found: usize,
    },
}

impl Statistics {
    /// Encodes sums, each rounded to 190 significant bits.
    pub fn encode<'a>(sums: impl IntoIterator<Item = &'a WideSum>) -> Self {
        Self(sums.into_iter().flat_map(WideSum::words).collect())
    }

    /// Checks words that came from outside, for `count` statistics.
    ///
    /// # Errors
    /// [`StatisticsError`] names the first check they fail.
    pub fn admit(words: Vec<i64>, count: usize) -> Result<Self, StatisticsError> {
        let expected = count * WORDS;
        if words.len() != expected {
            return Err(StatisticsError::Shape { expected, found: words.len() });
        }
        let statistics = Self(words);
        let wrong = statistics.chunks().position(|words| WideSum::of_words(words).is_none());
        match wrong {
            Some(index) => Err(StatisticsError::Words { index }),
            None => Ok(statistics),
        }
    }

    /// How many statistics there are.
    pub fn len(&self) -> usize {
        self.0.len() / WORDS
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The statistics.
    pub fn sums(&self) -> impl Iterator<Item = WideSum> {
        self.chunks().map(|words| WideSum::of_words(words).expect("words were checked or made here"))
    }

    /// The words: four a statistic, in the order of [`WideSum::words`].
    pub fn words(&self) -> &[i64] {
        &self.0
    }

    /// Gives the words away, to be sent.
    pub fn into_words(self) -> Vec<i64> {
        self.0
    }

    fn chunks(&self) -> impl Iterator<Item = [i64; WORDS]> {
        self.0.as_chunks::<WORDS>().0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Released, Sum};
    use proptest::prelude::*;

    fn statistics(values: &[f64]) -> Statistics {
        let sums: Vec<WideSum> = values.iter().map(|value| WideSum::of(*value).unwrap()).collect();
        Statistics::admit(Statistics::encode(&sums).into_words(), values.len())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn words_that_are_no_number_are_refused_by_place() {
        let wrong = |words: &[i64], count| Statistics::admit(words.to_vec(), count).err();
        assert_eq!(wrong(&[0, 1, 0, 0, 0, 2, 0, 0], 2), Some(StatisticsError::Words { index: 1 }));
        assert_eq!(wrong(&[0; 3], 1), Some(StatisticsError::Shape { expected: 4, found: 3 }));
        assert_eq!(wrong(&[], 0), None);
    }

    #[test]
    fn statistics_of_another_number_are_foreign() {
        let mut sum = Sum::of_statistics(2, 10);
        assert!(sum.add_statistics(&statistics(&[1.0])).is_err());
        sum.add_statistics(&statistics(&[1.0, 2.0])).unwrap();
        assert_eq!(Released::unprotected(sum).unwrap().totals()[1].value(), 2.0);
    }

    proptest! {
        #[test]
        fn sites_are_summed_exactly_on_any_scale_and_in_any_order(
            values in prop::collection::vec(-1e15f64..1e15, 1..30), turn in 0usize..30, scale in -900i32..900,
        ) {
            let factor = 2f64.powi(scale);
            let exact: i128 = values.iter().map(|value| value.trunc() as i128).sum();
            let mut sum = Sum::of_statistics(1, 100);
            let mut turned = values.clone();
            turned.rotate_left(turn % values.len());
            turned.iter().for_each(|value| sum.add_statistics(&statistics(&[value.trunc() * factor])).unwrap());
            prop_assert_eq!(Released::unprotected(sum).unwrap().totals()[0].value(), exact as f64 * factor);
        }
    }
}
