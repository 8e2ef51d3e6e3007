//! The same bytes over bare QUIC: as many connections, the same certificates, cipher, windows and socket buffers, and
//! nothing done with what comes. Windows and buffers repeat those of `server::net` and `client::net`, which keep them to
//! themselves.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream, TransportConfig, VarInt,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use server::net::SERVER_NAME;
use tokio::task::JoinSet;

use super::super::role::{Role, until_input_ends};
use super::{Leg, Stage, now, sites};

const SOCKET_BUFFER: usize = 4 << 20;
const STREAM_WINDOW: u32 = 16 << 20;
const CLIENT_WINDOW: u32 = 32 << 20;
const SERVER_SEND_WINDOW: u64 = 8 << 20;
const ALPN: &[u8] = b"bare";
/// Bytes handed to and taken from a stream at a time.
const BLOCK: usize = 256 << 10;
/// The first byte of a stream: which way the rest goes.
const DOWN: u8 = b'd';
const UP: u8 = b'u';

/// The server's process: on every stream it sends or takes in `bytes`, until its input ends.
pub(super) async fn serve(dir: &Path, bytes: usize, datagram_max: u16) -> anyhow::Result<()> {
    let mut transport = transport(datagram_max);
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SERVER_SEND_WINDOW);
    let (chain, key, roots) = identity(&dir.join("identity"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new(takes(datagram_max)?, Some(config), socket()?, runtime)?;
    writeln!(std::io::stdout(), "listening {}", endpoint.local_addr()?)?;
    let accepting = async {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await?;
                while let Ok((send, recv)) = connection.accept_bi().await {
                    attend(send, recv, bytes).await?;
                }
                anyhow::Ok(())
            });
        }
    };
    tokio::select! {
        () = accepting => Ok(()),
        ended = until_input_ends() => ended,
    }
}

async fn attend(mut send: SendStream, mut recv: RecvStream, bytes: usize) -> anyhow::Result<()> {
    let mut way = [0u8; 1];
    recv.read_exact(&mut way).await?;
    if way == [DOWN] {
        give(&mut send, bytes).await
    } else {
        take(&mut recv, bytes).await?;
        send.write_all(b".").await?;
        Ok(send.finish()?)
    }
}

/// Copies a model's bytes down to and up from every connection, as often as there are rounds.
pub(super) async fn copy(stage: &Stage<'_>, datagram_max: u16) -> anyhow::Result<Vec<Leg>> {
    let (bytes, copies) = (stage.bytes(), stage.order.rounds);
    let words = format!("bare|{}|{bytes}|{datagram_max}", stage.dir.display());
    let mut server = Role::start(stage.program, &words)?;
    let address = server.expect("listening")?;
    let mut lines = Vec::new();
    for site in sites(stage.order.sites)? {
        lines.push(connect(&stage.dir.join(site.as_str()), &address, ALPN, datagram_max).await?);
    }
    let mut legs = Vec::new();
    // The first one warms up, as the first round does.
    for turn in 0..=copies {
        let leg = Leg { down: all(&lines, DOWN, bytes).await?, up: all(&lines, UP, bytes).await? };
        if turn > 0 {
            legs.push(leg);
        }
    }
    for (endpoint, connection) in lines {
        connection.close(VarInt::from_u32(0), b"done");
        endpoint.wait_idle().await;
    }
    server.end()?;
    Ok(legs)
}

/// Seconds until all connections have done one transfer.
async fn all(lines: &[(Endpoint, Connection)], way: u8, bytes: usize) -> anyhow::Result<f64> {
    let started = now();
    let mut transfers = JoinSet::new();
    for (_, connection) in lines {
        let connection = connection.clone();
        transfers.spawn(async move {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&[way]).await?;
            if way == DOWN {
                take(&mut recv, bytes).await
            } else {
                give(&mut send, bytes).await?;
                take(&mut recv, 1).await
            }
        });
    }
    while let Some(transfer) = transfers.join_next().await {
        transfer??;
    }
    Ok(now() - started)
}

async fn give(send: &mut SendStream, bytes: usize) -> anyhow::Result<()> {
    let block = vec![1u8; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(BLOCK);
        send.write_all(&block[..part]).await?;
        left -= part;
    }
    Ok(send.finish()?)
}

pub(super) async fn take(recv: &mut RecvStream, bytes: usize) -> anyhow::Result<()> {
    let mut block = vec![0u8; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(BLOCK);
        left -= recv.read(&mut block[..part]).await?.context("the stream ended early")?;
    }
    Ok(())
}

/// A connection as a site's agent has it, but for the protocol's name.
pub(super) async fn connect(
    folder: &Path,
    address: &str,
    alpn: &[u8],
    datagram_max: u16,
) -> anyhow::Result<(Endpoint, Connection)> {
    let mut transport = transport(datagram_max);
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CLIENT_WINDOW))
        .send_window(u64::from(CLIENT_WINDOW));
    let (chain, key, roots) = identity(folder)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new(takes(datagram_max)?, None, socket()?, runtime)?;
    let connection = endpoint.connect_with(config, address.parse()?, SERVER_NAME)?.await?;
    Ok((endpoint, connection))
}

fn transport(datagram_max: u16) -> TransportConfig {
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(datagram_max);
    let mut transport = TransportConfig::default();
    transport.mtu_discovery_config(Some(search));
    transport
}

fn takes(datagram_max: u16) -> anyhow::Result<EndpointConfig> {
    let mut takes = EndpointConfig::default();
    takes.max_udp_payload_size(datagram_max)?;
    Ok(takes)
}

fn socket() -> anyhow::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(socket.into())
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, RootCertStore);

fn identity(folder: &Path) -> anyhow::Result<Identity> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let chain = vec![CertificateDer::from_pem_file(folder.join("cert.pem"))?];
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join("key.pem"))?, roots))
}
