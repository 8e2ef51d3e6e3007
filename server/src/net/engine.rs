//! The one thread that owns the coordinator: it takes commands in, lets the coordinator decide, and carries out what it
//! asks, in order.
//!
//! It is a thread of its own because folding updates is work for a processor, not waiting. Runs are worked on one at a
//! time, oldest first. A commit is on disk before anything follows from it. A run that cannot go on is marked as failed;
//! a disk that fails, or a file that is damaged, stops the server and is named.

#![expect(clippy::disallowed_methods, reason = "this is the shell that tells the coordinator the time")]

mod live;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use privacy::ledger::Ledger;
use protocol::wire::{Receipt, Rejection, RunSummary};
use protocol::{Answer, ClientId, Layout, Metrics, Refusal, Round, RunId, Seed, Task, TaskId, Time};
use quinn::Connection;
use rand::TryRngCore;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::audit::{self, AuditLog};
use super::central::Evaluator;
use super::crash;
use super::metrics::Metrics as Meter;
use super::outgoing::Broadcast;
use super::session::{CODE_MISBEHAVED, close};
use super::store::{Store, StoreError, StoredRun, Submission};
use super::uploads::{Room, Spare};
use super::{InitialModel, ModelRoom};
use crate::{Action, Booking, Chance, Checkpoint, Commit, Coordinator, Event, Note, Plan, Purse, Setup};
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
    Submit { new: Box<NewRun>, reply: oneshot::Sender<Result<RunId, String>> },
    /// Something for the audit log that no run knows of.
    Record(Record),
}

/// What happens to the membership.
pub(crate) enum Record {
    Invited { site: ClientId, expires: u64 },
    Enrolled { site: ClientId, key_sha256: String },
    Renewed { site: ClientId, key_sha256: String },
    InviteReused { token_sha256: String },
    Revoked { site: ClientId },
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
    pub(crate) dimension: usize,
    pub(crate) statistics: usize,
    /// The model as it travels.
    pub(crate) model: Option<Bytes>,
}

/// The way to a connected site.
pub(crate) struct Link {
    pub(crate) session: u64,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) connection: Connection,
}

/// The engine's ties to the rest of the server.
pub(crate) struct Nerves {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) live: watch::Sender<Option<Arc<RunSummary>>>,
    pub(crate) notes: broadcast::Sender<(RunId, Note)>,
    pub(crate) stop: CancellationToken,
    pub(crate) spare: Arc<Spare>,
    pub(crate) meter: Arc<Meter>,
}

/// The run that is being worked on.
struct Active {
    run: RunId,
    plan: Arc<Plan>,
    layout: Layout,
    coordinator: Coordinator,
    spec_json: Arc<str>,
    statistics: usize,
    central: Option<Evaluator>,
    live: Live,
    broadcast: Broadcast,
}

/// See the module.
pub(crate) struct Engine {
    store: Arc<Store>,
    room: Arc<dyn ModelRoom>,
    nerves: Nerves,
    handle: Handle,
    clock: Clock,
    links: BTreeMap<ClientId, Link>,
    active: Option<Active>,
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
        nerves: Nerves,
        state: &Path,
    ) -> Result<Self, StoreError> {
        let (links, handle, clock) = (BTreeMap::new(), Handle::current(), Clock::new());
        let audit = AuditLog::open(state, clock.now())?;
        Ok(Self { store, room, nerves, handle, clock, links, active: None, audit })
    }

    /// Works until told to stop. An action that has begun is always finished.
    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let ended = self.work(&mut inbox);
        if let Err(error) = &ended {
            tracing::error!("the server stops: {error}");
        }
        ended
    }

    fn work(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), StoreError> {
        while !self.nerves.stop.is_cancelled() {
            if self.active.is_none() {
                self.begin_next()?;
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
        let active = self.active.as_ref()?;
        let now = self.clock.now();
        let due = active.coordinator.deadline().map(|deadline| deadline - now);
        due.into_iter().chain(active.live.due(now)).min()
    }

    fn tick(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(active) = &mut self.active else { return Ok(()) };
        active.live.publish_if_due(now, &active.coordinator, &self.nerves.live);
        if active.coordinator.deadline().is_some_and(|deadline| now >= deadline) {
            return self.event(Event::Tick);
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), StoreError> {
        match command {
            Command::Joined { client, link } => {
                if let Some(before) = self.links.insert(client.clone(), link) {
                    close(&before.connection, &Rejection::Superseded);
                }
                self.event(Event::Joined(client))
            }
            Command::Left { client, session } if self.is_current(&client, session) => {
                self.links.remove(&client);
                self.event(Event::Left(client))
            }
            Command::Answered { client, session, answer, room } if self.is_current(&client, session) => {
                crash::point("answered");
                let folded = self.event(Event::Answered { client, answer });
                crash::point("folded");
                if let Some(room) = room {
                    room.leave(self.active.as_mut().and_then(|active| active.coordinator.reclaim()));
                }
                folded
            }
            Command::Refused { client, session, task, reason } if self.is_current(&client, session) => {
                self.event(Event::Refused { client, task: Some(task), reason })
            }
            // A session that was replaced has nothing to say.
            Command::Left { .. } | Command::Answered { .. } | Command::Refused { .. } => Ok(()),
            Command::Evaluated { run, round, metrics } => match &self.active {
                Some(active) if active.run == run => self.event(Event::EvaluatedCentrally { round, metrics }),
                _ => Ok(()),
            },
            Command::Submit { new, reply } => {
                let submitted = self.submit(*new);
                // Whoever asked may be gone; the run is stored all the same.
                let _ = reply.send(submitted.map_err(|error| error.to_string()));
                Ok(())
            }
            Command::Record(record) => Ok(self.audit.member(self.clock.now(), &record)?),
        }
    }

    fn is_current(&self, client: &ClientId, session: u64) -> bool {
        self.links.get(client).is_some_and(|link| link.session == session)
    }

    /// Lets the coordinator decide and carries out what it asks.
    fn event(&mut self, event: Event) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(active) = &mut self.active else { return Ok(()) };
        active.coordinator.handle(now, event);
        active.live.touch();
        while let Some(action) = self.active.as_mut().and_then(|active| active.coordinator.poll()) {
            self.carry_out(action)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, action: Action) -> Result<(), StoreError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        match action {
            Action::Send { client, task } => {
                let spec_json = Arc::clone(&active.spec_json);
                let (dimension, statistics) = (active.layout.shared_len(), active.statistics);
                crash::point("sending");
                let model = task.work.model().map(|model| active.broadcast.bytes(model, &task));
                let order = TaskOrder { task, spec_json, dimension, statistics, model };
                self.order(&client, Order::Task(Box::new(order)));
            }
            Action::Cancel { client, task } => self.order(&client, Order::Cancel(task)),
            Action::Receipt { client, task, receipt } => self.order(&client, Order::Receipt(task, receipt)),
            Action::Book(booking) => {
                crash::point("reservation-due");
                self.handle.block_on(self.store.book(&booking))?;
                crash::point("reserved");
                self.event(Event::Booked)?;
            }
            Action::Commit(commit) => {
                crash::point("noised");
                // Storing a model takes memory of its own.
                self.nerves.spare.clear();
                active.broadcast = Broadcast::default();
                self.commit(*commit)?;
                crash::point("committed");
                self.event(Event::Committed)?;
                crash::point("told");
            }
            Action::EvaluateCentrally { round, model, standardiser } => {
                let asked = active.central.as_ref().is_some_and(|one| one.ask(round, model, standardiser));
                if !asked {
                    self.event(Event::EvaluatedCentrally { round, metrics: None })?;
                }
            }
            Action::Note(note) => {
                live::log(active.run, &note);
                self.audit.note(self.clock.now(), active.run, &note)?;
                self.nerves.meter.note(self.clock.now(), active.run, &note);
                // Nobody may be listening.
                let _ = self.nerves.notes.send((active.run, note));
            }
            Action::Ended(end) => {
                live::log_end(active.run, &active.plan.name, &end);
                active.live.end(&end);
                active.live.publish(self.clock.now(), &active.coordinator, &self.nerves.live);
                self.active = None;
            }
        }
        Ok(())
    }

    fn order(&self, client: &ClientId, order: Order) {
        let Some(link) = self.links.get(client) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = link.orders.try_send(order) {
            link.connection.close(CODE_MISBEHAVED, b"the connection does not keep up");
        }
    }

    fn commit(&mut self, commit: Commit) -> Result<(), StoreError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let stored = self.store.commit(active.run, &active.layout, &commit);
        let model_sha256 = self.handle.block_on(stored)?;
        self.nerves.meter.committed(self.clock.now(), active.run, commit.summary.seconds);
        active.live.committed(&commit, model_sha256);
        active.live.publish(self.clock.now(), &active.coordinator, &self.nerves.live);
        Ok(())
    }

    fn submit(&mut self, new: NewRun) -> Result<RunId, StoreError> {
        let NewRun { plan, plan_toml, seed, initial: InitialModel { layout, shared } } = new;
        let run = RunId(u64::from_le_bytes(entropy()));
        let submission = Submission {
            run,
            name: &plan.name,
            rounds: plan.rounds,
            plan_toml: &plan_toml,
            seed,
            layout: &layout,
            checkpoint: &Checkpoint::begin(shared),
        };
        self.handle.block_on(self.store.submit(&submission))?;
        let plan_sha256 = privacy::chain::Digest::of(plan_toml.as_bytes()).to_string();
        let submitted = audit::Event::Submitted { name: &plan.name, plan_sha256, rehearsal: seed.is_some() };
        self.audit.write(self.clock.now(), Some(run), submitted)?;
        tracing::info!("run {run} ({}) is in the queue", plan.name);
        Ok(run)
    }

    /// Begins the oldest run that has not ended, if there is one.
    fn begin_next(&mut self) -> Result<(), StoreError> {
        while self.active.is_none() {
            let unfinished = self.handle.block_on(self.store.unfinished())?;
            let Some(run) = unfinished.into_iter().next() else { return Ok(()) };
            let stored = self.handle.block_on(self.store.load(run))?;
            match self.activate(run, stored) {
                Ok(active) => self.active = Some(active),
                Err(reason) => {
                    tracing::error!("run {run} cannot go on: {reason}");
                    self.handle.block_on(self.store.fail(run, &reason))?;
                    // Whoever watches that run looks again.
                    self.nerves.live.send_modify(|_| {});
                }
            }
        }
        let connected: Vec<ClientId> = self.links.keys().cloned().collect();
        connected.into_iter().try_for_each(|client| self.event(Event::Joined(client)))
    }

    fn activate(&self, run: RunId, stored: StoredRun) -> Result<Active, String> {
        let StoredRun { plan_toml, seed, layout, checkpoint, clients } = stored;
        let plan = Arc::new(Plan::parse(&plan_toml).map_err(|error| error.to_string())?);
        let learner = if plan.evaluation.central { self.room.central(&plan.spec) } else { None };
        if plan.evaluation.central && learner.is_none() {
            tracing::info!("run {run} would be evaluated here too, but this server has no data for it");
        }
        let central = learner.map(|learner| {
            Evaluator::start(run, Arc::clone(&plan.spec), learner, self.nerves.commands.clone())
        });
        let purse = self.purse(&plan)?;
        let live = Live::new(run, &plan, seed.is_some(), &checkpoint, self.stored_history(run));
        let setup = Setup {
            run,
            plan: Arc::clone(&plan),
            entropy: seed_of(seed),
            rehearsal: seed.is_some(),
            central: central.is_some(),
            checkpoint,
            clients,
            tensors: layout.shared_lengths(),
            purse,
        };
        let coordinator = Coordinator::new(setup).map_err(|error| error.to_string())?;
        tracing::info!("run {run} ({}) begins or goes on", plan.name);
        let (spec_json, statistics) = (plan.spec.to_json().into(), plan.spec.statistics().len());
        Ok(Active {
            run,
            plan,
            layout,
            coordinator,
            spec_json,
            statistics,
            central,
            live,
            broadcast: Broadcast::default(),
        })
    }

    /// What a private run pays and noises with: the ledger of its population, founded with the first run that names it.
    fn purse(&self, plan: &Plan) -> Result<Option<Purse>, String> {
        let Some(central) = &plan.spec.privacy.central else { return Ok(None) };
        let population = central.population.clone();
        let links =
            self.handle.block_on(self.store.ledger(&population)).map_err(|error| error.to_string())?;
        let ledger = if links.is_empty() {
            let (ledger, first) = Ledger::found(central.terms()).map_err(|error| error.to_string())?;
            let booking = Booking { population, links: vec![first] };
            self.handle.block_on(self.store.book(&booking)).map_err(|error| error.to_string())?;
            ledger
        } else {
            Ledger::replay(&links).map_err(|error| error.to_string())?
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Some(Purse { ledger, chance: Chance::system(), threads }))
    }

    /// What watchers have seen of the run before; a summary for eyes only, so an unreadable one is no reason to stop.
    fn stored_history(&self, run: RunId) -> Option<RunSummary> {
        self.handle.block_on(self.store.summary(Some(run))).ok().flatten()
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
