//! Hostile peers against a real server over real QUIC: strangers, impostors, sites that lie, stall or flood.
//!
//! What each of them tries is refused with a reason of its own, which the operator finds in the run's summary and the
//! peer in its receipt or in the text of the close; and the honest sites end with the very model they would have made
//! alone. The rules themselves are tested where they live; here is their promise from end to end.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

#[path = "hostile/answers.rs"]
mod answers;
#[path = "hostile/crowds.rs"]
mod crowds;
#[path = "hostile/doors.rs"]
mod doors;
#[path = "support/federation.rs"]
mod federation;
#[path = "hostile/intruder.rs"]
mod intruder;
#[path = "support/member.rs"]
mod member;
#[path = "hostile/stage.rs"]
mod stage;
#[path = "hostile/strangers.rs"]
mod strangers;
#[path = "support/stream.rs"]
mod stream;
#[path = "hostile/streams.rs"]
mod streams;
#[path = "support/trio.rs"]
mod trio;
