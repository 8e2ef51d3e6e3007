//! Which runs are worked on: new ones are taken in, waiting ones begin, an operator's wishes are written down and passed on.
//!
//! A wish is on disk before it is obeyed, so that a paused run is still paused, and a stopping one still stops, after a crash. Two
//! runs that pay from the budget of one population are never worked on side by side: each would keep its own copy of the ledger.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::wire::{Control, RunSummary};
use protocol::{ClientId, RunId};

use super::super::InitialModel;
use super::super::audit;
use super::super::central::Evaluator;
use super::super::outgoing::Broadcast;
use super::super::store::{BackupError, Opened, Queued, StoreError, StoredRun, Submission};
use super::live::Live;
use super::{Active, Engine, NewRun, entropy, seed_of};
use crate::plan::calibrates;
use crate::{Chance, Checkpoint, Coordinator, Event, Plan, Purse, RunEnd, Setup};

impl Engine {
    /// Takes a run into the queue.
    pub(super) fn submit(&mut self, new: NewRun, by: &str) -> Result<RunId, StoreError> {
        let NewRun { plan, plan_toml, seed, initial: InitialModel { layout, shared } } = new;
        let run = RunId(u64::from_le_bytes(entropy()));
        let found = plan.spec.privacy.central.as_ref().filter(|_| calibrates(&plan_toml));
        let submission = Submission {
            run,
            name: &plan.name,
            rounds: plan.rounds,
            plan_toml: &plan_toml,
            seed,
            calibrated: found.map(|central| central.noise_multiplier),
            layout: &layout,
            checkpoint: &Checkpoint::begin(shared),
        };
        // A fault that passes is told to whoever asked, instead of keeping all runs waiting.
        self.storage.once(self.store.submit(&submission))?;
        let plan_sha256 = privacy::chain::Digest::of(plan_toml.as_bytes()).to_string();
        let (name, rehearsal) = (plan.name.as_str(), seed.is_some());
        let submitted = audit::Event::Submitted { name, plan_sha256, rehearsal, by };
        let (now, audit) = (self.clock.now(), &mut self.audit);
        self.storage.wait_for(async || Ok(audit.write(now, Some(run), &submitted)?))?;
        tracing::info!("run {run} ({}) is in the queue", plan.name);
        self.look = true;
        Ok(run)
    }

    /// Writes an operator's wish down and lets the run know; a sentence when the run has ended.
    pub(super) fn control(
        &mut self,
        run: RunId,
        control: Control,
        by: &str,
    ) -> Result<Result<(), String>, StoreError> {
        let summary = match self.storage.once_for(self.store.summary(Some(run)))? {
            Ok(Some(summary)) => summary,
            Ok(None) => return Ok(Err(format!("there is no run {run} here"))),
            Err(fault) => return Ok(Err(fault)),
        };
        if summary.state.is_over() {
            let (name, state) = (&summary.name, summary.state.name());
            return Ok(Err(format!(
                "run {run} ({name}) is over: {state}; submit its plan again to train on"
            )));
        }
        tracing::info!("operator {by} wants of run {run} ({}): {control:?}", summary.name);
        if let Err(fault) = self.storage.once_for(self.store.wish(run, control))? {
            return Ok(Err(fault));
        }
        let (now, audit) = (self.clock.now(), &mut self.audit);
        let controlled = audit::Event::Controlled { control, by };
        self.storage.wait_for(async || Ok(audit.write(now, Some(run), &controlled)?))?;
        if self.active.contains_key(&run) {
            self.event(run, Event::Control(control))?;
            if let Some(active) = self.active.get_mut(&run) {
                active.live.publish(self.clock.now(), &active.coordinator, &self.nerves.live);
            }
        } else if matches!(control, Control::Stop | Control::StopNow) {
            self.end(run, &RunEnd::Stopped)?;
        } else {
            self.nerves.live.send_modify(|_| {});
        }
        // A paused run leaves its place to another one, and a run that goes on may have waited for one.
        self.look = true;
        Ok(Ok(()))
    }

    /// Ends a run that is not being worked on.
    fn end(&mut self, run: RunId, end: &RunEnd) -> Result<(), StoreError> {
        self.storage.wait_for(async || self.store.end(run, end).await)?;
        self.note(run, crate::Note::Ended(end.clone()))?;
        // Whoever watches that run looks again.
        self.nerves.live.send_modify(|_| {});
        Ok(())
    }

    /// Begins the oldest runs that wait, as many as there are places for.
    pub(super) fn begin_queued(&mut self) -> Result<(), StoreError> {
        for Queued { run, plan_toml, calibrated, control } in
            self.storage.wait_for(async || self.store.queue().await)?
        {
            let working = |active: &&Active| active.coordinator.control() != Control::Pause;
            if self.active.values().filter(working).count() >= self.runs_max {
                return Ok(());
            }
            if self.active.contains_key(&run) || control == Control::Pause {
                continue;
            }
            let plan = match self.accepted(run, plan_toml, calibrated.as_deref()) {
                Some(Ok(plan)) => plan,
                // Its noise is being searched.
                None => continue,
                Some(Err(reason)) => {
                    self.give_up(run, reason)?;
                    continue;
                }
            };
            if population(&plan).is_some_and(|one| self.populations().contains(one)) {
                continue;
            }
            let stored = self.storage.wait_for(async || self.store.load(run).await).map_err(Unable::from);
            match stored.and_then(|stored| self.activate(run, Arc::new(plan), stored)) {
                Ok(active) => self.begin(run, active, control)?,
                Err(Unable::Run(reason)) => self.give_up(run, reason)?,
                Err(Unable::Server(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn begin(&mut self, run: RunId, active: Active, control: Control) -> Result<(), StoreError> {
        let active_runs: BTreeSet<RunId> = self.active.keys().copied().collect();
        self.nerves.live.send_modify(|live| live.retain(|one, _| active_runs.contains(one)));
        self.active.insert(run, active);
        if control != Control::Resume {
            self.event(run, Event::Control(control))?;
        }
        let taking_part = self.links.keys().filter(|client| !self.held.contains(*client));
        let connected: Vec<ClientId> = taking_part.cloned().collect();
        connected.into_iter().try_for_each(|client| self.event(run, Event::Joined(client)))
    }

    pub(super) fn give_up(&mut self, run: RunId, reason: String) -> Result<(), StoreError> {
        tracing::error!("run {run} cannot go on: {reason}");
        let reason = format!(
            "{reason}. This run has ended and the others go on; `consortia run models {run}` lists the models that it has left"
        );
        self.end(run, &RunEnd::Failed(reason))
    }

    /// The populations whose ledgers are in use.
    fn populations(&self) -> BTreeSet<&str> {
        self.active.values().filter_map(|active| population(&active.plan)).collect()
    }

    fn activate(&self, run: RunId, plan: Arc<Plan>, stored: StoredRun) -> Result<Active, Unable> {
        let StoredRun { seed, layout, checkpoint, clients, .. } = stored;
        let learner = if plan.evaluation.central { self.room.central(&plan.spec) } else { None };
        if plan.evaluation.central && learner.is_none() {
            tracing::info!("run {run} would be evaluated here too, but this server has no data for it");
        }
        let central = learner.map(|learner| {
            Evaluator::start(run, Arc::clone(&plan.spec), learner, self.nerves.commands.clone())
        });
        let purse = self.purse(run, &plan)?;
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
        let coordinator = Coordinator::new(setup).map_err(|error| Unable::Run(error.to_string()))?;
        tracing::info!("run {run} ({}) begins or goes on", plan.name);
        let spec_json = plan.spec.to_json().into();
        Ok(Active { plan, layout, coordinator, spec_json, central, live, broadcast: Broadcast::default() })
    }

    /// What a private run pays and noises with: the ledger of its population, founded with the first run that names it.
    fn purse(&self, run: RunId, plan: &Plan) -> Result<Option<Purse>, Unable> {
        let Some(central) = &plan.spec.privacy.central else { return Ok(None) };
        let population = central.population.clone();
        let charge = central.charge();
        let opened =
            self.storage.wait_for(async || match self.store.open_ledger(central.terms(), &charge).await {
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
        let declared = self.declare(&mut ledger, Some(run.to_string()))?;
        self.book_declarations(population, declared)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Some(Purse { ledger, chance: Chance::system(), threads }))
    }

    /// What watchers have seen of the run before; a summary for eyes only, so an unreadable one is no reason to stop.
    fn stored_history(&self, run: RunId) -> Option<RunSummary> {
        self.storage.once(self.store.summary(Some(run))).ok().flatten()
    }
}

/// Why a run does not begin.
enum Unable {
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

/// The population whose budget a plan spends.
fn population(plan: &Plan) -> Option<&str> {
    plan.spec.privacy.central.as_ref().map(|central| central.population.as_str())
}
