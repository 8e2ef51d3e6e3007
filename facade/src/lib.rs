//! Consortia: institutions that may not pool their records train one model together.
//!
//! This crate re-exports the others and ties them together. Start with [`simulations::Scenario`] to simulate a federation, with [`Room`] and
//! [`server::net::Server`] to run one, and with [`client::net::Agent`] to take part in one. The command `consortia` does all three; it is
//! a package of its own, and this library links nothing of it.

mod room;

pub use client;
pub use external;
pub use learning;
pub use methods;
pub use privacy;
pub use protocol;
pub use room::{Room, first_model};
pub use server;
pub use simulations;
