//! One task's stream: the task and its model out, the answer in, the receipt out.
//!
//! Lengths are checked against the plan before memory is taken, and the bytes of updates held at a time, from the first
//! read until the engine has folded them, are bounded. A peer that waits for its turn is held back by QUIC's own flow
//! control. Everything that is not a whole answer to this very task is refused here, with its reason.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::wire::{
    AnswerBody, AnswerHeader, FrameKind, Payload, Receipt, Resent, SMALL_MAX, TaskHeader, Unsupported, decode,
};
use protocol::{
    Answer, ClientId, DType, Decline, PayloadSpec, Rejection, TaskId, UPDATE, UpdateCodec, Values, Work,
};
use quinn::{Connection, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::session::ServerContext;
use crate::net::engine::metrics::Carried;
use crate::net::engine::uploads::Room;
use crate::net::engine::{Command, TaskOrder};
use crate::net::transport::endpoint::{WINDOW_IDLE, WINDOW_UPLOAD, WINDOW_UPLOAD_MIN};
use crate::net::transport::frames::{
    FrameError, Pace, Patience, at_end, block_bytes, read_known, read_values, write_frame,
};
use crate::net::transport::limits::Limits;
use crate::net::transport::messages::{CODE_MISBEHAVED, LAST_WORDS};

/// The code with which a stream is given up.
const CODE_CANCELLED: VarInt = VarInt::from_u32(1);
/// How long a refused peer's receipt may take the engine.
const RECEIPT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin once its peer has stopped listening: one that declines a task unread does both at once.
const LAST_ANSWER: Duration = Duration::from_millis(200);
/// How long after a stream was given up its connection may take to end.
const LEAVING: Duration = Duration::from_millis(100);
/// Bytes a microsecond for which the window of an upload is made: 16 MiB for a peer 100 ms away.
const RATE_PER_MICRO: u64 = 160;
/// Whose stream it is.
pub(crate) struct Exchange {
    pub(crate) context: Arc<ServerContext>,
    pub(crate) connection: Connection,
    pub(crate) client: ClientId,
    pub(crate) session: u64,
    /// Whether the site reads the number of an attempt.
    pub(crate) knows_attempts: bool,
}

/// What an answer must fit.
struct Expected {
    task: TaskId,
    payload: Arc<PayloadSpec>,
    /// Whether no number may show that this was asked and answered: the drawn cohort is a secret.
    is_hidden: bool,
}

/// Why there is no answer.
enum Fault {
    /// It is refused.
    Refused(Rejection),
    /// The connection is gone.
    Lost,
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        error.refusal().map_or(Self::Lost, Self::Refused)
    }
}

/// The header of an answer.
struct Heard {
    header: AnswerHeader,
    /// Whether the answer was computed for an earlier stream.
    is_resent: bool,
}

/// A whole answer, and the room it takes.
type Received = (Answer, Option<Room>);

impl Exchange {
    /// Sends the task and delivers what comes of it to the engine, until `cancel`.
    pub(crate) async fn carry_out(
        &self,
        order: Box<TaskOrder>,
        receipt: oneshot::Receiver<Receipt>,
        cancel: CancellationToken,
    ) {
        let opened = cancel.run_until_cancelled(self.connection.open_bi()).await;
        let Some(Ok((mut send, mut recv))) = opened else { return };
        let conversation = self.converse(order, receipt, &mut send, &mut recv);
        if cancel.run_until_cancelled(conversation).await.is_none_or(|whole| !whole) {
            let _ = send.reset(CODE_CANCELLED);
            let _ = recv.stop(CODE_CANCELLED);
        }
    }

    /// Returns whether both sides of the stream were brought to their ends.
    async fn converse(
        &self,
        order: Box<TaskOrder>,
        receipt: oneshot::Receiver<Receipt>,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> bool {
        let TaskOrder { task, spec_json, expects, model } = *order;
        let expected = Expected { task: task.id, payload: expects, is_hidden: task.hides_participation() };
        let mut header = TaskHeader::of(&task, &spec_json);
        header.id = self.as_told(task.id);
        let blocks = match &task.work {
            Work::Method(work) => block_bytes(work),
            Work::Statistics { .. } | Work::Train { .. } | Work::Evaluate { .. } => Vec::new(),
        };
        let values = model.into_iter().chain(blocks).collect();
        drop(task);
        let Some((told, heard)) = self.ask(&header, values, &expected, (send, recv)).await else {
            return false;
        };
        let answer = match heard {
            Ok(heard) => self.receive(heard, &expected, recv).await,
            Err(error) => Err(error.into()),
        };
        let answer = match answer {
            // A peer that leaves may give its streams up just before: the end of its connection says what it meant.
            Err(Fault::Refused(Rejection::Truncated)) if self.is_leaving().await => Err(Fault::Lost),
            answer => answer,
        };
        match answer {
            Ok((answer, room)) => self.deliver(answer, room, receipt, send).await && told,
            Err(Fault::Lost) => false,
            Err(Fault::Refused(reason)) => {
                self.refuse(expected.task, reason, receipt, send).await;
                let _ = recv.stop(CODE_CANCELLED);
                if matches!(reason, Rejection::Malformed | Rejection::Oversize | Rejection::TooSlow) {
                    let _ = timeout(LAST_WORDS, send.stopped()).await;
                    // Both sides log why a connection was closed, and that a site was asked may be a secret.
                    let why = match reason {
                        _ if expected.is_hidden => "what was sent was refused".to_owned(),
                        Rejection::TooSlow => {
                            let Limits { upload_idle, upload_rate_min, .. } = &self.context.limits;
                            format!(
                                "an answer was refused: {}: it paused for {} s, or came at less than {upload_rate_min} bytes a second while \
                                 others waited for the server's memory",
                                reason.name(),
                                upload_idle.as_secs_f64()
                            )
                        }
                        _ => format!("an answer was refused: {}", reason.name()),
                    };
                    if !expected.is_hidden {
                        tracing::info!("{} of {}: {why}", expected.task, self.client);
                    }
                    self.connection.close(CODE_MISBEHAVED, why.as_bytes());
                }
                told
            }
        }
    }

    /// Puts the task and hears what its answer begins with; `None` when the connection is gone. The first half says whether all of the task was
    /// put.
    async fn ask(
        &self,
        header: &TaskHeader,
        values: Vec<Bytes>,
        expected: &Expected,
        (send, recv): (&mut SendStream, &mut RecvStream),
    ) -> Option<(bool, Result<Heard, FrameError>)> {
        let telling = async {
            write_frame(send, FrameKind::Task, header).await?;
            for values in values {
                let bytes = values.len() as u64;
                send.write_chunk(values).await?;
                if !expected.is_hidden {
                    self.context.metrics.carried(Carried::Model, bytes);
                }
            }
            Ok(())
        };
        let hearing = self.hear(expected, recv);
        tokio::pin!(hearing);
        let (told, early) = tokio::select! {
            biased;
            told = telling => match told {
                Ok(()) => (true, None),
                Err(WriteError::ConnectionLost(_)) => return None,
                // It does not want the rest of the model: it will say why.
                Err(_) => (false, None),
            },
            // It declines before it has read the model, of which the rest is not sent.
            early = &mut hearing => (false, Some(early)),
        };
        match early {
            Some(heard) => Some((told, heard)),
            None => Some((told, self.unless_given_up(hearing, send).await)),
        }
    }

    /// The header of the answer, or what stands for it.
    async fn hear(&self, expected: &Expected, recv: &mut RecvStream) -> Result<Heard, FrameError> {
        let idle = self.context.limits.upload_idle;
        let (mut is_resent, mut first) = (false, None);
        loop {
            let (head, body) = read_known(recv, SMALL_MAX, Patience { first, idle }).await?;
            match head.kind {
                Some(FrameKind::Resent) if !is_resent => {
                    decode::<Resent>(&body)?;
                    (is_resent, first) = (true, Some(idle));
                }
                Some(FrameKind::Unsupported) => {
                    let Unsupported { kind } = decode(&body)?;
                    let detail = format!("the site's software does not know frames of kind {kind}");
                    let body = AnswerBody::Declined { reason: Decline::Unsupported, detail };
                    let header = AnswerHeader { task: self.as_told(expected.task), body };
                    return Ok(Heard { header, is_resent });
                }
                _ => {
                    head.expect(FrameKind::Answer, SMALL_MAX)?;
                    return Ok(Heard { header: decode(&body)?, is_resent });
                }
            }
        }
    }

    /// What is heard; nothing, where the peer has stopped listening and says nothing soon after: it has given the task up.
    async fn unless_given_up(
        &self,
        hearing: impl Future<Output = Result<Heard, FrameError>>,
        send: &SendStream,
    ) -> Result<Heard, FrameError> {
        tokio::pin!(hearing);
        let stopped = async {
            if !matches!(send.stopped().await, Ok(Some(_))) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            heard = &mut hearing => heard,
            () = stopped => {
                let patience = LAST_ANSWER.max(self.connection.rtt() * 2);
                timeout(patience, hearing).await.unwrap_or(Err(FrameError::Truncated))
            }
        }
    }

    /// Whether the connection ends, too.
    async fn is_leaving(&self) -> bool {
        timeout(LEAVING, self.connection.closed()).await.is_ok()
    }

    /// The task as its site knows it: programs of the first release read no attempt but the first. An answer comes on the stream of its
    /// attempt, so nothing is lost by it.
    fn as_told(&self, task: TaskId) -> TaskId {
        if self.knows_attempts { task } else { TaskId { attempt: 0, ..task } }
    }

    /// The values that an answer's header announces, once they have been checked against the task.
    async fn receive(
        &self,
        Heard { header, is_resent }: Heard,
        expected: &Expected,
        recv: &mut RecvStream,
    ) -> Result<Received, Fault> {
        if header.task != self.as_told(expected.task) {
            return Err(Fault::Refused(Rejection::Stale));
        }
        header.check_lengths(&expected.payload).map_err(Fault::Refused)?;
        let bytes = header.payload_bytes().ok_or(Fault::Refused(Rejection::Oversize))?;
        let limits = &self.context.limits;
        let memory = header.memory_bytes().ok_or(Fault::Refused(Rejection::Oversize))?;
        let room = if memory > 0 { Some(self.context.uploads.room_for(memory).await) } else { None };
        let window = upload_window(bytes, self.connection.rtt());
        let pace = Pace { idle: limits.upload_idle, tail: window as usize };
        let widened = self.widen(window);
        let payload =
            self.unless_in_the_way(bytes, read_payload(&header, recv, pace, &widened, room.as_ref()));
        let payload = payload.await?;
        drop(widened);
        if !at_end(recv, limits.upload_idle).await? {
            return Err(Fault::Refused(Rejection::Duplicate));
        }
        if !expected.is_hidden {
            self.context.metrics.carried(Carried::Update, bytes);
            // What is counted is written down and decides about a copy: of a secret cohort both would show who was drawn.
            // What was reserved for an answer that is sent again may stand in the ledger that the site has shown meanwhile.
            if !is_resent && header.blocks().iter().any(|block| block.name == UPDATE) {
                self.context.ledgers.answered(&self.client, self.session);
            }
        }
        let answer = joined(header, payload, expected.payload.codec)
            .await
            .ok_or(Fault::Refused(Rejection::Malformed))?;
        Ok((Answer { task: expected.task, ..answer }, room))
    }

    /// What `reading` gives. An upload may take until its round closes, and with it this exchange; one that is slower than the least rate
    /// makes way when somebody waits for memory.
    async fn unless_in_the_way<T>(
        &self,
        bytes: u64,
        reading: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let allowed = time_at_least_rate(bytes, &self.context.limits);
        let in_the_way = async {
            sleep(allowed).await;
            self.context.uploads.wanted().await;
        };
        tokio::select! {
            biased;
            read = reading => read,
            () = in_the_way => Err(Fault::Refused(Rejection::TooSlow)),
        }
    }

    /// Lets the peer send this much ahead of our reading; dropping or narrowing the result takes that back.
    fn widen(&self, window: u32) -> Widened<'_> {
        self.connection.set_receive_window(VarInt::from_u32(window));
        Widened(&self.connection)
    }

    /// Gives an answer to the engine and its verdict to the peer.
    async fn deliver(
        &self,
        answer: Answer,
        room: Option<Room>,
        receipt: oneshot::Receiver<Receipt>,
        send: &mut SendStream,
    ) -> bool {
        let (client, session) = (self.client.clone(), self.session);
        if self.context.commands.send(Command::Answered { client, session, answer, room }).await.is_err() {
            return false;
        }
        let Ok(receipt) = receipt.await else { return false };
        write_frame(send, FrameKind::Receipt, &receipt).await.is_ok() && send.finish().is_ok()
    }

    /// Tells the engine and, as well as can be, the peer.
    async fn refuse(
        &self,
        task: TaskId,
        reason: Rejection,
        receipt: oneshot::Receiver<Receipt>,
        send: &mut SendStream,
    ) {
        let (client, session) = (self.client.clone(), self.session);
        let told = self.context.commands.send(Command::Refused { client, session, task, reason }).await;
        if told.is_ok() {
            // The engine's word and ours are the same; waiting for it keeps the order of events.
            let _ = timeout(RECEIPT, receipt).await;
        }
        let _ = write_frame(send, FrameKind::Receipt, &Receipt::Refused(reason)).await;
        let _ = send.finish();
    }
}

/// A connection whose peer may send far ahead of our reading. What it was allowed stays allowed until it has come, so
/// the window is narrowed while the last of an upload is still to come: then nothing of it is left for the next one,
/// which has to wait for its turn.
struct Widened<'a>(&'a Connection);

impl Widened<'_> {
    fn narrow(&self) {
        self.0.set_receive_window(VarInt::from_u32(WINDOW_IDLE));
    }
}

impl Drop for Widened<'_> {
    fn drop(&mut self) {
        self.narrow();
    }
}

/// How long an upload may take while others wait.
fn time_at_least_rate(bytes: u64, limits: &Limits) -> Duration {
    limits.upload_idle.saturating_add(Duration::from_secs(bytes / limits.upload_rate_min.max(1)))
}

/// How many bytes of an upload may be under way: what 160 MB/s take for a round trip, so that a near peer does not fill
/// memory that only a far one needs; never more than the upload has.
fn upload_window(bytes: u64, round_trip: Duration) -> u32 {
    let flight = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).saturating_mul(RATE_PER_MICRO);
    let window = flight.clamp(u64::from(WINDOW_UPLOAD_MIN), u64::from(WINDOW_UPLOAD)).min(bytes);
    u32::try_from(window).map_or(WINDOW_UPLOAD, |window| window.max(WINDOW_IDLE))
}

async fn read_payload(
    header: &AnswerHeader,
    recv: &mut RecvStream,
    pace: Pace,
    window: &Widened<'_>,
    room: Option<&Room>,
) -> Result<Payload, Fault> {
    let size = |len: u64| usize::try_from(len).map_err(|_| Fault::Refused(Rejection::Oversize));
    let near = || window.narrow();
    let mut payload = Payload::new();
    for (dtype, len) in header.values() {
        let len = size(len)?;
        payload.push(match dtype {
            DType::I32 => {
                let memory = room.map_or_else(Vec::new, |room| room.points(len));
                Values::I32(read_values(recv, memory, pace, near).await?)
            }
            DType::I64 => Values::I64(read_values(recv, vec![0; len], pace, near).await?),
            DType::U32 => Values::U32(read_values(recv, vec![0; len], pace, near).await?),
            DType::U64 => Values::U64(read_values(recv, vec![0; len], pace, near).await?),
            DType::F32 => Values::F32(read_values(recv, vec![0.0; len], pace, near).await?),
            DType::F64 => Values::F64(read_values(recv, vec![0.0; len], pace, near).await?),
            DType::U8 => Values::U8(read_values(recv, vec![0; len], pace, near).await?),
        });
    }
    Ok(payload)
}

/// The whole answer. A short form is read away from the threads that wait.
async fn joined(header: AnswerHeader, payload: Payload, codec: UpdateCodec) -> Option<Answer> {
    if header.short_form().is_some() {
        return tokio::task::spawn_blocking(move || header.join(payload, codec)).await.ok().flatten();
    }
    header.join(payload, codec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_peer_has_more_under_way_than_a_near_one_and_nobody_more_than_its_upload() {
        let far = Duration::from_millis(300);
        assert_eq!(upload_window(1 << 40, far), WINDOW_UPLOAD);
        assert_eq!(upload_window(1 << 40, Duration::from_millis(50)), 8_000_000);
        assert_eq!(upload_window(1 << 40, Duration::ZERO), WINDOW_UPLOAD_MIN);
        assert_eq!(upload_window(1 << 20, far), 1 << 20);
        assert_eq!(upload_window(1, far), WINDOW_IDLE);
    }
}
