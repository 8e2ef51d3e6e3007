//! Becoming a member with an invite, and ceasing to be one: over real QUIC, by the functions that the commands call, and once
//! by the commands themselves.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

#[path = "support/stream.rs"]
mod stream;

use std::io::{BufRead, BufReader, Lines};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::Participant;
use client::net::{
    Agent, AgentConfig, AgentError, AgentEvent, EnrolError, Identity, OperatorClient, enrol, renew,
};
use consortia::Room;
use learning::device::Device;
use learning::{FileSource, SourceSpec, Trainer};
use protocol::wire::{AdminReply, AdminRequest, EnrolRejection};
use protocol::{ClientId, Invite, Learner, Token};
use serde_json::Value;
use server::net::{Authority, Issuing, SERVER_NAME, Server, ServerConfig};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a slow machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A federation that can invite.
struct Federation {
    dir: TempDir,
    server: Server,
}

impl Federation {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("authority"), SystemTime::now()).unwrap();
        authority
            .issue_server(&[], SystemTime::now())
            .unwrap()
            .write_identity(&dir.path().join("identity"))
            .unwrap();
        let operator = authority.issue_operator("ada", SystemTime::now()).unwrap();
        operator.write_identity(&dir.path().join("operator")).unwrap();
        // From here on the root's key is not needed.
        std::fs::remove_file(dir.path().join("authority/ca-key.pem")).unwrap();
        let server = serve(dir.path()).await;
        Self { dir, server }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    async fn ask(&self, request: &AdminRequest) -> AdminReply {
        let identity = Identity::load(&self.folder("operator")).unwrap();
        let operator = OperatorClient::connect(&self.address(), SERVER_NAME, &identity).await.unwrap();
        operator.ask(request).await.unwrap()
    }

    async fn invite(&self, site: &str, seconds: u64) -> Invite {
        let sites = vec![ClientId::new(site).unwrap()];
        let request = AdminRequest::Invite { sites, servers: vec![self.address()], seconds };
        let AdminReply::Invites(made) = self.ask(&request).await else { panic!("no invite was made") };
        made[0].text.parse().unwrap()
    }

    async fn revoke(&self, site: &str) {
        let reply = self.ask(&AdminRequest::Revoke { site: ClientId::new(site).unwrap() }).await;
        assert_eq!(reply, AdminReply::Done);
    }
}

async fn serve(dir: &Path) -> Server {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let issuing = Some(Arc::new(Issuing::open(&dir.join("authority")).unwrap()));
    let config =
        ServerConfig { issuing, ..ServerConfig::new(dir.join("state"), listen, dir.join("identity")) };
    Server::start(config, Arc::new(Room::new())).await.unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Never asked for anything here.
fn learner() -> Box<dyn Learner> {
    let source: SourceSpec =
        serde_json::from_value(serde_json::json!({ "csv": { "train": "none.csv" } })).unwrap();
    Box::new(Trainer::new(Box::new(FileSource::new(source)), Device::Cpu))
}

/// A site at work with the identity in `folder`.
struct Site {
    work: JoinHandle<Result<(), AgentError>>,
    events: mpsc::Receiver<AgentEvent>,
    leave: CancellationToken,
}

impl Site {
    fn start(federation: &Federation, folder: &Path) -> Self {
        let participant = Participant::new(ClientId::new("north").unwrap(), learner());
        let (sender, events) = mpsc::channel(64);
        let identity = Identity::load(folder).unwrap();
        let agent =
            Agent::new(participant, identity, AgentConfig::new(federation.address())).with_events(sender);
        let leave = CancellationToken::new();
        Self { work: tokio::spawn(agent.run(leave.clone())), events, leave }
    }

    async fn connected(mut self) -> Self {
        let greeted = async {
            loop {
                match self.events.recv().await {
                    Some(AgentEvent::Connected { .. }) => return,
                    Some(_) => {}
                    None => panic!("the agent ended before it was greeted"),
                }
            }
        };
        timeout(PATIENCE, greeted).await.expect("the site is greeted");
        self
    }

    async fn leave(self) {
        self.leave.cancel();
        timeout(PATIENCE, self.work).await.expect("a site leaves when it is told to").unwrap().unwrap();
    }

    /// Why the agent ended by itself, which must be soon.
    async fn end(self) -> String {
        let ended = timeout(Duration::from_secs(10), self.work).await.expect("the site ends");
        ended.unwrap().unwrap_err().to_string()
    }
}

/// Runs a command to its end; the object it prints last.
fn command(args: &[&str]) -> Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_consortia")).args(args).args(["--format", "json"]).output().unwrap();
    let (out, talk) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {talk}");
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{args:?} printed {out}"))
}

/// A command that goes on until the test ends, and its lines.
struct Running(Child, Lines<BufReader<ChildStdout>>);

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        command.args(args).args(["--format", "json", "--while-stdin-open"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self(child, lines)
    }

    /// The next line of this event.
    fn event(&mut self, event: &str) -> Value {
        let lines = self.1.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        lines
            .into_iter()
            .find(|line| line["event"] == event)
            .unwrap_or_else(|| panic!("no line of event {event}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refusal(result: Result<(), EnrolError>) -> EnrolRejection {
    match result {
        Err(EnrolError::Refused(refusal)) => refusal,
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_makes_one_member_whose_key_never_left_it() {
    let federation = Federation::new().await;
    let invite = federation.invite("north", 600).await;
    let folder = federation.folder("north");
    enrol(&invite, &folder, "test", now()).await.unwrap();
    Site::start(&federation, &folder).connected().await.leave().await;
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let key = read(&folder, "key.pem");
    for entry in ["authority", "state", "identity", "operator"] {
        for file in std::fs::read_dir(federation.folder(entry)).unwrap().map(|file| file.unwrap().path()) {
            let bytes = if file.is_file() { std::fs::read(&file).unwrap() } else { Vec::new() };
            let line = key.lines().nth(1).unwrap().as_bytes();
            assert!(!bytes.windows(line.len()).any(|part| part == line), "{}", file.display());
        }
    }
    // Somebody else with the same line comes too late; the site itself may ask again, if the answer was lost.
    let stolen = enrol(&invite, &federation.folder("thief"), "test", now()).await;
    assert_eq!(refusal(stolen), EnrolRejection::Used);
    assert!(matches!(enrol(&invite, &folder, "test", now()).await, Err(EnrolError::Exists(_))));
    let certificate = read(&folder, "cert.pem");
    std::fs::remove_file(folder.join("cert.pem")).unwrap();
    enrol(&invite, &folder, "test", now()).await.unwrap();
    assert_eq!(read(&folder, "cert.pem"), certificate);
    let log = read(&federation.folder("state"), "audit.jsonl");
    for event in ["invited", "enrolled", "invite_reused", "enrolments_refused"] {
        assert!(log.contains(&format!("\"event\":\"{event}\"")), "{event}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_udp_gets_out_one_joins_over_tcp() {
    let federation = Federation::new().await;
    let deaf = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = deaf.local_addr().unwrap();
    let server = federation.address().parse().unwrap();
    let _streams = stream::forward(address, server).await;
    let invite = Invite { servers: vec![address.to_string()], ..federation.invite("north", 600).await };
    let folder = federation.folder("north");
    enrol(&invite, &folder, "test", now()).await.unwrap();
    Site::start(&federation, &folder).connected().await.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_is_over_unknown_or_of_another_federation_is_refused() {
    let federation = Federation::new().await;
    let short = federation.invite("south", 1).await;
    let good = federation.invite("north", 600).await;
    let folder = federation.folder("north");
    assert!(matches!(enrol(&short, &folder, "test", short.expires + 1).await, Err(EnrolError::Expired)));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    // A clock that is wrong, or turned back, helps nobody.
    assert_eq!(refusal(enrol(&short, &folder, "test", 0).await), EnrolRejection::Expired);
    let guessed = Invite { token: Token::new([0; 16]), ..good.clone() };
    assert_eq!(refusal(enrol(&guessed, &folder, "test", now()).await), EnrolRejection::Unknown);
    let foreign = Invite { root_sha256: [0; 32], ..good.clone() };
    let error = enrol(&foreign, &folder, "test", now()).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    // Nobody listens at the first address; the second one is tried.
    let servers = vec!["127.0.0.1:9".to_owned(), federation.address()];
    enrol(&Invite { servers, ..good }, &folder, "test", now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_site_is_cut_off_at_once_and_comes_back_by_a_new_invite_only() {
    let federation = Federation::new().await;
    let older = federation.invite("north", 600).await;
    let invite = federation.invite("north", 600).await;
    let folder = federation.folder("north");
    // Two invites that are good would make two members of one name.
    assert_eq!(refusal(enrol(&older, &folder, "test", now()).await), EnrolRejection::Unknown);
    enrol(&invite, &folder, "test", now()).await.unwrap();
    let unused = federation.invite("north", 600).await;
    let site = Site::start(&federation, &folder).connected().await;
    let member = async || match federation.ask(&AdminRequest::Members).await {
        AdminReply::Members(members) => members.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    };
    let listed = member().await;
    assert_eq!(listed.certificates.len(), 1, "{listed:?}");
    assert!(listed.seen.is_some_and(|seen| seen.left.is_none() && seen.address.starts_with("127.0.0.1")));
    federation.revoke("north").await;
    assert_eq!(member().await.certificates, []);
    // The agent hears it on the live connection, asks once more, and ends.
    assert!(site.end().await.contains("revoked"));
    assert_eq!(
        refusal(enrol(&unused, &federation.folder("again"), "test", now()).await),
        EnrolRejection::Unknown
    );
    assert!(Site::start(&federation, &folder).end().await.contains("revoked"));

    // Also after a restart of the server.
    let Federation { dir, server } = federation;
    server.shutdown().await.unwrap();
    let federation = Federation { server: serve(dir.path()).await, dir };
    assert!(Site::start(&federation, &folder).end().await.contains("revoked"));
    let fresh = federation.invite("north", 600).await;
    let folder = federation.folder("north-2");
    enrol(&fresh, &folder, "test", now()).await.unwrap();
    Site::start(&federation, &folder).connected().await.leave().await;
    let AdminReply::Members(members) = federation.ask(&AdminRequest::Members).await else { panic!() };
    assert_eq!(members.len(), 1);
    assert!(members[0].joined >= members[0].revoked, "{members:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_renews_its_certificate_with_a_new_key_and_a_revoked_one_cannot() {
    let federation = Federation::new().await;
    let folder = federation.folder("north");
    enrol(&federation.invite("north", 600).await, &folder, "test", now()).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (key, certificate, root) = (read("key.pem"), read("cert.pem"), read("ca.pem"));
    let site = Site::start(&federation, &folder).connected().await;
    renew(&folder, &[federation.address()], "test").await.unwrap();
    assert!(read("key.pem") != key && read("cert.pem") != certificate && read("ca.pem") == root);
    // The old connection stands, and the new certificate makes the next one.
    Site::start(&federation, &folder).connected().await.leave().await;
    site.leave.cancel();

    // Whatever lies beside key and certificate is not the renewal's.
    std::fs::create_dir(folder.join("state")).unwrap();
    std::fs::write(folder.join("state/ledger.jsonl"), "spent").unwrap();
    renew(&folder, &[federation.address()], "test").await.unwrap();
    assert_eq!(read("state/ledger.jsonl"), "spent");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 4, "something is left behind");

    federation.revoke("north").await;
    let refused = renew(&folder, &[federation.address()], "test").await.map(|_| ());
    assert_eq!(refusal(refused), EnrolRejection::NotASite);
    assert!(Identity::load(&folder).is_ok(), "a renewal that is refused leaves what was there");
    let refused = renew(&federation.folder("operator"), &[federation.address()], "test").await.map(|_| ());
    assert_eq!(refusal(refused), EnrolRejection::NotASite);
    let log = std::fs::read_to_string(federation.folder("state/audit.jsonl")).unwrap();
    assert_eq!(log.matches("\"event\":\"renewed\"").count(), 2, "{log}");
}

#[test]
fn three_institutions_join_train_and_lose_one_by_the_commands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let records = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/heart_disease.csv");
    let fed = path("fed");
    command(&["server", "init", &fed, "--listen", "127.0.0.1:0"]);
    let mut server = Running::start(&["server", "run", &fed]);
    let address = server.event("listening")["address"].as_str().unwrap().to_owned();
    let operator = ["--dir", &fed, "--server", &address];
    let create =
        [&["invite", "create", "cleveland", "hungarian", "va", "--address", &address][..], &operator]
            .concat();
    let invites = command(&create);
    let mut sites = Vec::new();
    for invite in invites.as_array().unwrap() {
        let (site, line) = (invite["site"].as_str().unwrap(), invite["invite"].as_str().unwrap());
        let folder = path(site);
        let joined =
            command(&["site", "join", line, "--dir", &folder, "--data", records, "--policy", "plain"]);
        assert_eq!((&joined["site"], &joined["phrase"]), (&invite["site"], &invite["phrase"]));
        let file = joined["file"].as_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let text =
            text.replace("# where = { hospital = \"ours\" }", &format!("where = {{ site = \"{site}\" }}"));
        std::fs::write(file, text.replace("# split_column", "split_column")).unwrap();
        let mut running = Running::start(&["site", "run", file]);
        running.event("connected");
        sites.push(running);
    }
    let plan = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heart.toml")).unwrap();
    let plan = plan.replace("clients_min = 4", "clients_min = 3").replace("quorum = 4", "quorum = 3");
    let file = path("plan.toml");
    std::fs::write(&file, plan.replace("rounds = 20", "rounds = 3")).unwrap();
    let submit = [&["run", "submit", &file, "--watch"][..], &operator].concat();
    let run = command(&submit);
    assert_eq!((run["state"].as_str(), run["rounds_done"].as_u64()), (Some("finished"), Some(3)), "{run}");

    command(&[&["site", "revoke", "va"][..], &operator].concat());
    let states = command(&[&["site", "ls"][..], &operator].concat());
    let state = |member: &Value| {
        (member["site"].as_str().unwrap().to_owned(), member["state"].as_str().unwrap().to_owned())
    };
    let states: Vec<_> = states.as_array().unwrap().iter().map(state).collect();
    let expected = [("cleveland", "member"), ("hungarian", "member"), ("va", "revoked")];
    assert_eq!(states, expected.map(|(site, state)| (site.to_owned(), state.to_owned())));
    // Its process has ended with its connection, and ends again when it is started anew.
    let mut va = sites.pop().unwrap();
    // Waiting would close its input, which tells it to end of its own accord.
    let input = va.0.stdin.take();
    assert_eq!(va.0.wait().unwrap().code(), Some(3));
    drop(input);
    let again = Command::new(env!("CARGO_BIN_EXE_consortia"))
        .args(["site", "run", &path("va/site.toml")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.code() == Some(3) && said.contains("revoked"), "{said}");
}
