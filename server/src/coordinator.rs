//! The coordinator of one run: a state machine that decides and never waits.
//!
//! The shell tells it what happened ([`Coordinator::handle`]), does what it asks ([`Coordinator::poll`]) and wakes it at
//! its [`Coordinator::deadline`]. It reads no clock, draws no randomness of its own and touches no file or socket. A
//! client that misbehaves is an event, not an error: it is refused with a reason, counted, and the round goes on.
//!
//! ```text
//! gathering -> [statistics] -> collecting -> committing -> [evaluating -> committing] -> ... -> ended
//!      ^                           |
//!      +---- too few connected ----+
//! ```

mod admission;
mod gate;
mod messages;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use privacy::{Lattice, Released, Sum};
use protocol::wire::{Receipt, RoundSummary};
use protocol::{
    Answer, ClientId, Metrics, Refusal, Round, RunId, Seed, SpecError, Standardiser, Task, TaskId, TaskKind,
    Time, Work,
};

use crate::optimizer::{ServerOptimizer, StateError};
use crate::plan::{Evaluators, Plan};
use crate::selection::select;
use admission::{Admitted, Refused, admit};
use gate::{Gate, Standing};
pub use messages::{Action, Checkpoint, ClientRecord, Commit, Event, Note, RunEnd};

/// Pause before a task that found no quorum is put again.
const REST: Duration = Duration::from_secs(5);

/// All a coordinator is made from.
#[derive(Debug)]
pub struct Setup {
    /// The run's id.
    pub run: RunId,
    /// What to do.
    pub plan: Arc<Plan>,
    /// Where cohorts come from: the run's seed in a rehearsal or simulation, else 32 bytes from the operating system.
    pub entropy: Seed,
    /// Whether `entropy` is a seed that is told to the sites, so that the whole run can be repeated bit for bit.
    pub rehearsal: bool,
    /// Whether the shell can evaluate on data of its own.
    pub central: bool,
    /// Where the run stands.
    pub checkpoint: Checkpoint,
    /// What is known of clients from before.
    pub clients: BTreeMap<ClientId, ClientRecord>,
}

/// Why a coordinator cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The plan has no lattice for a model of this size.
    #[error(transparent)]
    Plan(#[from] SpecError),
    /// The stored optimizer state is another optimizer's.
    #[error(transparent)]
    Optimizer(#[from] StateError),
}

/// One run from its first round to its last.
pub struct Coordinator {
    run: RunId,
    plan: Arc<Plan>,
    lattice: Lattice,
    entropy: Seed,
    rehearsal: bool,
    central: bool,
    statistics: Vec<String>,
    optimizer: Box<dyn ServerOptimizer>,
    state: Checkpoint,
    clients: BTreeMap<ClientId, ClientRecord>,
    connected: usize,
    changed: BTreeSet<ClientId>,
    phase: Phase,
    actions: VecDeque<Action>,
}

/// What the coordinator is doing.
enum Phase {
    /// Waits for enough clients.
    Gathering,
    /// Waits a while after a task without quorum.
    Resting { until: Time },
    /// Waits for answers to be summed.
    Collecting { gate: Gate, sum: Sum, reports: Vec<(ClientId, TaskId, Metrics)> },
    /// Waits for metrics of the model that was just released.
    Evaluating {
        gate: Gate,
        reports: Vec<(ClientId, TaskId, Metrics)>,
        central: Central,
        summary: RoundSummary,
    },
    /// Waits for the disk. Nothing else happens.
    Committing { summary: RoundSummary },
    /// Over.
    Ended,
}

/// The evaluation on the server's own data.
#[derive(Clone, Copy, PartialEq)]
enum Central {
    Awaited,
    Done(Option<Metrics>),
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coordinator({} of {}: {})", self.run, self.plan.name, self.status())
    }
}

impl Coordinator {
    /// A coordinator with the plan's own server optimizer.
    ///
    /// # Errors
    /// [`SetupError`] when plan, model and checkpoint do not go together.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let optimizer = setup.plan.strategy.optimizer();
        Self::with_optimizer(setup, optimizer)
    }

    /// A coordinator whose model is moved by an optimizer of your own.
    ///
    /// # Errors
    /// [`SetupError`] when plan, model and checkpoint do not go together.
    pub fn with_optimizer(setup: Setup, mut optimizer: Box<dyn ServerOptimizer>) -> Result<Self, SetupError> {
        let Setup { run, plan, entropy, rehearsal, central, checkpoint, mut clients } = setup;
        let lattice = plan.spec.lattice(checkpoint.model.len())?;
        optimizer.restore(checkpoint.optimizer.clone())?;
        clients.values_mut().for_each(|record| record.connected = false);
        let phase = if checkpoint.end.is_some() { Phase::Ended } else { Phase::Gathering };
        Ok(Self {
            run,
            statistics: plan.spec.statistics(),
            lattice,
            entropy,
            rehearsal,
            central: central && plan.evaluation.central,
            optimizer,
            state: checkpoint,
            clients,
            connected: 0,
            changed: BTreeSet::new(),
            phase,
            actions: VecDeque::new(),
            plan,
        })
    }

    /// Takes in what happened at `now`. Moments never go backwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Joined(client) => self.joined(client),
            Event::JoinedTogether(clients) => clients.into_iter().for_each(|client| self.joined(client)),
            Event::Left(client) => self.left(&client),
            Event::Answered { client, answer } => self.answered(client, answer),
            Event::Refused { client, task, reason } => {
                let detail = "refused before it was an answer";
                self.refuse(client, task, Refused::new(reason, detail));
            }
            Event::Committed => self.committed(now),
            Event::EvaluatedCentrally { round, metrics } => self.evaluated_centrally(round, metrics),
            Event::Tick => {}
        }
        self.advance(now);
    }

    /// The next thing to do; call until `None` after every [`Coordinator::handle`].
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Resting { until } => Some(*until),
            Phase::Collecting { gate, .. } => Some(gate.deadline),
            Phase::Evaluating { gate, .. } if gate.waiting() > 0 => Some(gate.deadline),
            Phase::Evaluating { .. } | Phase::Gathering | Phase::Committing { .. } | Phase::Ended => None,
        }
    }

    /// What is known of every client.
    pub fn clients(&self) -> &BTreeMap<ClientId, ClientRecord> {
        &self.clients
    }

    /// Where the run stands.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.state
    }

    /// One sentence on what it waits for.
    pub fn status(&self) -> String {
        let waiting = |gate: &Gate| {
            let (kind, round) = (gate.task.kind.name(), gate.task.round);
            format!("round {round}, {kind}: {} of {} clients have answered", gate.answered(), gate.asked())
        };
        match &self.phase {
            Phase::Gathering => {
                format!("{} of {} clients are connected", self.connected, self.plan.cohort.clients_min)
            }
            Phase::Resting { .. } => "too few clients answered; trying again soon".to_owned(),
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } => waiting(gate),
            Phase::Committing { summary } => format!("storing round {}", summary.round),
            Phase::Ended => "ended".to_owned(),
        }
    }

    fn joined(&mut self, client: ClientId) {
        let record = self.clients.entry(client.clone()).or_default();
        self.connected += usize::from(!record.connected);
        record.connected = true;
        let gate = match &self.phase {
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } => gate,
            Phase::Gathering | Phase::Resting { .. } | Phase::Committing { .. } | Phase::Ended => return,
        };
        if gate.standing(&client) == Some(Standing::Waiting) {
            let task = self.task(gate.task);
            self.actions.push_back(Action::Send { client, task });
        }
    }

    fn left(&mut self, client: &ClientId) {
        if let Some(record) = self.clients.get_mut(client) {
            self.connected -= usize::from(record.connected);
            record.connected = false;
        }
    }

    /// Checks an answer and folds it, or refuses it with its reason.
    fn answered(&mut self, client: ClientId, answer: Answer) {
        let Answer { task, outcome } = answer;
        let checked = self
            .check_standing(&client, task)
            .and_then(|()| admit(outcome, task.kind, &self.lattice, self.statistics.len()));
        match checked {
            Ok(Admitted::Declined { reason, detail }) => {
                let record = self.record(&client);
                *record.declined.entry(reason).or_default() += 1;
                self.settle(&client, Standing::Out);
                self.actions.push_back(Action::Receipt {
                    client: client.clone(),
                    task,
                    receipt: Receipt::Accepted,
                });
                self.actions.push_back(Action::Note(Note::Declined { client, task, reason, detail }));
            }
            Ok(admitted) => match self.fold(&client, task, admitted) {
                Ok(metrics) => {
                    let receipt = Receipt::Accepted;
                    self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
                    self.actions.push_back(Action::Note(Note::Accepted { client, task, metrics }));
                }
                Err(refused) => self.refuse(client, Some(task), refused),
            },
            Err(refused) => self.refuse(client, Some(task), refused),
        }
    }

    fn check_standing(&self, client: &ClientId, task: TaskId) -> Result<(), Refused> {
        let gate = match &self.phase {
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } if gate.task == task => gate,
            _ => return Err(Refused::new(Refusal::Stale, format!("{task} is not open"))),
        };
        match gate.standing(client) {
            None => Err(Refused::new(Refusal::Unsolicited, format!("{task} was not put to this client"))),
            Some(Standing::Waiting) => Ok(()),
            Some(Standing::Answered | Standing::Out) => {
                Err(Refused::new(Refusal::Duplicate, format!("{task} already has this client's answer")))
            }
        }
    }

    fn fold(
        &mut self,
        client: &ClientId,
        task: TaskId,
        admitted: Admitted,
    ) -> Result<Option<Metrics>, Refused> {
        let foreign = |error: privacy::SumError| Refused::new(Refusal::WrongKind, error.to_string());
        let metrics = match (&mut self.phase, admitted) {
            (Phase::Collecting { sum, reports, .. }, Admitted::Update { update, metrics }) => {
                sum.add(&update).map_err(foreign)?;
                reports.push((client.clone(), task, metrics));
                Some(metrics)
            }
            (Phase::Collecting { sum, .. }, Admitted::Tally(tally)) => {
                sum.add_tally(&tally).map_err(foreign)?;
                None
            }
            (Phase::Evaluating { reports, .. }, Admitted::Metrics(metrics)) => {
                reports.push((client.clone(), task, metrics));
                Some(metrics)
            }
            _ => return Err(Refused::new(Refusal::Stale, format!("{task} is not open"))),
        };
        let record = self.record(client);
        match task.kind {
            TaskKind::Train => record.accepted += 1,
            TaskKind::Evaluate => record.test = metrics,
            TaskKind::Statistics => {}
        }
        self.settle(client, Standing::Answered);
        Ok(metrics)
    }

    /// Counts a refusal. What ends a client's part in the open task depends on the reason: a transfer that broke off may
    /// be tried again by a client that comes back; everything else was its answer.
    fn refuse(&mut self, client: ClientId, task: Option<TaskId>, refused: Refused) {
        let Refused { reason, detail } = refused;
        *self.record(&client).refused.entry(reason).or_default() += 1;
        let open = self.open_task();
        if task.is_some() && task == open && reason != Refusal::Truncated {
            self.settle(&client, Standing::Out);
        }
        if let Some(task) = task {
            let receipt = Receipt::Refused(reason);
            self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
        }
        self.actions.push_back(Action::Note(Note::Refused { client, task, reason, detail }));
    }

    fn evaluated_centrally(&mut self, round: Round, metrics: Option<Metrics>) {
        if let Phase::Evaluating { central, summary, .. } = &mut self.phase
            && summary.round == round.0
            && *central == Central::Awaited
        {
            *central = Central::Done(metrics);
        }
    }

    fn committed(&mut self, now: Time) {
        let Phase::Committing { summary } = &self.phase else { return };
        let summary = summary.clone();
        if self.state.evaluated {
            self.actions.push_back(Action::Note(Note::Round(summary.clone())));
        }
        if let Some(end) = &self.state.end {
            self.actions.push_back(Action::Note(Note::Ended(end.clone())));
            self.actions.push_back(Action::Ended(end.clone()));
            self.phase = Phase::Ended;
        } else if !self.state.evaluated {
            self.open_evaluation(now, summary);
        } else if !summary.released && summary.round == 0 {
            self.phase = Phase::Resting { until: now + REST };
        } else {
            self.phase = Phase::Gathering;
        }
    }

    /// Moves on as far as `now` and the answers allow.
    fn advance(&mut self, now: Time) {
        match &self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Resting { until } if now >= *until => {
                self.phase = Phase::Gathering;
                self.gather(now);
            }
            Phase::Collecting { gate, .. } if gate.is_open(now) => self.close_collection(now),
            Phase::Evaluating { gate, central: Central::Done(_), .. } if gate.is_open(now) => {
                self.close_evaluation()
            }
            Phase::Resting { .. }
            | Phase::Collecting { .. }
            | Phase::Evaluating { .. }
            | Phase::Committing { .. }
            | Phase::Ended => {}
        }
    }

    /// Opens what comes next, once enough clients are there.
    fn gather(&mut self, now: Time) {
        let needed = self.plan.cohort.clients_min;
        if self.connected < needed {
            let waiting = Note::Waiting { connected: self.connected, needed };
            self.actions.push_back(Action::Note(waiting));
            return;
        }
        if !self.state.evaluated
            && let Some(summary) = self.state.summary.clone()
        {
            return self.open_evaluation(now, summary);
        }
        let connected = self.connected_clients();
        if !self.statistics.is_empty() && self.state.standardiser.is_none() {
            let sum = Sum::of_tallies(self.statistics.len(), self.lattice.clients_max());
            self.open_collection(now, Round(0), TaskKind::Statistics, &connected, sum);
        } else {
            let round = self.state.round.next();
            let cohort = select(connected, &self.plan.cohort, &self.entropy, round);
            self.open_collection(now, round, TaskKind::Train, &cohort, Sum::new(&self.lattice));
        }
    }

    fn open_collection(&mut self, now: Time, round: Round, kind: TaskKind, cohort: &[ClientId], sum: Sum) {
        let quorum = self.plan.cohort.quorum;
        let gate = self.open_gate(now, TaskId { run: self.run, round, kind }, cohort, quorum);
        self.phase = Phase::Collecting { gate, sum, reports: Vec::new() };
    }

    fn open_evaluation(&mut self, now: Time, summary: RoundSummary) {
        let round = self.state.round;
        let cohort = match self.plan.evaluation.sites {
            Evaluators::All => self.connected_clients(),
            Evaluators::None => Vec::new(),
        };
        let task = TaskId { run: self.run, round, kind: TaskKind::Evaluate };
        let gate = self.open_gate(now, task, &cohort, 0);
        let mut central = Central::Done(None);
        if self.central {
            central = Central::Awaited;
            let (model, standardiser) = (Arc::clone(&self.state.model), self.state.standardiser.clone());
            self.actions.push_back(Action::EvaluateCentrally { round, model, standardiser });
        }
        self.phase = Phase::Evaluating { gate, reports: Vec::new(), central, summary };
        self.advance(now);
    }

    fn open_gate(&mut self, now: Time, task: TaskId, cohort: &[ClientId], quorum: usize) -> Gate {
        if !cohort.is_empty() {
            self.actions.push_back(Action::Note(Note::Opened { task, cohort: cohort.len() }));
        }
        let work = self.task(task);
        for client in cohort {
            self.actions.push_back(Action::Send { client: client.clone(), task: work.clone() });
        }
        Gate::new(task, cohort, quorum, now, now + self.plan.cohort.deadline)
    }

    /// The round's gate is open: release and step, or let the model stand still. Either way it is committed.
    fn close_collection(&mut self, now: Time) {
        let Phase::Collecting { gate, sum, reports } = std::mem::replace(&mut self.phase, Phase::Gathering)
        else {
            return;
        };
        self.cancel_missing(&gate);
        let round = gate.task.round;
        let released = if gate.has_quorum() { Released::unprotected(sum) } else { None };
        let summary = RoundSummary {
            released: released.is_some(),
            cohort: gate.asked() as u32,
            answered: gate.answered() as u32,
            train: Metrics::pooled(reports.iter().map(|(_, _, metrics)| metrics)),
            seconds: (now - gate.opened).as_secs_f64(),
            ..empty_summary(round)
        };
        self.state.failures = if released.is_some() { 0 } else { self.state.failures + 1 };
        match (gate.task.kind, released) {
            (TaskKind::Statistics, Some(released)) => {
                self.state.standardiser = Standardiser::from_totals(&released.totals()).map(Arc::new);
            }
            (TaskKind::Statistics, None) => {}
            (TaskKind::Train | TaskKind::Evaluate, released) => {
                let moved = released.is_some();
                if let Some(mean) = released {
                    self.step(&mean);
                }
                self.state.round = round;
                self.state.evaluated = !(moved && self.is_evaluation_due(round));
            }
        }
        self.commit(summary, reports);
    }

    fn step(&mut self, mean: &Released) {
        // The old model goes as soon as no transfer holds it; until then `make_mut` works on a copy.
        let model = Arc::make_mut(&mut self.state.model);
        self.state.optimizer.clear();
        self.optimizer.step(model.values_mut(), mean);
        self.state.optimizer = self.optimizer.state();
    }

    fn close_evaluation(&mut self) {
        let Phase::Evaluating { gate, reports, central, mut summary } =
            std::mem::replace(&mut self.phase, Phase::Gathering)
        else {
            return;
        };
        self.cancel_missing(&gate);
        summary.sites = Metrics::pooled(reports.iter().map(|(_, _, metrics)| metrics));
        if let Central::Done(metrics) = central {
            summary.central = metrics;
        }
        self.state.evaluated = true;
        self.commit(summary, reports);
    }

    fn commit(&mut self, summary: RoundSummary, reports: Vec<(ClientId, TaskId, Metrics)>) {
        if self.state.failures >= self.plan.cohort.failures_max {
            let failures = self.state.failures;
            let why =
                format!("{failures} rounds in a row found no quorum of {} clients", self.plan.cohort.quorum);
            self.state.end = Some(RunEnd::Failed(why));
        } else if self.state.round.0 >= self.plan.rounds && self.state.evaluated {
            self.state.end = Some(RunEnd::Finished);
        }
        self.state.summary = Some(summary.clone());
        let changed = std::mem::take(&mut self.changed);
        let record = |client: ClientId| self.clients.get(&client).cloned().map(|record| (client, record));
        let clients = changed.into_iter().filter_map(record).collect();
        let commit = Commit { checkpoint: self.state.clone(), summary: summary.clone(), reports, clients };
        self.actions.push_back(Action::Commit(Box::new(commit)));
        self.phase = Phase::Committing { summary };
    }

    fn cancel_missing(&mut self, gate: &Gate) {
        for client in gate.owing() {
            self.actions.push_back(Action::Cancel { client: client.clone(), task: gate.task });
        }
        let (task, answered, missing) = (gate.task, gate.answered(), gate.waiting());
        if gate.asked() > 0 {
            let quorum = gate.has_quorum();
            self.actions.push_back(Action::Note(Note::Closed { task, answered, missing, quorum }));
        }
    }

    fn task(&self, id: TaskId) -> Task {
        let model = || Arc::clone(&self.state.model);
        let work = match id.kind {
            TaskKind::Statistics => Work::Statistics { names: self.statistics.clone() },
            TaskKind::Evaluate => Work::Evaluate { model: model() },
            TaskKind::Train => {
                let learning_rate_scale = self.plan.schedule.factor(id.round.0, self.plan.rounds);
                Work::Train { model: model(), learning_rate_scale, norm_max: None }
            }
        };
        let seed = self.rehearsal.then_some(self.entropy);
        let standardiser = self.state.standardiser.clone();
        Task { id, spec: Arc::clone(&self.plan.spec), seed, standardiser, work }
    }

    fn is_evaluation_due(&self, round: Round) -> bool {
        let evaluation = &self.plan.evaluation;
        evaluation.is_due(round.0, self.plan.rounds) && (evaluation.sites != Evaluators::None || self.central)
    }

    fn connected_clients(&self) -> Vec<ClientId> {
        self.clients.iter().filter(|(_, record)| record.connected).map(|(client, _)| client.clone()).collect()
    }

    fn record(&mut self, client: &ClientId) -> &mut ClientRecord {
        self.changed.insert(client.clone());
        self.clients.entry(client.clone()).or_default()
    }

    fn settle(&mut self, client: &ClientId, standing: Standing) {
        if let Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } = &mut self.phase {
            gate.settle(client, standing);
        }
    }

    fn open_task(&self) -> Option<TaskId> {
        match &self.phase {
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } => Some(gate.task),
            Phase::Gathering | Phase::Resting { .. } | Phase::Committing { .. } | Phase::Ended => None,
        }
    }
}

fn empty_summary(round: Round) -> RoundSummary {
    RoundSummary {
        round: round.0,
        released: false,
        cohort: 0,
        answered: 0,
        train: None,
        sites: None,
        central: None,
        seconds: 0.0,
        epsilon: None,
    }
}

#[cfg(test)]
mod tests;
