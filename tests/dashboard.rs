//! The dashboard in a real browser, beside a real server and three sites in processes of their own.
//!
//! It needs Chromium (its path in `CONSORTIA_BROWSER`) and `npm ci` in `tests/dashboard`, and passes without them after saying
//! so. What is clicked and judged stands in `tests/dashboard/dashboard.mjs`. With `CONSORTIA_PICTURES` it leaves its pictures
//! in that folder: those in `docs/pictures` were made so.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[expect(dead_code, reason = "this server is started with an admin port, and not killed at once")]
#[path = "support/processes.rs"]
mod processes;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use processes::{Process, command, submit};
use serde_json::Value;

const RECORDS: &str = include_str!("../examples/data/heart_disease.csv");
const SITES: [&str; 3] = ["cleveland", "hungarian", "va"];
/// For the browser's part as a whole.
const PATIENCE: Duration = Duration::from_secs(300);

/// What both plans have: slow enough to be watched.
const PLAN: &str = r#"
[data.table]
label = "label"
target = { classes = 2 }
features = ["age", "trestbps", "chol", "thalach", "oldpeak", "exang", "cp_4"]
standardise = { given = { mean = [53, 132, 220, 138, 0.9, 0.4, 0.5], std = [9, 19, 90, 26, 1.1, 0.5, 0.5] } }

[training]
epochs = EPOCHS
batch_size = 16
optimizer = { sgd = { learning_rate = 0.0002 } }

[update]
norm_max = 2

[cohort]
clients_min = 3
quorum = 2
"#;

fn plan(name: &str, rounds: u32, epochs: u32, model: &str) -> String {
    format!(
        "name = \"{name}\"\nrounds = {rounds}\nmodel = {model}\n{}",
        PLAN.replace("EPOCHS", &epochs.to_string())
    )
}

/// A federation in processes: it ends with this value.
struct Federation {
    dir: tempfile::TempDir,
    server: Option<Process>,
    address: String,
    admin: String,
    _sites: Vec<Process>,
}

impl Federation {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("fed").display().to_string();
        command(&["server", "init", &folder, "--listen", "127.0.0.1:0"]);
        let (server, address, admin) = serve(&folder, "127.0.0.1:0", "127.0.0.1:0");
        let sites = SITES.map(|site| start_site(&folder, site, &address)).into();
        Self { dir, server: Some(server), address, admin, _sites: sites }
    }

    fn folder(&self) -> String {
        self.dir.path().join("fed").display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn url(&self) -> String {
        let shown = command(&["server", "dashboard", &self.folder(), "--address", &self.admin]);
        shown["url"].as_str().unwrap().to_owned()
    }

    /// A private run, to its end.
    fn train_privately(&self) {
        let private = "\n[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 4\nnoise_multiplier = 12\n\
                       denominator = 3\nsampling = { availability = { participations_max = 100 } }\n";
        let path = self.write("private.toml", &(plan("ward-private", 20, 1, "\"logistic\"") + private));
        let run = submit(&path, &self.folder(), &self.address, None);
        let watched = command(&["run", "watch", &run, "--dir", &self.folder(), "--server", &self.address]);
        assert_eq!(watched["state"], "finished", "{watched}");
    }

    /// A run that is stopped while it waits for more sites than there are.
    fn stop_one_that_has_not_begun(&self) {
        let path = self.write(
            "waiting.toml",
            &plan("ward-waiting", 5, 1, "\"logistic\"").replace("clients_min = 3", "clients_min = 9"),
        );
        let run = submit(&path, &self.folder(), &self.address, None);
        command(&["run", "stop", &run, "--dir", &self.folder(), "--server", &self.address]);
    }
}

fn serve(folder: &str, listen: &str, admin: &str) -> (Process, String, String) {
    let arguments =
        ["server", "run", folder, "--listen", listen, "--admin-listen", admin, "--while-stdin-open"];
    let server = Process::start(&arguments);
    let listening = server.event("listening");
    let word = |key: &str| listening[key].as_str().unwrap().to_owned();
    let (address, admin) = (word("address"), word("admin"));
    (server, address, admin)
}

fn start_site(folder: &str, site: &str, server: &str) -> Process {
    command(&["server", "issue", site, "--dir", folder]);
    let bundle = Path::new(folder).join("sites").join(site);
    let mut lines = RECORDS.lines();
    let head = lines.next().unwrap();
    let own = lines.filter(|line| line.starts_with(&format!("{site},")));
    let records: Vec<&str> = std::iter::once(head).chain(own).collect();
    std::fs::write(bundle.join("records.csv"), records.join("\n") + "\n").unwrap();
    let file = format!(
        "server = \"{server}\"\nidentity = \".\"\nstate = \".\"\ndevice = \"cpu\"\n\
         data = {{ csv = {{ train = \"records.csv\", split_column = \"split\" }} }}\n"
    );
    std::fs::write(bundle.join("site.toml"), file).unwrap();
    std::fs::write(bundle.join("policy.toml"), client::PLAIN_POLICY).unwrap();
    let path = bundle.join("site.toml").display().to_string();
    Process::start(&["site", "run", &path, "--while-stdin-open"])
}

/// The browser's script. It is killed when this is dropped.
struct Script {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    began: Instant,
}

impl Script {
    fn start(browser: &str, url: &str, plan: &str, shots: &str) -> Self {
        let mut node = Command::new("node");
        node.arg("dashboard.mjs").current_dir(scripts());
        node.env("CONSORTIA_BROWSER", browser).env("CONSORTIA_URL", url);
        node.env("CONSORTIA_PLAN", plan).env("CONSORTIA_SHOTS", shots);
        let mut child = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                println!("{line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, began: Instant::now() }
    }

    /// Waits until it says this.
    fn says(&self, word: &str) {
        loop {
            let left = PATIENCE.saturating_sub(self.began.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == word => return,
                Ok(_) => {}
                Err(why) => panic!("the browser's script did not say `{word}` ({why}); its error is above"),
            }
        }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scripts() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dashboard")
}

#[test]
fn an_operator_watches_pauses_stops_and_revokes_in_a_browser() {
    let browser = std::env::var("CONSORTIA_BROWSER").unwrap_or_default();
    if browser.is_empty() || !scripts().join("node_modules/playwright-core").exists() {
        println!("skipped: this needs Chromium's path in CONSORTIA_BROWSER, and `npm ci` in tests/dashboard");
        return;
    }
    let mut federation = Federation::new();
    federation.train_privately();
    federation.stop_one_that_has_not_begun();
    let live = federation.write("live.toml", &plan("ward-model", 5000, 60, "{ mlp = { hidden = [64] } }"));
    let shots = std::env::var("CONSORTIA_PICTURES");
    let shots = shots.unwrap_or_else(|_| federation.dir.path().display().to_string());
    let mut script = Script::start(&browser, &federation.url(), &live, &shots);
    script.says("lose");
    drop(federation.server.take());
    script.tell("lost");
    script.says("return");
    let (server, ..) = serve(&federation.folder(), &federation.address, &federation.admin);
    federation.server = Some(server);
    script.tell("returned");
    script.says("done");
}

/// What the admin port answers to a request for its numbers with this token.
fn numbers(admin: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Authorization: Bearer {token}\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_server_makes_its_token_when_it_is_missing_and_keeps_it_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("fed");
    let (name, path) = (folder.display().to_string(), folder.join("operator/admin.token"));
    command(&["server", "init", &name, "--listen", "127.0.0.1:0"]);
    let before = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (server, _, admin) = serve(&name, "127.0.0.1:0", "127.0.0.1:0");
    let token = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(numbers(&admin, token.trim()).contains("consortia_build_info"));
    assert!(numbers(&admin, before.trim()).starts_with("HTTP/1.1 401"));
    let said: Vec<String> = server.kill().iter().map(Value::to_string).collect();
    assert!(!said.concat().contains(token.trim()), "{said:?}");
}

#[test]
fn the_dashboard_is_printed_only_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("fed");
    let name = folder.display().to_string();
    command(&["server", "init", &name]);
    let shown: Value = command(&["server", "dashboard", &name]);
    let token = std::fs::read_to_string(folder.join("operator/admin.token")).unwrap();
    assert_eq!(shown["url"], format!("http://127.0.0.1:4434/#token={}", token.trim()));
    let file = std::fs::read_to_string(folder.join("server.toml")).unwrap();
    std::fs::write(folder.join("server.toml"), file.replace("[admin]\nlisten = \"127.0.0.1:4434\"", ""))
        .unwrap();
    let without = Command::new(env!("CARGO_BIN_EXE_consortia")).args(["server", "dashboard", &name]).output();
    let without = without.unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).contains("[admin]"), "{without:?}");
}
