//! Who answers: the participant, which does a task with a [`protocol::Learner`], and the agent that keeps it connected.
//!
//! The pure half never waits: [`Participant`] (or [`perform`], where one learner serves many clients) turns a task into
//! an answer, and trouble of any kind into a declined task. With the `net` feature, `net::Agent` receives tasks over
//! QUIC and sends the answers, and `net::OperatorClient` speaks for an operator.
//!
//! A client never decides about the federation, never sees another site's update, and sends nothing but answers.

#[cfg(feature = "net")]
pub mod net;
mod participant;
mod personal;

pub use participant::{Participant, Trouble, answer, attempt, perform};
pub use personal::Personal;
