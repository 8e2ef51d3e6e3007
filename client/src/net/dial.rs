//! One attempt to reach one address: the socket, the transport and the handshake, over UDP or through a TCP stream.
//!
//! The UDP socket's buffers are large, since with the system's small ones a burst of packets is lost before it is read. No session
//! is resumed and nothing is sent before the handshake is done.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use protocol::wire::DATAGRAM_MAX;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tunnel::ClientSocket;

use super::connection::{DialError, Link, OTHER_FEDERATION};

/// A handshake that takes longer has failed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long UDP has to show that it works after all, once a server is known to be there because it answers over TCP.
const LAST_CHANCE: Duration = Duration::from_millis(1_500);
/// How long after the end of a stream what came last is still being read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Bytes of each socket buffer.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes in flight on one stream: 1 Gb/s at 100 ms and some more.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Streams the server may have open to us: the newest task and those it replaces.
const TASK_STREAMS: u32 = 4;

/// How somebody proves who they are: to QUIC, and to a TLS stream that carries QUIC.
#[derive(Clone)]
pub(super) struct Tls {
    quic: Arc<QuicClientConfig>,
    stream: Arc<rustls::ClientConfig>,
}

impl Tls {
    /// What `config` says, for both.
    pub(super) fn of(config: rustls::ClientConfig) -> Result<Self, rustls::Error> {
        let mut stream = config.clone();
        stream.alpn_protocols = vec![tunnel::ALPN.to_vec()];
        let quic = QuicClientConfig::try_from(config);
        let quic = quic.map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { quic: Arc::new(quic), stream: Arc::new(stream) })
    }
}

/// After how long a line is kept alive, and after how much silence it is dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liveness {
    pub(super) keep_alive: Duration,
    pub(super) idle_max: Duration,
}

/// Whom to reach, and what to tell them.
#[derive(Clone)]
pub(super) struct Dial {
    /// `host:port`.
    pub(super) server: String,
    /// The name that the server's certificate must hold.
    pub(super) server_name: String,
    pub(super) tls: Tls,
    pub(super) liveness: Liveness,
}

impl Dial {
    /// Over UDP, trying every address that the name stands for.
    pub(super) async fn udp(&self) -> Result<Link, DialError> {
        let mut last = self.lost("the name has no address".to_owned());
        for address in self.look_up().await? {
            match self.udp_to(address).await {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Through a stream over TCP. UDP is preferred where it turns out to work, if `may_return`.
    pub(super) async fn tcp(&self, may_return: bool) -> Result<Link, DialError> {
        let mut last = self.lost("the name has no address".to_owned());
        for address in self.look_up().await? {
            match self.tcp_to(address, may_return).await {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn lost(&self, reason: String) -> DialError {
        DialError::Address { address: self.server.clone(), reason }
    }

    async fn look_up(&self) -> Result<impl Iterator<Item = SocketAddr>, DialError> {
        tokio::net::lookup_host(&self.server).await.map_err(|error| self.lost(error.to_string()))
    }

    async fn udp_to(&self, address: SocketAddr) -> Result<Link, DialError> {
        let socket = bind(address).map_err(|error| DialError::Socket(error.to_string()))?;
        let endpoint = Endpoint::new(takes(), None, socket, Arc::new(quinn::TokioRuntime))
            .map_err(|error| DialError::Socket(error.to_string()))?;
        self.shake_hands(endpoint, address, transport(self.liveness)).await
    }

    async fn tcp_to(&self, address: SocketAddr, may_return: bool) -> Result<Link, DialError> {
        let failed = |reason: String| DialError::Tcp { address, reason };
        let name = ServerName::try_from(self.server_name.clone());
        let name = name.map_err(|_| DialError::ServerName(self.server_name.clone()))?;
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let local = stream.local_addr()?;
            Ok((local, TlsConnector::from(Arc::clone(&self.tls.stream)).connect(name, stream).await?))
        };
        let (local, stream) = match timeout(HANDSHAKE_MAX, connecting).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => return Err(failed(describe(&error))),
            Err(_) => return Err(failed("nothing was heard for 10 seconds".to_owned())),
        };
        if may_return && let Ok(Ok(link)) = timeout(LAST_CHANCE, self.udp_to(address)).await {
            return Ok(link);
        }
        let socket = ClientSocket::new(stream, local, address);
        let ended = socket.ended();
        let endpoint =
            Endpoint::new_with_abstract_socket(takes(), None, socket, Arc::new(quinn::TokioRuntime))
                .map_err(|error| DialError::Socket(error.to_string()))?;
        // Inside a stream every size passes.
        let mut transport = transport(self.liveness);
        transport.initial_mtu(DATAGRAM_MAX).mtu_discovery_config(None);
        let link = self.shake_hands(endpoint, address, transport).await?;
        let connection = link.connection.clone();
        let closing = tokio::spawn(async move {
            ended.cancelled().await;
            sleep(LAST_WORDS).await;
            connection.close(VarInt::from_u32(0), b"");
        });
        Ok(Link { stream: Some(AbortOnDropHandle::new(closing)), ..link })
    }

    async fn shake_hands(
        &self,
        endpoint: Endpoint,
        address: SocketAddr,
        transport: TransportConfig,
    ) -> Result<Link, DialError> {
        let mut config = quinn::ClientConfig::new(Arc::clone(&self.tls.quic) as Arc<_>);
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, address, &self.server_name);
        let connecting = connecting.map_err(|error| match error {
            quinn::ConnectError::InvalidServerName(name) => DialError::ServerName(name),
            other => DialError::Socket(other.to_string()),
        })?;
        match timeout(HANDSHAKE_MAX, connecting).await {
            Ok(Ok(connection)) => Ok(Link { connection, endpoint, stream: None }),
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => Err(DialError::Silence(address)),
            Ok(Err(error)) => Err(error.into()),
        }
    }
}

/// A TLS error in the words that are used for QUIC's, and others in the system's.
fn describe(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => {
            format!(
                "{OTHER_FEDERATION}; where they are, a proxy opens TLS on the way, and must leave this address alone"
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => NO_TLS.to_owned(),
        Some(rustls::Error::InvalidCertificate(why)) => format!(
            "the server's certificate is not accepted here ({why}); a proxy that opens TLS must leave this address alone"
        ),
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
            "what answers there does not speak this protocol".to_owned()
        }
        _ if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("it was closed before TLS was agreed on; {PORT}")
        }
        _ => error.to_string(),
    }
}

/// What an answer means that is no TLS, as of an HTTP server.
const NO_TLS: &str = "what answers there speaks no TLS, as the server's admin port (HTTP) and other web servers do; take the port of `listen` in server.toml, \
     which is 4433 unless somebody chose another, and not that of [admin]";
const PORT: &str = "is it the port of `listen` in server.toml, and not that of [admin]?";

fn takes() -> EndpointConfig {
    let mut takes = EndpointConfig::default();
    takes.max_udp_payload_size(DATAGRAM_MAX).expect("every payload of 1200 bytes or more is allowed");
    takes
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
