//! What makes one vector of all updates of a round, and how it sees them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::{fmt, iter};

use protocol::Seed;

use super::keep::{POINT, Place, Round};

/// Bytes of one part in which a rule looks at all updates.
const PART_BYTES: usize = 8 << 20;

/// A rule that sees every update, such as a median. Pure: the same updates, the same aggregate of the round before and the same chance
/// give the same bits, in whatever order the updates came. One instance serves a whole run.
pub trait AggregationRule: fmt::Debug + Send + Sync {
    /// In a few words with its numbers, for messages: "krum with 2 corrupted".
    fn describe(&self) -> String;

    /// Updates without which it gives nothing, at least 1.
    fn updates_min(&self) -> usize;

    /// Whether it begins from the aggregate of the round before. That is stored with the model then.
    fn begins_from_previous(&self) -> bool {
        false
    }

    /// The aggregate of at least [`AggregationRule::updates_min`] updates, in steps of their lattice.
    ///
    /// # Errors
    /// Those of the disk from which updates are read.
    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>>;
}

/// What is done to all updates before a rule sees them: each becomes a weighted mean of several. Pure, as a rule is.
pub trait PreStep: fmt::Debug + Send + Sync {
    /// In a few words with its numbers, for messages: "buckets of 2".
    fn describe(&self) -> String;

    /// Updates that it needs so that `updates_min` of them are left.
    fn updates_min(&self, updates_min: usize) -> usize;

    /// Updates that are left of `updates`.
    fn updates_left(&self, updates: usize) -> usize;

    /// The updates that are left.
    ///
    /// # Errors
    /// Those of the disk.
    fn mix(&self, updates: &KeptUpdates) -> io::Result<KeptUpdates>;
}

/// A rule after steps that are done before it, in their order.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) steps: Vec<Box<dyn PreStep>>,
    pub(crate) rule: Arc<dyn AggregationRule>,
}

impl AggregationRule for Prepared {
    fn describe(&self) -> String {
        let steps = self.steps.iter().map(|step| step.describe());
        steps.chain(iter::once(self.rule.describe())).collect::<Vec<_>>().join(", then ")
    }

    fn updates_min(&self) -> usize {
        self.steps.iter().rev().fold(self.rule.updates_min(), |least, step| step.updates_min(least))
    }

    fn begins_from_previous(&self) -> bool {
        self.rule.begins_from_previous()
    }

    fn aggregate(&self, updates: &KeptUpdates) -> io::Result<Vec<f64>> {
        let mut mixed = updates.clone();
        for step in &self.steps {
            mixed = step.mix(&mixed)?;
        }
        self.rule.aggregate(&mixed)
    }
}

/// The updates of a round in the order of their clients' names, or what steps before a rule have made of them. Values are in steps of
/// the updates' lattice: whole numbers as long as nothing has mixed them. Cheap to clone.
#[derive(Clone)]
pub struct KeptUpdates {
    stored: Arc<Stored>,
    /// The weights of the stored updates in each of these; each is a stored one where there are none.
    weights: Option<Arc<Vec<Vec<f64>>>>,
}

/// The updates as they came.
pub(super) struct Stored {
    pub(super) places: Vec<Place>,
    pub(super) file: Option<File>,
    pub(super) round: Round,
}

/// Only sizes: each of them is one client's.
impl fmt::Debug for KeptUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptUpdates({} of {})", self.len(), self.dimension())
    }
}

impl KeptUpdates {
    pub(super) fn of_round(stored: Stored) -> Self {
        Self { stored: Arc::new(stored), weights: None }
    }

    /// Updates in memory, of `dimension` points each, whose lattice has this `step`; after `previous`, the aggregate of the round before
    /// in units of the parameters, where there was one. What is drawn follows from `chance`.
    ///
    /// # Panics
    /// When an update has another length.
    pub fn of(
        updates: Vec<Vec<i32>>,
        dimension: usize,
        step: f64,
        previous: Option<Vec<f32>>,
        chance: Seed,
    ) -> Self {
        assert!(
            updates.iter().all(|points| points.len() == dimension),
            "updates of one round have one length"
        );
        let round = Round { step, dimension, previous: previous.map(Arc::new), chance };
        Self::of_round(Stored { places: updates.into_iter().map(Place::Memory).collect(), file: None, round })
    }

    /// Weighted sums of these: one for each row of `weights`, which has a weight for each of these.
    ///
    /// # Panics
    /// When a row has another length.
    #[must_use]
    pub fn mixed(&self, weights: Vec<Vec<f64>>) -> Self {
        assert!(weights.iter().all(|row| row.len() == self.len()), "a row has a weight for each update");
        let weights = match &self.weights {
            None => weights,
            Some(before) => {
                weights.iter().map(|row| combined(row, before, self.stored.places.len())).collect()
            }
        };
        Self { stored: Arc::clone(&self.stored), weights: Some(Arc::new(weights)) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.weights.as_ref().map_or(self.stored.places.len(), |weights| weights.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Coordinates of each.
    pub fn dimension(&self) -> usize {
        self.stored.round.dimension
    }

    /// A step of the lattice in units of the parameters.
    pub fn step(&self) -> f64 {
        self.stored.round.step
    }

    /// The aggregate of the round before, in steps of the lattice; `None` in the first round, and for a rule that does not begin from it.
    pub fn previous(&self) -> Option<Vec<f64>> {
        let previous = self.stored.round.previous.as_ref()?;
        Some(previous.iter().map(|value| f64::from(*value) / self.step()).collect())
    }

    /// What is drawn in this round follows from it.
    pub fn chance(&self) -> &Seed {
        &self.stored.round.chance
    }

    /// Shows all updates part by part: the first coordinate of a part, and its values, one slice an update.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn visit(&self, visit: &mut dyn FnMut(usize, &[Vec<f64>])) -> io::Result<()> {
        let (stored, dimension) = (self.stored.places.len().max(1), self.dimension());
        let width = (PART_BYTES / (size_of::<f64>() * (stored + self.len()))).clamp(1, dimension.max(1));
        let (mut part, mut mixed) = (vec![Vec::new(); stored], vec![Vec::new(); self.len()]);
        let mut bytes = Vec::new();
        for first in (0..dimension).step_by(width) {
            let range = first..(first + width).min(dimension);
            for (place, values) in self.stored.places.iter().zip(&mut part) {
                self.stored.read(place, range.clone(), &mut bytes, values)?;
            }
            let Some(weights) = &self.weights else {
                visit(first, &part);
                continue;
            };
            for (row, values) in weights.iter().zip(&mut mixed) {
                add_up(row, &part, range.len(), values);
            }
            visit(first, &mixed);
        }
        Ok(())
    }

    /// Their weighted sum, of which each part is added up in the order of the updates.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn weighted_sum(&self, weights: &[f64]) -> io::Result<Vec<f64>> {
        let (mut sum, mut values) = (Vec::with_capacity(self.dimension()), Vec::new());
        self.visit(&mut |_, part| {
            add_up(weights, part, part.first().map_or(0, Vec::len), &mut values);
            sum.extend_from_slice(&values);
        })?;
        Ok(sum)
    }
}

/// The weighted sum of slices, in their order; those of weight 0 are passed over.
fn add_up(weights: &[f64], slices: &[Vec<f64>], len: usize, sum: &mut Vec<f64>) {
    sum.clear();
    sum.resize(len, 0.0);
    for (weight, slice) in weights.iter().zip(slices).filter(|(weight, _)| **weight != 0.0) {
        sum.iter_mut().zip(slice).for_each(|(sum, value)| *sum += weight * value);
    }
}

/// The weights of the stored updates in a weighted sum of weighted sums.
fn combined(row: &[f64], before: &[Vec<f64>], stored: usize) -> Vec<f64> {
    let mut weights = Vec::new();
    add_up(row, before, stored, &mut weights);
    weights
}

impl Stored {
    fn read(
        &self,
        place: &Place,
        range: Range<usize>,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f64>,
    ) -> io::Result<()> {
        values.clear();
        let number = match place {
            Place::Memory(points) => {
                values.extend(points[range].iter().map(|point| f64::from(*point)));
                return Ok(());
            }
            Place::File(number) => number,
        };
        let mut file = self.file.as_ref().ok_or_else(|| io::Error::other("the file is gone"))?;
        let first = number * (self.round.dimension as u64) + range.start as u64;
        file.seek(SeekFrom::Start(first * POINT as u64))?;
        bytes.resize(range.len() * POINT, 0);
        file.read_exact(bytes)?;
        values.extend(bytes.as_chunks::<POINT>().0.iter().map(|point| f64::from(i32::from_le_bytes(*point))));
        Ok(())
    }
}
