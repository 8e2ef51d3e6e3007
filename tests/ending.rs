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

#[test]
fn a_site_whose_disk_is_full_ends_for_its_supervisor_and_takes_part_again_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, site) = (dir.path().join("fed"), dir.path().join("site"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    command(&["server", "issue", "north", "--dir", text(&fed)]);
    let bundle = fed.join("sites/north");
    let server_at = ["--server", &address];
    let of_bundle = ["--bundle", text(&bundle), "--policy", "plain"];
    command(&[&["site", "init", text(&site)][..], &server_at, &of_bundle].concat());
    let rows: String = (0..40).map(|row| format!("{row},{}\n", row % 2)).collect();
    std::fs::write(site.join("data.csv"), format!("a,y\n{rows}")).unwrap();
    let plan = dir.path().join("plan.toml");
    let table = "[data.table]\nlabel = \"y\"\ntarget = { classes = 2 }\nfeatures = [\"a\"]\n";
    let training = "[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.0005 } }\n";
    let rounds = "name = \"long\"\nrounds = 60\nmodel = \"logistic\"\n";
    std::fs::write(&plan, format!("{rounds}{table}{training}")).unwrap();
    submit(text(&plan), text(&fed), &address, None);
    // Files of at most 16 or 32 KiB stand for the disk: a write beyond fails, as one on a full disk does.
    let script = "trap '' XFSZ; ulimit -f 32; exec \"$0\" site run \"$1\"";
    let file = site.join("site.toml");
    let mut full = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_consortia"), text(&file)])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while full.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(90) {
            full.kill().unwrap();
            panic!("a site that cannot keep its books goes on");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = full.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "a supervisor starts it again: {said}");
    assert!(said.contains("books cannot be kept"), "{said}");
    let member = Process::start(&["site", "run", text(&file)]);
    let watched = command(&["run", "watch", "--dir", text(&fed), "--server", &address]);
    assert_eq!(watched["state"], "finished", "{watched}");
    drop(member);
    server.kill();
}

#[test]
fn a_run_that_released_nothing_fails_the_command_that_waits_for_it_with_the_sites_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, site) = (dir.path().join("fed"), dir.path().join("site"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    command(&["server", "issue", "north", "--dir", text(&fed)]);
    let bundle = fed.join("sites/north");
    let server_at = ["--server", &address];
    let of_bundle = ["--bundle", text(&bundle), "--policy", "plain"];
    command(&[&["site", "init", text(&site)][..], &server_at, &of_bundle].concat());
    std::fs::write(site.join("data.csv"), "b,y\n1,0\n").unwrap();
    let member = Process::start(&["site", "run", text(&site.join("site.toml"))]);
    let table = "[data.table]\nlabel = \"y\"\ntarget = { classes = 2 }\nfeatures = [\"a\"]\n";
    let training = "[training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n";
    for (rounds, failures_max) in [(3, 10), (3, 2)] {
        let plan = dir.path().join("plan.toml");
        let cohort = format!("[cohort]\nfailures_max = {failures_max}\n");
        let first = format!("name = \"none\"\nrounds = {rounds}\nmodel = \"logistic\"\n");
        std::fs::write(&plan, format!("{first}{table}{training}{cohort}")).unwrap();
        let dir = ["--dir", text(&fed), "--server", &address];
        let mut arguments = vec!["run", "submit", text(&plan), "--watch"];
        arguments.extend(dir);
        let output = Command::new(env!("CARGO_BIN_EXE_consortia")).args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("north declines: data"), "while it happens: {said}");
        assert!(said.lines().last().unwrap().contains("north declined (data"), "at the end: {said}");
        let listed =
            Command::new(env!("CARGO_BIN_EXE_consortia")).args(["run", "ls"]).args(dir).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("failed") && listed.contains("north declined (data"), "{listed}");
    }
    drop(member);
    server.kill();
}
