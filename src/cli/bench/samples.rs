//! Repeated measurements of one thing.

use std::time::Instant;

use serde_json::{Value, json};

/// Measurements in the order in which they were made; at least one.
#[derive(Clone, Debug)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// None for no measurement.
    pub(super) fn new(values: Vec<f64>) -> Option<Self> {
        (!values.is_empty()).then_some(Self(values))
    }

    /// Seconds that `work` takes, `repeats` times (at least once), after once that does not count.
    pub(super) fn of_seconds(repeats: usize, mut work: impl FnMut()) -> Self {
        let mut seconds = || {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64()
        };
        seconds();
        Self((0..repeats.max(1)).map(|_| seconds()).collect())
    }

    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    pub(super) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Median, least, and every value.
    pub(super) fn object(&self) -> Value {
        json!({ "median": self.median(), "least": self.least(), "each": self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((samples.median(), samples.least()), (2.5, 1.0));
        assert_eq!(Samples::new(vec![2.0, 9.0, 1.0]).unwrap().median(), 2.0);
        assert!(Samples::new(Vec::new()).is_none());
    }

    #[test]
    fn work_is_done_once_more_than_it_is_timed() {
        let mut times = 0;
        let samples = Samples::of_seconds(3, || times += 1);
        assert_eq!(times, 4);
        assert_eq!(samples.0.len(), 3);
    }
}
