//! Streams over TCP that carry no QUIC: without a certificate, too many of one name, noise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::net::{AgentConfig, AgentEvent, Transport};
use rustls::pki_types::ServerName;
use server::net::{Limits, SERVER_NAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::intruder::Credentials;
use crate::member::{Member, PATIENCE};
use crate::stage::{Stage, plan};
use crate::stream::forward;
use crate::trio::{learner, sites};

/// Streams of one name that the server takes at a time.
const OF_ONE_NAME: usize = 4;

async fn open(server: SocketAddr, credentials: &Credentials) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(Arc::new(credentials.tls()));
    connector.connect(name, TcpStream::connect(server).await?).await
}

/// Waits for an event of this kind.
async fn until(events: &mut Receiver<AgentEvent>, is_it: impl Fn(&AgentEvent) -> bool) {
    let heard = async { while !is_it(&events.recv().await.expect("the agent is at work")) {} };
    timeout(PATIENCE, heard).await.expect("it happens");
}

/// Whether the server closes the stream, however it does.
async fn is_closed(stream: &mut TlsStream<TcpStream>) -> bool {
    let read = timeout(PATIENCE, stream.read(&mut [0; 64])).await.expect("the server says so");
    !matches!(read, Ok(1..))
}

/// An honest site comes over TCP, is greeted, and leaves.
async fn an_honest_site_passes(stage: &Stage, name: &str) {
    let (address, folder) = (stage.server.local_addr().to_string(), stage.federation.issue(name));
    let config = AgentConfig { transport: Transport::Tcp, ..AgentConfig::new(address) };
    let (_, data) = sites().remove(0);
    let (site, mut events) = Member::with(config, &folder, name, learner(data));
    until(&mut events, |event| matches!(event, AgentEvent::Connected { over_tcp: true, .. })).await;
    site.leave().await;
}

fn tunnel_of(credentials: Credentials) -> Credentials {
    Credentials { alpn: tunnel::ALPN.to_vec(), ..credentials }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_have_few_streams_and_take_none_from_sites() {
    let limits = Limits { handshakes_max: 8, ..Limits::default() };
    let stage = Stage::open(limits).await;
    let server = stage.server.local_addr();
    let ca_pem = stage.federation.authority.ca_pem().to_owned();
    let stranger = tunnel_of(Credentials { ca_pem, proof: None, alpn: Vec::new() });
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(open(server, &stranger).await.unwrap());
    }
    // One more takes the place of the oldest, which had its time.
    let one_more = open(server, &stranger).await.unwrap();
    assert!(is_closed(&mut idle.remove(0)).await);
    idle.push(one_more);
    an_honest_site_passes(&stage, "east").await;
    // What is no datagram's length ends the stream; random datagrams end nothing.
    let mut mute = idle.pop().unwrap();
    mute.write_all(&[0, 0]).await.unwrap();
    mute.flush().await.unwrap();
    assert!(is_closed(&mut mute).await);
    let noise: Vec<u8> = (0..255u8).flat_map(|byte| [vec![0, 200], vec![byte; 200]].concat()).collect();
    for stream in &mut idle {
        stream.write_all(&noise).await.unwrap();
        stream.flush().await.unwrap();
    }
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_has_few_streams() {
    let stage = Stage::open(Limits::default()).await;
    let server = stage.server.local_addr();
    let mallory = tunnel_of(Credentials::of(&stage.federation.issue("mallory")));
    let mut held = Vec::new();
    for _ in 0..OF_ONE_NAME {
        held.push(open(server, &mallory).await.unwrap());
    }
    let mut one_more = open(server, &mallory).await.unwrap();
    assert!(is_closed(&mut one_more).await);
    an_honest_site_passes(&stage, "east").await;
    drop(held);
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_another_protocol_or_federation_is_not_opened() {
    let stage = Stage::open(Limits::default()).await;
    let server = stage.server.local_addr();
    let other_words = Credentials::of(&stage.federation.issue("mallory"));
    assert!(open(server, &other_words).await.is_err(), "QUIC's own protocol is not spoken here");
    let elsewhere = Stage::open(Limits::default()).await;
    let foreign = Credentials::of(&elsewhere.federation.issue("mallory"));
    let ca_pem = stage.federation.authority.ca_pem().to_owned();
    // With TLS 1.3 a client hears that its certificate is refused when it first reads.
    if let Ok(mut stream) = open(server, &tunnel_of(Credentials { ca_pem, ..foreign })).await {
        assert!(is_closed(&mut stream).await);
    }
    an_honest_site_passes(&stage, "east").await;
    elsewhere.close().await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_whose_stream_breaks_knows_at_once_and_comes_back() {
    let stage = Stage::open(Limits::default()).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = forward(free, stage.server.local_addr()).await;
    let config = AgentConfig { transport: Transport::Tcp, ..AgentConfig::new(free.to_string()) };
    let folder = stage.federation.issue("east");
    let (site, mut events) = Member::with(config, &folder, "east", learner(sites().remove(0).1));
    until(&mut events, |event| matches!(event, AgentEvent::Connected { over_tcp: true, .. })).await;
    drop(line);
    // Long before QUIC would give the connection up.
    let broke = |event: &AgentEvent| match event {
        AgentEvent::Waiting { error, .. } => error.contains("stream to the server broke"),
        _ => false,
    };
    timeout(Duration::from_secs(15), until(&mut events, broke)).await.expect("it is told");
    let _line = forward(free, stage.server.local_addr()).await;
    until(&mut events, |event| matches!(event, AgentEvent::Connected { .. })).await;
    site.leave().await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}
