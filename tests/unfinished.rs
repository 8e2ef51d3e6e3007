//! Commands that make a folder are killed at any instant: it is there whole and charged, or not at all, and the same command makes it.
//!
//! A few kills of each command; `CONSORTIA_THOROUGH=1` makes two hundred.
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
#[expect(dead_code, reason = "nobody says goodbye here")]
mod member;
#[path = "support/postgres.rs"]
#[expect(dead_code, reason = "what is in the database is read by the command")]
mod postgres;
#[path = "support/processes.rs"]
mod processes;
#[path = "support/trio.rs"]
#[expect(dead_code, reason = "no simulation is compared with")]
mod trio;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use chance::draw;
use member::Member;
use privacy::accounting::{Mechanism, Relation};
use privacy::ledger::{Charge, Composition, Ledger, Release, Terms, Unit};
use processes::{Process, command, serve, submit};
use server::LedgerReservation;
use server::net::Store;

const LOST: u64 = 5;

fn kills() -> u64 {
    if std::env::var("CONSORTIA_THOROUGH").is_ok_and(|set| set == "1") { 200 } else { 5 }
}

fn consortia(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(arguments).args(["--format", "json"]).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn attempt(arguments: &[&str]) -> (Output, String) {
    let output = consortia(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// Starts a command and kills it after `life`. Whether it was still at work.
fn kill(arguments: &[&str], life: Duration) -> bool {
    let mut child = consortia(arguments).spawn().unwrap();
    std::thread::sleep(life);
    let was_at_work = child.try_wait().unwrap().is_none();
    // It may have ended already.
    let _ = child.kill();
    child.wait().unwrap();
    was_at_work
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A federation's folder with a budget of which one release was spent.
async fn federation(dir: &Path) -> PathBuf {
    let folder = dir.join("fed");
    command(&["server", "init", text(&folder), "--listen", "127.0.0.1:0"]);
    let store = Store::open(&folder.join("state")).await.unwrap();
    let (unit, relation) = (Unit::Client, Relation::ZeroOut);
    let terms = Terms { population: "wards".into(), unit, relation, delta: 1e-5, epsilon_max: 9.0 };
    let (mut ledger, first) = Ledger::found(terms).unwrap();
    let mechanism = Mechanism::Gaussian { noise_multiplier: 20.0 };
    let charge = Charge { mechanism, composition: Composition::Each { at_most: None } };
    let (permit, reserved) = ledger.reserve("of an older release", 1, &charge, 1).unwrap();
    let (_, spent) = ledger.spend(permit, Release::default()).unwrap();
    store
        .append_to_ledger(&LedgerReservation {
            population: "wards".into(),
            links: vec![first, reserved, spent],
        })
        .await
        .unwrap();
    store.close().await;
    folder
}

fn releases(folder: &Path) -> u64 {
    command(&["budget", "show", text(folder)])["populations"][0]["releases"].as_u64().unwrap()
}

/// Kills a command that makes `made` again and again; `examine` looks at what has got the name, and `unfinished` at what has not.
fn kill_again_and_again(arguments: &[&str], made: &Path, examine: impl Fn(), unfinished: impl Fn(&Path)) {
    let began = Instant::now();
    command(arguments);
    let whole = began.elapsed();
    examine();
    std::fs::remove_dir_all(made).unwrap();
    let (mut killed, mut half) = (0, 0);
    for number in 0..kills() {
        let life = whole.mul_f64(draw(number, 1000) as f64 / 900.0);
        killed += u64::from(kill(arguments, life));
        let part = made.with_file_name(format!("{}.part", made.file_name().unwrap().to_str().unwrap()));
        if made.exists() {
            examine();
        } else {
            if part.exists() {
                half += 1;
                unfinished(&part);
            }
            command(arguments);
            examine();
        }
        assert!(!part.exists(), "{} is left behind", part.display());
        std::fs::remove_dir_all(made).unwrap();
    }
    println!("{}: {killed} of {} were killed at work, {half} left half a folder", arguments[1], kills());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_at_any_instant_leaves_no_folder_that_a_server_starts_in_uncharged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = federation(dir.path()).await;
    let (backup, restored) = (dir.path().join("backup"), dir.path().join("restored"));
    command(&["server", "backup", "--dir", text(&folder), "--to", text(&backup)]);
    let lost = LOST.to_string();
    let restore = ["server", "restore", text(&backup), "--to", text(&restored), "--lost-releases", &lost];
    let charged = || assert_eq!(releases(&restored), 1 + LOST, "a folder with its name is not charged");
    kill_again_and_again(&restore, &restored, charged, |part| {
        if part.join("server.toml").exists() {
            let (refused, said) = attempt(&["server", "run", text(part), "--listen", "127.0.0.1:0"]);
            assert!(refused.status.code() == Some(2) && said.contains("not finished"), "{said}");
            assert!(said.contains("again"), "{said}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_an_init_and_a_bundle_that_are_killed_are_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = federation(dir.path()).await;
    let (backup, fresh) = (dir.path().join("backup"), dir.path().join("fresh"));
    let whole = || {
        let listed = std::fs::read_to_string(backup.join("SHA256SUMS")).unwrap();
        assert!(listed.contains("state/state.sqlite") && listed.contains("identity/key.pem"), "{listed}");
    };
    kill_again_and_again(
        &["server", "backup", "--dir", text(&folder), "--to", text(&backup)],
        &backup,
        whole,
        |part| {
            let other = dir.path().join("other");
            let (refused, said) = attempt(&["server", "restore", text(part), "--to", text(&other)]);
            assert!(refused.status.code() == Some(2) && !other.exists(), "{said}");
        },
    );
    let whole = || {
        for name in
            ["authority/issuer-key.pem", "identity/key.pem", "operator/admin.token", "server.toml", "state"]
        {
            assert!(fresh.join(name).exists(), "{name} is missing");
        }
    };
    kill_again_and_again(&["server", "init", text(&fresh), "--listen", "127.0.0.1:0"], &fresh, whole, |_| {});
    let bundle = folder.join("sites/north");
    let whole = || assert!(["ca.pem", "cert.pem", "key.pem"].iter().all(|name| bundle.join(name).exists()));
    kill_again_and_again(&["server", "issue", "north", "--dir", text(&folder)], &bundle, whole, |_| {});
}

/// A server of a new federation, its address, and three sites.
async fn with_three_sites(folder: &Path) -> (Process, String, Vec<Member>) {
    deployed::federation(folder);
    let (server, address) = serve(text(folder), "127.0.0.1:0");
    let members = deployed::members(folder, &address).await;
    (server, address, members)
}

/// Where a file is that a command makes, and whether what is there is whole.
type Made<'a> = (Vec<&'a str>, &'a Path, Box<dyn Fn() + 'a>);

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_leaves_is_whole_and_has_its_own_statement_beside_it_whenever_the_command_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, plan) = (dir.path().join("fed"), dir.path().join("plan.toml"));
    let (server, address, members) = with_three_sites(&folder).await;
    let toml = "name = \"short\"\nrounds = 3\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
                [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n[cohort]\nclients_min = 3\n";
    std::fs::write(&plan, toml).unwrap();
    let run = submit(text(&plan), text(&folder), &address, Some(7));
    command(&["run", "watch", &run, "--dir", text(&folder), "--server", &address]);
    let (out, graph, page) =
        (dir.path().join("out"), dir.path().join("model.onnx"), dir.path().join("report.html"));
    let model = out.join("model.safetensors");
    let statement = out.join("privacy_statement.json");
    let paired = || {
        if model.exists() {
            command(&["model", "verify", text(&model), "--statement", text(&statement)]);
        }
    };
    let pull = |number| {
        let at = ["--dir", text(&folder), "--server", &address, "--model", number, "--out", text(&out)];
        [&["run", "pull", &run][..], &at].concat()
    };
    let export = |number| {
        vec!["server", "export", &run, "--dir", text(&folder), "--model", number, "--out", text(&out)]
    };
    command(&pull("last"));
    let kept = dir.path().join("kept.safetensors");
    std::fs::copy(&model, &kept).unwrap();
    let onnx = vec!["model", "export", text(&kept), "--plan", text(&plan), "--to", text(&graph)];
    let report =
        vec!["run", "report", &run, "--dir", text(&folder), "--server", &address, "--out", text(&page)];
    command(&onnx);
    command(&report);
    let whole = (std::fs::read(&graph).unwrap(), std::fs::read_to_string(&page).unwrap());
    let same_graph = || assert!(!graph.exists() || std::fs::read(&graph).unwrap() == whole.0);
    let ends = || {
        let ends = |text: String| text.trim_end().ends_with("</html>");
        assert!(!page.exists() || ends(std::fs::read_to_string(&page).unwrap()));
    };
    assert!(whole.1.trim_end().ends_with("</html>"), "{}", whole.1);
    let commands: Vec<Made<'_>> = vec![
        (pull("1"), &out, Box::new(paired)),
        (export("2"), &out, Box::new(paired)),
        (pull("3"), &out, Box::new(paired)),
        (export("1"), &out, Box::new(paired)),
        (onnx, &graph, Box::new(same_graph)),
        (report, &page, Box::new(ends)),
    ];
    let mut killed = 0;
    for (number, (arguments, made, examine)) in (0..kills()).zip(commands.iter().cycle()) {
        if made.is_file() {
            std::fs::remove_file(made).unwrap();
        }
        let began = Instant::now();
        command(arguments);
        examine();
        if made.is_file() {
            std::fs::remove_file(made).unwrap();
        }
        let life = began.elapsed().mul_f64(draw(number, 1000) as f64 / 900.0);
        killed += u64::from(kill(arguments, life));
        examine();
    }
    println!("models that leave: {killed} of {} were killed at work", kills());
    drop(members);
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_into_a_database_that_is_killed_at_any_instant_is_given_again_and_forgets_no_release() {
    let Some(database) = postgres::Postgres::shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = federation(dir.path()).await;
    let fresh = |number: u64| {
        let copy = dir.path().join(format!("fed{number}"));
        let copied = Command::new("cp").arg("-a").arg(&folder).arg(&copy).status().unwrap();
        assert!(copied.success());
        copy
    };
    let (began, first) = (Instant::now(), fresh(0));
    command(&["server", "migrate", text(&first), "--to", &database.database()]);
    let whole = began.elapsed();
    let (mut killed, mut unfinished) = (0, 0);
    // One that is killed in the middle leaves a lease of ten seconds.
    let kills = if kills() > 5 { kills() } else { 2 };
    for number in 1..=kills {
        let (folder, url) = (fresh(number), database.database());
        let migrate = ["server", "migrate", text(&folder), "--to", &url];
        killed += u64::from(kill(&migrate, whole.mul_f64(draw(number, 1000) as f64 / 900.0)));
        if folder.join("state/state.sqlite").exists() {
            unfinished += 1;
            command(&migrate);
        }
        // Both never work: the old one is gone by name, and the new one knows what was spent.
        let (refused, said) = attempt(&["server", "run", text(&folder), "--listen", "127.0.0.1:0"]);
        assert!(refused.status.code() == Some(2) && said.contains("[state] database"), "{said}");
        let config = folder.join("server.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{text}\n[state]\ndatabase = \"{url}\"\n")).unwrap();
        assert_eq!(releases(&folder), 1, "killed move {number}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    println!("migrate: {killed} of {kills} were killed at work, {unfinished} were given again");
}

/// A database of SQLite with one table, `notes`, as that library writes it with pages of 512 bytes.
fn foreign_database() -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"SQLite format 3\0\x02\0\x01\x01\0\x40\x20\x20\0\0\0\x01\0\0\0\x02");
    put(40, &[0, 0, 0, 1, 0, 0, 0, 4]);
    put(56, &[0, 0, 0, 1]);
    put(92, &[0, 0, 0, 1, 0, 0x2e, 0x63, 0x01, 0x0d, 0, 0, 0, 1, 1, 0xd0, 0, 1, 0xd0]);
    put(464, b"\x2e\x01\x06\x17\x17\x17\x01\x3dtablenotesnotes\x02CREATE TABLE notes(word)\x0d\0\0\0\0\x02");
    file
}

#[test]
fn a_server_whose_state_is_gone_does_not_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("fed");
    command(&["server", "init", text(&folder), "--listen", "127.0.0.1:0"]);
    let (server, _) = serve(text(&folder), "127.0.0.1:0");
    server.kill();
    let run = ["server", "run", text(&folder), "--listen", "127.0.0.1:0"];
    let state = folder.join("state");
    let away = dir.path().join("away");
    std::fs::rename(&state, &away).unwrap();
    let (refused, said) = attempt(&run);
    assert!(refused.status.code() == Some(2) && said.contains("its database is empty or gone"), "{said}");
    assert!(said.contains("restore the newest backup") && !state.join("state.sqlite").exists(), "{said}");
    // A file without content is no database.
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("state.sqlite"), "").unwrap();
    let (refused, said) = attempt(&run);
    assert!(refused.status.code() == Some(2) && said.contains("its database is empty or gone"), "{said}");
    // Nor is another program's.
    std::fs::write(state.join("state.sqlite"), foreign_database()).unwrap();
    let (refused, said) = attempt(&run);
    assert!(refused.status.code() == Some(2) && said.contains("no database of a server"), "{said}");
    assert_eq!(std::fs::read(state.join("state.sqlite")).unwrap(), foreign_database(), "it is not touched");
    std::fs::remove_file(state.join("state.sqlite")).unwrap();
    // Beside its audit log it is missed without the file, too.
    std::fs::remove_file(folder.join("begun")).unwrap();
    std::fs::create_dir_all(&state).unwrap();
    std::fs::copy(away.join("audit.jsonl"), state.join("audit.jsonl")).unwrap();
    let (refused, said) = attempt(&run);
    assert!(refused.status.code() == Some(2) && said.contains("its database is empty or gone"), "{said}");
    let (refused, said) = attempt(&["audit", "verify", text(&folder)]);
    assert!(refused.status.code() == Some(1), "{said}");
    // With its state it goes on.
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&away, &state).unwrap();
    let (server, _) = serve(text(&folder), "127.0.0.1:0");
    server.kill();
    command(&["audit", "verify", text(&folder)]);
}

/// Over a start of the server anew, and from its first line on.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_follows_a_run_goes_on_when_its_server_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, plan) = (dir.path().join("fed"), dir.path().join("plan.toml"));
    let (server, address, members) = with_three_sites(&folder).await;
    let toml = "name = \"long\"\nrounds = 300\nmodel = \"logistic\"\n[data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
                [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n[cohort]\nclients_min = 3\n";
    std::fs::write(&plan, toml).unwrap();
    let at = ["--dir", text(&folder), "--server", &address];
    let follow = Process::start(&[&["run", "submit", text(&plan), "--watch"][..], &at].concat());
    let first = follow.next("how the run stands", |line| line["rounds_done"].is_u64());
    follow.next("that rounds are over", |line| line["rounds_done"].as_u64() >= Some(3));
    assert!(!first["message"].as_str().unwrap().contains("0 of 3 clients are connected"), "{first}");
    server.kill();
    let (server, _) = serve(text(&folder), &address);
    let last = follow.last_line();
    assert_eq!((&last["state"], &last["rounds_done"]), (&"finished".into(), &300.into()), "{last}");
    drop(members);
    server.kill();
}
