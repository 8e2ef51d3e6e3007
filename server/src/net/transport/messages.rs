//! What every peer is told, whatever it came for: how a connection is refused and closed, and how long its first and last words may take.

use std::time::Duration;

use protocol::wire::{ConnectError, FrameKind, Greeting};
use quinn::{Connection, Endpoint, SendStream, VarInt};
use tokio::time::timeout;

use super::frames::write_frame;

/// What this program calls itself.
pub(crate) const SOFTWARE: &str = concat!("consortia ", env!("CARGO_PKG_VERSION"));
/// How long a handshake, a hello or a request may take.
pub(crate) const OPENING: Duration = Duration::from_secs(10);
/// How long the last words on a stream may take to arrive before the connection is closed.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// The close's code when the text is a [`ConnectError`].
const CODE_REJECTED: VarInt = VarInt::from_u32(1);
/// The close's code when the peer broke the protocol.
pub(crate) const CODE_MISBEHAVED: VarInt = VarInt::from_u32(2);

/// Closes every connection with this text.
pub(crate) fn close_all(endpoint: &Endpoint, why: &ConnectError) {
    endpoint.close(CODE_REJECTED, why.to_string().as_bytes());
}

/// Closes one connection with this text.
pub(crate) fn close(connection: &Connection, why: &ConnectError) {
    connection.close(CODE_REJECTED, why.to_string().as_bytes());
}

/// Rejects a peer on its first stream and closes the connection once that has arrived. `who` is for the log.
pub(crate) async fn reject_on(connection: &Connection, send: &mut SendStream, who: &str, why: ConnectError) {
    tracing::info!("{who} is rejected: {why}");
    let said = write_frame(send, FrameKind::Greeting, &Greeting::Rejected(why.clone())).await;
    if said.is_ok() && send.finish().is_ok() {
        let _ = timeout(LAST_WORDS, send.stopped()).await;
    }
    close(connection, &why);
}
