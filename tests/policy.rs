//! A site's own policy and budget against a real server, each party a process of its own: four hospitals train, one of them
//! stops taking part when its policy says so, and the run goes on without it.
//!
//! What the site wrote down is read back: nothing left it after the denial, and a changed byte is found.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says so by panicking, and waits for real processes"
)]

#[path = "support/processes.rs"]
mod processes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use privacy::accounting::{self, Event, Mechanism, Relation};
use privacy::chain::read_lines;
use processes::{Process, command, serve, submit};
use serde_json::Value;
use server::PrivacyStatement;
use tempfile::TempDir;

const SITES: [&str; 4] = ["cleveland", "hungarian", "switzerland", "va"];
/// The one whose policy is stricter.
const STRICT: &str = "switzerland";
const ROUNDS: u64 = 6;
const DELTA: f64 = 1e-5;
const NOISE: f64 = 2.0;

fn plan(more: &str) -> String {
    format!(
        "name = \"policy\"\nrounds = {ROUNDS}\nmodel = \"logistic\"\n\
         [data.table]\nlabel = \"label\"\ntarget = {{ classes = 2 }}\n\
         features = [\"age\", \"sex\", \"chol\"]\nstandardise = \"site\"\nmissing = \"mean\"\n\
         [training]\nbatch_size = 16\noptimizer = {{ sgd = {{ learning_rate = 0.02 }} }}\n\
         [update]\nnorm_max = 1.0\nweights = \"uniform\"\n\
         [cohort]\nclients_min = 4\nquorum = 3\ndeadline_seconds = 60\n{more}"
    )
}

fn private_plan() -> String {
    plan(&format!(
        "[evaluation]\nsites = \"none\"\n\
         [privacy.central]\ndelta = {DELTA}\nepsilon_max = 50.0\nnoise_multiplier = {NOISE}\ndenominator = 4.0\n\
         sampling = {{ availability = {{ participations_max = {ROUNDS} }} }}\nclients_min = 3\n"
    ))
}

/// A policy for this plan with a budget of the site's own.
fn private_policy(epsilon_max: f64) -> String {
    format!(
        "tasks = [\"train\"]\nmodels = [\"logistic\"]\nparameters_max = 8\nclients_min = 3\nsites_min = 3\n\
         rounds_per_day = 100\nhours = \"any\"\nseparation_min_seconds = 0\nmetrics = []\nrehearsals = false\n\
         [privacy]\nrequire = [\"central\"]\nnoise_multiplier_min = {NOISE}\nnorm_max_max = 1.0\n\
         epsilon_max = {epsilon_max}\ndelta = {DELTA}\nrelations = [\"zero_out\"]\n"
    )
}

/// Epsilon of so many trainings, computed without a ledger.
fn epsilon(trainings: u64) -> f64 {
    let event = Event::new(Mechanism::Gaussian { noise_multiplier: NOISE }, trainings).unwrap();
    accounting::epsilon(&[event], Relation::ZeroOut, DELTA).unwrap().best()
}

/// A federation's folder and its four sites' homes.
struct Deployment(TempDir);

impl Deployment {
    fn new(policy: &str, strict: &str) -> Self {
        let deployment = Self(tempfile::tempdir().unwrap());
        let folder = deployment.path("federation");
        command(&["server", "init", text(&folder), "--listen", "127.0.0.1:0"]);
        let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/heart_disease.csv");
        for site in SITES {
            let home = deployment.path(site);
            command(&["server", "issue", site, "--dir", text(&folder)]);
            std::fs::create_dir_all(home.join("state")).unwrap();
            let identity = folder.join("sites").join(site);
            let file = format!(
                "server = \"SERVER\"\nidentity = {identity:?}\nstate = \"state\"\ndevice = \"cpu\"\n[data.csv]\n\
                 train = {records:?}\nsplit_column = \"split\"\nwhere = {{ site = \"{site}\" }}\n"
            );
            std::fs::write(home.join("site.toml"), file).unwrap();
            let own = if site == STRICT { strict } else { policy };
            std::fs::write(home.join("policy.toml"), own).unwrap();
        }
        deployment
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts a site that the server at `address` greets.
    fn join(&self, site: &str, address: &str) -> Process {
        let file = self.path(site).join("site.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let line = text.lines().next().unwrap().to_owned();
        std::fs::write(&file, text.replace(&line, &format!("server = \"{address}\""))).unwrap();
        let process = Process::start(&["site", "run", self::text(&file), "--while-stdin-open"]);
        process.event("connected");
        process
    }

    /// Hands the plan in, with or without a seed, and follows it to its end.
    fn run(&self, plan: &str, address: &str, seed: Option<u64>) -> Value {
        let (file, folder) = (self.path("plan.toml"), self.path("federation"));
        std::fs::write(&file, plan).unwrap();
        let operator = ["--dir", text(&folder), "--server", address];
        let run = submit(text(&file), text(&folder), address, seed);
        Process::start(&[&["run", "watch", &run], &operator[..]].concat()).last_line()
    }

    /// The events of a site's audit log.
    fn audit(&self, site: &str) -> Vec<Value> {
        let text = std::fs::read(self.path(site).join("state/audit.jsonl")).unwrap();
        read_lines(&text).unwrap().links.iter().map(|link| link.read().unwrap()).collect()
    }

    /// How many trainings of a site the server accepted.
    fn accepted(end: &Value, site: &str) -> u64 {
        let clients = end["clients"].as_array().unwrap();
        clients.iter().find(|client| client["client"] == site).unwrap()["accepted"].as_u64().unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn consortia(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).output().unwrap()
}

/// Events of this kind that concern trainings.
fn trainings<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind && event["task"]["kind"] == "train").collect()
}

#[test]
fn a_site_whose_budget_is_spent_leaves_a_private_run_that_goes_on_without_it() {
    // Enough for three trainings, and not for a fourth.
    let (budget, paid) = ((epsilon(3) + epsilon(4)) / 2.0, 3);
    let deployment = Deployment::new(&private_policy(50.0), &private_policy(budget));
    let federation = deployment.path("federation");
    let (server, address) = serve(text(&federation), "127.0.0.1:0");
    let _sites = SITES.map(|site| deployment.join(site, &address));
    let end = deployment.run(&private_plan(), &address, None);
    assert_eq!((&end["state"], &end["rounds_done"]), (&"finished".into(), &ROUNDS.into()), "{end}");
    for site in SITES {
        let expected = if site == STRICT { paid } else { ROUNDS };
        assert_eq!(Deployment::accepted(&end, site), expected, "{site}: {end}");
    }

    let events = deployment.audit(STRICT);
    let denied = trainings(&events, "denied");
    assert_eq!(denied.len() as u64, ROUNDS - paid);
    assert!(denied.iter().all(|event| event["rule"] == "budget"), "{denied:?}");
    assert_eq!(denied[0]["task"]["round"], paid + 1, "the round that was computed without a ledger");
    let first = events.iter().position(|event| event["event"] == "denied").unwrap();
    for answered in trainings(&events[first..], "answered") {
        assert_eq!((&answered["outcome"], &answered["bytes"]), (&"declined".into(), &0.into()), "{answered}");
    }
    let sent: Vec<u64> = trainings(&events[..first], "answered")
        .iter()
        .map(|event| event["bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(sent, [4 * 8; 3], "three features and a bias for two classes, four bytes each");

    let home = deployment.path(STRICT);
    let shown = command(&["budget", "show", text(&home)]);
    let best = ["rdp", "pld"]
        .map(|name| shown["client"][name].as_f64().unwrap())
        .into_iter()
        .fold(f64::MAX, f64::min);
    assert!((best - epsilon(paid)).abs() < 1e-9 && shown["client"]["protected"] == paid, "{shown}");
    assert_eq!(shown["runs"].as_array().unwrap().len(), 1);
    verify_and_tamper(&home, &["audit.jsonl", "ledger.jsonl"]);
    server.kill();
    check_server(&federation, end["run"].as_str().unwrap());
}

/// The server's books: releases that were paid for, a model with a statement that holds, a log that shows a changed byte.
fn check_server(federation: &Path, run: &str) {
    let shown = command(&["budget", "show", text(federation)]);
    let population = &shown["populations"][0];
    assert_eq!((&population["releases"], &population["secure"]), (&ROUNDS.into(), &true.into()), "{shown}");
    let out = federation.join("exported");
    let exported = command(&["server", "export", run, "--dir", text(federation), "--out", text(&out)]);
    assert_eq!(exported["round"], ROUNDS);
    let statement = std::fs::read(out.join("privacy_statement.json")).unwrap();
    let statement: PrivacyStatement = serde_json::from_slice(&statement).unwrap();
    assert_eq!(statement.recompute(), Ok(()));
    assert_eq!(statement.claims[0].epsilon.pld, population["pld"].as_f64());
    assert_eq!(exported["model_sha256"], statement.model_sha256);
    command(&["privacy", "verify", text(&out.join("privacy_statement.json"))]);
    let (model, statement) = (out.join("model.safetensors"), out.join("privacy_statement.json"));
    let verified = command(&["model", "verify", text(&model), "--statement", text(&statement)]);
    assert_eq!(verified["statement"]["claims"], 1, "{verified}");
    verify_and_tamper(federation, &["audit.jsonl"]);
}

/// These chains are in order, and a changed byte is found wherever it is.
fn verify_and_tamper(home: &Path, names: &[&str]) {
    let good = consortia(&["audit", "verify", text(home)]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(String::from_utf8_lossy(&good.stdout).matches("records in order, head ").count(), names.len());
    for name in names {
        let file = home.join("state").join(name);
        let whole = std::fs::read(&file).unwrap();
        for at in [0, whole.len() / 3, whole.len() - 2, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&file, &changed).unwrap();
            let line = 1 + whole[..at].iter().filter(|byte| **byte == b'\n').count();
            let bad = consortia(&["audit", "verify", text(home)]);
            let said = String::from_utf8_lossy(&bad.stderr).into_owned();
            assert_eq!(bad.status.code(), Some(1), "byte {at} of {name}");
            assert!(said.contains(&format!("{name}: line {line}: ")), "byte {at}: {said}");
        }
        std::fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn a_limit_of_trainings_a_day_outlives_the_site_s_program() {
    let limit = 4;
    let strict =
        client::PLAIN_POLICY.replace("rounds_per_day = \"any\"", &format!("rounds_per_day = {limit}"));
    let deployment = Deployment::new(client::PLAIN_POLICY, &strict);
    let (_server, address) = serve(text(&deployment.path("federation")), "127.0.0.1:0");
    let others = SITES.into_iter().filter(|site| *site != STRICT);
    let _others: Vec<Process> = others.map(|site| deployment.join(site, &address)).collect();
    let strict = deployment.join(STRICT, &address);
    let end = deployment.run(&plan(""), &address, Some(3));
    assert_eq!((&end["state"], Deployment::accepted(&end, STRICT)), (&"finished".into(), limit), "{end}");
    // Killed: what it wrote down before an answer left is on disk.
    strict.kill();
    let state = deployment.path(STRICT).join("state");
    let before = std::fs::read(state.join("ledger.jsonl")).unwrap();
    let _heir = deployment.join(STRICT, &address);
    let end = deployment.run(&plan(""), &address, Some(4));
    assert_eq!((&end["state"], Deployment::accepted(&end, STRICT)), (&"finished".into(), 0), "{end}");
    let events = deployment.audit(STRICT);
    let denied = trainings(&events, "denied");
    assert_eq!(denied.len() as u64, ROUNDS - limit + ROUNDS);
    assert!(denied.iter().all(|event| event["rule"] == "rounds_per_day"), "{denied:?}");
    assert_eq!(trainings(&events, "done").len() as u64, limit);
    let after = std::fs::read(state.join("ledger.jsonl")).unwrap();
    assert!(after.starts_with(&before), "a ledger only grows");
}

#[test]
fn a_site_without_a_policy_does_not_start_and_says_how_to_write_one() {
    let deployment = Deployment::new(client::PLAIN_POLICY, client::PLAIN_POLICY);
    let home = deployment.path(STRICT);
    std::fs::remove_file(home.join("policy.toml")).unwrap();
    let site = std::fs::read_to_string(home.join("site.toml")).unwrap();
    std::fs::write(home.join("site.toml"), site.replace("SERVER", "localhost:9")).unwrap();
    let ended = consortia(&["site", "run", text(&home.join("site.toml"))]);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(2) && said.contains("consortia site policy init"), "{said}");
    std::fs::write(home.join("policy.toml"), "tasks = [\"train\"]\nmodel = \"any\"\n").unwrap();
    let ended = consortia(&["site", "run", text(&home.join("site.toml"))]);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(2) && said.contains("policy.toml: line 2"), "{said}");
}

#[test]
fn a_policy_can_be_tried_on_a_plan_before_any_server_asks() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (strict, plain) =
        (write("strict.toml", &private_policy(50.0)), write("plain.toml", client::PLAIN_POLICY));
    let poor = write("poor.toml", &private_policy(epsilon(1) / 2.0));
    let (private, open) = (write("private-plan.toml", &private_plan()), write("plan.toml", &plan("")));
    let check = |policy: &Path, plan: &Path| {
        let output = consortia(&["--format", "json", "site", "policy", "check", text(policy), text(plan)]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), object)
    };
    assert_eq!(check(&strict, &private).0, 0);
    assert_eq!(check(&plain, &open).1["allowed"], true);
    let (code, told) = check(&poor, &private);
    assert_eq!(
        (code, &told["tasks"][0]["rule"], &told["ledger"]),
        (6, &"budget".into(), &"empty".into()),
        "{told}"
    );
    let (code, told) = check(&strict, &open);
    assert_eq!((code, &told["tasks"][0]["rule"]), (6, &"clients_min".into()), "{told}");
    assert_eq!(told["tasks"][1]["rule"], "tasks", "sites would be asked to evaluate");
}
