//! The mean of every coordinate without its largest and smallest values (Yin, Chen, Ramchandran, Bartlett 2018, definition 2).

use std::io;
use std::sync::Arc;

use protocol::{Name, SpecError};
use serde::Deserialize;
use server::methods::read_settings;
use server::workflow::{AggregationRule, KeptUpdates};
use server::{Given, Rule};

use super::fault;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct TrimmedMean;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The share that is left out at each end, from f/n to below a half; by default f/n.
    beta: Option<f64>,
}

impl Rule for TrimmedMean {
    fn name(&self) -> Name {
        Name::literal("trimmed_mean")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let Settings { beta } = read_settings(settings)?;
        let Given { corrupted, updates } = *given;
        if let Some(beta) = beta {
            if !(0.0..0.5).contains(&beta) {
                return fault("beta", format!("{beta} is not from 0 to below 0.5: nothing would be left"));
            }
            if cut_of(beta, updates) < corrupted {
                let least = corrupted as f64 / updates as f64;
                return fault(
                    "beta",
                    format!(
                        "{beta} of {updates} updates leaves out {} at each end, and {corrupted} are corrupted; give at least {least:.4}, or leave it out",
                        cut_of(beta, updates)
                    ),
                );
            }
        }
        Ok(Arc::new(Trimmed { corrupted, beta }))
    }
}

/// Values that a share leaves out at one end.
fn cut_of(beta: f64, updates: usize) -> usize {
    // A share that was typed as a rounded fraction means the fraction.
    (beta * updates as f64 + 1e-9).floor() as usize
}

#[derive(Debug)]
struct Trimmed {
    corrupted: usize,
    beta: Option<f64>,
}

impl AggregationRule for Trimmed {
    fn describe(&self) -> String {
        format!("trimmed_mean with {} corrupted", self.corrupted)
    }

    fn updates_min(&self) -> usize {
        2 * self.corrupted + 1
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let count = updates.len();
        // Where clients are missing, the share may be of fewer updates than are corrupted.
        let cut = self.beta.map_or(0, |beta| cut_of(beta, count)).max(self.corrupted).min((count - 1) / 2);
        by_coordinate(updates, |sorted| {
            let kept = &sorted[cut..count - cut];
            kept.iter().sum::<f64>() / kept.len() as f64
        })
    }
}

/// `rule` of the values of each coordinate, smallest first.
pub(super) fn by_coordinate(updates: &KeptUpdates, rule: impl Fn(&[f64]) -> f64) -> io::Result<Vec<f64>> {
    let (mut aggregate, mut column) = (Vec::with_capacity(updates.dimension()), Vec::new());
    updates.visit(&mut |_, part| {
        for coordinate in 0..part.first().map_or(0, Vec::len) {
            column.clear();
            column.extend(part.iter().map(|values| values[coordinate]));
            column.sort_unstable_by(f64::total_cmp);
            aggregate.push(rule(&column));
        }
    })?;
    Ok(aggregate)
}
