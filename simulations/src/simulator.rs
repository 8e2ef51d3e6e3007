//! The loop that runs a simulation: a coordinator, a virtual clock, and workers on all cores.
//!
//! Answers are handed to the coordinator in the order of their virtual arrival, whenever their training really ended, so
//! that threads cannot change anything. At most so many answers wait in memory, however large the cohort.

mod answers;
mod best;
mod central;
mod ledger;
mod outcome;
mod roster;
mod snapshot;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::{LocalState, TaskError};
use privacy::chain::Link;
use protocol::wire::{Control, RoundSummary};
use protocol::{ClientId, Layout, Parameters, RunId, Seed, Spec, Stop, Task, TaskId, Time};
use server::{
    Action, Checker, Checkpoint, ClientRecord, Commit, Coordinator, DpContext, Event, NoiseRng, Note, Plan,
    RunEnd, ServerOptimizer, Setup,
};

use crate::adversaries::{Adversaries, AdversariesConfig};
use crate::availability::{AvailabilityConfig, AvailabilityModel, ClientFate};
use crate::workers::{JobQueue, WorkerPool, Workforce};
use answers::Collusion;
pub use best::Best;
use central::Central;
pub(crate) use central::unprotected;
use ledger::ledger_of;
pub use outcome::{Outcome, SimulatorError};
use roster::Roster;
use snapshot::{Mark, Rest};
pub use snapshot::{Snapshot, SnapshotError};
use watch::Notes;
pub use watch::{Observation, Stored, Watch};

/// Jobs that may be under way, or done and waiting for their virtual time: so many a thread...
const JOBS_PER_THREAD: usize = 4;
/// ... or more, up to so many, ...
const JOBS_MAX: usize = 1024;
/// ... as long as their updates take no more memory than this.
const WAITING_BYTES: usize = 32 << 20;
/// Virtual time between two looks at who is there, when too few are.
const IDLE_TICK: Duration = Duration::from_secs(60);
/// Looks in a row without enough clients, after which the simulation gives up.
const IDLE_TICKS_MAX: u32 = 1000;

/// A simulation about to run.
#[derive(Debug)]
pub struct Simulator {
    plan: Arc<Plan>,
    initial: Parameters,
    tensors: Vec<usize>,
    tensor_names: Vec<String>,
    seed: Seed,
    availability: AvailabilityModel,
    threads: usize,
    chance: NoiseRng,
    stop: Stop,
    begun: Option<Box<Snapshot>>,
    adversaries: Option<AdversariesConfig>,
}

impl Simulator {
    /// A simulation that trains `initial` (shared part) by `plan`; everything random follows from `seed`.
    ///
    /// # Errors
    /// [`SimulatorError::Availability`] when nobody could be there.
    pub fn new(
        plan: Plan,
        initial: Parameters,
        seed: u64,
        availability: AvailabilityConfig,
    ) -> Result<Self, SimulatorError> {
        let seed = Seed::from_number(seed);
        let availability = AvailabilityModel::new(availability, seed)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (plan, tensors, chance) = (Arc::new(plan), Vec::new(), NoiseRng::system());
        let (stop, begun, adversaries) = (Stop::default(), None, None);
        let tensor_names = Vec::new();
        Ok(Self {
            plan,
            initial,
            tensors,
            tensor_names,
            seed,
            availability,
            threads,
            chance,
            stop,
            begun,
            adversaries,
        })
    }

    /// The same simulation of a model with this layout: a plan that clips tensor by tensor needs it, and messages name tensors by it.
    #[must_use]
    pub fn with_layout(mut self, layout: &Layout) -> Self {
        (self.tensors, self.tensor_names) = (layout.shared_lengths(), layout.shared_names());
        self
    }

    /// The same simulation on this many threads, at least one. The result does not depend on it.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The same simulation with noise from `chance`. By default it comes from the operating system: of a plan that promises
    /// privacy, no two simulations end alike.
    #[must_use]
    pub fn with_chance(mut self, chance: NoiseRng) -> Self {
        self.chance = chance;
        self
    }

    /// The same simulation ending early once `stop` is set: the open round is dropped, and the outcome is that of the rounds before.
    #[must_use]
    pub fn with_stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// The same simulation going on from where another one stood that began with the same plan, model, seed, availability and clients. It ends
    /// with the same bits as one that was never interrupted; where noise comes from the operating system no two do.
    #[must_use]
    pub fn with_snapshot(mut self, snapshot: Snapshot) -> Self {
        self.begun = Some(Box::new(snapshot));
        self
    }

    /// The same simulation with corrupted clients, if there are to be any: those that [`Adversaries::draw`] draws of the workforce by the
    /// simulation's seed. What they do to records, a [`crate::Population`] of the same settings has done.
    #[must_use]
    pub fn with_adversaries(mut self, adversaries: Option<AdversariesConfig>) -> Self {
        self.adversaries = adversaries;
        self
    }

    /// Runs to the end of the plan.
    ///
    /// # Errors
    /// [`SimulatorError`]; a run that fails by its own rules is no error but [`RunEnd::Failed`].
    pub fn run(
        self,
        workforce: &dyn Workforce,
        observe: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Outcome, SimulatorError> {
        let optimizer = self.plan.strategy.optimizer();
        self.run_with(optimizer, workforce, observe)
    }

    /// Runs to the end of the plan with a server optimizer of your own.
    ///
    /// # Errors
    /// As [`Simulator::run`].
    pub fn run_with(
        self,
        optimizer: Box<dyn ServerOptimizer>,
        workforce: &dyn Workforce,
        observe: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Outcome, SimulatorError> {
        self.run_watched(optimizer, workforce, &mut Notes(observe))
    }

    fn check_clients(&self, workforce: &dyn Workforce) -> Result<(), SimulatorError> {
        let (needed, found) = (self.plan.cohort.clients_min, workforce.clients().len());
        if found < needed { Err(SimulatorError::TooFewClients { needed, found }) } else { Ok(()) }
    }

    /// Who of the clients is corrupted, where there are enough of them.
    fn collusion(&self, workforce: &dyn Workforce) -> Result<Collusion, SimulatorError> {
        self.check_clients(workforce)?;
        let drawn =
            |config: &AdversariesConfig| Adversaries::draw(config, self.seed, workforce.clients().iter());
        let adversaries = self.adversaries.as_ref().map(drawn).transpose()?.map(Arc::new);
        let tensors = if self.tensors.is_empty() { vec![self.initial.len()] } else { self.tensors.clone() };
        Ok(Collusion::new(adversaries, tensors.into()))
    }

    /// Runs to the end of the plan, or until it is told to stop, and shows more of itself.
    ///
    /// # Errors
    /// As [`Simulator::run`].
    pub fn run_watched(
        self,
        optimizer: Box<dyn ServerOptimizer>,
        workforce: &dyn Workforce,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, SimulatorError> {
        let collusion = self.collusion(workforce)?;
        let (central, bytes) = (Central::of(workforce), 4 * self.initial.len().max(1));
        let begun = self.begun;
        begun.as_ref().map_or(Ok(()), |begun| begun.check(self.seed, workforce, self.initial.len()))?;
        let mut links = begun.as_ref().map_or_else(Vec::new, |begun| begun.ledger.clone());
        let (chance, draws) = self.chance.counted(begun.as_ref().map_or(0, |begun| begun.mark.draws));
        let promised = self.plan.spec.privacy.central.as_ref();
        let ledger = promised.map(|promised| ledger_of(promised, &mut links)).transpose()?;
        let fresh = || (Checkpoint::begin(self.initial), BTreeMap::new());
        let (checkpoint, clients) = begun.as_ref().map_or_else(fresh, |begun| begun.begin());
        let setup = Setup {
            run: RunId(0),
            plan: Arc::clone(&self.plan),
            entropy: self.seed,
            is_seeded: true,
            central: !matches!(central, Central::None),
            checkpoint,
            clients,
            tensors: self.tensors,
            dp_context: ledger.map(|ledger| DpContext { ledger, chance, threads: self.threads }),
        };
        let coordinator = Coordinator::with_optimizer(setup, optimizer)?.with_tensor_names(self.tensor_names);
        let queue = JobQueue::default();
        std::thread::scope(|scope| {
            let pool = WorkerPool::start(scope, self.threads, &queue, workforce, &self.stop)?;
            let mut stage = Stage {
                coordinator,
                availability: self.availability,
                roster: Roster::new(workforce),
                central,
                central_spec: unprotected(&self.plan.spec),
                pool,
                jobs_max: (WAITING_BYTES / bytes).min(JOBS_MAX).max(self.threads * JOBS_PER_THREAD),
                now: Time::ZERO,
                turn: 0,
                pending: BTreeMap::new(),
                owed: BTreeMap::new(),
                tickets: 0,
                unposted: BTreeSet::new(),
                under_way: BTreeMap::new(),
                checker: None,
                personal: BTreeMap::new(),
                plan: self.plan,
                rounds: BTreeMap::new(),
                updates: 0,
                end: None,
                ledger: links,
                statement: None,
                error: None,
                seed: self.seed,
                draws,
                stop: self.stop,
                is_stopping: false,
                records: BTreeMap::new(),
                mark: None,
                best: None,
                collusion,
            };
            if let Some(begun) = begun {
                stage.go_on(*begun);
            }
            stage.play(watch)
        })
    }
}

/// Something that will happen at one client.
struct Pending {
    client: ClientId,
    number: usize,
    what: What,
}

enum What {
    Answer(Task),
    Leave,
}

/// When, and in which order among things of one moment.
type Moment = (Time, u64);

struct Stage<'a> {
    coordinator: Coordinator,
    plan: Arc<Plan>,
    availability: AvailabilityModel,
    roster: Roster<'a>,
    central: Central,
    /// The plan's spec without its promises: what the server measures on records of its own is not a site's metric.
    central_spec: Arc<Spec>,
    pool: WorkerPool<'a>,
    jobs_max: usize,
    now: Time,
    turn: u32,
    pending: BTreeMap<Moment, Pending>,
    /// The one thing that is pending at a client.
    owed: BTreeMap<usize, Moment>,
    tickets: u64,
    /// Answers that the workers were not asked for yet.
    unposted: BTreeSet<Moment>,
    /// Jobs given to the workers, by the moment they are for, and their size.
    under_way: BTreeMap<Moment, usize>,
    /// The checks of the open task.
    checker: Option<(TaskId, Arc<Checker>)>,
    personal: BTreeMap<usize, LocalState>,
    rounds: BTreeMap<u32, RoundSummary>,
    updates: u64,
    end: Option<RunEnd>,
    ledger: Vec<Link>,
    statement: Option<String>,
    /// What went wrong at the client whose answer was handed over last.
    error: Option<(ClientId, TaskError)>,
    seed: Seed,
    /// Vectors of noise that were drawn.
    draws: Arc<AtomicU64>,
    stop: Stop,
    /// Whether the coordinator was told to stop.
    is_stopping: bool,
    /// What was stored of every client.
    records: BTreeMap<ClientId, ClientRecord>,
    /// Where everything stood between the last two rounds.
    mark: Option<Mark>,
    best: Option<Best>,
    collusion: Collusion,
}

impl Stage<'_> {
    /// Takes over where an earlier simulation stood; the coordinator has its part already.
    fn go_on(&mut self, begun: Snapshot) {
        self.best = begun.best();
        let Snapshot { mark, clients, personal, rounds, statement, .. } = begun;
        (self.now, self.turn, self.updates) = (Time::ZERO + mark.elapsed, mark.turn, mark.updates);
        (self.personal, self.rounds, self.statement) = (personal, rounds, statement);
        self.records = clients.into_iter().collect();
        self.mark = Some(mark);
    }

    fn play(mut self, watch: &mut dyn Watch) -> Result<Outcome, SimulatorError> {
        let mut idle_ticks = 0;
        self.look_who_is_there();
        loop {
            if self.is_told_to_stop() && !self.is_stopping {
                self.is_stopping = true;
                self.coordinator.handle(self.now, Event::Control(Control::StopNow));
            }
            self.obey(watch)?;
            if let Some(end) = self.end.take() {
                return Ok(self.outcome(end));
            }
            self.put_to_work();
            let next = self.pending.first_key_value().map(|(moment, _)| *moment);
            match (next, self.coordinator.deadline()) {
                (Some((time, _)), deadline) if deadline.is_none_or(|deadline| time <= deadline) => {
                    idle_ticks = 0;
                    self.happen()?;
                }
                (_, Some(deadline)) => {
                    self.now = self.now.max(deadline);
                    self.coordinator.handle(self.now, Event::Tick);
                }
                _ if idle_ticks < IDLE_TICKS_MAX => {
                    idle_ticks += 1;
                    self.now = self.now + IDLE_TICK;
                    self.look_who_is_there();
                }
                _ => {
                    let needed = self.plan.cohort.clients_min;
                    return Err(SimulatorError::TooFewClients { needed, found: self.roster.sorted.len() });
                }
            }
        }
    }

    /// Does what the coordinator asks.
    fn obey(&mut self, watch: &mut dyn Watch) -> Result<(), SimulatorError> {
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => self.send(client, task),
                Action::Cancel { client, .. } => self.cancel(&client),
                Action::Note(note) => {
                    let folded = matches!(&note, Note::Accepted { task, .. } if task.step.is_of_round());
                    self.updates += u64::from(folded);
                    let error = self.error_of(&note);
                    watch.note(Observation { now: self.now, note: &note, error });
                }
                Action::Reserve(reservation) => {
                    self.ledger.extend(reservation.links);
                    self.coordinator.handle(self.now, Event::Reserved);
                }
                Action::Commit(commit) => self.store(*commit, watch),
                Action::EvaluateCentrally { round, model, standardiser } => {
                    let metrics = self.evaluate_centrally(round, model, standardiser)?;
                    self.coordinator.handle(self.now, Event::EvaluatedCentrally { round, metrics });
                }
                Action::Ended(end) => self.end = Some(end),
                // A receipt is for a client's log, and virtual clients have none.
                Action::Receipt { .. } => {}
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the open round is to be dropped. A model that has moved is measured first: its round is over then.
    fn is_told_to_stop(&self) -> bool {
        self.stop.is_stopped() && self.coordinator.checkpoint().evaluated
    }

    /// Keeps what a server would store.
    fn store(&mut self, mut commit: Commit, watch: &mut dyn Watch) {
        let links = commit.reservation.as_mut().map(|reservation| std::mem::take(&mut reservation.links));
        self.ledger.extend(links.into_iter().flatten());
        self.statement = commit.statement.take();
        self.rounds.insert(commit.summary.round, commit.summary.clone());
        self.records.extend(commit.clients.iter().cloned());
        Best::consider(&mut self.best, &commit);
        let (checkpoint, summary) = (&commit.checkpoint, &commit.summary);
        // A round of statistics that failed is followed by a pause, which a coordinator that is made anew would not make.
        let is_between =
            checkpoint.evaluated && checkpoint.end.is_none() && (summary.released || summary.round > 0);
        if is_between {
            self.mark = Some(Mark {
                elapsed: self.now - Time::ZERO,
                turn: self.turn,
                updates: self.updates,
                links: self.ledger.len(),
                draws: self.draws.load(Ordering::Relaxed),
            });
        }
        let snapshot = || self.snapshot(checkpoint);
        let stored = Stored { commit: &commit, snapshot: is_between.then_some(&snapshot) };
        watch.stored(stored);
        // Who would come after a round that was dropped is not known where the simulation goes on.
        if !self.availability.is_fair() && commit.checkpoint.evaluated && !self.is_stopping {
            self.look_who_is_there();
        }
        // A step works on the model where it is, as long as nobody else holds it.
        drop(commit);
        self.coordinator.handle(self.now, Event::Committed);
    }

    /// From where to go on: the end of the last round, whatever has begun since.
    fn snapshot(&self, checkpoint: &Checkpoint) -> Option<Snapshot> {
        let rest = Rest {
            seed: self.seed,
            workforce: self.roster.workforce,
            known: self.coordinator.clients(),
            records: &self.records,
            personal: &self.personal,
            rounds: &self.rounds,
            ledger: &self.ledger,
            statement: self.statement.as_ref(),
            best: self.best.as_ref(),
        };
        Some(Snapshot::new(checkpoint, self.mark.clone()?, &rest))
    }

    /// What went wrong at the client that a note is about.
    fn error_of(&self, note: &Note) -> Option<&TaskError> {
        let (Note::Declined { client, .. } | Note::Accepted { client, .. }) = note else { return None };
        self.error.as_ref().filter(|(whose, _)| whose == client).map(|(_, error)| error)
    }

    /// Draws anew who is connected and tells the coordinator of every change.
    fn look_who_is_there(&mut self) {
        let known = self.coordinator.clients();
        let connected = |client: &ClientId| known.get(client).is_some_and(|record| record.connected);
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for client in self.roster.names() {
            match (self.availability.is_online(client, self.turn), connected(client)) {
                (true, false) => joined.push(client.clone()),
                (false, true) => left.push(client.clone()),
                (true, true) | (false, false) => {}
            }
        }
        self.turn += 1;
        for client in left {
            self.coordinator.handle(self.now, Event::Left(client));
        }
        self.coordinator.handle(self.now, self.roster.join(joined));
    }

    /// The place of a client's answer among those of one moment, which no two share: as they were asked, or by chance where a round takes
    /// the first of them.
    fn order_of(&self, client: &ClientId, task: TaskId) -> u64 {
        match self.plan.cohort.oversample {
            Some(_) => u64::from(self.availability.order_at_ties(client, task)) << 32 | self.tickets,
            None => self.tickets,
        }
    }

    fn send(&mut self, client: ClientId, task: Task) {
        let Some(number) = self.roster.find(&client) else { return };
        self.tickets += 1;
        let order = self.order_of(&client, task.id);
        let (after, what) = match self.availability.fate(&client, task.id) {
            ClientFate::Answers(after) => (after, What::Answer(task)),
            ClientFate::Leaves(after) => (after, What::Leave),
        };
        let moment = (self.now + after, order);
        let is_answer = matches!(what, What::Answer(_));
        self.owed.insert(number, moment);
        self.pending.insert(moment, Pending { client, number, what });
        // Hands that are free begin before the whole cohort is known; half of the room is left for what is due first.
        if is_answer && self.under_way.len() < self.jobs_max / 2 && !self.is_late(moment) {
            self.post(moment);
        } else if is_answer {
            self.unposted.insert(moment);
        }
    }

    /// Lets the next pending thing happen.
    fn happen(&mut self) -> Result<(), SimulatorError> {
        let Some((moment, Pending { client, number, what })) = self.pending.pop_first() else {
            return Ok(());
        };
        self.now = self.now.max(moment.0);
        self.owed.remove(&number);
        let event = match what {
            What::Leave => Event::Left(client),
            What::Answer(task) => {
                let (checked, error) = self.await_answer(moment, number, task)?;
                if self.is_told_to_stop() {
                    // It may be of a training that was broken off, and its round is dropped.
                    return Ok(());
                }
                self.error = error.map(|error| (client.clone(), error));
                Event::Checked { client, checked }
            }
        };
        self.coordinator.handle(self.now, event);
        if let Some(points) = self.coordinator.reclaim() {
            self.pool.give_back(points);
        }
        Ok(())
    }

    fn outcome(self, end: RunEnd) -> Outcome {
        let checkpoint = self.coordinator.checkpoint();
        let snapshot = if self.is_stopping { self.snapshot(checkpoint) } else { None };
        let (model, standardiser) = (Arc::clone(&checkpoint.model), checkpoint.standardiser.clone());
        let corrupted = self.collusion.corrupted().cloned().collect();
        Outcome {
            end,
            corrupted,
            model,
            standardiser,
            rounds: self.rounds.into_values().collect(),
            clients: self.coordinator.into_clients(),
            updates: self.updates,
            elapsed: self.now - Time::ZERO,
            ledger: self.ledger,
            statement: self.statement,
            best: self.best,
            snapshot,
        }
    }
}

#[cfg(test)]
mod tests;
