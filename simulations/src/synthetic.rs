//! Made-up records: each class is a Gaussian cloud around a random centre. For trying a plan or a machine out, never for
//! judging a method.

use learning::{Dataset, Labels};
use protocol::{Positive, Seed, Target};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

/// How many records, and how hard they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticSource {
    /// Training records.
    pub rows: usize,
    /// Test records.
    #[serde(default = "test_rows")]
    pub test_rows: usize,
    /// Root mean square distance of a record from its cloud's centre; centres are about 1.4 from each other.
    #[serde(default = "spread")]
    pub spread: Positive,
}

fn test_rows() -> usize {
    1000
}

fn spread() -> Positive {
    Positive::new(0.5).expect("a half is positive")
}

impl SyntheticSource {
    /// Training and test records of `shape`. A real target is the first centre's coordinate along the sample, plus noise.
    pub fn make(&self, shape: &[usize], target: Target, seed: Seed) -> (Dataset, Dataset) {
        let mut generator = seed.generator();
        let width: usize = shape.iter().product();
        let classes = if let Target::Classes(classes) = target { classes } else { 1 };
        let scale = 1.0 / (width.max(1) as f64).sqrt();
        let normal = |generator: &mut _| -> f64 { StandardNormal.sample(generator) };
        let centres: Vec<f64> = (0..classes * width).map(|_| normal(&mut generator) * scale).collect();
        let mut draw = |rows: usize| {
            let mut features = Vec::with_capacity(rows * width);
            let (mut class_labels, mut real_labels) = (Vec::new(), Vec::new());
            for _ in 0..rows {
                let class = generator.random_range(0..classes);
                let centre = &centres[class * width..(class + 1) * width];
                let start = features.len();
                let spread = self.spread.value() * scale;
                features.extend(centre.iter().map(|value| (value + spread * normal(&mut generator)) as f32));
                let along: f64 =
                    features[start..].iter().zip(centre).map(|(x, centre)| f64::from(*x) * centre).sum();
                class_labels.push(class as u32);
                real_labels.push(along as f32);
            }
            let labels = match target {
                Target::Classes(_) => Labels::Classes(class_labels),
                Target::Real => Labels::Real(real_labels),
            };
            Dataset { shape: shape.to_vec(), features: features.into(), labels }
        };
        (draw(self.rows), draw(self.test_rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_shape_and_repeat_with_their_seed() {
        let source = SyntheticSource { rows: 20, test_rows: 5, spread: spread() };
        let make = |seed| source.make(&[2, 3], Target::Classes(4), Seed::from_number(seed));
        let (train, test) = make(1);
        assert_eq!((train.len(), test.len(), train.features.len()), (20, 5, 120));
        assert_eq!(make(1), (train.clone(), test));
        assert_ne!(make(2).0, train);
    }
}
