//! A model's worth of bytes to a server over UDP and through a TLS stream over TCP, on loopback.
//!
//! `cargo bench -p tunnel`. Both ways are the same QUIC with the same windows; the reference is UDP with packets of the usual size.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tunnel::{ClientSocket, ServerSocket, Tunnels};

const BYTES: usize = 32 << 20;
const WINDOW: u32 = 16 << 20;
/// The size of payloads that the server takes; see `protocol::wire::DATAGRAM_MAX`.
const DATAGRAM_MAX: u16 = 6_500;
const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (sink, stream) = runtime.block_on(async {
        let sink = Sink::open();
        let stream = sink.listen().await;
        (sink, stream)
    });
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("upload");
    group.throughput(Throughput::Bytes(BYTES as u64)).measurement_time(Duration::from_secs(8));
    for (name, large, over_tcp) in
        [("udp, packets of 1452 bytes", false, false), ("udp", true, false), ("tcp", true, true)]
    {
        let (_endpoint, connection) = runtime.block_on(async {
            if over_tcp { sink.call_over_tcp(stream).await } else { sink.call(large).await }
        });
        let bytes = bytes::Bytes::from(vec![7; BYTES]);
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(upload(&connection, bytes.clone())));
        });
    }
    group.finish();
    criterion.final_summary();
}

async fn upload(connection: &Connection, bytes: bytes::Bytes) {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_chunk(bytes).await.expect("the sink reads");
    send.finish().expect("it is open");
    assert_eq!(recv.read_to_end(8).await.expect("a receipt").len(), 1);
}

fn transport(large: bool) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let window = VarInt::from_u32(WINDOW);
    transport.stream_receive_window(window).receive_window(window).send_window(u64::from(WINDOW));
    if large {
        let mut search = quinn::MtuDiscoveryConfig::default();
        search.upper_bound(DATAGRAM_MAX);
        transport.mtu_discovery_config(Some(search));
    }
    Arc::new(transport)
}

fn takes() -> EndpointConfig {
    let mut takes = EndpointConfig::default();
    takes.max_udp_payload_size(DATAGRAM_MAX).expect("it is above 1200");
    takes
}

/// A server that reads every stream to its end and says so.
struct Sink {
    endpoint: Endpoint,
    tunnels: Tunnels,
    acceptor: TlsAcceptor,
    trust: rustls::ClientConfig,
}

impl Sink {
    fn open() -> Self {
        let made = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("a certificate");
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("its key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = [&rustls::version::TLS13];
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .expect("the provider has TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let trust = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .expect("the provider has TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let quic = QuicServerConfig::try_from(server.clone()).expect("TLS 1.3");
        let mut config = ServerConfig::with_crypto(Arc::new(quic));
        config.transport_config(transport(true));
        let udp = std::net::UdpSocket::bind(ANY).expect("a port");
        let udp = TokioRuntime.wrap_udp_socket(udp).expect("a socket");
        let (socket, tunnels) = ServerSocket::new(udp);
        let endpoint =
            Endpoint::new_with_abstract_socket(takes(), Some(config), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.expect("an endpoint");
        tokio::spawn(swallow(endpoint.clone()));
        Self { endpoint, tunnels, acceptor: TlsAcceptor::from(Arc::new(server)), trust }
    }

    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind(ANY).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (acceptor, tunnels) = (self.acceptor.clone(), self.tunnels.clone());
        tokio::spawn(async move {
            let (stream, peer) = listener.accept().await.expect("somebody comes");
            stream.set_nodelay(true).expect("TCP has it");
            let stream = acceptor.accept(stream).await.expect("a handshake");
            tunnels.carry(stream, peer, Duration::from_secs(600)).await
        });
        address
    }

    fn config(&self, large: bool) -> ClientConfig {
        let quic = QuicClientConfig::try_from(self.trust.clone()).expect("TLS 1.3");
        let mut config = ClientConfig::new(Arc::new(quic));
        config.transport_config(transport(large));
        config
    }

    async fn call(&self, large: bool) -> (Endpoint, Connection) {
        let udp = std::net::UdpSocket::bind(ANY).expect("a port");
        let endpoint = Endpoint::new(takes(), None, udp, Arc::new(TokioRuntime)).expect("an endpoint");
        let server = self.endpoint.local_addr().expect("it is bound");
        let connecting = endpoint.connect_with(self.config(large), server, "server").expect("a name");
        (endpoint, connecting.await.expect("a connection"))
    }

    async fn call_over_tcp(&self, address: SocketAddr) -> (Endpoint, Connection) {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP has it");
        let local = stream.local_addr().expect("it is bound");
        let name = ServerName::try_from("server").expect("a name");
        let connector = TlsConnector::from(Arc::new(self.trust.clone()));
        let stream = connector.connect(name, stream).await.expect("a handshake");
        let socket = ClientSocket::new(stream, local, address);
        let endpoint = Endpoint::new_with_abstract_socket(takes(), None, socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.expect("an endpoint");
        let connecting = endpoint.connect_with(self.config(true), address, "server").expect("a name");
        (endpoint, connecting.await.expect("a connection"))
    }
}

async fn swallow(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await.expect("a connection");
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {}
                send.write_all(b".").await.expect("the peer waits");
                send.finish().expect("it is open");
            }
        });
    }
}
