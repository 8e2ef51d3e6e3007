//! The command itself: a server, four sites and an operator, each a process of its own.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::processes::{Process, command, serve, submit};
use crate::{COMPRESSED, PLAIN, ROUNDS, SEED, SITES, Variant, plan, records, simulated};

/// Rounds of a run that is to be killed on the way: far more than pass before its killer is scheduled.
const LONG: u32 = 150;

/// A federation's folder, made by the command.
struct Deployment {
    dir: TempDir,
}

impl Deployment {
    fn new() -> Self {
        let deployment = Self { dir: tempfile::tempdir().unwrap() };
        let folder = deployment.folder();
        command(&["server", "init", &folder, "--listen", "127.0.0.1:0"]);
        for site in SITES {
            command(&["server", "issue", site, "--dir", &folder]);
        }
        std::fs::write(deployment.path("federation.toml"), plan(ROUNDS, PLAIN)).unwrap();
        deployment
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn folder(&self) -> String {
        self.path("federation")
    }

    /// Starts a site that the server at `address` greets.
    fn join(&self, site: &str, address: &str) -> Process {
        let home = self.path(site);
        std::fs::create_dir_all(Path::new(&home).join("state")).unwrap();
        let identity = Path::new(&self.folder()).join("sites").join(site);
        let text = format!(
            "server = \"{address}\"\nidentity = {identity:?}\nstate = \"state\"\ndevice = \"cpu\"\n[data.csv]\n\
             train = {:?}\nsplit_column = \"split\"\nwhere = {{ site = \"{site}\" }}\n",
            records()
        );
        let file = Path::new(&home).join("site.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::write(Path::new(&home).join("policy.toml"), client::PLAIN_POLICY).unwrap();
        let process = Process::start(&["site", "run", file.to_str().unwrap(), "--while-stdin-open"]);
        process.event("connected");
        process
    }

    fn submit(&self, address: &str) -> String {
        submit(&self.path("federation.toml"), &self.folder(), address, Some(SEED))
    }

    /// Follows the run to its end.
    fn end(&self, run: &str, address: &str) -> Value {
        let folder = self.folder();
        Process::start(&["run", "watch", run, "--dir", &folder, "--server", address]).last_line()
    }
}

/// The run's last line tells of a whole run with the simulated model.
fn assert_same(end: &Value, rounds: u32, variant: Variant<'_>) {
    assert_eq!(end["state"], "finished", "{end}");
    assert_eq!(end["rounds_done"], rounds);
    assert_eq!(end["model_sha256"], simulated(1, rounds, variant).model.sha256());
    for client in end["clients"].as_array().unwrap() {
        assert_eq!(client["accepted"], rounds, "an update counted twice or not at all: {client}");
    }
}

#[test]
fn processes_over_quic_make_the_simulated_model_in_whatever_order_they_start() {
    let deployment = Deployment::new();
    let (_server, address) = serve(&deployment.folder(), "127.0.0.1:0");
    // One order with the plan waiting for the sites, one with the sites waiting for the plan.
    let early = deployment.submit(&address);
    let mut sites: Vec<Process> = [2, 0, 3, 1].map(|site| deployment.join(SITES[site], &address)).into();
    assert_same(&deployment.end(&early, &address), ROUNDS, PLAIN);
    sites.drain(..2);
    sites.extend([0, 2].map(|site| deployment.join(SITES[site], &address)));
    let late = deployment.submit(&address);
    assert_same(&deployment.end(&late, &address), ROUNDS, PLAIN);
}

#[test]
fn a_server_killed_twice_on_the_way_makes_the_simulated_model() {
    killed_twice(PLAIN);
}

#[test]
fn with_compressed_updates_and_models_it_does_too() {
    killed_twice(COMPRESSED);
}

fn killed_twice(variant: Variant<'_>) {
    let deployment = Deployment::new();
    std::fs::write(deployment.path("federation.toml"), plan(LONG, variant)).unwrap();
    let (mut server, mut address) = serve(&deployment.folder(), "127.0.0.1:0");
    // The sites live through it all: they find the server again by themselves.
    let sites = SITES.map(|site| deployment.join(site, &address));
    let run = deployment.submit(&address);
    for round in [2, 5] {
        // Rounds are so short that the server may be past this one before it is killed, and past the next when it is back.
        let over = |line: &Value| line["event"] == "round" && line["round"].as_u64() >= Some(round);
        server.next("that the round is over", over);
        let last = server.kill().iter().filter_map(|line| line["round"].as_u64()).max().unwrap_or(round);
        assert!(last < u64::from(LONG), "the run was over before it could be interrupted");
        (server, address) = serve(&deployment.folder(), &address);
    }
    assert_same(&deployment.end(&run, &address), LONG, variant);
    for site in sites {
        let told = |line: &&Value| {
            let says = |text: &str| text.contains("has restarted");
            line["event"] == "waiting" && line["message"].as_str().is_some_and(says)
        };
        let told = site.kill().iter().filter(told).count();
        assert_eq!(told, 2, "a site was not told at once that the server it knew is gone");
    }
}
