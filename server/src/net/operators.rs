//! What operators ask for: submit a plan, list the runs, watch one.
//!
//! Plans are checked here, before the engine hears of them; a plan that makes no sense is answered with line, column and
//! value and never becomes a run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::RunId;
use protocol::wire::{
    ADMIN_MAX, AdminReply, AdminRequest, CodecError, ConnectError, Control, FRAME_HEAD, FrameKind,
    HEADER_MAX, ModelChoice, ModelLine, RunSummary, encode,
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::archive::ArchivedModel;
use super::engine::{Command, LiveRuns, NewRun, seed_of};
use super::frames::{FrameError, Patience, model_bytes, read_frame, write_frame};
use super::members::{Members, Verdict};
use super::request::{Asked, StorageFault, request};
use super::session::{OPENING, reject_on};
use super::store::{Store, StoreError};
use super::{ModelRoom, audit};
use crate::plan::draws_secretly;

/// Requests of one operator at a time.
const REQUESTS: u32 = 16;
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
    /// What the engine waits for at present.
    pub(crate) fault: StorageFault,
}

impl std::fmt::Debug for OperatorService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorService")
    }
}

impl OperatorService {
    /// Checks a plan and puts it into the queue; `by` goes into the audit log.
    pub(crate) async fn submit(
        &self,
        plan_toml: String,
        seed: Option<u64>,
        by: &str,
    ) -> Result<RunId, String> {
        let room = Arc::clone(&self.room);
        // Building a model may take a while.
        let built = tokio::task::spawn_blocking(move || prepare(&*room, plan_toml, seed)).await;
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

    /// Lets a run pause, go on or stop.
    pub(crate) async fn control(&self, run: RunId, control: Control, by: &str) -> Result<RunSummary, String> {
        let by = by.to_owned();
        self.put(|asked, reply| Command::Control { run, control, by, asked, reply }).await?;
        self.current(Some(run)).await
    }

    /// Serves the connection of the operator of this name until it is gone.
    pub(crate) async fn attend(self: &Arc<Self>, connection: &Connection, name: &str) {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(REQUESTS));
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (operators, connection, by) = (Arc::clone(self), connection.clone(), name.to_owned());
                        streams.spawn(async move { operators.answer(&connection, &by, send, recv).await });
                    }
                    Err(_) => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }

    async fn answer(&self, connection: &Connection, by: &str, mut send: SendStream, mut recv: RecvStream) {
        let patience = Patience { first: Some(OPENING), idle: OPENING };
        let reply = match read_frame(&mut recv, FrameKind::AdminRequest, ADMIN_MAX, patience).await {
            Ok(AdminRequest::Submit { plan_toml, seed }) => {
                self.submit(plan_toml, seed, by).await.map(|run| AdminReply::Submitted { run })
            }
            Ok(AdminRequest::List) => self.list().await.map(AdminReply::Runs),
            Ok(AdminRequest::Invite { sites, servers, seconds }) => {
                self.members.invite(&sites, &servers, seconds, by).await.map(AdminReply::Invites)
            }
            Ok(AdminRequest::Members) => self.members.list().await.map(AdminReply::Members),
            Ok(AdminRequest::Revoke { site }) => {
                self.members.revoke(site, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Quarantine { site, reason }) => {
                self.members.quarantine(site, &reason, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Release { site }) => {
                self.members.release(site, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Approve { site, phrase }) => {
                let decided = self.members.decide(site, Verdict::Approved, phrase.as_deref(), by).await;
                decided.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Refuse { site, phrase }) => {
                let decided = self.members.decide(site, Verdict::Refused, phrase.as_deref(), by).await;
                decided.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Control { run, control }) => {
                self.control(run, control, by).await.map(AdminReply::Run)
            }
            Ok(AdminRequest::Log { run }) => self.log(run).await.map(AdminReply::Log),
            Ok(AdminRequest::Plan { run }) => self.plan(run).await.map(AdminReply::Plan),
            Ok(AdminRequest::Models { run }) => self.models(run, None).await.map(AdminReply::Models),
            Ok(AdminRequest::ModelsBefore { run, before }) => {
                self.models(run, Some(before)).await.map(AdminReply::Models)
            }
            Ok(AdminRequest::Model { run, choice }) => match self.model(run, choice, &mut send).await {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Ok(AdminRequest::Watch { run }) => match self.watch(run, &mut send).await {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            // An operator's certificate in a site's hands.
            Err(FrameError::Codec(CodecError::Kind { found, .. })) if found == FrameKind::Hello as u8 => {
                return reject_on(connection, &mut send, by, ConnectError::NotASite).await;
            }
            Err(error) => Err(error.to_string()),
        };
        let reply = reply.unwrap_or_else(AdminReply::Error);
        if write_frame(&mut send, FrameKind::AdminReply, &reply).await.is_ok() {
            // The peer may be gone.
            let _ = send.finish();
        }
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
    async fn plan(&self, run: Option<RunId>) -> Result<String, String> {
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

    /// Sends a model: what is known of it and may be said about it, then its values.
    async fn model(
        &self,
        run: Option<RunId>,
        choice: ModelChoice,
        send: &mut SendStream,
    ) -> Result<(), String> {
        let shelved = self.store.released(run, choice).await.map_err(|error| error.to_string())?;
        let ArchivedModel { run, line, statement, layout, model, standardiser } = shelved;
        let side = |side: &usize| *side as u64;
        let tensors = layout.shared().map(|one| (one.name.clone(), one.shape.iter().map(side).collect()));
        let (tensors, model_len) = (tensors.collect(), model.len() as u64);
        let statement = statement.to_json();
        let reply = AdminReply::Model { run, line, statement, tensors, standardiser, model_len };
        // The peer may be gone; then there is nobody to tell.
        if write_frame(send, FrameKind::AdminReply, &reply).await.is_ok()
            && send.write_chunk(model_bytes(&Arc::new(model))).await.is_ok()
        {
            let _ = send.finish();
        }
        Ok(())
    }

    /// Sends a run's summary now and whenever it changes, until it has ended.
    async fn watch(&self, run: Option<RunId>, send: &mut SendStream) -> Result<(), String> {
        let mut live = self.live.clone();
        let mut last: Option<RunSummary> = None;
        let mut run = run;
        loop {
            live.borrow_and_update();
            let current = self.current(run).await?;
            run = Some(current.run);
            let ended = current.state.is_over();
            if last.as_ref() != Some(&current) {
                if send.write_all(&fitting(current.clone())).await.is_err() {
                    return Ok(());
                }
                last = Some(current);
            }
            if ended {
                // The peer may be gone.
                let _ = send.finish();
                return Ok(());
            }
            tokio::select! {
                changed = live.changed() => changed.map_err(|_| "the server is shutting down".to_owned())?,
                _ = send.stopped() => return Ok(()),
            }
        }
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

/// The frame of a summary, with as many clients as fit into one. Its message says so where some are left out.
fn fitting(mut summary: RunSummary) -> Vec<u8> {
    let (clients, message) = (summary.clients.len(), summary.message.clone());
    loop {
        if summary.clients.len() < clients {
            let shown = summary.clients.len();
            summary.message = format!("{message} ({shown} of {clients} clients are listed)");
        }
        let frame = encode(FrameKind::AdminReply, &AdminReply::Run(summary.clone()));
        if frame.len() <= FRAME_HEAD + ADMIN_MAX || summary.clients.is_empty() {
            return frame;
        }
        summary.clients.truncate(summary.clients.len() / 2);
    }
}

/// Parses a plan and builds its first model.
fn prepare(room: &dyn ModelRoom, plan_toml: String, seed: Option<u64>) -> Result<NewRun, String> {
    if plan_toml.len() > PLAN_MAX {
        return Err(format!("the plan has {} bytes; at most {PLAN_MAX} are allowed", plan_toml.len()));
    }
    let plan = room.methods().parse(&plan_toml).map_err(|error| error.to_string())?;
    // The header of a task holds the plan and two numbers a column.
    let header = plan.spec.to_json().len() + 16 * plan.spec.statistics().len() + 1024;
    if header > HEADER_MAX {
        return Err(format!(
            "the plan makes a task's header of {header} bytes; at most {HEADER_MAX} are allowed"
        ));
    }
    let initial = room.begin(&plan.spec, seed_of(seed))?;
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

#[cfg(test)]
mod tests {
    use protocol::ClientId;
    use protocol::wire::{ClientSummary, RunState};

    use super::*;

    #[test]
    fn a_summary_of_very_many_clients_still_fits_into_a_frame() {
        let client = |index: u32| ClientSummary {
            client: ClientId::new(&format!("site-{index}")).unwrap(),
            connected: true,
            accepted: index,
            refused: vec![("truncated".into(), 1)],
            declined: vec![],
            test: None,
        };
        let summary = RunSummary {
            run: RunId(1),
            name: "large".into(),
            state: RunState::Running,
            message: String::new(),
            rounds_done: 0,
            rounds: 1,
            is_seeded: false,
            model_sha256: String::new(),
            history: vec![],
            clients: (0..50_000).map(client).collect(),
        };
        let frame = fitting(summary);
        let said = String::from_utf8_lossy(&frame);
        assert!(said.contains(" of 50000 clients are listed)"));
        assert!((ADMIN_MAX / 4..=FRAME_HEAD + ADMIN_MAX).contains(&frame.len()), "{}", frame.len());
    }
}
