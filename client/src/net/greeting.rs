//! The first stream of a connection: who this is, what it knows, where its ledger ends; and whether the server will have it.

use std::time::Duration;

use protocol::wire::{
    ALPN_CAPABLE, CapableHello, CodecError, ConnectError, FrameKind, Greeting, Hello, LedgerClaim,
    LedgerProof, REPLACED_MAX, SMALL_MAX, encode,
};
use protocol::{Capabilities, software_name};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, SendStream, WriteError};

use super::connection::explain;
use super::frames::{FrameError, read_frame, write_frame};
use crate::{LedgerHead, LedgerHistory};

/// How long the server may take to greet.
const GREETING_MAX: Duration = Duration::from_secs(20);

/// Why the server did not greet.
pub(super) enum GreetError {
    /// It will not greet next time either.
    Rejected(ConnectError),
    /// It speaks another version.
    Version(CodecError),
    /// It may greet next time.
    Lost(String),
}

/// Says hello and returns the server's software and the name it knows us by.
///
/// A site with a ledger says how long it is, and shows the head that it had at the length that the server remembers. Nothing that a server says
/// changes the ledger or outlives the connection: one that lies about what it remembers refuses its service, and that is all.
pub(super) async fn greet(
    connection: &Connection,
    (software, capabilities): (&str, &Capabilities),
    ledger: Option<&LedgerHistory>,
) -> Result<(String, String), GreetError> {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| explain(&error))?;
        let hello = hello(connection, software, capabilities);
        let said = say_hello(&mut send, &hello, ledger).await;
        let heard = match read_frame(&mut recv, FrameKind::Greeting, SMALL_MAX).await {
            Ok(Some(Greeting::Prove { records })) if ledger.is_some() => {
                let proof = ledger.map(|ledger| prove(ledger, records));
                let proven = write_frame(&mut send, FrameKind::LedgerProof, &proof.unwrap_or_default()).await;
                let heard = read_frame(&mut recv, FrameKind::Greeting, SMALL_MAX).await;
                proven.map_err(|error| error.to_string())?;
                heard
            }
            heard => heard,
        };
        let _ = send.finish();
        // A server that has heard enough may stop listening.
        if !matches!(said, Ok(()) | Err(FrameError::Write(WriteError::Stopped(_)))) {
            said.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(heard)
    };
    let lost = |fallback: String| match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => rejection(&String::from_utf8_lossy(&close.reason)),
        Some(error) => GreetError::Lost(explain(&error)),
        None => GreetError::Lost(fallback),
    };
    match tokio::time::timeout(GREETING_MAX, exchange).await {
        Ok(Ok(Ok(Some(Greeting::Welcome { software, you })))) => {
            Ok((software_name(&software), software_name(&you)))
        }
        Ok(Ok(Ok(Some(Greeting::Rejected(rejection))))) => Err(sort(rejection)),
        Ok(Ok(Ok(Some(Greeting::Prove { .. })))) => {
            Err(GreetError::Lost("the server asked for a proof of the ledger that was not due".to_owned()))
        }
        Ok(Ok(Ok(None))) => Err(lost("the server ended the greeting".to_owned())),
        Ok(Ok(Err(FrameError::Codec(error @ CodecError::Version { .. })))) => Err(GreetError::Version(error)),
        Ok(Ok(Err(error))) => Err(lost(error.to_string())),
        Ok(Err(error)) => Err(lost(error)),
        Err(_) => Err(GreetError::Lost("the server did not greet within 20 seconds".to_owned())),
    }
}

/// Whether the server at the other end hears what a site knows, and an answer that is sent again as such.
pub(super) fn is_capable(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == ALPN_CAPABLE)
}

/// The hello as the server reads it: one of an earlier release has no place for what a site knows.
fn hello(connection: &Connection, software: &str, capabilities: &Capabilities) -> Vec<u8> {
    let software = software.to_owned();
    if is_capable(connection) {
        let hello = CapableHello { software, capabilities: capabilities.clone() };
        encode(FrameKind::Hello, &hello)
    } else {
        encode(FrameKind::Hello, &Hello { software })
    }
}

/// Hello, and what is claimed of the ledger. Without one there is no more to say.
async fn say_hello(
    send: &mut SendStream,
    hello: &[u8],
    ledger: Option<&LedgerHistory>,
) -> Result<(), FrameError> {
    send.write_all(hello).await?;
    match ledger.map(LedgerHistory::head) {
        Some(LedgerHead { records, head }) => {
            write_frame(send, FrameKind::LedgerClaim, &LedgerClaim { records, head }).await
        }
        None => {
            let _ = send.finish();
            Ok(())
        }
    }
}

fn prove(ledger: &LedgerHistory, records: u64) -> LedgerProof {
    let replaced = ledger.replaced().into_iter().take(REPLACED_MAX).collect();
    LedgerProof { head: ledger.head_at(records), replaced }
}

/// Which rejections no waiting will heal.
fn sort(rejection: ConnectError) -> GreetError {
    match rejection {
        ConnectError::Version { .. }
        | ConnectError::NotAHello
        | ConnectError::NotASite
        | ConnectError::Revoked
        | ConnectError::LedgerForked { .. }
        | ConnectError::LedgerMissing => GreetError::Rejected(rejection),
        ConnectError::Superseded | ConnectError::ShuttingDown | ConnectError::Busy | ConnectError::Late => {
            GreetError::Lost(rejection.to_string())
        }
    }
}

/// A rejection that came as the text of the close, because the close overtook the greeting.
fn rejection(text: &str) -> GreetError {
    let fixed =
        [ConnectError::NotASite, ConnectError::NotAHello, ConnectError::Revoked, ConnectError::LedgerMissing]
            .into_iter()
            .find(|known| known.to_string() == text);
    fixed.map_or_else(|| GreetError::Lost(text.to_owned()), GreetError::Rejected)
}

/// Why the server has closed a connection, where no other one will do better.
pub(super) fn ended_for_good(error: &ConnectionError) -> Option<ConnectError> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    match rejection(&String::from_utf8_lossy(&close.reason)) {
        GreetError::Rejected(rejection) => Some(rejection),
        GreetError::Version(_) | GreetError::Lost(_) => None,
    }
}
