//! Messages per direction, and the frames that carry them. `docs/protocol.md` describes the bytes.
//!
//! A connection is mutually authenticated QUIC; who the client is, is its certificate's to say and no message's. The
//! client opens the one bidirectional stream it may open and says [`Hello`], and a site with a ledger [`LedgerClaim`]; the server answers [`Greeting`]. From then
//! on the server opens a bidirectional stream per task ([`TaskHeader`], then the model's raw bytes), the client answers on
//! it ([`AnswerHeader`], then the update's raw bytes), and the server closes with a [`Receipt`]. A [`Notice`] has a stream of
//! its own. An operator's stream carries [`AdminRequest`] and [`AdminReply`].
//!
//! Tensors never pass through the codec: they follow their header as raw little-endian values whose count is checked
//! against the plan before memory is taken.

mod admin;
mod codec;
mod enrol;
mod messages;
mod negotiation;

pub use admin::{
    AdminReply, AdminRequest, Applicant, Certificate, ClientSummary, Control, FurtherMetrics, InviteText,
    Member, ModelChoice, ModelLine, Quarantine, RoundSummary, RunState, RunSummary, Seen,
};
pub use codec::{AnyHead, CodecError, FRAME_HEAD, FrameHead, FrameKind, decode, encode};
pub use enrol::{EnrolRejection, EnrolReply, EnrolRequest};
pub use messages::{
    AnswerBody, AnswerHeader, ConnectError, Greeting, Hello, LOST_WITHOUT_RECORDS, LedgerClaim, LedgerProof,
    Notice, PROBE, Payload, REPLACED_MAX, Receipt, SiteRequest, TaskHeader, TaskHeaderError, WorkHeader,
};
pub use negotiation::{ALPN_CAPABLE, ALPNS, CapableHello, HELLO_MAX, Resent, UnreadTask, Unsupported};

/// The protocol's version. Both sides must have the same.
pub const VERSION: u16 = 1;
/// ALPN of the protocol as programs of the first release speak it; see [`ALPNS`].
pub const ALPN: &[u8] = b"consortia/1";
/// ALPN of enrolment: the same port, the same frames, and no client certificate.
pub const ENROL_ALPN: &[u8] = b"consortia-enrol/1";
/// The most bytes of either message of an enrolment.
pub const ENROL_MAX: usize = 16 * 1024;
/// The most bytes of a UDP payload that either side tries and takes. Where the way allows it (loopback, jumbo frames), packets
/// of this size cost a third of the processor time of the usual ones; elsewhere the search ends below. Ten of them are handed
/// to the system at a time and together must stay below 64 KiB, or none of them is sent.
pub const DATAGRAM_MAX: u16 = 6_500;
/// The most bytes of a hello, its answer, an answer's header or a receipt.
pub const SMALL_MAX: usize = 4 * 1024;
/// The most bytes of a task's header: it carries the plan as JSON.
pub const HEADER_MAX: usize = 256 * 1024;
/// The most bytes of an operator's request or reply.
pub const ADMIN_MAX: usize = 1024 * 1024;
