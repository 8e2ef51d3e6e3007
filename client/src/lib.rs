//! Who answers: the participant, which does a task with a [`protocol::Learner`], and the agent that keeps it connected.
//!
//! The pure half never waits: [`Participant`] (or [`Lent`], where one learner serves many clients) turns a task into
//! an answer, and an error of any kind into a declined task. With the `net` feature, `net::Agent` receives tasks over
//! QUIC and sends the answers, and `net::OperatorClient` speaks for an operator.
//!
//! A participant with a [`Guard`] asks its site first: the [`Policy`], then the [`SiteLedger`], and writes both answers into
//! the [`Audit`] log. Without one it does whatever it is asked, as virtual clients and embedding programs may. A [`Pause`] comes
//! before all of it.
//!
//! A client never decides about the federation, never sees another site's update, and sends nothing but answers.

mod audit;
mod guard;
mod ledger;
mod local_state;
mod methods;
#[cfg(feature = "net")]
pub mod net;
mod participant;
mod pause;
mod policy;
mod rounds;

pub use self::methods::{MethodSite, MethodState, SiteMethod, SiteMethods};
pub use audit::{AUDIT_VERSION, Audit, AuditEvent, AuditRecord, LedgerCopy, RefusedLedger, TaskName};
pub use guard::Guard;
pub use ledger::{
    Charge, LedgerHead, LedgerHistory, LedgerReservation, PayError, RunAccount, SITE_LEDGER_VERSION,
    SiteAccount, SiteLedger, SiteLedgerError, Total,
};
pub use local_state::LocalState;
pub use participant::{Lent, Memory, Participant, TaskError, answer};
pub use pause::Pause;
pub use policy::{
    Denied, History, Metric, Mode, PLAIN_POLICY, PRIVATE_POLICY, Participation, Policy, RECORDS_POLICY,
    SiteFacts,
};
