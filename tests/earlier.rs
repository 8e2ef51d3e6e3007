//! The folders of an earlier version are opened as they are: what was finished is there, and what was not goes on to the same bits.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and time what they wait for"
)]

#[path = "support/processes.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use consortia::first_model;
use learning::device::Device;
use protocol::Seed;
use serde_json::Value;
use simulations::{Population, Scenario, Simulator};

use processes::{Process, command, serve};

const SITES: [&str; 2] = ["north", "south"];
const SEED: u64 = 7;
const FINISHED: &str = "94f4ed3cda138eb6ccd1d19742d6bacd9d8b798aa85af2df619b60092ac4b152";

/// The folders, with certificates that are good today.
fn unpacked() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/earlier/state.tar.gz");
    let unpacked = Command::new("tar").args(["xzf", packed, "-C"]).arg(dir.path()).status().unwrap();
    assert!(unpacked.success());
    let federation = dir.path().join("fed");
    command(&["server", "renew", text(&federation)]);
    for site in SITES {
        let bundle = federation.join("sites").join(site);
        fs::remove_dir_all(&bundle).unwrap();
        command(&["server", "issue", site, "--dir", text(&federation)]);
        for file in fs::read_dir(&bundle).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.path().join(site).join("identity").join(file.file_name())).unwrap();
        }
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The model of the run that was interrupted, as a simulation of its plan makes it in one go.
fn simulated(dir: &Path) -> String {
    let mut rows = String::from("site,age,dose,outcome\n");
    for site in SITES {
        let records = fs::read_to_string(dir.join(site).join("data.csv")).unwrap();
        rows.extend(records.lines().skip(1).map(|row| format!("{site},{row}\n")));
    }
    let records: PathBuf = dir.join("all.csv");
    fs::write(&records, rows).unwrap();
    let plan = fs::read_to_string(dir.join("unfinished.toml")).unwrap();
    let text = format!(
        "{plan}[simulation]\nseed = {SEED}\npartition = {{ natural = {{ column = \"site\" }} }}\n\
         dataset = {{ files = {{ csv = {{ train = {records:?} }} }} }}\n"
    );
    let scenario = Scenario::parse(&text, Path::new(""), &|_| None).unwrap();
    let population = Population::build(&scenario.simulation, &scenario.plan.spec, Device::Cpu).unwrap();
    let first = first_model(population.models(), &scenario.plan.spec, Seed::from_number(SEED)).unwrap();
    let simulator =
        Simulator::new(scenario.plan, first.shared, SEED, scenario.simulation.availability).unwrap();
    simulator.run(&population, &mut |_| {}).unwrap().model.sha256()
}

#[test]
fn folders_of_the_version_before_go_on_where_they_were_killed() {
    let dir = unpacked();
    let federation = dir.path().join("fed");
    let (server, address) = serve(text(&federation), "127.0.0.1:0");
    let sites = SITES.map(|site| {
        let file = dir.path().join(site).join("site.toml");
        let typed = fs::read_to_string(&file).unwrap();
        fs::write(&file, typed.replace("localhost:24777", &address)).unwrap();
        let process = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
        process.event("connected");
        process
    });
    let at = ["--dir", text(&federation), "--server", &address];
    let runs = command(&[&["run", "ls"][..], &at].concat());
    let runs = runs.as_array().unwrap();
    let named = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap();
    let (finished, unfinished) = (named("finished"), named("unfinished"));
    assert_eq!((&finished["state"], &finished["model_sha256"]), (&"finished".into(), &FINISHED.into()));
    let id = finished["run"].as_str().unwrap();
    command(&[&["run", "pull", id, "--out", text(dir.path())][..], &at].concat());
    assert!(fs::metadata(dir.path().join("model.safetensors")).unwrap().len() > 0);
    let id = unfinished["run"].as_str().unwrap();
    let end: Value = Process::start(&[&["run", "watch", id][..], &at].concat()).last_line();
    assert_eq!((&end["state"], &end["rounds_done"]), (&"finished".into(), &300.into()), "{end}");
    assert_eq!(end["model_sha256"], simulated(dir.path()));
    for client in end["clients"].as_array().unwrap() {
        assert_eq!(client["accepted"], 300, "an update counted twice or not at all: {client}");
    }
    sites.into_iter().for_each(|site| drop(site.kill()));
    drop(server.kill());
    // The logs went on from where they were.
    for folder in [&federation, &dir.path().join("north"), &dir.path().join("south")] {
        command(&["audit", "verify", text(folder)]);
    }
}
