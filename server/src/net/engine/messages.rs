//! What the rest of the server and the engine tell each other.

use std::sync::Arc;

use bytes::Bytes;
use protocol::wire::{Control, Receipt};
use protocol::{
    Answer, Capabilities, ClientId, Metrics, PayloadSpec, Positive, Rejection, Round, RunId, Task, TaskId,
};
use quinn::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::Plan;
use crate::net::InitialModel;
use crate::net::members::Verdict;
use crate::net::request::Asked;
use crate::net::uploads::Room;

/// What sessions and operators' services tell the engine.
pub(crate) enum Command {
    /// A site has been greeted.
    Joined { client: ClientId, link: Link },
    /// A session is over.
    Left { client: ClientId, session: u64 },
    /// A whole answer has come; `room` is given back once it is folded.
    Answered { client: ClientId, session: u64, answer: Answer, room: Option<Room> },
    /// What came was no answer.
    Refused { client: ClientId, session: u64, task: TaskId, reason: Rejection },
    /// The evaluation on the server's own data is done.
    Evaluated { run: RunId, round: Round, metrics: Option<Metrics> },
    /// A checked plan is to become a run.
    Submit { new: Box<NewRun>, by: String, asked: Asked, reply: oneshot::Sender<Result<RunId, String>> },
    /// An operator wants something of a run.
    Control {
        run: RunId,
        control: Control,
        by: String,
        asked: Asked,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// An operator holds a site back from every run, or ends that.
    Hold { client: ClientId, held: bool, reply: oneshot::Sender<()> },
    /// The search for the noise of a run's plan is over.
    Calibrated { run: RunId, plan_toml: String, found: Result<Positive, String> },
    /// Something for the audit log that no run knows of.
    Record(Record),
}

/// What happens to the membership.
pub(crate) enum Record {
    Invited {
        site: ClientId,
        expires: u64,
        by: String,
    },
    Enrolled {
        site: ClientId,
        key_sha256: String,
    },
    Renewed {
        site: ClientId,
        key_sha256: String,
    },
    InviteReused {
        token_sha256: String,
    },
    EnrolmentsRefused {
        count: u64,
    },
    Revoked {
        site: ClientId,
        before: u64,
        by: String,
    },
    /// A site's ledger does not go on from the one that is remembered, or none was named.
    LedgerRefused {
        site: ClientId,
        address: String,
        reason: String,
    },
    /// A site has charged the loss of the ledger that is remembered, and goes on with another one.
    LedgerReplaced {
        site: ClientId,
        address: String,
    },
    /// Connections of a site end each other.
    Alternating {
        site: ClientId,
        address: String,
        replaced_address: String,
        times: u64,
    },
    Quarantined {
        site: ClientId,
        reason: String,
        by: String,
    },
    QuarantineEnded {
        site: ClientId,
        by: String,
    },
    Asked {
        site: ClientId,
        key_sha256: String,
        address: String,
    },
    Decided {
        site: ClientId,
        key_sha256: String,
        verdict: Verdict,
        by: String,
    },
}

/// A plan that was checked, and where its model begins.
pub(crate) struct NewRun {
    pub(crate) plan: Arc<Plan>,
    pub(crate) plan_toml: String,
    pub(crate) seed: Option<u64>,
    pub(crate) initial: InitialModel,
}

/// What the engine tells a session.
pub(crate) enum Order {
    /// Put this task to the site.
    Task(Box<TaskOrder>),
    /// Its answer is no longer wanted.
    Cancel(TaskId),
    /// Whether its answer counts.
    Receipt(TaskId, Receipt),
}

/// A task and what its answer must fit.
pub(crate) struct TaskOrder {
    pub(crate) task: Task,
    pub(crate) spec_json: Arc<str>,
    pub(crate) expects: Arc<PayloadSpec>,
    /// The model as it travels.
    pub(crate) model: Option<Bytes>,
}

/// The way to a connected site.
pub(crate) struct Link {
    pub(crate) session: u64,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) connection: Connection,
    /// What the site says that it knows.
    pub(crate) capabilities: Arc<Capabilities>,
}

impl Link {
    /// The session, and what its site knows.
    pub(crate) fn greeted(&self) -> (u64, Arc<Capabilities>) {
        (self.session, Arc::clone(&self.capabilities))
    }
}
