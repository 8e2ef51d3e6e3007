//! Who on a machine may read what a server and a site write, by the commands alone, under a umask that forbids nothing.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/processes.rs"]
mod processes;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use processes::{Process, command, serve, submit};

/// A model with a layer that stays at the site, and noise that the server keeps for later rounds.
const PLAN: &str = "name = \"modes\"\nrounds = 3\nmodel = { mlp = { hidden = [4] } }\npersonal_layers = [\"dense2\"]\n\
    [data.table]\nlabel = \"y\"\ntarget = { classes = 2 }\nfeatures = [\"a\", \"b\"]\n\
    [training]\nbatch_size = 0\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [privacy.central]\ndelta = 1e-6\nepsilon_max = 1000.0\nnoise_multiplier = 1.0\ndenominator = 1.0\nnoise = \"tree\"\n\
    sampling = { availability = { participations_max = 3 } }\n";

/// Every file and folder below that others have rights on, with its mode.
fn wide(folder: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = open.pop() {
        let data = std::fs::symlink_metadata(&path).unwrap();
        if data.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let mode = data.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push((path, format!("{mode:o}")));
        }
    }
    found
}

fn records(dir: &Path) -> String {
    let path = dir.join("data.csv");
    let rows: String = (0..20).map(|row| format!("{},{},{}\n", row, 20 - row, row % 2)).collect();
    std::fs::write(&path, format!("a,b,y\n{rows}")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn attempt(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output, said)
}

fn invite(fed: &str, address: &str, site: &str) -> String {
    let made = command(&["invite", "create", site, "--dir", fed, "--server", address, "--address", address]);
    made[0]["invite"]
        .as_str()
        .or_else(|| made[0]["text"].as_str())
        .unwrap_or_else(|| panic!("{made}"))
        .to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nothing_that_a_server_or_site_writes_can_be_read_by_others() {
    rustix::process::umask(rustix::fs::Mode::empty());
    let dir = tempfile::tempdir().unwrap();
    let (fed, site) = (dir.path().join("fed"), dir.path().join("site"));
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let line = invite(text(&fed), &address, "north");
    let data = records(dir.path());
    command(&["site", "join", &line, "--dir", text(&site), "--data", &data, "--policy", "plain"]);
    let file = site.join("site.toml");
    let member = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
    member.event("connected");
    let plan = dir.path().join("plan.toml");
    std::fs::write(&plan, PLAN).unwrap();
    submit(text(&plan), text(&fed), &address, None);
    // While the run goes on its noise is kept, and the database has its side files.
    server.next("a round", |line| line["event"] == "round" && line["round"] == 1);
    assert_eq!(wide(&fed), []);
    server.event("ended");
    for made in
        ["state/personal.json", "state/ledger.jsonl", "state/audit.jsonl", "identity/key.pem", "policy.toml"]
    {
        assert!(site.join(made).exists(), "there is no {made}");
    }
    assert_eq!((wide(&fed), wide(&site)), (vec![], vec![]));
    let copy = dir.path().join("copy");
    command(&["server", "backup", "--to", text(&copy), "--dir", text(&fed)]);
    assert_eq!(wide(&copy), []);
    member.kill();
    server.kill();

    // What an older release left wider is named with what to do, and narrowed at the next start.
    for (path, mode) in [
        (site.join("state"), 0o755),
        (site.join("state/ledger.jsonl"), 0o644),
        (fed.join("state/state.sqlite"), 0o644),
    ] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let (_, said) = attempt(&["site", "check", text(&file), "--offline"]);
    let wanted = format!("chmod 600 {}", site.join("state/ledger.jsonl").display());
    assert!(said.contains(&wanted) && said.contains("chmod 700"), "{said}");
    let (_, said) = attempt(&["check", text(&fed.join("server.toml"))]);
    assert!(said.contains("state.sqlite") && said.contains("chmod 600"), "{said}");
    let (server, _) = serve(text(&fed), "127.0.0.1:0");
    let member = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
    member.next("anything", |_| true);
    assert_eq!((wide(&fed), wide(&site)), (vec![], vec![]));
    member.kill();
    server.kill();
}

#[test]
fn joining_and_beginning_anew_overwrite_no_policy_and_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let fed = dir.path().join("fed");
    command(&["server", "init", text(&fed), "--name", "localhost"]);
    command(&["server", "issue", "south", "--dir", text(&fed)]);
    let (server, address) = serve(text(&fed), "127.0.0.1:0");
    let line = invite(text(&fed), &address, "north");
    let own = "# ours\n[allow]\n";
    let site = dir.path().join("north");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("policy.toml"), own).unwrap();
    let preset = ["site", "join", &line, "--dir", text(&site), "--policy", "plain"];
    let (refused, said) = attempt(&preset);
    assert!(refused.status.code() == Some(2) && said.contains("stays in force"), "{said}");
    assert!(!site.join("identity").exists(), "the invite was not touched");
    let (joined, said) = attempt(&preset[..5]);
    assert!(joined.status.success(), "{said}");
    assert_eq!(std::fs::read_to_string(site.join("policy.toml")).unwrap(), own);
    // Even where `site.toml` was lost, nothing that is there is replaced.
    let key = std::fs::read(site.join("identity/key.pem")).unwrap();
    std::fs::remove_file(site.join("site.toml")).unwrap();
    let bundle = fed.join("sites/south");
    let (refused, said) =
        attempt(&["site", "init", text(&site), "--server", &address, "--bundle", text(&bundle)]);
    assert!(refused.status.code() == Some(2) && said.contains("exists"), "{said}");
    assert_eq!(std::fs::read(site.join("identity/key.pem")).unwrap(), key);
    assert_eq!(std::fs::read_to_string(site.join("policy.toml")).unwrap(), own);

    for name in ["..", ".", "-x", ".hidden", "..."] {
        let (refused, said) =
            attempt(&["invite", "create", "--dir", text(&fed), "--server", &address, "--", name]);
        assert!(refused.status.code() == Some(2) && said.contains("is not a site name"), "{name}: {said}");
        let (refused, said) = attempt(&["server", "issue", "--dir", text(&fed), "--", name]);
        assert!(refused.status.code() == Some(2) && said.contains("is not a site name"), "{name}: {said}");
    }
    server.kill();
}
