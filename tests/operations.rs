//! What an operator does with a server that works, by the commands alone: runs are paused, stopped, read and fetched from, and the
//! server is copied while it works and brought back elsewhere.
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
use std::process::{Command, Output};
use std::time::Duration;

use member::Member;
use processes::{Process, command, serve, submit};
use serde_json::Value;

const SEED: u64 = 11;

fn plan(rounds: u32, more: &str) -> String {
    format!(
        "name = \"ops\"\nrounds = {rounds}\nmodel = \"logistic\"\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
         [cohort]\nclients_min = 3\n{more}"
    )
}

/// A federation's folder with the bundles of the three sites.
fn federation(dir: &Path) -> String {
    let folder = dir.join("fed");
    deployed::federation(&folder);
    folder.to_str().unwrap().to_owned()
}

async fn members(bundles: &str, address: &str) -> Vec<Member> {
    deployed::members(Path::new(bundles), address).await
}

fn write_plan(dir: &Path, text: &str) -> String {
    let file = dir.join("plan.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A command that may fail.
fn attempt(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_paused_resumed_stopped_read_and_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let (server, address) = serve(&fed, "127.0.0.1:0");
    let sites = members(&fed, &address).await;
    let plan = write_plan(dir.path(), &plan(100_000, ""));
    let run = submit(&plan, &fed, &address, Some(SEED));
    server.next("a round", |line| line["event"] == "round" && line["round"].as_u64() > Some(2));

    let at = ["--dir", &fed, "--server", &address];
    let operator = |words: &[&str]| command(&[words, &at].concat());
    assert_eq!(operator(&["run", "pause", &run])["state"], "paused");
    let done = || operator(&["run", "ls"])[0]["rounds_done"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let paused_at = done();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(done(), paused_at, "a paused run stands still");
    assert_eq!(operator(&["run", "resume", &run])["state"], "running");
    server.next("a later round", |line| line["round"].as_u64() > Some(paused_at + 2));
    operator(&["run", "stop", &run, "--now"]);
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "stopped");
    let (refused, said) = attempt(&[&["run", "resume", &run][..], &at].concat());
    assert!(refused.status.code() == Some(1) && said.contains("is over: stopped"), "{said}");

    let models = operator(&["run", "models"]);
    let best = models.as_array().unwrap().iter().find(|line| line["best"] == true).unwrap();
    let out = dir.path().join("out").to_str().unwrap().to_owned();
    let fetched = operator(&["run", "pull", &run, "--model", "best", "--out", &out]);
    assert_eq!(fetched["line"], *best);
    let file = format!("{out}/model.safetensors");
    let statement = format!("{out}/privacy_statement.json");
    let verified = command(&["model", "verify", &file, "--statement", &statement, "--plan", &plan]);
    assert_eq!(verified["model_sha256"], best["sha256"], "{verified}");

    let page = dir.path().join("report.html");
    operator(&["run", "report", &run, "--out", page.to_str().unwrap()]);
    let page = std::fs::read_to_string(page).unwrap();
    for said in [run.as_str(), "stopped", "north", "<svg"] {
        assert!(page.contains(said), "{said} is not in the report");
    }

    let log = Command::new(env!("CARGO_BIN_EXE_consortia"))
        .args([&["run", "log", &run][..], &at].concat())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    for what in ["control=pause", "control=resume", "control=stop_now", "by=operator", "state=stopped"] {
        assert!(log.contains(what), "{what}: {log}");
    }
    for site in sites {
        site.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_copied_while_it_worked_goes_on_elsewhere_and_ends_with_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let (server, address) = serve(&fed, "127.0.0.1:0");
    let sites = members(&fed, &address).await;
    let text = plan(60, "[strategy.fedadam]\nlearning_rate = 0.02\n");
    let file = write_plan(dir.path(), &text);
    submit(&file, &fed, &address, Some(SEED));
    server.next("round 5", |line| line["event"] == "round" && line["round"] == 5);
    let backup = dir.path().join("backup").to_str().unwrap().to_owned();
    command(&["server", "backup", "--dir", &fed, "--to", &backup]);
    server.kill();
    drop(sites);
    std::fs::write(Path::new(&fed).join("authority/ca-key.pem"), "gone").unwrap();
    assert!(!Path::new(&backup).join("authority/ca-key.pem").exists(), "the root's key is never copied");

    // A backup that was touched is not brought back.
    let restored = dir.path().join("restored").to_str().unwrap().to_owned();
    let toml = Path::new(&backup).join("server.toml");
    let kept = std::fs::read(&toml).unwrap();
    std::fs::write(&toml, "listen = \"0.0.0.0:1\"\n").unwrap();
    let (refused, said) = attempt(&["server", "restore", &backup, "--to", &restored]);
    assert!(refused.status.code() == Some(2) && said.contains("server.toml has changed"), "{said}");
    std::fs::write(&toml, kept).unwrap();
    command(&["server", "restore", &backup, "--to", &restored, "--lost-releases", "0"]);

    let (server, address) = serve(&restored, "127.0.0.1:0");
    let _sites = members(&fed, &address).await;
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "finished");
    let listed = command(&["run", "ls", "--dir", &restored, "--server", &address]);
    assert_eq!(listed[0]["model_sha256"].as_str().unwrap(), trio::simulated_model(&text, SEED));
    command(&["audit", "verify", &restored]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_budget_is_charged_for_what_it_may_have_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let (server, address) = serve(&fed, "127.0.0.1:0");
    let _sites = members(&fed, &address).await;
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (early, fresh) = (path("early"), path("fresh"));
    command(&["server", "backup", "--dir", &fed, "--to", &early]);
    let privacy = "[update]\nnorm_max = 1.0\n[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 9\n\
         noise_multiplier = 40\ndenominator = 3\nsampling = { availability = { participations_max = 100 } }\n";
    let private = write_plan(dir.path(), &plan(2, privacy));
    submit(&private, &fed, &address, None);
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "finished");
    let (backup, restored) = (path("backup"), path("restored"));
    command(&["server", "backup", "--dir", &fed, "--to", &backup]);
    let (refused, said) = attempt(&["server", "restore", &backup, "--to", &restored]);
    assert!(refused.status.code() == Some(6) && said.contains("--lost-releases"), "{said}");
    let told = command(&["server", "restore", &backup, "--to", &restored, "--lost-releases", "5"]);
    assert_eq!(told["charged"][0]["charged"], 5);
    let releases = |folder: &str| -> Value {
        command(&["budget", "show", folder])["populations"][0]["releases"].clone()
    };
    assert_eq!((releases(&fed), releases(&restored)), (2.into(), 7.into()));
    let shown = |folder: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_consortia")).args(["budget", "show", folder]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(
        shown(&restored).contains("after-backup (lost since the backup, as it was told)"),
        "{}",
        shown(&restored)
    );
    assert!(!shown(&fed).contains("after-backup") && shown(&fed).contains("run "), "{}", shown(&fed));
    assert!(shown(&early).contains("consortia budget show SITE"), "{}", shown(&early));

    // A backup from before the population's first run asks as well, and its budget does not begin anew.
    let (refused, said) = attempt(&["server", "restore", &early, "--to", &fresh]);
    assert!(refused.status.code() == Some(6) && said.contains("--lost-releases"), "{said}");
    let told = command(&["server", "restore", &early, "--to", &fresh, "--lost-releases", "100000"]);
    assert_eq!(told["owed_by_new_populations"], 100_000, "{told}");
    let (server, address) = serve(&fresh, "127.0.0.1:0");
    let _sites = members(&fed, &address).await;
    submit(&private, &fresh, &address, None);
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "budget_exhausted");
    assert_eq!(releases(&fresh), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_model_or_noise_is_missing_or_damaged_fails_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let privacy = "[update]\nnorm_max = 1.0\n[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 1000\n\
         noise_multiplier = 2000\ndenominator = 3\nnoise = \"tree\"\nsampling = { availability = { participations_max = 3000 } }\n";
    let files = |folder: &str| -> Vec<std::path::PathBuf> {
        let listed = std::fs::read_dir(Path::new(&fed).join("state").join(folder));
        listed.into_iter().flatten().map(|file| file.unwrap().path()).collect()
    };
    let damage = |path: &Path, number: usize| match number {
        0 => std::fs::remove_file(path).unwrap(),
        _ => {
            let mut bytes = std::fs::read(path).unwrap();
            // One that the kill left empty is damaged as it is.
            bytes.iter_mut().last().into_iter().for_each(|last| *last ^= 1);
            std::fs::write(path, bytes).unwrap();
        }
    };
    let mut models_before = files("blobs");
    for (privacy, folder, what) in [("", "blobs", ".safetensors"), (privacy, "secrets", "the kept noise")] {
        for number in 0..2 {
            let (server, address) = serve(&fed, "127.0.0.1:0");
            let sites = members(&fed, &address).await;
            let plan = write_plan(dir.path(), &plan(3000, privacy));
            let run = submit(&plan, &fed, &address, None);
            server.next("a round", |line| line["event"] == "round" && line["round"].as_u64() > Some(2));
            server.kill();
            drop(sites);
            let hit = files(folder).into_iter().filter(|file| !models_before.contains(file));
            hit.for_each(|file| damage(&file, number));

            let (server, address) = serve(&fed, "127.0.0.1:0");
            let at = ["--dir", &fed, "--server", &address];
            let (watched, said) = attempt(&[&["run", "watch", &run], &at[..]].concat());
            assert!(watched.status.code() == Some(1) && said.contains("run models"), "{said}");
            let runs = command(&[&["run", "ls"], &at[..]].concat());
            let said = runs.as_array().unwrap().iter().find(|one| one["run"] == run.as_str()).unwrap();
            assert!(said["state"] == "failed" && said["message"].as_str().unwrap().contains(what), "{said}");
            let _sites = members(&fed, &address).await;
            let other = submit(&write_plan(dir.path(), &self::plan(2, "")), &fed, &address, None);
            let ended =
                server.next("the end", |line| line["event"] == "ended" && line["run"] == other.as_str());
            assert_eq!(ended["state"], "finished");
            server.kill();
            models_before = files("blobs");
        }
    }
    // The books are told apart from the files that they name: those are lost, and stay named.
    let (verified, said) = attempt(&["audit", "verify", &fed]);
    assert!(
        verified.status.code() == Some(1) && said.contains("missing or damaged that the database"),
        "{said}"
    );
}

/// A federation whose server has made and stored a run of two rounds, and ended.
async fn after_a_run(dir: &Path) -> String {
    let fed = federation(dir);
    let (server, address) = serve(&fed, "127.0.0.1:0");
    let sites = members(&fed, &address).await;
    submit(&write_plan(dir, &plan(2, "")), &fed, &address, None);
    server.next("the end", |line| line["event"] == "ended" && line["state"] == "finished");
    for site in sites {
        site.leave().await;
    }
    server.kill();
    fed
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_all(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_works_in_a_backup_and_what_looks_into_it_leaves_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let fed = after_a_run(dir.path()).await;
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (bak, out) = (path("bak"), path("out"));
    command(&["server", "backup", "--dir", &fed, "--to", &bak]);
    let root = Path::new(&fed).join("authority/ca-key.pem").to_str().unwrap().to_owned();
    let plan = path("plan.toml");
    for words in [
        &["server", "run", &bak, "--listen", "127.0.0.1:0"][..],
        &["server", "backup", "--dir", &bak, "--to", &out],
        &["server", "migrate", &bak, "--to", "postgres://nobody@localhost/nothing"],
        &["server", "issue", "east", "--dir", &bak, "--root-key", &root],
        &["server", "renew", &bak, "--root-key", &root],
        &["server", "crl", "--dir", &bak],
        &["server", "dashboard", &bak],
        &["invite", "create", "east", "--dir", &bak],
        &["run", "submit", &plan, "--dir", &bak, "--server", "127.0.0.1:1"],
    ] {
        let (refused, said) = attempt(words);
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {said}");
        assert!(
            said.contains(&format!("server restore {bak} --to NEW --lost-releases N")),
            "{words:?}: {said}"
        );
    }
    command(&["audit", "verify", &bak]);
    command(&["budget", "show", &bak]);
    command(&["check", Path::new(&bak).join("server.toml").to_str().unwrap()]);

    // Without its list, or its state alone in a folder that a server had: the rows say what they are.
    let bare = path("bare");
    copy_all(Path::new(&bak), Path::new(&bare));
    std::fs::remove_file(Path::new(&bare).join("SHA256SUMS")).unwrap();
    let swapped = path("swapped");
    copy_all(Path::new(&fed), Path::new(&swapped));
    std::fs::remove_dir_all(Path::new(&swapped).join("state")).unwrap();
    copy_all(&Path::new(&bak).join("state"), &Path::new(&swapped).join("state"));
    for folder in [&bare, &swapped] {
        let (refused, said) = attempt(&["server", "run", folder, "--listen", "127.0.0.1:0"]);
        assert!(refused.status.code() == Some(2) && said.contains("this state is a backup"), "{said}");
    }
    command(&["server", "restore", &bak, "--to", &out, "--lost-releases", "0"]);
    let (server, _) = serve(&out, "127.0.0.1:0");
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_restored_into_another_one_starts_no_server_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let fed = after_a_run(dir.path()).await;
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (new, third) = (path("new"), path("third"));
    let log = Path::new(&fed).join("state/audit.jsonl");
    let kept = std::fs::read(&log).unwrap();
    // Once from a folder that does not start, and then, put right, it must not start beside the new one.
    std::fs::remove_file(&log).unwrap();
    let (refused, said) = attempt(&["server", "run", &fed, "--listen", "127.0.0.1:0"]);
    assert!(refused.status.code() == Some(2) && said.contains("the file is not there"), "{said}");
    command(&["server", "restore", &fed, "--to", &new, "--lost-releases", "0"]);
    std::fs::write(&log, kept).unwrap();
    for words in [
        &["server", "run", &fed, "--listen", "127.0.0.1:0"][..],
        &["server", "restore", &fed, "--to", &third, "--lost-releases", "0"],
    ] {
        let (refused, said) = attempt(words);
        assert!(refused.status.code() == Some(2) && said.contains(&new), "{words:?}: {said}");
    }
    assert!(!Path::new(&third).exists());
    let (server, _) = serve(&new, "127.0.0.1:0");
    server.kill();
    // Nothing went on there: it was thrown away, and the folder is restored again.
    std::fs::remove_dir_all(&new).unwrap();
    command(&["server", "restore", &fed, "--to", &third, "--lost-releases", "0"]);
    let (server, _) = serve(&third, "127.0.0.1:0");
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_lost_or_changed_is_named_by_audit_verify_and_by_backup() {
    let dir = tempfile::tempdir().unwrap();
    let fed = after_a_run(dir.path()).await;
    let agreed = Process::start(&["audit", "verify", &fed]).rest();
    assert_eq!(agreed[0]["released"], 2, "{agreed:?}");
    let files = std::fs::read_dir(Path::new(&fed).join("state/blobs")).unwrap();
    let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "each model, the first one included, has a file");
    for (number, file) in files.iter().enumerate() {
        let (kept, name) = (std::fs::read(file).unwrap(), file.file_name().unwrap().to_str().unwrap());
        let mut flipped = kept.clone();
        flipped[kept.len() / 2] ^= 1;
        for damage in 0..2 {
            match damage {
                0 => std::fs::remove_file(file).unwrap(),
                _ => std::fs::write(file, &flipped).unwrap(),
            }
            let (verified, said) = attempt(&["audit", "verify", &fed]);
            assert!(verified.status.code() == Some(1) && said.contains(name), "{said}");
            let to = dir.path().join(format!("bak-{number}-{damage}"));
            let (copied, said) = attempt(&["server", "backup", "--dir", &fed, "--to", to.to_str().unwrap()]);
            assert!(copied.status.code() == Some(1) && said.contains(name) && !to.exists(), "{said}");
        }
        std::fs::write(file, kept).unwrap();
    }
    command(&["audit", "verify", &fed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_stopped_before_its_first_round_says_so_wherever_it_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let (_server, address) = serve(&fed, "127.0.0.1:0");
    let run = submit(&write_plan(dir.path(), &plan(3, "")), &fed, &address, None);
    let at = ["--dir", &fed, "--server", &address];
    let stopped = command(&[&["run", "stop", &run][..], &at].concat());
    assert_eq!(stopped["message"], "stopped by the operator before anything was released");
    let (watched, said) = attempt(&[&["run", "watch", &run][..], &at].concat());
    assert!(
        watched.status.code() == Some(1) && said.contains("before any round released anything"),
        "{said}"
    );
    let page = dir.path().join("report.html");
    command(&[&["run", "report", &run, "--out", page.to_str().unwrap()][..], &at].concat());
    let page = std::fs::read_to_string(page).unwrap();
    for said in ["No round released anything", "data-state=\"stopped\"", &run, "[cohort]"] {
        assert!(page.contains(said), "{said} is not in the report");
    }
    assert!(!page.contains("<h2>Curves</h2>"), "there is nothing to draw");
    let out = dir.path().join("out");
    let (_, said) = attempt(&[&["run", "pull", &run, "--out", out.to_str().unwrap()][..], &at].concat());
    assert!(said.contains("began with") && !said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_s_log_has_the_time_and_the_run_in_each_line_and_one_line_a_round() {
    use std::io::{BufRead, BufReader, Read};
    let dir = tempfile::tempdir().unwrap();
    let fed = federation(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_consortia"))
        .args(["server", "run", &fed, "--listen", "127.0.0.1:0", "--while-stdin-open"])
        .env_remove("RUST_LOG")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let listening = lines.next().unwrap();
    let address =
        listening.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let sites = members(&fed, &address).await;
    let run = submit(&write_plan(dir.path(), &plan(3, "")), &fed, &address, Some(SEED));
    let mut told = Vec::new();
    for line in lines.by_ref().filter(|line| line.contains("  run ")) {
        told.push(line);
        if told.last().is_some_and(|line| line.contains("  ended ")) {
            break;
        }
    }
    for line in &told {
        let (time, rest) = line.split_once("  ").unwrap();
        assert!(
            time.len() == 20 && time.ends_with('Z') && rest.starts_with(&format!("run {run}  ")),
            "{line}"
        );
    }
    for round in 1..=3 {
        let of_it = told.iter().filter(|line| line.contains(&format!("  round {round}  "))).count();
        assert_eq!(of_it, 1, "{told:#?}");
    }
    assert!(!told.iter().any(|line| line.contains("  accepted ") || line.contains("  opened ")), "{told:#?}");
    drop(child.stdin.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(
        !said.contains("round 1") && !said.contains('\u{1b}'),
        "what is on stdout is not logged again: {said}"
    );
    child.wait().unwrap();
    for site in sites {
        site.leave().await;
    }
}
