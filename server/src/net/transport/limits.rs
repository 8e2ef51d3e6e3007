//! The bounds of what clients may ask of this machine, as the program that embeds the server sets them.

use std::time::Duration;

use super::endpoint::SILENCE_MAX;

/// What clients may ask of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Runs that are worked on side by side, at least 1; others wait.
    pub runs_max: usize,
    /// Connections of sites and operators at a time.
    pub connections_max: usize,
    /// Handshakes at a time, at least 1: from that one on a newcomer must first prove its address, and from twice as many on
    /// it takes the place of the oldest of the address that has most.
    pub handshakes_max: usize,
    /// Bytes of updates in memory at a time. One update is always allowed, however large the plan makes it.
    pub upload_bytes_max: u64,
    /// How long an upload may pause on a connection that lives.
    pub upload_idle: Duration,
    /// Bytes a second below which an upload is given up when others wait for the memory that it holds. While nobody does, it may take until
    /// its round closes.
    pub upload_rate_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            runs_max: 4,
            connections_max: 2000,
            handshakes_max: 256,
            upload_bytes_max: 128 << 20,
            // A sender that hears nothing tries again after ever longer pauses, each twice the one before: after the longest cut that a
            // connection survives it may be silent for as long again.
            upload_idle: 2 * SILENCE_MAX,
            upload_rate_min: 64 << 10,
        }
    }
}
