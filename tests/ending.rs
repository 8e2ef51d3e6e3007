//! A signal ends a server or a site within seconds, whatever holds its threads.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and time what they wait for"
)]

#[path = "support/processes.rs"]
mod processes;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use processes::{Process, command, serve, submit};

/// The five seconds for ending in order, and some for a machine that does other things too.
const BOUND: Duration = Duration::from_secs(15);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sends a signal and waits for the end; how long it took, and the exit code.
fn signalled(process: &mut Process, signals: &[&str]) -> (Duration, Option<i32>) {
    let (began, id) = (Instant::now(), process.child.id().to_string());
    for signal in signals {
        assert!(Command::new("kill").args([*signal, &id]).status().unwrap().success());
        // Two signals at the same instant are one.
        std::thread::sleep(Duration::from_millis(300));
    }
    loop {
        if let Some(status) = process.child.try_wait().unwrap() {
            return (began.elapsed(), status.code());
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A plan as large as plans may be, whose noise has to be found.
const LARGE: &str = "name = \"large\"\nrounds = 1000000\nmodel = \"linear\"\n[data.tensor]\nshape = [6]\ntarget = \"real\"\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [privacy.central]\ndelta = 1e-6\nepsilon_max = 8.0\nepsilon = 4.0\ndenominator = 10.0\nsampling = { poisson = { rate = 0.001 } }\n";

#[test]
fn a_server_ends_within_seconds_of_a_signal_whatever_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, plan) = (dir.path().join("fed"), dir.path().join("plan.toml"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    std::fs::write(&plan, LARGE).unwrap();
    for signals in [&["-TERM"][..], &["-INT"], &["-TERM", "-TERM"]] {
        let (mut server, address) = serve(text(&fed), "127.0.0.1:0");
        let arguments = ["run", "submit", text(&plan), "--dir", text(&fed), "--server", &address];
        let busy: Vec<Process> = (0..4).map(|_| Process::start(&arguments)).collect();
        std::thread::sleep(Duration::from_secs(1));
        let (took, code) = signalled(&mut server, signals);
        println!("{signals:?} ended it in {took:?} with {code:?}");
        assert!(took < BOUND && code.is_some(), "{signals:?}: {took:?}, {code:?}");
        busy.into_iter().for_each(|one| drop(one.kill()));
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_holds_no_server() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;
    let dir = tempfile::tempdir().unwrap();
    let fed = dir.path().join("fed");
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    for signals in [&["-TERM"][..], &["-TERM", "-TERM"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        command.args(["server", "run", text(&fed), "--listen", "127.0.0.1:0", "--format", "json"]);
        command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        // Somebody calls again and again, and the pipe of the log is soon full: its other end is kept and never read.
        let address = first["address"].as_str().unwrap().to_owned();
        for _ in 0..200 {
            let mut caller = std::net::TcpStream::connect(&address).unwrap();
            std::io::Write::write_all(&mut caller, b"no TLS at all, and nothing else either").unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(500));
        let id = server.id().to_string();
        let began = Instant::now();
        for signal in signals {
            assert!(Command::new("kill").args([*signal, &id]).status().unwrap().success());
            std::thread::sleep(Duration::from_millis(300));
        }
        while server.try_wait().unwrap().is_none() {
            if began.elapsed() > BOUND {
                let _ = server.kill();
                panic!("{signals:?}: it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{signals:?} ended it in {:?}", began.elapsed());
    }
}

#[test]
fn a_site_that_is_held_by_its_disk_ends_within_seconds_of_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, site) = (dir.path().join("fed"), dir.path().join("site"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    command(&["server", "issue", "north", "--dir", text(&fed)]);
    let bundle = fed.join("sites/north");
    command(&[
        "site",
        "init",
        text(&site),
        "--server",
        &address,
        "--bundle",
        text(&bundle),
        "--policy",
        "plain",
    ]);
    // Opening it waits for a writer, which never comes: a disk that does not answer.
    let records = site.join("data.csv");
    assert!(Command::new("mkfifo").arg(&records).status().unwrap().success());
    let plan = dir.path().join("plan.toml");
    let table = "[data.table]\nlabel = \"y\"\ntarget = { classes = 2 }\nfeatures = [\"a\"]\n";
    let training = "[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n";
    std::fs::write(&plan, format!("name = \"held\"\nrounds = 1\nmodel = \"logistic\"\n{table}{training}"))
        .unwrap();
    submit(text(&plan), text(&fed), &address, None);
    for signals in [&["-TERM"][..], &["-INT", "-INT"]] {
        let file = site.join("site.toml");
        let mut member = Process::start(&["site", "run", text(&file)]);
        member.event("started");
        std::thread::sleep(Duration::from_millis(500));
        let (took, code) = signalled(&mut member, signals);
        println!("{signals:?} ended it in {took:?} with {code:?}");
        assert!(took < BOUND && code.is_some(), "{signals:?}: {took:?}, {code:?}");
        assert!(
            signals.len() == 1 || took < Duration::from_secs(4),
            "a second signal waits for nothing: {took:?}"
        );
    }
    server.kill();
}
