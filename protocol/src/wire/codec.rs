//! Frames: twelve bytes of head, then a bincode body. This is the only file that names bincode.
//!
//! The head is magic `CSRT`, the protocol version (u16), the codec (u8, 1 = bincode 2 with integers of fixed width), the kind (u8) and the
//! body's length (u32), little-endian. A reader learns the length before it takes memory, and refuses one above the
//! limit for the kind it expects. Bodies are flat, and bytes left over after a body are an error.

use bincode::config::{Configuration, Fixint, LittleEndian, NoLimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::VERSION;

/// Bytes of a frame's head.
pub const FRAME_HEAD: usize = 12;
const MAGIC: [u8; 4] = *b"CSRT";
const BINCODE: u8 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// [`super::Hello`].
    Hello = 1,
    /// [`super::Greeting`].
    Greeting = 2,
    /// [`super::TaskHeader`].
    Task = 3,
    /// [`super::AnswerHeader`].
    Answer = 4,
    /// [`super::Receipt`].
    Receipt = 5,
    /// [`super::AdminRequest`].
    AdminRequest = 6,
    /// [`super::AdminReply`].
    AdminReply = 7,
    /// [`super::EnrolRequest`].
    EnrolRequest = 8,
    /// [`super::EnrolReply`].
    EnrolReply = 9,
    /// [`crate::Invite`]; never on a wire of its own.
    Invite = 10,
    /// [`super::Notice`].
    Notice = 11,
    /// [`super::LedgerClaim`].
    LedgerClaim = 12,
    /// [`super::LedgerProof`].
    LedgerProof = 13,
    /// [`super::Unsupported`].
    Unsupported = 14,
    /// [`super::Resent`].
    Resent = 15,
    /// [`super::SiteRequest`].
    SiteRequest = 16,
}

impl FrameKind {
    /// Every kind that this program knows.
    pub const ALL: [Self; 16] = [
        Self::Hello,
        Self::Greeting,
        Self::Task,
        Self::Answer,
        Self::Receipt,
        Self::AdminRequest,
        Self::AdminReply,
        Self::EnrolRequest,
        Self::EnrolReply,
        Self::Invite,
        Self::Notice,
        Self::LedgerClaim,
        Self::LedgerProof,
        Self::Unsupported,
        Self::Resent,
        Self::SiteRequest,
    ];
}

/// A head of this protocol and version, of whatever kind: what a reader needs that passes over frames which it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyHead {
    /// The kind; `None` where this program does not know it, or does not know how the body is encoded.
    pub kind: Option<FrameKind>,
    /// The kind's number.
    pub number: u8,
    /// Bytes of the body. They have been compared with no limit.
    pub len: usize,
}

impl AnyHead {
    /// Checks what every frame begins with.
    ///
    /// # Errors
    /// [`CodecError::Magic`] and [`CodecError::Version`].
    pub fn parse(bytes: [u8; FRAME_HEAD]) -> Result<Self, CodecError> {
        let [m0, m1, m2, m3, v0, v1, codec, number, l0, l1, l2, l3] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(CodecError::Magic);
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != VERSION {
            return Err(CodecError::Version { theirs, ours: VERSION });
        }
        let known = FrameKind::ALL.into_iter().find(|kind| *kind as u8 == number);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        Ok(Self { kind: known.filter(|_| codec == BINCODE), number, len })
    }

    /// Checks the kind and the length.
    ///
    /// # Errors
    /// [`CodecError::Kind`] and [`CodecError::Oversize`].
    pub fn expect(self, expected: FrameKind, limit: usize) -> Result<FrameHead, CodecError> {
        if self.kind != Some(expected) {
            return Err(CodecError::Kind { expected, found: self.number });
        }
        if self.len > limit {
            return Err(CodecError::Oversize { limit, found: self.len });
        }
        Ok(FrameHead { len: self.len })
    }
}

/// A checked head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of the body.
    pub len: usize,
}

/// Bytes that are not the expected frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The first bytes are not this protocol's.
    #[error("the bytes do not begin with a frame of this protocol")]
    Magic,
    /// The peer speaks another version.
    #[error(
        "the peer speaks protocol version {theirs}, this program version {ours}; install the same release on both sides"
    )]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// Another codec or kind of frame than expected.
    #[error("a frame of kind {found} came where {expected:?} was expected")]
    Kind {
        /// What was expected.
        expected: FrameKind,
        /// What came.
        found: u8,
    },
    /// The body is announced longer than allowed.
    #[error("the frame announces {found} bytes; at most {limit} are allowed")]
    Oversize {
        /// The limit.
        limit: usize,
        /// What was announced.
        found: usize,
    },
    /// The body does not decode, or bytes are left over.
    #[error("the frame's body is malformed: {0}")]
    Body(String),
}

impl FrameHead {
    /// Checks a head against the kind that is expected and the most bytes its body may have.
    ///
    /// # Errors
    /// [`CodecError`] names the first check it fails.
    pub fn parse(bytes: [u8; FRAME_HEAD], expected: FrameKind, limit: usize) -> Result<Self, CodecError> {
        AnyHead::parse(bytes)?.expect(expected, limit)
    }
}

fn configuration() -> Configuration<LittleEndian, Fixint, NoLimit> {
    bincode::config::standard().with_fixed_int_encoding()
}

/// A whole frame: head and body.
///
/// # Panics
/// Never for the messages of this crate: their types always encode.
pub fn encode<T: Serialize>(kind: FrameKind, message: &T) -> Vec<u8> {
    let body = bincode::serde::encode_to_vec(message, configuration()).expect("flat messages always encode");
    let len = u32::try_from(body.len()).expect("messages are far below 4 GiB");
    let mut frame = Vec::with_capacity(FRAME_HEAD + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&[BINCODE, kind as u8]);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Decodes a body whose length the head has announced.
///
/// # Errors
/// [`CodecError::Body`] when it does not decode or bytes are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    // The limit covers lengths inside the body: none may claim more than an operator's largest message.
    let limited = configuration().with_limit::<{ super::ADMIN_MAX }>();
    let (message, read) = bincode::serde::decode_from_slice(body, limited)
        .map_err(|error| CodecError::Body(error.to_string().chars().take(200).collect()))?;
    if read == body.len() {
        Ok(message)
    } else {
        Err(CodecError::Body(format!("{} bytes are left over", body.len() - read)))
    }
}

/// What a body begins with; bytes that are left over are passed over.
pub(super) fn decode_prefix<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let limited = configuration().with_limit::<{ super::ADMIN_MAX }>();
    bincode::serde::decode_from_slice(body, limited).ok().map(|(message, _)| message)
}
