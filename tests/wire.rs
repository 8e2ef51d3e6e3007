//! A site and an operator written from `docs/protocol.md` alone, over real QUIC: no message type, codec or client of ours
//! is used on their side. What the page says must be enough to take part, and to predict the model to the last bit.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use consortia::Room;
use consortia::protocol::ClientId;
use consortia::server::net::{Authority, Identity, Server, ServerConfig};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream,
    TokioRuntime, TransportConfig,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

const PLAN: &str = "name = \"by-hand\"\nrounds = 1\nmodel = \"linear\"\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\", \"b\"]\nstandardise = \"federated\"\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
    [update]\nnorm_max = 5\n[evaluation]\nsites = \"none\"\n";
const SEED: u64 = 7;
/// Count, sum and sum of squares of a = 1, 2, 3 and of b = -1.5, 0.5.
const TOTALS: [f64; 6] = [3.0, 6.0, 14.0, 2.0, -1.0, 2.5];
const WEIGHT: u32 = 199;

/// Bytes of a message, field by field.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn f64(self, value: f64) -> Self {
        self.u64(value.to_bits())
    }
    fn option(mut self, some: u8) -> Self {
        self.0.push(some);
        self
    }
    fn text(self, text: &str) -> Self {
        let mut longer = self.u64(text.len() as u64);
        longer.0.extend(text.as_bytes());
        longer
    }
    /// Head and body.
    fn frame(self, kind: u8) -> Vec<u8> {
        let head = [b'C', b'S', b'R', b'T', 1, 0, 1, kind];
        [&head[..], &(self.0.len() as u32).to_le_bytes(), &self.0].concat()
    }
}

/// The body of a received frame, read from the front.
struct Received(Vec<u8>);

impl Received {
    async fn frame(stream: &mut RecvStream, kind: u8) -> Self {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..8], [b'C', b'S', b'R', b'T', 1, 0, 1, kind]);
        let mut body = vec![0; u32::from_le_bytes(head[8..].try_into().unwrap()) as usize];
        stream.read_exact(&mut body).await.unwrap();
        Self(body)
    }
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.0.drain(..count).collect()
    }
    fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }
    fn f64(&mut self) -> f64 {
        f64::from_bits(self.u64())
    }
    fn text(&mut self) -> String {
        let count = self.u64() as usize;
        String::from_utf8(self.bytes(count)).unwrap()
    }
    fn reals(&mut self) -> Vec<f64> {
        (0..self.u64()).map(|_| self.f64()).collect()
    }
    fn end(self) {
        assert!(self.0.is_empty(), "{} bytes are left over", self.0.len());
    }
}

/// Dials the server with TLS 1.3, the ALPN and the server name of the page.
async fn dial(server: &Server, identity: &Identity) -> (Endpoint, Connection) {
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pem(&identity.ca_pem)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![pem(&identity.cert_pem)], key)
        .unwrap();
    tls.alpn_protocols = vec![b"consortia/1".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let (mut transport, mut search) = (TransportConfig::default(), MtuDiscoveryConfig::default());
    search.upper_bound(u16::MAX);
    transport.mtu_discovery_config(Some(search));
    config.transport_config(Arc::new(transport));
    let mut takes = EndpointConfig::default();
    takes.max_udp_payload_size(9_000).unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::new(takes, None, socket, Arc::new(TokioRuntime)).unwrap();
    let connecting = endpoint.connect_with(config, server.local_addr(), "server.consortia").unwrap();
    let connection = connecting.await.unwrap();
    (endpoint, connection)
}

/// Sends all there is to say, and ends the client's side.
async fn say(stream: &mut SendStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.finish().unwrap();
}

/// Says hello and hears its own name.
async fn greet(connection: &Connection) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    say(&mut send, &Body::default().text("by hand 1.0").frame(1)).await;
    let mut greeting = Received::frame(&mut recv, 2).await;
    assert_eq!(greeting.u32(), 0, "not welcome");
    assert!(greeting.text().starts_with("consortia "));
    assert_eq!(greeting.text(), "north");
    greeting.end();
}

/// Hands in the plan as a seeded run; the run's id.
async fn submit(connection: &Connection) -> u64 {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    say(&mut send, &Body::default().u32(0).text(PLAN).option(1).u64(SEED).frame(6)).await;
    let mut reply = Received::frame(&mut recv, 7).await;
    assert_eq!(reply.u32(), 0, "not submitted");
    let run = reply.u64();
    reply.end();
    run
}

/// A task's stream and the part of its header that every kind of work has.
struct Asked {
    send: SendStream,
    recv: RecvStream,
    header: Received,
    run: u64,
    round: u32,
    kind: u32,
    standardiser: Option<[Vec<f64>; 2]>,
}

async fn asked(connection: &Connection) -> Asked {
    let (send, mut recv) = connection.accept_bi().await.unwrap();
    let mut header = Received::frame(&mut recv, 3).await;
    let (run, round, kind) = (header.u64(), header.u32(), header.u32());
    let spec: serde_json::Value = serde_json::from_str(&header.text()).unwrap();
    assert_eq!(spec["data"]["table"]["features"], serde_json::json!(["a", "b"]));
    assert_eq!(spec["update"]["norm_max"], 5.0);
    assert_eq!(header.u8(), 1, "a seeded run tells its seed");
    let seed = Sha256::new().chain_update(b"consortia seed").chain_update(SEED.to_le_bytes()).finalize();
    assert_eq!(header.bytes(32), seed.to_vec());
    let standardiser = (header.u8() == 1).then(|| [header.reals(), header.reals()]);
    Asked { send, recv, header, run, round, kind, standardiser }
}

impl Asked {
    /// An answer's header up to its body.
    fn answer(&self) -> Body {
        Body::default().u64(self.run).u32(self.round).u32(self.kind)
    }

    async fn hear_accepted(mut self) {
        let mut receipt = Received::frame(&mut self.recv, 5).await;
        assert_eq!(receipt.u32(), 0, "the answer is refused");
        receipt.end();
        assert!(self.recv.read(&mut [0]).await.unwrap().is_none());
    }
}

/// A number that is a whole one times a quarter: the exponent, and what is odd, in three words.
fn words(value: f64) -> [i64; 4] {
    let (mut odd, mut exponent) = ((value * 4.0) as i64, -2);
    while odd != 0 && odd % 2 == 0 {
        (odd, exponent) = (odd / 2, exponent + 1);
    }
    [exponent, odd, odd >> 63, odd >> 63]
}

async fn count(mut asked: Asked) {
    assert_eq!((asked.round, asked.kind, &asked.standardiser), (0, 0, &None));
    assert_eq!((asked.header.u32(), asked.header.u64()), (0, 0));
    let mut answer = asked.answer().u32(2).u64(24).frame(4);
    answer.extend(TOTALS.iter().flat_map(|total| words(*total)).flat_map(i64::to_le_bytes));
    say(&mut asked.send, &answer).await;
    asked.hear_accepted().await;
}

/// Answers with the delta (30, 40, 0), whose norm is ten times what the plan allows; gives the points that were sent.
async fn train(mut asked: Asked) -> [i32; 3] {
    assert_eq!((asked.round, asked.kind), (1, 1));
    let [mean, std] = asked.standardiser.take().unwrap();
    assert_eq!(mean, [2.0, -0.5]);
    assert_eq!(std, [(6.0f64 / 9.0).sqrt(), 1.0]);
    assert_eq!((asked.header.u32(), asked.header.f64()), (1, 1.0));
    assert_eq!((asked.header.u8(), asked.header.u64()), (0, 3), "the plan's own norm, and three values");
    let mut model = [0u8; 12];
    asked.recv.read_exact(&mut model).await.unwrap();
    assert_eq!(model, [0; 12], "a linear model starts at zero");
    let (factor, reach) = (5.0 / 50.0, f64::powi(2.0, 25));
    let mut scale = factor / (5.0 / reach);
    let points = loop {
        let points = [30.0, 40.0, 0.0].map(|value: f64| (value * scale).round_ties_even() as i32);
        let square: i64 = points.iter().map(|point| i64::from(*point).pow(2)).sum();
        if square <= 1 << 50 {
            break points;
        }
        scale *= reach / (square as f64).sqrt() * (1.0 - f64::powi(2.0, -20));
    };
    // The zero byte after the weight says that no vote was asked for; an absent option is the same byte.
    let answer = asked.answer().u32(0).u64(3).u32(WEIGHT).option(0);
    let answer = answer.f64(0.5).option(0).u64(u64::from(WEIGHT)).f64(0.0);
    let mut answer = answer.frame(4);
    answer.extend(points.iter().flat_map(|point| point.to_le_bytes()));
    say(&mut asked.send, &answer).await;
    asked.hear_accepted().await;
    points
}

/// Waits until both sides have found that loopback takes packets of the page's size, and no larger ones are taken.
async fn packets_grow(connection: &Connection) {
    loop {
        let stats = connection.stats();
        assert!(stats.path.current_mtu <= 6_500);
        // The server's search pads packets to 3850, 5175, 5837... bytes; with usual packets all of it stays below 20 kB.
        if stats.path.current_mtu > 6_400 && stats.udp_rx.bytes > 30_000 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Watches until the run has ended; the fingerprint of its model.
async fn watch(connection: &Connection, run: u64) -> String {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    say(&mut send, &Body::default().u32(2).option(1).u64(run).frame(6)).await;
    loop {
        let mut reply = Received::frame(&mut recv, 7).await;
        assert_eq!((reply.u32(), reply.u64(), reply.text()), (2, run, "by-hand".to_owned()));
        let (state, _message, done, planned) = (reply.u32(), reply.text(), reply.u32(), reply.u32());
        let (is_seeded, fingerprint) = (reply.u8(), reply.text());
        assert_eq!((planned, is_seeded), (1, 1));
        assert_ne!(state, 3, "the run failed");
        if state == 2 {
            assert_eq!(done, 1);
            return fingerprint;
        }
    }
}

async fn start(dir: &Path) -> (Authority, Server) {
    let authority = Authority::create(&dir.join("authority"), SystemTime::now()).unwrap();
    let identity = dir.join("identity");
    authority.issue_server(&[], SystemTime::now()).unwrap().write_identity(&identity).unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = ServerConfig::new(dir.join("state"), listen, identity);
    (authority, Server::start(config, Arc::new(Room::new())).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_and_an_operator_written_from_the_page_take_part_and_predict_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, server) = start(dir.path()).await;
    let operator = authority.issue_operator("ada", SystemTime::now()).unwrap();
    let (_line, operator) = dial(&server, &operator).await;
    let run = submit(&operator).await;

    let north = authority.issue_site(&ClientId::new("north").unwrap(), SystemTime::now()).unwrap();
    let (_line, site) = dial(&server, &north).await;
    greet(&site).await;
    tokio::time::timeout(std::time::Duration::from_secs(20), packets_grow(&site)).await.unwrap();
    count(asked(&site).await).await;
    let points = train(asked(&site).await).await;

    let factor = 5.0 / f64::powi(2.0, 25) / f64::from(WEIGHT);
    let mean = points.map(|point| ((i64::from(WEIGHT) * i64::from(point)) as f64 * factor) as f32);
    let model: Vec<u8> = mean.iter().flat_map(|value| value.to_le_bytes()).collect();
    let expected: String = Sha256::digest(&model).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(watch(&operator, run).await, expected);
    server.shutdown().await.unwrap();
}
