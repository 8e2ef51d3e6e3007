//! What a command that cannot go on tells to do: each message here is followed, and what it says works.
//!
//! Everything is typed in an empty folder, as by somebody who has the program alone.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/processes.rs"]
mod processes;

use std::path::Path;
use std::process::Command;

use processes::{Process, command, serve, submit};
use tempfile::TempDir;

/// A plan of one round, without privacy.
const PLAN: &str = r#"name = "one"
rounds = 1
model = "logistic"
[data.table]
label = "label"
target = { classes = 2 }
features = ["sex"]
standardise = "none"
[training]
batch_size = 16
optimizer = { sgd = { learning_rate = 0.1 } }
[cohort]
clients_min = 1
quorum = 1
"#;

/// What a command ended with, and what it said on stdout and stderr.
fn typed(folder: &Path, line: &str) -> (i32, String) {
    let words: Vec<&str> = line.split_whitespace().collect();
    given(folder, &words)
}

/// The same of a command with these arguments.
fn given(folder: &Path, words: &[&str]) -> (i32, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_consortia"));
    program.current_dir(folder).args(words).env_remove("CONSORTIA_FORMAT").env_remove("RUST_LOG");
    let output = program.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// A command that must end well.
fn works(folder: &Path, line: &str) -> String {
    let (code, said) = typed(folder, line);
    assert_eq!(code, 0, "`consortia {line}`: {said}");
    said
}

/// A command that must be refused, with these words.
fn refused(folder: &Path, line: &str, code: i32, words: &[&str]) -> String {
    let (found, said) = typed(folder, line);
    let missing: Vec<&&str> = words.iter().filter(|word| !said.contains(**word)).collect();
    assert!(
        found == code && missing.is_empty(),
        "`consortia {line}` ended with {found}, lacks {missing:?}: {said}"
    );
    said
}

/// The command that a message names between backticks and that begins so.
fn named(said: &str, begins: &str) -> String {
    let commands = said.split('`').skip(1).step_by(2).filter_map(|text| text.strip_prefix("consortia "));
    commands.into_iter().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
fn whoever_forgets_to_name_the_servers_folder_is_told_which_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    works(folder, "examples");
    let lines = [
        "run submit examples/heart.toml",
        "run ls",
        "run watch",
        "run pull",
        "run ls --server localhost:1",
        "site ls",
        "site revoke north",
        "invite create north",
        "server run",
        "server dashboard",
        "server backup --to copy",
        "server crl",
        "server export",
        "server issue north",
        "server renew",
    ];
    for line in lines {
        refused(folder, line, 2, &["the current folder", "consortia server init", "--dir FOLDER"]);
    }
    works(folder, "server init fed --name localhost --listen 127.0.0.1:0");
    for line in lines {
        refused(folder, line, 2, &["the current folder", "--dir fed"]);
    }
    refused(folder, "run ls --dir examples", 2, &["in examples", "--dir FOLDER"]);
}

#[test]
fn whoever_names_a_file_that_is_not_there_is_told_where_it_is_or_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for line in [
        "simulate examples/heart.toml",
        "run submit examples/heart_private.toml",
        "privacy explain examples/heart.toml",
    ] {
        refused(folder, line, 2, &["no such file", "`consortia examples`"]);
    }
    let lines = ["site run", "site check", "site audit", "site pause", "site leave --yes", "site renew"];
    for line in lines {
        refused(folder, line, 2, &["no site.toml", "FOLDER/site.toml", "site join"]);
    }
    works(folder, "server init fed --name localhost");
    works(folder, "server issue north --dir fed");
    works(folder, "site init north --server localhost:1 --bundle fed/sites/north --policy plain");
    refused(folder, "site audit", 2, &["`north/site.toml`"]);
    // The folder stands for its file.
    works(folder, "site pause north");
}

#[test]
fn no_server_is_made_or_named_by_what_no_client_can_connect_by() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for name in [
        "0.0.0.0",
        "::",
        "https://fed.example.org",
        "fed.example.org:4433",
        "fed..org",
        "*.example.org",
        "256.1.1.1",
        "..",
        "::ffff:0.0.0.0",
        "0.0.0.1",
        "0x7f000001",
        "2130706433",
        "127.1",
        "010.0.0.1",
    ] {
        refused(folder, &format!("server init fed --name {name}"), 2, &["--name"]);
    }
    for name in ["", "fed example"] {
        let mut init = Command::new(env!("CARGO_BIN_EXE_consortia"));
        init.current_dir(folder).args(["server", "init", "fed", "--name", name]);
        assert_eq!(init.output().unwrap().status.code(), Some(2), "{name}");
    }
    assert!(!folder.join("fed").exists());
    works(folder, "server init fed --name localhost --name 10.0.0.1 --name ::1 --listen 127.0.0.1:0");
    refused(folder, "server renew fed --name 0.0.0.0", 2, &["--name"]);
    works(folder, "server issue north --dir fed");
    for server in ["localhost", "0.0.0.0:1", "localhost:0", "http://localhost:1"] {
        refused(
            folder,
            &format!("site init north --server {server} --bundle fed/sites/north"),
            2,
            &["--server"],
        );
        refused(folder, &format!("run ls --dir fed --server {server}"), 2, &["--server"]);
        refused(folder, &format!("invite create north --dir fed --address {server}"), 2, &["--address"]);
    }
    let unnamed = works(folder, "server init unnamed --listen 127.0.0.1:0");
    assert!(unnamed.contains("--dir unnamed --address HOST:PORT"), "{unnamed}");
    // The port of this file is told when the server starts, and is none to invite by.
    refused(folder, "invite create north --dir fed", 2, &["addresses", "port 0", "--address HOST:PORT"]);
    works(folder, "site init north --server localhost:1 --bundle fed/sites/north --policy plain");
    let site = folder.join("north/site.toml");
    let text = std::fs::read_to_string(&site).unwrap();
    std::fs::write(&site, text.replace("localhost:1", "localhost")).unwrap();
    for line in ["check north/site.toml", "site check north/site.toml --offline", "site run north/site.toml"]
    {
        refused(folder, line, 2, &["site.toml: line", "no port", "localhost:4433"]);
    }
}

#[test]
fn a_missing_policy_is_written_by_the_command_that_the_message_names() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    works(folder, "server init fed --name localhost");
    works(folder, "server issue north --dir fed");
    works(folder, "site init north --server localhost:1 --bundle fed/sites/north");
    works(folder, "examples");
    let policy = folder.join("north/policy.toml");
    std::fs::remove_file(&policy).unwrap();
    let (_, said) = typed(folder, "site check north/site.toml --offline");
    works(folder, &named(&said, "site policy init"));
    let allowed = works(folder, "site policy check north/policy.toml examples/heart.toml");
    assert!(allowed.contains("train") && !allowed.contains("denied"), "{allowed}");
    refused(folder, "site policy init north/policy.toml --policy records", 2, &["stays in force"]);
    std::fs::remove_file(&policy).unwrap();
    works(folder, "site policy init north/policy.toml");
    refused(folder, "site policy check north/policy.toml examples/heart.toml", 6, &["declined"]);
}

#[test]
fn a_file_of_another_kind_is_named_with_the_command_that_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    works(folder, "examples");
    // A run whose budget pays for clients has a ledger of its population.
    let central = "\n[privacy.central]\nnoise_multiplier = 1\ndelta = 1e-5\nepsilon_max = 100\ndenominator = 4\nsampling = { availability = { participations_max = 1 } }\npopulation = \"hospitals\"\n[update]\nweights = \"uniform\"\n\
                   norm_max = 1\n[evaluation]\nsites = \"none\"\n[simulation]\npartition = { natural = { column = \"site\" } }\n\
                   [simulation.dataset.files.csv]\ntrain = \"data/heart_disease.csv\"\n";
    std::fs::write(folder.join("examples/central.toml"), format!("{PLAN}{central}")).unwrap();
    works(folder, "simulate examples/central.toml");
    let runs: Vec<_> =
        std::fs::read_dir(folder.join("runs")).unwrap().map(|run| run.unwrap().path()).collect();
    let file = |name: &str| format!("runs/{}/{name}", runs[0].file_name().unwrap().display());
    let ledger = works(folder, &format!("audit verify {}", file("ledger.jsonl")));
    assert!(ledger.contains("records in order"), "{ledger}");
    works(folder, &format!("audit verify runs/{}", runs[0].file_name().unwrap().display()));
    works(folder, &format!("privacy verify {}", file("privacy_statement.json")));
    let others = [
        ("audit verify", file("privacy_statement.json"), "consortia privacy verify"),
        ("audit verify", file("events.jsonl"), "the events of a run"),
        ("audit verify", file("model.safetensors"), "consortia model verify"),
        ("audit verify", "examples/heart.toml".to_owned(), "consortia check"),
        ("privacy verify", file("ledger.jsonl"), "consortia audit verify"),
        ("privacy verify", file("model.safetensors"), "consortia model verify"),
        ("privacy verify", file("report.html"), "a page"),
        ("check", file("privacy_statement.json"), "consortia privacy verify"),
        ("check", file("model.safetensors"), "consortia model verify"),
        ("check", "examples/data/heart_disease.csv".to_owned(), "a table"),
        ("budget show", file("ledger.jsonl"), "consortia audit verify"),
        ("simulate", file("privacy_statement.json"), "consortia privacy verify"),
        ("privacy explain", "examples/data/heart_disease.csv".to_owned(), "a table"),
        ("site run", "examples/heart.toml".to_owned(), "this is a plan"),
        ("site policy check", "examples/heart.toml examples/heart.toml".to_owned(), "this is a plan"),
        ("model verify", "examples/heart.toml".to_owned(), "this is a plan"),
    ];
    for (reader, path, words) in others {
        let said = refused(folder, &format!("{reader} {path}"), 2, &[words]);
        assert!(!said.contains("not understood") && !said.contains("was changed"), "{said}");
    }
    // One that was changed is still damage.
    let path = folder.join(file("ledger.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap();
    for changed in
        [text.replacen("\"round\":1", "\"round\":7", 1), text.replacen("{\"sequence\"", "{\"sequenze\"", 1)]
    {
        std::fs::write(&path, changed).unwrap();
        refused(folder, &format!("audit verify {}", file("ledger.jsonl")), 1, &["line"]);
    }
}

/// A federation with its server, and a site that has joined.
fn federation() -> (TempDir, Process, String) {
    let dir = tempfile::tempdir().unwrap();
    works(dir.path(), "examples");
    works(dir.path(), "server init fed --name localhost --listen 127.0.0.1:0");
    let fed = dir.path().join("fed").display().to_string();
    let (server, address) = serve(&fed, "127.0.0.1:0");
    join(dir.path(), &address, "north", "north");
    (dir, server, address)
}

fn invite(folder: &Path, address: &str, site: &str) -> String {
    let fed = folder.join("fed").display().to_string();
    let invites =
        command(&["invite", "create", site, "--dir", &fed, "--server", address, "--address", address]);
    invites[0]["invite"].as_str().unwrap().to_owned()
}

/// A run of the plan, to its end.
fn train(plan: &str, fed: &str, address: &str) {
    let run = submit(plan, fed, address, None);
    command(&["run", "watch", &run, "--dir", fed, "--server", address]);
}

fn join(folder: &Path, address: &str, site: &str, to: &str) {
    let line = invite(folder, address, site);
    works(folder, &format!("site join {line} --dir {to} --data examples/hospitals/va.csv --policy plain"));
}

#[test]
fn a_site_that_left_and_is_invited_again_goes_on_with_its_books_as_it_is_told() {
    let (dir, _server, address) = federation();
    let folder = dir.path();
    // It takes part once, so that there are books.
    std::fs::write(folder.join("plan.toml"), PLAN).unwrap();
    let fed = folder.join("fed").display().to_string();
    let site = Process::start(&[
        "site",
        "run",
        &folder.join("north/site.toml").display().to_string(),
        "--while-stdin-open",
    ]);
    let plan = folder.join("plan.toml").display().to_string();
    train(&plan, &fed, &address);
    site.kill();
    let spent = std::fs::read_to_string(folder.join("north/state/ledger.jsonl")).unwrap();
    assert!(!spent.is_empty());
    let line = invite(folder, &address, "other");
    refused(
        folder,
        &format!("site join {line} --dir north"),
        2,
        &["holds a site already", "site run north/site.toml", "--dir"],
    );
    works(folder, "site leave north/site.toml --yes");

    let line = invite(folder, &address, "north");
    let said =
        refused(folder, &format!("site join {line} --dir north"), 2, &["has left", "nothing was changed"]);
    assert!(named(&said, "site join").ends_with("--dir FOLDER"));
    works(folder, &format!("site join {line} --dir again --data examples/hospitals/va.csv --policy plain"));
    let setting = said.split('`').find(|text| text.starts_with("state = ")).unwrap();
    let file = folder.join("again/site.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("state = \"state\"", setting)).unwrap();

    works(folder, "site check again/site.toml");
    let budget = works(folder, "budget show again");
    assert!(budget.lines().count() > 3, "{budget}");
    let site = Process::start(&["site", "run", &file.display().to_string(), "--while-stdin-open"]);
    train(&plan, &fed, &address);
    site.kill();
    let ledger = std::fs::read_to_string(folder.join("north/state/ledger.jsonl")).unwrap();
    assert!(ledger.starts_with(&spent) && ledger.len() > spent.len(), "the books go on");
}

#[test]
fn an_event_that_no_log_has_is_refused_with_those_that_it_may_have() {
    let (dir, _server, _) = federation();
    refused(
        dir.path(),
        "site audit north/site.toml --event deneid",
        2,
        &["denied", "answered", "ledger_refused"],
    );
    refused(dir.path(), "site audit north/site.toml --event denied", 2, &["no audit log yet", "site run"]);
    works(dir.path(), "site leave north/site.toml --yes");
    let left = works(dir.path(), "site audit north/site.toml --event denied --event left");
    assert!(left.contains("left "), "{left}");
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let (dir, _server, address) = federation();
    let folder = dir.path();
    works(folder, "server init other --name localhost --listen 127.0.0.1:0");
    let line = format!("server run other --listen {address}");
    refused(folder, &line, 1, &[&address, "another program has this port", "server.toml"]);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let held = std::net::TcpListener::bind(held).unwrap();
    let admin = held.local_addr().unwrap().to_string();
    let line = format!("server run other --listen 127.0.0.1:0 --admin-listen {admin}");
    refused(folder, &line, 1, &[&admin, "another program has this port", "[admin]"]);
}

#[test]
fn a_path_in_a_hint_is_typed_as_a_shell_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, program) = (dir.path(), env!("CARGO_BIN_EXE_consortia"));
    let shell = |line: &str| {
        let line = line.trim().replacen("consortia", program, 1);
        let done = Command::new("sh").args(["-c", &line]).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let said = given(folder, &["examples", "my plans"]).1;
    let next = said.lines().find(|line| line.contains("consortia simulate")).unwrap();
    assert!(next.contains("'my plans/heart.toml'"), "{next}");
    shell(&format!("{next} --set rounds=1 -q"));
    assert_eq!(given(folder, &["server", "init", "our fed", "--name", "localhost"]).0, 0);
    works(folder, "server init fed --name localhost");
    works(folder, "server issue north --dir fed");
    let made = given(
        folder,
        &[
            "site",
            "init",
            "it's north",
            "--server",
            "localhost:1",
            "--bundle",
            "fed/sites/north",
            "--policy",
            "plain",
        ],
    );
    let next = made.1.lines().find(|line| line.contains("consortia site check")).unwrap().to_owned();
    std::fs::copy(folder.join("my plans/hospitals/va.csv"), folder.join("it's north/data.csv")).unwrap();
    shell(&format!("{next} --offline"));
}

#[test]
fn what_is_in_the_way_of_a_file_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    std::fs::create_dir(folder.join("linked")).unwrap();
    std::os::unix::fs::symlink("nowhere/heart.toml", folder.join("linked/heart.toml")).unwrap();
    refused(
        folder,
        "examples linked",
        2,
        &["linked/heart.toml is a link to nowhere/heart.toml", "nothing was changed"],
    );
    assert!(folder.join("linked/heart.toml").is_symlink() && !folder.join("linked/data").exists());
    works(folder, "examples");
    std::fs::write(folder.join("runs"), "ours").unwrap();
    refused(folder, "simulate examples/heart.toml --set rounds=1", 1, &["runs", "is a file and no folder"]);
    refused(
        folder,
        "site policy init examples",
        2,
        &["examples is a folder", "site policy init examples/policy.toml"],
    );
    refused(
        folder,
        "site policy check examples examples/heart.toml",
        2,
        &["it is a folder", "name a file in it"],
    );
    refused(folder, "check examples", 2, &["it is a folder"]);
    works(folder, "server init fed --name localhost");
    let file = folder.join("fed/server.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    for (listen, words) in [("localhost:4433", "names are not looked up"), ("0.0.0.0", "write 0.0.0.0:4433")]
    {
        std::fs::write(&file, text.replacen("0.0.0.0:4433", listen, 1)).unwrap();
        for line in ["check fed/server.toml", "server run fed"] {
            refused(folder, line, 2, &["server.toml: line", "is no IP address with a port", words]);
        }
    }
    refused(folder, "server run fed --listen 4433", 2, &["--listen", "write 0.0.0.0:4433"]);
    std::fs::write(&file, text.replace("[\"localhost:4433\"]", "[]")).unwrap();
    let checked = works(folder, "check fed/server.toml");
    assert!(checked.contains("no address is named") && checked.contains("--address"), "{checked}");
}

#[test]
fn numbers_of_privacy_are_read_and_written_in_one_way_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    works(folder, "examples");
    let explained = works(folder, "privacy explain examples/heart_private.toml");
    for part in ["at most 1 at delta 1e-5", "Signal and noise", "usable where sites have", "hopeless below"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    // A delta that a plan takes is taken wherever one is typed, and no number is longer than one reads.
    let text = std::fs::read_to_string(folder.join("examples/heart_private.toml")).unwrap();
    std::fs::write(folder.join("examples/tiny.toml"), text.replace("delta = 1e-5", "delta = 1e-300"))
        .unwrap();
    for line in [
        "check examples/tiny.toml",
        "privacy explain examples/tiny.toml",
        "privacy epsilon --noise-multiplier 1e300 --rounds 1 --delta 1e-300",
        "privacy noise --epsilon 1e300 --rounds 1 --delta 1e-5",
        "privacy epsilon --noise-multiplier 1e8 --rounds 10 --delta 1e-5",
    ] {
        let said = works(folder, line);
        let longest = said.split(|letter: char| !letter.is_ascii_digit()).map(str::len).max().unwrap_or(0);
        assert!(longest < 20, "{line}: {said}");
        assert!(!said.contains("0.000000"), "{line}: {said}");
    }
    refused(
        folder,
        "privacy epsilon --noise-multiplier 1 --rounds 1 --delta 1e-300 --accountant pld",
        2,
        &["1e-12", "1e-300"],
    );
    // Every column of what `check` says begins at one place.
    let checked = works(folder, "check examples/heart.toml");
    let values: std::collections::BTreeSet<Option<usize>> =
        checked.lines().skip(1).map(|line| line.rfind("  ").map(|gap| gap + 2)).collect();
    assert_eq!(values.len(), 1, "{checked}");
}

#[test]
fn a_simulation_names_its_statistics_and_tells_a_reason_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    works(folder, "examples");
    let said = works(folder, "simulate examples/heart.toml --set rounds=2");
    assert!(
        said.contains("\nstatistics  4 of 4 answered") || said.starts_with("statistics  4 of 4 answered"),
        "{said}"
    );
    assert!(!said.contains("round 0/"), "{said}");
    let sum = said.lines().find(|line| line.starts_with("parameters ")).unwrap_or_else(|| panic!("{said}"));
    assert!(sum.contains("sha256"), "{sum}");
    // One hospital has a cell that is no number.
    let table = folder.join("examples/data/heart_disease.csv");
    let text = std::fs::read_to_string(&table).unwrap();
    let at = text.find("\nva,train,").unwrap() + "\nva,train,".len();
    let end = at + text[at..].find(',').unwrap();
    std::fs::write(&table, format!("{}no number{}", &text[..at], &text[end..])).unwrap();
    let (_, said) = typed(
        folder,
        "simulate examples/heart.toml --set rounds=2 --set cohort.clients_min=3 --set cohort.quorum=3",
    );
    assert_eq!(said.matches("no number").count(), 1, "{said}");
}

#[test]
fn a_server_of_another_federation_and_another_port_are_told_from_a_wrong_certificate() {
    let (dir, server, address) = federation();
    let folder = dir.path();
    drop(server);
    works(folder, "server init other --name localhost --listen 127.0.0.1:0");
    let other = folder.join("other").display().to_string();
    let started = Process::start(&["server", "run", &other, "--listen", "127.0.0.1:0", "--while-stdin-open"]);
    let listening = started.event("listening");
    let (there, admin) = (listening["address"].as_str().unwrap(), listening["admin"].as_str().unwrap());
    let words = ["of another federation", "fingerprint", "`consortia check`"];
    refused(folder, &format!("run ls --dir fed --server {there}"), 3, &words);
    let site = folder.join("north/site.toml");
    let text = std::fs::read_to_string(&site).unwrap();
    std::fs::write(&site, text.replace(&address, there)).unwrap();
    refused(folder, "site check north/site.toml", 3, &words);
    // What is to be compared.
    let shown = ["north/site.toml", "fed/server.toml", "other/server.toml"].map(|file| {
        let said = works(folder, &format!("check {file}"));
        said.lines().find_map(|line| line.strip_prefix("federation ")).unwrap().trim().to_owned()
    });
    assert!(shown[0] == shown[1] && shown[0] != shown[2] && shown[0].len() == 64, "{shown:?}");
    refused(folder, &format!("run ls --dir other --server {admin}"), 3, &["admin port", "`listen`"]);
}

#[test]
fn a_site_that_is_revoked_says_so_and_ends() {
    let (dir, _server, address) = federation();
    let folder = dir.path();
    let site = folder.join("north/site.toml").display().to_string();
    let mut site = Process::start(&["site", "run", &site, "--while-stdin-open"]);
    site.event("connected");
    let shown = works(folder, &format!("site ls --dir fed --server {address}"));
    assert!(shown.contains("north") && !shown.contains("declined"), "nobody has declined anything: {shown}");
    let nothing = works(folder, &format!("run ls --dir fed --server {address}"));
    assert!(nothing.contains("there is no run yet"), "{nothing}");
    works(folder, &format!("site revoke north --dir fed --server {address}"));
    let lines = site.rest();
    let code = site.child.wait().unwrap().code();
    let said = format!("{lines:?} {}", site.errors.lock().unwrap());
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("revoked") && !said.contains("trying again"), "{said}");
}

#[test]
fn the_list_of_sites_has_what_each_declined_of_the_newest_run() {
    let (dir, _server, address) = federation();
    let folder = dir.path();
    std::fs::remove_file(folder.join("north/policy.toml")).unwrap();
    works(folder, "site policy init north/policy.toml");
    let site = folder.join("north/site.toml").display().to_string();
    let site = Process::start(&["site", "run", &site, "--while-stdin-open"]);
    site.event("connected");
    let plan = folder.join("plan.toml").display().to_string();
    std::fs::write(&plan, PLAN).unwrap();
    let fed = folder.join("fed").display().to_string();
    let run = submit(&plan, &fed, &address, None);
    site.event("declined");
    let (_, said) = typed(folder, &format!("run watch {run} --dir fed --server {address}"));
    let shown = works(folder, &format!("site ls --dir fed --server {address}"));
    assert!(shown.contains("declined") && shown.contains(&format!(" in run {run}")), "{shown}\n{said}");
    let models = works(folder, &format!("run models {run} --before 0 --dir fed --server {address}"));
    assert!(models.contains("there is no model of a round before 0"), "{models}");
    let line = format!("run report {run} --out nodir/below/x.html --dir fed --server {address}");
    refused(folder, &line, 1, &["nodir/below/x.html", "there is no folder nodir: make it"]);
}

#[test]
fn hints_of_an_operator_s_commands_work_as_they_are_typed() {
    let (dir, _server, address) = federation();
    let folder = dir.path();
    let with = format!("--dir fed --server {address}");
    let none = works(folder, &format!("run ls {with}"));
    assert!(named(&none, "run submit PLAN").ends_with(&with), "{none}");
    let held = works(folder, &format!("site quarantine north {with}"));
    let release = held.split("consortia ").nth(1).unwrap();
    assert!(works(folder, release).contains("north is released"), "{release}");
    let revoked = works(folder, &format!("site revoke north {with}"));
    let invite = revoked.split("consortia ").nth(1).unwrap();
    works(folder, &format!("{} --address {address}", invite.trim()));
}
