//! What the command says about a plan's privacy before it runs, and about a statement afterwards.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use privacy::accounting::gaussian;
use privacy::ledger::{Ledger, Release};
use serde_json::Value;
use server::{Plan, PrivacyStatement, Subject};

/// Logistic regression on digits: 7850 parameters.
const PLAN: &str = r#"
name = "digits"
rounds = 100
model = "logistic"

[data.tensor]
shape = [784]
target = { classes = 10 }

[training]
batch_size = 8
optimizer = { sgd = { learning_rate = 0.1 } }
"#;

fn private(noise: f64, denominator: f64, epsilon_max: f64, more: &str) -> String {
    format!(
        "{PLAN}\n[privacy.central]\ndelta = 1e-5\nepsilon_max = {epsilon_max}\nnoise_multiplier = {noise}\n\
         denominator = {denominator}\nsampling = {{ availability = {{ participations_max = 1000 }} }}\n{more}"
    )
}

fn consortia(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn object(args: &[&str]) -> Value {
    let output = consortia(&[&["--format", "json"], args].concat());
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} failed: {talk}");
    serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
}

fn said(args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = consortia(args);
    let text = [stdout, stderr].concat();
    (status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    file
}

fn explained(plan: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    object(&["privacy", "explain", written(folder.path(), "plan.toml", plan).to_str().unwrap()])
}

#[test]
fn a_plan_is_explained_with_the_figures_of_the_exact_formula() {
    let found = explained(&private(10.0, 100.0, 2.0, ""));
    let promise = &found["promises"][0];
    assert_eq!((promise["unit"].as_str(), promise["population"].as_str()), (Some("client"), Some("digits")));
    assert!(promise["against"].as_str().unwrap().contains("not the server"));
    let exact = |rounds: f64| gaussian::epsilon(10.0 / rounds.sqrt(), 1e-5).unwrap();
    let epsilon = promise["epsilon"].as_array().unwrap();
    assert_eq!(epsilon.iter().map(|one| one["rounds"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 50, 100]);
    for one in epsilon {
        let exact = exact(one["rounds"].as_f64().unwrap());
        let (rdp, pld) = (one["rdp"].as_f64().unwrap(), one["pld"].as_f64().unwrap());
        assert!(pld >= exact && pld <= exact * 1.01 && rdp >= exact && rdp <= exact * 1.2, "{one}");
    }
    let refused = promise["refused_round"].as_f64().unwrap();
    assert!(exact(refused) > 1.99 && exact(refused - 1.0) <= 2.0, "round {refused}");
    assert!(
        !found["outside"].as_array().unwrap().is_empty() && !found["assumes"].as_array().unwrap().is_empty()
    );
}

#[test]
fn a_run_that_cannot_learn_through_its_noise_is_called_hopeless_before_it_starts() {
    let usable = explained(&private(10.0, 100.0, 9.0, ""));
    assert_eq!(
        (usable["parameters"].as_u64(), usable["promises"][0]["refused_round"].as_u64()),
        (Some(7850), None)
    );
    let signal = &usable["signal_to_noise"];
    // 10 * sqrt(7850) / 100, and a tenth of it over 100 rounds.
    assert!((signal["noise_per_round"].as_f64().unwrap() - 8.860_022).abs() < 1e-5, "{signal}");
    assert!((signal["noise_over_run"].as_f64().unwrap() - 0.886_002).abs() < 1e-5, "{signal}");
    assert_eq!(signal["verdict"], "usable");
    let hopeless = &explained(&private(10.0, 10.0, 9.0, ""))["signal_to_noise"];
    assert_eq!(hopeless["verdict"], "hopeless");
    assert!(
        hopeless["advice"].as_str().unwrap().starts_with("the noise is 8.9 times longer than the largest")
    );
    let tree = &explained(&private(40.0, 10.0, 99.0, "noise = \"tree\"\n"))["signal_to_noise"];
    // 100 is three nodes of the tree.
    let expected = 40.0 * 7850f64.sqrt() / 10.0 * 3f64.sqrt() / 100.0;
    assert!((tree["noise_over_run"].as_f64().unwrap() / expected - 1.0).abs() < 1e-9, "{tree}");
}

#[test]
fn guarantees_that_clients_keep_themselves_are_explained_too() {
    let local = "[privacy.local]\nnoise_multiplier = 20.0\ndelta = 1e-5\nepsilon_max = 50.0\n";
    let records =
        "[privacy.examples]\nnoise_multiplier = 1.0\nnorm_max = 1.0\ndelta = 1e-6\nepsilon_max = 3.0\n";
    let found = explained(&format!("{PLAN}\n{local}{records}"));
    let [client, record] = found["promises"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert!(client["against"].as_str().unwrap().contains("the server included"));
    // Replacing an update moves it by twice the norm: 20 / (2 sqrt(100)) is 1.
    let exact = gaussian::epsilon(1.0, 1e-5).unwrap();
    let last = client["epsilon"][2]["pld"].as_f64().unwrap();
    assert!(last >= exact && last <= exact * 1.01, "{last} for {exact}");
    assert_eq!((record["unit"].as_str(), record["epsilon"].as_array().unwrap().len()), (Some("example"), 0));
    assert_eq!(record["epsilon_max"], 3.0);
    // What a site books: its number of records is public.
    assert_eq!(record["relation"], "zero_out");
}

#[test]
fn the_noise_of_single_records_is_compared_with_their_gradients_and_participations_are_told() {
    let records =
        "[privacy.examples]\nnoise_multiplier = 2.0\nnorm_max = 1.0\ndelta = 1e-6\nepsilon_max = 3.0\n";
    let found = explained(&format!("{PLAN}\n{records}"));
    let signal = &found["signal_to_noise"];
    assert!(signal["noise_per_round"].as_f64().unwrap() > 0.0 && signal["verdict"].is_string(), "{found}");
    assert!(signal["of"].as_str().unwrap().contains("gradients"), "{signal}");
    let outside = found["outside"].to_string();
    assert!(outside.contains("how long a site works"), "{outside}");
    let few = private(10.0, 100.0, 9.0, "").replace("participations_max = 1000", "participations_max = 7");
    assert!(few.contains("participations_max = 7"), "{few}");
    let folder = tempfile::tempdir().unwrap();
    let (code, text) =
        said(&["privacy", "explain", written(folder.path(), "few.toml", &few).to_str().unwrap()]);
    assert!(code == 0 && text.contains("each client may take part 7 times at most"), "{text}");
    assert!(explained(&few)["outside"].to_string().contains("runs of other populations than"), "{text}");
}

#[test]
fn without_privacy_epsilon_is_infinite_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, private) = (
        written(folder.path(), "plain.toml", PLAN),
        written(folder.path(), "private.toml", &private(10.0, 100.0, 9.0, "")),
    );
    let (plain, private) = (plain.to_str().unwrap(), private.to_str().unwrap());
    assert_eq!(object(&["check", plain])["epsilon"], "infinite (no [privacy])");
    let (code, text) = said(&["privacy", "explain", plain]);
    assert!(code == 0 && text.contains("promises no privacy"), "{text}");
    let facts = object(&["check", private]);
    let exact = gaussian::epsilon(1.0, 1e-5).unwrap();
    assert!((facts["epsilon"].as_f64().unwrap() / exact - 1.0).abs() < 0.01, "{facts}");
    assert_eq!((facts["delta"].as_f64(), facts["epsilon_budget"].as_f64()), (Some(1e-5), Some(9.0)));
    let (code, text) = said(&["privacy", "explain", private]);
    assert!(code == 0 && text.contains("enough for every round") && text.contains("usable"), "{text}");
    let (code, text) = said(&["privacy", "explain", "no-such-file.toml"]);
    assert!(code == 2 && text.contains("no-such-file.toml"), "{text}");
}

#[test]
fn a_statement_is_verified_and_a_changed_epsilon_is_found() {
    let plan = Plan::parse(&private(10.0, 100.0, 9.0, "")).unwrap();
    let central = plan.spec.privacy.central.as_ref().unwrap();
    let (mut ledger, _) = Ledger::found(central.terms()).unwrap();
    for round in 1..=3 {
        let (permit, _) = ledger.reserve("r", round, &central.charge(), 1).unwrap();
        let _ = ledger.spend(permit, Release::default()).unwrap();
    }
    let subject = Subject { model_sha256: "ab".to_owned(), run: "r".to_owned(), round: 3, is_seeded: false };
    let statement = PrivacyStatement::of(subject, &plan.spec.privacy, Some(&ledger)).unwrap().to_json();
    let folder = tempfile::tempdir().unwrap();
    let verify =
        |text: &str| said(&["privacy", "verify", written(folder.path(), "s.json", text).to_str().unwrap()]);
    let (code, text) = verify(&statement);
    assert!(code == 0 && text.contains("after 3 releases"), "{text}");

    let mut changed: Value = serde_json::from_str(&statement).unwrap();
    let pld = &mut changed["claims"][0]["epsilon"]["pld"];
    *pld = (pld.as_f64().unwrap() - 1e-6).into();
    let (code, text) = verify(&changed.to_string());
    assert!(code == 1 && text.contains("claim 1 says epsilon") && text.contains("pld"), "{text}");
    let mut changed: Value = serde_json::from_str(&statement).unwrap();
    changed["version"] = 9.into();
    assert_eq!(verify(&changed.to_string()).0, 2);
    assert_eq!(verify("{}").0, 2);
}

#[test]
fn a_plan_that_clips_tensor_by_tensor_is_simulated_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let plan = private(10.0, 4.0, 99.0, "clipping = \"per_layer\"\n")
        .replace("rounds = 100", "rounds = 2")
        .replace("\"logistic\"", "{ mlp = { hidden = [3] } }")
        .replace("[784]", "[4]");
    let simulation = "[simulation]\nclients = 4\ndataset = { synthetic = { rows = 80 } }\n";
    let file = written(folder.path(), "simulation.toml", &format!("{plan}{simulation}"));
    let out = folder.path().join("out");
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let found = object(&["simulate", file, "--out", out]);
    assert_eq!((found["rounds"].as_u64(), found["updates"].as_u64()), (Some(2), Some(8)), "{found}");
    assert_eq!(object(&["privacy", "explain", file])["promises"].as_array().unwrap().len(), 1);
}

#[test]
fn metrics_are_off_under_every_promise_and_named_where_a_plan_tells_them() {
    let promises = [
        "[privacy.local]\nnoise_multiplier = 2.0\ndelta = 1e-5\nepsilon_max = 100.0\n",
        "[privacy.examples]\nnoise_multiplier = 2.0\nnorm_max = 1.0\ndelta = 1e-5\nepsilon_max = 100.0\n",
    ];
    for promise in promises {
        let plan = format!("{PLAN}\n[update]\nweights = \"uniform\"\n\n{promise}");
        let told = |plan: &str| {
            let told =
                explained(plan)["outside"].to_string().contains("losses, accuracies and numbers of examples");
            let privacy = Plan::parse(plan).unwrap().spec.privacy.clone();
            let subject =
                Subject { model_sha256: "ab".to_owned(), run: "r".to_owned(), round: 3, is_seeded: false };
            let statement = PrivacyStatement::of(subject, &privacy, None).unwrap().to_json();
            assert_eq!(statement.contains("losses, accuracies and numbers of examples"), told, "{statement}");
            (told, Plan::parse(plan).unwrap().evaluation.sites == server::Evaluators::None)
        };
        assert_eq!(told(&plan), (false, true), "{promise}");
        assert_eq!(told(&format!("{plan}metrics = \"outside_the_guarantee\"\n")), (true, false), "{promise}");
    }
}

#[test]
fn secret_sampling_is_explained_for_those_who_see_who_takes_part_too() {
    let coin = private(10.0, 100.0, 99.0, "")
        .replace("{ availability = { participations_max = 1000 } }", "{ poisson = { rate = 0.1 } }");
    let found = explained(&coin);
    let promise = &found["promises"][0];
    assert!(promise["against"].as_str().unwrap().contains("neither who nor how many"), "{promise}");
    let (hidden, seen) =
        (promise["epsilon"][2]["pld"].as_f64().unwrap(), &promise["epsilon_where_participants_are_seen"]);
    let exact = gaussian::epsilon(1.0, 1e-5).unwrap();
    let seen = seen["pld"].as_f64().unwrap();
    assert!(seen >= exact && seen <= exact * 1.01 && hidden < exact / 3.0, "{hidden} {seen} {exact}");
    let folder = tempfile::tempdir().unwrap();
    for (cohort, key) in [("count = 5", "cohort.count"), ("quorum = 1", "cohort.quorum")] {
        let capped = coin.replace("[privacy.central]", &format!("[cohort]\n{cohort}\n[privacy.central]"));
        let file = written(folder.path(), "capped.toml", &capped);
        let (code, text) = said(&["check", file.to_str().unwrap()]);
        assert!(code == 2 && text.contains(key), "{code} {text}");
    }
}

#[test]
fn a_private_simulation_that_released_nothing_has_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = private(1.0, 4.0, 0.01, "").replace("[784]", "[4]");
    let simulation = "[simulation]\nclients = 4\ndataset = { synthetic = { rows = 80 } }\n";
    let file = written(folder.path(), "simulation.toml", &format!("{plan}{simulation}"));
    let out = folder.path().join("out");
    let (code, text) = said(&["simulate", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(
        code == 6 && text.contains("0: nothing was released") && !text.contains("infinite"),
        "{code} {text}"
    );
}
