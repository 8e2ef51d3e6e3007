//! Before a rule, updates are put into buckets at random, and each bucket becomes its mean (Karimireddy, He, Jaggi 2022, section 5): where
//! records differ from site to site, what is left differs less. A corrupted update spoils one bucket.

use std::io;

use protocol::{Name, SpecError};
use rand::seq::SliceRandom;
use serde::Deserialize;
use server::methods::read_settings;
use server::workflow::{KeptUpdates, PreStep};
use server::{Given, Step};

use super::fault;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Bucketing;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Updates of a bucket, at least 2; the last one may have fewer.
    size: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { size: 2 }
    }
}

impl Step for Bucketing {
    fn name(&self) -> Name {
        Name::literal("bucketing")
    }

    fn plan(&self, settings: toml::Table, given: &Given) -> Result<Box<dyn PreStep>, SpecError> {
        let Settings { size } = read_settings(settings)?;
        if !(2..=given.updates.max(2)).contains(&size) {
            return fault(
                "size",
                format!("{size} is not from 2 to {}, the updates of a round", given.updates),
            );
        }
        Ok(Box::new(Buckets { size }))
    }
}

#[derive(Debug)]
struct Buckets {
    size: usize,
}

impl PreStep for Buckets {
    fn describe(&self) -> String {
        format!("buckets of {}", self.size)
    }

    fn updates_min(&self, updates_min: usize) -> usize {
        updates_min.saturating_sub(1) * self.size + 1
    }

    fn updates_left(&self, updates: usize) -> usize {
        updates.div_ceil(self.size)
    }

    fn mix(&self, updates: &KeptUpdates) -> io::Result<KeptUpdates> {
        let mut order: Vec<usize> = (0..updates.len()).collect();
        order.shuffle(&mut updates.chance().generator());
        let bucket = |members: &[usize]| {
            let mut weights = vec![0.0; updates.len()];
            members.iter().for_each(|member| weights[*member] = 1.0 / members.len() as f64);
            weights
        };
        Ok(updates.mixed(order.chunks(self.size).map(bucket).collect()))
    }
}
