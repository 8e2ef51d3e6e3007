//! Tables as people have them, from a file to a measured model, by the commands that people type: a German export with words for
//! classes, no list of columns and no list of test rows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use consortia::protocol::{ClientId, Invite, Token};
use serde_json::Value;

const PLAN: &str = r#"name = "patients"
rounds = 4
model = "logistic"

[data.table]
label = "ill"
target = { classes = ["no", "yes"] }
features = [
    "age",
    { prefix = "lab_" },
]
standardise = "federated"
missing = "mean"

[training]
batch_size = 16
optimizer = { sgd = { learning_rate = 0.1 } }

[evaluation]
records = "validation"

[simulation]
partition = { natural = { column = "ward" } }

[simulation.dataset.files.csv]
train = "patients.csv"
decimal = ","
group_column = "patient"
test_fraction = 0.25
validation_fraction = 0.25
"#;

fn consortia(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.current_dir(folder).args(args).stdin(Stdio::null()).output().unwrap()
}

fn object(folder: &Path, args: &[&str]) -> Value {
    let output = consortia(folder, &[&["--format", "json"], args].concat());
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?} failed: {talk}");
    serde_json::from_slice(String::from_utf8(output.stdout).unwrap().lines().last().unwrap().as_bytes())
        .unwrap()
}

/// How a command failed: its exit code and what it said.
fn failure(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = consortia(folder, args);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// 240 visits of 80 patients in two wards, as a spreadsheet saves them; `yes` where the first value is large.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = "\u{feff}patient;ward;age;lab_b;lab_a;ill\r\n".to_owned();
    for visit in 0..240u32 {
        let (patient, value) = (visit / 3, visit.wrapping_mul(2_654_435_761) % 1000);
        let ill = if value > 500 { "yes" } else { "no" };
        let lab = if visit % 17 == 0 { "NULL".to_owned() } else { format!("{},{:03}", value / 100, value) };
        write!(rows, "p{patient:03};w{};{},5;{lab};0,{value:04};{ill}\r\n", patient % 2, 30 + patient % 40)
            .unwrap();
    }
    fs::write(folder.path().join("patients.csv"), rows).unwrap();
    fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    folder
}

#[test]
fn a_spreadsheets_export_trains_and_is_measured_on_rows_that_nobody_looked_at() {
    let folder = folder();
    let dir = folder.path();
    let run = object(dir, &["simulate", "plan.toml", "--out", "out"]);
    let results = Path::new(run["results"].as_str().unwrap()).to_path_buf();
    let model = dir.join(&results).join("model.safetensors");
    let resolved = fs::read_to_string(dir.join(&results).join("resolved.toml")).unwrap();
    for listed in ["\"lab_b\"", "\"lab_a\"", "\"yes\"", "records = \"validation\""] {
        assert!(resolved.contains(listed), "{listed}: {resolved}");
    }
    let measured = |plan: &str, on: &str| {
        object(dir, &["model", "evaluate", model.to_str().unwrap(), "--plan", plan, "--on", on])
    };
    let (validation, test) = (measured("plan.toml", "validation"), measured("plan.toml", "test"));
    assert_eq!(validation["records"], "validation");
    let rows = |of: &Value| of["examples"].as_u64().unwrap();
    assert!(rows(&validation) % 3 == 0 && rows(&test) % 3 == 0, "patients are whole: {validation} {test}");
    assert!((30..=90).contains(&rows(&validation)) && (30..=90).contains(&rows(&test)));
    assert!(test["accuracy"].as_f64().unwrap() > 0.8, "{test}");
    // What the run measured is what the validation records say, and not the test records.
    let metrics = fs::read_to_string(dir.join(&results).join("metrics.csv")).unwrap();
    let of = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    let (names, last) = (of(metrics.lines().next().unwrap()), of(metrics.lines().last().unwrap()));
    let place = names.iter().position(|name| name == "sites_accuracy").unwrap();
    let accuracy: f64 = last[place].parse().unwrap();
    assert!((accuracy - validation["accuracy"].as_f64().unwrap()).abs() < 1e-6, "{accuracy} {validation}");
}

#[test]
fn a_simulation_without_the_records_that_its_plan_measures_on_says_so() {
    let folder = folder();
    let dir = folder.path();
    fs::write(dir.join("plan.toml"), PLAN.replace("validation_fraction = 0.25", "")).unwrap();
    let (code, said) = failure(dir, &["simulate", "plan.toml", "--out", "out"]);
    assert!(code == 2 && said.contains("validation records and there are none"), "{said}");
    assert!(said.contains("`validation_fraction`"), "{said}");
}

#[test]
fn a_plan_without_a_list_of_columns_is_completed_or_says_how() {
    let folder = folder();
    let dir = folder.path();
    fs::write(dir.join("bare.toml"), PLAN.split("[simulation]").next().unwrap()).unwrap();
    let (code, said) = failure(dir, &["check", "bare.toml"]);
    assert!(code == 2 && said.contains("bare.toml: line") && said.contains("--columns FILE"), "{said}");
    // The header completes it before any server is called.
    let (_, said) =
        failure(dir, &["run", "submit", "bare.toml", "--columns", "patients.csv", "--dir", "nowhere"]);
    assert!(!said.contains("--columns"), "{said}");
    let (code, said) =
        failure(dir, &["run", "submit", "bare.toml", "--columns", "plan.toml", "--dir", "nowhere"]);
    assert!(code == 2 && said.contains("means no column of plan.toml"), "{said}");
    object(dir, &["check", "plan.toml"]);
}

#[test]
fn an_invite_is_not_used_up_for_a_file_that_is_no_table() {
    let folder = folder();
    let dir = folder.path();
    fs::write(dir.join("README.md"), "# Our ward\n\nSome words, and more of them, here.\n").unwrap();
    fs::write(dir.join("x.npz"), b"PK\x03\x04rest").unwrap();
    let invite = Invite {
        site: ClientId::new("north").unwrap(),
        servers: vec!["127.0.0.1:9".to_owned()],
        root_sha256: [7; 32],
        token: Token::new([9; 16]),
        expires: 4_000_000_000,
    };
    for (file, said) in [
        ("README.md", "README.md` is no table: its first line names no two columns"),
        ("x.npz", "x.npz`: it is a ZIP archive"),
        ("plan.toml", "is no table"),
        ("none.csv", "there is no file"),
    ] {
        let (code, message) = failure(dir, &["site", "join", &invite.to_text(), "--data", file]);
        assert!(code == 2 && message.contains(said), "{file}: {message}");
        assert!(!dir.join("north").exists());
    }
}
