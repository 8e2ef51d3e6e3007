//! The examples keep the promises of their first lines: every program in `examples/` runs and prints what it promises, and
//! every file there is a simulation that makes sense. Nothing here trains for long or leaves loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use consortia::methods::Registry;
use consortia::simulations::Scenario;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeded(output: Output) -> String {
    let (said, complained) = (text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success(), "{}\n{said}{complained}", output.status);
    said
}

/// What an example prints. `cargo test` builds them beside the folder of this very program.
fn run(example: &str) -> String {
    let here = std::env::current_exe().unwrap();
    let program = here.ancestors().nth(2).unwrap().join("examples").join(example);
    assert!(program.exists(), "{} is not built; run `cargo build --examples` first", program.display());
    succeeded(Command::new(program).output().unwrap())
}

/// The numbers of the one line that begins with `start`.
fn numbers(output: &str, start: &str) -> Vec<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix(start));
    let line = line.unwrap_or_else(|| panic!("no line begins with `{start}`:\n{output}"));
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The files in `examples/` whose names end in `.extension`, sorted.
fn files(extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    found.sort();
    assert!(found.len() >= 5, "{found:?}");
    found
}

#[test]
fn the_quickstart_learns_to_tell_who_is_ill() {
    let output = run("quickstart");
    assert_eq!(numbers(&output, "switzerland"), [30.0, 16.0]);
    assert!(numbers(&output, "round 10:")[0] >= 0.78, "{output}");
}

#[test]
fn the_deployed_and_the_simulated_federation_print_one_hash() {
    let output = run("over_quic");
    let hash = |start| output.lines().find_map(|line: &str| line.strip_prefix(start)).unwrap().trim();
    assert_eq!(hash("over QUIC "), hash("simulated "));
    assert_eq!(hash("over QUIC ").len(), 64);
}

#[test]
fn the_custom_model_learns_what_logistic_regression_cannot() {
    let output = run("custom_model");
    assert!(numbers(&output, "logistic regression")[0] < 0.6, "{output}");
    assert!(numbers(&output, "products of features")[0] > 0.95, "{output}");
}

#[test]
fn the_custom_learner_moves_its_centres_to_where_the_numbers_are() {
    let output = run("custom_learner");
    let (first, last) = (numbers(&output, "round  1:")[0], numbers(&output, "round 10:")[0]);
    assert!(last < first / 2.0, "{output}");
}

#[test]
fn uneven_clients_cost_accuracy_and_evenly_dealt_ones_do_not() {
    let output = run("heterogeneous");
    let (even, shards) = (numbers(&output, "iid"), numbers(&output, "shards"));
    assert!(even[1] > 0.95 && even[0] > shards[0] + 0.3, "{output}");
    assert!(even[4..].iter().all(|classes| *classes == 10.0), "{output}");
    assert!(shards[4..].iter().all(|classes| *classes <= 3.0), "{output}");
}

#[test]
fn nesterov_is_ahead_of_plain_averaging() {
    let last = numbers(&run("custom_strategy"), "round 20");
    assert!(last.len() == 2 && last[1] < last[0] - 0.05, "{last:?}");
}

#[test]
fn the_custom_method_finds_the_means_of_the_pooled_records() {
    let output = run("custom_method");
    let table = std::fs::read_to_string(folder().join("data/heart_disease.csv")).unwrap();
    let mut lines = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let heads = lines.next().unwrap();
    let column = |name: &str| heads.iter().position(|head| *head == name).unwrap();
    let (age, label, split) = (column("age"), column("label"), column("split"));
    let mean = |class: &str| {
        let own = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let own = own.filter(|cells| cells[split] == "train" && cells[label] == class);
        let ages: Vec<f64> = own.map(|cells| cells[age].parse().unwrap()).collect();
        ages.iter().sum::<f64>() / ages.len() as f64
    };
    let expected = format!("mean age of the healthy {:.1}, of the ill {:.1}\n", mean("0"), mean("1"));
    assert_eq!(output, expected);
    let said = std::fs::read_to_string(folder().join("custom_method.rs")).unwrap();
    assert!(said.contains(&format!("//! {expected}")), "its head says something else than {expected}");
}

#[test]
fn every_example_names_its_command_and_fits_on_a_page() {
    for path in files("rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            text.contains(&format!("//! $ cargo run --example {name}\n")),
            "{name} does not say how it is run"
        );
        // A method has a half at the server and one at a site.
        let most = if name == "custom_method" { 130 } else { 100 };
        assert!(text.lines().count() <= most, "{name} has {} lines", text.lines().count());
    }
}

#[test]
fn every_simulation_file_makes_sense_and_names_its_command() {
    for path in files("toml") {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let methods = Registry::standard();
        let scenario = Scenario::parse_with(&text, &folder(), &|_| Some("/data".into()), methods.server());
        assert!(scenario.is_ok(), "{name}: {}", scenario.unwrap_err());
        assert!(
            text.contains(&format!("consortia simulate examples/{name}\n")),
            "{name} does not say how it is run"
        );
    }
}

/// What `consortia simulate examples/heart.toml` says of its model and test records on so many threads.
fn heart(threads: &str) -> (String, f64) {
    let results = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_consortia"))
        .args(["simulate", "--seed", "7", "--format", "json", "--threads", threads, "--out"])
        .arg(results.path())
        .arg(folder().join("heart.toml"))
        .output();
    let said = succeeded(output.unwrap());
    let object: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    (object["model_sha256"].as_str().unwrap().to_owned(), object["accuracy"].as_f64().unwrap())
}

#[test]
fn the_hospitals_model_is_good_and_the_same_on_one_thread_and_on_two() {
    let (one, two) = (heart("1"), heart("2"));
    assert_eq!(one, two);
    assert!(one.1 >= 0.78, "{}", one.1);
}
