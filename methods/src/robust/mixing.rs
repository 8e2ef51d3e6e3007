//! Before a rule, every update becomes the mean of its `n - f` nearest, itself among them (Allouah, Farhadkhani, Guerraoui, Gupta, Pinot,
//! Stephan 2023, section 4): where records differ from site to site, what is left differs less.

use std::io;

use protocol::{Name, SpecError};
use server::methods::read_settings;
use server::workflow::{KeptUpdates, PreStep};
use server::{Given, Step};

use super::NoSettings;
use super::distances::Distances;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct NearestNeighbourMixing;

impl Step for NearestNeighbourMixing {
    fn name(&self) -> Name {
        Name::literal("nearest_neighbour_mixing")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Box<dyn PreStep>, SpecError> {
        let NoSettings {} = read_settings(settings)?;
        Ok(Box::new(Mixing { corrupted: given.corrupted }))
    }
}

#[derive(Debug)]
struct Mixing {
    corrupted: usize,
}

impl PreStep for Mixing {
    fn describe(&self) -> String {
        format!("nearest_neighbour_mixing with {} corrupted", self.corrupted)
    }

    fn updates_min(&self, updates_min: usize) -> usize {
        updates_min.max(2 * self.corrupted + 1)
    }

    fn updates_left(&self, updates: usize) -> usize {
        updates
    }

    fn mix(&self, updates: &KeptUpdates) -> io::Result<KeptUpdates> {
        let distances = Distances::of(updates)?;
        let near = updates.len().saturating_sub(self.corrupted).max(1);
        let row = |one: usize| {
            let mut weights = vec![0.0; distances.count()];
            distances.nearest(one)[..near].iter().for_each(|other| weights[*other] = 1.0 / near as f64);
            weights
        };
        Ok(updates.mixed((0..updates.len()).map(row).collect()))
    }
}
