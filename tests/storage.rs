//! Two servers that share a database and an object storage, and no folder: the one that leads is killed, and the other one goes on with
//! models that it never had on its disk.
//!
//! Without PostgreSQL on the machine these tests say that they skip. With the feature `s3`, `CONSORTIA_S3` names a bucket
//! (`s3://NAME`) that one of them may write into, by the credentials in the environment.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may panic, and measure time")]

#[path = "support/deployed.rs"]
mod deployed;
#[path = "support/member.rs"]
mod member;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/processes.rs"]
mod processes;
#[path = "support/trio.rs"]
mod trio;

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use member::PATIENCE;
use processes::{Process, command, serve, submit};

const PLAN: &str = "name = \"moving\"\nrounds = 40\nmodel = \"logistic\"\n\
    [data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
    [training]\nepochs = 4\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [update]\nnorm_max = 1.0\n[cohort]\nclients_min = 3\nquorum = 3\n";
const SEED: u64 = 11;

/// The lease's life in seconds, which `CONSORTIA_LEASE` changes for a measurement.
fn lease() -> u64 {
    std::env::var("CONSORTIA_LEASE").map_or(1, |seconds| seconds.parse().unwrap())
}

fn start(folder: &str, address: &str, replica: &str) -> Process {
    let run = ["server", "run", folder, "--listen", address, "--replica", replica, "--while-stdin-open"];
    Process::start(&run)
}

/// Two folders with one federation, whose rows are in `database` and whose models are in `storage`.
fn folders(dir: &Path, database: &str, storage: &str) -> [String; 2] {
    let names = ["one", "two"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    let [one, two] = &names;
    deployed::federation(Path::new(one));
    let config = Path::new(one).join("server.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let state = format!("[state]\ndatabase = \"{database}\"\nlease_seconds = {}\n", lease());
    let text = format!("{text}\n{state}\n[models]\nstore = \"{storage}\"\nkeep_last = 15\n");
    std::fs::write(&config, text).unwrap();
    assert!(Command::new("cp").args(["-r", one, two]).status().unwrap().success());
    names
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

async fn a_run_outlives_the_machine_of_its_server(dir: &Path, storage: &str) {
    let Some(database) = postgres::Postgres::shared() else { return };
    let url = database.database();
    let [one, two] = folders(dir, &url, storage);
    let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let [first, second] = sockets.each_ref().map(|socket| socket.local_addr().unwrap().to_string());
    drop(sockets);
    let plan = dir.join("federation.toml");
    std::fs::write(&plan, PLAN).unwrap();

    let leads = start(&one, &first, "one");
    leads.event("listening");
    let stands_by = start(&two, &second, "two");
    let run = submit(plan.to_str().unwrap(), &one, &first, Some(SEED));
    let addresses = format!("{first},{second}");
    let sites = deployed::members(Path::new(&one), &addresses).await;
    for _ in 0..5 {
        leads.event("round");
    }
    let killed = Instant::now();
    leads.kill();
    std::fs::remove_dir_all(Path::new(&one).join("state")).unwrap();
    stands_by.event("leading");
    let led = killed.elapsed();
    stands_by.event("round");
    let round = killed.elapsed();
    println!(
        "lease {} s: the other server leads {led:.1?} after the kill, its first round is over after {round:.1?}",
        lease()
    );
    assert!(round < PATIENCE, "{round:?}");
    assert_eq!(database.query(&url, "SELECT holder, epoch FROM leases"), "two|2");
    let end = Process::start(&["run", "watch", &run, "--dir", &two, "--server", &second]).last_line();
    assert_eq!(end["model_sha256"], trio::simulated_model(PLAN, SEED), "{end}");
    assert!(!Path::new(&two).join("state/blobs").exists());
    for site in sites {
        site.leave().await;
    }

    // Every model that is kept can be had here, whoever made it, and a backup has them all.
    let models = command(&["run", "models", &run, "--dir", &two, "--server", &second]);
    let kept = models.as_array().unwrap().iter().filter(|model| model["kept"] == true).count();
    assert!((15..=16).contains(&kept), "{models}");
    let out = dir.join("pulled").to_str().unwrap().to_owned();
    let pulled = ["run", "pull", &run, "--model", "30", "--out", &out, "--dir", &two, "--server", &second];
    command(&pulled);
    drop(stands_by);
    let (backup, restored) = (dir.join("backup"), dir.join("restored"));
    let (backup, restored) = (backup.to_str().unwrap(), restored.to_str().unwrap());
    command(&["server", "backup", "--dir", &two, "--to", backup]);
    assert_eq!(files_below(&Path::new(backup).join("state/blobs")), kept);
    command(&["server", "restore", backup, "--to", restored, "--lost-releases", "0"]);
    // A server of the restored state alone, on its own disk.
    let config = Path::new(restored).join("server.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.split("[state]").next().unwrap()).unwrap();
    let (_server, address) = serve(restored, "127.0.0.1:0");
    let again = dir.join("again").to_str().unwrap().to_owned();
    command(&[
        "run", "pull", &run, "--model", "30", "--out", &again, "--dir", restored, "--server", &address,
    ]);
    let bytes = |folder: &str| std::fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert_eq!(bytes(&out), bytes(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_with_models_in_a_folder_that_is_not_its_state_s() {
    let dir = tempfile::tempdir().unwrap();
    let storage = format!("file://{}/shelf", dir.path().display());
    a_run_outlives_the_machine_of_its_server(dir.path(), &storage).await;
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_with_models_in_a_bucket() {
    let Ok(bucket) = std::env::var("CONSORTIA_S3") else {
        eprintln!("CONSORTIA_S3 names no bucket: skipped");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let storage =
        format!("{bucket}/{}", dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
    a_run_outlives_the_machine_of_its_server(dir.path(), &storage).await;
}
