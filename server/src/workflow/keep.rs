//! The collector that keeps every update, for rules that must see all of them (medians, Krum, clipping around a centre).
//!
//! Updates are checked like those of a sum, and held as they came: in memory up to a bound, and beyond it in an unnamed file in the
//! folder for temporary files. They are handed to the rule in the order of their clients' names, so that no order of arrival changes a
//! bit. It takes no permit: where a plan promises something against whoever sees updates one by one, there is no rule but the sum.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

use privacy::Lattice;
use privacy::counted;
use protocol::{ClientId, PayloadSpec, Seed, UpdateCodec};

use super::exact_sum::Update;
use super::rule::{AggregationRule, KeptUpdates, Stored};
use super::{Aggregate, Close, Collector, ExactSum, Refused, Release, Verified, Verifier};

/// Bytes of one point.
pub(super) const POINT: usize = size_of::<i32>();

/// See the module.
pub struct Keep {
    rule: Arc<dyn AggregationRule>,
    verifier: Arc<dyn Verifier>,
    codec: UpdateCodec,
    /// Bytes of updates in memory, at most.
    memory_max: usize,
    memory: usize,
    kept: BTreeMap<ClientId, Place>,
    file: Option<File>,
    /// What the disk said when it refused.
    broken: Option<String>,
    round: Round,
}

/// What a rule is told beside the updates.
pub(super) struct Round {
    pub(super) step: f64,
    pub(super) dimension: usize,
    pub(super) previous: Option<Arc<Vec<f32>>>,
    pub(super) chance: Seed,
}

/// Where an update is.
pub(super) enum Place {
    Memory(Vec<i32>),
    /// The number of updates before it in the file.
    File(u64),
}

/// How many clients, and nothing of what they sent.
impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keep({} updates for {:?})", self.kept.len(), self.rule)
    }
}

impl Keep {
    /// Keeps updates on `lattice`, which travel in the short form of `codec`, for `rule`; at most `memory_max` bytes of them in memory.
    /// `previous` is the aggregate of the round before, where the rule begins from it, and `chance` is for what a rule draws.
    pub fn new(
        lattice: &Lattice,
        codec: UpdateCodec,
        rule: Arc<dyn AggregationRule>,
        memory_max: usize,
        previous: Option<Arc<Vec<f32>>>,
        chance: Seed,
    ) -> Self {
        let verifier = ExactSum::of_updates(lattice, codec, false).verifier();
        let round = Round { step: lattice.step(), dimension: lattice.dimension(), previous, chance };
        let (kept, file, broken) = (BTreeMap::new(), None, None);
        Self { rule, verifier, codec, memory_max, memory: 0, kept, file, broken, round }
    }

    fn place(&mut self, points: Vec<i32>) -> io::Result<Place> {
        let bytes = points.len() * POINT;
        if self.memory + bytes <= self.memory_max {
            self.memory += bytes;
            return Ok(Place::Memory(points));
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let end = file.seek(SeekFrom::End(0))?;
        let mut written = io::BufWriter::new(&mut *file);
        points.iter().try_for_each(|point| written.write_all(&point.to_le_bytes()))?;
        written.flush()?;
        Ok(Place::File(end / (bytes as u64).max(1)))
    }
}

impl Collector for Keep {
    fn expects(&self) -> PayloadSpec {
        PayloadSpec::update(self.round.dimension, self.codec)
    }

    fn verifier(&self) -> Arc<dyn Verifier> {
        Arc::clone(&self.verifier)
    }

    fn fold(&mut self, from: &ClientId, verified: Verified) -> Result<(), Refused> {
        let Update(update, _) = verified.into_value()?;
        match self.place(update.into_points()) {
            Ok(place) => {
                self.kept.insert(from.clone(), place);
            }
            // No fault of the client: what it sent counts, and nothing comes of the round.
            Err(error) => {
                let folder = std::env::temp_dir();
                self.broken.get_or_insert_with(|| {
                    format!(
                        "an update could not be written to the folder for temporary files, {}: {error}; make room there, or raise \
                         `aggregation.memory_mib`",
                        folder.display()
                    )
                });
            }
        }
        Ok(())
    }

    fn close(self: Box<Self>, _: &mut dyn Release) -> Close {
        let Self { rule, kept, file, broken, round, .. } = *self;
        let (found, needed) = (kept.len(), rule.updates_min());
        if let Some(broken) = broken {
            return Close::Failed(Some(broken));
        }
        if found == 0 {
            return Close::Failed(None);
        }
        if found < needed {
            return Close::Failed(Some(format!(
                "{} came and the rule, {}, needs {needed}; lower `aggregation.corrupted`, or see why clients are missing",
                counted(found, "update"),
                rule.describe()
            )));
        }
        let updates = KeptUpdates::of_round(Stored { places: kept.into_values().collect(), file, round });
        match rule.aggregate(&updates) {
            Ok(mut aggregate) => {
                aggregate.iter_mut().for_each(|value| *value *= updates.step());
                Close::Aggregate(Aggregate::Vector(aggregate))
            }
            Err(error) => Close::Failed(Some(format!(
                "updates could not be read back from the folder for temporary files: {error}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
