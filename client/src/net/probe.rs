//! Whether a server can be reached, without working for it: a connection that says goodbye as soon as it has seen enough.

use std::net::SocketAddr;
use std::time::Duration;

use protocol::Capabilities;
use protocol::wire::PROBE;
use rustls::pki_types::CertificateDer;

use super::connection::{DialError, Link, SERVER_NAME, Transport, explain};
use super::greeting::{GreetError, greet};
use super::identity::Identity;
use crate::LedgerHistory;

/// How long a server has at least to say that it does not take our certificate; it gives a peer that says nothing ten seconds.
const REFUSAL: Duration = Duration::from_secs(1);

/// What was found at the server's address.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The address that answered.
    pub server: SocketAddr,
    /// Whether it did over TCP, because UDP was not answered or not allowed.
    pub over_tcp: bool,
    /// From the first packet to the end of the handshake; looking the name up is part of it.
    pub connected_in: Duration,
    /// The way there and back, as the handshake saw it.
    pub round_trip: Duration,
    /// The server's certificate, DER.
    pub certificate: Option<Vec<u8>>,
    /// Its software and the name it knows this site by, when it was asked to greet.
    pub greeting: Option<(String, String)>,
}

/// What a probe met.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] DialError),
    /// A connection, and no welcome.
    #[error("the server does not greet this site: {0}")]
    Greeting(String),
}

/// Connects to the first of `servers` (`host:port`) that answers, as an agent would, and leaves. With `software` it also says hello under that name, and what `ledger` is. The
/// server does not remember that, and gives it no task. A server of an older release does both, and keeps one connection a site, so that this ends
/// the connection of an agent that is at work with the same identity.
///
/// # Errors
/// [`ProbeError`] says what failed and what to do.
pub async fn probe(
    servers: &[String],
    transport: Transport,
    identity: &Identity,
    software: Option<&str>,
    ledger: Option<&LedgerHistory>,
) -> Result<Probe, ProbeError> {
    let began = tokio::time::Instant::now();
    let link = Link::open_any(servers, SERVER_NAME, transport, identity.tls()).await?;
    let connected_in = began.elapsed();
    let greeting = match software {
        Some(software) => {
            let (software, known) = (format!("{software}{PROBE}"), Capabilities::of_this_release());
            greet(&link.connection, (&software, &known), ledger).await.map(Some)
        }
        // A server that does not take our certificate says so only after our side of the handshake is done.
        None => {
            let patience = REFUSAL.max(link.connection.rtt() * 3);
            let refused = tokio::time::timeout(patience, link.connection.closed()).await;
            refused.map_or(Ok(None), |error| Err(GreetError::Lost(explain(&error))))
        }
    };
    let identity =
        link.connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
    let found = Probe {
        server: link.connection.remote_address(),
        over_tcp: link.is_over_tcp(),
        connected_in,
        round_trip: link.connection.rtt(),
        certificate: identity.and_then(|chain| chain.first().map(|first| first.to_vec())),
        greeting: None,
    };
    link.leave().await;
    match greeting {
        Ok(greeting) => Ok(Probe { greeting, ..found }),
        Err(GreetError::Rejected(rejection)) => Err(ProbeError::Greeting(rejection.to_string())),
        Err(GreetError::Version(error)) => Err(ProbeError::Greeting(error.to_string())),
        Err(GreetError::Lost(error)) => Err(ProbeError::Greeting(error)),
    }
}
