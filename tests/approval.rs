//! What an operator decides of a site by the commands alone, and what the site's people read of it.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "approval/authority.rs"]
mod authority;
#[path = "support/processes.rs"]
mod processes;

use std::path::Path;
use std::process::Command;

use processes::{Process, command, serve, submit};
use serde_json::Value;

const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/heart_disease.csv");

/// A federation and its server.
struct Federation {
    dir: tempfile::TempDir,
    fed: String,
    server: Process,
    address: String,
}

impl Federation {
    /// With these lines in its `server.toml`.
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fed = dir.path().join("fed").to_str().unwrap().to_owned();
        command(&["server", "init", &fed, "--listen", "127.0.0.1:0"]);
        let file = Path::new(&fed).join("server.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}\n{settings}")).unwrap();
        let (server, address) = serve(&fed, "127.0.0.1:0");
        Self { dir, fed, server, address }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [words, &["--dir", &self.fed, "--server", &self.address]].concat()
    }

    /// What an operator's command prints.
    fn operator(&self, words: &[&str]) -> Value {
        command(&self.words(words))
    }

    fn invite(&self, site: &str) -> String {
        let made = self.operator(&["invite", "create", site, "--address", &self.address]);
        made[0]["invite"].as_str().unwrap().to_owned()
    }

    fn state(&self, site: &str) -> String {
        let sites = self.operator(&["site", "ls"]);
        let line = sites.as_array().unwrap().iter().find(|line| line["site"] == site).unwrap();
        line["state"].as_str().unwrap().to_owned()
    }

    /// What the server's audit log says of an event, in order.
    fn audit(&self, event: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(Path::new(&self.fed).join("state/audit.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["record"].take());
        records.filter(|record| record["event"] == event).collect()
    }

    /// Lets a site of the heart-disease records join and run.
    fn site(&self, site: &str) -> Process {
        let joined = command(&[
            "site",
            "join",
            &self.invite(site),
            "--dir",
            &self.path(site),
            "--data",
            RECORDS,
            "--policy",
            "plain",
        ]);
        let file = joined["file"].as_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let ours = format!("where = {{ site = \"{site}\" }}");
        let text = text.replace("# where = { hospital = \"ours\" }", &ours);
        std::fs::write(file, text.replace("# split_column", "split_column")).unwrap();
        let health = self.path(&format!("{site}.json"));
        let running = Process::start(&["site", "run", file, "--health", &health, "--while-stdin-open"]);
        running.event("connected");
        running
    }

    fn health(&self, site: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("{site}.json"))).unwrap()).unwrap()
    }
}

#[test]
fn a_site_in_quarantine_reads_why_and_takes_part_again_once_it_is_released() {
    let federation = Federation::new("");
    let sites = ["cleveland", "hungarian", "va"].map(|site| federation.site(site));
    let plan = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heart.toml")).unwrap();
    let plan = plan.replace("clients_min = 4", "clients_min = 3").replace("quorum = 4", "quorum = 2");
    let file = federation.path("plan.toml");
    std::fs::write(&file, plan.replace("rounds = 20", "rounds = 100000")).unwrap();
    let run = submit(&file, &federation.fed, &federation.address, None);
    federation.server.next("a round", |line| line["event"] == "round" && line["round"].as_u64() > Some(1));

    federation.operator(&["site", "quarantine", "va", "--reason", "its updates look odd"]);
    let told = sites[2].event("quarantined");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains("quarantine (its updates look odd)") && message.contains("no task"),
        "{message}"
    );
    assert_eq!(federation.state("va"), "quarantined");
    let health = federation.health("va");
    assert_eq!(
        (&health["state"], &health["quarantined"]),
        (&"quarantined".into(), &"its updates look odd".into())
    );
    // Two of three go on with nothing: the plan wants three.
    let waits = || federation.operator(&["run", "ls"])[0]["message"].as_str().unwrap().to_owned();
    let began = std::time::Instant::now();
    while waits() != "2 of 3 clients are connected" {
        assert!(began.elapsed().as_secs() < 60, "{}", waits());
    }
    let reserved =
        std::fs::read_to_string(Path::new(&federation.path("va")).join("state/ledger.jsonl")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let later =
        std::fs::read_to_string(Path::new(&federation.path("va")).join("state/ledger.jsonl")).unwrap();
    assert_eq!(reserved, later, "a quarantine costs a site nothing");

    federation.operator(&["site", "release", "va"]);
    sites[2].event("released");
    sites[2].event("accepted");
    assert_eq!(federation.state("va"), "member");
    federation.operator(&["run", "stop", &run, "--now"]);
    let held = &federation.audit("quarantined")[0];
    let said = ["client", "reason", "by"].map(|field| held[field].as_str().unwrap());
    assert_eq!(said, ["va", "its updates look odd", "operator"]);
    assert_eq!(federation.audit("quarantine_ended").len(), 1);
}

/// What a command that fails says, and its exit code.
fn refused(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_consortia")).args(words).output().unwrap();
    assert!(!output.status.success(), "{words:?} did not fail");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn who_joins_waits_for_the_operator_over_restarts_of_both_sides_and_nobody_else_can_use_the_invite() {
    let federation = Federation::new("[enrolment]\napproval = true\n");
    let (line, folder) = (federation.invite("north"), federation.path("north"));
    let join = ["site", "join", &line, "--dir", &folder];
    let waiting = Process::start(&join);
    let phrase = waiting.event("waiting")["phrase"].as_str().unwrap().to_owned();
    assert_eq!(federation.state("north"), "waiting");
    assert_eq!(federation.operator(&["site", "ls"])[0]["waiting"][0]["phrase"], phrase.as_str());
    let (code, said) = refused(&["site", "join", &line, "--dir", &federation.path("thief")]);
    assert!(code == Some(3) && said.contains("has been used already"), "{said}");
    assert!(!Path::new(&folder).join("identity/cert.pem").exists());

    // Whoever asks with the phrase of another key is not let in by mistake, and nothing is approved unseen.
    let (_, said) =
        refused(&federation.words(&["site", "approve", "north", "--phrase", "bababa bababa bababa"]));
    assert!(said.contains("another phrase"), "{said}");
    let (code, said) = refused(&federation.words(&["site", "approve", "north"]));
    assert!(code == Some(2) && said.contains("--phrase"), "{said}");
    let (_, said) = refused(&federation.words(&["site", "approve", "south", "--yes"]));
    assert!(said.contains("nobody waits"), "{said}");

    // The server is killed and comes back at its address; then the site's command is ended and given again.
    let Federation { dir, fed, server, address } = federation;
    server.kill();
    let (server, address) = serve(&fed, &address);
    let federation = Federation { dir, fed, server, address };
    waiting.kill();
    let again = Process::start(&join);
    assert_eq!(again.event("waiting")["phrase"], phrase.as_str());
    let typed = phrase.to_uppercase();
    federation.operator(&["site", "approve", "north", "--phrase", &typed]);
    assert_eq!(again.last_line()["site"], "north");
    assert!(Path::new(&folder).join("identity/cert.pem").exists());
    assert_eq!(federation.state("north"), "member");

    let line = federation.invite("south");
    let south = Process::start(&["site", "join", &line, "--dir", &federation.path("south")]);
    south.event("waiting");
    federation.operator(&["site", "refuse", "south"]);
    assert!(south.rest().is_empty());
    assert!(south.errors.lock().unwrap().contains("has refused this request"));
    assert_eq!(federation.state("south"), "invite expired");
    let (_, said) = refused(&["site", "join", &line, "--dir", &federation.path("thief")]);
    assert!(said.contains("does not know this invite"), "{said}");
    assert_eq!(federation.audit("approval_asked").len(), 2);
    let given = &federation.audit("approval_given")[0];
    assert_eq!((&given["client"], &given["by"]), (&"north".into(), &"operator".into()));
    assert_eq!(federation.audit("approval_refused")[0]["client"], "south");
    assert_eq!(federation.audit("enrolled").len(), 1);
}
