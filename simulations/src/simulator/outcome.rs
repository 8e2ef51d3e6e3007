//! What a simulation gives, or why it cannot run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use privacy::chain::Link;
use privacy::ledger::LedgerError;
use protocol::wire::RoundSummary;
use protocol::{ClientId, Parameters, SpecError, Standardiser};
use server::{ClientRecord, RunEnd, SetupError};

use super::{Best, Snapshot, SnapshotError};
use crate::AdversariesError;
use crate::workers::Lost;

/// What a simulation gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: RunEnd,
    /// Clients that were corrupted, in the order of their names.
    pub corrupted: Vec<ClientId>,
    /// The last model, shared part.
    pub model: Arc<Parameters>,
    /// Federation-wide standardisation, where the plan has it.
    pub standardiser: Option<Arc<Standardiser>>,
    /// Every round.
    pub rounds: Vec<RoundSummary>,
    /// Every client.
    pub clients: BTreeMap<ClientId, ClientRecord>,
    /// Client updates that were folded.
    pub updates: u64,
    /// Virtual time it took.
    pub elapsed: Duration,
    /// The ledger of the plan's population, which begins with the simulation; empty for a plan that promises nothing.
    pub ledger: Vec<Link>,
    /// What may be said about the model's privacy, as JSON. A simulation has a seed, so it claims nothing.
    pub statement: Option<String>,
    /// The model that the evaluations found best; `None` where nothing was measured that may be told.
    pub best: Option<Best>,
    /// From where to go on, where it was told to stop; `None` before the end of the first round.
    pub snapshot: Option<Snapshot>,
}

/// Why a simulation cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// Plan and model do not go together.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The plan's budget means nothing.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What is said of who is there is impossible.
    #[error(transparent)]
    Availability(#[from] SpecError),
    /// What it was to go on from is another simulation's.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Nobody can be corrupted as asked.
    #[error(transparent)]
    Adversaries(#[from] AdversariesError),
    /// There are not enough clients.
    #[error("cohort.clients_min is {needed}, but only {found} clients exist or are ever connected at once")]
    TooFewClients {
        /// The plan's minimum.
        needed: usize,
        /// Clients in the population.
        found: usize,
    },
    /// The operating system gives no thread.
    #[error("no worker thread could be started: {0}")]
    Threads(#[from] std::io::Error),
    /// A worker died: a bug in a learner.
    #[error("a worker thread ended before its work was done; a learner panicked while it was built")]
    WorkerLost,
}

impl From<Lost> for SimulatorError {
    fn from(_: Lost) -> Self {
        Self::WorkerLost
    }
}
