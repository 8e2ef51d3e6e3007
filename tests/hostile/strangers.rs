//! A crowd without certificates around an honest site, some of it at the site's own address; and a server that asks a site for the
//! impossible. The site joins, renews and answers all the same, and nothing grows.
//!
//! A few strangers in a few seconds; 200 and ten turns with `CONSORTIA_THOROUGH=1`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::net::{AgentConfig, AgentEvent, EnrolError, Transport, enrol, renew};
use consortia::Room;
use protocol::wire::{
    ALPN, AdminReply, AdminRequest, AnswerBody, AnswerHeader, ENROL_ALPN, EnrolRequest, FRAME_HEAD,
    FrameHead, FrameKind, Greeting, Receipt, SMALL_MAX, TaskHeader, WorkHeader, decode, encode,
};
use protocol::{ClientId, Decline, Invite, Round, RunId, StepId, TaskId, Token};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use server::net::{Issuing, Limits, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::federation::{Federation, Operator};
use crate::intruder::{Credentials, Intruder};
use crate::member::Member;
use crate::trio::{learner, sites};

/// What an honest site may be kept waiting for, at most.
const BOUND: Duration = Duration::from_secs(10);
/// What the crowd may cost in memory, both ends together and with the tests beside it.
const BYTES_MAX: u64 = 300 << 20;

fn is_thorough() -> bool {
    std::env::var("CONSORTIA_THOROUGH").is_ok_and(|value| value == "1")
}

/// A number in `/proc/self/status`.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// What one of the crowd is like.
#[derive(Clone, Copy)]
enum Kind {
    /// Handshakes without a certificate, one after another.
    Handshakes,
    /// A request for a certificate that never ends.
    SlowEnrolment,
    /// Whole requests with tokens that nobody gave.
    FalseTokens,
    /// TCP streams that say nothing, or nonsense.
    HalfOpen,
    /// TLS over TCP without a certificate, and then silence.
    IdleTunnel,
    /// Datagrams that are nobody's.
    Garbage,
}

const KINDS: [Kind; 6] = [
    Kind::Handshakes,
    Kind::SlowEnrolment,
    Kind::FalseTokens,
    Kind::HalfOpen,
    Kind::IdleTunnel,
    Kind::Garbage,
];

/// One of the crowd, at an address of loopback; the first of them is the honest site's.
struct Stranger {
    kind: Kind,
    from: Ipv4Addr,
    server: SocketAddr,
    ca_pem: Arc<str>,
    attempts: Arc<AtomicU64>,
}

impl Stranger {
    async fn pester(self) {
        let endpoint = Endpoint::client(SocketAddr::from((self.from, 0))).unwrap();
        loop {
            self.attempts.fetch_add(1, Ordering::Relaxed);
            // Whatever becomes of it, the next one follows.
            match self.kind {
                Kind::Handshakes => drop(self.connect(&endpoint, ALPN).await),
                Kind::SlowEnrolment => self.enrol_slowly(&endpoint).await,
                Kind::FalseTokens => self.show_false_token(&endpoint).await,
                Kind::HalfOpen => self.half_open().await,
                Kind::IdleTunnel => self.idle_tunnel().await,
                Kind::Garbage => {
                    let socket = tokio::net::UdpSocket::bind((self.from, 0)).await.unwrap();
                    for length in [1, 20, 1200] {
                        let _ = socket.send_to(&vec![0xc3; length], self.server).await;
                    }
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn credentials(&self, alpn: &[u8]) -> Credentials {
        Credentials { ca_pem: self.ca_pem.to_string(), proof: None, alpn: alpn.to_vec() }
    }

    async fn connect(&self, endpoint: &Endpoint, alpn: &[u8]) -> Option<Connection> {
        let config = self.credentials(alpn).config();
        let connecting = timeout(BOUND, Intruder::connect(endpoint, self.server, config)).await;
        Some(connecting.ok()?.ok()?.connection)
    }

    async fn enrol_slowly(&self, endpoint: &Endpoint) {
        let Some(connection) = self.connect(endpoint, ENROL_ALPN).await else { return };
        if let Ok((mut send, _recv)) = connection.open_bi().await {
            let _ = send.write_all(b"C").await;
            connection.closed().await;
        }
    }

    async fn show_false_token(&self, endpoint: &Endpoint) {
        let Some(connection) = self.connect(endpoint, ENROL_ALPN).await else { return };
        let token = Some(Token::new([7; 16]));
        let request = EnrolRequest { token, csr_der: vec![0x30, 1, 0], software: "\u{1b}[2J".to_owned() };
        if let Ok((mut send, mut recv)) = connection.open_bi().await {
            let _ = send.write_all(&encode(FrameKind::EnrolRequest, &request)).await;
            let _ = send.finish();
            let _ = timeout(BOUND, recv.read_to_end(SMALL_MAX)).await;
        }
    }

    async fn tcp(&self) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((self.from, 0))).ok()?;
        timeout(BOUND, socket.connect(self.server)).await.ok()?.ok()
    }

    async fn half_open(&self) {
        let Some(mut stream) = self.tcp().await else { return };
        if self.attempts.load(Ordering::Relaxed).is_multiple_of(2) {
            let _ = stream.write_all(&[0x16, 3, 1]).await;
        }
        let _ = timeout(BOUND, stream.read(&mut [0; 16])).await;
    }

    async fn idle_tunnel(&self) {
        let Some(stream) = self.tcp().await else { return };
        let tls = tokio_rustls::TlsConnector::from(Arc::new(self.credentials(tunnel::ALPN).tls()));
        let name = server::net::SERVER_NAME.try_into().unwrap();
        if let Ok(Ok(mut stream)) = timeout(BOUND, tls.connect(name, stream)).await {
            let _ = timeout(BOUND, stream.read(&mut [0; 16])).await;
        }
    }
}

/// A server that can invite.
async fn serve(federation: &Federation, limits: Limits) -> Server {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let issuing = Some(Arc::new(Issuing::open(&federation.folder("authority")).unwrap()));
    let (state, identity) = (federation.folder("state"), federation.folder("identity"));
    let config = ServerConfig { limits, issuing, ..ServerConfig::new(state, listen, identity) };
    Server::start(config, Arc::new(Room::new())).await.unwrap()
}

async fn invite(operator: &Operator, server: &Server, site: &str) -> Invite {
    let (sites, servers) = (vec![ClientId::new(site).unwrap()], vec![server.local_addr().to_string()]);
    match operator.ask(&AdminRequest::Invite { sites, servers, seconds: 3600 }).await {
        AdminReply::Invites(made) => made[0].text.parse().unwrap(),
        other => panic!("no invite was made: {other:?}"),
    }
}

/// Joins as `site join` does: whoever is sent away before an answer came asks again.
async fn join(invite: &Invite, folder: &Path) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    loop {
        match enrol(invite, folder, "an honest site", now).await {
            Ok(()) => return,
            Err(EnrolError::Lost(_)) => sleep(Duration::from_millis(500)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The next certificate, as `site run` gets it: whoever is sent away asks again.
async fn renewed(folder: &Path, address: &str) {
    loop {
        match renew(folder, &[address.to_owned()], "an honest site").await {
            Ok(_) => return,
            Err(EnrolError::Lost(_)) => sleep(Duration::from_millis(500)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// How long `work` takes; at most [`BOUND`].
async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = timeout(BOUND, work).await.unwrap_or_else(|_| panic!("{what} took more than {BOUND:?}"));
    println!("{what}: {:.2} s", began.elapsed().as_secs_f64());
    done
}

/// A site that joins, comes by `transport`, answers a round, renews its certificate and comes again.
async fn honest_life(
    federation: &Federation,
    server: &Server,
    operator: &Operator,
    name: &str,
    transport: Transport,
) {
    let (folder, address) = (federation.folder(name), server.local_addr().to_string());
    let invited = timed("an invite", invite(operator, server, name)).await;
    timed("joining", join(&invited, &folder)).await;
    // The goodbye of the life before may be lost, as QUIC says it once: a server that has not missed that site yet may ask it alone in the
    // first round, and whoever has come meanwhile in the next one.
    for turn in ["coming", "coming with the next certificate"] {
        let config = AgentConfig { transport, ..AgentConfig::new(address.clone()) };
        let (_, data) = sites().into_iter().next().unwrap();
        let (member, mut events) = Member::with(config, &folder, name, learner(data));
        let connected = async { while !matches!(events.recv().await, Some(AgentEvent::Connected { .. })) {} };
        timed(turn, connected).await;
        let plan = "name = \"crowded\"\nrounds = 3\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\n\
                    target = { classes = 2 }\n[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
                    [evaluation]\nsites = \"none\"\n\
                    [cohort]\nclients_min = 1\ndeadline_seconds = 2\n";
        let answered = async {
            operator.submit(plan, 1).await;
            while !matches!(events.recv().await, Some(AgentEvent::Accepted { .. })) {}
        };
        timed("answering", answered).await;
        member.leave().await;
        timed("renewing", renewed(&folder, &address)).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_strangers_keeps_no_site_from_joining_renewing_and_answering() {
    let (crowd, turns) = if is_thorough() { (200, 10) } else { (60, 1) };
    let federation = Federation::new();
    // Fewer places than strangers; with 200, as many as a server has by itself.
    let handshakes_max = if is_thorough() { Limits::default().handshakes_max } else { 12 };
    let server = serve(&federation, Limits { handshakes_max, ..Limits::default() }).await;
    let operator = federation.operator(&server).await;
    let (bytes, threads) = (status("VmRSS"), status("Threads"));
    let attempts = Arc::<AtomicU64>::default();
    let ca_pem: Arc<str> = federation.authority.ca_pem().into();
    let mut strangers = JoinSet::new();
    for (number, kind) in (0..crowd).zip(KINDS.into_iter().cycle()) {
        // Kinds and addresses in every combination.
        let from = Ipv4Addr::new(127, 0, 0, 1 + (number / KINDS.len() % 5) as u8);
        let (server, ca_pem, attempts) = (server.local_addr(), Arc::clone(&ca_pem), Arc::clone(&attempts));
        strangers.spawn(Stranger { kind, from, server, ca_pem, attempts }.pester());
    }
    sleep(Duration::from_secs(1)).await;
    let mut most = (0, 0);
    for turn in 0..turns {
        for (way, transport) in [("udp", Transport::Auto), ("tcp", Transport::Tcp)] {
            honest_life(&federation, &server, &operator, &format!("north-{way}-{turn}"), transport).await;
            most = (most.0.max(status("VmRSS")), most.1.max(status("Threads")));
        }
    }
    let grown = (most.0.saturating_sub(bytes) << 10, most.1.saturating_sub(threads));
    println!(
        "{crowd} strangers, {} attempts: {} KiB and {} threads more",
        attempts.load(Ordering::Relaxed),
        grown.0 >> 10,
        grown.1
    );
    assert!(grown.0 < BYTES_MAX, "memory grew by {} bytes", grown.0);
    // Threads for work that blocks come and go; none is a stranger's.
    assert!(grown.1 < 48, "{} threads more", grown.1);
    strangers.shutdown().await;
    server.shutdown().await.unwrap();
}

/// A server of the federation in hostile hands: what it asks is its own business.
struct HostileServer {
    endpoint: Endpoint,
}

impl HostileServer {
    fn open(identity: &Path) -> Self {
        let read = |name: &str| std::fs::read(identity.join(name)).unwrap();
        let chain = ["cert.pem", "ca.pem"].iter().flat_map(|name| {
            CertificateDer::pem_slice_iter(&read(name)).collect::<Result<Vec<_>, _>>().unwrap()
        });
        let chain = chain.collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap())
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        Self { endpoint: Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap() }
    }

    /// Greets whoever comes next.
    async fn greet(&self, name: &str) -> Connection {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut recv) = connection.accept_bi().await.unwrap();
        let _hello = recv.read_to_end(SMALL_MAX).await.unwrap();
        let welcome = Greeting::Welcome { software: "\u{1b}[2Ja server".to_owned(), you: name.to_owned() };
        send.write_all(&encode(FrameKind::Greeting, &welcome)).await.unwrap();
        send.finish().unwrap();
        connection
    }
}

/// Asks for this plan to be trained; what the site answers.
async fn ask(connection: &Connection, round: u32, spec_json: String) -> AnswerBody {
    let id = TaskId::new(RunId(1), Round(round), StepId::TRAIN);
    let work = WorkHeader::Train { learning_rate_scale: 1.0, norm_max: None };
    let header = TaskHeader { id, spec_json, seed: None, standardiser: None, work, model_len: 0 };
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&encode(FrameKind::Task, &header)).await.unwrap();
    let mut head = [0; FRAME_HEAD];
    recv.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; FrameHead::parse(head, FrameKind::Answer, SMALL_MAX).unwrap().len];
    recv.read_exact(&mut body).await.unwrap();
    send.write_all(&encode(FrameKind::Receipt, &Receipt::Accepted)).await.unwrap();
    send.finish().unwrap();
    decode::<AnswerHeader>(&body).unwrap().body
}

/// Plans that would hold a machine for hours, or take all of its memory.
fn impossible_plans() -> Vec<String> {
    let plan = |model: &str, data: &str, rest: &str| {
        format!(
            r#"{{"model": {model}, "cohort_max": 4, "data": {data}, "update": {{"weights": "uniform"}},
            "training": {{"batch_size": 8, "optimizer": {{"sgd": {{"learning_rate": 0.1}}}}}} {rest}}}"#
        )
    };
    let table = r#"{"table": {"label": "y", "target": {"classes": 2}, "features": ["a", "b"]}}"#;
    let central = |rounds: u32, noise: &str, times: u32| {
        let privacy = format!(
            r#", "privacy": {{"central": {{"population": "p", "relation": "zero_out", "delta": 1e-6, "epsilon_max": 1e6,
            "noise_multiplier": 4.0, "rounds": {rounds}, "denominator": 4.0, "noise": {noise}, "clipping": "fixed",
            "sampling": {{"availability": {{"participations_max": {times}}}}}, "metrics": "off", "clients_min": 1}}}}"#
        );
        plan("\"logistic\"", table, &privacy)
    };
    let banded = r#"{"banded": {"weights": [524288, 131072, 65536, 40960, 28672, 21504, 16896, 13728]}}"#;
    let deep = (0..120)
        .fold("\"relu\"".to_owned(), |inner, _| format!(r#"{{"residual": {{"layers": [{inner}]}}}}"#));
    vec![
        central(100_000_000, banded, u32::MAX),
        central(u32::MAX, banded, 1),
        central(1_000_000, banded, u32::MAX),
        central(1_000_000, "\"tree\"", 1000),
        central(u32::MAX, "\"tree\"", u32::MAX),
        plan(r#"{"mlp": {"hidden": [4294967295, 4294967295]}}"#, table, ""),
        plan(
            r#"{"mlp": {"hidden": [65536, 65536]}}"#,
            table,
            r#", "personal_layers": ["dense1", "dense2", "dense3"]"#,
        ),
        plan(&format!(r#"{{"layers": [{deep}]}}"#), table, ""),
        plan(&format!(r#"{{"layers": [{}]}}"#, vec!["\"relu\""; 20_000].join(",")), table, ""),
        plan(
            "\"logistic\"",
            r#"{"tensor": {"shape": [4294967296, 4294967296], "target": {"classes": 2}}}"#,
            "",
        ),
        "[".repeat(200_000),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_the_impossible_is_answered_at_once() {
    let federation = Federation::new();
    let hostile = HostileServer::open(&federation.folder("identity"));
    let address = hostile.endpoint.local_addr().unwrap().to_string();
    let folder = federation.issue("north");
    let (_, data) = sites().into_iter().next().unwrap();
    let (member, _events) = Member::knock(&address, &folder, "north", learner(data));
    let connection = timeout(BOUND, hostile.greet("north")).await.expect("the site comes");
    for (round, plan) in (1..).zip(impossible_plans()) {
        let shown: String = plan.chars().take(60).collect();
        let answer = timed(&format!("plan {round}, {shown}"), ask(&connection, round, plan)).await;
        assert!(matches!(answer, AnswerBody::Declined { reason: Decline::Unsupported, .. }), "{answer:?}");
    }
    assert!(connection.close_reason().is_none(), "the site is still there");
    drop(member);
}
