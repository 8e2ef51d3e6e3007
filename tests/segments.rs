//! Audit logs in many files, by the commands alone: a server and a site that close a file every 4 KiB, what a backup holds of it, and
//! what is said of files that were moved away, exchanged, cut or changed.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real processes"
)]

#[path = "support/processes.rs"]
mod processes;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use privacy::chain::segments::{closed_path, files_of};
use processes::{Process, command, serve, submit};
use tempfile::TempDir;

const PLAN: &str = "name = \"small\"\nrounds = 12\nmodel = \"logistic\"\n\
    [data.table]\nlabel = \"label\"\ntarget = { classes = 2 }\nfeatures = [\"age\", \"chol\"]\nstandardise = \"site\"\n\
    [training]\nbatch_size = 16\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 1\nquorum = 1\ndeadline_seconds = 60\n";
const ROWS: &str = "age,chol,label\n51,200,0\n62,310,1\n47,190,0\n70,280,1\n";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exit code, stdout and stderr of a command.
fn attempt(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_consortia"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), told(&output.stdout), told(&output.stderr))
}

/// A server and a site after a run, each with a log of several files.
fn long() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (fed, site) = (dir.path().join("fed"), dir.path().join("site"));
    command(&["server", "init", text(&fed), "--listen", "127.0.0.1:0"]);
    command(&["server", "issue", "north", "--dir", text(&fed)]);
    let config = fed.join("server.toml");
    let written = std::fs::read_to_string(&config).unwrap();
    let set = |bytes: &str| format!("{written}\n[limits]\naudit_segment_bytes_max = {bytes}\n");
    for wrong in ["0", "4095", "-1", "2_000_000_000", "\"64 MiB\""] {
        std::fs::write(&config, set(wrong)).unwrap();
        let (code, _, said) = attempt(&["check", text(&config)]);
        assert!(code == 2 && said.contains("server.toml") && said.contains("line"), "{wrong}: {said}");
    }
    std::fs::write(&config, set("4096")).unwrap();
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let bundle = fed.join("sites/north");
    let init =
        ["site", "init", text(&site), "--server", &address, "--bundle", text(&bundle), "--policy", "plain"];
    command(&init);
    let file = site.join("site.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{written}\n[limits]\naudit_segment_bytes_max = 4096\n")).unwrap();
    std::fs::write(site.join("data.csv"), ROWS).unwrap();
    let plan = dir.path().join("plan.toml");
    std::fs::write(&plan, PLAN).unwrap();
    let running = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
    submit(text(&plan), text(&fed), &address, None);
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "finished");
    let (_, log, said) =
        attempt(&["run", "log", "--dir", text(&fed), "--server", &address, "--format", "json"]);
    assert!(log.lines().next().is_some_and(|first| first.contains("submitted")), "{log}{said}");
    assert_eq!(
        log.matches("\"released\"").count(),
        24,
        "a release, and the end of its round, from all files: {log}"
    );
    running.kill();
    server.kill();
    for log in [log_of(&fed), log_of(&site)] {
        assert!(files_of(&log).unwrap().len() > 3, "{}", log.display());
    }
    (dir, fed, site)
}

fn log_of(home: &Path) -> PathBuf {
    home.join("state/audit.jsonl")
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// What `audit verify` says after `change` was made to the files of a log, which are put back.
fn after(home: &Path, change: impl FnOnce(&[PathBuf])) -> (i32, String) {
    let files = files_of(&log_of(home)).unwrap();
    let kept: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    change(&files);
    let (code, _, said) = attempt(&["audit", "verify", text(home)]);
    for file in files_of(&log_of(home)).unwrap() {
        std::fs::remove_file(file).unwrap();
    }
    for (file, text) in files.iter().zip(kept) {
        std::fs::write(file, text).unwrap();
    }
    (code, said)
}

fn swap(one: &Path, other: &Path) {
    let beside = one.with_extension("swapped");
    std::fs::rename(one, &beside).unwrap();
    std::fs::rename(other, one).unwrap();
    std::fs::rename(beside, other).unwrap();
}

/// Whatever is done to one of these files is said with its name.
fn tampered(home: &Path) {
    let log = log_of(home);
    let last = files_of(&log).unwrap().len() as u64 - 1;
    for number in [1, 2, last] {
        let closed = closed_path(&log, number);
        let name = name_of(&closed).to_owned();
        let (code, said) = after(home, |_| std::fs::remove_file(&closed).unwrap());
        assert!(
            code == 7 && said.contains("not verified in full: records ") && said.contains(&name),
            "{said}"
        );
        let (code, said) = after(home, |_| {
            let text = std::fs::read_to_string(&closed).unwrap();
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            std::fs::write(&closed, lines[..lines.len() - 1].concat()).unwrap();
        });
        let cut = format!("{name}, line ");
        assert!(code == 1 && said.contains(&cut) && said.contains("ends before record"), "{said}");
        let (code, said) = after(home, |_| {
            let text = std::fs::read_to_string(&closed).unwrap();
            std::fs::write(&closed, text.replacen("\"event\"", "\"evenT\"", 1)).unwrap();
        });
        assert!(code == 1 && said.contains(&format!("{name}: line 1")), "{said}");
        let other = closed_path(&log, if number == 1 { 3 } else { 1 });
        let (code, said) = after(home, |_| swap(&closed, &other));
        assert!(code == 1 && said.contains("exchanged or renamed") && said.contains(&name), "{said}");
    }
    let (code, said) = after(home, |_| {
        std::fs::copy(closed_path(&log, 2), log.with_file_name("audit.0000002.jsonl")).unwrap();
    });
    assert!(code == 1 && said.contains("are both segment 2 of one log"), "{said}");
    let (code, said) = after(home, |_| std::fs::remove_file(&log).unwrap());
    assert!(code == 1 && said.contains("audit.jsonl"), "{said}");
    let (code, said) = after(home, |_| swap(&log, &closed_path(&log, 2)));
    assert!(code == 1 && said.contains("audit.jsonl is segment 2 itself"), "{said}");
}

#[test]
fn logs_in_many_files_are_verified_backed_up_and_missed_by_name() {
    let (dir, fed, site) = long();
    let (code, told, said) = attempt(&["audit", "verify", text(&fed), text(&site)]);
    assert!(code == 0 && told.matches(" records in order in ").count() == 2, "{told}{said}");
    for home in [&fed, &site] {
        tampered(home);
        assert_eq!(attempt(&["audit", "verify", text(home)]).0, 0, "nothing is left of it");
    }
    // A file of the site's log in the place of the server's.
    let (code, said) = after(&fed, |_| {
        std::fs::copy(closed_path(&log_of(&site), 2), closed_path(&log_of(&fed), 2)).unwrap();
    });
    assert!(code == 1 && said.contains("audit.000002.jsonl, line 1: it does not go on from"), "{said}");

    // A copy of it all, in which nothing is missing, goes on as the server did.
    let (backup, restored) = (dir.path().join("backup"), dir.path().join("restored"));
    command(&["server", "backup", "--dir", text(&fed), "--to", text(&backup)]);
    for file in files_of(&log_of(&fed)).unwrap() {
        let copy = backup.join("state").join(name_of(&file));
        assert!(std::fs::read(&file).unwrap() == std::fs::read(copy).unwrap(), "{}", file.display());
    }
    command(&["server", "restore", text(&backup), "--to", text(&restored), "--lost-releases", "0"]);
    let (server, _) = serve(text(&restored), "127.0.0.1:0");
    server.kill();
    assert_eq!(attempt(&["audit", "verify", text(&restored)]).0, 0);

    // Old files are moved away: a start does not miss them, `audit verify` does unless it is told where they are.
    let archive = dir.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    for home in [&restored, &site] {
        let folder = archive.join(name_of(home));
        std::fs::create_dir(&folder).unwrap();
        for number in 1..3 {
            let closed = closed_path(&log_of(home), number);
            std::fs::rename(&closed, folder.join(name_of(&closed))).unwrap();
        }
        let (code, _, said) = attempt(&["audit", "verify", text(home)]);
        let named = "(audit.000001.jsonl to audit.000002.jsonl) are not here";
        assert!(code == 7 && said.contains("records 0 to ") && said.contains(named), "{said}");
        let (code, told, said) = attempt(&["audit", "verify", text(home), "--archive", text(&folder)]);
        assert!(code == 0 && told.contains(" records in order in "), "{told}{said}");
        let closed = folder.join("audit.000002.jsonl");
        let (code, told, _) = attempt(&["audit", "verify", text(&closed)]);
        assert!(code == 0 && told.contains("segment 2 alone: records "), "{told}");
    }
    let both = ["audit", "verify", text(&restored), text(&site), "--archive", text(&archive)];
    let (code, _, said) = attempt(&both);
    assert!(code == 2 && said.contains("name one of the two alone"), "{said}");
    let (server, address) = serve(text(&restored), "127.0.0.1:0");
    let file = site.join("site.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let old = written.lines().find(|line| line.starts_with("server = ")).unwrap();
    std::fs::write(&file, written.replace(old, &format!("server = \"{address}\""))).unwrap();
    let running = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
    running.next("the connection", |line| line["event"] == "connected");
    running.kill();
    server.kill();
    let (code, told, said) = attempt(&["site", "audit", text(&file), "--event", "done"]);
    assert!(code == 0 && said.contains("are not here and not shown"), "{said}");
    let moved = archive.join("site");
    let all = ["site", "audit", text(&file), "--event", "done", "--archive", text(&moved)];
    let (code, whole, said) = attempt(&all);
    assert!(code == 0 && !said.contains("not shown") && whole.len() > told.len(), "{said}");
    assert_eq!(whole.lines().count(), 24, "twelve trainings, each with its evaluation: {whole}");
}
