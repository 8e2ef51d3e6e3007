//! Consortia: institutions that may not pool their records train one model together.
//!
//! This crate is the front door: it re-exports the rooms of the house and ties them together. Start with
//! [`simulations::Scenario`] to simulate a federation, with [`Room`] and [`server::net::Server`] to run one, and with
//! [`client::net::Agent`] to take part in one. The command `consortia` does all three.

pub mod measure;
pub mod results;
mod room;

pub use client;
pub use learning;
pub use methods;
pub use privacy;
pub use protocol;
pub use room::{Room, first_model};
pub use server;
pub use simulations;
