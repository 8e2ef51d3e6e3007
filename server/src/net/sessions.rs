//! What concerns a connection: its greeting, what a site says of its ledger, a stream for each task, enrolment. It knows the engine by
//! its messages.

mod dialogue;
pub(super) mod enrolment;
mod exchange;
pub(super) mod ledgers;
pub(super) mod messages;
mod refusals;
pub(super) mod released;
pub(super) mod session;
