//! Frames over quinn's streams. Nothing is read into memory before its length has been checked.

use protocol::wire::{
    CodecError, FRAME_HEAD, FrameHead, FrameKind, HEADER_MAX, Notice, SMALL_MAX, TaskHeader, decode, encode,
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

/// Reads one frame whose body has at most `limit` bytes; `None` when the stream ended before it began.
pub(super) async fn read_frame<T: DeserializeOwned>(
    recv: &mut RecvStream,
    kind: FrameKind,
    limit: usize,
) -> Result<Option<T>, FrameError> {
    let mut head = [0; FRAME_HEAD];
    match recv.read_exact(&mut head).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        read => read?,
    }
    let mut body = vec![0; FrameHead::parse(head, kind, limit)?.len];
    recv.read_exact(&mut body).await?;
    Ok(Some(decode(&body)?))
}

/// What a stream of the server's begins with.
pub(super) enum Opening {
    /// A task; its model follows.
    Task(TaskHeader),
    /// News; nothing follows.
    Notice(Notice),
}

/// Reads the first frame of a stream of the server's; `None` when the stream ended before it began.
pub(super) async fn read_opening(recv: &mut RecvStream) -> Result<Option<Opening>, FrameError> {
    let mut head = [0; FRAME_HEAD];
    match recv.read_exact(&mut head).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        read => read?,
    }
    let is_notice = |error: &CodecError| matches!(error, CodecError::Kind { found, .. } if *found == FrameKind::Notice as u8);
    let (len, notice) = match FrameHead::parse(head, FrameKind::Task, HEADER_MAX) {
        Err(error) if is_notice(&error) => (FrameHead::parse(head, FrameKind::Notice, SMALL_MAX)?.len, true),
        task => (task?.len, false),
    };
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await?;
    Ok(Some(if notice { Opening::Notice(decode(&body)?) } else { Opening::Task(decode(&body)?) }))
}
