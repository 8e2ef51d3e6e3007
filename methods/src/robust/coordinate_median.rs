//! The median of every coordinate (Yin, Chen, Ramchandran, Bartlett 2018, definition 1). Of an even number, the mean of the two in the
//! middle.

use std::io;
use std::sync::Arc;

use protocol::{Name, SpecError};
use server::methods::read_settings;
use server::workflow::{AggregationRule, KeptUpdates};
use server::{Given, Rule};

use super::NoSettings;
use super::trimmed_mean::by_coordinate;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CoordinateMedian;

impl Rule for CoordinateMedian {
    fn name(&self) -> Name {
        Name::literal("coordinate_median")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let NoSettings {} = read_settings(settings)?;
        Ok(Arc::new(Median { corrupted: given.corrupted }))
    }
}

#[derive(Debug)]
struct Median {
    corrupted: usize,
}

impl AggregationRule for Median {
    fn describe(&self) -> String {
        format!("coordinate_median with {} corrupted", self.corrupted)
    }

    fn updates_min(&self) -> usize {
        2 * self.corrupted + 1
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        by_coordinate(updates, |sorted| {
            let middle = sorted.len() / 2;
            if sorted.len() % 2 == 1 { sorted[middle] } else { 0.5 * (sorted[middle - 1] + sorted[middle]) }
        })
    }
}
