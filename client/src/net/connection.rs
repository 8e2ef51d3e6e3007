//! A connection to one of the servers: who is tried, when, and which way; and what it means when it is lost.
//!
//! UDP is tried first. A server that is silent there is tried through a TCP stream as well, unless the site says otherwise: some networks let
//! no UDP out. Pauses between attempts are the caller's.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::dial::{Dial, Liveness, Tls};

/// The name in the server's certificate that clients ask for, whatever its address.
pub const SERVER_NAME: &str = "server.consortia";

/// After how long a line is kept alive, and after how much silence it is dead.
const ALONE: Liveness = Liveness { keep_alive: Duration::from_secs(5), idle_max: Duration::from_secs(30) };
/// The same where another server may have taken over meanwhile.
const AMONG_SEVERAL: Liveness =
    Liveness { keep_alive: Duration::from_secs(2), idle_max: Duration::from_secs(10) };
/// How long one server may be silent before the next one on the list is tried beside it.
const HEAD_START: Duration = Duration::from_secs(1);
/// How long servers may be silent over UDP before they are tried over TCP: when thousands return at once, some hear nothing for seconds.
const UDP_HEAD_START: Duration = Duration::from_secs(8);
/// How long a leaving client waits for its goodbye to be heard.
const FAREWELL: Duration = Duration::from_secs(2);

/// Which way packets take to the server. Inside is the same QUIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP, and TCP where UDP is not answered; UDP is tried again from time to time.
    #[default]
    Auto,
    /// UDP alone.
    Quic,
    /// A TLS stream over TCP alone, to the port of the same number.
    Tcp,
}

/// Whether `address` is a host and a port, whatever the host is.
fn is_host_and_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn unresolved(address: &str, reason: &str) -> String {
    if is_host_and_port(address) {
        format!(
            "the name in the server's address `{address}` cannot be resolved ({reason}); is it spelled right, and does this machine's DNS or hosts file \
             know it? A server that was made to be tried on this machine is `localhost`"
        )
    } else {
        format!("the server's address `{address}` is not understood ({reason}); write it as host:port")
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The address is not understood or not known.
    #[error("{}", unresolved(address, reason))]
    Address {
        /// As configured.
        address: String,
        /// What the resolver says.
        reason: String,
    },
    /// This machine gives no socket.
    #[error("no UDP socket can be opened on this machine: {0}")]
    Socket(String),
    /// The server's name is not one that a certificate can hold.
    #[error(
        "`{0}` is not a name that a certificate can hold; leave server_name out to take `server.consortia`"
    )]
    ServerName(String),
    /// Nobody answers.
    #[error("nobody answers at {0}; is the server running, and may UDP leave this network to that port")]
    Silence(SocketAddr),
    /// There is no stream to the server.
    #[error("{address} cannot be reached over TCP: {reason}")]
    Tcp {
        /// The server.
        address: SocketAddr,
        /// What the system or the TLS library says.
        reason: String,
    },
    /// The connection failed or was closed.
    #[error("{}", explain(.0))]
    Connection(#[from] ConnectionError),
    /// None of several servers can be reached.
    #[error("{0}")]
    Nowhere(String),
    /// There is no server to try.
    #[error("no server is named; write `server = \"host:port\"`")]
    Nobody,
}

impl DialError {
    /// Whether the next attempt will fail for the same reason, until somebody changes something here.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::ServerName(_) | Self::Nobody => true,
            Self::Connection(error) => alert_of(error).is_some(),
            Self::Address { .. }
            | Self::Socket(_)
            | Self::Silence(_)
            | Self::Tcp { .. }
            | Self::Nowhere(_) => false,
        }
    }
}

/// A live connection and the socket it runs on.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    /// What closes the connection when the TCP stream breaks in which its packets travel, if they do.
    pub(super) stream: Option<AbortOnDropHandle<()>>,
}

/// An attempt: when it may begin, with which server, and over UDP or TCP.
struct Turn {
    not_before: Duration,
    server: usize,
    over_tcp: bool,
}

/// The order of attempts. They are tried in turn, and one that is silent does not hold up the next: each has a head start
/// (Schinazi and Pauly 2017, RFC 8305).
fn turns(servers: usize, transport: Transport) -> impl Iterator<Item = Turn> {
    let after = |server: usize| HEAD_START * u32::try_from(server).unwrap_or(u32::MAX);
    let tcp_from =
        if transport == Transport::Auto { UDP_HEAD_START.max(after(servers)) } else { Duration::ZERO };
    let udp = if transport == Transport::Tcp { 0 } else { servers };
    let tcp = if transport == Transport::Quic { 0 } else { servers };
    let udp = (0..udp).map(move |server| Turn { not_before: after(server), server, over_tcp: false });
    udp.chain((0..tcp).map(move |server| Turn {
        not_before: tcp_from + after(server),
        server,
        over_tcp: true,
    }))
}

/// What became of an attempt.
type Tried = (Result<Link, DialError>, usize);

impl Link {
    /// Whether packets travel in a TCP stream.
    pub(super) fn is_over_tcp(&self) -> bool {
        self.stream.is_some()
    }

    /// Connects to the first of `servers` (host:port) that answers. A server that stands by is silent.
    pub(super) async fn open_any(
        servers: &[String],
        server_name: &str,
        transport: Transport,
        tls: &Tls,
    ) -> Result<Self, DialError> {
        let liveness = if servers.len() == 1 { ALONE } else { AMONG_SEVERAL };
        let dials: Vec<Dial> = servers
            .iter()
            .map(|server| Dial {
                server: server.clone(),
                server_name: server_name.to_owned(),
                tls: tls.clone(),
                liveness,
            })
            .collect();
        let began = Instant::now();
        let mut rest: VecDeque<Turn> = turns(dials.len(), transport).collect();
        let (mut attempts, mut errors) = (JoinSet::<Tried>::new(), TaskErrors::default());
        loop {
            rest.retain(|turn| !errors.rule_out(turn));
            if let Some(Turn { server, over_tcp, .. }) = rest.pop_front() {
                let (dial, may_return) = (dials[server].clone(), transport == Transport::Auto);
                attempts.spawn(async move {
                    (if over_tcp { dial.tcp(may_return).await } else { dial.udp().await }, server)
                });
            }
            let ended = match rest.front() {
                Some(next) => match timeout_at(began + next.not_before, attempts.join_next()).await {
                    Ok(ended) => ended,
                    Err(_) => continue,
                },
                None => attempts.join_next().await,
            };
            match ended {
                Some(Ok((Ok(link), _))) => return Ok(link),
                Some(Ok((Err(error @ DialError::ServerName(_)), _))) => return Err(error),
                Some(Ok((Err(error), server))) => errors.add(server, error),
                Some(Err(died)) => errors.add(usize::MAX, DialError::Nowhere(died.to_string())),
                None if rest.is_empty() => return Err(errors.sum_up(servers)),
                None => {}
            }
        }
    }

    /// Whether UDP leads to one of `servers` by now: a handshake and a goodbye.
    pub(super) async fn is_udp_open(servers: &[String], server_name: &str, tls: &Tls) -> bool {
        match Self::open_any(servers, server_name, Transport::Quic, tls).await {
            Ok(link) => {
                link.leave().await;
                true
            }
            Err(_) => false,
        }
    }

    /// Says goodbye and waits a little for it to be heard.
    pub(super) async fn leave(&self) {
        self.connection.close(VarInt::from_u32(0), b"leaving");
        let _ = timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

/// What went wrong, server by server.
#[derive(Default)]
struct TaskErrors {
    met: Vec<(usize, DialError)>,
    /// Servers that have spoken: TCP would lead to the same words.
    spoken: BTreeSet<usize>,
}

impl TaskErrors {
    fn add(&mut self, server: usize, error: DialError) {
        if matches!(error, DialError::Connection(_) | DialError::Address { .. }) {
            self.spoken.insert(server);
        }
        self.met.push((server, error));
    }

    /// Whether an attempt is not worth making.
    fn rule_out(&self, turn: &Turn) -> bool {
        turn.over_tcp && self.spoken.contains(&turn.server)
    }

    fn sum_up(mut self, servers: &[String]) -> DialError {
        self.met.sort_by_key(|(server, error)| (*server, matches!(error, DialError::Tcp { .. })));
        match (servers, self.met.len()) {
            ([], _) => DialError::Nobody,
            ([_], 1) => self.met.remove(0).1,
            ([_], _) => {
                let told: Vec<_> = self.met.iter().map(|(_, error)| error.to_string()).collect();
                DialError::Nowhere(told.join("; "))
            }
            _ => {
                let name = |server: usize| servers.get(server).map_or("a server", String::as_str);
                let told = self.met.iter().map(|(server, error)| format!("{}: {error}", name(*server)));
                DialError::Nowhere(told.collect::<Vec<_>>().join("; "))
            }
        }
    }
}

/// The TLS alerts of a certificate that leads to another root: of another name, and of the same name, which the roots of all federations
/// have, so that a signature does not fit.
const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
/// What a server's certificate means that leads to another root.
pub(super) const OTHER_FEDERATION: &str = "the server there is of another federation, or its federation was made anew: its certificate does not lead to ca.pem \
     here. Is it the right address? `consortia check` shows the federation's fingerprint, of `site.toml` here and of `server.toml` there: they must be \
     the same";

/// What a lost connection means and what to do, in one sentence.
pub(super) fn explain(error: &ConnectionError) -> String {
    let alert = alert_of(error);
    let by_us = matches!(error, ConnectionError::TransportError(_));
    let advice = match (alert, by_us) {
        (Some(120), _) => {
            "what answers there does not speak this protocol; compare address, port and release"
        }
        (Some(DECRYPT_ERROR | UNKNOWN_CA), true) => OTHER_FEDERATION,
        (Some(_), true) => {
            "the server's certificate is not accepted here; compare ca.pem, server_name and this machine's clock"
        }
        (Some(_), false) => {
            "the server does not accept this certificate; it may be expired, revoked or of another federation: ask the \
             operator for a new one"
        }
        (None, _) => match error {
            ConnectionError::TimedOut => "the line is dead: nothing was heard for too long",
            ConnectionError::Reset => "the server has restarted",
            ConnectionError::LocallyClosed => "the stream to the server broke",
            ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                "the server refuses newcomers for now: it stands by for another one, or too many come at once"
            }
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason);
                return if reason.is_empty() {
                    "the server closed the connection".into()
                } else {
                    reason.into()
                };
            }
            _ => return error.to_string(),
        },
    };
    if alert.is_some() { format!("{advice} ({error})") } else { advice.to_owned() }
}

/// The TLS alert that has ended a connection.
fn alert_of(error: &ConnectionError) -> Option<u8> {
    match error {
        ConnectionError::TransportError(error) => tls_alert(error.code),
        ConnectionError::ConnectionClosed(close) => tls_alert(close.error_code),
        _ => None,
    }
}

/// The TLS alert inside a QUIC error code (RFC 9001, section 4.8).
fn tls_alert(code: quinn::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}
