//! Peers that may not come in, or not through this door. Each is told why, and the federation works on beside it.

use std::time::{Duration, SystemTime};

use client::Participant;
use client::net::{Agent, AgentConfig, AgentError, Identity, OperatorClient, OperatorError};
use protocol::wire::{
    ALPN, AdminRequest, ConnectError, FrameKind, Greeting, Hello, Receipt, VERSION, encode,
};
use protocol::{ClientId, LearnError, Learner};
use quinn::ConnectionError;
use rcgen::{CertificateParams, KeyPair, SanType};
use server::net::{Authority, Limits, SERVER_NAME};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::intruder::{Credentials, Intruder, hello, socket};
use crate::member::PATIENCE;
use crate::stage::{Stage, plan};

/// A peer with these credentials must fail in TLS, with this alert (RFC 8446, section 6.2).
async fn tls_refuses(stage: &Stage, credentials: &Credentials, alert: u8) {
    let address = stage.server.local_addr();
    // With TLS 1.3 a client may believe that it is connected until the server has seen its certificate.
    let end = match Intruder::connect(&socket(), address, credentials.config()).await {
        Err(error) => error,
        Ok(intruder) => {
            let closed = timeout(PATIENCE, intruder.connection.closed()).await;
            closed.expect("a connection without a good certificate ends")
        }
    };
    let ConnectionError::ConnectionClosed(close) = &end else { panic!("it ended otherwise: {end}") };
    assert_eq!(u64::from(close.error_code), 0x100 + u64::from(alert), "{end}");
}

/// Credentials of a self-made certificate that claims to be a site's.
fn self_made(stage: &Stage) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI("consortia:site:north".try_into().unwrap()));
    let cert = params.self_signed(&key).unwrap();
    let ca_pem = stage.federation.authority.ca_pem().to_owned();
    Credentials { ca_pem, proof: Some((cert.pem(), key.serialize_pem())), alpn: ALPN.to_vec() }
}

const UNKNOWN_AUTHORITY: u8 = 48;
/// Both federations' roots have one name, so the signature is what does not fit.
const DECRYPT_ERROR: u8 = 51;
const NO_APPLICATION_PROTOCOL: u8 = 120;
const UNSUPPORTED_CERTIFICATE: u8 = 43;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_signed_opens_nothing() {
    let stage = Stage::open(Limits::default()).await;
    tls_refuses(&stage, &self_made(&stage), UNKNOWN_AUTHORITY).await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nobody_comes_in() {
    let stage = Stage::open(Limits::default()).await;
    // It is let in as far as somebody with an invite would be, and no further: not one word of it is read.
    let credentials = Credentials { proof: None, ..self_made(&stage) };
    let intruder =
        Intruder::connect(&socket(), stage.server.local_addr(), credentials.config()).await.unwrap();
    let closed = timeout(PATIENCE, intruder.connection.closed()).await;
    match closed.expect("a connection without a certificate ends") {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.reason, ConnectError::NotASite.to_string())
        }
        end => panic!("it ended otherwise: {end}"),
    }
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_federations_certificate_opens_nothing() {
    let stage = Stage::open(Limits::default()).await;
    let other = Authority::create(&stage.federation.folder("other"), SystemTime::now()).unwrap();
    let north = other.issue_site(&ClientId::new("north").unwrap(), SystemTime::now()).unwrap();
    let credentials = Credentials { proof: Some((north.cert_pem, north.key_pem)), ..self_made(&stage) };
    tls_refuses(&stage, &credentials, DECRYPT_ERROR).await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_certificate_is_no_clients() {
    let stage = Stage::open(Limits::default()).await;
    let credentials = Credentials::of(&stage.federation.folder("identity"));
    tls_refuses(&stage, &credentials, UNSUPPORTED_CERTIFICATE).await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_application_on_the_port_is_told_so() {
    let stage = Stage::open(Limits::default()).await;
    let credentials =
        Credentials { alpn: b"h3".to_vec(), ..Credentials::of(&stage.federation.issue("mallory")) };
    tls_refuses(&stage, &credentials, NO_APPLICATION_PROTOCOL).await;
    stage.finish(&plan(3)).await;
    stage.close().await;
}

/// A learner that is never asked.
struct Idler;

impl Learner for Idler {
    fn prepare(&mut self, _: &std::sync::Arc<protocol::Spec>) -> Result<(), LearnError> {
        unreachable!("no task may reach a peer that was turned away")
    }
    fn layout(&self) -> &protocol::Layout {
        unreachable!("as above")
    }
    fn initialise(&mut self, _: protocol::Seed) -> Result<Vec<f32>, LearnError> {
        unreachable!("as above")
    }
    fn statistics(&mut self) -> Result<Vec<protocol::Statistic>, LearnError> {
        unreachable!("as above")
    }
    fn train(
        &mut self,
        _: &mut [f32],
        _: &protocol::TrainOrder,
        _: &protocol::Stop,
    ) -> Result<protocol::Metrics, LearnError> {
        unreachable!("as above")
    }
    fn evaluate(
        &mut self,
        _: &[f32],
        _: &protocol::EvaluateOrder,
        _: &protocol::Stop,
    ) -> Result<protocol::Metrics, LearnError> {
        unreachable!("as above")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_certificate_makes_no_site() {
    let stage = Stage::open(Limits::default()).await;
    let identity = Identity::load(&stage.federation.folder("operator")).unwrap();
    let participant = Participant::new(ClientId::new("ada").unwrap(), Box::new(Idler));
    let config = AgentConfig::new(stage.server.local_addr().to_string());
    let agent = Agent::new(participant, identity, config).run(CancellationToken::new());
    let ended = timeout(PATIENCE, agent).await.expect("an agent that is turned away for good gives up");
    assert!(matches!(ended, Err(AgentError::Rejected(ConnectError::NotASite))), "{ended:?}");
    let summary = stage.finish(&plan(3)).await;
    assert_eq!(summary.clients.len(), 3);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sites_certificate_makes_no_operator() {
    let stage = Stage::open(Limits::default()).await;
    let identity = Identity::load(&stage.federation.issue("mallory")).unwrap();
    let address = stage.server.local_addr().to_string();
    let submit = AdminRequest::Submit { plan_toml: plan(1), seed: Some(1) };
    for request in [submit, AdminRequest::List, AdminRequest::Watch { run: None }] {
        let mallory = OperatorClient::connect(&address, SERVER_NAME, &identity).await.unwrap();
        let refused = mallory.ask(&request).await;
        assert!(matches!(refused, Err(OperatorError::NotAnOperator)), "{refused:?}");
    }
    assert!(stage.server.runs().await.unwrap().is_empty());
    stage.finish(&plan(3)).await;
    stage.close().await;
}

/// Says these bytes first, as a site of the federation, and must be rejected with these words on the stream and in the
/// close.
async fn rejects(stage: &Stage, credentials: &Credentials, first: &[u8], why: &ConnectError) {
    let address = stage.server.local_addr();
    let intruder = Intruder::connect(&socket(), address, credentials.config()).await.unwrap();
    assert_eq!(intruder.greet_with(first).await, Greeting::Rejected(why.clone()));
    assert_eq!(intruder.farewell().await, why.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_the_protocol_is_told_what_to_install() {
    let stage = Stage::open(Limits::default()).await;
    let credentials = Credentials::of(&stage.federation.issue("mallory"));
    for theirs in [VERSION - 1, VERSION + 1, u16::MAX] {
        let mut first = hello();
        first[4..6].copy_from_slice(&theirs.to_le_bytes());
        let why = ConnectError::Version { server: VERSION, client: theirs };
        let text = format!(
            "the server speaks protocol version {VERSION}, this client version {theirs}; install the same release on \
             both sides"
        );
        assert_eq!(why.to_string(), text);
        rejects(&stage, &credentials, &first, &why).await;
    }
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_words_that_are_no_hello_are_the_last() {
    let stage = Stage::open(Limits::default()).await;
    let credentials = Credentials::of(&stage.federation.issue("mallory"));
    let mut endless = hello();
    endless[8..12].fill(0xff);
    let mut liar = encode(FrameKind::Hello, &Hello { software: "x".into() });
    // The name inside claims to have 2^60 bytes.
    liar[12..20].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let receipt = encode(FrameKind::Receipt, &Receipt::Accepted);
    for first in [vec![], vec![7; 64], receipt, endless, liar, hello()[..14].to_vec()] {
        rejects(&stage, &credentials, &first, &ConnectError::NotAHello).await;
    }
    stage.finish(&plan(3)).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_says_hello_is_closed_after_a_while() {
    let stage = Stage::open(Limits::default()).await;
    let credentials = Credentials::of(&stage.federation.issue("mallory"));
    let address = stage.server.local_addr();
    let began = Instant::now();
    let silent = Intruder::connect(&socket(), address, credentials.config()).await.unwrap();
    let hesitant = Intruder::connect(&socket(), address, credentials.config()).await.unwrap();
    let (mut send, _recv) = hesitant.connection.open_bi().await.unwrap();
    send.write_all(&hello()[..5]).await.unwrap();
    stage.finish(&plan(3)).await;
    for intruder in [&silent, &hesitant] {
        let farewell = timeout(PATIENCE, intruder.farewell()).await.expect("a silent peer is closed");
        assert_eq!(farewell, ConnectError::Late.to_string());
    }
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeted_site_opens_no_second_stream() {
    let stage = Stage::open(Limits::default()).await;
    let credentials = Credentials::of(&stage.federation.issue("mallory"));
    let address = stage.server.local_addr();
    let mallory = Intruder::connect(&socket(), address, credentials.config()).await.unwrap();
    assert!(matches!(mallory.greet().await, Greeting::Welcome { .. }));
    let connection = mallory.connection.clone();
    let second = tokio::spawn(async move { connection.open_bi().await.is_ok() });
    let connection = mallory.connection.clone();
    let one_way = tokio::spawn(async move { connection.open_uni().await.is_ok() });
    // Mallory declines by never answering: the cohort is drawn among four, and three suffice at the deadline.
    let hasty = plan(4).replace("deadline_seconds = 60", "deadline_seconds = 2");
    stage.finish(&hasty).await;
    assert!(!second.is_finished() && !one_way.is_finished(), "the server let a client open a stream");
    assert!(mallory.connection.close_reason().is_none() && mallory.connection.max_datagram_size().is_none());
    second.abort();
    one_way.abort();
    stage.close().await;
}
