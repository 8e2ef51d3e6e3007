//! The loop that runs a simulation: a coordinator, a virtual clock, and workers on all cores.
//!
//! Answers are handed to the coordinator in the order of their virtual arrival, whenever their training really ended, so
//! that threads cannot change anything. At most so many answers wait in memory, however large the cohort.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::Personal;
use privacy::chain::Link;
use privacy::ledger::{Cohorts, Conduct, Ledger, LedgerError, SiteMetrics};
use protocol::wire::RoundSummary;
use protocol::{
    CentralPrivacy, ClientId, Learner, Metrics, MetricsRule, Parameters, PrivacySpec, Round, RunId, Seed,
    Spec, SpecError, Standardiser, Task, TaskId, TaskKind, Time, Work,
};
use server::{
    Action, Chance, Checked, Checker, Checkpoint, ClientRecord, Coordinator, Event, Note, Plan, Purse,
    RunEnd, ServerOptimizer, Setup, SetupError,
};

use crate::weather::{Fate, Weather, WeatherConfig};
use crate::workers::{Board, Crew, Done, Job, Lost, Order, Workforce, measure};

/// Jobs that may be under way, or done and waiting for their virtual time: so many a thread...
const JOBS_PER_THREAD: usize = 4;
/// ... or more, up to so many, ...
const JOBS_MAX: usize = 1024;
/// ... as long as their updates take no more memory than this.
const WAITING_BYTES: usize = 32 << 20;
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

impl From<Lost> for WorldError {
    fn from(_: Lost) -> Self {
        Self::WorkerLost
    }
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
        let central = Central::of(workforce);
        let bytes = 4 * self.initial.len().max(1);
        let mut links = Vec::new();
        let purse = self.plan.spec.privacy.central.as_ref().map(|promised| {
            let (mut ledger, first) = Ledger::found(promised.terms())?;
            links.push(first);
            // This book is the simulation's own and ends with it: it counts what the plan would cost if it were deployed, where
            // its seed is nobody's. The statement claims nothing.
            links.extend(ledger.declare(&RunId(0).to_string(), conduct(promised)));
            Ok::<_, LedgerError>(Purse { ledger, chance: self.chance, threads: self.threads })
        });
        let setup = Setup {
            run: RunId(0),
            plan: Arc::clone(&self.plan),
            entropy: self.seed,
            rehearsal: true,
            central: !matches!(central, Central::None),
            checkpoint: Checkpoint::begin(self.initial),
            clients: BTreeMap::new(),
            tensors: self.tensors,
            purse: purse.transpose()?,
        };
        let coordinator = Coordinator::with_optimizer(setup, optimizer)?;
        let board = Board::default();
        std::thread::scope(|scope| {
            let crew = Crew::start(scope, self.threads, &board, workforce)?;
            let stage = Stage {
                coordinator,
                weather: self.weather,
                roster: Roster::new(workforce),
                central,
                central_spec: unprotected(&self.plan.spec),
                crew,
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
            };
            stage.play(observe)
        })
    }
}

/// What a deployed run of such a plan would declare.
fn conduct(promised: &CentralPrivacy) -> Conduct {
    let cohorts = if promised.sampling.is_secret() { Cohorts::Secret } else { Cohorts::Known };
    let metrics = match promised.metrics {
        MetricsRule::Off => SiteMetrics::Hidden,
        MetricsRule::OutsideTheGuarantee => SiteMetrics::Told,
    };
    Conduct { cohorts, metrics }
}

/// The same spec, promising nothing.
fn unprotected(spec: &Arc<Spec>) -> Arc<Spec> {
    if spec.privacy.is_none() {
        return Arc::clone(spec);
    }
    Arc::new(Spec { privacy: PrivacySpec::default(), ..(**spec).clone() })
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

/// Every client's number.
struct Roster<'a> {
    workforce: &'a dyn Workforce,
    /// The numbers in order of their names.
    sorted: Vec<u32>,
}

impl<'a> Roster<'a> {
    fn new(workforce: &'a dyn Workforce) -> Self {
        let clients = workforce.clients();
        let mut sorted: Vec<u32> = (0u32..).take(clients.len()).collect();
        sorted.sort_unstable_by_key(|number| &clients[*number as usize]);
        Self { workforce, sorted }
    }

    /// The number of a client that the coordinator knows, and so was told of from here.
    fn find(&self, client: &ClientId) -> Option<usize> {
        let clients = self.workforce.clients();
        let place = self.sorted.binary_search_by_key(&client, |number| &clients[*number as usize]).ok()?;
        Some(self.sorted[place] as usize)
    }

    /// All clients in order of their names.
    fn names(&self) -> impl Iterator<Item = &ClientId> {
        self.sorted.iter().map(|number| &self.workforce.clients()[*number as usize])
    }
}

/// Who measures on the server's own records.
enum Central {
    None,
    /// All workers, on so many parts.
    Parts(usize),
    One(Box<dyn Learner>),
}

impl Central {
    fn of(workforce: &dyn Workforce) -> Self {
        match workforce.central_parts() {
            0 => workforce.central().map_or(Self::None, Self::One),
            parts => Self::Parts(parts),
        }
    }
}

struct Stage<'a> {
    coordinator: Coordinator,
    plan: Arc<Plan>,
    weather: Weather,
    roster: Roster<'a>,
    central: Central,
    /// The plan's spec without its promises: what the server measures on records of its own is not a site's metric.
    central_spec: Arc<Spec>,
    crew: Crew<'a>,
    jobs_max: usize,
    now: Time,
    turn: u32,
    pending: BTreeMap<Moment, Pending>,
    /// The one thing that is pending at a client.
    owed: BTreeMap<usize, Moment>,
    tickets: u64,
    /// Answers that the crew was not asked for yet.
    unposted: BTreeSet<Moment>,
    /// Jobs given to the crew, by the moment they are for, and their size.
    under_way: BTreeMap<Moment, usize>,
    /// The checks of the open task.
    checker: Option<(TaskId, Arc<Checker>)>,
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
            self.obey(observe)?;
            if let Some(end) = self.end.take() {
                return Ok(self.outcome(end));
            }
            self.put_to_work();
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
                    return Err(WorldError::TooFewClients { needed, found: self.roster.sorted.len() });
                }
            }
        }
    }

    /// Does what the coordinator asks.
    fn obey(&mut self, observe: &mut dyn FnMut(Observation<'_>)) -> Result<(), WorldError> {
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

    /// Draws anew who is connected and tells the coordinator of every change.
    fn look_who_is_there(&mut self) {
        let known = self.coordinator.clients();
        let connected = |client: &ClientId| known.get(client).is_some_and(|record| record.connected);
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for client in self.roster.names() {
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
        let Some(number) = self.roster.find(&client) else { return };
        self.tickets += 1;
        let (after, what) = match self.weather.fate(&client, task.id) {
            Fate::Answers(after) => (after, What::Answer(task)),
            Fate::Leaves(after) => (after, What::Leave),
        };
        let moment = (self.now + after, self.tickets);
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

    /// Whether nobody will wait for what happens then.
    fn is_late(&self, moment: Moment) -> bool {
        self.coordinator.deadline().is_some_and(|deadline| moment.0 > deadline)
    }

    fn cancel(&mut self, client: &ClientId) {
        let owed = self.roster.find(client).and_then(|number| self.owed.remove(&number));
        if let Some(moment) = owed {
            self.pending.remove(&moment);
            self.unposted.remove(&moment);
            if let Some(size) = self.under_way.remove(&moment) {
                self.crew.withdraw(size, moment.1);
            }
        }
    }

    /// Gives the crew the answers that are due first, but none that comes too late.
    fn put_to_work(&mut self) {
        let next = self.pending.first_key_value().map(|(moment, _)| *moment);
        while let Some(moment) = self.unposted.first().copied() {
            // What happens next is worked on even when all hands are busy with what comes later.
            let has_room = self.under_way.len() < self.jobs_max || next == Some(moment);
            if !has_room || self.is_late(moment) {
                break;
            }
            self.unposted.remove(&moment);
            self.post(moment);
        }
    }

    fn post(&mut self, moment: Moment) {
        let Some(Pending { number, what: What::Answer(task), .. }) = self.pending.get(&moment) else {
            return;
        };
        let (client, task) = (*number, task.clone());
        let personal = self.personal.get(&client).cloned().unwrap_or_default();
        let known = self.checker.take().filter(|(id, _)| *id == task.id);
        let (_, checker) =
            self.checker.insert(known.unwrap_or_else(|| (task.id, Arc::new(self.coordinator.checker()))));
        let (checker, size) = (Arc::clone(checker), self.roster.workforce.size(client));
        self.crew.post(size, moment.1, Job::Client { client, personal, task, checker });
        self.under_way.insert(moment, size);
    }

    /// Lets the next pending thing happen.
    fn happen(&mut self) -> Result<(), WorldError> {
        let Some((moment, Pending { client, number, what })) = self.pending.pop_first() else {
            return Ok(());
        };
        self.now = self.now.max(moment.0);
        self.owed.remove(&number);
        let event = match what {
            What::Leave => Event::Left(client),
            What::Answer(task) => {
                // The model must not be held by what is over, or the step that may follow works on a copy.
                drop(task);
                let checked = self.await_answer(moment, number)?;
                Event::Checked { client, checked }
            }
        };
        self.coordinator.handle(self.now, event);
        if let Some(points) = self.coordinator.reclaim() {
            self.crew.give_back(points);
        }
        Ok(())
    }

    fn await_answer(&mut self, moment: Moment, client: usize) -> Result<Checked, WorldError> {
        let size = self.under_way.remove(&moment).ok_or(WorldError::WorkerLost)?;
        let order = if self.unposted.is_empty() { Order::LargestFirst } else { Order::AsDue };
        match self.crew.result(size, moment.1, order)? {
            Done::Client { checked, personal } => {
                if !personal.is_empty() {
                    self.personal.insert(client, personal);
                }
                Ok(checked)
            }
            Done::Central(_) => Err(WorldError::WorkerLost),
        }
    }

    fn evaluate_centrally(
        &mut self,
        round: Round,
        model: Arc<Parameters>,
        standardiser: Option<Arc<Standardiser>>,
    ) -> Result<Option<Metrics>, WorldError> {
        let id = TaskId { run: RunId(0), round, kind: TaskKind::Evaluate };
        let spec = Arc::clone(&self.central_spec);
        let task = Arc::new(Task { id, spec, seed: None, standardiser, work: Work::Evaluate { model } });
        let parts = match &mut self.central {
            Central::None => return Ok(None),
            Central::One(learner) => return Ok(measure(&mut **learner, &task)),
            Central::Parts(parts) => *parts,
        };
        let first = self.tickets + 1;
        for part in 0..parts {
            self.tickets += 1;
            self.crew.post(1, self.tickets, Job::Central { part, task: Arc::clone(&task) });
        }
        let mut measured = Vec::with_capacity(parts);
        for ticket in first..=self.tickets {
            match self.crew.result(1, ticket, Order::LargestFirst)? {
                Done::Central(metrics) => measured.push(metrics),
                Done::Client { .. } => return Err(WorldError::WorkerLost),
            }
        }
        // Parts are the same on any number of threads, and so is the order in which they are put together.
        let measured: Option<Vec<Metrics>> = measured.into_iter().collect();
        Ok(measured.and_then(|parts| Metrics::pooled(parts.iter(), u64::MAX)))
    }

    fn outcome(self, end: RunEnd) -> Outcome {
        let checkpoint = self.coordinator.checkpoint();
        let (model, standardiser) = (Arc::clone(&checkpoint.model), checkpoint.standardiser.clone());
        Outcome {
            end,
            model,
            standardiser,
            rounds: self.rounds.into_values().collect(),
            clients: self.coordinator.into_clients(),
            updates: self.updates,
            elapsed: self.now - Time::ZERO,
            ledger: self.ledger,
            statement: self.statement,
        }
    }
}

#[cfg(test)]
mod tests;
