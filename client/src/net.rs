//! Speaking with the server: the shell around [`crate::Participant`], and an operator's requests.
//!
//! For the people who run a site's machines:
//!
//! - A site only ever *calls out*: one UDP flow to the server's address and port (QUIC). No port is opened at the site
//!   and no inbound rule is needed; a firewall must let UDP out to that one address and let the replies back in. Where it
//!   does not, the same QUIC packets travel in one TLS stream over TCP to the same port number ([`Transport`]).
//! - Both sides prove who they are with certificates of the federation's own authority. The site's folder holds three
//!   PEM files, `ca.pem`, `cert.pem` and `key.pem`; the key is made at the site and readable by the agent's user alone.
//! - The agent keeps itself connected: it sends a sign of life every 5 seconds, notices a dead line after 30, and calls
//!   again after a growing, random pause of at most 30 seconds, for as long as it runs.
//! - What leaves the site: answers to tasks (clipped updates, named sums, metrics) and the name of the software. Log
//!   lines and messages that may name files or values stay here.
//!
//! [`enrol`] makes a site of somebody with an invite, [`Agent`] is what a site runs; [`OperatorClient`] is what an operator's command uses. This module decides nothing
//! about learning or privacy, and accepts no connection.

mod agent;
mod connection;
mod dial;
mod enrol;
mod events;
mod frames;
mod greeting;
mod identity;
mod operator;
mod outbox;
mod pace;
mod probe;
mod records;
mod released;
mod renewal;
mod session;
mod values;

pub use agent::{Agent, AgentConfig, AgentError};
pub use connection::{DialError, SERVER_NAME, Transport};
pub use enrol::{EnrolError, enrol};
pub use events::AgentEvent;
pub use frames::FrameError;
pub use identity::{Identity, IdentityError};
pub use operator::{OperatorClient, OperatorError};
pub use outbox::Outbox;
pub use probe::{Probe, ProbeError, probe};
pub use records::{
    Books, BooksError, BooksSummary, Mismatch, Recovery, RecoveryOrder, Torn, are_books_held, check_books,
    has_books, open_audit, open_books, recover_books,
};
pub use released::{FetchError, FetchedModel, fetch_model};
pub use renewal::{begin_renewal, finish_renewal, renew, settle_renewal};

#[cfg(test)]
mod tests;
