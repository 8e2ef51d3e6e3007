//! From the aggregate of the round before, steps by the mean of what updates differ from it, each clipped to a radius (Karimireddy, He,
//! Jaggi 2021, algorithm 2). It begins from 0 in the first round. A step needs the distances of pairs alone.

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

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CentredClipping;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The radius in units of the parameters; by default, in each step, the median of the updates' distances from the centre, which fewer
    /// than half of them cannot move beyond that of an honest one.
    radius: Option<Positive>,
    /// Steps, from 1 to 1000.
    steps: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { radius: None, steps: 3 }
    }
}

impl Rule for CentredClipping {
    fn name(&self) -> Name {
        Name::literal("centred_clipping")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let Settings { radius, steps } = read_settings(settings)?;
        radius.map_or(Ok(()), |radius| check_magnitude(radius, "radius"))?;
        if !(1..=STEPS_MAX).contains(&steps) {
            return fault("steps", format!("{steps} is not from 1 to {STEPS_MAX}"));
        }
        Ok(Arc::new(Centred { corrupted: given.corrupted, radius, steps }))
    }
}

#[derive(Debug)]
struct Centred {
    corrupted: usize,
    radius: Option<Positive>,
    steps: u32,
}

impl AggregationRule for Centred {
    fn describe(&self) -> String {
        format!("centred_clipping with {} corrupted", self.corrupted)
    }

    fn updates_min(&self) -> usize {
        2 * self.corrupted + 1
    }

    fn begins_from_previous(&self) -> bool {
        true
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let first = updates.previous().unwrap_or_else(|| vec![0.0; updates.dimension()]);
        let (count, distances) = (updates.len(), Distances::with(updates, Some(&first))?);
        let mut weights = vec![0.0; count + 1];
        weights[count] = 1.0;
        for _ in 0..self.steps {
            let lengths = distances.to_mean(&weights);
            let lengths = &lengths[..count];
            let radius =
                self.radius.map_or_else(|| median(lengths), |radius| radius.value() / updates.step());
            let share = |length: &f64| if *length > radius { radius / length } else { 1.0 } / count as f64;
            let shares: Vec<f64> = lengths.iter().map(share).collect();
            let kept = 1.0 - shares.iter().sum::<f64>();
            weights.iter_mut().for_each(|weight| *weight *= kept);
            weights.iter_mut().zip(shares).for_each(|(weight, share)| *weight += share);
        }
        let mut aggregate = updates.weighted_sum(&weights[..count])?;
        aggregate.iter_mut().zip(first).for_each(|(sum, first)| *sum += weights[count] * first);
        Ok(aggregate)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}
