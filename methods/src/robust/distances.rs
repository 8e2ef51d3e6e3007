//! How far updates are from each other, in an order that follows from their clients' names alone.

use std::io;

use server::workflow::KeptUpdates;

/// Sums that are kept side by side within a part, and added up in order at its end: always the same, whatever the machine.
const LANES: usize = 8;

/// Squared Euclidean distances of all pairs, in squared steps of the lattice.
pub(super) struct Distances {
    count: usize,
    squares: Vec<f64>,
}

impl Distances {
    /// Of updates.
    pub(super) fn of(updates: &KeptUpdates) -> io::Result<Self> {
        Self::with(updates, None)
    }

    /// Of updates and one vector more, which is the last.
    pub(super) fn with(updates: &KeptUpdates, more: Option<&[f64]>) -> io::Result<Self> {
        let count = updates.len() + usize::from(more.is_some());
        let mut squares = vec![0.0; count * count];
        updates.visit(&mut |first, part| {
            let width = part.first().map_or(0, Vec::len);
            let more = more.map(|more| &more[first..first + width]);
            let values =
                |place: usize| part.get(place).map(|values| &values[..]).or(more).unwrap_or_default();
            for one in 0..count {
                for other in one + 1..count {
                    let square = square(values(one), values(other));
                    squares[one * count + other] += square;
                    squares[other * count + one] += square;
                }
            }
        })?;
        Ok(Self { count, squares })
    }

    /// How many vectors there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The squared distances of one to all, itself among them.
    pub(super) fn row(&self, one: usize) -> &[f64] {
        &self.squares[one * self.count..(one + 1) * self.count]
    }

    /// The nearest to one, nearest first and of equals the first: itself at distance 0, then the others.
    pub(super) fn nearest(&self, one: usize) -> Vec<usize> {
        let squares = self.row(one);
        let mut others: Vec<usize> = (0..self.count).filter(|other| *other != one).collect();
        others.sort_by(|a, b| squares[*a].total_cmp(&squares[*b]));
        others.insert(0, one);
        others
    }

    /// The distance of each vector to a weighted mean of all; the weights sum to 1.
    pub(super) fn to_mean(&self, weights: &[f64]) -> Vec<f64> {
        let towards = |to: usize| -> f64 {
            self.row(to).iter().zip(weights).map(|(square, weight)| square * weight).sum()
        };
        let towards: Vec<f64> = (0..self.count).map(towards).collect();
        let spread: f64 = towards.iter().zip(weights).map(|(square, weight)| square * weight).sum();
        towards.into_iter().map(|square| (square - 0.5 * spread).max(0.0).sqrt()).collect()
    }
}

fn square(one: &[f64], other: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (ones, rest) = one.as_chunks::<LANES>();
    let (others, other_rest) = other.as_chunks::<LANES>();
    for (one, other) in ones.iter().zip(others) {
        for lane in 0..LANES {
            let difference = one[lane] - other[lane];
            lanes[lane] += difference * difference;
        }
    }
    let rest: f64 = rest.iter().zip(other_rest).map(|(one, other)| (one - other) * (one - other)).sum();
    lanes.iter().sum::<f64>() + rest
}
