//! The command as people type it: what it prints, how it ends, and the whole way from an empty folder to a trained model.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/heart_disease.csv");
const HEART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heart.toml");

fn consortia(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The object a command ends with.
fn object(args: &[&str]) -> Value {
    let output = consortia(&[&["--format", "json"], args].concat());
    let (out, talk) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?} failed: {talk}");
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{args:?} printed {out}"))
}

/// How a command failed: its exit code and what it said.
fn failure(args: &[&str]) -> (i32, String) {
    let output = consortia(args);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_a_failure_and_one_behind_stderr_changes_nothing() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        command.args(args).stdin(Stdio::null());
        command
    };
    let works: [&[&str]; 6] = [
        &["check", HEART],
        &["privacy", "epsilon", "--noise-multiplier", "2", "--rounds", "10", "--delta", "1e-5"],
        &["completions", "bash"],
        &["reference"],
        &["--help"],
        &["--version"],
    ];
    for args in works {
        let output = command(args).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("stdout"), "{args:?}: {output:?}");
        assert!(command(args).stderr(full()).output().unwrap().status.success(), "{args:?}");
    }
    for (args, code) in
        [(&["check", "no.toml"][..], 2), (&["no-command"], 2), (&["audit", "verify", "/dev"], 2)]
    {
        let ended = command(args).stdout(Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(ended.code(), Some(code), "{args:?}");
    }
    // Whoever reads no further has what it wants.
    for args in works {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(args: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

#[test]
fn the_demo_and_the_simulation_of_its_plan_end_with_the_same_bits() {
    let out = tempfile::tempdir().unwrap();
    let demo = object(&["demo", "--seed", "7", "--out", text(out.path())]);
    let simulated = object(&["simulate", HEART, "--seed", "7", "--threads", "2", "--out", text(out.path())]);
    assert_eq!(demo["model_sha256"], simulated["model_sha256"]);
    assert_eq!(demo["model_sha256"].as_str().unwrap().len(), 64);
    assert!(demo["accuracy"].as_f64().unwrap() >= 0.78, "{demo}");
    assert!(demo["rounds"].as_u64().unwrap() > 0 && demo["loss"].is_f64() && demo["seconds"].is_f64());
    assert_eq!(demo["sites"].as_array().unwrap().len(), 4);
    for results in [&demo["results"], &simulated["results"]] {
        let folder = PathBuf::from(results.as_str().unwrap());
        for file in ["resolved.toml", "events.jsonl", "metrics.csv", "model.safetensors", "curves.svg"] {
            assert!(
                folder.join(file).metadata().is_ok_and(|found| found.len() > 0),
                "{file} in {}",
                folder.display()
            );
        }
        let events = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
        assert!(events.lines().any(|line| line.contains("\"event\":\"round\"")));
    }
    let resolved = PathBuf::from(simulated["results"].as_str().unwrap()).join("resolved.toml");
    let again = object(&["simulate", text(&resolved), "--out", text(out.path())]);
    assert_eq!(again["model_sha256"], simulated["model_sha256"], "resolved.toml repeats the run");
    let other = object(&["simulate", HEART, "--seed", "8", "--out", text(out.path())]);
    assert_ne!(other["model_sha256"], simulated["model_sha256"]);
}

#[test]
fn a_wrong_file_is_named_with_line_column_and_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    let plan = std::fs::read_to_string(HEART).unwrap().replace("epochs = 1", "epochs = 0");
    std::fs::write(&file, &plan).unwrap();
    let line = plan.lines().position(|line| line.starts_with("epochs")).unwrap() + 1;
    for command in ["check", "simulate"] {
        let (code, said) = failure(&[command, text(&file)]);
        assert_eq!(code, 2);
        assert!(
            said.contains(&format!("plan.toml: line {line}, column 10: training.epochs: 0 epochs")),
            "{said}"
        );
        assert!(said.contains("| epochs = 0\n"), "{said}");
    }
    let (code, said) = failure(&["--format", "json", "check", text(&file)]);
    let object: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!((code, object["exit_code"].as_i64()), (2, Some(2)));
    assert_eq!(failure(&["check", "no-such-file.toml"]).0, 2);
    assert_eq!(failure(&["fly"]).0, 2);
    assert_eq!(failure(&["simulate", HEART, "--set", "rounds=0"]).0, 2);
}

const GROUPS: &str = "name = \"groups\"\nrounds = 2\n[data.table]\nlabel = \"y\"\ntarget = \"real\"\n\
    features = [\"a\"]\nstandardise = \"federated\"\n[method.kmeans]\nclusters = 2\n";
const TRAINING: &str = "name = \"t\"\nrounds = 2\nmodel = \"logistic\"\n[data.tensor]\nshape = [4]\ntarget = { classes = 2 }\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n";

/// Checks each of these plans: where it is faulty, and what is said of it.
fn assert_faults(cases: Vec<(String, &str, &str)>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    for (plan, place, told) in cases {
        std::fs::write(&file, &plan).unwrap();
        let (code, said) = failure(&["check", text(&file)]);
        assert!(code == 2 && said.contains(place) && said.contains(told), "{told}: {said}");
        for of_rust in ["usize", "u32", "f64", "struct", "invalid type", "variant", "step-16"] {
            assert!(!said.contains(of_rust), "{said}");
        }
    }
}

#[test]
fn a_fault_in_a_method_s_settings_names_its_line_and_key_like_any_other() {
    assert_faults(vec![
        // A method's settings, like any other's.
        (
            GROUPS.to_owned() + "tolerance = \"x\"\n",
            "line 10, column 13",
            "method.kmeans.tolerance: the text \"x\" is given where a number",
        ),
        (
            GROUPS.to_owned() + "tolerence = 1.0\n",
            "line 10, column 13",
            "method.kmeans.tolerence: unknown field",
        ),
        (
            GROUPS.replace("clusters = 2", "clusters = -2"),
            "line 9, column 12",
            "method.kmeans.clusters: `-2` is given where a whole number of at least 0",
        ),
        (
            GROUPS.replace("clusters = 2", "clusters = 1"),
            "line 9, column 12",
            "method.kmeans.clusters: 1 is not from 2",
        ),
        (
            GROUPS.to_owned() + "[training]\n",
            "line 10, column 2",
            "training: the method `kmeans` trains no model",
        ),
        (
            GROUPS.to_owned() + "[training]\nbatch_size = \"x\"\n",
            "line 10, column 2",
            "training: the method `kmeans` trains no model",
        ),
        (
            GROUPS.to_owned() + "[strategy]\nfedsgd = 3\n",
            "line 11, column 10",
            "strategy.fedsgd: the method `kmeans` trains no model",
        ),
    ]);
}

#[test]
fn a_fault_of_a_plan_is_told_in_plain_words_and_the_first_one_first() {
    assert_faults(vec![
        // A rule that there is not, before what does not go with it.
        (
            TRAINING.to_owned()
                + "[update]\nweights = \"examples\"\n[aggregation]\nrule = \"crum\"\ncorrupted = 1\n",
            "line 13, column 8",
            "this program knows no rule `crum`",
        ),
        (
            TRAINING.to_owned()
                + "[update]\nweights = \"examples\"\n[aggregation]\nrule = \"krum\"\ncorrupted = 1\n",
            "line 11, column 11",
            "update.weights: krum counts every client alike",
        ),
        // No type of the program's own language.
        (
            TRAINING.replace("rounds = 2", "rounds = -2"),
            "line 2, column 10",
            "rounds: `-2` is given where a whole number from 0 to 4294967295 is expected",
        ),
        (
            TRAINING.replace("learning_rate = 0.1", "learning_rate = -1"),
            "line 9, column 39",
            "training.optimizer.sgd.learning_rate: -1 is not a positive number",
        ),
        (
            TRAINING.replace("sgd = { learning_rate = 0.1 }", "sgd = 1"),
            "line 9, column 21",
            "a table { ... } with its settings is expected",
        ),
        (TRAINING.replace("\"logistic\"", "3"), "line 3, column 9", "a word in quotation marks or a table"),
        (TRAINING.replace("logistic", "logistc"), "line 3, column 9", "unknown value `logistc`"),
        // No number of hundreds of digits.
        (
            TRAINING.to_owned() + "[cohort]\nfraction = 1e300\n",
            "line 11, column 12",
            "cohort.fraction: 1e300 is not above 0",
        ),
        (
            TRAINING.to_owned() + "[cohort]\ndeadline_seconds = 1e300\n",
            "line 11, column 20",
            "cohort.deadline_seconds: 1e300 seconds are longer",
        ),
        (
            TRAINING.to_owned() + "[update]\nnorm_max = -1e300\n",
            "line 11, column 12",
            "update.norm_max: -1e300 is not a positive number",
        ),
        (
            TRAINING.to_owned() + "[update]\ncodec = { top_k = { share = 0.1 } }\n",
            "line 11, column 21",
            "unknown field `share`, expected `fraction`",
        ),
    ]);
}

#[test]
fn a_check_of_a_method_lists_every_task_that_a_policy_has_to_allow_under_keys_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    for (plan, tasks) in [
        (GROUPS.to_owned(), "tasks = [\"statistics\", \"method:kmeans\"]"),
        (GROUPS.replace("federated", "none"), "tasks = [\"method:kmeans\"]"),
    ] {
        std::fs::write(&file, &plan).unwrap();
        let facts = object(&["check", text(&file)]);
        assert!(facts["policy"].as_str().unwrap().starts_with(tasks), "{facts}");
        // A policy that lists them allows all of the plan.
        let policy = folder.path().join("policy.toml");
        let all = client::PLAIN_POLICY.replace("tasks = [\"train\", \"evaluate\", \"statistics\"]", tasks);
        std::fs::write(&policy, all).unwrap();
        assert_eq!(object(&["site", "policy", "check", text(&policy), text(&file)])["allowed"], true);
    }
    for plan in [HEART, text(&file)] {
        let facts = object(&["check", plan]);
        let is_plain = |key: &String| {
            !["_are", "_as", "_on", "_at", "_by", "_to", "_that_"]
                .iter()
                .any(|prose| key.ends_with(prose) || key.contains("_that_"))
        };
        assert!(
            facts.as_object().unwrap().keys().all(|key| is_plain(key) || key.starts_with("epsilon")),
            "{facts}"
        );
    }
}

#[test]
fn a_check_of_a_policy_lines_up_however_long_a_reason_is() {
    let folder = tempfile::tempdir().unwrap();
    let (file, policy) = (folder.path().join("plan.toml"), folder.path().join("policy.toml"));
    std::fs::write(&file, TRAINING).unwrap();
    std::fs::write(&policy, client::PRIVATE_POLICY).unwrap();
    let output = consortia(&["site", "policy", "check", text(&policy), text(&file)]);
    assert_eq!(output.status.code(), Some(6));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("train     denied by") && table.contains("evaluate  denied by"), "{table}");
}

#[test]
fn a_statement_that_is_a_broken_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.toml");
    std::fs::write(&file, "name = \"t\"\nx = = 3\n").unwrap();
    let (code, said) = failure(&["privacy", "verify", text(&file)]);
    assert!(code == 2 && said.contains("broken.toml: line 2, column 5"), "{said}");
    let json = folder.path().join("statement.json");
    std::fs::write(&json, "{\"version\": 2, \"claims\": 3}").unwrap();
    let (code, said) = failure(&["privacy", "verify", text(&json)]);
    assert!(code == 2 && said.contains("statement.json") && said.contains("line 1"), "{said}");
    assert!(said.contains("no privacy statement") && !said.contains("sequence"), "{said}");
}

#[test]
fn check_says_what_a_plan_costs() {
    let facts = object(&["check", HEART]);
    assert_eq!(facts["parameters"], 28);
    assert_eq!(facts["bytes_up_per_client_and_round"], 112);
    assert_eq!(facts["statistics_round"], true);
}

#[test]
fn epsilon_and_noise_agree_with_published_figures_and_with_each_other() {
    let releases = ["--sampling-rate", "0.01", "--rounds", "1000", "--delta", "1e-5"];
    let epsilon = object(&[&["privacy", "epsilon", "--noise-multiplier", "1"], &releases[..]].concat());
    let (rdp, pld) = (epsilon["rdp"].as_f64().unwrap(), epsilon["pld"].as_f64().unwrap());
    assert!((rdp - 2.101_366_5).abs() < 1e-5 && (pld - 1.828_243_6).abs() < 5e-3, "{epsilon}");
    let noise = object(&[&["privacy", "noise", "--epsilon", "1.8282436"], &releases[..]].concat());
    assert!((noise["noise_multiplier"].as_f64().unwrap() - 1.0).abs() < 2e-3, "{noise}");
    let one = object(
        &[&["privacy", "epsilon", "--noise-multiplier", "1", "--accountant", "rdp"], &releases[..]].concat(),
    );
    assert!(one["pld"].is_null() && one["rdp"].is_f64());
    for delta in ["0.9", "0.02", "0", "nan", "much"] {
        let typed = ["--noise-multiplier", "1", "--rounds", "1", "--delta", delta];
        let (code, why) = failure(&[&["privacy", "epsilon"], &typed[..]].concat());
        assert!(code != 0 && why.contains("--delta"), "{delta}: {why}");
        let (code, why) = failure(&["privacy", "noise", "--epsilon", "1", "--rounds", "1", "--delta", delta]);
        assert!(code != 0 && why.contains("--delta"), "{delta}: {why}");
    }
    let none = object(&["privacy", "epsilon", "--noise-multiplier", "0", "--rounds", "1", "--delta", "1e-5"]);
    assert_eq!(none["rdp"], "infinity");
    let (code, said) =
        failure(&["privacy", "epsilon", "--noise-multiplier=-1", "--rounds", "1", "--delta", "1e-5"]);
    assert!(code == 2 && said.contains("noise multiplier"), "{said}");
}

#[test]
fn completions_and_man_pages_come_from_the_command_tree() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = consortia(&["completions", shell]);
        assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("simulate"));
    }
    assert!(consortia(&["man", text(folder.path())]).status.success());
    let page = std::fs::read_to_string(folder.path().join("consortia-server-init.1")).unwrap();
    assert!(page.contains(".TH"));
}

#[test]
fn an_operator_that_finds_no_server_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let federation = folder.path().join("federation");
    assert!(consortia(&["server", "init", text(&federation), "--listen", "127.0.0.1:0"]).status.success());
    let (code, said) = failure(&["server", "init", text(&federation)]);
    assert!(code == 2 && said.contains("nothing was changed"), "{said}");
    // Port 9 is `discard`: on loopback nobody answers there.
    let (code, said) = failure(&["run", "ls", "--dir", text(&federation), "--server", "127.0.0.1:9"]);
    assert!(code == 3 || code == 4, "{code}: {said}");
    let (code, said) = failure(&["run", "ls", "--dir", text(folder.path()), "--server", "127.0.0.1:9"]);
    assert!(code == 2 && said.contains("operator's identity") && said.contains("--dir"), "{code}: {said}");
}

/// What README's section "For real" says, word for word but for addresses.
#[test]
fn from_an_empty_folder_to_a_trained_model() {
    let folder = tempfile::tempdir().unwrap();
    let federation = folder.path().join("federation");
    let dir = text(&federation);
    object(&["server", "init", dir, "--listen", "127.0.0.1:0"]);
    let mut server = start(&["--format", "json", "server", "run", dir, "--while-stdin-open"]);
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let listening: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let address = listening["address"].as_str().unwrap().to_owned();

    let mut sites = Vec::new();
    for name in ["cleveland", "va"] {
        let issued = object(&["server", "issue", name, "--dir", dir]);
        let site = folder.path().join(name);
        let bundle = issued["bundle"].as_str().unwrap();
        object(&["site", "init", text(&site), "--server", &address, "--bundle", bundle, "--policy", "plain"]);
        let file = site.join("site.toml");
        let filter =
            format!("train = \"{RECORDS}\"\nsplit_column = \"split\"\nwhere = {{ site = \"{name}\" }}");
        let edited = std::fs::read_to_string(&file).unwrap().replace("train = \"data.csv\"", &filter);
        std::fs::write(&file, edited).unwrap();
        assert_eq!(object(&["check", text(&file)])["name"], name);
        sites.push(start(&["site", "run", text(&file), "--while-stdin-open"]));
    }
    let plan = folder.path().join("plan.toml");
    let edited = std::fs::read_to_string(HEART).unwrap();
    let edited = edited.replace("clients_min = 4", "clients_min = 2").replace("quorum = 4", "quorum = 2");
    std::fs::write(&plan, edited.replace("rounds = 20", "rounds = 3")).unwrap();
    let operator = ["--dir", dir, "--server", &address];
    let run = object(&[&["run", "submit", text(&plan), "--watch"], &operator[..]].concat());
    assert_eq!((run["state"].as_str(), run["rounds_done"].as_u64()), (Some("finished"), Some(3)));
    assert_eq!(run["rehearsal"], false);
    assert_eq!(run["clients"].as_array().unwrap().len(), 2);
    let listed = object(&[&["run", "ls"], &operator[..]].concat());
    assert_eq!(listed[0]["run"], run["run"]);
    let watched = object(&[&["run", "watch"], &operator[..]].concat());
    assert_eq!(watched["model_sha256"], run["model_sha256"]);

    // Whoever holds stdin open may let go: both end by themselves, and politely.
    for mut site in sites {
        drop(site.0.stdin.take());
        assert!(site.0.wait().unwrap().success());
    }
    drop(server.0.stdin.take());
    assert!(lines.all(|line| line.is_ok()));
    assert!(server.0.wait().unwrap().success());

    // The model leaves with all that is needed to use it elsewhere.
    let (out, run_id) = (folder.path().join("out"), run["run"].as_str().unwrap());
    let exported = object(&["server", "export", run_id, "--dir", dir, "--out", text(&out)]);
    assert_eq!(exported["model_sha256"], run["model_sha256"]);
    let (model, graph) = (out.join("model.safetensors"), out.join("model.onnx"));
    let verified = object(&["model", "verify", text(&model)]);
    assert_eq!(
        (&verified["model_sha256"], &verified["standardised_columns"]),
        (&run["model_sha256"], &13.into())
    );
    let left = object(&["model", "export", text(&model), "--plan", text(&plan), "--to", text(&graph)]);
    assert_eq!((&left["as"], &left["standardiser_missing"]), (&"onnx".into(), &false.into()));
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let heart = std::fs::read_to_string(HEART).unwrap();
    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, heart.split("[simulation]").next().unwrap()).unwrap();
    let (plan, empty) = (text(&plan), text(folder.path()));
    for command in ["ls", "watch", "log", "models"] {
        let (code, said) = failure(&["run", command, "--dir", empty]);
        assert!(code == 2 && said.contains("server.toml") && said.contains("--dir "), "{command}: {said}");
    }
    let (code, said) = failure(&["run", "submit", plan, "--dir", empty]);
    assert!(code == 2 && said.contains("--dir FOLDER") && !said.contains("os error"), "{said}");
    let (code, said) = failure(&["simulate", plan]);
    assert!(code == 2 && said.contains("no [simulation] table") && said.contains("run submit"), "{said}");
    let (code, said) = failure(&["site", "join", "--data", HEART]);
    assert!(code == 2 && said.contains("consortia invite create"), "{said}");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    for args in [&["completions", "bash"][..], &["reference"], &["--help"], &["check", HEART]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() {
    let folder = tempfile::tempdir().unwrap();
    let fed = folder.path().join("fed");
    object(&["server", "init", text(&fed), "--listen", "127.0.0.1:0"]);
    std::fs::remove_file(fed.join("authority/issuer-key.pem")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(["server", "run", text(&fed), "--while-stdin-open"]).stdin(Stdio::null());
    let output = command.env_remove("NO_COLOR").env_remove("RUST_LOG").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("WARN") && said.contains("nobody can be invited"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}
