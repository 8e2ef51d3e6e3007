//! Divides one data set among virtual clients, so that a simulation can be as uneven as real institutions are.
//!
//! Every row goes to exactly one client and every client gets at least one row. The result follows from labels, settings
//! and seed alone. Natural clients are not made here: their ids come with the data, see [`crate::load_with_ids`].
//!
//! Sources: shards, McMahan et al. 2017, section 3; Dirichlet label skew, Hsu, Qi, Brown 2019, drawn a class over clients as
//! in Yurochkin et al. 2019, section 4.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroUsize;
use std::path::Path;

use protocol::{Positive, Seed};
use rand::Rng;
use rand::distr::Open01;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution, Gamma};
use serde::{Deserialize, Serialize};

use crate::data::{IdSource, Labels, SourceError};

/// How rows become clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Partition {
    /// By the ids in the data: a column, or files of ids. Made by [`crate::load_with_ids`].
    Natural(IdSource),
    /// Rows are shuffled and dealt evenly.
    Iid,
    /// Rows are sorted by label and cut into even shards, of which each client is dealt `per_client`: with 2, most clients see
    /// only two classes.
    Shards {
        /// Shards a client.
        per_client: NonZeroUsize,
    },
    /// The rows of each class are divided among clients in proportions drawn from a symmetric Dirichlet distribution.
    /// 0.1 is extreme, 100 nearly even. A client left without rows is given one by whoever has most.
    Dirichlet {
        /// Concentration.
        alpha: Positive,
    },
    /// Clients differ in how many rows they hold, not in which: sizes are uneven, rows are dealt at random.
    QuantitySkew(Sizes),
}

/// How uneven client sizes are. Each client holds one row, and the sizes below divide the rest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sizes {
    /// In proportions drawn from a symmetric Dirichlet distribution of this concentration.
    Alpha(Positive),
    /// By a power law: the k-th largest client's part is proportional to `k^-exponent`.
    Exponent(Positive),
}

/// Why rows cannot be divided as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// Nobody to give rows to.
    #[error("0 clients hold nothing; give at least 1")]
    NoClients,
    /// Some client would hold nothing.
    #[error("{clients} clients cannot share {rows} rows; give at most {rows} clients")]
    TooManyClients {
        /// Asked for.
        clients: usize,
        /// There are.
        rows: usize,
    },
    /// Some shard would hold nothing.
    #[error(
        "{clients} clients with {per_client} shards each need more shards than the {rows} rows; lower either"
    )]
    TooManyShards {
        /// Asked for.
        clients: usize,
        /// Shards a client.
        per_client: usize,
        /// There are.
        rows: usize,
    },
    /// Label skew without classes.
    #[error("`{how}` divides by class, but the labels are real numbers; take `iid` or `quantity_skew`")]
    RealLabels {
        /// The partition.
        how: &'static str,
    },
    /// Ids decide, and are not known here.
    #[error("a natural partition follows the ids in the data; load the data with its ids instead")]
    Natural,
    /// More rows than a client's list can number.
    #[error("{0} rows are more than a partition can number; divide the data set")]
    TooManyRows(usize),
}

impl Partition {
    /// The same partition with the paths of id files resolved, as in [`crate::SourceSpec::resolved`].
    ///
    /// # Errors
    /// [`SourceError`] names the path and the variable.
    pub fn resolved(self, base: &Path, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        match self {
            Self::Natural(ids) => Ok(Self::Natural(ids.resolved(base, lookup)?)),
            Self::Iid | Self::Shards { .. } | Self::Dirichlet { .. } | Self::QuantitySkew(_) => Ok(self),
        }
    }
}

/// The rows of each of `clients` clients, ascending.
///
/// # Errors
/// [`PartitionError`] when clients outnumber rows or shards, or labels are of the wrong kind.
pub fn partition(
    labels: &Labels,
    how: &Partition,
    clients: usize,
    seed: Seed,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    let rows = labels.len();
    let count = u32::try_from(rows).map_err(|_| PartitionError::TooManyRows(rows))?;
    if clients == 0 {
        return Err(PartitionError::NoClients);
    }
    if clients > rows {
        return Err(PartitionError::TooManyClients { clients, rows });
    }
    let mut rng = seed.generator();
    let mut parts = match how {
        Partition::Natural(_) => return Err(PartitionError::Natural),
        Partition::Iid => deal(shuffled(count, &mut rng), &even(rows, clients)),
        Partition::Shards { per_client } => {
            let classes = classes_of(labels, "shards")?;
            deal_shards(classes, clients, per_client.get(), &mut rng)?
        }
        Partition::Dirichlet { alpha } => {
            let classes = classes_of(labels, "dirichlet")?;
            deal_classes(classes, clients, alpha.value(), &mut rng)
        }
        Partition::QuantitySkew(sizes) => {
            let shares = match sizes {
                Sizes::Alpha(alpha) => draw_dirichlet(alpha.value(), clients, &mut rng),
                Sizes::Exponent(exponent) => draw_power_law(exponent.value(), clients, &mut rng),
            };
            let mut sizes = divide(rows - clients, &shares);
            sizes.iter_mut().for_each(|size| *size += 1);
            deal(shuffled(count, &mut rng), &sizes)
        }
    };
    parts.iter_mut().for_each(|part| part.sort_unstable());
    Ok(parts)
}

fn classes_of<'a>(labels: &'a Labels, how: &'static str) -> Result<&'a [u32], PartitionError> {
    match labels {
        Labels::Classes(classes) => Ok(classes),
        Labels::Real(_) => Err(PartitionError::RealLabels { how }),
    }
}

fn deal_shards(
    classes: &[u32],
    clients: usize,
    per_client: usize,
    rng: &mut ChaCha20Rng,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    let rows = classes.len();
    let shards = clients.checked_mul(per_client).filter(|shards| *shards <= rows);
    let shards = shards.ok_or(PartitionError::TooManyShards { clients, per_client, rows })?;
    let mut sorted: Vec<u32> = (0u32..).take(rows).collect();
    sorted.sort_by_key(|row| classes[*row as usize]);
    let mut shards = deal(sorted, &even(rows, shards));
    shards.shuffle(rng);
    Ok(shards.chunks(per_client).map(<[Vec<u32>]>::concat).collect())
}

fn deal_classes(classes: &[u32], clients: usize, alpha: f64, rng: &mut ChaCha20Rng) -> Vec<Vec<u32>> {
    let mut by_class: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, class) in (0u32..).zip(classes) {
        by_class.entry(*class).or_default().push(row);
    }
    let mut parts = vec![Vec::new(); clients];
    for mut rows in by_class.into_values() {
        rows.shuffle(rng);
        let mut rest = rows.as_slice();
        for (part, size) in parts.iter_mut().zip(divide(rows.len(), &draw_dirichlet(alpha, clients, rng))) {
            let (own, others) = rest.split_at(size);
            part.extend_from_slice(own);
            rest = others;
        }
    }
    fill_empty(&mut parts, rng);
    parts
}

/// Gives every empty part one random row of the part that is largest at that moment. Needs as many rows as parts.
fn fill_empty(parts: &mut [Vec<u32>], rng: &mut ChaCha20Rng) {
    let empty: Vec<usize> = (0..parts.len()).filter(|part| parts[*part].is_empty()).collect();
    let sizes = parts.iter().enumerate().filter(|(_, part)| part.len() > 1);
    let mut donors: BinaryHeap<_> = sizes.map(|(index, part)| (part.len(), Reverse(index))).collect();
    for part in empty {
        let (size, Reverse(donor)) = donors.pop().expect("with rows for every part, one of them holds two");
        let given = parts[donor].swap_remove(rng.random_range(0..size));
        parts[part].push(given);
        if size > 2 {
            donors.push((size - 1, Reverse(donor)));
        }
    }
}

fn shuffled(rows: u32, rng: &mut ChaCha20Rng) -> Vec<u32> {
    let mut all: Vec<u32> = (0..rows).collect();
    all.shuffle(rng);
    all
}

/// Cuts rows into parts of the given sizes, which sum to their number.
fn deal(rows: Vec<u32>, sizes: &[usize]) -> Vec<Vec<u32>> {
    let mut rest = rows.as_slice();
    let cut = |size: &usize| {
        let (part, others) = rest.split_at(*size);
        rest = others;
        part.to_vec()
    };
    sizes.iter().map(cut).collect()
}

/// Sizes that differ by at most one.
fn even(rows: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|part| rows / parts + usize::from(part < rows % parts)).collect()
}

/// Whole sizes in proportion to `shares`, which sum to one: each cut falls where the running share says, rounded down.
fn divide(rows: usize, shares: &[f64]) -> Vec<usize> {
    let (mut share, mut before) = (0.0, 0);
    let mut sizes: Vec<usize> = Vec::with_capacity(shares.len());
    for part in shares {
        share += part;
        let cut = ((share * rows as f64) as usize).clamp(before, rows);
        sizes.push(cut - before);
        before = cut;
    }
    // Rounding may leave the last cut short of the end; whoever has the largest share takes what is left.
    let largest = (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b]));
    if let Some(largest) = largest {
        sizes[largest] += rows - before;
    }
    sizes
}

/// Shares from a symmetric Dirichlet distribution. Gamma variates are drawn as logarithms, `Gamma(a) = Gamma(a + 1) *
/// U^(1/a)`, so that a small concentration underflows for the small shares only and never for all.
fn draw_dirichlet(alpha: f64, count: usize, rng: &mut ChaCha20Rng) -> Vec<f64> {
    // Beyond this concentration shares are even to nine digits, and the arithmetic stays finite.
    let alpha = alpha.clamp(1e-9, 1e18);
    let gamma = Gamma::new(alpha + 1.0, 1.0).expect("shape and scale are positive and finite");
    let logarithms = (0..count).map(|_| {
        let uniform: f64 = rng.sample(Open01);
        gamma.sample(rng).ln() + uniform.ln() / alpha
    });
    let logarithms: Vec<f64> = logarithms.collect();
    let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    normalised(logarithms.iter().map(|logarithm| (logarithm - largest).exp()).collect())
}

/// Shares by a power law, in random order.
fn draw_power_law(exponent: f64, count: usize, rng: &mut ChaCha20Rng) -> Vec<f64> {
    let mut shares = normalised((1..=count).map(|rank| (rank as f64).powf(-exponent)).collect());
    shares.shuffle(rng);
    shares
}

fn normalised(mut shares: Vec<f64>) -> Vec<f64> {
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

#[cfg(test)]
mod tests;
