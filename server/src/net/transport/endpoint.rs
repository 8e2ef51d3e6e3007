//! The one UDP port: QUIC with mutual TLS 1.3 against the federation's root; and the TCP port of the same number, where there is one.
//!
//! It refuses certificates of other federations, data before the handshake is done (0-RTT), and resumed sessions: a certificate
//! is checked at every connection. Only who comes to enrol may come without one; the session sees to that.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use protocol::wire::{ALPNS, DATAGRAM_MAX, ENROL_ALPN};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tunnel::{ServerSocket, Tunnels};

use super::limits::Limits;
use super::tcp::TcpPort;

/// Bytes of the socket's buffers: with the usual 212 KiB a thousand uploads never finish.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes a peer may send on one stream ahead of our reading.
const STREAM_WINDOW: u32 = 16 << 20;
/// Bytes a peer may send on its connection ahead of our reading, while none of its uploads is being read.
pub(crate) const WINDOW_IDLE: u32 = 256 << 10;
/// The most of the same, while an upload is being read.
pub(crate) const WINDOW_UPLOAD: u32 = STREAM_WINDOW;
/// The least of the same, while a large upload is being read.
pub(crate) const WINDOW_UPLOAD_MIN: u32 = 4 << 20;
/// Bytes sent to a peer that it has not acknowledged.
const SEND_WINDOW: u64 = 8 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a connection lives of which nothing is heard.
pub(crate) const SILENCE_MAX: Duration = Duration::from_millis(IDLE_MS as u64);
const IDLE_MS: u32 = 30_000;
/// Numbers to look at for one that UDP and TCP both have free.
const TRIES: u32 = 16;

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// A file of the identity is missing or is not what it should be.
    #[error("{}: {message}; `server init` makes a server's identity", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The certificate, key and root do not fit together.
    #[error("the server's identity cannot be used: {0}")]
    Tls(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; {}", listening_advice(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The TCP port of the same number cannot be listened on.
    #[error(
        "cannot listen on TCP {address}: {source}; {}, or write `tcp = false` there",
        listening_advice(source)
    )]
    ListenTcp {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// What to do about a port that the system did not give.
pub(crate) fn listening_advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::AddrInUse => {
            "another program has this port, perhaps another `consortia server run`: end it, or take another port by `listen` in server.toml"
        }
        ErrorKind::PermissionDenied => {
            "this user may not open ports below 1024: grant the program CAP_NET_BIND_SERVICE, or take another port by `listen` in server.toml"
        }
        ErrorKind::AddrNotAvailable => {
            "this machine has no such address: take one of its own, or 0.0.0.0 for all of them, by `listen` in server.toml"
        }
        _ => "take another address or port by `listen` in server.toml",
    }
}

/// Where to listen, and as whom.
pub(crate) struct Listening<'a> {
    pub(crate) listen: SocketAddr,
    /// Whether peers may come over TCP, too.
    pub(crate) tcp: bool,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub(crate) identity: &'a Path,
    pub(crate) limits: Limits,
}

/// Where peers come in.
pub(crate) struct Port {
    pub(crate) endpoint: Endpoint,
    /// Those that came over TCP; none where there is no such port.
    pub(crate) tunnels: Tunnels,
    /// What lets them come; it closes its port when dropped.
    pub(crate) tcp: Option<AbortOnDropHandle<()>>,
    /// What they are shown.
    pub(crate) shown: watch::Sender<TlsAcceptor>,
}

/// How the server proves who it is: over UDP, and around what comes over TCP.
pub(crate) struct Shown {
    pub(crate) quic: quinn::ServerConfig,
    pub(crate) stream: TlsAcceptor,
}

impl Shown {
    /// The identity (`ca.pem`, `cert.pem`, `key.pem`) in a folder.
    pub(crate) fn read(identity: &Path) -> Result<Self, EndpointError> {
        let mut tls = tls(identity, private_key(identity)?)?;
        let quic = QuicServerConfig::try_from(tls.clone());
        let quic = quic.map_err(|error| EndpointError::Tls(error.to_string()))?;
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(quic));
        quic.transport_config(Arc::new(transport()));
        tls.alpn_protocols = vec![tunnel::ALPN.to_vec()];
        Ok(Self { quic, stream: TlsAcceptor::from(Arc::new(tls)) })
    }
}

/// Opens the port with the identity (`ca.pem`, `cert.pem`, `key.pem`) of a server, for UDP and, where it is configured, for TCP.
pub(crate) async fn open(listening: Listening<'_>) -> Result<Port, EndpointError> {
    let Listening { listen, tcp, identity, limits } = listening;
    let endpoint = endpoint_config(&private_key(identity)?);
    let Shown { quic, stream } = Shown::read(identity)?;
    let failed = |source| EndpointError::Listen { address: listen, source };
    let (socket, listener) = sockets(listen, tcp).await?;
    let udp = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
    let (socket, tunnels) = ServerSocket::new(udp);
    let endpoint = Endpoint::new_with_abstract_socket(endpoint, Some(quic), socket, Arc::new(TokioRuntime));
    let shown = watch::Sender::new(stream);
    let tcp = listener.map(|listener| {
        let port = TcpPort { listener, tls: shown.subscribe(), tunnels: tunnels.clone() };
        AbortOnDropHandle::new(tokio::spawn(port.serve(limits)))
    });
    Ok(Port { endpoint: endpoint.map_err(failed)?, tunnels, tcp, shown })
}

/// A UDP socket and, with `tcp`, a listener with the same number. A number that the system is to choose must be free for both.
async fn sockets(listen: SocketAddr, tcp: bool) -> Result<(UdpSocket, Option<TcpListener>), EndpointError> {
    let mut tries = 0;
    loop {
        let failed = |source| EndpointError::Listen { address: listen, source };
        let udp = socket(listen).map_err(failed)?;
        if !tcp {
            return Ok((udp, None));
        }
        let address = udp.local_addr().map_err(failed)?;
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok((udp, Some(listener))),
            Err(_) if listen.port() == 0 && tries < TRIES => tries += 1,
            Err(source) => return Err(EndpointError::ListenTcp { address, source }),
        }
    }
}

fn private_key(identity: &Path) -> Result<PrivateKeyDer<'static>, EndpointError> {
    let path = identity.join("key.pem");
    let text = read(&path)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| EndpointError::Identity { path, message: error.to_string() })
}

/// A server that comes back after a crash says at the first packet of an old connection that it is gone (RFC 9000,
/// section 10.3), so that sites return at once instead of waiting until the line seems dead. That takes the reset tokens
/// and connection ids of the server before: both follow from the private key.
fn endpoint_config(key: &PrivateKeyDer<'_>) -> EndpointConfig {
    let root = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
    let reset = hmac::sign(&root, b"consortia stateless reset");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref())));
    let ids = hmac::sign(&root, b"consortia connection ids");
    let ids = ids.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    config.max_udp_payload_size(DATAGRAM_MAX).expect("every payload of 1200 bytes or more is allowed");
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn tls(identity: &Path, key: PrivateKeyDer<'static>) -> Result<rustls::ServerConfig, EndpointError> {
    let (ca, cert) = (identity.join("ca.pem"), identity.join("cert.pem"));
    let unusable = |error: &dyn std::fmt::Display| EndpointError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for root in certificates(&ca)? {
        roots.add(root).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&error))?;
    // The root is sent along: who holds an invite knows its fingerprint and not yet the certificate.
    let mut chain = certificates(&cert)?;
    chain.extend(certificates(&ca)?);
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    // Of what a peer offers the first of these is taken.
    config.alpn_protocols = ALPNS.into_iter().chain([ENROL_ALPN]).map(<[u8]>::to_vec).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(DATAGRAM_MAX);
    transport
        .mtu_discovery_config(Some(search))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW_IDLE))
        .send_window(SEND_WINDOW);
    transport
}

fn socket(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(listen);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive.min(send) < SOCKET_BUFFER {
        tracing::warn!(
            "the system caps UDP buffers at {receive} bytes to receive and {send} to send; for many sites set \
             net.core.rmem_max and net.core.wmem_max to {SOCKET_BUFFER}"
        );
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    let wrong = |message: String| EndpointError::Identity { path: path.to_owned(), message };
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("there is no certificate in this file".into())) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, EndpointError> {
    std::fs::read(path)
        .map_err(|error| EndpointError::Identity { path: path.to_owned(), message: error.to_string() })
}
