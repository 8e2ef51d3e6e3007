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
mod closing;
mod gate;
mod messages;
mod opening;
mod protection;
mod roster;
mod secrecy;
mod setbacks;
mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use privacy::{Lattice, Sum};
use protocol::wire::{Control, Receipt, RoundSummary};
use protocol::{
    BroadcastCodec, ClientId, Metrics, Parameters, Refusal, Round, RunId, Seed, SpecError, StepId, Task,
    TaskId, Time, Work,
};

use crate::optimizer::{ServerOptimizer, StateError};
use crate::plan::{Evaluators, Plan};
use admission::{Admitted, Refused};
pub use admission::{Checked, Checker};
use gate::{Gate, Standing};
pub use messages::{Action, Booking, Checkpoint, ClientRecord, Commit, Event, Note, RunEnd};
use protection::Protection;
pub use protection::{Chance, ProtectionError, Purse};
use roster::Roster;
use setbacks::Setbacks;

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
    /// How many values each tensor of the model has, in layout order. Needed by plans that clip tensor by tensor; for others it
    /// may be empty.
    pub tensors: Vec<usize>,
    /// What a plan that promises client-level privacy pays and noises with; others leave it alone.
    pub purse: Option<Purse>,
}

/// Why a coordinator cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The plan has no lattice for a model of this size.
    #[error(transparent)]
    Plan(#[from] SpecError),
    /// The stored optimizer state is another optimizer's.
    #[error(transparent)]
    Optimizer(#[from] StateError),
    /// The tensors are not the model's.
    #[error(
        "the tensors have {found} values and the model {expected}; a plan that clips tensor by tensor needs the layout of \
         its model"
    )]
    Tensors {
        /// Values of the model.
        expected: usize,
        /// Values of all tensors.
        found: usize,
    },
    /// What the plan promises cannot be kept.
    #[error(transparent)]
    Protection(#[from] ProtectionError),
}

/// One run from its first round to its last.
pub struct Coordinator {
    run: RunId,
    plan: Arc<Plan>,
    lattice: Lattice,
    /// How many values each part of an update has that may be clipped on its own.
    tensors: Vec<usize>,
    entropy: Seed,
    rehearsal: bool,
    central: bool,
    statistics: Vec<String>,
    protection: Option<Protection>,
    optimizer: Box<dyn ServerOptimizer>,
    state: Checkpoint,
    clients: BTreeMap<ClientId, ClientRecord>,
    connected: usize,
    roster: Roster,
    setbacks: Setbacks,
    changed: BTreeSet<ClientId>,
    phase: Phase,
    control: Control,
    actions: VecDeque<Action>,
    /// The model as sites get it, where that is a rounded one, and the round after which it was made.
    rounded: Option<(Round, Arc<Parameters>)>,
    /// The fingerprint of the model, once somebody has asked for it.
    sha256: Option<String>,
    /// The memory of the last update that was folded.
    spent: Option<Vec<i32>>,
}

/// What the coordinator is doing.
enum Phase {
    /// Waits for enough clients.
    Gathering,
    /// Waits a while after a task without quorum.
    Resting { until: Time },
    /// Waits for the disk to hold the reservation of this round.
    Booking { round: Round },
    /// Waits for answers to be summed.
    Collecting { gate: Gate, sum: Sum, reports: Vec<(ClientId, TaskId, Metrics)> },
    /// Waits for metrics of the model that was just released.
    Evaluating {
        gate: Gate,
        reports: Vec<(ClientId, TaskId, Metrics)>,
        central: Central,
        summary: RoundSummary,
    },
    /// Waits for the disk. Nothing else happens. `told`: the round's line was told before.
    Committing { summary: RoundSummary, told: bool },
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
        let Setup { run, plan, entropy, rehearsal, central, checkpoint, mut clients, tensors, purse } = setup;
        let tensors = checked_tensors(tensors, &plan, checkpoint.model.len())?;
        let lattice = plan.spec.lattice_within(plan.spec.update.norm_max, &tensors)?;
        optimizer.restore(checkpoint.optimizer.clone())?;
        let checkpoint = checkpoint.with_releases_counted(&plan);
        let promised = plan.spec.privacy.central.as_ref();
        let mut protection = promised
            .map(|central| Protection::new(central, purse, plan.spec.update.norm_max, &lattice, &checkpoint))
            .transpose()?;
        if let Some(protection) = protection.as_mut().filter(|_| !rehearsal) {
            protection.declare_secret(run);
        }
        clients.values_mut().for_each(|record| record.connected = false);
        let phase = if checkpoint.end.is_some() { Phase::Ended } else { Phase::Gathering };
        Ok(Self {
            run,
            statistics: plan.spec.statistics(),
            lattice,
            tensors,
            protection,
            entropy,
            rehearsal,
            central: central && plan.evaluation.central,
            optimizer,
            state: checkpoint,
            clients,
            connected: 0,
            roster: Roster::default(),
            setbacks: Setbacks::default(),
            changed: BTreeSet::new(),
            phase,
            control: Control::default(),
            actions: VecDeque::new(),
            rounded: None,
            sha256: None,
            spent: None,
            plan,
        })
    }

    /// Takes in what happened at `now`. Moments never go backwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Joined(client) => self.joined(client),
            Event::JoinedTogether(clients) => self.joined_together(clients),
            Event::Left(client) => self.left(&client),
            Event::Answered { client, answer } => {
                let standing = self.check_standing(&client, answer.task);
                match standing {
                    Ok(()) => self.checked(client, self.checker().check(answer)),
                    Err(refused) => self.refuse(client, Some(answer.task), refused),
                }
            }
            Event::Checked { client, checked } => match self.check_standing(&client, checked.task()) {
                Ok(()) => self.checked(client, checked),
                Err(refused) => self.refuse(client, Some(checked.task()), refused),
            },
            Event::Refused { client, task, reason } => {
                let detail = "refused before it was an answer";
                self.refuse(client, task, Refused::new(reason, detail));
            }
            Event::Booked => self.booked(now),
            Event::Committed => self.committed(now),
            Event::EvaluatedCentrally { round, metrics } => self.evaluated_centrally(round, metrics),
            Event::Control(control) => self.controlled(now, control),
            Event::Tick => {}
        }
        self.advance(now);
    }

    /// The next thing to do; call until `None` after every [`Coordinator::handle`].
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The memory of the last update that was folded, once. Its values have been added and mean nothing any more; a shell may
    /// receive the next update into it.
    pub fn reclaim(&mut self) -> Option<Vec<i32>> {
        self.spent.take()
    }

    /// The checks that answers to the task which is open must pass, to be made where there is time for them.
    pub fn checker(&self) -> Checker {
        Checker::new(&self.lattice, self.statistics.len(), &self.plan.spec)
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Resting { until } => Some(*until),
            Phase::Collecting { gate, .. } => Some(gate.deadline),
            Phase::Evaluating { gate, .. } if gate.waiting() > 0 => Some(gate.deadline),
            Phase::Evaluating { .. }
            | Phase::Gathering
            | Phase::Booking { .. }
            | Phase::Committing { .. }
            | Phase::Ended => None,
        }
    }

    /// What the operator wants of it.
    pub fn control(&self) -> Control {
        self.control
    }

    /// What is known of every client.
    pub fn clients(&self) -> &BTreeMap<ClientId, ClientRecord> {
        &self.clients
    }

    /// What is known of every client, at the end.
    pub fn into_clients(self) -> BTreeMap<ClientId, ClientRecord> {
        self.clients
    }

    /// Where the run stands.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.state
    }

    fn joined_together(&mut self, clients: Vec<ClientId>) {
        if !self.clients.is_empty() {
            return clients.into_iter().for_each(|client| self.joined(client));
        }
        // Nobody was known, so nobody owes anything. Built at once, the map of a million takes half the memory and little time.
        let record = ClientRecord { connected: true, ..ClientRecord::default() };
        self.clients = clients.into_iter().map(|client| (client, record.clone())).collect();
        self.connected = self.clients.len();
        self.roster.forget_connected();
    }

    fn joined(&mut self, client: ClientId) {
        if self.plan.spec.privacy.samples_secretly() && !self.clients.contains_key(&client) {
            // Who is enrolled is stored at once: it must not depend on who was drawn.
            self.changed.insert(client.clone());
        }
        let record = self.clients.entry(client.clone()).or_default();
        self.connected += usize::from(!record.connected);
        record.connected = true;
        self.roster.forget_connected();
        let gate = match &self.phase {
            Phase::Collecting { gate, .. } | Phase::Evaluating { gate, .. } => gate,
            Phase::Gathering
            | Phase::Resting { .. }
            | Phase::Booking { .. }
            | Phase::Committing { .. }
            | Phase::Ended => return,
        };
        let open = gate.task;
        if gate.standing(&client) == Some(Standing::Waiting) {
            let task = self.task(open);
            self.actions.push_back(Action::Send { client, task });
        }
    }

    fn left(&mut self, client: &ClientId) {
        if let Some(record) = self.clients.get_mut(client) {
            self.connected -= usize::from(record.connected);
            record.connected = false;
            self.roster.forget_connected();
        }
    }

    /// Folds the answer of a client that owes it, or refuses it with its reason.
    fn checked(&mut self, client: ClientId, checked: Checked) {
        let (task, result) = checked.into_parts();
        match result {
            Ok(Admitted::Declined { reason, detail }) => {
                self.count(&client, Some(task), |record| *record.declined.entry(reason).or_default() += 1);
                if self.explains(Some(task)) {
                    self.setbacks.declined(&client, reason, &detail);
                }
                self.settle(&client, Standing::Out);
                self.actions.push_back(Action::Receipt {
                    client: client.clone(),
                    task,
                    receipt: Receipt::Accepted,
                });
                self.note(Note::Declined { client, task, reason, detail });
            }
            Ok(admitted) => match self.fold(&client, task, admitted) {
                Ok(metrics) => {
                    let receipt = Receipt::Accepted;
                    self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
                    self.note(Note::Accepted { client, task, metrics });
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
        let hidden = self.hides_participation(Some(task));
        let foreign = |error: privacy::SumError| Refused::new(Refusal::WrongKind, error.to_string());
        let metrics = match (&mut self.phase, admitted) {
            (Phase::Collecting { sum, reports, .. }, Admitted::Update { update, vote, metrics }) => {
                sum.add(&update).map_err(foreign)?;
                self.spent = Some(update.into_points());
                if let Some(within) = vote {
                    sum.count_vote(within);
                }
                if hidden {
                    None
                } else {
                    reports.push((client.clone(), task, metrics));
                    Some(metrics)
                }
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
        self.count(client, Some(task), |record| match task.step {
            StepId::TRAIN => record.accepted += 1,
            StepId::EVALUATE => record.test = metrics,
            _ => {}
        });
        self.settle(client, Standing::Answered);
        Ok(metrics)
    }

    /// Counts a refusal. What ends a client's part in the open task depends on the reason: a transfer that broke off may
    /// be tried again by a client that comes back; everything else was its answer.
    fn refuse(&mut self, client: ClientId, task: Option<TaskId>, refused: Refused) {
        let Refused { reason, detail } = refused;
        self.count(&client, task, |record| *record.refused.entry(reason).or_default() += 1);
        let open = self.open_task();
        if task == open && self.explains(task) {
            self.setbacks.refused(&client, reason, &detail);
        }
        if task.is_some() && task == open && reason != Refusal::Truncated {
            self.settle(&client, Standing::Out);
        }
        if let Some(task) = task {
            let receipt = Receipt::Refused(reason);
            self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
        }
        self.note(Note::Refused { client, task, reason, detail });
    }

    /// Does as the operator wants, now or at the next moment where nothing is lost.
    fn controlled(&mut self, now: Time, control: Control) {
        self.control = control;
        match (&self.phase, control) {
            (Phase::Collecting { .. }, Control::StopNow) => self.abandon_collection(),
            (Phase::Evaluating { .. }, Control::StopNow) => {
                self.state.end = Some(RunEnd::Stopped);
                self.close_evaluation();
            }
            (Phase::Resting { .. }, Control::Stop | Control::StopNow) => {
                self.phase = Phase::Gathering;
                self.gather(now);
            }
            _ => {}
        }
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
        let Phase::Committing { summary, told } = &self.phase else { return };
        let (summary, told) = (summary.clone(), *told);
        if self.state.evaluated && !told {
            self.note(Note::Round(summary.clone()));
        }
        if let Some(end) = &self.state.end {
            let end = end.clone();
            self.note(Note::Ended(end.clone()));
            self.actions.push_back(Action::Ended(end));
            self.phase = Phase::Ended;
        } else if self.control == Control::StopNow {
            self.end_early(RunEnd::Stopped);
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
            | Phase::Booking { .. }
            | Phase::Committing { .. }
            | Phase::Ended => {}
        }
    }

    fn task(&mut self, id: TaskId) -> Task {
        let sent = self.sent_model();
        let model = || Arc::clone(&sent);
        let work = match id.step {
            StepId::STATISTICS => Work::Statistics { names: self.statistics.clone() },
            StepId::EVALUATE => Work::Evaluate { model: model() },
            _ => {
                let learning_rate_scale = self.plan.schedule.factor(id.round.0, self.plan.rounds);
                let norm_max = self.protection.as_ref().and_then(Protection::norm_max);
                Work::Train { model: model(), learning_rate_scale, norm_max }
            }
        };
        let seed = self.rehearsal.then_some(self.entropy);
        let standardiser = self.state.standardiser.clone();
        Task { id, spec: Arc::clone(&self.plan.spec), seed, standardiser, work }
    }

    /// The model from which every site starts.
    fn sent_model(&mut self) -> Arc<Parameters> {
        let codec = self.plan.spec.update.broadcast;
        if codec == BroadcastCodec::Exact {
            return Arc::clone(&self.state.model);
        }
        let round = self.state.round;
        let (state, made) = (&self.state, self.rounded.take().filter(|(made, _)| *made == round));
        let made =
            made.unwrap_or_else(|| (round, Arc::new(Parameters::new(codec.round(state.model.values())))));
        Arc::clone(&self.rounded.insert(made).1)
    }

    fn is_evaluation_due(&self, round: Round) -> bool {
        let evaluation = &self.plan.evaluation;
        evaluation.is_due(round.0, self.plan.rounds) && (evaluation.sites != Evaluators::None || self.central)
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
            Phase::Gathering
            | Phase::Resting { .. }
            | Phase::Booking { .. }
            | Phase::Committing { .. }
            | Phase::Ended => None,
        }
    }
}

/// The tensors of a model of `expected` values; the model as one where nothing depends on them.
fn checked_tensors(tensors: Vec<usize>, plan: &Plan, expected: usize) -> Result<Vec<usize>, SetupError> {
    let found = tensors.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
    if found == expected {
        Ok(tensors)
    } else if tensors.is_empty() && !plan.spec.privacy.is_per_layer() {
        Ok(vec![expected])
    } else {
        Err(SetupError::Tensors { expected, found })
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
