//! `consortia new`: what each template makes can be checked and simulated as it stands, learns something, and is the same again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn consortia(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(["--format", "json"]).args(args).current_dir(dir).output().unwrap()
}

fn object(dir: &Path, args: &[&str]) -> Value {
    let output = consortia(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

/// Makes a folder, checks and simulates it; the accuracy at the end, beside what guessing gives.
fn try_out(template: &str, guessing: f64) {
    let dir = tempfile::tempdir().unwrap();
    let made = object(dir.path(), &["new", "mine", "--template", template]);
    let checked = object(dir.path(), &["check", "mine/federation.toml"]);
    assert_eq!((&checked["kind"], &checked["name"]), (&"simulation".into(), &"mine".into()));
    let done = object(dir.path(), &["simulate", "mine/federation.toml", "--out", "runs"]);
    let accuracy = done["accuracy"].as_f64().unwrap_or_else(|| panic!("{done}"));
    assert!(accuracy > guessing + 0.1, "{template}: {accuracy}");

    object(dir.path(), &["new", "second/mine", "--template", template]);
    for name in made["files"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let read = |folder: &str| std::fs::read(dir.path().join(folder).join(name)).unwrap();
        assert_eq!(read("mine"), read("second/mine"), "{name} is the same again");
    }
    let again = consortia(dir.path(), &["new", "mine", "--template", template]);
    assert_eq!(again.status.code(), Some(2), "a folder with something in it is not touched");
}

#[test]
fn a_new_folder_of_tables_learns() {
    try_out("csv", 0.5);
}

#[test]
fn a_new_folder_of_images_learns() {
    try_out("images", 0.34);
}

#[test]
fn a_new_folder_of_text_learns() {
    try_out("text", 0.5);
}

#[test]
fn a_new_private_folder_learns_and_promises_epsilon_one() {
    try_out("private", 0.5);
    let dir = tempfile::tempdir().unwrap();
    object(dir.path(), &["new", "mine", "--template", "private"]);
    let checked = object(dir.path(), &["check", "mine/federation.toml"]);
    assert!(checked["privacy"].as_str().unwrap().contains("record"), "{checked}");
    let wrong = consortia(dir.path(), &["new", "not a name"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn the_readme_names_the_policy_under_which_a_site_takes_part() {
    for (template, more) in [("csv", &[][..]), ("private", &["--public-records", "150"][..])] {
        let dir = tempfile::tempdir().unwrap();
        object(dir.path(), &["new", "mine", "--template", template]);
        let readme = std::fs::read_to_string(dir.path().join("mine/README.md")).unwrap();
        let joins: Vec<&str> = readme.lines().filter(|line| line.contains("site join")).collect();
        let policy = joins[0].split("--policy ").nth(1).unwrap().split_whitespace().next().unwrap();
        object(dir.path(), &["site", "policy", "init", "policy.toml", "--policy", policy]);
        let judged = consortia(
            dir.path(),
            &[&["site", "policy", "check", "policy.toml", "mine/federation.toml"][..], more].concat(),
        );
        assert!(judged.status.success(), "{template}: {}", String::from_utf8_lossy(&judged.stderr));
        assert_eq!(readme.contains("public_records = N"), !more.is_empty());
    }
}

#[test]
fn of_a_plan_or_run_without_privacy_there_is_no_epsilon_to_verify() {
    let dir = tempfile::tempdir().unwrap();
    object(dir.path(), &["new", "mine", "--template", "csv"]);
    let done = object(dir.path(), &["simulate", "mine/federation.toml", "--out", "runs"]);
    let run = done["results"].as_str().unwrap();
    for (file, said) in [
        ("mine/federation.toml", "it promises no privacy"),
        (run, "this run promises no privacy"),
        ("mine", "there is no"),
    ] {
        let output = consortia(dir.path(), &["privacy", "verify", file]);
        let talk = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{talk}");
        assert!(talk.contains(said), "{talk}");
    }
    object(dir.path(), &["new", "guarded", "--template", "private"]);
    let output = consortia(dir.path(), &["privacy", "verify", "guarded/federation.toml"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("each of its runs writes one"));
    let done = object(dir.path(), &["simulate", "guarded/federation.toml", "--out", "runs"]);
    let run = done["results"].as_str().unwrap();
    assert_eq!(
        object(dir.path(), &["privacy", "verify", run])["holds"],
        true,
        "a folder of results is enough"
    );
}
