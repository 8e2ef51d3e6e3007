//! Rules that see every update: with a fifth of the clients corrupted a mean falls, or its server refuses what is too long, and a rule
//! stays where it would be without them; with the same bits on any number of threads, in any order of arrival, after an interruption, and
//! over QUIC.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

#[path = "support/federation.rs"]
mod federation;
#[path = "support/member.rs"]
mod member;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use consortia::first_model;
use federation::Federation;
use learning::device::Device;
use learning::{Labels, Models, SiteData, Trainer, View};
use methods::Registry;
use protocol::wire::RunState;
use protocol::{ClientId, Positive, Rejection, Seed, Target};
use server::net::Limits;
use server::{Note, RunEnd};
use simulations::{
    AvailabilityConfig, Observation, Outcome, Population, Scenario, Simulator, Snapshot, Stored,
    SyntheticSource, Watch,
};

const SEED: u64 = 5;
/// Ten clients with made-up records of four classes.
const PLAN: &str = r#"
name = "robust"
rounds = 6
model = "logistic"
data = { tensor = { shape = [12], target = { classes = 4 } } }
training = { epochs = 2, batch_size = 16, optimizer = { sgd = { learning_rate = 0.2 } } }
evaluation = { sites = "none" }
cohort = { clients_min = 10, quorum = 1 }
"#;
const SIMULATION: &str = "[simulation]\nseed = 5\nclients = 10\n\
    dataset = { synthetic = { rows = 1500, test_rows = 1000, spread = 0.4 } }\n";
/// Every rule, and every step before one.
const RULES: [&str; 8] = [
    "rule = \"coordinate_median\"",
    "rule = \"trimmed_mean\"",
    "rule = \"krum\"",
    "rule = \"multi_krum\"",
    "rule = \"geometric_median\"",
    "rule = \"centred_clipping\"",
    "rule = \"coordinate_median\"\nbefore = [\"nearest_neighbour_mixing\"]",
    "rule = \"geometric_median\"\nbefore = [\"bucketing\"]",
];

fn scenario(rule: Option<&str>, adversaries: &str, more: &str) -> Scenario {
    scenario_of(PLAN, rule, adversaries, more)
}

fn scenario_of(plan: &str, rule: Option<&str>, adversaries: &str, more: &str) -> Scenario {
    let rule = rule.map_or_else(String::new, |rule| format!("[aggregation]\ncorrupted = 2\n{rule}\n"));
    let text = format!("{plan}{rule}{SIMULATION}{more}{adversaries}");
    let known = Registry::standard();
    Scenario::parse_with(&text, Path::new(""), &|_| None, known.server()).unwrap()
}

fn sign_flip() -> String {
    "[simulation.adversaries]\nshare = 0.2\nattack = \"sign_flip\"\n".to_owned()
}

fn simulator(scenario: &Scenario, threads: usize) -> (Simulator, Population) {
    let Scenario { plan, simulation } = scenario.clone();
    let population = Population::build(&simulation, &plan.spec, Device::Cpu).unwrap();
    let first = first_model(population.models(), &plan.spec, Seed::from_number(SEED)).unwrap();
    let simulator = Simulator::new(plan, first.shared, SEED, simulation.availability).unwrap();
    (simulator.with_threads(threads).with_adversaries(simulation.adversaries), population)
}

fn run(scenario: &Scenario, threads: usize) -> Outcome {
    let (simulator, population) = simulator(scenario, threads);
    simulator.run(&population, &mut |_| {}).unwrap()
}

fn accuracy(outcome: &Outcome) -> f64 {
    assert_eq!(outcome.end, RunEnd::Finished);
    outcome.rounds.iter().rev().find_map(|round| round.central).and_then(|all| all.accuracy).unwrap()
}

#[test]
fn a_fifth_of_corrupted_clients_fells_a_mean_and_no_rule() {
    let clean = accuracy(&run(&scenario(None, "", ""), 2));
    assert!(clean > 0.85, "{clean}");
    let fallen = accuracy(&run(&scenario(None, &sign_flip(), ""), 2));
    assert!(fallen < clean - 0.3, "a mean kept {fallen} of {clean}");
    for rule in RULES {
        let kept = accuracy(&run(&scenario(Some(rule), &sign_flip(), ""), 2));
        assert!(kept > clean - 0.05, "{rule}: {kept} of {clean}");
    }
}

#[test]
fn what_is_far_too_long_is_refused_by_its_norm_whatever_the_rule() {
    let clean = accuracy(&run(&scenario(None, "", ""), 2));
    let norm = "[simulation.adversaries]\nshare = 0.2\nattack = { norm = { norm = 1e30 } }\n";
    // Of buckets of 2 too few would be left, which is a test of its own.
    for rule in RULES[..7].iter().map(|rule| Some(*rule)).chain([None]) {
        // A mean needs everybody where nothing is said of a quorum; a rule does without those that may be corrupted.
        let plan = if rule.is_some() { PLAN.replace(", quorum = 1", "") } else { PLAN.to_owned() };
        let outcome = run(&scenario_of(&plan, rule, norm, ""), 2);
        let kept = accuracy(&outcome);
        assert!(kept > clean - 0.05, "{rule:?}: {kept} of {clean}");
        for client in &outcome.corrupted {
            assert_eq!(outcome.clients[client].refused[&Rejection::NormExceeded], 6);
        }
    }
}

#[test]
fn neither_threads_nor_the_order_of_arrival_change_a_bit() {
    let alie = "[simulation.adversaries]\nshare = 0.2\nattack = { alie = { z = 1 } }\n";
    for rule in RULES {
        let calm = run(&scenario(Some(rule), alie, ""), 1).model.sha256();
        let late = scenario(Some(rule), alie, "availability = { latency_spread = 1.5 }\n");
        for threads in [1, 3] {
            assert_eq!(calm, run(&late, threads).model.sha256(), "{rule}");
        }
    }
}

#[test]
fn memory_and_disk_give_the_same_bits() {
    for rule in [RULES[0], RULES[5], RULES[7]] {
        let small = format!("{rule}\nmemory_mib = 0");
        let (one, other) = (scenario(Some(rule), "", ""), scenario(Some(&small), "", ""));
        assert_eq!(run(&one, 2).model.sha256(), run(&other, 2).model.sha256());
    }
}

#[test]
fn a_round_of_too_few_updates_releases_nothing_and_says_why() {
    let scenario = scenario(Some(RULES[2]), "", "availability = { dropout = 0.6 }\n");
    let (simulator, population) = simulator(&scenario, 2);
    let mut said = Vec::new();
    let outcome = simulator.run(&population, &mut |seen: Observation<'_>| {
        if let Note::Withheld { reason, .. } = seen.note {
            said.push(reason.clone());
        }
    });
    let outcome = outcome.unwrap();
    let short = outcome.rounds.iter().filter(|round| (1..7).contains(&round.answered)).count();
    assert!(short > 0 && short == said.len(), "{said:?} {:?}", outcome.rounds);
    assert!(outcome.rounds.iter().all(|round| round.released == (round.answered >= 7)));
    assert!(said[0].contains("krum with 2 corrupted, needs 7"), "{said:?}");
}

#[test]
fn what_is_no_training_is_not_attacked() {
    let text = format!(
        "name = \"k\"\nrounds = 2\n{}\ncohort = {{ clients_min = 10 }}\n[method.kmeans]\nclusters = 3\n{SIMULATION}{}",
        "data = { tensor = { shape = [12], target = { classes = 4 } } }",
        sign_flip()
    );
    let parse =
        |text: &str| Scenario::parse_with(text, Path::new(""), &|_| None, Registry::standard().server());
    let error = parse(&text).unwrap_err().to_string();
    assert!(error.contains("what is attacked is training"), "{error}");
    assert!(parse(text.split("[simulation.adversaries]").next().unwrap()).is_ok());
    let both =
        text.replace("[method.kmeans]", "[aggregation]\nrule = \"krum\"\ncorrupted = 1\n[method.kmeans]");
    let error = parse(&both).unwrap_err().to_string();
    assert!(error.contains("a method has a way of its own"), "{error}");
}

/// Keeps from where to go on after every round.
#[derive(Default)]
struct Places(Vec<String>);

impl Watch for Places {
    fn note(&mut self, _: Observation<'_>) {}
    fn stored(&mut self, stored: Stored<'_>) {
        let place = stored.snapshot.and_then(|snapshot| snapshot());
        self.0.extend(place.map(|place| serde_json::to_string(&place).unwrap()));
    }
}

#[test]
fn a_rule_with_a_memory_goes_on_from_any_round_as_if_never_stopped() {
    let scenario = scenario(Some(RULES[5]), &sign_flip(), "");
    let optimizer = || scenario.plan.strategy.optimizer();
    let (whole, population) = simulator(&scenario, 2);
    let mut places = Places::default();
    let whole = whole.run_watched(optimizer(), &population, &mut places).unwrap();
    assert!(places.0.len() >= 4);
    for place in &places.0 {
        let place: Snapshot = serde_json::from_str(place).unwrap();
        let rest = simulator(&scenario, 1).0.with_snapshot(place);
        let rest = rest.run_watched(optimizer(), &population, &mut Places::default()).unwrap();
        assert_eq!(rest.model.sha256(), whole.model.sha256());
    }
}

/// A rule that remembers and steps that draw, among six sites of which one has its labels turned.
const DEPLOYED: &str = "[aggregation]\nrule = \"centred_clipping\"\ncorrupted = 1\nbefore = [\"bucketing\", \"nearest_neighbour_mixing\"]\n";

fn sites() -> Vec<(ClientId, SiteData)> {
    let source = SyntheticSource { rows: 60, test_rows: 10, spread: Positive::new(0.4).unwrap() };
    let records = |number: u64| {
        let (mut train, test) = source.make(&[12], Target::Classes(4), Seed::from_number(number));
        if let (4, Labels::Classes(classes)) = (number, &mut train.labels) {
            classes.iter_mut().for_each(|class| *class = 3 - *class);
        }
        let whole = |dataset| View::whole(Arc::new(dataset));
        let name = ClientId::new(&format!("site-{number}")).unwrap();
        (name, SiteData { train: whole(train), test: Some(whole(test)) })
    };
    (1..=6).map(records).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_a_rule_makes_the_simulated_model() {
    let text = format!("{}{DEPLOYED}", PLAN.replace("clients_min = 10", "clients_min = 6"));
    let plan = Registry::standard().server().parse(&text).unwrap();
    let first = first_model(&Models::new(), &plan.spec, Seed::from_number(SEED)).unwrap();
    let simulator = Simulator::new(plan, first.shared, SEED, AvailabilityConfig::default()).unwrap();
    let simulated = simulator.run(&Population::of(sites(), None, Device::Cpu), &mut |_| {}).unwrap();

    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let operator = federation.operator(&server).await;
    let run = operator.submit(&text, SEED).await;
    let mut members = Vec::new();
    for (site, data) in sites().into_iter().rev() {
        let mut trainer = Trainer::without_data(Device::Cpu);
        trainer.set_site(data);
        members.push(federation.join(&server, site.as_str(), Box::new(trainer)).await);
    }
    let end = operator.follow(run).await;
    assert_eq!((end.state, end.rounds_done), (RunState::Finished, 6), "{}", end.message);
    assert_eq!(end.model_sha256, simulated.model.sha256());
    for member in members {
        member.leave().await;
    }
    server.shutdown().await.unwrap();
}

#[test]
fn the_command_tells_who_was_corrupted_and_whether_a_backdoor_opens() {
    let dir = tempfile::tempdir().unwrap();
    let plan = PLAN.replace("shape = [12]", "shape = [1, 6, 6]");
    let backdoor =
        "[simulation.adversaries]\ncount = 3\nattack = { backdoor = { target = 1, side = 2, value = 3 } }\n";
    let told = |rule: &str| {
        let file = dir.path().join("plan.toml");
        std::fs::write(&file, format!("{plan}{rule}{SIMULATION}{backdoor}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        command.args(["--format", "json", "simulate"]).arg(&file).arg("--out").arg(dir.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let out = String::from_utf8(output.stdout).unwrap();
        let object: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let warned = String::from_utf8(output.stderr).unwrap();
        assert!(warned.contains("3 of 10 clients are corrupted (backdoor)"), "{warned}");
        object["adversaries"].clone()
    };
    let mean = told("");
    assert_eq!(
        (mean["attack"].as_str(), mean["clients"].as_array().map(Vec::len)),
        (Some("backdoor"), Some(3))
    );
    let median = told("[aggregation]\nrule = \"coordinate_median\"\ncorrupted = 3\n");
    let without = mean["success_without_pattern"].as_f64().unwrap();
    let (mean, median) = (mean["success"].as_f64().unwrap(), median["success"].as_f64().unwrap());
    assert!(mean > 0.8 && median < mean - 0.3 && without < 0.5, "{mean} {median} {without}");
}

#[test]
fn check_tells_what_a_rule_tolerates_and_who_attacks() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = dir.path().join("plan.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
        let output = command.args(["--format", "json", "check"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let rule = "[aggregation]\nrule = \"coordinate_median\"\ncorrupted = 2\n";
    let attack = "[simulation.adversaries]\ncount = 3\nattack = \"sign_flip\"\n";
    let facts = check(&format!("{PLAN}{rule}{SIMULATION}{attack}"));
    let aggregation = facts["aggregation"].as_str().unwrap();
    assert!(
        aggregation.contains("coordinate_median") && aggregation.contains("2 corrupted of the 10 clients"),
        "{facts}"
    );
    let told = facts["attack"].as_str().unwrap();
    assert!(told.starts_with("sign_flip by 3 of 10 clients: client-"), "{told}");
    assert!(told.contains("than the 2 that [aggregation] tolerates"), "{told}");
    // The clients that are named are those that attack.
    let file = dir.path().join("plan.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(["--format", "json", "simulate"]).arg(&file).arg("--out").arg(dir.path());
    let object: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let corrupted = object["adversaries"]["clients"].as_array().unwrap();
    assert!(corrupted.iter().all(|client| told.contains(client.as_str().unwrap())), "{told} {corrupted:?}");
    let facts = check(&format!("{PLAN}{SIMULATION}"));
    assert!(
        facts["aggregation"].as_str().unwrap().contains("no corrupted client")
            && facts.get("attack").is_none()
    );
}
