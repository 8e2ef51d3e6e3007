//! The loop that runs a simulation: a coordinator, a virtual clock, and workers on all cores.
//!
//! Answers are handed to the coordinator in the order of their virtual arrival, whenever their training really ended, so
//! that threads cannot change anything. At most a few answers a thread wait in memory, however large the cohort.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Personal, perform};
use privacy::chain::Link;
use privacy::ledger::{Ledger, LedgerError};
use protocol::wire::RoundSummary;
use protocol::{
    Answer, ClientId, Learner, Metrics, Outcome as TaskOutcome, Parameters, PrivacySpec, Purpose, Round,
    RunId, Seed, Spec, SpecError, Standardiser, Stop, Task, TaskId, TaskKind, Time, Work,
};
use server::{
    Action, Chance, Checkpoint, ClientRecord, Coordinator, Event, Note, Plan, Purse, RunEnd, ServerOptimizer,
    Setup, SetupError,
};

use crate::weather::{Fate, Weather, WeatherConfig};
use crate::workers::{Crew, Done, Job, Workforce};

/// Jobs a thread that may be under way or done and waiting for their virtual time.
const JOBS_PER_THREAD: usize = 4;
/// Virtual time between two looks at who is there, when too few are.
const LULL: Duration = Duration::from_secs(60);
/// Looks in a row without enough clients, after which the simulation gives up.
const LULLS_MAX: u32 = 1000;

/// A simulation about to run.
#[derive(Debug)]
pub struct World {
    plan: Arc<Plan>,
    initial: Parameters,
    tensors: Vec<usize>,
    seed: Seed,
    weather: Weather,
    threads: usize,
    chance: Chance,
}

/// What a simulation shows while it runs.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// Virtual time since the start.
    pub now: Time,
    /// What happened.
    pub note: &'a Note,
}

/// What a simulation gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: RunEnd,
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
}

/// Why a simulation cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// Plan and model do not go together.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The plan's budget means nothing.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The weather is impossible.
    #[error(transparent)]
    Weather(#[from] SpecError),
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

impl World {
    /// A world that trains `initial` (shared part) by `plan`; everything random follows from `seed`.
    ///
    /// # Errors
    /// [`WorldError::Weather`] when the weather is impossible.
    pub fn new(
        plan: Plan,
        initial: Parameters,
        seed: u64,
        weather: WeatherConfig,
    ) -> Result<Self, WorldError> {
        let seed = Seed::from_number(seed);
        let weather = Weather::new(weather, seed)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (plan, tensors, chance) = (Arc::new(plan), Vec::new(), Chance::system());
        Ok(Self { plan, initial, tensors, seed, weather, threads, chance })
    }

    /// The same world with a model of tensors that have this many values each, in layout order. A plan that clips tensor by
    /// tensor needs it.
    #[must_use]
    pub fn with_tensors(mut self, tensors: Vec<usize>) -> Self {
        self.tensors = tensors;
        self
    }

    /// The same world on this many threads, at least one. The result does not depend on it.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The same world with noise from `chance`. By default it comes from the operating system: of a plan that promises
    /// privacy, no two simulations end alike.
    #[must_use]
    pub fn with_chance(mut self, chance: Chance) -> Self {
        self.chance = chance;
        self
    }

    /// Runs to the end of the plan.
    ///
    /// # Errors
    /// [`WorldError`]; a run that fails by its own rules is no error but [`RunEnd::Failed`].
    pub fn run(
        self,
        workforce: &dyn Workforce,
        observe: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Outcome, WorldError> {
        let optimizer = self.plan.strategy.optimizer();
        self.run_with(optimizer, workforce, observe)
    }

    /// Runs to the end of the plan with a server optimizer of your own.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn run_with(
        self,
        optimizer: Box<dyn ServerOptimizer>,
        workforce: &dyn Workforce,
        observe: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Outcome, WorldError> {
        let (needed, found) = (self.plan.cohort.clients_min, workforce.clients().len());
        if found < needed {
            return Err(WorldError::TooFewClients { needed, found });
        }
        let central = workforce.central();
        let mut links = Vec::new();
        let purse = self.plan.spec.privacy.central.as_ref().map(|promised| {
            let (ledger, first) = Ledger::found(promised.terms())?;
            links.push(first);
            Ok::<_, LedgerError>(Purse { ledger, chance: self.chance, threads: self.threads })
        });
        let setup = Setup {
            run: RunId(0),
            plan: Arc::clone(&self.plan),
            entropy: self.seed,
            rehearsal: true,
            central: central.is_some(),
            checkpoint: Checkpoint::begin(self.initial),
            clients: BTreeMap::new(),
            tensors: self.tensors,
            purse: purse.transpose()?,
        };
        let coordinator = Coordinator::with_optimizer(setup, optimizer)?;
        let queue = Mutex::new(None);
        std::thread::scope(|scope| {
            let crew = Crew::start(scope, self.threads, &queue, workforce)?;
            let index = workforce.clients().iter().cloned().zip(0..).collect();
            let stage = Stage {
                coordinator,
                weather: self.weather,
                index,
                central,
                central_spec: unprotected(&self.plan.spec),
                crew,
                jobs_max: self.threads * JOBS_PER_THREAD,
                now: Time::ZERO,
                turn: 0,
                pending: BTreeMap::new(),
                owed: BTreeMap::new(),
                tickets: 0,
                under_way: BTreeMap::new(),
                done: BTreeMap::new(),
                personal: BTreeMap::new(),
                plan: self.plan,
                rounds: BTreeMap::new(),
                updates: 0,
                end: None,
                ledger: links,
                statement: None,
            };
            stage.play(observe)
        })
    }
}

/// The same spec, promising nothing.
fn unprotected(spec: &Arc<Spec>) -> Arc<Spec> {
    if spec.privacy.is_none() {
        return Arc::clone(spec);
    }
    Arc::new(Spec { privacy: PrivacySpec::default(), ..(**spec).clone() })
}

/// Something that will happen at one client.
enum Pending {
    Answer(Task),
    Leave,
}

/// When, and in which order among things of one moment.
type Moment = (Time, u64);

struct Stage<'a> {
    coordinator: Coordinator,
    plan: Arc<Plan>,
    weather: Weather,
    index: BTreeMap<ClientId, usize>,
    central: Option<Box<dyn Learner + 'a>>,
    /// The plan's spec without its promises: what the server measures on records of its own is not a site's metric.
    central_spec: Arc<Spec>,
    crew: Crew,
    jobs_max: usize,
    now: Time,
    turn: u32,
    pending: BTreeMap<Moment, (ClientId, Pending)>,
    /// The one thing that is pending at a client.
    owed: BTreeMap<ClientId, Moment>,
    tickets: u64,
    /// Jobs given to the crew, by the moment they are for.
    under_way: BTreeMap<Moment, u64>,
    done: BTreeMap<u64, Done>,
    personal: BTreeMap<usize, Personal>,
    rounds: BTreeMap<u32, RoundSummary>,
    updates: u64,
    end: Option<RunEnd>,
    ledger: Vec<Link>,
    statement: Option<String>,
}

impl Stage<'_> {
    fn play(mut self, observe: &mut dyn FnMut(Observation<'_>)) -> Result<Outcome, WorldError> {
        let mut lulls = 0;
        self.look_who_is_there();
        loop {
            self.obey(observe);
            if let Some(end) = self.end.take() {
                return Ok(self.outcome(end));
            }
            self.put_to_work()?;
            let next = self.pending.first_key_value().map(|(moment, _)| *moment);
            match (next, self.coordinator.deadline()) {
                (Some((time, _)), deadline) if deadline.is_none_or(|deadline| time <= deadline) => {
                    lulls = 0;
                    self.happen()?;
                }
                (_, Some(deadline)) => {
                    self.now = self.now.max(deadline);
                    self.coordinator.handle(self.now, Event::Tick);
                }
                _ if lulls < LULLS_MAX => {
                    lulls += 1;
                    self.now = self.now + LULL;
                    self.look_who_is_there();
                }
                _ => {
                    let needed = self.plan.cohort.clients_min;
                    return Err(WorldError::TooFewClients { needed, found: self.index.len() });
                }
            }
        }
    }

    /// Does what the coordinator asks.
    fn obey(&mut self, observe: &mut dyn FnMut(Observation<'_>)) {
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => self.send(client, task),
                Action::Cancel { client, .. } => self.cancel(&client),
                Action::Note(note) => {
                    let folded = matches!(&note, Note::Accepted { task, .. } if task.kind == TaskKind::Train);
                    self.updates += u64::from(folded);
                    observe(Observation { now: self.now, note: &note });
                }
                Action::Book(booking) => {
                    self.ledger.extend(booking.links);
                    self.coordinator.handle(self.now, Event::Booked);
                }
                Action::Commit(commit) => {
                    self.ledger.extend(commit.booking.into_iter().flat_map(|booking| booking.links));
                    self.statement = commit.statement;
                    self.rounds.insert(commit.summary.round, commit.summary);
                    if !self.weather.is_fair() && commit.checkpoint.evaluated {
                        self.look_who_is_there();
                    }
                    self.coordinator.handle(self.now, Event::Committed);
                }
                Action::EvaluateCentrally { round, model, standardiser } => {
                    let metrics = self.evaluate_centrally(round, model, standardiser);
                    self.coordinator.handle(self.now, Event::EvaluatedCentrally { round, metrics });
                }
                Action::Ended(end) => self.end = Some(end),
                // A receipt is for a client's log, and virtual clients have none.
                Action::Receipt { .. } => {}
                _ => {}
            }
        }
    }

    /// Draws anew who is connected and tells the coordinator of every change.
    fn look_who_is_there(&mut self) {
        let known = self.coordinator.clients();
        let connected = |client: &ClientId| known.get(client).is_some_and(|record| record.connected);
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for client in self.index.keys() {
            match (self.weather.is_online(client, self.turn), connected(client)) {
                (true, false) => joined.push(client.clone()),
                (false, true) => left.push(client.clone()),
                (true, true) | (false, false) => {}
            }
        }
        self.turn += 1;
        for client in left {
            self.coordinator.handle(self.now, Event::Left(client));
        }
        self.coordinator.handle(self.now, Event::JoinedTogether(joined));
    }

    fn send(&mut self, client: ClientId, task: Task) {
        let (after, what) = match self.weather.fate(&client, task.id) {
            Fate::Answers(after) => (after, Pending::Answer(task)),
            Fate::Leaves(after) => (after, Pending::Leave),
        };
        self.tickets += 1;
        let moment = (self.now + after, self.tickets);
        self.owed.insert(client.clone(), moment);
        self.pending.insert(moment, (client, what));
    }

    fn cancel(&mut self, client: &ClientId) {
        if let Some(moment) = self.owed.remove(client) {
            self.pending.remove(&moment);
            // Its answer, if a worker is at it already, is dropped when it comes.
            self.under_way.remove(&moment);
        }
    }

    /// Gives the crew the answers that are due first.
    fn put_to_work(&mut self) -> Result<(), WorldError> {
        let idle = self.jobs_max.saturating_sub(self.under_way.len());
        let mut jobs = Vec::new();
        for (place, (moment, (client, what))) in self.pending.iter().enumerate() {
            // What happens next is worked on even when all hands are busy with what comes later.
            if place > 0 && jobs.len() >= idle {
                break;
            }
            if let Pending::Answer(task) = what
                && !self.under_way.contains_key(moment)
            {
                jobs.push((*moment, self.index[client], task.clone()));
            }
        }
        for (moment, client, task) in jobs {
            let personal = self.personal.get(&client).cloned().unwrap_or_default();
            let job = Job { ticket: moment.1, client, personal, task };
            self.under_way.insert(moment, moment.1);
            self.crew.jobs.send(job).map_err(|_| WorldError::WorkerLost)?;
        }
        Ok(())
    }

    /// Lets the next pending thing happen.
    fn happen(&mut self) -> Result<(), WorldError> {
        let Some((moment, (client, what))) = self.pending.pop_first() else { return Ok(()) };
        self.now = self.now.max(moment.0);
        self.owed.remove(&client);
        let event = match what {
            Pending::Leave => Event::Left(client),
            Pending::Answer(_) => {
                let answer = self.await_answer(moment, &client)?;
                Event::Answered { client, answer }
            }
        };
        self.coordinator.handle(self.now, event);
        Ok(())
    }

    fn await_answer(&mut self, moment: Moment, client: &ClientId) -> Result<Answer, WorldError> {
        self.under_way.remove(&moment);
        loop {
            if let Some(done) = self.done.remove(&moment.1) {
                if !done.personal.is_empty() {
                    self.personal.insert(self.index[client], done.personal);
                }
                return Ok(done.answer);
            }
            let done = self.crew.done.recv().map_err(|_| WorldError::WorkerLost)?;
            let wanted =
                done.ticket == moment.1 || self.under_way.values().any(|ticket| *ticket == done.ticket);
            if wanted {
                self.done.insert(done.ticket, done);
            }
        }
    }

    fn evaluate_centrally(
        &mut self,
        round: Round,
        model: Arc<Parameters>,
        standardiser: Option<Arc<Standardiser>>,
    ) -> Option<Metrics> {
        let learner = self.central.as_deref_mut()?;
        let id = TaskId { run: RunId(0), round, kind: TaskKind::Evaluate };
        let spec = Arc::clone(&self.central_spec);
        let task = Task { id, spec, seed: None, standardiser, work: Work::Evaluate { model } };
        let name = ClientId::new("server").ok()?;
        let entropy = Seed::from_number(0).derive(Purpose::Initialise, round, None);
        match perform(&name, learner, &mut Personal::default(), &task, entropy, &Stop::default()).outcome {
            TaskOutcome::Evaluated { metrics } => Some(metrics),
            _ => None,
        }
    }

    fn outcome(self, end: RunEnd) -> Outcome {
        let checkpoint = self.coordinator.checkpoint();
        Outcome {
            end,
            model: Arc::clone(&checkpoint.model),
            standardiser: checkpoint.standardiser.clone(),
            rounds: self.rounds.into_values().collect(),
            clients: self.coordinator.clients().clone(),
            updates: self.updates,
            elapsed: self.now - Time::ZERO,
            ledger: self.ledger,
            statement: self.statement,
        }
    }
}

#[cfg(test)]
mod tests;
