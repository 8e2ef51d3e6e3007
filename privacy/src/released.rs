//! The only thing that may move a model.

use crate::sum::{Sum, Unit};
use crate::tally;

/// A sum that may leave the aggregation. Without privacy the only way to make one is [`Released::unprotected`].
#[derive(Debug)]
pub struct Released {
    totals: Vec<i64>,
    factor: f64,
    weight: u64,
    contributions: u64,
}

impl Released {
    /// Releases a sum as it is: no noise, no budget. `None` when the sum is empty, since it has no mean.
    ///
    /// The name is long so that every use of it stands out in review.
    pub fn unprotected(sum: Sum) -> Option<Self> {
        let factor = match sum.unit {
            Unit::Lattice(lattice) => lattice.step() / sum.weight as f64,
            Unit::Limbs { .. } => 1.0,
        };
        let Sum { totals, weight, contributions, .. } = sum;
        (contributions > 0).then_some(Self { totals, factor, weight, contributions })
    }

    /// The weighted mean of the updates, one f64 a coordinate, in layout order.
    pub fn mean(&self) -> impl Iterator<Item = f64> {
        self.totals.iter().map(|total| *total as f64 * self.factor)
    }

    /// The totals of a sum of tallies, one f64 a statistic.
    pub fn totals(&self) -> Vec<f64> {
        tally::decode(&self.totals)
    }

    /// Sum of the weights.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// How many updates it holds.
    pub fn contributions(&self) -> u64 {
        self.contributions
    }

    /// Number of coordinates.
    pub fn len(&self) -> usize {
        self.totals.len()
    }

    /// Whether there are no coordinates.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }
}
