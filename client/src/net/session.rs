//! One connection's work: a stream per task.
//!
//! One task runs at a time, whatever run it is of. A newer task stops an older one of the same run, and so does a server that
//! gives up the task's stream or the connection. What the server sends is read in pieces, so that memory grows with the bytes received and never with
//! a length that was only announced. No error on a task's stream ends the connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use privacy::chain;
use protocol::wire::{
    AnswerBody, AnswerHeader, FrameKind, Notice, Receipt, Resent, SMALL_MAX, TaskHeader, Unsupported,
    WorkHeader,
};
use protocol::{Answer, Decline, Rejection, RunId, Seed, Stop, Task, TaskId, UPDATE, UpdateCodec, Work};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use rand::TryRngCore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::explain;
use super::events::{AgentEvent, meaning};
use super::frames::{FrameError, Opening, read_frame, read_opening, write_frame};
use super::greeting::is_capable;
use super::outbox::{self, Outbox, Packed, Unusable};
use super::pace::Pace;
use super::values::{read_block, read_model, write_payload};
use crate::audit::{Audit, AuditEvent};
use crate::{LedgerHead, LedgerHistory, LocalState, Participant, SiteMethods, TaskError, answer};

/// How long the server may take to acknowledge an answer that it has read.
const RECEIPT_MAX: Duration = Duration::from_secs(120);
/// The code with which a stream is given up.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// How long after a stream its connection may end, so that the end of both is one.
const LEAVING: Duration = Duration::from_millis(250);

/// Takes what a participant keeps to wherever the shell wants it.
pub(super) type StateSink = Arc<dyn Fn(&LocalState) + Send + Sync>;

/// Where tasks are done, whatever connection they come over.
#[derive(Clone)]
pub(super) struct TaskRunner {
    pub(super) participant: Arc<Mutex<Participant>>,
    /// What logs call the steps of methods.
    pub(super) methods: SiteMethods,
    pub(super) audit: Option<Audit>,
    /// Set once the site's books can be kept no longer.
    pub(super) broken: CancellationToken,
    pub(super) sink: Option<StateSink>,
    pub(super) outbox: Arc<Mutex<Outbox>>,
    /// Where the site's ledger ends, and has ended.
    pub(super) ledger: Option<LedgerHistory>,
    pub(super) events: Option<mpsc::Sender<AgentEvent>>,
    pub(super) model_bytes_max: u64,
    /// The memory of the last model, for the next one: fresh pages cost about as much as receiving what goes into them.
    pub(super) spare: Arc<Mutex<Vec<f32>>>,
    /// How fast values may leave, and come.
    pub(super) up: Option<Pace>,
    pub(super) down: Option<Pace>,
}

/// The newest task of each run on one connection.
#[derive(Clone, Default)]
struct Newest(Arc<Mutex<BTreeMap<RunId, Stop>>>);

impl Newest {
    /// Stops the task of `run` that this one replaces.
    fn replace(&self, run: RunId, stop: &Stop) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|_, stop| !stop.is_stopped());
        if let Some(before) = newest.insert(run, stop.clone()) {
            before.stop();
        }
    }
}

/// Stops the work when whoever waits for it is gone.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A task's two halves of a stream.
struct TaskStream {
    send: SendStream,
    recv: RecvStream,
    /// Whether the server reads [`Resent`].
    is_capable: bool,
    /// What carries both.
    connection: Connection,
}

/// An answer that is about to leave.
struct Ready {
    answer: Packed,
    /// Whether it was computed for an earlier stream.
    is_resent: bool,
}

impl Ready {
    fn fresh(answer: Answer, codec: UpdateCodec) -> Self {
        let (header, payload) = AnswerHeader::pack(answer, codec);
        Self { answer: outbox::packed(header, payload), is_resent: false }
    }
}

/// Why a task came to nothing.
#[derive(Debug, thiserror::Error)]
enum Abandoned {
    #[error(transparent)]
    Frame(FrameError),
    #[error("the server no longer wants it")]
    Unwanted,
    #[error("the connection has ended ({}); the server asks again when both are connected", explain(.0))]
    Lost(ConnectionError),
    #[error("the server did not acknowledge the answer within 120 seconds")]
    NoReceipt,
    #[error("the site's books cannot be written, so no answer leaves: {0}")]
    Unwritten(String),
}

impl From<FrameError> for Abandoned {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Read(ReadError::Reset(_)) => Self::Unwanted,
            FrameError::Read(ReadError::ConnectionLost(why))
            | FrameError::Write(WriteError::ConnectionLost(why)) => Self::Lost(why),
            other => Self::Frame(other),
        }
    }
}

impl Abandoned {
    /// The same of a task on this connection. A server that ends gives its streams up just before its connections: the end of the
    /// connection says that it still wants what it has asked for.
    async fn on(self, connection: &Connection) -> Self {
        match self {
            Self::Unwanted => match tokio::time::timeout(LEAVING, connection.closed()).await {
                Ok(why) => Self::Lost(why),
                Err(_) => Self::Unwanted,
            },
            other => other,
        }
    }
}

impl TaskRunner {
    /// Tells the log and whoever listens. A listener that does not keep up misses events; the work goes on.
    pub(super) fn report(&self, event: AgentEvent) {
        match &event {
            AgentEvent::Waiting { .. }
            | AgentEvent::Declined { .. }
            | AgentEvent::Complained { .. }
            | AgentEvent::Refused { .. }
            | AgentEvent::Abandoned { .. }
            | AgentEvent::Discarded { .. }
            | AgentEvent::ChargedAgain { .. }
            | AgentEvent::Quarantined { .. } => tracing::warn!(target: "events", "{event}"),
            AgentEvent::Connected { .. }
            | AgentEvent::Started { .. }
            | AgentEvent::Resending { .. }
            | AgentEvent::Answering { .. }
            | AgentEvent::Accepted { .. }
            | AgentEvent::Released
            | AgentEvent::Left => tracing::info!(target: "events", "{event}"),
        }
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }

    /// Does the tasks that come over `connection` until it ends, and says why it ended; or until it is asked to leave and has nothing
    /// to do, or its books can be kept no longer. Dropping the future stops the work.
    pub(super) async fn serve(
        &self,
        connection: &Connection,
        leave: &CancellationToken,
    ) -> Option<ConnectionError> {
        let mut tasks = JoinSet::new();
        let (newest, is_capable) = (Newest::default(), is_capable(connection));
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (runner, newest) = (self.clone(), newest.clone());
                        let stream = TaskStream { send, recv, is_capable, connection: connection.clone() };
                        tasks.spawn(runner.attend(stream, newest));
                    }
                    Err(error) => return Some(error),
                },
                Some(_) = tasks.join_next() => {}
                () = self.broken.cancelled() => return None,
                () = leave.cancelled(), if tasks.is_empty() => return None,
            }
        }
    }

    async fn attend(self, mut stream: TaskStream, newest: Newest) {
        let stop = Stop::default();
        let _guard = StopOnDrop(stop.clone());
        let mut id = None;
        if let Err(error) = self.exchange(&mut stream, &stop, &newest, &mut id).await {
            let _ = stream.send.reset(GIVEN_UP);
            let _ = stream.recv.stop(GIVEN_UP);
            stop.stop();
            let error = error.on(&stream.connection).await.to_string();
            self.report(AgentEvent::Abandoned { task: id, error });
        }
        if self.unwritten().is_some() {
            self.broken.cancel();
        }
    }

    /// Why the site's books can be kept no longer.
    pub(super) fn unwritten(&self) -> Option<String> {
        self.audit.as_ref().and_then(Audit::error)
    }

    /// Task in, answer out, receipt in. Leaves the task's id in `id` as soon as it is known.
    async fn exchange(
        &self,
        stream: &mut TaskStream,
        stop: &Stop,
        newest: &Newest,
        id: &mut Option<TaskId>,
    ) -> Result<(), Abandoned> {
        let mut header = match read_opening(&mut stream.recv).await?.ok_or(FrameError::Ended)? {
            Opening::Task(header) => *header,
            Opening::Unread { task, why } => {
                *id = Some(task.id);
                let error = TaskError::open(Decline::Unsupported, why);
                return self.decline_unread(task.id, error, stream).await;
            }
            Opening::Unknown { kind } => return self.answer_unsupported(kind, stream).await,
            Opening::Notice(notice) => {
                let _ = stream.send.finish();
                self.hear(notice).await;
                return Ok(());
            }
            Opening::UnknownNotice => {
                let _ = stream.send.finish();
                tracing::info!("the server gave a notice that this program does not know; it is ignored");
                return Ok(());
            }
        };
        if let WorkHeader::Method { method, version, .. } = &header.work {
            header.id.label = self.methods.label_of(method, *version, header.id.step);
        }
        let task = *id.insert(header.id);
        newest.replace(task.run, stop);
        let attempted = match self.check_size(&header) {
            Ok(len) => self.receive_and_work(header, len, stop, stream).await?,
            Err(error) => return self.decline_unread(task, error, stream).await,
        };
        let ready = attempted.unwrap_or_else(|error| {
            self.report_declined(task, &error);
            Ready::fresh(answer(task, Err(error)), UpdateCodec::Exact)
        });
        let delivered = match self.deliver(task, ready, stream).await {
            Err(error) => Err(error.on(&stream.connection).await),
            delivered => delivered,
        };
        match &delivered {
            // Whoever did not hear all of it may ask once more; so may a server whose line was lost.
            Ok(Receipt::Refused(Rejection::Truncated)) => {}
            Ok(Receipt::Accepted) => self.settle_answer(task, Outbox::acknowledged).await,
            Ok(_) | Err(Abandoned::Unwanted) => self.settle_answer(task, Outbox::forget_task).await,
            Err(_) => {}
        }
        match delivered? {
            Receipt::Accepted => {
                self.note(AuditEvent::Receipt { task: task.into(), refused: None }).await;
                self.report(AgentEvent::Accepted { task });
            }
            Receipt::Refused(refusal) => {
                self.note(AuditEvent::Receipt { task: task.into(), refused: Some(refusal) }).await;
                self.report(AgentEvent::Refused { task, refusal, meaning: meaning(refusal) });
            }
        }
        Ok(())
    }

    /// Passes on what the server tells between tasks.
    async fn hear(&self, notice: Notice) {
        match notice {
            Notice::Quarantined { reason } => {
                let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
                self.note(AuditEvent::Quarantined { reason: reason.clone() }).await;
                self.report(AgentEvent::Quarantined { reason });
            }
            Notice::Released => {
                self.note(AuditEvent::Released).await;
                self.report(AgentEvent::Released);
            }
        }
    }

    /// Writes into the site's audit log, where it has one. A log that cannot be written lets no answer leave afterwards.
    pub(super) async fn note(&self, event: AuditEvent) {
        if let Err(error) = self.written(event, Audit::note).await {
            tracing::error!("{error}");
        }
    }

    /// The last word: durable when this returns, where it can be.
    pub(super) async fn note_the_end(&self) {
        if let Err(error) = self.written(AuditEvent::Stopped, Audit::seal).await {
            tracing::error!("{error}");
        }
    }

    /// Writes away from the threads that wait: a disk may take its time.
    async fn written(
        &self,
        event: AuditEvent,
        write: fn(&Audit, AuditEvent) -> Result<(), chain::WriteError>,
    ) -> Result<(), Abandoned> {
        let Some(audit) = self.audit.clone() else { return Ok(()) };
        let written = tokio::task::spawn_blocking(move || write(&audit, event)).await;
        let written = written.map_err(|error| Abandoned::Unwritten(error.to_string()))?;
        written.map_err(|error| Abandoned::Unwritten(error.to_string()))
    }

    fn report_declined(&self, task: TaskId, error: &TaskError) {
        let message = error.message.clone();
        self.report(AgentEvent::Declined { task, reason: error.reason, message });
    }

    /// The number of values that will be read, when the site allows as many.
    fn check_size(&self, header: &TaskHeader) -> Result<usize, TaskError> {
        let bytes = header.payload_bytes();
        let fits = bytes.is_some_and(|bytes| bytes <= self.model_bytes_max);
        usize::try_from(header.model_len).ok().filter(|_| fits).ok_or_else(|| {
            let announced = bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
            let message = format!(
                "the task carries {announced} of values; this site allows {} bytes (model_bytes_max)",
                self.model_bytes_max
            );
            TaskError::open(Decline::Unsupported, message)
        })
    }

    /// Says that a stream began with a frame of a kind that is not known here, and reads no further.
    async fn answer_unsupported(&self, kind: u8, stream: &mut TaskStream) -> Result<(), Abandoned> {
        let error = format!(
            "the server sent a frame of kind {kind}, which this program does not know; is this site's software older than the server's?"
        );
        self.report(AgentEvent::Abandoned { task: None, error });
        write_frame(&mut stream.send, FrameKind::Unsupported, &Unsupported { kind }).await?;
        let _ = stream.send.finish();
        let _ = stream.recv.stop(GIVEN_UP);
        Ok(())
    }

    /// Declines a task whose model will not be read. No receipt can be heard behind it, so none is awaited.
    async fn decline_unread(
        &self,
        task: TaskId,
        error: TaskError,
        stream: &mut TaskStream,
    ) -> Result<(), Abandoned> {
        self.report_declined(task, &error);
        let (header, _) = AnswerHeader::split(answer(task, Err(error)));
        self.written(answered(task, &header), Audit::seal).await?;
        write_frame(&mut stream.send, FrameKind::Answer, &header).await?;
        let _ = stream.send.finish();
        let _ = stream.recv.stop(GIVEN_UP);
        Ok(())
    }

    /// Reads the model that follows the header, then does the task.
    async fn receive_and_work(
        &self,
        header: TaskHeader,
        len: usize,
        stop: &Stop,
        stream: &mut TaskStream,
    ) -> Result<Result<Ready, TaskError>, Abandoned> {
        let spare = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        let model = read_model(&mut stream.recv, len, spare, self.down.as_ref()).await?;
        let mut values = Vec::new();
        for block in header.blocks() {
            let len = usize::try_from(block.len).map_err(|_| Abandoned::Frame(FrameError::Excess))?;
            values.push(read_block(&mut stream.recv, (block.dtype, len), self.down.as_ref()).await?);
        }
        // What a plan may ask for is bounded, and takes its time to be judged all the same.
        let task = tokio::task::spawn_blocking(move || header.into_task(model, values)).await;
        let unread = match task {
            Ok(Ok(task)) => {
                self.report(AgentEvent::Started { task: task.id });
                return self.work(task, stop, stream).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Ok(Err(TaskError::open(Decline::Unsupported, unread)))
    }

    /// Does the task on a thread of its own, and stops it when the server gives up the stream.
    async fn work(
        &self,
        task: Task,
        stop: &Stop,
        stream: &mut TaskStream,
    ) -> Result<Result<Ready, TaskError>, Abandoned> {
        let (runner, asked, is_capable) = (self.clone(), stop.clone(), stream.is_capable);
        let mut job = tokio::task::spawn_blocking(move || {
            let attempted = runner.attempt(&task, &asked, is_capable);
            runner.keep_memory(task);
            attempted
        });
        let unwanted = async {
            tokio::select! {
                _ = stream.send.stopped() => {}
                () = given_up(&mut stream.recv) => {}
            }
        };
        tokio::select! {
            done = &mut job => Ok(done.unwrap_or_else(|error| {
                Err(TaskError::open(Decline::Failed, format!("the work ended without a result: {error}")))
            })),
            () = unwanted => {
                stop.stop();
                Err(Abandoned::Unwanted)
            }
        }
    }

    /// Keeps the memory of a model that nobody uses any more.
    fn keep_memory(&self, task: Task) {
        let (Work::Train { model, .. } | Work::Evaluate { model }) = task.work else { return };
        if let Ok(model) = Arc::try_unwrap(model) {
            *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = model.into_values();
        }
    }

    /// What is to be sent: the answer that is kept for the task, or one that is computed now and kept before anything of it leaves. Kept it is
    /// on this thread, so that an answer whose connection ended meanwhile is not lost.
    fn attempt(&self, task: &Task, stop: &Stop, is_capable: bool) -> Result<Ready, TaskError> {
        let mut bytes = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
            TaskError::open(Decline::Failed, format!("the operating system gives no entropy: {error}"))
        })?;
        let mut participant = self.participant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = self.kept_answer(task, is_capable) {
            participant.judge_again(task, stop)?;
            self.report(AgentEvent::Resending { task: task.id });
            return Ok(Ready { answer, is_resent: true });
        }
        let outcome = participant.attempt(task, Seed::from_entropy(bytes), stop);
        if participant.was_charged_again() {
            self.report(AgentEvent::ChargedAgain { task: task.id });
        }
        if let Some(complaint) = participant.take_complaint() {
            self.report(AgentEvent::Complained { task: task.id, message: complaint.message });
        }
        if let (Ok(outcome), Some(sink)) = (&outcome, &self.sink)
            && outcome.points().is_some()
            && !participant.personal().is_empty()
        {
            sink(participant.personal());
        }
        let ready = Ready::fresh(Answer { task: task.id, outcome: outcome? }, task.spec.update.codec);
        let ledger = self.ledger.as_ref().map(LedgerHistory::head);
        if let Err(error) = self.outbox().keep(task, &ready.answer, ledger) {
            tracing::error!(
                "the answer to the {} is not kept ({error}); if the line is lost now, the task is done and charged again",
                task.id
            );
        }
        Ok(ready)
    }

    /// The answer to the task that was computed before and can be sent again.
    fn kept_answer(&self, task: &Task, is_capable: bool) -> Option<Packed> {
        let holds = |then: Option<LedgerHead>| match (then, &self.ledger) {
            (Some(head), Some(ledger)) => ledger.extends(head),
            (None, None) => true,
            _ => false,
        };
        let found = self.outbox().find(task, holds);
        // A server of an earlier release counts every update, and finds fewer records in the ledger of a site that shows one.
        let is_counted = |answer: &Packed| {
            self.ledger.is_some() && answer.header.blocks().iter().any(|block| block.name == UPDATE)
        };
        let unusable = match found {
            Ok(Some(answer)) if is_capable || !is_counted(&answer) => return Some(answer),
            Ok(Some(_)) => Unusable::Earlier,
            Ok(None) => return None,
            Err(unusable) => unusable,
        };
        self.report(AgentEvent::Discarded { task: task.id, why: unusable.to_string() });
        None
    }

    /// Tells the outbox what became of an answer, away from the threads that wait.
    async fn settle_answer(&self, task: TaskId, settle: fn(&mut Outbox, TaskId)) {
        let outbox = Arc::clone(&self.outbox);
        let settled = tokio::task::spawn_blocking(move || {
            settle(&mut outbox.lock().unwrap_or_else(PoisonError::into_inner), task);
        });
        // Only a panic could keep it from that, and what is left is thrown away by the next task of the run.
        let _ = settled.await;
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the answer and waits for its receipt. A server that stops reading may still say why.
    async fn deliver(
        &self,
        task: TaskId,
        ready: Ready,
        stream: &mut TaskStream,
    ) -> Result<Receipt, Abandoned> {
        let Ready { answer: Packed { header, values }, is_resent } = ready;
        let event = match (answered(task, &header), is_resent) {
            (AuditEvent::Answered { task, bytes, .. }, true) => {
                AuditEvent::Answered { task, outcome: "resent".to_owned(), bytes }
            }
            (event, _) => event,
        };
        self.written(event, Audit::seal).await?;
        self.report(AgentEvent::Answering { task });
        let sent = async {
            if is_resent && stream.is_capable {
                write_frame(&mut stream.send, FrameKind::Resent, &Resent).await?;
            }
            write_frame(&mut stream.send, FrameKind::Answer, &header).await?;
            write_payload(&mut stream.send, values, self.up.as_ref()).await?;
            Ok::<_, FrameError>(())
        };
        match sent.await {
            Ok(()) => {
                let _ = stream.send.finish();
            }
            Err(FrameError::Write(WriteError::Stopped(_))) => {}
            Err(error) => return Err(error.into()),
        }
        // Of a slow line most of the answer is still under way here.
        let overdue = async {
            let _ = stream.send.stopped().await;
            tokio::time::sleep(RECEIPT_MAX).await;
        };
        tokio::select! {
            biased;
            receipt = read_frame(&mut stream.recv, FrameKind::Receipt, SMALL_MAX) => {
                Ok(receipt?.ok_or(FrameError::Ended)?)
            }
            () = overdue => Err(Abandoned::NoReceipt),
        }
    }
}

/// What the audit log says of an answer that is about to leave.
fn answered(task: TaskId, header: &AnswerHeader) -> AuditEvent {
    let outcome = match header.body {
        AnswerBody::Trained { .. } | AnswerBody::Compressed { .. } => "trained",
        AnswerBody::Measured { len: Some(_), .. } => "trained",
        AnswerBody::Evaluated { .. } | AnswerBody::Measured { .. } => "evaluated",
        AnswerBody::Counted { .. } => "counted",
        AnswerBody::Contributed { .. } => "contributed",
        AnswerBody::Declined { .. } => "declined",
    };
    let bytes = header.payload_bytes().unwrap_or(u64::MAX);
    AuditEvent::Answered { task: task.into(), outcome: outcome.to_owned(), bytes }
}

/// Resolves when the server resets its half or the connection ends; never when it merely has no more to say.
async fn given_up(recv: &mut RecvStream) {
    if let Ok(None) = recv.received_reset().await {
        std::future::pending::<()>().await;
    }
}

impl std::fmt::Debug for TaskRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskRunner").field("model_bytes_max", &self.model_bytes_max).finish_non_exhaustive()
    }
}
