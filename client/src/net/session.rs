//! One connection's work: the greeting, then a stream per task.
//!
//! One task runs at a time, whatever run it is of. A newer task stops an older one of the same run, and so does a server that
//! gives up the task's stream or the connection. What the server sends is read in pieces, so that memory grows with the bytes received and never with
//! a length that was only announced. No trouble on a task's stream ends the connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use privacy::chain;
use protocol::wire::{
    AnswerBody, AnswerHeader, CodecError, FrameKind, Greeting, Hello, LedgerClaim, LedgerProof, Notice,
    REPLACED_MAX, Receipt, Rejection, SMALL_MAX, TaskHeader,
};
use protocol::{Answer, Decline, Outcome, RunId, Seed, Stop, Task, TaskId, UpdateCodec, Work, software_name};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use rand::TryRngCore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::explain;
use super::events::{AgentEvent, meaning};
use super::frames::{FrameError, Opening, read_frame, read_opening, write_frame};
use super::pace::Pace;
use super::values::{read_block, read_model, write_payload};
use crate::audit::{Audit, AuditEvent};
use crate::{LedgerHead, LedgerHistory, Participant, Personal, Trouble, answer};

/// How long the server may take to greet.
const GREETING_MAX: Duration = Duration::from_secs(20);
/// How long the server may take to acknowledge an answer that it has read.
const RECEIPT_MAX: Duration = Duration::from_secs(120);
/// The code with which a stream is given up.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// Why the server did not greet.
pub(super) enum GreetError {
    /// It will not greet next time either.
    Rejected(Rejection),
    /// It speaks another version.
    Version(CodecError),
    /// It may greet next time.
    Lost(String),
}

/// Says hello and returns the server's software and the name it knows us by.
///
/// A site with a ledger says how long it is, and shows the head that it had at the length that the server remembers. Nothing that a server says
/// changes the ledger or outlives the connection: one that lies about what it remembers refuses its service, and that is all.
pub(super) async fn greet(
    connection: &Connection,
    software: &str,
    ledger: Option<&LedgerHistory>,
) -> Result<(String, String), GreetError> {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| explain(&error))?;
        let said = say_hello(&mut send, software, ledger).await;
        let heard = match read_frame(&mut recv, FrameKind::Greeting, SMALL_MAX).await {
            Ok(Some(Greeting::Prove { records })) if ledger.is_some() => {
                let proof = ledger.map(|ledger| prove(ledger, records));
                let proven = write_frame(&mut send, FrameKind::LedgerProof, &proof.unwrap_or_default()).await;
                let heard = read_frame(&mut recv, FrameKind::Greeting, SMALL_MAX).await;
                proven.map_err(|error| error.to_string())?;
                heard
            }
            heard => heard,
        };
        let _ = send.finish();
        // A server that has heard enough may stop listening.
        if !matches!(said, Ok(()) | Err(FrameError::Write(WriteError::Stopped(_)))) {
            said.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(heard)
    };
    let lost = |fallback: String| match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => rejection(&String::from_utf8_lossy(&close.reason)),
        Some(error) => GreetError::Lost(explain(&error)),
        None => GreetError::Lost(fallback),
    };
    match tokio::time::timeout(GREETING_MAX, exchange).await {
        Ok(Ok(Ok(Some(Greeting::Welcome { software, you })))) => {
            Ok((software_name(&software), software_name(&you)))
        }
        Ok(Ok(Ok(Some(Greeting::Rejected(rejection))))) => Err(sort(rejection)),
        Ok(Ok(Ok(Some(Greeting::Prove { .. })))) => {
            Err(GreetError::Lost("the server asked for a proof of the ledger that was not due".to_owned()))
        }
        Ok(Ok(Ok(None))) => Err(lost("the server ended the greeting".to_owned())),
        Ok(Ok(Err(FrameError::Codec(error @ CodecError::Version { .. })))) => Err(GreetError::Version(error)),
        Ok(Ok(Err(error))) => Err(lost(error.to_string())),
        Ok(Err(error)) => Err(lost(error)),
        Err(_) => Err(GreetError::Lost("the server did not greet within 20 seconds".to_owned())),
    }
}

/// Hello, and what is claimed of the ledger. Without one there is no more to say.
async fn say_hello(
    send: &mut SendStream,
    software: &str,
    ledger: Option<&LedgerHistory>,
) -> Result<(), FrameError> {
    let hello = Hello { software: software.to_owned() };
    write_frame(send, FrameKind::Hello, &hello).await?;
    match ledger.map(LedgerHistory::head) {
        Some(LedgerHead { records, head }) => {
            write_frame(send, FrameKind::LedgerClaim, &LedgerClaim { records, head }).await
        }
        None => {
            let _ = send.finish();
            Ok(())
        }
    }
}

fn prove(ledger: &LedgerHistory, records: u64) -> LedgerProof {
    let replaced = ledger.replaced().into_iter().take(REPLACED_MAX).collect();
    LedgerProof { head: ledger.head_at(records), replaced }
}

/// Which rejections no waiting will heal.
fn sort(rejection: Rejection) -> GreetError {
    match rejection {
        Rejection::Version { .. }
        | Rejection::NotAHello
        | Rejection::NotASite
        | Rejection::Revoked
        | Rejection::LedgerForked { .. }
        | Rejection::LedgerMissing => GreetError::Rejected(rejection),
        Rejection::Superseded | Rejection::ShuttingDown | Rejection::Busy | Rejection::Late => {
            GreetError::Lost(rejection.to_string())
        }
    }
}

/// A rejection that came as the text of the close, because the close overtook the greeting.
fn rejection(text: &str) -> GreetError {
    let fixed = [Rejection::NotASite, Rejection::NotAHello, Rejection::Revoked, Rejection::LedgerMissing]
        .into_iter()
        .find(|known| known.to_string() == text);
    fixed.map_or_else(|| GreetError::Lost(text.to_owned()), GreetError::Rejected)
}

/// Why the server has closed a connection, where no other one will do better.
pub(super) fn ended_for_good(error: &ConnectionError) -> Option<Rejection> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    match rejection(&String::from_utf8_lossy(&close.reason)) {
        GreetError::Rejected(rejection) => Some(rejection),
        GreetError::Version(_) | GreetError::Lost(_) => None,
    }
}

/// Takes what a participant keeps to wherever the shell wants it.
pub(super) type Keeper = Arc<dyn Fn(&Personal) + Send + Sync>;

/// Where tasks are done, whatever connection they come over.
#[derive(Clone)]
pub(super) struct Workshop {
    pub(super) participant: Arc<Mutex<Participant>>,
    pub(super) audit: Option<Audit>,
    /// Set once the site's books can be kept no longer.
    pub(super) broken: CancellationToken,
    pub(super) keeper: Option<Keeper>,
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
}

/// Why a task came to nothing.
#[derive(Debug, thiserror::Error)]
enum Abandoned {
    #[error(transparent)]
    Frame(FrameError),
    #[error("the server no longer wants it")]
    Unwanted,
    #[error("the server did not acknowledge the answer within 120 seconds")]
    NoReceipt,
    #[error("the answer could not be packed: {0}")]
    Unpacked(String),
    #[error("nothing leaves that is not written down: {0}")]
    Unwritten(String),
}

impl From<FrameError> for Abandoned {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Read(ReadError::Reset(_)) => Self::Unwanted,
            other => Self::Frame(other),
        }
    }
}

impl Workshop {
    /// Tells the log and whoever listens. A listener that does not keep up misses events; the work goes on.
    pub(super) fn report(&self, event: AgentEvent) {
        match &event {
            AgentEvent::Waiting { .. }
            | AgentEvent::Declined { .. }
            | AgentEvent::Complained { .. }
            | AgentEvent::Refused { .. }
            | AgentEvent::Abandoned { .. }
            | AgentEvent::Quarantined { .. } => tracing::warn!(target: "events", "{event}"),
            AgentEvent::Connected { .. }
            | AgentEvent::Started { .. }
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
        let newest = Newest::default();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (workshop, newest) = (self.clone(), newest.clone());
                        tasks.spawn(workshop.attend(TaskStream { send, recv }, newest));
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
        if let Err(trouble) = self.exchange(&mut stream, &stop, &newest, &mut id).await {
            let _ = stream.send.reset(GIVEN_UP);
            let _ = stream.recv.stop(GIVEN_UP);
            self.report(AgentEvent::Abandoned { task: id, trouble: trouble.to_string() });
        }
        if self.unwritten().is_some() {
            self.broken.cancel();
        }
    }

    /// Why the site's books can be kept no longer.
    pub(super) fn unwritten(&self) -> Option<String> {
        self.audit.as_ref().and_then(Audit::trouble)
    }

    /// Task in, answer out, receipt in. Leaves the task's id in `id` as soon as it is known.
    async fn exchange(
        &self,
        stream: &mut TaskStream,
        stop: &Stop,
        newest: &Newest,
        id: &mut Option<TaskId>,
    ) -> Result<(), Abandoned> {
        let header = match read_opening(&mut stream.recv).await?.ok_or(FrameError::Ended)? {
            Opening::Task(header) => header,
            Opening::Notice(notice) => {
                let _ = stream.send.finish();
                self.hear(notice).await;
                return Ok(());
            }
        };
        let task = *id.insert(header.id);
        newest.replace(task.run, stop);
        let (attempted, codec) = match self.check_size(&header) {
            Ok(len) => self.receive_and_work(header, len, stop, stream).await?,
            Err(trouble) => return self.decline_unread(task, trouble, stream).await,
        };
        if let Err(trouble) = &attempted {
            self.report_declined(task, trouble);
        }
        match self.deliver(answer(task, attempted), codec, stream).await? {
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

    fn report_declined(&self, task: TaskId, trouble: &Trouble) {
        let message = trouble.message.clone();
        self.report(AgentEvent::Declined { task, reason: trouble.reason, message });
    }

    /// The number of values that will be read, when the site allows as many.
    fn check_size(&self, header: &TaskHeader) -> Result<usize, Trouble> {
        let bytes = header.payload_bytes();
        let fits = bytes.is_some_and(|bytes| bytes <= self.model_bytes_max);
        usize::try_from(header.model_len).ok().filter(|_| fits).ok_or_else(|| {
            let announced = bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
            let message = format!(
                "the task carries {announced} of values; this site allows {} bytes (model_bytes_max)",
                self.model_bytes_max
            );
            Trouble::open(Decline::Unsupported, message)
        })
    }

    /// Declines a task whose model will not be read. No receipt can be heard behind it, so none is awaited.
    async fn decline_unread(
        &self,
        task: TaskId,
        trouble: Trouble,
        stream: &mut TaskStream,
    ) -> Result<(), Abandoned> {
        self.report_declined(task, &trouble);
        let (header, _) = AnswerHeader::split(answer(task, Err(trouble)));
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
    ) -> Result<(Result<Outcome, Trouble>, UpdateCodec), Abandoned> {
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
                let codec = task.spec.update.codec;
                return Ok((self.work(task, stop, stream).await?, codec));
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Ok((Err(Trouble::open(Decline::Unsupported, unread)), UpdateCodec::Exact))
    }

    /// Does the task on a thread of its own, and stops it when the server gives up the stream.
    async fn work(
        &self,
        task: Task,
        stop: &Stop,
        stream: &mut TaskStream,
    ) -> Result<Result<Outcome, Trouble>, Abandoned> {
        let (workshop, asked) = (self.clone(), stop.clone());
        let mut job = tokio::task::spawn_blocking(move || {
            let outcome = workshop.attempt(&task, &asked);
            workshop.keep_memory(task);
            outcome
        });
        let unwanted = async {
            tokio::select! {
                _ = stream.send.stopped() => {}
                () = given_up(&mut stream.recv) => {}
            }
        };
        tokio::select! {
            done = &mut job => Ok(done.unwrap_or_else(|error| {
                Err(Trouble::open(Decline::Failed, format!("the work ended without a result: {error}")))
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

    fn attempt(&self, task: &Task, stop: &Stop) -> Result<Outcome, Trouble> {
        let mut bytes = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
            Trouble::open(Decline::Failed, format!("the operating system gives no entropy: {error}"))
        })?;
        let mut participant = self.participant.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = participant.attempt(task, Seed::from_entropy(bytes), stop);
        if let Some(complaint) = participant.take_complaint() {
            self.report(AgentEvent::Complained { task: task.id, message: complaint.message });
        }
        if let (Ok(outcome), Some(keeper)) = (&outcome, &self.keeper)
            && outcome.points().is_some()
            && !participant.personal().is_empty()
        {
            keeper(participant.personal());
        }
        outcome
    }

    /// Sends the answer and waits for its receipt. A server that stops reading may still say why.
    async fn deliver(
        &self,
        answer: Answer,
        codec: UpdateCodec,
        stream: &mut TaskStream,
    ) -> Result<Receipt, Abandoned> {
        let task = answer.task;
        let packed = tokio::task::spawn_blocking(move || AnswerHeader::pack(answer, codec)).await;
        let (header, payload) = packed.map_err(|error| Abandoned::Unpacked(error.to_string()))?;
        self.written(answered(task, &header), Audit::seal).await?;
        self.report(AgentEvent::Answering { task });
        let sent = async {
            write_frame(&mut stream.send, FrameKind::Answer, &header).await?;
            write_payload(&mut stream.send, payload, self.up.as_ref()).await?;
            Ok::<_, FrameError>(())
        };
        match sent.await {
            Ok(()) => {
                let _ = stream.send.finish();
            }
            Err(FrameError::Write(WriteError::Stopped(_))) => {}
            Err(error) => return Err(error.into()),
        }
        let receipt = read_frame(&mut stream.recv, FrameKind::Receipt, SMALL_MAX);
        let receipt = tokio::time::timeout(RECEIPT_MAX, receipt).await.map_err(|_| Abandoned::NoReceipt)?;
        Ok(receipt?.ok_or(FrameError::Ended)?)
    }
}

/// What the audit log says of an answer that is about to leave.
fn answered(task: TaskId, header: &AnswerHeader) -> AuditEvent {
    let outcome = match header.body {
        AnswerBody::Trained { .. } | AnswerBody::Compressed { .. } => "trained",
        AnswerBody::Evaluated { .. } => "evaluated",
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

impl std::fmt::Debug for Workshop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workshop").field("model_bytes_max", &self.model_bytes_max).finish_non_exhaustive()
    }
}
