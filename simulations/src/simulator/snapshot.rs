//! Where a simulation stands between two rounds: all that another one needs to go on from there and end with the same bits.
//!
//! Vectors are written as hexadecimal digits, so that each value comes back as it was. Noise that later releases take back is among
//! them: a snapshot of such a plan is as secret as a raw sum.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use client::LocalState;
use privacy::chain::Link;
use privacy::correlation::NoiseMemory;
use protocol::wire::RoundSummary;
use protocol::{ClientId, Parameters, Positive, Round, Seed, Standardiser};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use server::best::Score;
use server::{Checkpoint, ClientRecord};

use super::Best;
use crate::Workforce;

/// See the module. It is made while a simulation runs, and read from JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    seed: Seed,
    /// Names and sizes of all clients, in short.
    population: String,
    checkpoint: Stand,
    pub(super) mark: Mark,
    pub(super) clients: Vec<(ClientId, ClientRecord)>,
    pub(super) personal: BTreeMap<usize, LocalState>,
    pub(super) rounds: BTreeMap<u32, RoundSummary>,
    pub(super) ledger: Vec<Link>,
    pub(super) statement: Option<String>,
    best: Option<BestKept>,
}

/// The numbers of a simulation between two rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    pub(super) elapsed: Duration,
    pub(super) turn: u32,
    pub(super) updates: u64,
    /// Records of the ledger.
    pub(super) links: usize,
    /// Vectors of noise that were drawn.
    pub(super) draws: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BestKept {
    round: u32,
    score: Score,
    model: Values,
}

/// A coordinator's checkpoint between two rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stand {
    round: Round,
    failures: u32,
    model: Values,
    optimizer: Vec<Values>,
    standardiser: Option<Standardiser>,
    summary: Option<RoundSummary>,
    norm_max: Option<Positive>,
    releases: u32,
    noise: Vec<Noise>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    workflow: Vec<u8>,
}

/// Why a snapshot cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It belongs to another simulation.
    #[error(
        "the simulation was begun with another {0}; begin a new one, or bring back what it was begun with"
    )]
    Other(&'static str),
}

/// What goes into a snapshot beside checkpoint and mark.
pub(super) struct Rest<'a> {
    pub(super) seed: Seed,
    pub(super) workforce: &'a dyn Workforce,
    /// Who is known; their counts may be of a round that is not over.
    pub(super) known: &'a BTreeMap<ClientId, ClientRecord>,
    /// What was stored of those who have done anything.
    pub(super) records: &'a BTreeMap<ClientId, ClientRecord>,
    pub(super) personal: &'a BTreeMap<usize, LocalState>,
    pub(super) rounds: &'a BTreeMap<u32, RoundSummary>,
    pub(super) ledger: &'a [Link],
    pub(super) statement: Option<&'a String>,
    pub(super) best: Option<&'a Best>,
}

impl Snapshot {
    /// The round after which it was made.
    pub fn round(&self) -> u32 {
        self.checkpoint.round.0
    }

    pub(super) fn new(checkpoint: &Checkpoint, mark: Mark, rest: &Rest<'_>) -> Self {
        let record = |client: &ClientId| rest.records.get(client).cloned().unwrap_or_default();
        let standardiser = checkpoint.standardiser.as_deref().cloned();
        let stand = Stand {
            round: checkpoint.round,
            failures: checkpoint.failures,
            model: Values(checkpoint.model.values().to_vec()),
            optimizer: checkpoint.optimizer.iter().map(|values| Values(values.to_vec())).collect(),
            standardiser,
            summary: checkpoint.summary.clone(),
            norm_max: checkpoint.norm_max,
            releases: checkpoint.releases,
            noise: checkpoint.noise.vectors().iter().map(|noise| Noise(noise.clone())).collect(),
            workflow: checkpoint.workflow.to_vec(),
        };
        Self {
            seed: rest.seed,
            population: describe(rest.workforce),
            checkpoint: stand,
            clients: rest.known.keys().map(|client| (client.clone(), record(client))).collect(),
            personal: rest.personal.clone(),
            rounds: rest.rounds.clone(),
            ledger: rest.ledger.iter().take(mark.links).cloned().collect(),
            statement: rest.statement.cloned(),
            best: rest.best.map(|best| BestKept {
                round: best.round,
                score: best.score,
                model: Values(best.model.values().to_vec()),
            }),
            mark,
        }
    }

    /// The best model so far.
    pub(super) fn best(&self) -> Option<Best> {
        let BestKept { round, score, model } = self.best.clone()?;
        Some(Best { round, score, model: Arc::new(Parameters::new(model.0)) })
    }

    /// Whether a simulation with this seed, these clients and a model of this length is the one it was made of.
    pub(super) fn check(
        &self,
        seed: Seed,
        workforce: &dyn Workforce,
        parameters: usize,
    ) -> Result<(), SnapshotError> {
        let same = [
            ("seed", self.seed == seed),
            ("population: names or numbers of records differ", self.population == describe(workforce)),
            ("model", self.checkpoint.model.0.len() == parameters),
        ];
        same.iter().find(|(_, same)| !same).map_or(Ok(()), |(what, _)| Err(SnapshotError::Other(what)))
    }

    /// The checkpoint and the clients, for a coordinator.
    pub(super) fn begin(&self) -> (Checkpoint, BTreeMap<ClientId, ClientRecord>) {
        let stand = self.checkpoint.clone();
        let checkpoint = Checkpoint {
            round: stand.round,
            evaluated: true,
            end: None,
            failures: stand.failures,
            model: Arc::new(Parameters::new(stand.model.0)),
            optimizer: stand.optimizer.into_iter().map(|values| Arc::new(values.0)).collect(),
            standardiser: stand.standardiser.map(Arc::new),
            summary: stand.summary,
            norm_max: stand.norm_max,
            releases: stand.releases,
            noise: NoiseMemory::new(stand.noise.into_iter().map(|noise| noise.0).collect()),
            workflow: stand.workflow.into(),
        };
        (checkpoint, self.clients.iter().cloned().collect())
    }
}

/// Names and sizes of all clients, in short.
fn describe(workforce: &dyn Workforce) -> String {
    let mut text = String::new();
    for (number, client) in workforce.clients().iter().enumerate() {
        text.push_str(client.as_str());
        text.push(' ');
        text.push_str(&workforce.size(number).to_string());
        text.push('\n');
    }
    privacy::chain::Digest::of(text.as_bytes()).to_string()
}

/// Parameters, eight digits each.
#[derive(Clone)]
struct Values(Vec<f32>);

/// Noise, sixteen digits each.
#[derive(Clone)]
struct Noise(Vec<i64>);

/// Only their number: models and noise are not for logs.
impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values({})", self.0.len())
    }
}

impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Noise({})", self.0.len())
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(8 * self.0.len());
        for value in &self.0 {
            write!(text, "{:08x}", value.to_bits()).map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }
}

impl Serialize for Noise {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(16 * self.0.len());
        for value in &self.0 {
            write!(text, "{value:016x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let values = words::<8>(&text).map(|word| Some(f32::from_bits(u32::try_from(word?).ok()?)));
        let values: Option<Vec<f32>> = values.collect();
        values.map(Self).ok_or_else(|| serde::de::Error::custom("a vector that is not hexadecimal"))
    }
}

impl<'de> Deserialize<'de> for Noise {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let values: Option<Vec<i64>> = words::<16>(&text).map(|word| Some(word?.cast_signed())).collect();
        values.map(Self).ok_or_else(|| serde::de::Error::custom("a vector that is not hexadecimal"))
    }
}

/// Numbers of `DIGITS` digits each.
fn words<const DIGITS: usize>(text: &str) -> impl Iterator<Item = Option<u64>> {
    text.as_bytes().chunks(DIGITS).map(|chunk| {
        let digits = chunk.len() == DIGITS && chunk.iter().all(u8::is_ascii_hexdigit);
        let text = std::str::from_utf8(chunk).ok().filter(|_| digits)?;
        u64::from_str_radix(text, 16).ok()
    })
}
