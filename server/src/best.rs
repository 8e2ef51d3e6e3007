//! How good a model is, by what was measured of it: the one rule by which a server and a simulation find the best model of a run.

use protocol::Metrics;
use serde::{Deserialize, Serialize};

/// What was measured of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean loss an example.
    pub loss: f64,
    /// Share of examples that are right, where it was told.
    pub accuracy: Option<f64>,
}

impl Score {
    /// `None` where nothing was measured: a site without records to measure on says nothing about a model.
    pub fn of(metrics: &Metrics) -> Option<Self> {
        let Metrics { loss, accuracy, .. } = *metrics;
        (metrics.examples > 0).then_some(Self { loss, accuracy })
    }

    /// The median of what sites say, one voice each: of their losses, and of their accuracies where all tell one. Of an even number it is
    /// the worse in the middle, and so the worse of two. No minority can carry it beyond what the others say; a mean, however
    /// weighted, would let one site choose by a huge loss.
    pub fn median(voices: &[Self]) -> Option<Self> {
        let accuracies: Option<Vec<f64>> = voices.iter().map(|voice| voice.accuracy).collect();
        let loss = -middle(voices.iter().map(|voice| -voice.loss).collect())?;
        Some(Self { loss, accuracy: accuracies.and_then(middle) })
    }

    /// Whether it is better than `other`: by accuracy and, of equals, by loss, where all scores that are compared have an accuracy
    /// (`by_accuracy`); else by loss alone. Of two that are equal in all of it neither is better, so that the earlier one stays.
    pub fn is_better(self, other: Self, by_accuracy: bool) -> bool {
        let accuracies = self.accuracy.zip(other.accuracy).filter(|_| by_accuracy);
        match accuracies {
            Some((own, others)) if own != others => own > others,
            _ => self.loss < other.loss,
        }
    }
}

/// The middle one, where more is better; of an even number the lower one in the middle.
fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_nothing_is_nothing_and_of_two_the_worse() {
        assert_eq!(middle(Vec::new()), None);
        assert_eq!(middle(vec![3.0, 1.0]), Some(1.0));
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn of_equal_accuracies_the_lower_loss_is_better_and_of_equals_neither() {
        let score = |loss, accuracy| Score { loss, accuracy };
        let (low, high) = (score(0.5, Some(0.9)), score(0.7, Some(0.9)));
        assert!(low.is_better(high, true) && !high.is_better(low, true) && !low.is_better(low, true));
        assert!(score(0.9, Some(0.95)).is_better(low, true), "accuracy comes first");
        assert!(!score(0.9, Some(0.95)).is_better(low, false), "by loss alone where one has no accuracy");
        assert!(score(0.4, None).is_better(low, true), "without an accuracy the loss decides");
        let unknown = score(f64::NAN, Some(0.9));
        assert!(!unknown.is_better(low, true), "what is no number is never better");
    }
}
