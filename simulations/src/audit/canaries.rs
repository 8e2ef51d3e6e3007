//! Canaries: made-up updates that are as easy to recognise as any can be, some of which go in.
//!
//! They are rows of a Hadamard matrix with random signs and places: all orthogonal, so that none hides another, and
//! spread over every coordinate, so that nothing of the sum escapes them. Scores are inner products with what came out,
//! for all canaries at once by the fast Walsh-Hadamard transform.

use protocol::Seed;
use rand::Rng;
use rand::seq::SliceRandom;

/// Orthogonal directions in the space of a model, each with a coin that says whether it goes in.
#[derive(Clone, Debug)]
pub struct Canaries {
    dimension: usize,
    /// Where the transform's coordinates lie among the model's, and their signs.
    places: Vec<(u32, bool)>,
    members: Vec<bool>,
}

/// Scores of canaries, apart by whether they went in.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Of those that did.
    pub members: Vec<f64>,
    /// Of those that did not.
    pub others: Vec<f64>,
}

/// Canaries that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CanaryError {
    /// More than there are orthogonal directions.
    #[error(
        "{canaries} canaries need as many orthogonal directions; a model of {dimension} parameters has {most} for them"
    )]
    Crowded {
        /// How many were asked for.
        canaries: usize,
        /// Parameters of the model.
        dimension: usize,
        /// How many there can be.
        most: usize,
    },
    /// Too few.
    #[error("{0} canaries tell nothing; take at least 2")]
    Few(usize),
}

impl Canaries {
    /// `count` canaries for a model of `dimension` parameters: from 2 to the largest power of two in it.
    ///
    /// # Errors
    /// [`CanaryError`] for too many or too few.
    pub fn new(count: usize, dimension: usize, seed: Seed) -> Result<Self, CanaryError> {
        let most = if dimension == 0 { 0 } else { 1 << dimension.ilog2() };
        if count < 2 {
            return Err(CanaryError::Few(count));
        }
        if count > most {
            return Err(CanaryError::Crowded { canaries: count, dimension, most });
        }
        let mut generator = seed.generator();
        let mut places: Vec<u32> = (0..dimension as u32).collect();
        places.shuffle(&mut generator);
        let places = places.into_iter().take(most).map(|place| (place, generator.random())).collect();
        let members = (0..count).map(|_| generator.random()).collect();
        Ok(Self { dimension, places, members })
    }

    /// The same canaries, all of which go in.
    #[must_use]
    pub fn all_in(self) -> Self {
        Self { members: vec![true; self.members.len()], ..self }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none; never so.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Parameters of the model.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The numbers of those that go in.
    pub fn members(&self) -> impl Iterator<Item = usize> {
        self.members.iter().enumerate().filter(|(_, member)| **member).map(|(number, _)| number)
    }

    /// The update of canary `number`, of this L2 norm.
    pub fn update(&self, number: usize, norm: f64) -> Vec<f32> {
        let mut update = vec![0.0; self.dimension];
        let size = (norm / (self.places.len() as f64).sqrt()) as f32;
        for (column, (place, sign)) in self.places.iter().enumerate() {
            let odd = (number & column).count_ones() % 2 == 1;
            update[*place as usize] = if odd == *sign { size } else { -size };
        }
        update
    }

    /// The inner product of `seen` (as long as the model) with every canary of norm 1.
    pub fn scores(&self, seen: &[f64]) -> Scores {
        let signed = |(place, sign): &(u32, bool)| {
            let value = seen[*place as usize];
            // The sign of `update`: even columns of a true sign are negative.
            if *sign { -value } else { value }
        };
        let mut values: Vec<f64> = self.places.iter().map(signed).collect();
        transform(&mut values);
        let scale = 1.0 / (self.places.len() as f64).sqrt();
        let of = |wanted: bool| {
            let chosen = values.iter().zip(&self.members).filter(|(_, member)| **member == wanted);
            chosen.map(|(value, _)| value * scale).collect()
        };
        Scores { members: of(true), others: of(false) }
    }
}

/// The Walsh-Hadamard transform in place; the length is a power of two.
fn transform(values: &mut [f64]) {
    let mut half = 1;
    while half < values.len() {
        for block in values.chunks_mut(2 * half) {
            let (left, right) = block.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_orthogonal_and_scores_are_inner_products() {
        let canaries = Canaries::new(16, 21, Seed::from_number(3)).unwrap();
        let updates: Vec<Vec<f32>> = (0..16).map(|number| canaries.update(number, 2.0)).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        for one in 0..16 {
            for other in 0..16 {
                let expected = if one == other { 4.0 } else { 0.0 };
                assert!((product(&updates[one], &updates[other]) - expected).abs() < 1e-6);
            }
        }
        let chosen = canaries.members().next().unwrap();
        let seen: Vec<f64> = updates[chosen].iter().map(|value| f64::from(*value)).collect();
        let scores = canaries.scores(&seen);
        assert!((scores.members[0] - 2.0).abs() < 1e-6);
        assert!(scores.members[1..].iter().chain(&scores.others).all(|score| score.abs() < 1e-6));
        assert_eq!(scores.members.len() + scores.others.len(), canaries.len());
    }

    #[test]
    fn there_are_no_more_canaries_than_directions() {
        let seed = Seed::from_number(1);
        assert!(matches!(Canaries::new(17, 31, seed), Err(CanaryError::Crowded { most: 16, .. })));
        assert!(matches!(Canaries::new(1, 31, seed), Err(CanaryError::Few(1))));
        assert_eq!(Canaries::new(9, 16, seed).unwrap().all_in().members().count(), 9);
    }
}
