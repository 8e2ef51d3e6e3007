//! One plan and one seed give one model, bit for bit: simulated on one thread or on all, trained by sites over QUIC in
//! this process or each in its own, whatever the order in which they start or answer, and with the server killed twice
//! on the way.
//!
//! On one machine, that is: local training may round differently on another family of processors.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and certificates need a date"
)]

#[path = "same_bits/compressed.rs"]
mod compressed;
#[path = "same_bits/deployed.rs"]
mod deployed;
#[path = "support/federation.rs"]
mod federation;
#[path = "support/member.rs"]
mod member;
#[path = "support/processes.rs"]
mod processes;
#[path = "same_bits/turnstile.rs"]
mod turnstile;

use std::path::{Path, PathBuf};

use consortia::first_model;
use learning::device::Device;
use protocol::Seed;
use simulations::{Outcome, Population, Scenario, World};

/// The seed of every run here.
const SEED: u64 = 7;
/// Rounds of every run here.
const ROUNDS: u32 = 8;
/// The hospitals, as the records call them.
const SITES: [&str; 4] = ["cleveland", "hungarian", "switzerland", "va"];

/// A plan with everything that has a memory from round to round: statistics of all sites first, momentum and adaptive
/// steps at the server, a schedule, evaluation at the sites. The local work is enough for a kill to find it under way.
const PLAN: &str = r#"
name = "same-bits"
model = { mlp = { hidden = [16] } }

[data.table]
label = "label"
target = { classes = 2 }
features = ["age", "sex", "trestbps", "chol", "thalach", "exang", "oldpeak", "cp_4"]
standardise = "federated"
missing = "mean"

[training]
epochs = 20
batch_size = 8
optimizer = { sgd = { learning_rate = 0.02, momentum = 0.5 } }

[strategy.fedadam]
learning_rate = 0.02

[cohort]
clients_min = 4
fraction = 1.0
quorum = 4
"#;

/// What is added to the plan where everything travels as it is.
const EXACT: &str = "";
/// The same where nothing does.
const COMPRESSED: &str = "[update]\ncodec = \"int8\"\nbroadcast = \"f16\"\n";

/// The plan for this many rounds.
fn plan(rounds: u32, update: &str) -> String {
    format!("rounds = {rounds}\n{PLAN}{update}")
}

/// The bundled records.
fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/heart_disease.csv")
}

/// The plan, simulated.
fn simulated(threads: usize, rounds: u32, update: &str) -> Outcome {
    let text = format!(
        "{}[simulation]\nseed = {SEED}\npartition = {{ natural = {{ column = \"site\" }} }}\n\
         dataset = {{ files = {{ csv = {{ train = {:?}, split_column = \"split\" }} }} }}\n",
        plan(rounds, update),
        records()
    );
    let scenario = Scenario::parse(&text, Path::new(""), &|_| None).unwrap();
    let spec = &scenario.plan.spec;
    let population = Population::build(&scenario.simulation, spec, Device::Cpu).unwrap();
    let names: Vec<&str> = population.sites().map(|(client, _)| client.as_str()).collect();
    assert_eq!(names, SITES);
    let first = first_model(population.models(), spec, Seed::from_number(SEED)).unwrap();
    let weather = scenario.simulation.weather;
    let world = World::new(scenario.plan, first.shared, SEED, weather).unwrap().with_threads(threads);
    world.run(&population, &mut |_| {}).unwrap()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let one = simulated(1, ROUNDS, EXACT);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for threads in [2, cores.max(3)] {
        let many = simulated(threads, ROUNDS, EXACT);
        assert_eq!(one.model.sha256(), many.model.sha256());
        let measured = |outcome: &Outcome| {
            outcome.rounds.iter().map(|round| round.sites.map(|all| all.loss)).collect::<Vec<_>>()
        };
        assert_eq!(measured(&one), measured(&many));
    }
}
