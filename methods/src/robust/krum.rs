//! Krum: the update that is nearest to its `n - f - 2` nearest others (Blanchard, El Mhamdi, Guerraoui, Stainer 2017, section 4); and
//! Multi-Krum: the mean of the few that are. It needs `n >= 2 f + 3`.

use std::io;
use std::sync::Arc;

use protocol::{Name, SpecError};
use serde::Deserialize;
use server::methods::read_settings;
use server::workflow::{AggregationRule, KeptUpdates};
use server::{Given, Rule};

use super::distances::Distances;
use super::{NoSettings, fault};

/// Krum. See the module.
#[derive(Clone, Copy, Debug)]
pub struct Krum;

/// Multi-Krum. See the module.
#[derive(Clone, Copy, Debug)]
pub struct MultiKrum;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Updates of which the mean is taken, from 1 to n - f; by default n - f - 2.
    select: Option<usize>,
}

impl Rule for Krum {
    fn name(&self) -> Name {
        Name::literal("krum")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let NoSettings {} = read_settings(settings)?;
        Ok(Arc::new(Nearest { name: "krum", corrupted: given.corrupted, select: Some(1) }))
    }
}

impl Rule for MultiKrum {
    fn name(&self) -> Name {
        Name::literal("multi_krum")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Arc<dyn AggregationRule>, SpecError> {
        let Settings { select } = read_settings(settings)?;
        let Given { corrupted, updates } = *given;
        let most = updates.saturating_sub(corrupted);
        if let Some(select) = select.filter(|select| !(1..=most).contains(select)) {
            return fault(
                "select",
                format!("{select} is not from 1 to {most}, the updates of {updates} that are not corrupted"),
            );
        }
        Ok(Arc::new(Nearest { name: "multi_krum", corrupted, select }))
    }
}

#[derive(Debug)]
struct Nearest {
    name: &'static str,
    corrupted: usize,
    /// Updates of which the mean is taken; all but those that are corrupted and two, where there is none.
    select: Option<usize>,
}

impl AggregationRule for Nearest {
    fn describe(&self) -> String {
        format!("{} with {} corrupted", self.name, self.corrupted)
    }

    fn updates_min(&self) -> usize {
        2 * self.corrupted + 3
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let (count, distances) = (updates.len(), Distances::of(updates)?);
        let near = count - self.corrupted - 2;
        let score = |one: usize| -> f64 {
            let mut squares: Vec<f64> = distances.row(one).to_vec();
            squares.remove(one);
            squares.sort_unstable_by(f64::total_cmp);
            squares[..near].iter().sum()
        };
        let mut best: Vec<(f64, usize)> = (0..count).map(|one| (score(one), one)).collect();
        // Of equals the first by name.
        best.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let select = self.select.unwrap_or(near).clamp(1, count - self.corrupted);
        let mut weights = vec![0.0; count];
        best[..select].iter().for_each(|(_, one)| weights[*one] = 1.0 / select as f64);
        updates.weighted_sum(&weights)
    }
}
