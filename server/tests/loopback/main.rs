//! The server over real QUIC on loopback, against sites written out by hand from the protocol's messages.
#![cfg(feature = "net")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

mod admin;
mod capabilities;
mod control;
mod doorstep;
mod federation;
mod hostile;
mod ledgers;
mod quarantine;
mod runs;
mod secret;
