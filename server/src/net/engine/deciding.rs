//! Which runs are worked on, and what operators want of runs: decisions that are made by what the database says, on a blocking thread,
//! one after another.
//!
//! A wish is on disk before it is obeyed, so that a paused run is still paused, and a stopping one still stops, after a crash. Two
//! runs that pay from the budget of one population are never worked on side by side: each would keep its own copy of the ledger.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::wire::{Control, RunSummary};
use protocol::{Positive, RunId};
use tokio::sync::oneshot;

use super::actor::Active;
use super::calibration::accepted;
use super::central::Evaluator;
use super::dispatcher::population;
use super::live::Live;
use super::request::Asked;
use super::seed_of;
use super::shared::Shared;
use crate::net::store::audit;
use crate::net::store::fault::FaultOf;
use crate::net::store::{BackupError, Opened, Queued, StoreError, StoredRun};
use crate::{Coordinator, DpContext, NoiseRng, Note, Plan, RunEnd, Setup};

/// Something to be decided.
pub(super) enum Decision {
    /// What ledgers must know of the runs of earlier releases.
    DeclareEarlierRuns,
    /// Which runs begin.
    Choose(Occupied),
    /// An operator's wish. `is_active`: the run is being worked on, or about to be.
    Control { wish: Wish, is_active: bool },
    /// The noise for a run's plan was searched.
    Calibrated { run: RunId, plan_toml: String, found: Result<Positive, String> },
    /// A run cannot go on.
    GiveUp { run: RunId, reason: String },
}

/// What an operator wants of a run.
pub(super) struct Wish {
    pub(super) run: RunId,
    pub(super) control: Control,
    pub(super) by: String,
    /// `None` once it was begun.
    pub(super) asked: Option<Asked>,
    pub(super) reply: oneshot::Sender<Result<(), String>>,
}

/// What is worked on.
#[derive(Default)]
pub(super) struct Occupied {
    pub(super) runs: BTreeSet<RunId>,
    /// Whose ledgers are in use.
    pub(super) populations: BTreeSet<String>,
    /// How many more runs may be worked on.
    pub(super) places: usize,
    /// Whether noise is being searched for a plan.
    pub(super) is_searching: bool,
}

/// What was decided.
pub(super) enum Decided {
    Nothing,
    /// Some run may begin now.
    Changed,
    Chosen(Vec<Choice>),
    /// Stored; the run is to be told.
    Control {
        run: RunId,
        control: Control,
        reply: oneshot::Sender<Result<(), String>>,
    },
    GivenUp(RunId),
}

/// What is to be done with a run of the queue.
pub(super) enum Choice {
    Begin(Beginning),
    /// The noise for its plan is to be searched.
    Search {
        run: RunId,
        plan_toml: String,
    },
}

/// A run that begins.
pub(super) struct Beginning {
    pub(super) run: RunId,
    pub(super) control: Control,
    pub(super) plan: Arc<Plan>,
}

impl Decision {
    /// Decides it on the calling thread, which may wait for the database.
    pub(super) fn decide(self, shared: &Shared) -> Result<Decided, StoreError> {
        match self {
            Self::DeclareEarlierRuns => shared.declare_earlier_runs().map(|()| Decided::Nothing),
            Self::Choose(occupied) => choose(shared, occupied),
            Self::Control { wish, is_active } => control(shared, wish, is_active),
            Self::Calibrated { run, plan_toml, found } => calibrated(shared, run, &plan_toml, found),
            Self::GiveUp { run, reason } => give_up(shared, run, &reason).map(|()| Decided::GivenUp(run)),
        }
    }
}

/// The oldest runs that wait, as many as there are places for.
fn choose(shared: &Shared, mut occupied: Occupied) -> Result<Decided, StoreError> {
    let mut choices = Vec::new();
    if occupied.places == 0 {
        return Ok(Decided::Nothing);
    }
    for Queued { run, plan_toml, calibrated, control } in
        shared.storage.wait_for(async || shared.store.queue().await)?
    {
        if occupied.places == 0 {
            break;
        }
        if occupied.runs.contains(&run) || control == Control::Pause {
            continue;
        }
        let plan = match accepted(&plan_toml, &shared.room.methods(), calibrated.as_deref()) {
            Some(Ok(plan)) => plan,
            Some(Err(reason)) => {
                give_up(shared, run, &reason)?;
                continue;
            }
            None => {
                if !std::mem::replace(&mut occupied.is_searching, true) {
                    choices.push(Choice::Search { run, plan_toml });
                }
                continue;
            }
        };
        if population(&plan).is_some_and(|one| !occupied.populations.insert(one.to_owned())) {
            continue;
        }
        occupied.places -= 1;
        choices.push(Choice::Begin(Beginning { run, control, plan: Arc::new(plan) }));
    }
    Ok(Decided::Chosen(choices))
}

/// Writes an operator's wish down; a sentence for whoever asked when the run has ended.
fn control(shared: &Shared, wish: Wish, is_active: bool) -> Result<Decided, StoreError> {
    let Wish { run, control, by, asked, reply } = wish;
    let is_new = asked.is_some();
    if let Some(asked) = asked {
        // Until it begins it may be taken back.
        if !shared.storage.until_over(&[FaultOf::Database]) || !asked.begin() {
            return Ok(Decided::Nothing);
        }
    }
    let refuse = |reply: oneshot::Sender<Result<(), String>>, why| {
        // Whoever asked may be gone since it was begun.
        let _ = reply.send(Err(why));
        Ok(Decided::Nothing)
    };
    let summary = match shared.storage.once_for(shared.store.summary(Some(run)))? {
        Ok(Some(summary)) => summary,
        Ok(None) => return refuse(reply, format!("there is no run {run} here")),
        Err(fault) => return refuse(reply, fault),
    };
    if summary.state.is_over() {
        let (name, state) = (&summary.name, summary.state.name());
        let why = format!("run {run} ({name}) is over: {state}; submit its plan again to train on");
        return refuse(reply, why);
    }
    if is_new {
        tracing::info!("operator {by} wants of run {run} ({}): {control:?}", summary.name);
        if let Err(fault) = shared.storage.once_for(shared.store.wish(run, control))? {
            return refuse(reply, fault);
        }
        let now = shared.clock.now();
        shared.journal.write_blocking(move |log| {
            log.write(now, Some(run), &audit::Event::Controlled { control, by: &by })
        })?;
    }
    if is_active {
        return Ok(Decided::Control { run, control, reply });
    }
    if matches!(control, Control::Stop | Control::StopNow) {
        end(shared, run, &RunEnd::Stopped)?;
    } else {
        shared.live.send_modify(|_| {});
    }
    let _ = reply.send(Ok(()));
    Ok(Decided::Changed)
}

/// What was found is kept, and the run can begin.
fn calibrated(
    shared: &Shared,
    run: RunId,
    plan_toml: &str,
    found: Result<Positive, String>,
) -> Result<Decided, StoreError> {
    // An operator may have ended it meanwhile.
    let queue = shared.storage.wait_for(async || shared.store.queue().await)?;
    if queue.iter().any(|queued| queued.run == run) {
        match found {
            Ok(noise) => {
                tracing::info!("the noise of run {run} is found: {} times the clipping norm", noise.value());
                shared.storage.wait_for(async || shared.store.calibrated(run, plan_toml, noise).await)?;
            }
            Err(reason) => give_up(shared, run, &reason)?,
        }
    }
    Ok(Decided::Changed)
}

fn give_up(shared: &Shared, run: RunId, reason: &str) -> Result<(), StoreError> {
    tracing::error!("run {run} cannot go on: {reason}");
    let reason = format!(
        "{reason}. This run has ended and the others go on; `consortia run models {run}` lists the models that it has left"
    );
    end(shared, run, &RunEnd::Failed(reason))
}

/// Ends a run that is not being worked on.
fn end(shared: &Shared, run: RunId, end: &RunEnd) -> Result<(), StoreError> {
    if shared.storage.wait_for(async || shared.store.end_queued(run, end).await)? {
        shared.unused.notify_one();
        let (now, note) = (shared.clock.now(), Note::Ended(end.clone()));
        shared.meter.note(now, run, &note);
        shared.journal.note_blocking(now, run, note)?;
    }
    // Whoever watches that run looks again.
    shared.live.send_modify(|_| {});
    Ok(())
}

/// Why a run does not begin.
pub(super) enum Unable {
    /// It never will.
    Run(String),
    /// The server cannot go on: a run must not be given up because the database did not answer, or because another server leads.
    Server(StoreError),
}

impl From<StoreError> for Unable {
    fn from(error: StoreError) -> Self {
        if error.is_of_one_run() { Self::Run(error.to_string()) } else { Self::Server(error) }
    }
}

impl From<BackupError> for Unable {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Store(error) => error.into(),
            error => Self::Run(error.to_string()),
        }
    }
}

/// Reads what a run needs to begin or to go on, on the calling thread.
pub(super) fn load(shared: &Shared, run: RunId, plan: Arc<Plan>) -> Result<Box<Active>, Unable> {
    let stored = shared.storage.wait_for(async || shared.store.load(run).await)?;
    let StoredRun { seed, layout, checkpoint, clients, .. } = stored;
    // The text of a plan with an external model names a file, whose tensors are those of the stored model.
    let plan = match plan.spec.external() {
        Some(_) => {
            let plan = Plan::clone(&plan).starting_with(&layout);
            Arc::new(plan.map_err(|error| Unable::Run(error.to_string()))?)
        }
        None => plan,
    };
    let learner = if plan.evaluation.central { shared.room.central(&plan.spec) } else { None };
    if plan.evaluation.central && learner.is_none() {
        tracing::info!("run {run} would be evaluated here too, but this server has no data for it");
    }
    let central = learner
        .map(|learner| Evaluator::start(run, Arc::clone(&plan.spec), learner, shared.commands.clone()));
    let dp_context = dp_context(shared, run, &plan)?;
    let live = Live::new(run, &plan, seed.is_some(), &checkpoint, stored_history(shared, run));
    let setup = Setup {
        run,
        plan: Arc::clone(&plan),
        entropy: seed_of(seed),
        is_seeded: seed.is_some(),
        central: central.is_some(),
        checkpoint,
        clients,
        tensors: layout.shared_lengths(),
        dp_context,
    };
    let coordinator = Coordinator::new(setup).map_err(|error| Unable::Run(error.to_string()))?;
    let coordinator = coordinator.with_tensor_names(layout.shared_names());
    tracing::info!("run {run} ({}) begins or goes on", plan.name);
    Ok(Box::new(Active { run, plan, layout, coordinator: Box::new(coordinator), central, live }))
}

/// What a private run pays and noises with: the ledger of its population, founded with the first run that names it.
fn dp_context(shared: &Shared, run: RunId, plan: &Plan) -> Result<Option<DpContext>, Unable> {
    let Some(central) = &plan.spec.privacy.central else { return Ok(None) };
    let population = central.population.clone();
    let charge = central.charge();
    let opened =
        shared.storage.wait_for(async || match shared.store.open_ledger(central.terms(), &charge).await {
            Err(BackupError::Store(error)) => Err(error),
            opened => Ok(opened),
        })?;
    let Opened { mut ledger, charged } = opened?;
    if charged > 0 {
        tracing::warn!(
            "the ledger of `{population}` begins with {charged} releases charged: this state was restored from a backup, and does not know \
             whether they were made from its budget"
        );
    }
    let declared = shared.declare(&mut ledger, Some(run.to_string()))?;
    shared.book_declarations(population, declared)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Some(DpContext { ledger, chance: NoiseRng::system(), threads }))
}

/// What watchers have seen of the run before; a summary for eyes only, so an unreadable one is no reason to stop.
fn stored_history(shared: &Shared, run: RunId) -> Option<RunSummary> {
    shared.storage.once(shared.store.summary(Some(run))).ok().flatten()
}
