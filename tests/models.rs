//! A model's way out as people type it: `model export` and `model verify`, what they write, say and refuse.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use command::results::{ModelFile, write_model};
use consortia::protocol::{Layout, Parameters, PrivacySpec};
use consortia::server::{PrivacyStatement, Subject};
use serde_json::Value;

const HEART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heart.toml");
const GIVEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heart_private.toml");
const OTHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/heterogeneous.toml");
const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/heart_disease.csv");

fn consortia(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// What a command prints as an object, and what it says beside it.
fn object(args: &[&str]) -> (Value, String) {
    let output = consortia(&[&["--format", "json"], args].concat());
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?} failed: {talk}");
    (serde_json::from_slice(&output.stdout).unwrap(), talk)
}

/// How a command failed: its exit code and what it said.
fn failure(args: &[&str]) -> (i32, String) {
    let output = consortia(args);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The model of a simulated run, and what the run said of it.
fn simulated(folder: &Path, rounds: &str) -> (PathBuf, Value) {
    let rounds = format!("rounds={rounds}");
    let args = ["--format", "json", "simulate", HEART, "--set", &rounds, "--out", text(folder)];
    let output = consortia(&args);
    let line = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
    let run: Value = serde_json::from_str(&line).unwrap();
    (PathBuf::from(run["results"].as_str().unwrap()).join("model.safetensors"), run)
}

/// A model of the heart plan that nobody trained, in the way that this release writes it.
fn made(folder: &Path, values: Vec<f32>) -> PathBuf {
    let layout =
        Layout::new([("dense1.weight".into(), vec![2, 13]), ("dense1.bias".into(), vec![2])]).unwrap();
    let path = folder.join("made.safetensors");
    write_model(&path, &layout, &Parameters::new(values), None).unwrap();
    path
}

#[test]
fn a_simulated_model_leaves_in_both_forms_and_keeps_its_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let (model, run) = simulated(folder.path(), "2");
    let verified = object(&["model", "verify", text(&model), "--plan", HEART]).0;
    assert_eq!(verified["model_sha256"], run["model_sha256"]);
    assert_eq!((&verified["parameters"], &verified["standardised_columns"]), (&28.into(), &13.into()));
    assert_eq!(
        object(&["model", "verify", text(&model)]).0,
        verified,
        "the file tells the order of its tensors"
    );

    let copy = folder.path().join("out.safetensors");
    let (exported, notes) = object(&["model", "export", text(&model), "--plan", HEART, "--to", text(&copy)]);
    assert_eq!((&exported["as"], &exported["model_sha256"]), (&"safetensors".into(), &run["model_sha256"]));
    assert_eq!((&exported["standardiser_missing"], notes.as_str()), (&false.into(), ""));
    let (before, after) = (ModelFile::read(&model).unwrap(), ModelFile::read(&copy).unwrap());
    assert_eq!(before.tensors(), after.tensors());
    assert_eq!(before.standardiser(), after.standardiser());
    assert!(after.standardiser().is_some());

    let graph = folder.path().join("model.bin");
    let args = ["model", "export", text(&copy), "--plan", HEART, "--to", text(&graph)];
    let (code, said) = failure(&args);
    assert!(code == 2 && said.contains("model.bin") && said.contains("--as onnx"), "{said}");
    let (exported, _) = object(&[&args[..], &["--as", "onnx"]].concat());
    assert_eq!((&exported["as"], &exported["model_sha256"]), (&"onnx".into(), &run["model_sha256"]));
    let bytes = std::fs::read(&graph).unwrap();
    for word in [
        "consortia",
        "dense1.weight",
        "Gemm",
        "probabilities",
        "trestbps",
        run["model_sha256"].as_str().unwrap(),
    ] {
        assert!(bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{word}");
    }
    let (code, said) = failure(&[&args[..], &["--as", "onnx"]].concat());
    assert!(code == 2 && said.contains("--force"), "{said}");
    object(&[&args[..], &["--as", "onnx", "--force"]].concat());
    assert_eq!(std::fs::read(&graph).unwrap(), bytes);
}

#[test]
fn an_exported_file_predicts_from_raw_columns_as_well_as_the_federation_measured() {
    let Ok(python) = std::env::var("CONSORTIA_PYTHON") else {
        eprintln!("skipped: CONSORTIA_PYTHON is not set to a Python with onnxruntime and numpy");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (model, run) = simulated(folder.path(), "20");
    let graph = folder.path().join("model.onnx");
    object(&["model", "export", text(&model), "--plan", HEART, "--to", text(&graph)]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/onnx/accuracy.py");
    let output = Command::new(python).args([script, text(&graph), RECORDS]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let measured = run["accuracy"].as_f64().unwrap_or_else(|| panic!("{run}"));
    // A record on the line may fall to the other side: there are 254 of them.
    assert!((found - measured).abs() < 1.5 / 254.0 && measured > 0.75, "{found} against {measured}");
}

#[test]
fn a_file_without_the_federation_s_standardiser_leaves_only_for_prepared_records_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = made(folder.path(), vec![0.5; 28]);
    let graph = folder.path().join("model.onnx");
    let args = ["model", "export", text(&model), "--plan", HEART, "--to", text(&graph)];
    let (code, said) = failure(&args);
    assert!(code == 2 && said.contains("standardises 13 columns") && !graph.exists(), "{said}");
    let (exported, notes) = object(&[&args[..], &["--input", "prepared"]].concat());
    assert!(exported["standardiser_missing"] == true && notes.contains("no means and deviations"), "{notes}");
    // A plan that spells them out needs none.
    let copy = folder.path().join("copy.safetensors");
    object(&["model", "export", text(&model), "--plan", GIVEN, "--to", text(&copy)]);
    assert_eq!(ModelFile::read(&copy).unwrap().standardiser().unwrap().mean[..2], [55.0, 0.5]);
    object(&["model", "export", text(&model), "--plan", GIVEN, "--to", text(&graph), "--force"]);
}

#[test]
fn another_plan_s_model_and_a_changed_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = made(folder.path(), vec![0.5; 28]);
    let graph = folder.path().join("model.onnx");
    let (code, said) = failure(&["model", "export", text(&model), "--plan", OTHER, "--to", text(&graph)]);
    assert!(code == 2 && said.contains("`dense1.weight` has the shape [2, 13]"), "{said}");
    let (code, said) = failure(&["model", "verify", text(&model), "--plan", OTHER]);
    assert!(code == 1 && said.contains("give the plan that this model was trained by"), "{said}");

    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    for args in [
        vec!["model", "verify", text(&model)],
        vec!["model", "export", text(&model), "--plan", GIVEN, "--to", text(&graph)],
    ] {
        let (code, said) = failure(&args);
        assert!(code == 1 && said.contains("it was changed or damaged"), "{said}");
    }
    assert!(!graph.exists());
    assert_eq!(failure(&["model", "verify", HEART]).0, 2);
}

#[test]
fn a_model_that_is_not_finite_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let mut values = vec![0.5; 28];
    values[27] = f32::NAN;
    let (code, said) = failure(&["model", "verify", text(&made(folder.path(), values))]);
    assert!(code == 1 && said.contains("`dense1.bias` has values that are not finite"), "{said}");
}

#[test]
fn a_statement_is_about_this_model_or_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let model = made(folder.path(), vec![0.5; 28]);
    let write = |model_sha256: String| {
        let subject = Subject { model_sha256, run: "r".into(), round: 3, is_seeded: false };
        let statement = PrivacyStatement::of(subject, &PrivacySpec::default(), None).unwrap();
        let path = folder.path().join("statement.json");
        std::fs::write(&path, statement.to_json()).unwrap();
        path
    };
    let path = write(Parameters::new(vec![0.5; 28]).sha256());
    let verified = object(&["model", "verify", text(&model), "--statement", text(&path)]).0;
    assert_eq!(verified["statement"]["round"], 3);
    let path = write(Parameters::new(vec![0.25; 28]).sha256());
    let (code, said) = failure(&["model", "verify", text(&model), "--statement", text(&path)]);
    assert!(code == 1 && said.contains("says nothing of this model"), "{said}");
}

#[test]
fn what_stays_at_a_site_is_missed_until_the_site_adds_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (plan, model, site) = (path("plan.toml"), path("shared.safetensors"), path("site.toml"));
    let personal = "model = { mlp = { hidden = [2] } }\npersonal_layers = [\"dense2\"]";
    let written = std::fs::read_to_string(HEART).unwrap().replace("model = \"logistic\"", personal);
    std::fs::write(&plan, written.replace("standardise = \"federated\"", "")).unwrap();
    let shared =
        Layout::new([("dense1.weight".into(), vec![2, 13]), ("dense1.bias".into(), vec![2])]).unwrap();
    write_model(&model, &shared, &Parameters::new(vec![0.5; 28]), None).unwrap();
    let (graph, whole) = (path("m.onnx"), path("m.safetensors"));
    let export = |to: &Path| {
        ["model", "export", text(&model), "--plan", text(&plan), "--to", text(to)].map(str::to_owned)
    };
    let with = |to: &Path, more: &[&str]| -> Vec<String> {
        export(to).into_iter().chain(more.iter().map(|&word| word.to_owned())).collect()
    };
    fn words(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    let (code, said) = failure(&words(&with(&graph, &[])));
    assert!(code == 2 && said.contains("`dense2.weight`, `dense2.bias` at the sites"), "{said}");
    let (_, notes) = object(&words(&with(&path("part.safetensors"), &[])));
    assert!(notes.contains("this is the shared part alone"), "{notes}");

    let file = "server = \"h:1\"\nidentity = \"i\"\nstate = \"state\"\n[data.csv]\ntrain = \"a.csv\"\n";
    std::fs::write(&site, file).unwrap();
    std::fs::create_dir(path("state")).unwrap();
    let kept = |values: &[f32]| serde_json::json!({ "round": 3, "before": null, "after": values });
    let keep = |runs: Value| std::fs::write(path("state/personal.json"), runs.to_string()).unwrap();
    let (code, said) = failure(&words(&with(&graph, &["--site", text(&site)])));
    assert!(code == 2 && said.contains("keeps no personal layers"), "{said}");
    keep(serde_json::json!({ "1": kept(&[0.25; 6]), "2": kept(&[0.5; 5]) }));
    let (code, said) = failure(&words(&with(&graph, &["--site", text(&site)])));
    assert!(
        code == 2 && said.contains("choose one with --run: 0000000000000001, 0000000000000002"),
        "{said}"
    );
    let (code, said) = failure(&words(&with(&graph, &["--site", text(&site), "--run", "0000000000000002"])));
    assert!(code == 2 && said.contains("keeps 5 personal parameters where the plan has 6"), "{said}");
    let (left, notes) = object(&words(&with(&graph, &["--site", text(&site), "--run", "0000000000000001"])));
    assert_eq!((&left["parameters"], notes.as_str()), (&34.into(), ""));
    object(&words(&with(&whole, &["--site", text(&site), "--run", "0000000000000001"])));
    let verified = object(&["model", "verify", text(&whole)]).0;
    assert_eq!(verified["parameters"], 34);
    assert_eq!(
        verified["model_sha256"],
        Parameters::new(vec![0.5; 28]).sha256(),
        "that of the federation's model"
    );
}
