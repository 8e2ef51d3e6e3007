//! One connection to the server: address, socket, transport and handshake.
//!
//! The socket's buffers are large, since with the system's small ones a burst of packets is lost before it is read. No
//! session is resumed and nothing is sent before the handshake is done. Pauses between attempts are the caller's.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use protocol::wire::DATAGRAM_MAX;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;

/// The name in the server's certificate that clients ask for, whatever its address.
pub const SERVER_NAME: &str = "server.consortia";

/// After how long a line is kept alive, and after how much silence it is dead.
const ALONE: Liveness = Liveness { keep_alive: Duration::from_secs(5), idle_max: Duration::from_secs(30) };
/// The same where another server may have taken over meanwhile.
const AMONG_SEVERAL: Liveness =
    Liveness { keep_alive: Duration::from_secs(2), idle_max: Duration::from_secs(10) };
/// A handshake that takes longer has failed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long one server may be silent before the next one on the list is tried beside it.
const HEAD_START: Duration = Duration::from_secs(1);
/// Bytes of each socket buffer.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes in flight on one stream: 1 Gb/s at 100 ms and some more.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Streams the server may have open to us: the newest task and those it replaces.
const TASK_STREAMS: u32 = 4;
/// How long a leaving client waits for its goodbye to be heard.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
struct Liveness {
    keep_alive: Duration,
    idle_max: Duration,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is not understood or not known.
    #[error("the server's address `{address}` leads nowhere ({reason}); write it as host:port")]
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

/// A live connection and the socket it runs on.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    endpoint: Endpoint,
}

impl Link {
    /// Connects to the first of `servers` (host:port) that answers. They are tried in turn, and one that is silent does not hold up
    /// the next: each has a head start (Schinazi and Pauly 2017, RFC 8305). A server that stands by is silent.
    pub(super) async fn open_any(
        servers: &[String],
        server_name: &str,
        tls: &Arc<QuicClientConfig>,
    ) -> Result<Self, ConnectError> {
        if let [only] = servers {
            return Self::look_up(only, server_name, Arc::clone(tls), ALONE).await;
        }
        let (mut rest, mut attempts, mut troubles) = (servers.iter(), JoinSet::new(), Vec::new());
        loop {
            if let Some(server) = rest.next().cloned() {
                let (name, tls) = (server_name.to_owned(), Arc::clone(tls));
                attempts
                    .spawn(async move { (Self::look_up(&server, &name, tls, AMONG_SEVERAL).await, server) });
            }
            let patience = if rest.len() > 0 { HEAD_START } else { Duration::MAX };
            match tokio::time::timeout(patience, attempts.join_next()).await {
                Ok(Some(Ok((Ok(link), _)))) => return Ok(link),
                Ok(Some(Ok((Err(error @ ConnectError::ServerName(_)), _)))) => return Err(error),
                Ok(Some(Ok((Err(error), server)))) => troubles.push(format!("{server}: {error}")),
                Ok(Some(Err(died))) => troubles.push(died.to_string()),
                Ok(None) if troubles.is_empty() => return Err(ConnectError::Nobody),
                Ok(None) => return Err(ConnectError::Nowhere(troubles.join("; "))),
                Err(_) => {}
            }
        }
    }

    /// Connects to `address` (host:port), trying every address that the name stands for.
    async fn look_up(
        address: &str,
        server_name: &str,
        tls: Arc<QuicClientConfig>,
        liveness: Liveness,
    ) -> Result<Self, ConnectError> {
        let lost = |reason: String| ConnectError::Address { address: address.to_owned(), reason };
        let found = tokio::net::lookup_host(address).await.map_err(|error| lost(error.to_string()))?;
        let mut trouble = lost("the name has no address".to_owned());
        for address in found {
            match Self::dial(address, server_name, Arc::clone(&tls), liveness).await {
                Ok(link) => return Ok(link),
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }

    async fn dial(
        address: SocketAddr,
        server_name: &str,
        tls: Arc<QuicClientConfig>,
        liveness: Liveness,
    ) -> Result<Self, ConnectError> {
        let socket = bind(address).map_err(|error| ConnectError::Socket(error.to_string()))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut takes = EndpointConfig::default();
        takes.max_udp_payload_size(DATAGRAM_MAX).expect("every payload of 1200 bytes or more is allowed");
        let endpoint = Endpoint::new(takes, None, socket, runtime)
            .map_err(|error| ConnectError::Socket(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(tls);
        config.transport_config(Arc::new(transport(liveness)));
        let connecting =
            endpoint.connect_with(config, address, server_name).map_err(|error| match error {
                quinn::ConnectError::InvalidServerName(name) => ConnectError::ServerName(name),
                other => ConnectError::Socket(other.to_string()),
            })?;
        let connection = tokio::time::timeout(HANDSHAKE_MAX, connecting).await;
        match connection {
            Ok(Ok(connection)) => Ok(Self { connection, endpoint }),
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => Err(ConnectError::Silence(address)),
            Ok(Err(error)) => Err(error.into()),
        }
    }

    /// Says goodbye and waits a little for it to be heard.
    pub(super) async fn leave(&self) {
        self.connection.close(VarInt::from_u32(0), b"leaving");
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

fn transport(liveness: Liveness) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(DATAGRAM_MAX);
    let idle = liveness.idle_max.try_into().expect("10 and 30 seconds are valid idle timeouts");
    transport
        .mtu_discovery_config(Some(search))
        .keep_alive_interval(Some(liveness.keep_alive))
        .max_idle_timeout(Some(idle))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(TASK_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

/// A socket of the server's address family with large buffers.
fn bind(server: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    static WARNED: Once = Once::new();
    if granted < SOCKET_BUFFER {
        WARNED.call_once(|| {
            tracing::warn!(
                granted,
                wanted = SOCKET_BUFFER,
                "the system caps the UDP buffers, large models may travel slowly; raise net.core.rmem_max and wmem_max"
            );
        });
    }
    socket.bind(&any.into())?;
    Ok(socket.into())
}

/// What a lost connection means and what to do, in one sentence.
pub(super) fn explain(error: &ConnectionError) -> String {
    let alert = match error {
        ConnectionError::TransportError(error) => tls_alert(error.code),
        ConnectionError::ConnectionClosed(close) => tls_alert(close.error_code),
        _ => None,
    };
    let by_us = matches!(error, ConnectionError::TransportError(_));
    let advice = match (alert, by_us) {
        (Some(120), _) => {
            "what answers there does not speak this protocol; compare address, port and release"
        }
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

/// The TLS alert inside a QUIC error code (RFC 9001, section 4.8).
fn tls_alert(code: quinn::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}
