//! `consortia bench` at sizes that take a second: what its object holds, and that it counts what was done. How fast anything
//! is, no test judges.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    // Made-up images, whatever the machine has.
    command.arg("bench").args(args).env_remove("CONSORTIA_DATA").stdin(Stdio::null());
    command.output().unwrap()
}

fn object(args: &[&str]) -> Value {
    let output = bench(&[args, &["--format", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(out.lines().count(), 1, "one object, and nothing else: {out}");
    serde_json::from_str(&out).unwrap()
}

fn positive(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {object}");
    }
}

/// What every workload must say, and that it did `rounds` rounds of its cohort.
fn check(object: &Value, rounds: u64, parameters: u64) {
    let cohort = object["cohort"].as_u64().unwrap();
    assert_eq!(object["updates"].as_u64(), Some(rounds * cohort), "{object}");
    assert_eq!(object["parameters"].as_u64(), Some(parameters));
    assert_eq!(object["images"], "synthetic", "made-up images are called so");
    positive(object, &["updates_per_s", "share_of_limit", "peak_rss_bytes", "seconds_to_first_aggregate"]);
    let outside = object["share_outside_training"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&outside), "a share of the time: {outside}");
    let limit = object["limit"]["updates_per_s"].as_f64().unwrap();
    let share = object["updates_per_s"].as_f64().unwrap() / limit;
    assert!((object["share_of_limit"].as_f64().unwrap() / share - 1.0).abs() < 1e-9);
    let accuracy = object["accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy) && object["loss"].as_f64().unwrap().is_finite());
    assert!(object["machine"]["cores"].as_u64().unwrap() > 0);
    let each = object["updates_per_s_of"]["each"].as_array().unwrap();
    assert_eq!(each.len() as u64, object["repeats"].as_u64().unwrap());
}

#[test]
fn tiny_clients_are_counted_on_one_thread_and_on_two_and_learn() {
    let args = ["W1", "--rounds", "40", "--threads", "2", "--repeats", "2", "--scaling"];
    let measured = object(&args);
    check(&measured, 40, 7850);
    positive(&measured, &["scaling"]);
    assert_eq!(measured["updates_per_s_alone"]["each"].as_array().unwrap().len(), 2);
    assert!(measured["accuracy"].as_f64().unwrap() > 0.8, "forty rounds teach it clouds: {measured}");
    let again = object(&["W1", "--rounds", "40", "--threads", "1", "--repeats", "1"]);
    assert_eq!(again["model_sha256"], measured["model_sha256"], "threads change no bit");
    assert!(again["scaling"].is_null());
}

#[test]
fn networks_are_measured_with_and_without_privacy() {
    let tiny = ["--rounds", "2", "--records", "10", "--repeats", "1"];
    check(&object(&[&["W2"], &tiny[..]].concat()), 2, 1_663_370);
    let plain = object(&[&["w3", "--profile"], &tiny[..]].concat());
    let phases = plain["profile"]["phases"].as_array().unwrap();
    let shares: f64 = phases.iter().map(|phase| phase["share"].as_f64().unwrap()).sum();
    assert!(phases.len() == 4 && (shares - 1.0).abs() < 1e-9, "phases are parts of the whole: {plain}");
    positive(&phases[0], &["core_seconds_per_update"]);
    let private = object(&[&["W4"], &tiny[..]].concat());
    check(&plain, 2, 199_210);
    check(&private, 2, 199_210);
    assert_ne!(plain["model_sha256"], private["model_sha256"], "W4 clips and noises");
}

#[test]
fn an_update_s_way_is_measured_beside_memory() {
    let measured = object(&["aggregate", "--parameters", "5000", "--repeats", "2"]);
    positive(&measured, &["updates_per_s", "share_of_limit", "peak_rss_bytes"]);
    positive(&measured["limit"], &["bytes_per_s"]);
    let steps = measured["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
    steps.iter().for_each(|step| positive(&step["seconds"], &["median", "least"]));
}

#[test]
fn training_steps_are_measured_by_network_and_batch() {
    let measured = object(&["steps", "--steps", "2", "--repeats", "1", "--only", "mlp", "--profile"]);
    let networks = measured["networks"].as_array().unwrap();
    let batches: Vec<u64> = networks.iter().map(|row| row["batch_size"].as_u64().unwrap()).collect();
    assert_eq!(batches, [10, 32, 64]);
    networks.iter().for_each(|row| positive(row, &["share_of_limit", "flops"]));
    let layers = networks[0]["profile"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3, "three dense layers: {measured}");
    layers.iter().for_each(|layer| positive(layer, &["forward_seconds", "backward_seconds"]));
    let layered = object(&["steps", "--steps", "1", "--repeats", "1", "--only", "lstm"]);
    assert_eq!(layered["networks"][0]["network"], "lstm");
    let wrong = bench(&["steps", "--only", "nothing"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn people_read_sentences_and_a_folder_without_images_is_refused() {
    let output = bench(&["W1", "--rounds", "2", "--repeats", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("W1: 1000 clients with 10 of made-up images"), "{text}");
    assert!(text.contains("client updates a second") && text.contains("GF/s"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let wrong = bench(&["W1", "--data", folder.path().to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("mnist"));
}

#[test]
fn a_model_s_ways_are_measured_beside_bare_quic() {
    let measured = object(&["wire", "--parameters", "1000000", "--sites", "2", "--rounds", "3"]);
    positive(&measured, &["updates_per_s", "share_of_limit", "peak_rss_bytes"]);
    for (sites, place) in [(1, "one_site"), (2, "sites")] {
        let measured = &measured[place];
        assert_eq!((&measured["sites"], &measured["model_bytes"]), (&sites.into(), &4_000_000.into()));
        for way in ["down", "up"] {
            positive(&measured[way], &["seconds", "bare_seconds", "bare_usual_seconds", "bytes_per_s"]);
            let [share, ours, bare] =
                ["share_of_bare", "seconds", "bare_seconds"].map(|key| measured[way][key].as_f64().unwrap());
            assert!((share * ours / bare - 1.0).abs() < 1e-9);
        }
        positive(measured, &["seconds_to_model", "work_seconds", "seconds_to_disk", "server_peak_models"]);
    }
}
