//! What goes into the coordinator and what comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::chain::Link;
use privacy::correlation::NoiseMemory;
use privacy::counted;
use protocol::wire::{ClientSummary, Control, Receipt, RoundSummary, RunState};
use protocol::{
    Answer, Capabilities, ClientId, Decline, Metrics, Parameters, Positive, Rejection, Round, Standardiser,
    Task, TaskId,
};
use serde::{Deserialize, Serialize};

use super::Checked;
use crate::Plan;

/// What happened, as the shell saw it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A client is connected (again). If it owes an answer, the task is sent once more.
    Joined {
        /// Who.
        client: ClientId,
        /// What it says that it knows.
        capabilities: Arc<Capabilities>,
    },
    /// These clients are connected; no round opens before all of them are known.
    JoinedTogether {
        /// Who.
        clients: Vec<ClientId>,
        /// What each of them knows.
        capabilities: Arc<Capabilities>,
    },
    /// A client's connection is gone. If it owes an answer, it may come back for it until the deadline.
    Left(ClientId),
    /// A client has answered; nothing in the answer has been checked.
    Answered {
        /// Who: from the certificate, never from the answer.
        client: ClientId,
        /// What it says.
        answer: Answer,
    },
    /// A client has answered, and a [`super::Checker`] of this coordinator's has checked the answer.
    Checked {
        /// Who: from the certificate, never from the answer.
        client: ClientId,
        /// What came of the checks.
        checked: Checked,
    },
    /// The shell has refused what a client sent, before it was an answer.
    Refused {
        /// Who.
        client: ClientId,
        /// The task it was sent for, if any.
        task: Option<TaskId>,
        /// Why.
        reason: Rejection,
    },
    /// The last [`Action::Reserve`] is on disk.
    Reserved,
    /// The last [`Action::Commit`] is on disk.
    Committed,
    /// The result of [`Action::EvaluateCentrally`]; `None` when it failed.
    EvaluatedCentrally {
        /// The round whose model was evaluated.
        round: Round,
        /// What was measured.
        metrics: Option<Metrics>,
    },
    /// The operator wants this of the run from now on.
    Control(Control),
    /// Time has passed: at or after [`super::Coordinator::deadline`].
    Tick,
}

impl Event {
    /// [`Event::Joined`], of a client that knows what this release does and no method.
    pub fn joined(client: ClientId) -> Self {
        Self::Joined { client, capabilities: Arc::new(Capabilities::of_this_release()) }
    }

    /// [`Event::JoinedTogether`], of such clients.
    pub fn joined_together(clients: Vec<ClientId>) -> Self {
        Self::JoinedTogether { clients, capabilities: Arc::new(Capabilities::of_this_release()) }
    }
}

/// What the shell is to do. Actions are to be carried out in order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Send a task to a connected client.
    Send {
        /// To whom.
        client: ClientId,
        /// What to do.
        task: Task,
    },
    /// The answer to this task is no longer wanted; abort its transfer.
    Cancel {
        /// At whom.
        client: ClientId,
        /// Which task.
        task: TaskId,
    },
    /// Tell a client whether its answer counts.
    Receipt {
        /// Whom.
        client: ClientId,
        /// Its task.
        task: TaskId,
        /// What to tell.
        receipt: Receipt,
    },
    /// Append these records to the population's ledger, synced to disk, then report [`Event::Reserved`]. Nothing
    /// else happens in the run until then.
    Reserve(LedgerReservation),
    /// Store this in one transaction, then report [`Event::Committed`]. Nothing else happens in the run until then.
    Commit(Box<Commit>),
    /// Evaluate on the server's own data, then report [`Event::EvaluatedCentrally`]. Asked only when
    /// [`super::Setup::central`] was set.
    EvaluateCentrally {
        /// The round whose model this is.
        round: Round,
        /// The model, shared part.
        model: Arc<Parameters>,
        /// Federation-wide standardisation.
        standardiser: Option<Arc<Standardiser>>,
    },
    /// For the log and the operator.
    Note(Note),
    /// The run has ended; the last commit said so already. No action follows.
    Ended(RunEnd),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// All rounds are done, and the last of them has made the model.
    Finished,
    /// It cannot go on, or nothing came of its last rounds, for this reason.
    Failed(String),
    /// The privacy budget cannot pay for the next round; this says how far it reached. The last release stands.
    BudgetExhausted(String),
    /// The operator has stopped it. The last release stands.
    Stopped,
}

impl RunEnd {
    /// The state that operators see.
    pub fn state(&self) -> RunState {
        match self {
            Self::Finished => RunState::Finished,
            Self::Failed(_) => RunState::Failed,
            Self::BudgetExhausted(_) => RunState::BudgetExhausted,
            Self::Stopped => RunState::Stopped,
        }
    }

    /// One sentence, for a run that came so far.
    pub fn message(&self, progress: RunProgress) -> String {
        let RunProgress { rounds_done, rounds, releases } = progress;
        match self {
            // A method may end its run before the last round; training never does.
            Self::Finished if rounds_done < rounds => {
                format!("converged after {rounds_done} of {}", counted(rounds, "round"))
            }
            Self::Finished if (1..rounds_done).contains(&releases) => {
                format!("all rounds are done, and {} of them released nothing", rounds_done - releases)
            }
            Self::Finished => "all rounds are done".to_owned(),
            Self::Failed(reason) | Self::BudgetExhausted(reason) => reason.clone(),
            Self::Stopped if releases == 0 => {
                "stopped by the operator before anything was released".to_owned()
            }
            Self::Stopped => "stopped by the operator; the model of the last release stands".to_owned(),
        }
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunProgress {
    /// Rounds that are over.
    pub rounds_done: u32,
    /// Rounds of the plan.
    pub rounds: u32,
    /// Rounds that released a model.
    pub releases: u32,
}

/// Where a run stands: all that a new coordinator needs to go on. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The last round that is over; 0 before the first.
    pub round: Round,
    /// Whether the evaluation that was due after it is over.
    pub evaluated: bool,
    /// Set once the run has ended.
    pub end: Option<RunEnd>,
    /// Rounds without quorum since the last release.
    pub failures: u32,
    /// The model, shared part.
    pub model: Arc<Parameters>,
    /// State of the server optimizer: vectors as long as the model.
    pub optimizer: Vec<Arc<Vec<f32>>>,
    /// Federation-wide standardisation, once known.
    pub standardiser: Option<Arc<Standardiser>>,
    /// The line of the last round, to which an evaluation still due will add its metrics.
    pub summary: Option<RoundSummary>,
    /// The clipping norm of the next round, where it follows the updates.
    pub norm_max: Option<Positive>,
    /// Releases of the run so far.
    pub releases: u32,
    /// The noise that later releases take back, where noise is correlated: to be kept as secret as a raw sum.
    pub noise: NoiseMemory,
    /// What the workflow remembers; empty for training, but for a rule that begins from the aggregate of the round before.
    pub workflow: Arc<[u8]>,
}

impl Checkpoint {
    /// Where a run begins: with this model and nothing done.
    pub fn begin(model: Parameters) -> Self {
        Self {
            round: Round(0),
            evaluated: true,
            end: None,
            failures: 0,
            model: Arc::new(model),
            optimizer: Vec::new(),
            standardiser: None,
            summary: None,
            norm_max: None,
            releases: 0,
            noise: NoiseMemory::default(),
            workflow: Arc::default(),
        }
    }

    /// A checkpoint of an earlier release counted the releases of private runs alone: of the others each round that did not fail was one.
    pub(super) fn with_releases_counted(mut self, plan: &Plan) -> Self {
        if plan.spec.privacy.central.is_none() && self.releases == 0 {
            self.releases = self.round.0.saturating_sub(self.failures);
        }
        self
    }
}

/// One transaction: a round's end, or its evaluation's end.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// Where the run stands now.
    pub checkpoint: Checkpoint,
    /// The round's line, as in the checkpoint. Committed again, with metrics added, when its evaluation is over.
    pub summary: RoundSummary,
    /// Training metrics of every client whose update counts, and test metrics of every client that evaluated.
    pub reports: Vec<(ClientId, TaskId, Metrics)>,
    /// Clients whose record has changed since the last commit: their whole record.
    pub clients: Vec<(ClientId, ClientRecord)>,
    /// What the release cost, or that there was none.
    pub reservation: Option<LedgerReservation>,
    /// What may be said about the privacy of the model, as JSON, where the plan promises any.
    pub statement: Option<String>,
}

/// Records to be appended to a population's ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerReservation {
    /// The population.
    pub population: String,
    /// The records, in order.
    pub links: Vec<Link>,
}

/// What the run remembers of a client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientRecord {
    /// Whether it is connected now; not stored.
    pub connected: bool,
    /// Updates that counted.
    pub accepted: u32,
    /// Releases that its updates are part of.
    pub releases: u32,
    /// The number of the last of them among the run's releases; 0 before the first.
    pub released_last: u32,
    /// Refused answers.
    pub refused: BTreeMap<Rejection, u32>,
    /// Declined tasks.
    pub declined: BTreeMap<Decline, u32>,
    /// Its last test metrics.
    pub test: Option<Metrics>,
}

impl ClientRecord {
    /// The record of `client` for an operator's eyes.
    pub fn summary(&self, client: &ClientId) -> ClientSummary {
        ClientSummary {
            client: client.clone(),
            connected: self.connected,
            accepted: self.accepted,
            refused: self.refused.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            declined: self
                .declined
                .iter()
                .map(|(reason, count)| (reason.name().to_owned(), *count))
                .collect(),
            test: self.test,
        }
    }
}

/// For the log, the progress display and `events.jsonl`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Note {
    /// Too few clients to open a round.
    Waiting {
        /// Connected now.
        connected: usize,
        /// Needed.
        needed: usize,
    },
    /// A task has been sent to a cohort.
    Opened {
        /// The task.
        task: TaskId,
        /// Clients asked.
        cohort: usize,
    },
    /// An answer counts.
    Accepted {
        /// Whose.
        client: ClientId,
        /// For which task.
        task: TaskId,
        /// Metrics it came with, if any.
        metrics: Option<Metrics>,
    },
    /// An answer does not count.
    Refused {
        /// Whose.
        client: ClientId,
        /// For which task, if any.
        task: Option<TaskId>,
        /// Why, in one word.
        reason: Rejection,
        /// Why, with numbers.
        detail: String,
    },
    /// A client will not or cannot do a task.
    Declined {
        /// Who.
        client: ClientId,
        /// Which task.
        task: TaskId,
        /// Why, in one word.
        reason: Decline,
        /// Why, in its own words.
        detail: String,
    },
    /// A task is over.
    Closed {
        /// The task.
        task: TaskId,
        /// Answers that count.
        answered: usize,
        /// Clients that were asked and have not answered.
        missing: usize,
        /// How many of those are not needed, since as many as the round needs have answered.
        surplus: usize,
        /// Whether there were enough.
        quorum: bool,
    },
    /// A step gave nothing, though enough answers had come; or it was not opened, since no connected client knows how to do it.
    Withheld {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// Something that goes on and is not as it should be: a lattice that is too coarse for updates, a round that has moved nothing.
    Warned {
        /// The task.
        task: TaskId,
        /// What it is, and what to change.
        warning: String,
    },
    /// A round is over and on disk, its evaluation with it.
    Round(RoundSummary),
    /// The run has ended.
    Ended(RunEnd),
}
