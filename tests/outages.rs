//! What passes ends no server and no site: a lock that another program holds, a terminal that is closed, a clock that is wrong.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/deployed.rs"]
mod deployed;
#[path = "support/member.rs"]
mod member;
#[path = "support/processes.rs"]
mod processes;
#[path = "support/trio.rs"]
mod trio;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use processes::{PATIENCE, Process, command, serve, submit};
use server::net::Authority;
use sqlx::any::install_default_drivers;
use sqlx::{AnyConnection, Connection as _};

const SEED: u64 = 11;
const PLAN: &str = "name = \"outage\"\nrounds = 40\nmodel = \"logistic\"\n\
    [data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 3\n";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").args([name, &process.child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Waits until the log of a process has these words.
fn logged(process: &Process, words: &str) {
    let began = Instant::now();
    while !process.errors.lock().unwrap().contains(words) {
        assert!(began.elapsed() < PATIENCE, "no `{words}` in {}", process.errors.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How a process ended that was told to.
fn code(mut process: Process) -> Option<i32> {
    signal(&process, "-TERM");
    // Not `wait`, which closes stdin and so tells it a second time.
    loop {
        if let Some(ended) = process.child.try_wait().unwrap() {
            return ended.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Another program that holds the database of a server locked.
async fn lock(fed: &Path) -> AnyConnection {
    install_default_drivers();
    let file = fed.join("state/state.sqlite");
    let mut other = AnyConnection::connect(&format!("sqlite:{}", text(&file))).await.unwrap();
    sqlx::raw_sql("PRAGMA busy_timeout = 60000; BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    other
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_database_is_waited_out_and_the_run_ends_with_the_model_of_one_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, plan) = (dir.path().join("fed"), dir.path().join("plan.toml"));
    deployed::federation(&fed);
    std::fs::write(&plan, PLAN).unwrap();
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let sites = deployed::members(&fed, &address).await;
    let run = submit(text(&plan), text(&fed), &address, Some(SEED));
    server.event("round");
    let other = lock(&fed).await;
    logged(&server, "the state cannot be written or read, and every run waits");
    sqlx::Connection::close(other).await.unwrap();
    logged(&server, "the state can be used again");
    let watch = ["run", "watch", &run, "--dir", text(&fed), "--server", &address];
    let end = Process::start(&watch).last_line();
    assert_eq!(end["model_sha256"], trio::simulated_model(PLAN, SEED), "{end}");
    let told = server.errors.lock().unwrap().matches("every run waits").count();
    assert_eq!(told, 1, "{}", server.errors.lock().unwrap());

    // Whoever looks later is not shown all that was.
    let again = Process::start(&watch);
    let later = Arc::clone(&again.errors);
    again.last_line();
    let later = later.lock().unwrap().clone();
    assert!(later.contains("40 of 40 rounds are done; those up to 35 are not shown"), "{later}");
    assert_eq!(later.lines().filter(|line| line.starts_with("round ")).count(), 5, "{later}");

    // A server that is told to stop waits for nobody.
    let other = lock(&fed).await;
    let submitted = ["run", "submit", text(&plan), "--dir", text(&fed), "--server", &address];
    drop(Process::start(&submitted));
    assert_eq!(code(server), Some(0));

    // A start meanwhile is tried again by a supervisor: 2 would say that a file is wrong.
    let start = ["server", "run", text(&fed), "--listen", "127.0.0.1:0"];
    let start =
        Command::new(env!("CARGO_BIN_EXE_consortia")).args(start).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(
        start.status.code() == Some(1) && said.contains("another program holds this database locked"),
        "{said}"
    );
    drop(other);
    for site in sites {
        site.leave().await;
    }
}

/// A command that was begun, once it has ended: its exit code, and what it said on stderr.
fn ended(mut process: Process) -> (Option<i32>, String) {
    let errors = Arc::clone(&process.errors);
    let began = Instant::now();
    let code = loop {
        if let Some(ended) = process.child.try_wait().unwrap() {
            break ended.code();
        }
        assert!(began.elapsed() < PATIENCE, "it does not end: {}", errors.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    };
    // Nothing is written any more once stdout has ended, too.
    process.rest();
    std::thread::sleep(Duration::from_millis(100));
    let said = errors.lock().unwrap().clone();
    (code, said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_under_a_lock_is_told_to_wait_and_does_not_happen_once_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, plan) = (dir.path().join("fed"), dir.path().join("plan.toml"));
    deployed::federation(&fed);
    std::fs::write(&plan, PLAN.replace("rounds = 40", "rounds = 100000")).unwrap();
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let sites = deployed::members(&fed, &address).await;
    let run = submit(text(&plan), text(&fed), &address, Some(SEED));
    server.event("round");
    let at = ["--dir", text(&fed), "--server", &address];
    let begin = |words: &[&str]| Process::start(&[words, &at].concat());
    let other = lock(&fed).await;
    logged(&server, "every run waits");

    // One who does not want to wait.
    let submitting = begin(&["run", "submit", text(&plan)]);
    logged(&submitting, "the server has not answered yet: it may be waiting for its database");
    signal(&submitting, "-INT");
    let (code, said) = ended(submitting);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("interrupted before the server answered") && said.contains("consortia run ls"),
        "{said}"
    );
    // Those who do are told what the server waits for, and that nothing was done.
    let asking = [
        begin(&["run", "submit", text(&plan)]),
        begin(&["run", "stop", &run]),
        begin(&["invite", "create", "east", "--address", "localhost:1"]),
        begin(&["site", "revoke", "north"]),
    ];
    for (place, process) in asking.into_iter().enumerate() {
        let (code, said) = ended(process);
        assert!(code == Some(1) && said.contains("holds it locked"), "{place}: {said}");
        if place < 2 {
            assert!(
                said.contains("nothing was done, and nothing of it will be done later"),
                "{place}: {said}"
            );
        }
    }

    sqlx::Connection::close(other).await.unwrap();
    logged(&server, "the state can be used again");
    for _ in 0..3 {
        server.event("round");
    }
    let runs = command(&[&["run", "ls"][..], &at].concat());
    assert_eq!((runs.as_array().unwrap().len(), &runs[0]["state"]), (1, &"running".into()), "{runs}");
    let stopped = command(&[&["run", "stop", &run, "--now"][..], &at].concat());
    assert_eq!(stopped["run"], run, "{stopped}");
    for site in sites {
        site.leave().await;
    }
}

#[test]
fn a_port_that_another_program_has_is_no_wrong_file() {
    let dir = tempfile::tempdir().unwrap();
    let fed = dir.path().join("fed");
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start = ["server", "run", text(&fed), "--listen", &address];
    let start =
        Command::new(env!("CARGO_BIN_EXE_consortia")).args(start).stdin(Stdio::null()).output().unwrap();
    assert_eq!(start.status.code(), Some(1), "{}", String::from_utf8_lossy(&start.stderr));
}

#[test]
fn a_terminal_that_is_closed_ends_no_server_and_no_site() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, north) = (dir.path().join("fed"), dir.path().join("north"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    command(&["server", "issue", "north", "--dir", text(&fed)]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let bundle = fed.join("sites/north");
    let init = ["site", "init", text(&north), "--server", &address, "--bundle", text(&bundle)];
    command(&[&init[..], &["--policy", "plain"]].concat());
    std::fs::write(north.join("data.csv"), "x,y\n1,0\n2,1\n").unwrap();
    let site = Process::start(&["site", "run", text(&north.join("site.toml")), "--while-stdin-open", "-v"]);
    site.event("connected");
    for process in [&server, &site] {
        signal(process, "-HUP");
    }
    logged(&site, "SIGHUP is ignored");
    // Both still do what they are there for.
    let here = command(&["site", "ls", "--dir", text(&fed), "--server", &address]).to_string();
    assert!(here.contains("north"), "{here}");
    assert_eq!((code(site), code(server)), (Some(0), Some(0)));
}

#[test]
fn a_server_says_at_its_start_that_its_clock_is_before_its_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let fed = dir.path().join("fed");
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    for name in ["authority", "identity"] {
        std::fs::remove_dir_all(fed.join(name)).unwrap();
    }
    let later = SystemTime::now() + Duration::from_secs(400 * 86_400);
    let authority = Authority::create(&fed.join("authority"), later).unwrap();
    authority.issue_server(&[], later).unwrap().write_identity(&fed.join("identity")).unwrap();
    let (server, _) = serve(text(&fed), "127.0.0.1:0");
    logged(&server, "this machine's clock says");
    logged(&server, "Set the clock and start the server again");
    server.kill();
}
