//! What the rest of the server and the engine tell each other.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use protocol::wire::{Control, Receipt};
use protocol::{
    Answer, Capabilities, ClientId, Layout, Learner, Metrics, Parameters, PayloadSpec, Positive, Rejection,
    Round, RunId, Seed, Spec, Task, TaskId,
};
use quinn::Connection;
use tokio::sync::{mpsc, oneshot};

use super::request::Asked;
use super::uploads::Room;
use crate::net::membership::messages::{Listener, ToEngine};
use crate::net::store::messages::Record;
use crate::{Methods, Plan};

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

impl Listener for mpsc::Sender<Command> {
    fn hear(&self, told: ToEngine) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        let command = match told {
            ToEngine::Record(record) => Command::Record(record),
            ToEngine::Hold { client, held, reply } => Command::Hold { client, held, reply },
        };
        Box::pin(async move { self.send(command).await.is_ok() })
    }
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

/// What the embedding program knows of models.
pub trait ModelRoom: Send + Sync {
    /// The layout of a plan's model and the first values of its shared tensors. `seed` is the run's seed: derive
    /// [`protocol::Purpose::Initialise`] from it.
    ///
    /// # Errors
    /// A sentence for the operator when the plan's model cannot be built.
    fn begin(&self, spec: &Spec, seed: Seed) -> Result<InitialModel, String>;

    /// A learner over the server's own test data; `None` when it has none for this plan.
    fn central(&self, spec: &Spec) -> Option<Box<dyn Learner>>;

    /// The methods that plans may name.
    fn methods(&self) -> Methods {
        Methods::default()
    }
}

/// Where a model begins.
#[derive(Debug)]
pub struct InitialModel {
    /// The tensors.
    pub layout: Layout,
    /// First values of the shared ones.
    pub shared: Parameters,
}
