//! Frames over quinn's streams. Nothing is read into memory before its length has been checked.

use protocol::wire::{
    AnyHead, CodecError, FRAME_HEAD, FrameHead, FrameKind, HEADER_MAX, Notice, SMALL_MAX, TaskHeader,
    UnreadTask, decode, encode,
};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A frame did not come or did not go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes are not the expected frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The stream ended inside a frame or where one was due.
    #[error("the stream ended before the message was complete")]
    Ended,
    /// More came than was announced.
    #[error("the server sent more than it had announced")]
    Excess,
    /// The stream or the connection was given up while reading.
    #[error("reading failed: {0}")]
    Read(#[from] ReadError),
    /// The stream or the connection was given up while writing.
    #[error("writing failed: {0}")]
    Write(#[from] WriteError),
}

impl From<ReadExactError> for FrameError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Ended,
            ReadExactError::ReadError(error) => Self::Read(error),
        }
    }
}

/// Writes one frame.
pub(super) async fn write_frame<T: Serialize>(
    send: &mut SendStream,
    kind: FrameKind,
    message: &T,
) -> Result<(), FrameError> {
    Ok(send.write_all(&encode(kind, message)).await?)
}

/// Frames of unknown kinds that are passed over before one is an error.
const UNKNOWN_MAX: usize = 8;

/// Reads one frame whose body has at most `limit` bytes; `None` when the stream ended before it began. Frames of kinds that this program
/// does not know are passed over by their length.
pub(super) async fn read_frame<T: DeserializeOwned>(
    recv: &mut RecvStream,
    kind: FrameKind,
    limit: usize,
) -> Result<Option<T>, FrameError> {
    for passed in 0.. {
        let Some(head) = read_head(recv).await? else { break };
        if head.kind.is_none() && passed < UNKNOWN_MAX && head.len <= limit {
            pass_over(recv, head.len).await?;
            continue;
        }
        let body = read_body(recv, head.expect(kind, limit)?.len).await?;
        return Ok(Some(decode(&body)?));
    }
    Ok(None)
}

/// What a stream of the server's begins with.
pub(super) enum Opening {
    /// A task; its model follows.
    Task(Box<TaskHeader>),
    /// A task whose header is not understood.
    Unread {
        /// What could be read of it.
        task: UnreadTask,
        /// What is not understood.
        why: String,
    },
    /// News; nothing follows.
    Notice(Notice),
    /// News that this program does not know.
    UnknownNotice,
    /// A frame of a kind that this program does not know. It has been passed over.
    Unknown {
        /// The kind's number.
        kind: u8,
    },
}

/// Reads the first frame of a stream of the server's; `None` when the stream ended before it began.
pub(super) async fn read_opening(recv: &mut RecvStream) -> Result<Option<Opening>, FrameError> {
    let Some(head) = read_head(recv).await? else { return Ok(None) };
    Ok(Some(match head.kind {
        None => {
            // What is too long is not worth reading: nothing behind it will be read either.
            if head.len <= HEADER_MAX {
                pass_over(recv, head.len).await?;
            }
            Opening::Unknown { kind: head.number }
        }
        Some(FrameKind::Notice) => {
            let body = read_body(recv, head.expect(FrameKind::Notice, SMALL_MAX)?.len).await?;
            decode(&body).map_or(Opening::UnknownNotice, Opening::Notice)
        }
        _ => match head.expect(FrameKind::Task, HEADER_MAX) {
            Ok(FrameHead { len }) => {
                let body = read_body(recv, len).await?;
                match decode(&body) {
                    Ok(header) => Opening::Task(Box::new(header)),
                    Err(error) => unread(&body, error)?,
                }
            }
            Err(error @ CodecError::Oversize { .. }) => unread(&read_body(recv, TASK_ID).await?, error)?,
            Err(error) => return Err(error.into()),
        },
    }))
}

/// Bytes of a task's id, with which its header begins.
const TASK_ID: usize = 16;

/// A task that can be declined by its id; the error where not even that can be read.
fn unread(body: &[u8], error: CodecError) -> Result<Opening, FrameError> {
    let Some(task) = UnreadTask::of(body) else { return Err(error.into()) };
    let why = match task.work {
        Some(work) => format!("this site's software does not know work of kind {work}"),
        None => format!("the task's header is not understood: {error}"),
    };
    Ok(Opening::Unread { task, why: format!("{why}; is it older than the server's?") })
}

/// The next head; `None` when the stream ended before it.
async fn read_head(recv: &mut RecvStream) -> Result<Option<AnyHead>, FrameError> {
    let mut head = [0; FRAME_HEAD];
    match recv.read_exact(&mut head).await {
        Err(ReadExactError::FinishedEarly(0)) => Ok(None),
        read => {
            read?;
            Ok(Some(AnyHead::parse(head)?))
        }
    }
}

async fn read_body(recv: &mut RecvStream, len: usize) -> Result<Vec<u8>, FrameError> {
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await?;
    Ok(body)
}

async fn pass_over(recv: &mut RecvStream, mut len: usize) -> Result<(), FrameError> {
    while len > 0 {
        let piece = recv.read_chunk(len, true).await?.ok_or(FrameError::Ended)?;
        len -= piece.bytes.len();
    }
    Ok(())
}
