//! A long run of the smallest model over loopback: what a round costs, how much memory server and site hold and how fast the server answers,
//! early and late.
//!
//! Numbers of one run are compared with each other, with wide margins, so that a slow machine changes nothing; the program prints them all. With
//! `CONSORTIA_THOROUGH=1` the run has 100,000 rounds.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and time what they measure"
)]

#[path = "support/processes.rs"]
mod processes;

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use processes::{Process, command, serve, submit};
use serde_json::Value;

/// Rounds of the run.
fn rounds() -> u64 {
    if std::env::var_os("CONSORTIA_THOROUGH").is_some() { 100_000 } else { 5000 }
}

/// Clock ticks a second of `/proc/PID/stat`, on every Linux.
const TICKS: f64 = 100.0;

/// A process as the system sees it.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// Processor seconds since its start.
    seconds: f64,
    /// Bytes in memory.
    resident: u64,
}

impl Usage {
    fn of(process: &Process) -> Self {
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", process.child.id())).unwrap();
        let stat = read("stat");
        // Behind the name of the program, which may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = [11, 12].map(|at: usize| fields[at].parse::<f64>().unwrap()).iter().sum();
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { seconds: ticks / TICKS, resident: kilobytes << 10 }
    }
}

/// What was measured over some rounds.
#[derive(Clone, Copy)]
struct Window {
    /// Processor milliseconds a round, of the server and of the site.
    server_ms: f64,
    site_ms: f64,
    /// Megabytes at its end.
    server_mb: f64,
    site_mb: f64,
}

struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        let fed = stage.path("fed");
        command(&["server", "init", text(&fed), "--name", "localhost", "--listen", "127.0.0.1:0"]);
        command(&["server", "issue", "north", "--dir", text(&fed)]);
        let bundle = fed.join("sites/north");
        let north = stage.path("north");
        let init = ["site", "init", text(&north), "--server", "127.0.0.1:1", "--bundle", text(&bundle)];
        command(&[&init[..], &["--policy", "plain"]].concat());
        let rows: Vec<String> = (0..8).map(|row| format!("{},{}\n", row % 3, row % 2)).collect();
        let rows = format!("x,y\n{}", rows.concat());
        std::fs::write(north.join("data.csv"), rows).unwrap();
        let plan = format!(
            "name = \"soak\"\nrounds = {}\nmodel = \"logistic\"\n\
             [data.table]\nlabel = \"y\"\ntarget = {{ classes = 2 }}\nfeatures = [\"x\"]\n\
             [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
             [strategy.fedavgm]\nmomentum = 0.5\n\
             [evaluation]\nevery = 0\n",
            rounds()
        );
        std::fs::write(stage.path("plan.toml"), plan).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn site(&self, address: &str) -> Process {
        let file = self.path("north/site.toml");
        let typed = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, typed.replace("127.0.0.1:1", address)).unwrap();
        Process::start(&["site", "run", text(&file), "--while-stdin-open", "-q"])
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn consortia(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).output().unwrap()
}

/// The fastest of five requests to the admin port, in milliseconds.
fn fastest(admin: &str, token: &str, path: &str) -> f64 {
    let request = || {
        let began = Instant::now();
        let mut line = TcpStream::connect(admin).unwrap();
        let head = format!("GET /api/v1/{path} HTTP/1.1\r\nhost: {admin}\r\n");
        write!(line, "{head}authorization: Bearer {token}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        line.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        began.elapsed()
    };
    (0..5).map(|_| request()).min().unwrap_or(Duration::MAX).as_secs_f64() * 1000.0
}

/// Waits for rounds and measures what they took.
struct Watch<'a> {
    server: &'a Process,
    site: &'a Process,
    admin: String,
    token: String,
    run: String,
    reached: Cell<u64>,
}

impl Watch<'_> {
    /// In steps, each with a limit of its own: a long run takes longer than anything else may.
    fn wait_for(&self, round: u64) {
        while self.reached.get() < round {
            let next = round.min(self.reached.get() + 1000);
            let has_come = |line: &Value| line["event"] == "round" && line["round"].as_u64() >= Some(next);
            let line = self.server.next("a round", has_come);
            self.reached.set(line["round"].as_u64().unwrap());
        }
    }

    fn window(&self, from: u64, to: u64) -> Window {
        self.wait_for(from);
        let before = [self.server, self.site].map(Usage::of);
        self.wait_for(to);
        let after = [self.server, self.site].map(Usage::of);
        let spent = |at: usize| (after[at].seconds - before[at].seconds) * 1000.0 / (to - from) as f64;
        let held = |at: usize| after[at].resident as f64 / f64::from(1 << 20);
        let asked = |path: &str| fastest(&self.admin, &self.token, path);
        let window = Window { server_ms: spent(0), site_ms: spent(1), server_mb: held(0), site_mb: held(1) };
        let Window { server_ms, site_ms, server_mb, site_mb } = window;
        println!(
            "rounds {from} to {to}: processor time {server_ms:.2} and {site_ms:.2} ms a round, {server_mb:.0} and {site_mb:.0} MB, \
             the run's summary in {:.2} ms, the list of runs in {:.2} ms",
            asked(&format!("runs/{}", self.run)),
            asked("runs")
        );
        window
    }
}

#[test]
fn a_long_run_costs_the_same_at_its_end_as_early_on_and_what_is_shown_of_it_says_what_it_leaves_out() {
    let (stage, rounds) = (Stage::new(), rounds());
    let fed = stage.path("fed");
    let server = Process::start(&["server", "run", text(&fed), "--while-stdin-open"]);
    let listening = server.event("listening");
    let address = listening["address"].as_str().unwrap();
    let admin = listening["admin"].as_str().unwrap().to_owned();
    let token = std::fs::read_to_string(fed.join("operator/admin.token")).unwrap().trim().to_owned();
    let site = stage.site(address);
    let run = submit(text(&stage.path("plan.toml")), text(&fed), address, Some(3));
    let watch = Watch { server: &server, site: &site, admin, token, run: run.clone(), reached: Cell::new(0) };
    // The rounds that are shown are as many as ever from the 1,000th on.
    let span = rounds / 10;
    let early = watch.window(span, 2 * span);
    if rounds > 10_000 {
        for tenth in 2..9 {
            watch.window(tenth * span, tenth * span + span / 2);
        }
    }
    let late = watch.window(rounds - span - 20, rounds - 20);
    for (what, early, late, most, slack) in [
        ("processor time of the server, ms a round", early.server_ms, late.server_ms, 2.0, 1.5),
        ("processor time of the site, ms a round", early.site_ms, late.site_ms, 2.0, 1.5),
        ("memory of the server, MB", early.server_mb, late.server_mb, 1.5, 20.0),
        ("memory of the site, MB", early.site_mb, late.site_mb, 1.5, 20.0),
    ] {
        assert!(late <= most * early + slack, "{what}: {early} early, {late} late");
    }
    server.event("ended");
    server.kill();
    site.kill();
    starts_in_the_same_memory(&stage, early.site_mb);
    let began = Instant::now();
    let (_server, address) = serve(text(&fed), "127.0.0.1:0");
    println!("a start after it takes {:?}", began.elapsed());
    says_what_it_leaves_out(&stage, &["--dir", text(&fed), "--server", &address], &run, rounds);
}

/// A site reads its books line by line when it starts: it needs no more memory than it did early in the run, in MB.
fn starts_in_the_same_memory(stage: &Stage, early: f64) {
    let site = stage.path("north/site.toml");
    let again = Process::start(&["site", "run", text(&site), "--while-stdin-open", "-q"]);
    again.event("waiting");
    let Usage { seconds, resident } = Usage::of(&again);
    let held = resident as f64 / f64::from(1 << 20);
    println!("a site that starts after it takes {seconds:.2} s of processor time and {held:.0} MB");
    assert!(held <= early + 20.0, "memory of a site that starts, MB: {held}, {early} early");
    again.kill();
}

/// What is shown of a run of more rounds than a reply holds.
fn says_what_it_leaves_out(stage: &Stage, at: &[&str], run: &str, rounds: u64) {
    let models = consortia(&[&["--format", "json", "run", "models", run][..], at].concat());
    let shown: Vec<Value> = serde_json::from_slice(&models.stdout).unwrap();
    let said = String::from_utf8_lossy(&models.stderr).into_owned();
    // The site has no test records, so no model is best and shown out of its turn.
    let earliest = shown[0]["round"].as_u64().unwrap();
    assert!(
        shown.len() <= 1001 && said.contains(&format!("models of rounds before {earliest} are not shown")),
        "{said}"
    );
    let all = consortia(&[&["--format", "json", "run", "models", run, "--all"][..], at].concat());
    let all: Vec<Value> = serde_json::from_slice(&all.stdout).unwrap();
    let numbers: Vec<u64> = all.iter().map(|model| model["round"].as_u64().unwrap()).collect();
    assert!(numbers == (0..=rounds).collect::<Vec<_>>(), "{} models", numbers.len());
    let log = consortia(&[&["run", "log", run][..], at].concat());
    let (lines, said) = (String::from_utf8_lossy(&log.stdout), String::from_utf8_lossy(&log.stderr));
    assert!(lines.trim_end().ends_with("state=finished"), "{lines}");
    assert!(said.contains("lines of the run; those before them are in state/audit*.jsonl"), "{said}");
    let page = stage.path("report.html");
    let report = consortia(&[&["run", "report", run, "--out", text(&page)][..], at].concat());
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    let first = rounds - 999;
    for told in [said, std::fs::read_to_string(page).unwrap()] {
        assert!(told.to_lowercase().contains(&format!("rounds {first} to {rounds} are shown")), "{told}");
    }
    let best = consortia(
        &[&["run", "pull", run, "--model", "best", "--out", text(stage.dir.path())][..], at].concat(),
    );
    let said = String::from_utf8_lossy(&best.stderr).into_owned();
    assert!(
        best.status.code() == Some(1) && said.contains(&format!("only the model of round {rounds}")),
        "{said}"
    );
}
