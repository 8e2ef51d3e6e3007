//! The coordinator of one run: a state machine that decides and never waits.
//!
//! The shell tells it what happened ([`Coordinator::handle`]), does what it asks ([`Coordinator::poll`]) and wakes it at
//! its [`Coordinator::deadline`]. It reads no clock, draws no randomness of its own and touches no file or socket. A
//! client that misbehaves is an event, not an error: it is refused with a reason, counted, and the round goes on.
//!
//! What comes next, its [`crate::workflow::Workflow`] says.
//!
//! ```text
//! gathering -> [reserving] -> open -> committing -> [open -> committing] -> ... -> ended
//!      ^                       |
//!      +-- too few connected --+
//! ```

mod abilities;
mod admission;
mod closing;
mod finite;
mod further;
mod messages;
mod opening;
mod protection;
mod roster;
mod secrecy;
mod setbacks;
mod status;
mod tracker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use protocol::wire::{Control, Receipt, RoundSummary};
use protocol::{
    BroadcastCodec, ClientId, Metrics, Parameters, PayloadSpec, Rejection, Round, RunId, Seed, SpecError,
    StepId, Task, TaskId, Time,
};

use crate::optimizer::{ServerOptimizer, StateError};
use crate::plan::Plan;
use crate::workflow::{Collector, Refused, RunState, StepPlan, Training, Verified, Verifier, Workflow};
use abilities::Abilities;
use admission::Admitted;
pub use admission::{Checked, Checker};
use closing::empty_summary;
use further::FurtherReports;
pub use messages::{
    Action, Checkpoint, ClientRecord, Commit, Event, LedgerReservation, Note, RunEnd, RunProgress,
};
use protection::Protection;
pub use protection::{DpContext, NoiseRng, ProtectionError};
use roster::Roster;
use setbacks::Setbacks;
use tracker::{CohortTracker, ParticipantStatus};

/// Pause before a task that found no quorum is put again.
const REST: Duration = Duration::from_secs(5);

/// All a coordinator is made from.
#[derive(Debug)]
pub struct Setup {
    /// The run's id.
    pub run: RunId,
    /// What to do.
    pub plan: Arc<Plan>,
    /// Where cohorts come from: the run's seed in a seeded run or simulation, else 32 bytes from the operating system.
    pub entropy: Seed,
    /// Whether `entropy` is a seed that is told to the sites, so that the whole run can be repeated bit for bit.
    pub is_seeded: bool,
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
    pub dp_context: Option<DpContext>,
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
    /// What is stored of the workflow is not this workflow's.
    #[error(
        "what is stored of the run's workflow cannot be read: {0}; was the plan or the program changed under a run?"
    )]
    Workflow(String),
    /// What the plan promises cannot be kept.
    #[error(transparent)]
    Protection(#[from] ProtectionError),
}

/// One run from its first round to its last.
pub struct Coordinator {
    run: RunId,
    plan: Arc<Plan>,
    workflow: Box<dyn Workflow>,
    entropy: Seed,
    is_seeded: bool,
    protection: Option<Protection>,
    optimizer: Box<dyn ServerOptimizer>,
    state: Checkpoint,
    /// How many values each tensor of the model has, in layout order, and their names where they are known.
    tensors: Vec<usize>,
    tensor_names: Vec<String>,
    clients: BTreeMap<ClientId, ClientRecord>,
    connected: usize,
    roster: Roster,
    abilities: Abilities,
    setbacks: Setbacks,
    changed: BTreeSet<ClientId>,
    phase: Phase,
    control: Control,
    actions: VecDeque<Action>,
    /// The model as sites get it, where that is a rounded one, and the round after which it was made.
    rounded: Option<(Round, Arc<Parameters>)>,
    /// The fingerprint of the model, once somebody has asked for it.
    sha256: Option<String>,
    /// The step that was opened last, from which the attempts at it are counted.
    opened_last: Option<TaskId>,
    /// The last task of each client whose answer its round did not need in the end.
    surplus: BTreeMap<ClientId, TaskId>,
}

/// What the coordinator is doing.
enum Phase {
    /// Waits for enough clients.
    Gathering,
    /// Waits a while after a task without quorum.
    Resting { until: Time },
    /// Waits for the disk to hold the reservation of this step's release.
    Reserving(Box<StepPlan>),
    /// Waits for contributions to a step.
    Open(Box<OpenStep>),
    /// Waits for the disk. Nothing else happens. `told`: the round's line was told before; `rests`: the next step waits a while.
    Committing { summary: RoundSummary, told: bool, rests: bool },
    /// Over.
    Ended,
}

/// A step that was put to a cohort.
struct OpenStep {
    tracker: CohortTracker,
    /// What a client gets that comes back.
    task: Task,
    collector: Box<dyn Collector>,
    verifier: Arc<dyn Verifier>,
    expects: Arc<PayloadSpec>,
    reports: Vec<(ClientId, TaskId, Metrics)>,
    further: FurtherReports,
    central: Central,
    /// See [`StepPlan::is_round`].
    is_round: bool,
}

/// The work on the server's own data.
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
    /// A coordinator of the plan's method, or of federated training with the plan's own server optimizer.
    ///
    /// # Errors
    /// [`SetupError`] when plan, model and checkpoint do not go together.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let optimizer = setup.plan.strategy.optimizer();
        Self::with_optimizer(setup, optimizer)
    }

    /// As [`Coordinator::new`]; the model of federated training is moved by an optimizer of your own.
    ///
    /// # Errors
    /// [`SetupError`] when plan, model and checkpoint do not go together.
    pub fn with_optimizer(setup: Setup, optimizer: Box<dyn ServerOptimizer>) -> Result<Self, SetupError> {
        let tensors = checked_tensors(&setup)?;
        let central = setup.central && setup.plan.evaluation.central;
        let workflow = match &setup.plan.method {
            Some(method) => method.planned.workflow(&setup.plan)?,
            None => Box::new(Training::new(Arc::clone(&setup.plan), tensors, central)?),
        };
        Self::with_workflow(setup, optimizer, workflow)
    }

    /// A coordinator of a workflow of your own.
    ///
    /// # Errors
    /// [`SetupError`] when plan, model and checkpoint do not go together.
    pub fn with_workflow(
        setup: Setup,
        mut optimizer: Box<dyn ServerOptimizer>,
        mut workflow: Box<dyn Workflow>,
    ) -> Result<Self, SetupError> {
        let tensors = checked_tensors(&setup)?;
        let Setup { run, plan, entropy, is_seeded, checkpoint, mut clients, dp_context, .. } = setup;
        optimizer.restore(checkpoint.optimizer.clone())?;
        workflow.recall(&checkpoint.workflow).map_err(SetupError::Workflow)?;
        let checkpoint = checkpoint.with_releases_counted(&plan);
        let norm_max = plan.spec.update.norm_max;
        let lattice = plan.spec.lattice_within(norm_max, &tensors)?;
        let promised = plan.spec.privacy.central.as_ref();
        let mut protection = promised
            .map(|central| Protection::new(central, dp_context, norm_max, &lattice, &checkpoint))
            .transpose()?;
        if let Some(protection) = protection.as_mut().filter(|_| !is_seeded) {
            protection.declare_secret(run);
        }
        clients.values_mut().for_each(|record| record.connected = false);
        let phase = if checkpoint.end.is_some() { Phase::Ended } else { Phase::Gathering };
        Ok(Self {
            run,
            workflow,
            protection,
            entropy,
            is_seeded,
            optimizer,
            state: checkpoint,
            tensors,
            tensor_names: Vec::new(),
            clients,
            connected: 0,
            roster: Roster::default(),
            abilities: Abilities::default(),
            setbacks: Setbacks::default(),
            changed: BTreeSet::new(),
            phase,
            control: Control::default(),
            actions: VecDeque::new(),
            rounded: None,
            sha256: None,
            opened_last: None,
            surplus: BTreeMap::new(),
            plan,
        })
    }

    /// Takes in what happened at `now`. Moments never go backwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Joined { client, capabilities } => self.joined(client, capabilities),
            Event::JoinedTogether { clients, capabilities } => self.joined_together(clients, &capabilities),
            Event::Left(client) => self.left(now, &client),
            Event::Answered { client, answer } => {
                let status = self.check_status(&client, answer.task);
                match status {
                    Ok(()) => self.checked(now, client, self.checker().check(answer)),
                    Err(refused) => self.refuse(now, client, Some(answer.task), refused),
                }
            }
            Event::Checked { client, checked } => match self.check_status(&client, checked.task()) {
                Ok(()) => self.checked(now, client, checked),
                Err(refused) => self.refuse(now, client, Some(checked.task()), refused),
            },
            Event::Refused { client, task, reason } => {
                let detail = "refused before it was an answer";
                self.refuse(now, client, task, Refused::new(reason, detail));
            }
            Event::Reserved => self.reserved(now),
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
        match &mut self.phase {
            Phase::Open(open) => open.collector.reclaim(),
            _ => None,
        }
    }

    /// The checks that answers to the task which is open must pass, to be made where there is time for them. While none is open there is
    /// nothing that could pass.
    pub fn checker(&self) -> Checker {
        let verifier = self.open_step().map(|open| Arc::clone(&open.verifier));
        let names = self.plan.spec.further_metrics().len();
        let further = self.open_step().filter(|open| open.task.work.model().is_some()).map_or(0, |_| names);
        Checker::new(verifier, self.plan.spec.privacy.hides_metrics()).with_further(further)
    }

    /// What an answer to the open task must carry; nothing while none is open.
    pub fn expects(&self) -> Arc<PayloadSpec> {
        self.open_step().map_or_else(|| Arc::new(PayloadSpec::none()), |open| Arc::clone(&open.expects))
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Resting { until } => Some(*until),
            Phase::Open(open) => open.tracker.wakes_at(),
            Phase::Gathering | Phase::Reserving(_) | Phase::Committing { .. } | Phase::Ended => None,
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

    /// Folds the answer of a client that owes it, or refuses it with its reason.
    fn checked(&mut self, now: Time, client: ClientId, checked: Checked) {
        let (task, result) = checked.into_parts();
        match result {
            Ok(Admitted::Declined { reason, detail }) => {
                self.count(&client, Some(task), |record| *record.declined.entry(reason).or_default() += 1);
                if self.explains(Some(task)) {
                    self.setbacks.declined(&client, reason, &detail);
                }
                self.settle(&client, ParticipantStatus::Out);
                self.actions.push_back(Action::Receipt {
                    client: client.clone(),
                    task,
                    receipt: Receipt::Accepted,
                });
                self.note(Note::Declined { client, task, reason, detail });
            }
            Ok(Admitted::Verified { verified, further }) => {
                match self.fold(&client, task, (verified, further)) {
                    Ok(metrics) => {
                        let receipt = Receipt::Accepted;
                        self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
                        self.note(Note::Accepted { client, task, metrics });
                    }
                    Err(refused) => self.refuse(now, client, Some(task), refused),
                }
            }
            Err(refused) => self.refuse(now, client, Some(task), refused),
        }
    }

    fn check_status(&self, client: &ClientId, task: TaskId) -> Result<(), Refused> {
        let tracker = match &self.phase {
            Phase::Open(open) if open.tracker.task_of(client) == task => &open.tracker,
            _ => return Err(Refused::new(Rejection::Stale, format!("{task} is not open"))),
        };
        match tracker.status(client) {
            None => Err(Refused::new(Rejection::Unsolicited, format!("{task} was not put to this client"))),
            Some(ParticipantStatus::Waiting) => Ok(()),
            Some(ParticipantStatus::Gone | ParticipantStatus::BrokenOff) => {
                Err(Refused::new(Rejection::Stale, format!("{task} does not wait for this client any more")))
            }
            Some(ParticipantStatus::Answered | ParticipantStatus::Out) => {
                Err(Refused::new(Rejection::Duplicate, format!("{task} already has this client's answer")))
            }
        }
    }

    fn fold(
        &mut self,
        client: &ClientId,
        task: TaskId,
        (verified, further): (Verified, Vec<f64>),
    ) -> Result<Option<Metrics>, Refused> {
        let hidden = self.hides_participation(Some(task));
        let Phase::Open(open) = &mut self.phase else {
            return Err(Refused::new(Rejection::Stale, format!("{task} is not open")));
        };
        let metrics = verified.metrics.filter(|_| !hidden);
        open.collector.fold(client, verified)?;
        if let Some(metrics) = metrics {
            open.reports.push((client.clone(), task, metrics));
            open.further.add(client, metrics.examples, further);
        }
        self.count(client, Some(task), |record| match task.step {
            StepId::STATISTICS => {}
            StepId::EVALUATE => record.test = metrics.and_then(Metrics::on_records),
            _ => record.accepted += 1,
        });
        self.settle(client, ParticipantStatus::Answered);
        Ok(metrics)
    }

    /// Counts a refusal. What ends a client's part in the open task depends on the reason: after a transfer that broke off while the
    /// connection lived it has one more attempt; everything else was its answer.
    fn refuse(&mut self, now: Time, client: ClientId, task: Option<TaskId>, refused: Refused) {
        let Refused { reason, detail } = refused;
        if self.takes_as_surplus(&client, task, reason) {
            // Its round has told how many there are.
            let receipt =
                task.map(|task| Action::Receipt { client, task, receipt: Receipt::Refused(reason) });
            return self.actions.extend(receipt);
        }
        self.count(&client, task, |record| *record.refused.entry(reason).or_default() += 1);
        let is_complete = task.is_some() && task == self.task_of(&client);
        if is_complete && self.explains(task) {
            self.setbacks.refused(&client, reason, &detail);
        }
        let renewed = match reason {
            Rejection::Truncated if is_complete => self.break_off(now, &client),
            _ => {
                if is_complete {
                    self.settle(&client, ParticipantStatus::Out);
                }
                false
            }
        };
        if let Some(task) = task {
            let receipt = Receipt::Refused(reason);
            self.actions.push_back(Action::Receipt { client: client.clone(), task, receipt });
        }
        self.note(Note::Refused { client: client.clone(), task, reason, detail });
        if renewed {
            self.send_open_task(client);
        }
    }

    /// Does as the operator wants, now or at the next moment where nothing is lost.
    fn controlled(&mut self, now: Time, control: Control) {
        self.control = control;
        match (&self.phase, control) {
            (Phase::Open(_), Control::StopNow) if self.state.evaluated => self.abandon_step(),
            // The model has moved already: what was measured of it until now is kept.
            (Phase::Open(_), Control::StopNow) => {
                self.state.end = Some(RunEnd::Stopped);
                self.close_step(now);
            }
            (Phase::Resting { .. }, Control::Stop | Control::StopNow) => {
                self.phase = Phase::Gathering;
                self.gather(now);
            }
            _ => {}
        }
    }

    fn evaluated_centrally(&mut self, round: Round, metrics: Option<Metrics>) {
        if let Phase::Open(open) = &mut self.phase
            && open.task.id.round == round
            && open.central == Central::Awaited
        {
            open.central = Central::Done(metrics.and_then(Metrics::on_records));
        }
    }

    fn committed(&mut self, now: Time) {
        let Phase::Committing { summary, told, rests } = &self.phase else { return };
        let (summary, told, rests) = (summary.clone(), *told, *rests);
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
        } else if rests || self.state.evaluated && !summary.released && summary.round == 0 {
            self.phase = Phase::Resting { until: now + REST };
        } else if !self.state.evaluated {
            self.open_next(now);
        } else {
            self.phase = Phase::Gathering;
        }
    }

    /// Moves on as far as `now` and the answers allow.
    fn advance(&mut self, now: Time) {
        if let Phase::Open(open) = &mut self.phase {
            let gone = open.tracker.settle_gone(now);
            gone.iter().for_each(|client| open.collector.dropped(client));
        }
        match &self.phase {
            Phase::Gathering => self.gather(now),
            Phase::Resting { until } if now >= *until => {
                self.phase = Phase::Gathering;
                self.gather(now);
            }
            Phase::Open(open) if open.central != Central::Awaited && open.tracker.is_complete(now) => {
                self.close_step(now);
            }
            Phase::Resting { .. }
            | Phase::Open(_)
            | Phase::Reserving(_)
            | Phase::Committing { .. }
            | Phase::Ended => {}
        }
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

    fn record(&mut self, client: &ClientId) -> &mut ClientRecord {
        self.changed.insert(client.clone());
        self.clients.entry(client.clone()).or_default()
    }

    fn settle(&mut self, client: &ClientId, status: ParticipantStatus) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.tracker.settle(client, status);
        if status == ParticipantStatus::Out {
            open.collector.dropped(client);
        }
    }

    fn open_step(&self) -> Option<&OpenStep> {
        match &self.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    /// The open task, as the attempt at it that `client` has.
    fn task_of(&self, client: &ClientId) -> Option<TaskId> {
        self.open_step().map(|open| open.tracker.task_of(client))
    }
}

/// How many values each part of an update has that may be clipped on its own; the model as one where nothing depends on them.
fn checked_tensors(setup: &Setup) -> Result<Vec<usize>, SetupError> {
    let Setup { tensors, plan, checkpoint, .. } = setup;
    let expected = checkpoint.model.len();
    let found = tensors.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
    if found == expected {
        Ok(tensors.clone())
    } else if tensors.is_empty() && !plan.spec.privacy.is_per_layer() {
        Ok(vec![expected])
    } else {
        Err(SetupError::Tensors { expected, found })
    }
}

#[cfg(test)]
mod tests;
