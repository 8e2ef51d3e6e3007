//! QUIC where UDP is blocked: its datagrams in one byte stream, which is TLS over TCP.
//!
//! A datagram is two bytes of length, big-endian, and itself; nothing else travels. What is inside is the same QUIC as over UDP, with its
//! own handshake, certificates, streams and flow control, so that nothing above knows which way its packets took. The stream
//! around it is there to get through: it is trusted with nothing, loses no datagram, and may hold back its sender.
//!
//! [`ClientSocket`] is the socket of an endpoint that calls one server this way. [`ServerSocket`] is a UDP socket to which
//! [`Tunnels`] add what comes over any number of streams. Connecting, TLS and limits are the caller's.

mod calling;
mod frames;
mod serving;

pub use calling::ClientSocket;
pub use serving::{ServerSocket, Tunnels};

/// ALPN of the stream around QUIC.
pub const ALPN: &[u8] = b"consortia-tunnel/1";

#[cfg(test)]
mod tests;
