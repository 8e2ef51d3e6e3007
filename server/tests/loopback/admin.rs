//! The admin port, asked as Prometheus, a script or a browser would ask.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::Token;
use protocol::wire::{ENROL_ALPN, ENROL_MAX, EnrolReply, EnrolRequest, FrameKind, Receipt, encode};
use serde_json::{Value, json};
use server::net::{AdminConfig, AdminToken, Issuing, Limits, ServeError, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::federation::{Federation, PLAN, Site, ToyRoom, read};

/// Longer than anything here takes on a slow machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that operators can look into.
pub(crate) struct Watched {
    pub(crate) federation: Federation,
    pub(crate) server: Server,
    pub(crate) token: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

pub(crate) fn config(federation: &Federation, listen: [u8; 4], allow_remote: bool) -> ServerConfig {
    let token = AdminToken::read_or_make(&federation.dir.path().join("operator/admin.token")).unwrap();
    let admin = AdminConfig {
        listen: SocketAddr::from((listen, 0)),
        token,
        allow_remote,
        hosts: vec!["Fed.example.org".to_owned()],
        addresses: vec!["fed.example.org:4433".to_owned()],
    };
    let issuing = Issuing::open(&federation.dir.path().join("authority")).unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let identity = federation.dir.path().join("identity");
    ServerConfig {
        admin: Some(admin),
        issuing: Some(Arc::new(issuing)),
        limits: Limits::default(),
        ..ServerConfig::new(federation.state(), listen, identity)
    }
}

impl Watched {
    pub(crate) async fn new() -> Self {
        let federation = Federation::new();
        let config = config(&federation, [127, 0, 0, 1], false);
        let token = config.admin.as_ref().unwrap().token.reveal().to_owned();
        let server = Server::start(config, Arc::new(ToyRoom)).await.unwrap();
        Self { federation, server, token }
    }

    fn address(&self) -> SocketAddr {
        self.server.admin_addr().unwrap()
    }

    /// Sends these bytes and reads until the server closes.
    async fn raw(&self, request: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an answer").unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            write!(head, "Host: {}\r\n", self.address()).unwrap();
        }
        headers.iter().for_each(|(name, value)| write!(head, "{name}: {value}\r\n").unwrap());
        self.raw(&format!("{head}\r\n{body}")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[("Authorization", &format!("Bearer {}", self.token))], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let token = format!("Bearer {}", self.token);
        let headers = [("Authorization", token.as_str()), ("Content-Type", "application/json")];
        self.request("POST", path, &headers, &body.to_string()).await
    }

    /// Asks until the answer fits.
    pub(crate) async fn until(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let found = self.get(path).await.json();
            if fits(&found) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "{path} says {found}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn submit(&self, plan: &str) -> String {
        let reply = self.post("/api/v1/runs", &json!({ "plan_toml": plan })).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["run"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn round(sites: &[Site]) {
    for site in sites {
        assert_eq!(site.train(1.0).await, Receipt::Accepted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_token_opens_the_api_and_the_numbers() {
    let watched = Watched::new().await;
    for path in
        ["/api/v1/status", "/api/v1/runs", "/api/v1/events", "/api/v1/openapi.json", "/api/x", "/metrics"]
    {
        let none = watched.request("GET", path, &[], "").await;
        assert_eq!((none.status, none.head.contains("www-authenticate: bearer")), (401, true), "{path}");
        assert!(none.error().contains("admin.token"), "{none:?}");
        assert!(none.head.contains("default-src 'none'") && none.head.contains("nosniff"), "{none:?}");
    }
    for shown in
        [String::new(), "Bearer ".into(), watched.token.clone(), format!("Bearer {}0", watched.token)]
    {
        let reply = watched.request("GET", "/api/v1/status", &[("Authorization", &shown)], "").await;
        assert_eq!(reply.status, 401, "`{shown}` opened it");
    }
    let status = watched.get("/api/v1/status").await;
    assert_eq!((status.status, status.json()["sites_connected"].as_u64()), (200, Some(0)));
    assert!(status.head.contains("cache-control: no-store"), "{status:?}");
    let numbers = watched.get("/metrics").await;
    assert!(
        numbers.body.contains("consortia_admin_requests_refused_total{reason=\"token\"} 10\n"),
        "{numbers:?}"
    );
    // The page itself holds no secret, and may run nothing but its own files.
    let page = watched.request("GET", "/", &[], "").await;
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/html") && page.head.contains("frame-ancestors 'none'"), "{page:?}");
    let tag = page.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = watched.request("GET", "/index.html", &[("If-None-Match", tag)], "").await;
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(watched.request("GET", "/operator/admin.token", &[], "").await.status, 404);
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_or_a_page_of_elsewhere_does_not_reach_it() {
    let watched = Watched::new().await;
    let (token, port) = (format!("Bearer {}", watched.token), watched.address().port());
    let ask = async |headers: &[(&str, &str)]| {
        let headers: Vec<_> = headers.iter().copied().chain([("Authorization", token.as_str())]).collect();
        watched.request("GET", "/api/v1/status", &headers, "").await.status
    };
    for host in [format!("localhost:{port}"), format!("[::1]:{port}"), "fed.EXAMPLE.org".to_owned()] {
        assert_eq!(ask(&[("Host", &host)]).await, 200, "{host}");
    }
    for host in ["evil.example", "localhost", "127.0.0.1:1", "", "fed.example.org.evil.example"] {
        assert_eq!(ask(&[("Host", host)]).await, 421, "{host}");
    }
    assert_eq!(ask(&[("Origin", &format!("http://127.0.0.1:{port}"))]).await, 200);
    for origin in ["http://evil.example", "null", "https://127.0.0.1:1"] {
        assert_eq!(ask(&[("Origin", origin)]).await, 403, "{origin}");
    }
    let page = watched.request("GET", "/", &[("Host", "evil.example")], "").await;
    assert_eq!(page.status, 421);
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_guesses_tokens_must_wait_and_the_operator_need_not() {
    let (watched, began) = (Watched::new().await, Instant::now());
    let mut codes = Vec::new();
    for guess in 0..40 {
        let shown = format!("Bearer {guess:032x}");
        let reply = watched.request("GET", "/api/v1/status", &[("Authorization", &shown)], "").await;
        codes.push(reply.status);
        if reply.status == 429 {
            assert!(reply.head.contains("retry-after: 1") && reply.error().contains("too many"), "{reply:?}");
        }
    }
    // Ten at once, and one more a second.
    let guesses = codes.iter().filter(|code| **code == 401).count();
    assert!((10..=11 + began.elapsed().as_secs() as usize).contains(&guesses), "{codes:?}");
    assert_eq!(watched.get("/api/v1/status").await.status, 200);
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_handed_in_watched_and_counted() {
    let watched = Watched::new().await;
    let sites = watched.federation.sites(&watched.server).await;
    let run = watched.submit(PLAN).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    let path = format!("/api/v1/runs/{run}");
    let whole = watched.until(&path, |run| run["state"] == "finished").await;
    assert_eq!((&whole["rounds_done"], &whole["plan_toml"]), (&json!(3), &json!(PLAN)));
    assert_eq!(whole["history"].as_array().unwrap().len(), 3);
    assert_eq!(whole["history"][2]["answered"], 3);
    assert_eq!(
        whole["sites"][0],
        json!({ "site": "north", "connected": true, "accepted": 3, "refused": {}, "declined": {}, "test": null })
    );
    let late = watched.get(&format!("{path}?from=3")).await.json();
    assert_eq!(late["history"].as_array().unwrap().len(), 1);
    let reports = watched.get(&format!("{path}/reports")).await.json();
    assert_eq!(reports.as_array().unwrap().len(), 9);
    let first = json!({ "round": 1, "kind": "train", "site": "north", "loss": 0.5, "accuracy": null, "examples": 1, "seconds": 0.0 });
    assert!(reports.as_array().unwrap().contains(&first), "{reports}");
    assert_eq!(watched.get(&format!("{path}/reports?from=3")).await.json().as_array().unwrap().len(), 3);
    let runs = watched.get("/api/v1/runs").await.json();
    assert_eq!(
        (&runs[0]["run"], &runs[0]["state"], &runs[0]["name"]),
        (&json!(run), &json!("finished"), &json!("toy"))
    );
    assert_eq!(watched.get("/api/v1/status").await.json()["runs"], json!({ "finished": 1 }));
    let numbers = watched.get("/metrics").await.body;
    for line in [
        "consortia_rounds_total{outcome=\"released\"} 3",
        "consortia_answers_accepted_total{task=\"train\"} 9",
        "consortia_model_bytes_sent_total 72",
        "consortia_update_bytes_received_total 72",
        "consortia_sites_connected 3",
        "consortia_runs{state=\"finished\"} 1",
        "consortia_runs_ended_total{state=\"finished\"} 1",
        "consortia_phase_seconds_count{phase=\"collecting\"} 3",
        "consortia_phase_seconds_count{phase=\"releasing\"} 3",
    ] {
        assert!(numbers.contains(&format!("{line}\n")), "there is no `{line}` in\n{numbers}");
    }
    let bytes = numbers.lines().find_map(|line| line.strip_prefix("consortia_storage_bytes ")).unwrap();
    assert!(bytes.parse::<u64>().unwrap() > 1000, "{bytes}");
    let described = watched.get("/api/v1/openapi.json").await.json();
    let paths: Vec<_> = described["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(paths.contains(&"/api/v1/runs/{run}/reports".to_owned()) && paths.len() >= 9, "{paths:?}");
    assert_eq!(whole["promises"], json!([]));
    assert_eq!(watched.get("/api/v1/runs/0000000000000007/statement").await.status, 404);
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said_in_json_with_its_status() {
    let watched = Watched::new().await;
    let said = |reply: Reply| (reply.status, reply.error());
    let (status, error) = said(
        watched.post("/api/v1/runs", &json!({ "plan_toml": PLAN.replace("rounds = 3", "rounds = 0") })).await,
    );
    assert!(status == 400 && error.starts_with("line 2"), "{status} {error}");
    let (status, error) = said(watched.post("/api/v1/runs", &json!({ "plan": PLAN })).await);
    assert!(status == 422 && error.contains("plan_toml"), "{status} {error}");
    let large = json!({ "plan_toml": "#".repeat(2 << 20) });
    assert_eq!(said(watched.post("/api/v1/runs", &large).await).0, 413);
    for path in ["/api/v1/runs/0000000000000007", "/api/v1/runs/x", "/api/v1/nothing"] {
        assert_eq!(said(watched.get(path).await).0, 404, "{path}");
    }
    for path in ["/api/v1/audit?limit=0", "/api/v1/audit?before=x", "/api/v1/audit?limit=501"] {
        assert_eq!(said(watched.get(path).await).0, 400, "{path}");
    }
    assert_eq!(said(watched.post("/api/v1/status", &json!({})).await).0, 405);
    assert_eq!(said(watched.post("/api/v1/sites/nobody/revoke", &json!({})).await).0, 404);
    assert_eq!(said(watched.post("/api/v1/sites/No%20Name/revoke", &json!({})).await).0, 400);
    assert_eq!(said(watched.post("/api/v1/invites", &json!({ "sites": ["No Name"] })).await).0, 400);
    assert_eq!(watched.raw("nonsense\r\n\r\n").await.status, 400);
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_are_invited_seen_and_revoked() {
    let watched = Watched::new().await;
    let north = watched.federation.site(&watched.server, "north").await;
    let made = watched.post("/api/v1/invites", &json!({ "sites": ["east"] })).await;
    assert_eq!(made.status, 201, "{made:?}");
    let line = made.json()[0]["line"].as_str().unwrap().to_owned();
    let invite: protocol::Invite = line.parse().unwrap();
    assert_eq!(
        (invite.site.as_str(), &invite.servers[..]),
        ("east", &["fed.example.org:4433".to_owned()][..])
    );
    assert_ne!(invite.token, Token::new([0; 16]));
    let sites = watched.until("/api/v1/sites", |sites| sites[1]["connected"] == true).await;
    assert_eq!(
        (&sites[0]["site"], &sites[0]["state"], &sites[0]["connected"]),
        (&json!("east"), &json!("invited"), &json!(false))
    );
    assert_eq!(
        (&sites[1]["site"], &sites[1]["state"], &sites[1]["software"]),
        (&json!("north"), &json!("issued"), &json!("a test"))
    );
    assert_eq!(watched.post("/api/v1/sites/north/revoke", &json!({})).await.status, 204);
    assert!(north.farewell().await.contains("revoked"), "it was not told why");
    let sites = watched.until("/api/v1/sites", |sites| sites[1]["connected"] == false).await;
    assert_eq!(sites[1]["state"], "revoked");
    assert!(sites[1]["last_seen"].is_u64() && sites[1]["revoked"].is_u64());
    // Whoever checks certificates has no token.
    let list = watched.request("GET", "/crl", &[], "").await;
    assert!(list.status == 200 && list.head.contains("application/pkix-crl"), "{list:?}");
    let log = watched.until("/api/v1/audit", |log| log["records"][0]["record"]["event"] == "revoked").await;
    assert_eq!(log["records"][1]["record"]["event"], "invited");
    for record in [0, 1] {
        let by = log["records"][record]["record"]["by"].as_str().unwrap();
        assert!(by.starts_with("admin token, from 127.0.0.1:"), "{by}");
    }
    assert_eq!(log["records"][2]["record"]["event"], "started");
    assert_eq!(log["next"], Value::Null);
    let page = watched.get("/api/v1/audit?limit=2").await.json();
    let rest = watched.get(&format!("/api/v1/audit?before={}", page["next"])).await.json();
    assert_eq!((page["records"].as_array().unwrap().len(), &rest["records"][0]["sequence"]), (2, &json!(0)));
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_run_shows_its_ledger_and_no_site_s_metrics() {
    let watched = Watched::new().await;
    let plan = format!(
        "{PLAN}[update]\nnorm_max = 1.0\n[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\n\
         noise_multiplier = 40\ndenominator = 3\nsampling = {{ availability = {{ participations_max = 9 }} }}\n"
    );
    let sites = watched.federation.sites(&watched.server).await;
    let run = watched.submit(&plan).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    let path = format!("/api/v1/runs/{run}");
    let whole = watched.until(&path, |run| run["state"] == "finished").await;
    assert!(whole["history"][2]["epsilon"].as_f64().is_some_and(|epsilon| epsilon > 0.0), "{whole}");
    assert_eq!(watched.get(&format!("{path}/reports")).await.json(), json!([]));
    let promise = json!({ "unit": "client", "population": "wards", "noise_multiplier": 40.0, "delta": 1e-5, "epsilon_max": 9.0 });
    assert_eq!((&whole["promises"], &whole["evaluation_records"]), (&json!([promise]), &json!("test")));
    let statement = watched.get(&format!("{path}/statement")).await.json();
    assert_eq!((&statement["round"], &statement["model_sha256"]), (&json!(3), &whole["model_sha256"]));
    assert_eq!(statement["claims"][0]["population"], "wards", "{statement}");
    let ledger = watched.get("/api/v1/ledger").await.json();
    let wards = &ledger[0];
    assert_eq!(
        (&wards["population"], &wards["unit"], &wards["releases"]),
        (&json!("wards"), &json!("client"), &json!(3))
    );
    let (epsilon, budget) = (wards["epsilon"].as_f64().unwrap(), wards["epsilon_max"].as_f64().unwrap());
    assert!(epsilon > 0.0 && epsilon < budget, "{wards}");
    assert_eq!(wards["history"].as_array().unwrap().len(), 3);
    assert_eq!(wards["history"][2]["round"], 3);
    let numbers = watched.get("/metrics").await.body;
    assert!(numbers.contains("consortia_epsilon_budget{population=\"wards\"} 9.0\n"), "{numbers}");
    assert!(numbers.contains("consortia_epsilon_spent{population=\"wards\"} 0."), "{numbers}");
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_paused_resumed_and_stopped() {
    let watched = Watched::new().await;
    let sites = watched.federation.sites(&watched.server).await;
    let run = watched.submit(PLAN).await;
    let path = |verb: &str| format!("/api/v1/runs/{run}/{verb}");
    round(&sites).await;
    let asked = sites[0].next_task().await;
    let paused = watched.post(&path("pause"), &json!({})).await;
    assert_eq!((paused.status, &paused.json()["state"]), (200, &json!("paused")));
    assert_eq!(watched.get("/api/v1/status").await.json()["runs"], json!({ "paused": 1 }));
    let answer = super::federation::honest(&asked.task, 1.0);
    assert_eq!(asked.answer(answer).await, Receipt::Accepted);
    round(&sites[1..]).await;
    watched.until(&format!("/api/v1/runs/{run}"), |run| run["rounds_done"] == 2).await;
    assert_eq!(watched.post(&path("resume"), &json!({})).await.json()["state"], "running");
    sites[0].next_task().await;
    assert_eq!(watched.post(&path("stop"), &json!({})).await.json()["state"], "stopping");
    watched.post(&path("stop?now=true"), &json!({})).await;
    let stopped = watched.until(&format!("/api/v1/runs/{run}"), |run| run["state"] == "stopped").await;
    assert_eq!(stopped["rounds_done"], 2, "the open round was thrown away");
    let late = watched.post(&path("pause"), &json!({})).await;
    assert!(late.status == 409 && late.error().contains("is over"), "{late:?}");
    assert_eq!(watched.post(&path("stop?now=perhaps"), &json!({})).await.status, 400);
    assert_eq!(watched.post("/api/v1/runs/0000000000000007/pause", &json!({})).await.status, 404);
    let log = watched.get("/api/v1/audit").await.json();
    let said = log["records"].as_array().unwrap().iter().map(|line| &line["record"]);
    let controlled: Vec<_> = said.filter(|record| record["event"] == "controlled").collect();
    assert_eq!(controlled.len(), 4, "{controlled:?}");
    let by = |record: &&&Value| record["by"].as_str().is_some_and(|by| by.starts_with("admin token, from "));
    assert_eq!(controlled.iter().filter(by).count(), 4, "{controlled:?}");
    let numbers = watched.get("/metrics").await.body;
    assert!(numbers.contains("consortia_runs_ended_total{state=\"stopped\"} 1\n"), "{numbers}");
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_without_a_certificate_is_counted() {
    let watched = Watched::new().await;
    let (server, root) = (&watched.server, watched.federation.authority.ca_pem());
    let stranger = Site::connect(server.local_addr(), None, root).await.unwrap();
    stranger.farewell().await;
    let visitor = Site::connect_to(server.local_addr(), None, root, ENROL_ALPN).await.unwrap();
    let (mut send, mut recv) = visitor.connection.open_bi().await.unwrap();
    let token = Some(Token::new([7; 16]));
    let request = EnrolRequest { token, csr_der: vec![0x30, 1, 0], software: String::new() };
    send.write_all(&encode(FrameKind::EnrolRequest, &request)).await.unwrap();
    send.finish().unwrap();
    let reply: EnrolReply = read(&mut recv, FrameKind::EnrolReply, ENROL_MAX).await;
    assert!(matches!(reply, EnrolReply::Refused(_)), "{reply:?}");
    let numbers = watched.get("/metrics").await.body;
    for line in ["consortia_handshakes_refused_total 1", "consortia_enrolments_total{outcome=\"refused\"} 1"]
    {
        assert!(numbers.contains(&format!("{line}\n")), "there is no `{line}` in\n{numbers}");
    }
    watched.server.shutdown().await.unwrap();
}

/// A stream of server-sent events.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    async fn open(watched: &Watched) -> Self {
        let mut stream = TcpStream::connect(watched.address()).await.unwrap();
        let (host, token) = (watched.address(), &watched.token);
        let request =
            format!("GET /api/v1/events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, text: String::new() }
    }

    /// The next event of this name that fits.
    async fn next(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let found = timeout(PATIENCE, async {
            loop {
                while let Some((event, rest)) = self.text.split_once("\n\n") {
                    let mut lines = event.lines().skip_while(|line| !line.starts_with("event: "));
                    let named = lines.next().and_then(|line| line.strip_prefix("event: ")).map(str::to_owned);
                    let data = lines.next().and_then(|line| line.strip_prefix("data: ")).map(str::to_owned);
                    self.text = rest.to_owned();
                    if named.as_deref() == Some(name) {
                        let data = serde_json::from_str(&data.unwrap()).unwrap();
                        if fits(&data) {
                            return data;
                        }
                    }
                }
                let mut block = [0; 4096];
                let read = self.stream.read(&mut block).await.unwrap();
                assert!(read > 0, "the stream ended: {}", self.text);
                self.text += &String::from_utf8_lossy(&block[..read]);
            }
        });
        found.await.unwrap_or_else(|_| panic!("no `{name}` came"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_in_a_run_is_told_while_it_happens() {
    let watched = Watched::new().await;
    let mut events = Events::open(&watched).await;
    assert_eq!(events.next("sites", |_| true).await, json!({ "connected": 0 }));
    let sites = watched.federation.sites(&watched.server).await;
    events.next("sites", |sites| sites["connected"] == 3).await;
    let run = watched.submit(PLAN).await;
    events.next("run", |told| told["run"] == run.as_str() && told["state"] == "running").await;
    for number in 1..=2 {
        round(&sites).await;
        events.next("run", |told| told["rounds_done"] == number).await;
    }
    round(&sites).await;
    let last = events.next("run", |told| told["state"] == "finished").await;
    assert_eq!(last["message"], "all rounds are done");
    drop(sites);
    events.next("sites", |sites| sites["connected"] == 0).await;
    // A page more than there may be is told so.
    let mut streams = Vec::new();
    for _ in 0..15 {
        let mut more = Events::open(&watched).await;
        more.next("run", |_| true).await;
        streams.push(more);
    }
    let full = watched.get("/api/v1/events").await;
    assert_eq!(full.status, 503, "{full:?}");
    drop((streams, events));
    watched.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_others_can_reach_must_be_asked_for() {
    let federation = Federation::new();
    let refused = Server::start(config(&federation, [0, 0, 0, 0], false), Arc::new(ToyRoom)).await;
    let Err(ServeError::Admin(error)) = refused else { panic!("it was opened") };
    assert!(error.to_string().contains("allow_remote = true"), "{error}");
    let server = Server::start(config(&federation, [0, 0, 0, 0], true), Arc::new(ToyRoom)).await.unwrap();
    assert!(server.admin_addr().is_some());
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grafana_dashboard_and_the_alerts_ask_only_for_what_is_there() {
    let watched = Watched::new().await;
    let numbers = watched.get("/metrics").await.body;
    let mut known: Vec<String> = Vec::new();
    for line in numbers.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            known.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        }
    }
    // These two are there as soon as a population has a budget.
    known.extend(["consortia_epsilon_spent", "consortia_epsilon_budget"].map(str::to_owned));
    for file in ["deploy/grafana/consortia.json", "deploy/prometheus/alerts.yml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let word = |c: char| c.is_ascii_lowercase() || c == '_';
        let asked: Vec<&str> =
            text.split(|c| !word(c)).filter(|word| word.starts_with("consortia_")).collect();
        assert!(asked.len() >= 10, "{file} asks for {asked:?}");
        for name in asked {
            assert!(
                known.iter().any(|known| known == name),
                "{file}: there is no `{name}`; there are {known:?}"
            );
        }
    }
    watched.server.shutdown().await.unwrap();
}
