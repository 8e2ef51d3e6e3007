//! The one thread that owns the coordinator: it takes commands in, lets the coordinator decide, and carries out what it
//! asks, in order.
//!
//! It is a thread of its own because folding updates is work for a processor, not waiting. Several runs are worked on side by
//! side, each with a coordinator of its own; the others wait, oldest first. A commit is on disk before anything follows from it.
//! A run that cannot go on is marked as failed; a disk that fails, or a file that is damaged, stops the server and is named.

#![expect(clippy::disallowed_methods, reason = "this is the shell that tells the coordinator the time")]

mod calibration;
mod conduct;
mod live;
mod quarantine;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use privacy::chain::segments::SegmentBytes;
use protocol::wire::{Control, Receipt, Rejection, RunSummary};
use protocol::{
    Answer, Capabilities, ClientId, Layout, Metrics, PayloadSpec, Positive, Refusal, Round, RunId, Seed,
    Task, TaskId, Time,
};
use quinn::Connection;
use rand::TryRngCore;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::audit::AuditLog;
use super::central::Evaluator;
use super::crash;
use super::members::Verdict;
use super::metrics::Metrics as Meter;
use super::outage::Patience;
use super::outgoing::Broadcast;
use super::request::{Asked, StorageFault};
use super::session::{CODE_MISBEHAVED, close};
use super::store::{Store, StoreError};
use super::uploads::{Room, Spare};
use super::{InitialModel, ModelRoom};
use crate::{Action, Commit, Coordinator, Event, Note, Plan};
use live::Live;

/// What sessions and desks tell the engine.
pub(crate) enum Command {
    /// A site has been greeted.
    Joined { client: ClientId, link: Link },
    /// A session is over.
    Left { client: ClientId, session: u64 },
    /// A whole answer has come; `room` is given back once it is folded.
    Answered { client: ClientId, session: u64, answer: Answer, room: Option<Room> },
    /// What came was no answer.
    Refused { client: ClientId, session: u64, task: TaskId, reason: Refusal },
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
    /// A site has booked the loss of the ledger that is remembered, and goes on with another one.
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

/// The engine's ties to the rest of the server.
pub(crate) struct Nerves {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) live: watch::Sender<LiveRuns>,
    pub(crate) notes: broadcast::Sender<(RunId, Note)>,
    pub(crate) stop: CancellationToken,
    pub(crate) spare: Arc<Spare>,
    pub(crate) meter: Arc<Meter>,
    /// Sites that are in quarantine.
    pub(crate) held: BTreeSet<ClientId>,
    /// Where it shows what it waits for.
    pub(crate) fault: StorageFault,
}

/// The runs that are being worked on, and those that ended since the last one began, as watchers see them.
pub type LiveRuns = BTreeMap<RunId, Arc<RunSummary>>;

/// A run that is being worked on.
struct Active {
    plan: Arc<Plan>,
    layout: Layout,
    coordinator: Coordinator,
    spec_json: Arc<str>,
    central: Option<Evaluator>,
    live: Live,
    broadcast: Broadcast,
}

/// See the module.
pub(crate) struct Engine {
    store: Arc<Store>,
    storage: Patience,
    room: Arc<dyn ModelRoom>,
    nerves: Nerves,
    handle: Handle,
    clock: Clock,
    links: BTreeMap<ClientId, Link>,
    held: BTreeSet<ClientId>,
    active: BTreeMap<RunId, Active>,
    /// The run for whose plan noise is being searched, on a thread of its own.
    calibrating: Option<RunId>,
    /// How many runs may be worked on side by side.
    runs_max: usize,
    /// Whether there may be a run in the queue that could begin.
    look: bool,
    audit: AuditLog,
}

/// Microseconds since the Unix epoch that never go backwards.
struct Clock {
    epoch: Time,
    started: Instant,
}

impl Clock {
    fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { epoch: Time::ZERO + epoch, started: Instant::now() }
    }

    fn now(&self) -> Time {
        self.epoch + self.started.elapsed()
    }
}

impl Engine {
    /// An engine on the current runtime.
    pub(crate) fn new(
        store: Arc<Store>,
        room: Arc<dyn ModelRoom>,
        mut nerves: Nerves,
        (audit, segment): (&Path, SegmentBytes),
        runs_max: usize,
    ) -> Result<Self, StoreError> {
        let (links, active, handle, clock) =
            (BTreeMap::new(), BTreeMap::new(), Handle::current(), Clock::new());
        let mut audit = AuditLog::open(audit, segment, store.cross_check(), clock.now())?;
        audit.recover(clock.now(), &store.take_unlogged())?;
        let held = std::mem::take(&mut nerves.held);
        let storage = Patience::new(nerves.stop.clone(), store.lease_life().is_none(), nerves.fault.clone());
        Ok(Self {
            store,
            storage,
            room,
            nerves,
            handle,
            clock,
            links,
            held,
            active,
            calibrating: None,
            runs_max,
            look: true,
            audit,
        })
    }

    /// Works until told to stop. An action that has begun is always finished.
    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let ended = self.work(&mut inbox);
        match &ended {
            Err(error @ StoreError::Stopping) => tracing::warn!("{error}"),
            Err(error) => tracing::error!("the server stops: {error}"),
            Ok(()) => {}
        }
        ended
    }

    fn work(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), StoreError> {
        self.declare_earlier_runs()?;
        while !self.nerves.stop.is_cancelled() {
            if std::mem::take(&mut self.look) {
                self.begin_queued()?;
            }
            let wait = self.patience();
            let stop = self.nerves.stop.clone();
            let waiting = stop.run_until_cancelled(async {
                match wait {
                    Some(wait) => tokio::time::timeout(wait, inbox.recv()).await,
                    None => Ok(inbox.recv().await),
                }
            });
            match self.handle.block_on(waiting) {
                None | Some(Ok(None)) => break,
                Some(Ok(Some(command))) => self.obey(command)?,
                Some(Err(_)) => {}
            }
            self.tick()?;
        }
        Ok(())
    }

    /// How long nothing is to be done unless something happens.
    fn patience(&self) -> Option<Duration> {
        let now = self.clock.now();
        let due = |active: &Active| {
            let deadline = active.coordinator.deadline().map(|deadline| deadline - now);
            deadline.into_iter().chain(active.live.due(now)).min()
        };
        self.active.values().filter_map(due).min()
    }

    fn tick(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut due = Vec::new();
        for (run, active) in &mut self.active {
            active.live.publish_if_due(now, &active.coordinator, &self.nerves.live);
            if active.coordinator.deadline().is_some_and(|deadline| now >= deadline) {
                due.push(*run);
            }
        }
        due.into_iter().try_for_each(|run| self.event(run, Event::Tick))
    }

    fn obey(&mut self, command: Command) -> Result<(), StoreError> {
        match command {
            Command::Joined { client, link } => {
                if let Some(before) = self.links.insert(client.clone(), link) {
                    close(&before.connection, &Rejection::Superseded);
                }
                if self.held.contains(&client) {
                    return Ok(());
                }
                self.join_everywhere(&client)
            }
            Command::Left { client, session } if self.is_current(&client, session) => {
                self.links.remove(&client);
                self.event_everywhere(|| Event::Left(client.clone()))
            }
            Command::Answered { client, session, answer, room } if self.is_current(&client, session) => {
                self.answered(client, answer, room)
            }
            Command::Refused { client, session, task, reason } if self.is_current(&client, session) => {
                if !self.active.contains_key(&task.run) {
                    return Ok(());
                }
                self.event(task.run, Event::Refused { client, task: Some(task), reason })
            }
            // A session that was replaced has nothing to say.
            Command::Left { .. } | Command::Answered { .. } | Command::Refused { .. } => Ok(()),
            Command::Evaluated { run, round, metrics } => {
                self.event(run, Event::EvaluatedCentrally { round, metrics })
            }
            Command::Submit { asked, .. } if !asked.begin() => Ok(()),
            Command::Control { asked, .. } if !asked.begin() => Ok(()),
            Command::Submit { new, by, reply, .. } => {
                let submitted = self.submit(*new, &by);
                // Whoever asked may be gone since it was begun; the run is stored all the same.
                let _ = reply.send(submitted.map_err(|error| error.to_string()));
                Ok(())
            }
            Command::Control { run, control, by, reply, .. } => {
                let done = self.control(run, control, &by)?;
                // Whoever asked may be gone since it was begun; it is done all the same.
                let _ = reply.send(done);
                Ok(())
            }
            Command::Hold { client, held, reply } => {
                self.hold(client, held)?;
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(());
                Ok(())
            }
            Command::Calibrated { run, plan_toml, found } => self.calibrated(run, &plan_toml, found),
            Command::Record(record) => {
                let (now, audit) = (self.clock.now(), &mut self.audit);
                self.storage.wait_for(async || Ok(audit.member(now, &record)?))
            }
        }
    }

    fn is_current(&self, client: &ClientId, session: u64) -> bool {
        self.links.get(client).is_some_and(|link| link.session == session)
    }

    /// Folds an answer; one of a run that is over is refused.
    fn answered(&mut self, client: ClientId, answer: Answer, room: Option<Room>) -> Result<(), StoreError> {
        let task = answer.task;
        crash::point("answered");
        if self.held.contains(&client) {
            // What it owed was refused and counted when its quarantine began.
            self.order(&client, Order::Receipt(task, Receipt::Refused(Refusal::Quarantined)));
            return Ok(());
        }
        if !self.active.contains_key(&task.run) {
            self.order(&client, Order::Receipt(task, Receipt::Refused(Refusal::Stale)));
            return Ok(());
        }
        self.event(task.run, Event::Answered { client, answer })?;
        crash::point("folded");
        if let Some(room) = room {
            room.leave(self.active.get_mut(&task.run).and_then(|active| active.coordinator.reclaim()));
        }
        Ok(())
    }

    /// Tells every run that a site is connected, and what it knows.
    fn join_everywhere(&mut self, client: &ClientId) -> Result<(), StoreError> {
        let Some(link) = self.links.get(client) else { return Ok(()) };
        let capabilities = Arc::clone(&link.capabilities);
        let joined = || Event::Joined { client: client.clone(), capabilities: Arc::clone(&capabilities) };
        self.event_everywhere(joined)
    }

    /// Tells every run.
    fn event_everywhere(&mut self, event: impl Fn() -> Event) -> Result<(), StoreError> {
        let runs: Vec<RunId> = self.active.keys().copied().collect();
        runs.into_iter().try_for_each(|run| self.event(run, event()))
    }

    /// Lets a run's coordinator decide and carries out what it asks.
    fn event(&mut self, run: RunId, event: Event) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(active) = self.active.get_mut(&run) else { return Ok(()) };
        active.coordinator.handle(now, event);
        active.live.touch();
        while let Some(action) = self.active.get_mut(&run).and_then(|active| active.coordinator.poll()) {
            self.carry_out(run, action)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, run: RunId, action: Action) -> Result<(), StoreError> {
        let Some(active) = self.active.get_mut(&run) else { return Ok(()) };
        match action {
            Action::Send { client, task } => {
                let spec_json = Arc::clone(&active.spec_json);
                let expects = active.coordinator.expects();
                crash::point("sending");
                let model = task.work.model().map(|model| active.broadcast.bytes(model, &task));
                let order = TaskOrder { task, spec_json, expects, model };
                self.order(&client, Order::Task(Box::new(order)));
            }
            Action::Cancel { client, task } => self.order(&client, Order::Cancel(task)),
            Action::Receipt { client, task, receipt } => self.order(&client, Order::Receipt(task, receipt)),
            Action::Book(booking) => {
                crash::point("reservation-due");
                self.storage.wait_for(async || self.store.book(&booking).await)?;
                crash::point("reserved");
                self.event(run, Event::Booked)?;
            }
            Action::Commit(commit) => {
                crash::point("noised");
                // Storing a model takes memory of its own.
                self.nerves.spare.clear();
                active.broadcast = Broadcast::default();
                self.commit(run, *commit)?;
                crash::point("committed");
                self.event(run, Event::Committed)?;
                crash::point("told");
            }
            Action::EvaluateCentrally { round, model, standardiser } => {
                let asked = active.central.as_ref().is_some_and(|one| one.ask(round, model, standardiser));
                if !asked {
                    self.event(run, Event::EvaluatedCentrally { round, metrics: None })?;
                }
            }
            Action::Note(note) => {
                live::log(run, &note);
                self.note(run, note)?;
            }
            Action::Ended(end) => {
                live::log_end(run, &active.plan.name, &end);
                active.live.end(&end);
                active.live.publish(self.clock.now(), &active.coordinator, &self.nerves.live);
                self.active.remove(&run);
                self.look = true;
            }
        }
        Ok(())
    }

    /// Writes a note into the audit log, and tells it to whoever listens.
    fn note(&mut self, run: RunId, note: Note) -> Result<(), StoreError> {
        let (now, audit) = (self.clock.now(), &mut self.audit);
        self.storage.wait_for(async || Ok(audit.note(now, run, &note)?))?;
        self.nerves.meter.note(now, run, &note);
        // Nobody may be listening.
        let _ = self.nerves.notes.send((run, note));
        Ok(())
    }

    fn order(&self, client: &ClientId, order: Order) {
        let Some(link) = self.links.get(client) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = link.orders.try_send(order) {
            link.connection.close(CODE_MISBEHAVED, b"the connection does not keep up");
        }
    }

    fn commit(&mut self, run: RunId, commit: Commit) -> Result<(), StoreError> {
        let Some(active) = self.active.get_mut(&run) else { return Ok(()) };
        let (now, store, storage) = (self.clock.now(), Arc::clone(&self.store), &self.storage);
        let mut prepared = storage.wait_for(async || store.prepare(run, &active.layout, &commit).await)?;
        let is_new = storage.wait_for(async || store.write(&mut prepared).await)?;
        let model_sha256 = store.written(prepared);
        if is_new {
            // On disk in the log before anybody can read it: what was released is known to two books, whatever becomes of one.
            let (audit, round) = (&mut self.audit, commit.summary.round);
            storage.wait_for(async || Ok(audit.released(now, run, round, &model_sha256)?))?;
            crash::point("release-logged");
        }
        storage.wait_for(async || store.finish(run).await)?;
        self.nerves.meter.committed(self.clock.now(), run, commit.summary.seconds);
        active.live.committed(&commit, model_sha256);
        active.live.publish(self.clock.now(), &active.coordinator, &self.nerves.live);
        Ok(())
    }
}

/// The seed of a rehearsal, or fresh entropy.
pub(crate) fn seed_of(number: Option<u64>) -> Seed {
    number.map_or_else(|| Seed::from_entropy(entropy()), Seed::from_number)
}

/// Bytes from the operating system.
fn entropy<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .expect("an operating system without entropy runs no TLS either");
    bytes
}
