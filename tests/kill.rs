//! The server's process is killed, again and again and at any instant, and the run ends as if nothing had happened.
//!
//! SIGKILL shows what a crash of the process leaves behind; what a loss of power leaves is the disk's word for fsync,
//! which no test can give.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/chance.rs"]
mod chance;
#[path = "support/deployed.rs"]
mod deployed;
#[path = "support/member.rs"]
mod member;
#[path = "support/processes.rs"]
mod processes;
#[path = "support/trio.rs"]
mod trio;

use std::path::Path;
use std::time::{Duration, Instant};

use chance::draw;
use deployed::{federation, members};
use processes::{Process, serve, submit};
use serde_json::Value;

/// Times that the server is killed.
const KILLS: u64 = 20;
/// Enough rounds, with enough work in each, that the run outlives all of them.
const ROUNDS: u32 = 300;
/// The longest time from the first task of a life to its end: some rounds.
const LIFE_MS: u64 = 60;
const SEED: u64 = 5;

fn plan() -> String {
    format!(
        "name = \"kill\"\nrounds = {ROUNDS}\nmodel = \"logistic\"\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nepochs = 8\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
         [strategy.fedadam]\nlearning_rate = 0.02\n\
         [cohort]\nclients_min = 3\n\
         [evaluation]\nevery = 3\n"
    )
}

/// The rounds that these lines say are over.
fn rounds(lines: &[Value]) -> impl Iterator<Item = u64> {
    lines.iter().filter(|line| line["event"] == "round").map(|line| line["round"].as_u64().unwrap())
}

/// One life: the server works until `life` after its first task. Returns its address and the last round it stored.
async fn live(folder: &Path, listen: &str, life: Duration) -> (String, Option<u64>) {
    let (server, address) = serve(folder.to_str().unwrap(), listen);
    let members = members(folder, &address).await;
    server.event("opened");
    let died = Instant::now() + life;
    while let Some(left) = died.checked_duration_since(Instant::now()) {
        tokio::time::sleep(left).await;
    }
    let last = rounds(&server.kill()).last();
    drop(members);
    (address, last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_at_any_instant_ends_with_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("federation");
    let shown = folder.to_str().unwrap();
    federation(&folder);
    let file = dir.path().join("federation.toml");
    std::fs::write(&file, plan()).unwrap();
    let (server, mut address) = serve(shown, "127.0.0.1:0");
    let run = submit(file.to_str().unwrap(), shown, &address, Some(SEED));
    server.kill();

    let mut stored = 0;
    for kill in 0..KILLS {
        let life = Duration::from_millis(draw(SEED + kill, LIFE_MS));
        let (listened, last) = live(&folder, &address, life).await;
        address = listened;
        let last = last.unwrap_or(stored);
        println!("life {kill}: {life:?}, stored until round {last}");
        assert!(last >= stored, "round {last} was stored after round {stored}");
        stored = last;
        assert!(stored < u64::from(ROUNDS), "the run ended before kill {kill}; give it more rounds");
    }
    assert!(stored > 0, "no life was long enough for a round");

    let (server, address) = serve(shown, &address);
    let members = members(&folder, &address).await;
    let end = Process::start(&["run", "watch", &run, "--dir", shown, "--server", &address]).last_line();
    assert_eq!((&end["state"], &end["rounds_done"]), (&"finished".into(), &ROUNDS.into()), "{end}");
    assert_eq!(end["model_sha256"], trio::simulated_model(&plan(), SEED));
    let history = end["history"].as_array().unwrap();
    let numbers: Vec<u64> = history.iter().map(|round| round["round"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=u64::from(ROUNDS)).collect::<Vec<_>>());
    for client in end["clients"].as_array().unwrap() {
        assert_eq!(client["accepted"], ROUNDS, "an update counted twice or not at all: {client}");
    }
    for member in members {
        member.leave().await;
    }
    server.kill();
}
