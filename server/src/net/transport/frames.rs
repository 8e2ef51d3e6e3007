//! Frames and raw values over QUIC streams, with a limit on every length and on every wait.
//!
//! No memory is taken on a peer's word: a frame's length is checked against its limit, and the count of raw values has
//! been checked against the plan by the caller.

use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;
use bytes::Bytes;
use protocol::wire::{AnyHead, CodecError, FRAME_HEAD, FrameHead, FrameKind, decode, encode};
use protocol::{Block, MethodWork, Parameters, Rejection, Values};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// Pieces taken from a stream at a time.
const PIECES: usize = 64;

/// How long a reader waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the first byte; `None` waits as long as the connection lives.
    pub(crate) first: Option<Duration>,
    /// For the rest of a frame.
    pub(crate) idle: Duration,
}

/// Why a frame or its values did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Bytes that are not the frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Nothing came for too long, or all of it took too long.
    #[error("the peer sends too slowly")]
    TooSlow,
    /// More came than was announced.
    #[error("the peer sent more than it had announced")]
    Excess,
    /// The stream ended or was given up by the peer.
    #[error("the stream ended before the message did")]
    Truncated,
    /// The connection is gone.
    #[error("the connection is lost: {0}")]
    Lost(quinn::ConnectionError),
}

impl FrameError {
    /// The reason for which an answer is refused; `None` when the connection is gone and the peer may come back.
    pub(crate) fn refusal(&self) -> Option<Rejection> {
        match self {
            Self::Codec(CodecError::Oversize { .. }) => Some(Rejection::Oversize),
            Self::Codec(_) => Some(Rejection::Malformed),
            Self::TooSlow => Some(Rejection::TooSlow),
            Self::Excess => Some(Rejection::Duplicate),
            Self::Truncated => Some(Rejection::Truncated),
            Self::Lost(_) => None,
        }
    }
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Lost(error),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Truncated,
        }
    }
}

/// Frames of unknown kinds that are passed over before one is refused.
const UNKNOWN_MAX: usize = 8;

/// Reads the next frame whose kind this program knows: its head, and its body of at most `limit` bytes. Frames of kinds that it does not
/// know are passed over by their length, a few of them, so that a later release may say more where an earlier one listens.
pub(crate) async fn read_known(
    stream: &mut RecvStream,
    limit: usize,
    patience: Patience,
) -> Result<(AnyHead, Vec<u8>), FrameError> {
    let (mut first, mut passed) = (patience.first, 0);
    loop {
        let (head, body) = read_any(stream, limit, Patience { first, ..patience }).await?;
        if head.kind.is_some() {
            return Ok((head, body));
        }
        passed += 1;
        if passed > UNKNOWN_MAX {
            let found = head.number;
            return Err(CodecError::Kind { expected: FrameKind::Answer, found }.into());
        }
        // Whoever has begun to speak goes on.
        first = Some(patience.idle);
    }
}

async fn read_any(
    stream: &mut RecvStream,
    limit: usize,
    patience: Patience,
) -> Result<(AnyHead, Vec<u8>), FrameError> {
    let mut head = [0u8; FRAME_HEAD];
    match patience.first {
        Some(first) => fill(stream, &mut head[..1], first).await?,
        None if stream.read(&mut head[..1]).await?.is_none() => return Err(FrameError::Truncated),
        None => {}
    }
    let rest = async {
        fill(stream, &mut head[1..], patience.idle).await?;
        let head = AnyHead::parse(head)?;
        if head.len > limit {
            return Err(CodecError::Oversize { limit, found: head.len }.into());
        }
        let mut body = vec![0u8; head.len];
        fill(stream, &mut body, patience.idle).await?;
        Ok((head, body))
    };
    timeout(patience.idle, rest).await.map_err(|_| FrameError::TooSlow)?
}

/// Reads one frame of this kind, whose body has at most `limit` bytes.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    stream: &mut RecvStream,
    kind: FrameKind,
    limit: usize,
    patience: Patience,
) -> Result<T, FrameError> {
    let mut head = [0u8; FRAME_HEAD];
    match patience.first {
        Some(first) => fill(stream, &mut head[..1], first).await?,
        None if stream.read(&mut head[..1]).await?.is_none() => return Err(FrameError::Truncated),
        None => {}
    }
    let rest = async {
        fill(stream, &mut head[1..], patience.idle).await?;
        let head = FrameHead::parse(head, kind, limit)?;
        let mut body = vec![0u8; head.len];
        fill(stream, &mut body, patience.idle).await?;
        Ok(decode(&body)?)
    };
    timeout(patience.idle, rest).await.map_err(|_| FrameError::TooSlow)?
}

/// Writes one frame.
pub(crate) async fn write_frame<T: Serialize>(
    stream: &mut SendStream,
    kind: FrameKind,
    message: &T,
) -> Result<(), WriteError> {
    stream.write_all(&encode(kind, message)).await
}

/// A number that travels raw, little-endian.
pub(crate) trait Raw: Pod {
    /// From the byte order of the wire.
    fn native(self) -> Self;
}

macro_rules! raw {
    ($($integer:ty),*) => {$(
        impl Raw for $integer {
            fn native(self) -> Self {
                Self::from_le(self)
            }
        }
    )*};
}

raw!(u8, i32, u32, i64, u64);

impl Raw for f32 {
    fn native(self) -> Self {
        Self::from_bits(u32::from_le(self.to_bits()))
    }
}

impl Raw for f64 {
    fn native(self) -> Self {
        Self::from_bits(u64::from_le(self.to_bits()))
    }
}

/// How fast values must come, and when the end is near.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The longest pause.
    pub(crate) idle: Duration,
    /// Bytes that count as the end.
    pub(crate) tail: usize,
}

/// Fills `values`, and calls `near` when no more than the tail is left. The caller has checked their number against the plan;
/// pages of fresh memory are touched only as bytes come in. Pieces are copied while the connection takes in what comes next.
pub(crate) async fn read_values<T: Raw>(
    stream: &mut RecvStream,
    mut values: Vec<T>,
    pace: Pace,
    near: impl FnOnce(),
) -> Result<Vec<T>, FrameError> {
    let mut left: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    let mut near = Some(near);
    let mut pieces = [const { Bytes::new() }; PIECES];
    while !left.is_empty() {
        if left.len() <= pace.tail {
            near.take().into_iter().for_each(|near| near());
        }
        let read = timeout(pace.idle, stream.read_chunks(&mut pieces)).await;
        let count = read.map_err(|_| FrameError::TooSlow)??.ok_or(FrameError::Truncated)?;
        for piece in &mut pieces[..count] {
            let (here, rest) =
                std::mem::take(&mut left).split_at_mut_checked(piece.len()).ok_or(FrameError::Excess)?;
            here.copy_from_slice(piece);
            *piece = Bytes::new();
            left = rest;
        }
    }
    if cfg!(target_endian = "big") {
        values.iter_mut().for_each(|value| *value = value.native());
    }
    Ok(values)
}

/// Whether the peer has finished its side, and nothing is left over.
pub(crate) async fn at_end(stream: &mut RecvStream, idle: Duration) -> Result<bool, FrameError> {
    let mut byte = [0u8; 1];
    let read = timeout(idle, stream.read(&mut byte)).await.map_err(|_| FrameError::TooSlow)??;
    Ok(read.is_none())
}

async fn fill(stream: &mut RecvStream, buffer: &mut [u8], idle: Duration) -> Result<(), FrameError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let read = timeout(idle, stream.read(&mut buffer[filled..])).await;
        match read.map_err(|_| FrameError::TooSlow)?? {
            Some(count) => filled += count,
            None => return Err(FrameError::Truncated),
        }
    }
    Ok(())
}

/// The raw bytes of a model. They share the model's memory, however many clients they are sent to.
pub(crate) fn model_bytes(model: &Arc<Parameters>) -> Bytes {
    struct Shared(Arc<Parameters>);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(self.0.values())
        }
    }
    if cfg!(target_endian = "little") {
        Bytes::from_owner(Shared(Arc::clone(model)))
    } else {
        model.values().iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// The raw bytes of a method's blocks, in order. They share the work's memory, too.
pub(crate) fn block_bytes(work: &Arc<MethodWork>) -> Vec<Bytes> {
    struct Shared(Arc<MethodWork>, usize);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            match &self.0.blocks[self.1].values {
                Values::I32(values) => bytemuck::cast_slice(values),
                Values::I64(values) => bytemuck::cast_slice(values),
                Values::U32(values) => bytemuck::cast_slice(values),
                Values::U64(values) => bytemuck::cast_slice(values),
                Values::F32(values) => bytemuck::cast_slice(values),
                Values::F64(values) => bytemuck::cast_slice(values),
                Values::U8(values) => values,
            }
        }
    }
    let bytes = |(number, block): (usize, &Block)| {
        if cfg!(target_endian = "little") {
            Bytes::from_owner(Shared(Arc::clone(work), number))
        } else {
            block.values.to_le_bytes().into()
        }
    };
    work.blocks.iter().enumerate().map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_blocks_are_their_little_endian_values() {
        let name = |name: &'static str| protocol::Name::literal(name);
        let values = [
            Values::I32(vec![-2, 3]),
            Values::I64(vec![i64::MIN]),
            Values::U32(vec![7]),
            Values::U64(vec![u64::MAX, 1]),
            Values::F32(vec![-0.5]),
            Values::F64(vec![0.1, 2.0]),
            Values::U8(vec![1, 2, 3]),
        ];
        let blocks: Vec<Block> = values.into_iter().map(|values| Block::new(name("b"), values)).collect();
        let expected: Vec<Vec<u8>> = blocks.iter().map(|block| block.values.to_le_bytes()).collect();
        let work = Arc::new(MethodWork { method: name("m"), version: 1, numbers: Vec::new(), blocks });
        assert_eq!(block_bytes(&work), expected);
    }

    #[test]
    fn a_models_bytes_are_its_little_endian_values_in_the_same_memory() {
        let model = Arc::new(Parameters::new(vec![1.0, -2.5]));
        let bytes = model_bytes(&model);
        assert_eq!(&bytes[..], [1.0f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat());
        if cfg!(target_endian = "little") {
            assert_eq!(bytes.as_ptr(), model.values().as_ptr().cast());
        }
    }

    #[test]
    fn only_a_lost_connection_is_no_reason_to_refuse() {
        assert_eq!(FrameError::Codec(CodecError::Magic).refusal(), Some(Rejection::Malformed));
        let oversize = CodecError::Oversize { limit: 1, found: 2 };
        assert_eq!(FrameError::Codec(oversize).refusal(), Some(Rejection::Oversize));
        assert_eq!(FrameError::from(ReadError::ClosedStream).refusal(), Some(Rejection::Truncated));
        assert_eq!(FrameError::Lost(quinn::ConnectionError::TimedOut).refusal(), None);
    }
}
