//! What operators ask of a server, whichever way they come: submit a plan, list the runs, look at one, end it.
//!
//! Plans are checked here, before the dispatcher hears of them; a plan that makes no sense is answered with line, column and
//! value and never becomes a run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use privacy::first_not_finite;
use protocol::wire::{ADMIN_MAX, Control, HEADER_MAX, Member, ModelChoice, ModelLine, RunSummary};
use protocol::{ModelSpec, PARAMETERS_MAX, RunId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::messages::{Command, InitialModel, ModelRoom, NewRun};
use super::presence::Presence;
use super::request::{Asked, request};
use super::{LiveRuns, seed_of};
use crate::net::membership::members::Members;
use crate::net::store::fault::StorageFault;
use crate::net::store::{Store, StoreError, audit};
use crate::plan::{Plan, begins_with_file, draws_secretly};

/// Bytes of a plan's text that are accepted.
const PLAN_MAX: usize = HEADER_MAX / 2;
/// Bytes of an audit log's lines in a reply.
const LOG_MAX: usize = ADMIN_MAX / 2;

/// How long a command may wait for the engine where that waits for the storage, and where it is at work.
const ANSWER: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Models in a reply.
const MODELS_MAX: i64 = 1000;

/// Characters of a run's message in a list of runs.
const LISTED_MAX: usize = 300;

/// Answers operators.
pub(crate) struct OperatorService {
    pub(crate) store: Arc<Store>,
    pub(crate) room: Arc<dyn ModelRoom>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) live: watch::Receiver<LiveRuns>,
    pub(crate) state: PathBuf,
    pub(crate) members: Arc<Members>,
    pub(crate) presence: Arc<Presence>,
    /// What the engine waits for at present.
    pub(crate) fault: StorageFault,
}

impl std::fmt::Debug for OperatorService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorService")
    }
}

impl OperatorService {
    /// Checks a plan and puts it into the queue; `start` is what a plan with an external model begins with, and `by` goes into the audit log.
    pub(crate) async fn submit(
        &self,
        plan_toml: String,
        seed: Option<u64>,
        start: Option<InitialModel>,
        by: &str,
    ) -> Result<RunId, String> {
        let room = Arc::clone(&self.room);
        // Building a model may take a while.
        let built = tokio::task::spawn_blocking(move || prepare(&*room, plan_toml, seed, start)).await;
        let new = built.map_err(|_| "building the plan's model panicked; the server's log has more")??;
        let (new, by) = (Box::new(new), by.to_owned());
        self.put(|asked, reply| Command::Submit { new, by, asked, reply }).await
    }

    /// Puts a command to the engine and gives its reply. One that the engine does not come to in time is taken back, as is one whose asker
    /// goes away meanwhile.
    async fn put<T>(
        &self,
        command: impl FnOnce(Asked, oneshot::Sender<Result<T, String>>) -> Command,
    ) -> Result<T, String> {
        let (asking, asked) = request();
        let (reply, answer) = oneshot::channel();
        let command = command(asked, reply);
        let answered = async {
            let stopping = || "the server is shutting down".to_owned();
            self.commands.send(command).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        };
        tokio::pin!(answered);
        for (patience, is_last) in [(ANSWER, false), (ANSWER_MAX.saturating_sub(ANSWER), true)] {
            if let Ok(answer) = timeout(patience, &mut answered).await {
                return answer;
            }
            let fault = self.fault.told();
            if (is_last || fault.is_some()) && asking.withdraw() {
                let why = fault.map_or_else(
                    || "the server's rounds leave it no time; give the command again".to_owned(),
                    |fault| format!("the server waits for its storage: {fault}"),
                );
                return Err(format!("nothing was done, and nothing of it will be done later: {why}"));
            }
        }
        answered.await
    }

    /// The runs, newest first.
    pub(crate) async fn list(&self) -> Result<Vec<RunSummary>, String> {
        let mut runs = self.store.summaries().await.map_err(|error| error.to_string())?;
        let live = self.live.borrow();
        for run in &mut runs {
            if let Some(live) = live.get(&run.run) {
                let (history, clients) = (Vec::new(), Vec::new());
                *run = RunSummary { history, clients, ..(**live).clone() };
            }
            shorten(&mut run.message);
        }
        Ok(runs)
    }

    /// One run as it is now.
    pub(crate) async fn current(&self, run: Option<RunId>) -> Result<RunSummary, String> {
        let live = |run: &RunId| self.live.borrow().get(run).map(|live| (**live).clone());
        let current = match run.as_ref().and_then(live) {
            Some(current) => current,
            None => {
                let stored = self.store.summary(run).await.map_err(|error| error.to_string())?;
                let stored = stored.ok_or_else(|| match run {
                    Some(run) => format!("there is no run {run} here"),
                    None => "there is no run here yet".to_owned(),
                })?;
                live(&stored.run).unwrap_or(stored)
            }
        };
        let plan_toml = self.store.plan_toml(current.run).await.map_err(|error| error.to_string())?;
        Ok(if hides_participation(&current, &plan_toml) { without_participation(current) } else { current })
    }

    /// Who belongs to the federation, and whether they are connected.
    pub(crate) async fn members(&self) -> Result<Vec<Member>, String> {
        let seen = self.presence.sites().into_iter().map(|(site, seen)| (site, seen.told()));
        self.members.list(seen).await
    }

    /// Lets a run pause, go on or stop.
    pub(crate) async fn control(&self, run: RunId, control: Control, by: &str) -> Result<RunSummary, String> {
        let by = by.to_owned();
        self.put(|asked, reply| Command::Control { run, control, by, asked, reply }).await?;
        self.current(Some(run)).await
    }

    async fn newest(&self, run: Option<RunId>) -> Result<RunId, String> {
        match run {
            Some(run) => Ok(run),
            None => Ok(self.current(None).await?.run),
        }
    }

    /// What the audit log says of a run: the last lines, as many as a reply holds.
    pub(crate) async fn log(&self, run: Option<RunId>) -> Result<Vec<String>, String> {
        let (run, state) = (self.newest(run).await?, self.state.clone());
        let read = tokio::task::spawn_blocking(move || audit::lines_of(&state, run, LOG_MAX)).await;
        read.map_err(|_| "reading the audit log panicked; the server's log has more")?
            .map_err(|error| error.to_string())
    }

    /// The plan of a run, as it was submitted.
    pub(crate) async fn plan(&self, run: Option<RunId>) -> Result<String, String> {
        let run = self.newest(run).await?;
        self.store.plan_toml(run).await.map_err(|error| error.to_string())
    }

    /// The newest models of a run, of rounds before `before` where that is given, oldest first: as many as a reply holds. Without `before`
    /// the best one is among them, however old it is.
    pub(crate) async fn models(
        &self,
        run: Option<RunId>,
        before: Option<u32>,
    ) -> Result<Vec<ModelLine>, String> {
        let run = self.newest(run).await?;
        let models = async {
            let mut models = self.store.models_before(run, before, MODELS_MAX).await?;
            if before.is_none()
                && !models.iter().any(|model| model.line.best)
                && let Some(best) = self.store.model(run, ModelChoice::Best).await?
            {
                models.insert(0, best);
            }
            Ok(models)
        };
        let models = models.await.map_err(|error: StoreError| error.to_string())?;
        Ok(models.into_iter().map(|model| model.line).collect())
    }
}

/// Whether nobody may be shown who, or how many, took part in this run: its cohorts are drawn by secret chance, and no seed is told.
pub(crate) fn hides_participation(run: &RunSummary, plan_toml: &str) -> bool {
    !run.is_seeded && draws_secretly(plan_toml)
}

/// The same without who and how many took part. A coordinator tells nothing of it; what an earlier version has stored does.
fn without_participation(mut run: RunSummary) -> RunSummary {
    for line in &mut run.history {
        (line.cohort, line.answered, line.train, line.seconds) = (0, 0, None, 0.0);
    }
    for client in &mut run.clients {
        client.accepted = 0;
        client.refused.clear();
        client.declined.clear();
    }
    run
}

/// Cuts a message to what a list has room for; `run watch` shows the whole of it.
fn shorten(message: &mut String) {
    if let Some((end, _)) = message.char_indices().nth(LISTED_MAX) {
        message.truncate(end);
        message.push_str("...");
    }
}

/// Whether a plan with an external model may begin with so many values: the plan is read, and nothing else.
pub(crate) fn check_start(plan_toml: &str, values: u64) -> Result<(), String> {
    if plan_toml.len() > PLAN_MAX {
        return Err(format!("the plan has {} bytes; at most {PLAN_MAX} are allowed", plan_toml.len()));
    }
    // What else is wrong with it is told once the values are here: to find the noise of a plan may take minutes.
    if !begins_with_file(plan_toml).map_err(|error| error.to_string())? {
        return Err(NO_START.to_owned());
    }
    if values > PARAMETERS_MAX {
        return Err(format!("the start file has {values} values; at most {PARAMETERS_MAX} are allowed"));
    }
    Ok(())
}

/// Why a file that came with a plan is refused.
const NO_START: &str =
    "a start file came with the plan, whose model is not external: only such a model begins with a file";

/// The plan as it runs, and where its model begins.
fn begin(
    room: &dyn ModelRoom,
    plan: Plan,
    seed: Option<u64>,
    start: Option<InitialModel>,
) -> Result<(Plan, InitialModel), String> {
    let external =
        if let ModelSpec::External(model) = &plan.spec.model { Some(model.start.clone()) } else { None };
    match (external, start) {
        (None, None) => {
            let initial = room.begin(&plan.spec, seed_of(seed))?;
            Ok((plan, initial))
        }
        (None, Some(_)) => Err(NO_START.to_owned()),
        (Some(file), None) => Err(format!(
            "the plan begins with the file {file}, and no file came with it: submit it by `consortia run submit`, which sends the file along"
        )),
        (Some(file), Some(start)) => {
            let plan = plan.starting_with(&start.layout).map_err(|error| error.to_string())?;
            if let Some(place) = first_not_finite(start.shared.values()) {
                let tensor = start.layout.tensors().iter().find(|tensor| tensor.range().contains(&place));
                let (name, value) = (tensor.map_or("", |tensor| &tensor.name), start.shared.values()[place]);
                return Err(format!(
                    "{file}: tensor `{name}` has the value {value}; a run begins with finite values"
                ));
            }
            Ok((plan, start))
        }
    }
}

/// Parses a plan and builds its first model.
fn prepare(
    room: &dyn ModelRoom,
    plan_toml: String,
    seed: Option<u64>,
    start: Option<InitialModel>,
) -> Result<NewRun, String> {
    if plan_toml.len() > PLAN_MAX {
        return Err(format!("the plan has {} bytes; at most {PLAN_MAX} are allowed", plan_toml.len()));
    }
    let plan = room.methods().parse(&plan_toml).map_err(|error| error.to_string())?;
    let (plan, initial) = begin(room, plan, seed, start)?;
    // The header of a task holds the plan and two numbers a column.
    let header = plan.spec.to_json().len() + 16 * plan.spec.statistics().len() + 1024;
    if header > HEADER_MAX {
        return Err(format!(
            "the plan makes a task's header of {header} bytes; at most {HEADER_MAX} are allowed"
        ));
    }
    let (found, needed) = (initial.shared.len(), initial.layout.shared_len());
    if found != needed {
        return Err(format!(
            "the model has {found} values where its shared tensors have {needed}; this is a defect"
        ));
    }
    let (norm_max, tensors) = (plan.spec.update.norm_max, initial.layout.shared_lengths());
    plan.spec.lattice_within(norm_max, &tensors).map_err(|error| error.to_string())?;
    Ok(NewRun { plan: Arc::new(plan), plan_toml, seed, initial })
}
