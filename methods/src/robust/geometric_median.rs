//! The vector whose distances to all updates have the smallest sum, by Weiszfeld's algorithm with distances of at least nu (Pillutla,
//! Kakade, Harchaoui 2019, algorithm 2), from the mean. A step needs the distances of pairs alone, so that updates are looked at twice,
//! however many steps there are.

use std::io;
use std::sync::Arc;

use protocol::{Name, Positive, SpecError};
use serde::Deserialize;
use server::methods::{check_magnitude, read_settings};
use server::workflow::{AggregationRule, KeptUpdates};
use server::{Given, Rule};

use super::distances::Distances;
use super::fault;

const STEPS_MAX: u32 = 1000;
/// The least distance that divides, in steps of any lattice: the inverses of as many as there may be updates have a finite sum above 0.
const LEAST: (f64, f64) = (1e-150, 1e150);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct GeometricMedian;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The least distance that divides, in units of the parameters.
    nu: Positive,
    /// Steps, from 1 to 1000.
    steps: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nu: Positive::new(1e-6).expect("a millionth is positive"), steps: 8 }
    }
}

impl Rule for GeometricMedian {
    fn name(&self) -> Name {
        Name::literal("geometric_median")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let Settings { nu, steps } = read_settings(settings)?;
        check_magnitude(nu, "nu")?;
        if !(1..=STEPS_MAX).contains(&steps) {
            return fault("steps", format!("{steps} is not from 1 to {STEPS_MAX}"));
        }
        Ok(Arc::new(Weiszfeld { corrupted: given.corrupted, nu, steps }))
    }
}

#[derive(Debug)]
struct Weiszfeld {
    corrupted: usize,
    nu: Positive,
    steps: u32,
}

impl AggregationRule for Weiszfeld {
    fn describe(&self) -> String {
        format!("geometric_median with {} corrupted", self.corrupted)
    }

    fn updates_min(&self) -> usize {
        2 * self.corrupted + 1
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let distances = Distances::of(updates)?;
        let least = (self.nu.value() / updates.step()).clamp(LEAST.0, LEAST.1);
        let mut weights = vec![1.0 / updates.len() as f64; updates.len()];
        for _ in 0..self.steps {
            let inverse = |distance: f64| 1.0 / distance.max(least);
            weights = distances.to_mean(&weights).into_iter().map(inverse).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        updates.weighted_sum(&weights)
    }
}
