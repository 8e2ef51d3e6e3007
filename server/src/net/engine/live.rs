//! A run for eyes: its summary as watchers get it, and its lines in the log. Nothing is decided from it.

use std::sync::Arc;
use std::time::Duration;

use privacy::{counted, verb};
use protocol::wire::{Control, RunState, RunSummary};
use protocol::{RunId, Time};
use tokio::sync::watch;

use super::LiveRuns;
use crate::net::store::{HISTORY_MAX, rows::client_summary};
use crate::{Checkpoint, Commit, Coordinator, Note, Plan, RunEnd, RunProgress, Worsened};

/// The shortest time between two summaries, unless something is stored.
const PAUSE: Duration = Duration::from_millis(100);

/// What watchers see.
pub(super) struct Live {
    summary: RunSummary,
    changed: bool,
    published: Time,
    releases: u32,
}

impl Live {
    /// The view of a run that begins or goes on from `checkpoint`.
    pub(super) fn new(
        run: RunId,
        plan: &Plan,
        is_seeded: bool,
        checkpoint: &Checkpoint,
        before: Option<RunSummary>,
    ) -> Self {
        let (model_sha256, history) =
            before.map_or_else(Default::default, |before| (before.model_sha256, before.history));
        let summary = RunSummary {
            run,
            name: plan.name.clone(),
            state: RunState::Running,
            message: String::new(),
            rounds_done: checkpoint.round.0,
            rounds: plan.rounds,
            is_seeded,
            model_sha256,
            history,
            clients: Vec::new(),
        };
        Self { summary, changed: true, published: Time::ZERO, releases: checkpoint.releases }
    }

    /// Something has changed.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// When the next summary is due, from now.
    pub(super) fn due(&self, now: Time) -> Option<Duration> {
        self.changed.then(|| self.published + PAUSE - now)
    }

    /// Takes over what has been stored.
    pub(super) fn committed(&mut self, commit: &Commit, model_sha256: String) {
        let history = &mut self.summary.history;
        match history.iter_mut().find(|line| line.round == commit.summary.round) {
            Some(line) => line.clone_from(&commit.summary),
            None => history.push(commit.summary.clone()),
        }
        let surplus = history.len().saturating_sub(HISTORY_MAX as usize);
        history.drain(..surplus);
        self.summary.rounds_done = commit.checkpoint.round.0;
        self.releases = commit.checkpoint.releases;
        self.summary.model_sha256 = model_sha256;
    }

    /// The run is over.
    pub(super) fn end(&mut self, end: &RunEnd) {
        let RunSummary { rounds_done, rounds, .. } = self.summary;
        let progress = RunProgress { rounds_done, rounds, releases: self.releases };
        (self.summary.state, self.summary.message) = (end.state(), end.message(progress));
    }

    /// Whether its rounds have made the model worse.
    pub(super) fn worsened(&self) -> Option<Worsened> {
        Worsened::of(&self.summary.history)
    }

    /// Publishes when something has changed and the last time was long enough ago.
    pub(super) fn publish_if_due(
        &mut self,
        now: Time,
        coordinator: &Coordinator,
        to: &watch::Sender<LiveRuns>,
    ) {
        if self.due(now) == Some(Duration::ZERO) {
            self.publish(now, coordinator, to);
        }
    }

    /// Publishes.
    pub(super) fn publish(&mut self, now: Time, coordinator: &Coordinator, to: &watch::Sender<LiveRuns>) {
        (self.changed, self.published) = (false, now);
        let clients = coordinator.clients();
        self.summary.clients =
            clients.iter().map(|(client, record)| client_summary(client, record)).collect();
        if !self.summary.state.is_over() {
            self.summary.message = coordinator.status();
            self.summary.state = match coordinator.control() {
                Control::Resume => RunState::Running,
                Control::Pause => RunState::Paused,
                Control::Stop | Control::StopNow => RunState::Stopping,
            };
        }
        let summary = Arc::new(self.summary.clone());
        to.send_modify(|live| drop(live.insert(summary.run, summary)));
    }
}

/// A note as a line of the log.
pub(super) fn log(run: RunId, note: &Note) {
    match note {
        Note::Waiting { connected, needed } => {
            tracing::info!(target: "events", "run {run} waits: {connected} of {} {} connected", counted(*needed, "client"), verb(*needed, "is", "are"));
        }
        Note::Opened { task, cohort } => {
            tracing::info!(target: "events", "{task} is put to {}", counted(*cohort, "client"))
        }
        Note::Accepted { client, task, .. } => {
            tracing::debug!(target: "events", "{client} has answered {task}")
        }
        Note::Refused { client, task, reason, detail } => {
            let task = task.map_or_else(|| "no task".to_owned(), |task| task.to_string());
            tracing::warn!(target: "events", "the answer of {client} to {task} is rejected: {} ({detail})", reason.name());
        }
        Note::Declined { client, task, reason, detail } => {
            let detail: String = detail.chars().filter(|c| !c.is_control()).collect();
            tracing::warn!(target: "events", "{client} declines {task}: {} ({detail})", reason.name());
        }
        Note::Closed { task, answered, missing, surplus, quorum } => {
            let word = if *quorum { "enough" } else { "too few" };
            // Asked beyond what the round needs: nobody waits for them, and what still comes of them is told here alone.
            let beyond = match surplus {
                0 => String::new(),
                more => format!("; {} not needed any more", counted(*more, "client")),
            };
            tracing::info!(target: "events", "{task} is over: {}, {word}; {} missing{beyond}", counted(*answered, "answer"), missing - surplus);
        }
        Note::Withheld { task, reason } => {
            tracing::error!(target: "events", "{task} releases nothing: {reason}")
        }
        // A run may go on so for thousands of rounds: its log says it again less and less often.
        Note::Warned { task, warning } if task.round.0.is_power_of_two() => {
            tracing::warn!(target: "events", "{task}: {warning}")
        }
        Note::Warned { task, warning } => tracing::debug!(target: "events", "{task}: {warning}"),
        Note::Round(summary) => tracing::info!(target: "events",
            "round {} of run {run} is stored; the model {}",
            summary.round,
            if summary.released { "was updated" } else { "was not updated" }
        ),
        // `log_end` says it with the run's name, for every way a run can end.
        Note::Ended(_) => {}
    }
}

/// The last line of a run.
pub(super) fn log_end(run: RunId, name: &str, end: &RunEnd) {
    match end {
        RunEnd::Finished => tracing::info!(target: "events", "run {run} ({name}) is finished"),
        RunEnd::Failed(reason) => {
            tracing::error!(target: "events", "run {run} ({name}) has failed: {reason}")
        }
        RunEnd::BudgetExhausted(reason) => {
            tracing::warn!(target: "events", "run {run} ({name}) ends, its privacy budget is exhausted: {reason}");
        }
        RunEnd::Stopped => tracing::info!(target: "events", "run {run} ({name}) is stopped by the operator"),
    }
}
