//! What the people of a site do around `site run`: see whether it is well, pause it, read its log, leave. Each party is a process
//! of its own.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says so by panicking, and waits for real processes"
)]

#[path = "site/books.rs"]
mod books;
#[path = "site/outbox.rs"]
mod outbox;
#[path = "support/processes.rs"]
mod processes;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use processes::{Process, command, serve, submit};
use serde_json::Value;
use tempfile::TempDir;

const PLAN: &str = "name = \"small\"\nrounds = 2\nmodel = \"logistic\"\n\
    [data.table]\nlabel = \"label\"\ntarget = { classes = 2 }\nfeatures = [\"age\", \"chol\"]\nstandardise = \"site\"\n\
    [training]\nbatch_size = 16\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 1\nquorum = 1\ndeadline_seconds = 60\n";
const ROWS: &str = "age,chol,label,ward\n51,200,0,a\n62,310,1,a\n47,190,0,b\n70,280,1,a\n";

/// A federation with one site, and a folder that both are in.
struct Stage {
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        let federation = stage.path("fed");
        command(&["server", "init", text(&federation), "--listen", "127.0.0.1:0"]);
        command(&["server", "issue", "north", "--dir", text(&federation)]);
        let bundle = federation.join("sites/north");
        let (site, records) = (stage.path("site"), stage.path("site/data.csv"));
        command(&[
            "site",
            "init",
            text(&site),
            "--server",
            "localhost:1",
            "--bundle",
            text(&bundle),
            "--policy",
            "plain",
        ]);
        std::fs::write(records, ROWS).unwrap();
        std::fs::write(stage.path("plan.toml"), PLAN).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Tells the site where the server is.
    fn point_to(&self, address: &str) {
        let file = self.path("site/site.toml");
        let written = std::fs::read_to_string(&file).unwrap();
        let old = written.lines().find(|line| line.starts_with("server = ")).unwrap().to_owned();
        std::fs::write(&file, written.replace(&old, &format!("server = \"{address}\""))).unwrap();
    }

    /// `site WORD` on the site's file.
    fn site(&self, word: &str, more: &[&str]) -> Output {
        let file = self.path("site/site.toml");
        let arguments = [&["--format", "json", "site", word, text(&file)], more].concat();
        Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The file of `--health`, once it fits.
    fn health(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1200 {
            let text = std::fs::read(self.path("health.json")).unwrap_or_default();
            // It is renamed into its place, so that what is there is whole.
            last = if text.is_empty() { Value::Null } else { serde_json::from_slice(&text).unwrap() };
            if fits(&last) {
                return last;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the health is {last}");
    }

    /// What `site check` finds: its exit code, and the state and message of each matter.
    fn check(&self, more: &[&str]) -> (i32, Vec<(String, String, String)>) {
        let output = self.site("check", more);
        let found: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let one = |matter: &Value, key: &str| matter[key].as_str().unwrap().to_owned();
        let matters = found["matters"].as_array().unwrap().iter();
        let matters =
            matters.map(|matter| (one(matter, "matter"), one(matter, "state"), one(matter, "message")));
        (output.status.code().unwrap(), matters.collect())
    }

    fn run(&self) -> Process {
        Process::start(&["site", "run", text(&self.path("site/site.toml")), "--while-stdin-open"])
    }

    fn records(&self, event: &str) -> Vec<Value> {
        let output = self.site("audit", &["--event", event]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The message of the matter of this name, which must have this state.
fn message<'a>(matters: &'a [(String, String, String)], name: &str, state: &str) -> &'a str {
    let found = matters.iter().find(|(matter, ..)| matter == name);
    let (_, held, message) = found.unwrap_or_else(|| panic!("no `{name}` in {matters:?}"));
    assert_eq!(held, state, "{name}: {message}");
    message
}

#[test]
fn a_site_that_is_well_is_told_so_and_one_that_is_not_hears_what_to_do() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let plan = stage.path("plan.toml");
    let (code, matters) = stage.check(&["--plan", text(&plan)]);
    assert_eq!(code, 0, "{matters:?}");
    for name in
        ["key", "chain", "certificate's time", "device", "policy: train", "handshake", "clock", "greeting"]
    {
        message(&matters, name, "ok");
    }
    assert!(message(&matters, "certificate", "ok").contains("`north`"));
    assert!(message(&matters, "data for the plan", "ok").starts_with("4 records"));
    assert!(!matters.iter().any(|(name, ..)| name == "column ward"), "the plan does not use it: {matters:?}");

    let records = stage.path("site/data.csv");
    std::fs::write(&records, ROWS.replace("62,", "old,").replace("70,280,1", "70,280,7")).unwrap();
    let (code, matters) = stage.check(&["--plan", text(&plan), "--offline"]);
    assert_eq!(code, 2);
    let rows = message(&matters, "rows", "fail");
    assert!(rows.starts_with("2 rows cannot be used, at lines 3, 5") && rows.contains("`old`"), "{rows}");
    let (code, matters) = stage.check(&["--offline"]);
    assert_eq!(code, 0, "without a plan a column may hold anything");
    assert!(message(&matters, "column age", "ok").contains("1 value is not numeric (first at line 3): old"));

    std::fs::write(stage.path("site/policy.toml"), "tasks = [\"train\"]\n").unwrap();
    let (code, matters) = stage.check(&["--plan", text(&plan), "--offline"]);
    assert_eq!(code, 2);
    assert!(message(&matters, "policy: train", "fail").contains("models"));
    // One that nobody has chosen yet: with a plan the site is not ready for it, and by itself it may be so for now.
    std::fs::write(stage.path("site/policy.toml"), "# nothing is allowed\n").unwrap();
    let (code, matters) = stage.check(&["--plan", text(&plan), "--offline"]);
    assert_eq!(code, 2, "{matters:?}");
    assert!(message(&matters, "policy", "warn").contains("allows no task"));
    assert!(message(&matters, "policy: train", "fail").contains("the site would decline it"));
    assert_eq!(stage.check(&["--offline"]).0, 0);

    let key = stage.path("site/identity/key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, matters) = stage.check(&["--offline"]);
    assert_eq!(code, 3);
    assert!(message(&matters, "key", "fail").contains("chmod 600"));
}

#[test]
fn the_check_tries_columns_as_a_run_would_and_names_those_that_tell_nothing() {
    let stage = Stage::new();
    let (plan, records) = (stage.path("plan.toml"), stage.path("site/data.csv"));
    let check = |standardise: &str, rows: &str| {
        std::fs::write(&plan, PLAN.replace("\"site\"", standardise)).unwrap();
        std::fs::write(&records, format!("age,chol,label\n{rows}")).unwrap();
        stage.check(&["--plan", text(&plan), "--offline"])
    };
    for standardise in ["\"site\"", "\"federated\""] {
        let (code, matters) = check(standardise, "1.7e9,2e-12,0\n1.8e9,4e-12,1\n");
        assert_eq!(code, 0, "{matters:?}");
        assert!(!matters.iter().any(|(name, ..)| name.starts_with("spread of")), "{matters:?}");
        let (code, matters) = check(standardise, "1e300,5,0\n1.0000000000000001e300,6,1\n");
        assert_eq!(code, 0, "{matters:?}");
        assert!(message(&matters, "spread of age", "warn").contains("the same"));
        assert!(!matters.iter().any(|(name, ..)| name == "spread of chol"), "{matters:?}");
        message(&matters, "data for the plan", "ok");
    }
    let (code, matters) = check("\"none\"", "1,1e39,0\n2,2,1\n");
    assert_eq!(code, 2);
    assert!(message(&matters, "data for the plan", "fail").contains("column `chol` holds `1e39`"));
    // Each cell is a number, and what the given scale makes of one is none that a model could take.
    let given = "{ given = { mean = [0.0, 0.0], std = [1.0, 1e-300] } }";
    let (code, matters) = check(given, "1,1,0\n2,2,1\n");
    assert_eq!(code, 2);
    let told = message(&matters, "data for the plan", "fail");
    assert!(told.contains("column `chol` after preparation"), "{told}");
}

#[test]
fn a_check_says_when_the_authority_or_the_address_is_another_one() {
    let (stage, other) = (Stage::new(), Stage::new());
    stage.point_to("no-such-host.invalid:4433");
    let (code, matters) = stage.check(&[]);
    assert_eq!(code, 3);
    assert!(message(&matters, "server no-such-host.invalid:4433", "fail").contains("leads nowhere"));

    let root = other.path("site/identity/ca.pem");
    std::fs::copy(root, stage.path("site/identity/ca.pem")).unwrap();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let (code, matters) = stage.check(&[]);
    assert_eq!(code, 3);
    message(&matters, "chain", "fail");
    assert!(message(&matters, "handshake", "fail").contains("ca.pem"));
}

#[test]
fn a_site_that_never_had_a_connection_leaves_nobody() {
    let stage = Stage::new();
    // Nobody listens there.
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    stage.point_to(&format!("127.0.0.1:{port}"));
    let ended = stage.site("run", &["--while-stdin-open"]);
    let told = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{told}");
    assert!(!told.contains("left"), "{told}");
}

#[test]
fn a_check_of_a_plan_knows_what_the_ledger_can_still_pay() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let protected = PLAN
        .replace("standardise = \"site\"", "standardise = \"none\"")
        .replace("[cohort]", "[update]\nnorm_max = 1.0\nweights = \"uniform\"\n[cohort]")
        + "[privacy.examples]\ndelta = 1e-5\nepsilon_max = 100.0\nnoise_multiplier = NOISE\nnorm_max = 1.0\n\
           [evaluation]\nsites = \"none\"\n";
    let plan = |noise: &str| {
        let path = stage.path("protected.toml");
        std::fs::write(&path, protected.replace("NOISE", noise)).unwrap();
        path
    };
    std::fs::write(stage.path("site/policy.toml"), client::RECORDS_POLICY).unwrap();
    let (policy, check) =
        (stage.path("site/policy.toml"), |plan: &Path| stage.check(&["--plan", text(plan), "--offline"]).1);
    // More than the whole budget, on a ledger with nothing in it.
    let dear = plan("1.0");
    assert!(message(&check(&dear), "policy: train", "fail").contains("epsilon 2"));
    // What policy or budget refuse has one exit code, whichever command says so.
    let alone = |code: i32, matters: &[(String, String, String)]| {
        let failed = matters.iter().filter(|(_, state, _)| state == "fail");
        failed.clone().all(|(name, ..)| name.starts_with("policy: ")).then_some(code)
    };
    let (code, matters) = stage.check(&["--plan", text(&dear), "--offline"]);
    assert_eq!(alone(code, &matters), Some(6), "{code} {matters:?}");
    let mut program = Command::new(env!("CARGO_BIN_EXE_consortia"));
    let tried = program.args(["site", "policy", "check", text(&policy), text(&dear)]).output().unwrap();
    assert_eq!(tried.status.code(), Some(6), "{tried:?}");
    assert!(String::from_utf8_lossy(&tried.stdout).contains("as if nothing had been spent"), "{tried:?}");
    // Enough for one, which trains twice: the second round is declined, and the check says it beforehand.
    let one = plan("2.2");
    message(&check(&one), "policy: train", "ok");
    let site = stage.run();
    site.event("connected");
    submit(text(&one), text(&stage.path("fed")), &address, None);
    site.event("accepted");
    site.event("declined");
    drop(site);
    assert!(message(&check(&one), "policy: train", "fail").contains("budget"));
    // Books of which nothing is known pay for nothing.
    std::fs::remove_dir_all(stage.path("site/state")).unwrap();
    assert!(stage.site("recover", &[]).status.success());
    assert!(message(&check(&one), "policy: train", "fail").contains("were lost"));
}

#[test]
fn the_pause_of_a_site_wins_and_survives_a_restart_until_its_people_end_it() {
    let stage = Stage::new();
    let federation = stage.path("fed");
    let (server, address) = serve(text(&federation), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    assert!(stage.site("pause", &[]).status.success());
    let resume = format!("`consortia site resume {}`", stage.path("site/site.toml").display());
    assert!(site.event("paused")["message"].as_str().unwrap().contains(&resume));
    // Every round of it is declined, and so it ends with the model that it began with.
    let hand_in = || submit(text(&stage.path("plan.toml")), text(&federation), &address, None);
    hand_in();
    let declined = site.event("declined")["message"].as_str().unwrap().to_owned();
    assert!(declined.contains("paused") && declined.contains(&resume), "{declined}");
    site.kill();

    let site = stage.run();
    site.event("paused");
    site.event("connected");
    hand_in();
    site.event("declined");
    let matters = stage.check(&[]).1;
    assert!(
        message(&matters, "greeting", "ok").contains("site run"),
        "the check leaves the connection alone"
    );
    assert!(message(&matters, "pause", "warn").contains(&resume));
    assert!(stage.site("resume", &[]).status.success());
    site.event("resumed");
    assert!(stage.records("answered").iter().all(|record| record["outcome"] == "declined"));
    hand_in();
    site.event("accepted");
    assert!(stage.records("denied").iter().all(|record| record["rule"] == "pause"));
    assert_eq!(stage.records("resumed").len(), 1);
    assert!(stage.records("paused").len() >= 2, "before and after the restart");
    drop(server);
}

#[test]
fn a_limited_site_tells_its_supervisor_how_it_is_and_a_second_one_does_not_start() {
    let stage = Stage::new();
    let federation = stage.path("fed");
    let (_server, address) = serve(text(&federation), "127.0.0.1:0");
    stage.point_to(&address);
    let file = stage.path("site/site.toml");
    let limits = "[limits]\nthreads = 1\nupload_bytes_per_second = 100\ndownload_bytes_per_second = 1000\n";
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("health = \"../health.json\"\n{written}{limits}")).unwrap();
    let manager = UnixDatagram::bind(stage.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut running = Command::new(env!("CARGO_BIN_EXE_consortia"));
    running.args(["-q", "site", "run", text(&file), "--while-stdin-open"]).stdin(Stdio::piped());
    running.env("NOTIFY_SOCKET", stage.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut running = Guarded(running.spawn().unwrap());
    // Read all the while: a service manager's socket takes few words at a time.
    let (sender, words) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut word = [0; 500];
        while let Ok(length) = manager.recv(&mut word) {
            let _ = sender.send(String::from_utf8_lossy(&word[..length]).into_owned());
        }
    });
    let next = || words.recv_timeout(Duration::from_secs(60)).unwrap();
    let mut heard = Vec::new();
    while !heard.iter().any(|words| words == "WATCHDOG=1") {
        heard.push(next());
    }
    assert!(heard[0].starts_with("READY=1\nSTATUS=calling"), "{heard:?}");
    stage.health(|health| health["state"] == "connected");
    let environment = std::fs::read(format!("/proc/{}/environ", running.0.id())).unwrap();
    assert!(
        String::from_utf8_lossy(&environment).contains("RAYON_NUM_THREADS=1"),
        "the process started anew"
    );

    let second = stage.site("run", &[]);
    assert!(String::from_utf8_lossy(&second.stderr).contains("another program"), "{second:?}");
    submit(text(&stage.path("plan.toml")), text(&federation), &address, None);
    let health = stage.health(|health| health["counts"]["accepted"].as_u64().is_some_and(|count| count >= 2));
    assert_eq!(health["last_task"]["outcome"], "accepted");
    assert!(health["certificate_ends"].as_u64().unwrap() > health["written"].as_u64().unwrap());
    assert!(stage.site("pause", &[]).status.success());
    stage.health(|health| health["state"] == "paused");
    drop(running.0.stdin.take());
    assert!(running.0.wait().unwrap().success());
    assert_eq!(stage.health(|_| true)["state"], "stopped");
    while next() != "STOPPING=1" {}
}

/// A process that ends with the test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_site_leaves_without_its_key_and_keeps_its_books() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    let refused = stage.site("leave", &["--yes"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`site run` is at work"));
    assert_eq!(refused.status.code(), Some(1), "another program that ends, and no wrong file");
    let second = stage.site("run", &[]);
    assert!(String::from_utf8_lossy(&second.stderr).contains("another program has this site's books open"));
    assert_eq!(second.status.code(), Some(1));
    site.kill();
    let unasked = stage.site("leave", &[]);
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("--yes"));
    assert!(stage.path("site/identity/key.pem").exists());

    assert!(stage.site("leave", &["--yes"]).status.success());
    assert!(!stage.path("site/identity").exists());
    for kept in ["site/state/audit.jsonl", "site/state/ledger.jsonl", "site/policy.toml", "site/data.csv"] {
        assert!(stage.path(kept).exists(), "{kept}");
    }
    assert_eq!(stage.records("left").len(), 1);
    assert_eq!(stage.records("left")[0]["certificate"].as_str().unwrap().len(), 64);
    assert_eq!(stage.site("leave", &["--yes"]).status.code(), Some(2), "there is nothing left to leave with");
    for command in ["run", "renew"] {
        let gone = stage.site(command, &[]);
        let told = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert_eq!(gone.status.code(), Some(3), "{command}: {told}");
        assert!(
            told.contains("this site has left") && told.contains("site join INVITE"),
            "{command}: {told}"
        );
    }

    let path = stage.path("site/state/audit.jsonl");
    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, log.replacen("north", "south", 1)).unwrap();
    let damaged = stage.site("audit", &[]);
    assert_eq!((damaged.status.code(), damaged.stdout.len()), (Some(1), 0));
}
