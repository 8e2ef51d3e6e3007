//! The server over real QUIC on loopback, against sites written out by hand from the protocol's messages.
#![cfg(feature = "net")]

mod federation;
mod hostile;
mod runs;
