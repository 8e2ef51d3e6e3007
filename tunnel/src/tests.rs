//! QUIC through a pipe in memory: the same connection as over UDP, and beside it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncWriteExt, DuplexStream};

use crate::{ClientSocket, ServerSocket, Tunnels};

const SILENCE: Duration = Duration::from_secs(30);
/// Bytes that the pipe holds, far fewer than what is sent.
const PIPE: usize = 8 << 10;

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A server that sends every stream back, and what its clients trust.
struct Echo {
    endpoint: Endpoint,
    tunnels: Tunnels,
    trust: ClientConfig,
}

impl Echo {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["server".to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
        let udp = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind(loopback(0)).unwrap()).unwrap();
        let (socket, tunnels) = ServerSocket::new(udp);
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), Some(config), socket, runtime)
                .unwrap();
        tokio::spawn(accept(endpoint.clone()));
        let trust = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
        Self { endpoint, tunnels, trust }
    }

    /// One end of a new tunnel.
    fn pipe(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE);
        let tunnels = self.tunnels.clone();
        tokio::spawn(async move { tunnels.carry(far, loopback(7), SILENCE).await });
        near
    }

    async fn call_through(&self, stream: DuplexStream) -> (Endpoint, Connection) {
        self.call_over(ClientSocket::new(stream, loopback(1), loopback(2))).await
    }

    async fn call_over(&self, socket: Arc<ClientSocket>) -> (Endpoint, Connection) {
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime).unwrap();
        let connecting = endpoint.connect_with(self.trust.clone(), loopback(2), "server").unwrap();
        let connection = connecting.await.unwrap();
        (endpoint, connection)
    }
}

async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await.unwrap();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let came = recv.read_to_end(64 << 20).await.unwrap();
                send.write_all(&came).await.unwrap();
                send.finish().unwrap();
            }
        });
    }
}

async fn echo(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    recv.read_to_end(64 << 20).await.unwrap()
}

fn megabytes(count: usize) -> Vec<u8> {
    (0..count << 20).map(|index| (index * 7 + index / 251) as u8).collect()
}

#[tokio::test]
async fn both_ways_lead_to_one_endpoint_at_the_same_time() {
    let server = Echo::start();
    let udp = Endpoint::client(loopback(0)).unwrap();
    let address = server.endpoint.local_addr().unwrap();
    let direct = udp.connect_with(server.trust.clone(), address, "server").unwrap().await.unwrap();
    let (_first, first) = server.call_through(server.pipe()).await;
    let (_second, second) = server.call_through(server.pipe()).await;
    assert_eq!(server.tunnels.count(), 2);
    let bytes = megabytes(6);
    let (a, b, c) = tokio::join!(echo(&direct, &bytes), echo(&first, &bytes), echo(&second, &bytes));
    assert!([a, b, c].iter().all(|came| *came == bytes));
}

#[tokio::test]
async fn the_server_knows_who_is_behind_a_tunnel_and_forgets_it_when_it_ends() {
    let server = Echo::start();
    let (endpoint, connection) = server.call_through(server.pipe()).await;
    assert_eq!(connection.remote_address(), loopback(2));
    assert_eq!(server.tunnels.peer(super::serving::address(0)), Some(loopback(7)));
    assert_eq!(server.tunnels.peer(loopback(7)), None, "an address of a network is no tunnel's");
    connection.close(0u32.into(), b"done");
    drop((endpoint, connection));
    tokio::time::timeout(SILENCE, async {
        while server.tunnels.count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(server.tunnels.peer(super::serving::address(0)), None);
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_at_once() {
    let server = Echo::start();
    let (near, far) = tokio::io::duplex(PIPE);
    let tunnels = server.tunnels.clone();
    let carrying = tokio::spawn(async move { tunnels.carry(far, loopback(7), SILENCE).await });
    let socket = ClientSocket::new(near, loopback(1), loopback(2));
    let ended = socket.ended();
    let (_endpoint, connection) = server.call_over(socket).await;
    assert!(!ended.is_cancelled());
    carrying.abort();
    tokio::time::timeout(Duration::from_secs(5), ended.cancelled()).await.unwrap();
    assert!(connection.close_reason().is_none(), "that is for whoever dialled to say");
}

#[tokio::test]
async fn a_stream_that_is_silent_or_carries_no_datagrams_is_ended() {
    let server = Echo::start();
    let (_near, far) = tokio::io::duplex(PIPE);
    let ended = server.tunnels.carry(far, loopback(7), Duration::from_millis(20)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);

    let (mut near, far) = tokio::io::duplex(PIPE);
    near.write_all(&[0, 0]).await.unwrap();
    let ended = server.tunnels.carry(far, loopback(7), SILENCE).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::InvalidData);

    let (mut near, far) = tokio::io::duplex(PIPE);
    near.write_all(&[0, 9, 1]).await.unwrap();
    drop(near);
    let ended = server.tunnels.carry(far, loopback(7), SILENCE).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(server.tunnels.count(), 0);
}

#[tokio::test]
async fn noise_from_a_tunnel_does_not_disturb_the_others() {
    let server = Echo::start();
    let (_endpoint, connection) = server.call_through(server.pipe()).await;
    let mut noisy = server.pipe();
    let flood = tokio::spawn(async move {
        let frame = [[5, 0].as_slice(), &[0xa5; 1280]].concat();
        while noisy.write_all(&frame).await.is_ok() {}
    });
    let bytes = megabytes(1);
    assert_eq!(echo(&connection, &bytes).await, bytes);
    flood.abort();
}
