//! What carries bytes to and from peers, and what a peer may take of it: the port, over UDP and TCP, who is at the other end, frames, and limits by
//! address. It knows no run, no member and no stored row.

pub(super) mod endpoint;
pub(super) mod frames;
pub(super) mod limits;
pub(super) mod messages;
pub(super) mod newcomers;
pub(super) mod peer;
pub(super) mod strangers;
pub(super) mod tcp;
