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
use simulations::{Outcome, Population, Scenario, Simulator};

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

/// What differs between runs of the plan.
#[derive(Clone, Copy)]
struct Variant<'a> {
    /// The way to gradients.
    gradient: &'a str,
    /// The plan's end: how updates and models travel.
    update: &'a str,
}

/// What a plan without a word of it does: gradients in closed form, and everything travels as it is.
const PLAIN: Variant<'static> = Variant { gradient: "closed_form", update: "" };
/// The other way to gradients, and nothing travels as it is.
const COMPRESSED: Variant<'static> =
    Variant { gradient: "autograd", update: "[update]\ncodec = \"int8\"\nbroadcast = \"f16\"\n" };

/// The plan for this many rounds.
fn plan(rounds: u32, variant: Variant<'_>) -> String {
    let Variant { gradient, update } = variant;
    let plan = PLAN.replace("[training]", &format!("[training]\ngradient = \"{gradient}\""));
    format!("rounds = {rounds}\n{plan}{update}")
}

/// The bundled records.
fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/heart_disease.csv")
}

/// The plan, simulated.
fn simulated(threads: usize, rounds: u32, variant: Variant<'_>) -> Outcome {
    let text = format!(
        "{}[simulation]\nseed = {SEED}\npartition = {{ natural = {{ column = \"site\" }} }}\n\
         dataset = {{ files = {{ csv = {{ train = {:?}, split_column = \"split\" }} }} }}\n",
        plan(rounds, variant),
        records()
    );
    let scenario = Scenario::parse(&text, Path::new(""), &|_| None).unwrap();
    let spec = &scenario.plan.spec;
    let population = Population::build(&scenario.simulation, spec, Device::Cpu).unwrap();
    let names: Vec<&str> = population.sites().map(|(client, _)| client.as_str()).collect();
    assert_eq!(names, SITES);
    let first = first_model(population.models(), spec, Seed::from_number(SEED)).unwrap();
    let availability = scenario.simulation.availability;
    let simulator =
        Simulator::new(scenario.plan, first.shared, SEED, availability).unwrap().with_threads(threads);
    simulator.run(&population, &mut |_| {}).unwrap()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for variant in [PLAIN, COMPRESSED] {
        let one = simulated(1, ROUNDS, variant);
        for threads in [2, cores.max(3)] {
            let many = simulated(threads, ROUNDS, variant);
            assert_eq!(one.model.sha256(), many.model.sha256());
            let measured = |outcome: &Outcome| {
                outcome.rounds.iter().map(|round| round.sites.map(|all| all.loss)).collect::<Vec<_>>()
            };
            assert_eq!(measured(&one), measured(&many));
        }
    }
}

#[test]
fn both_ways_to_a_gradient_learn_the_same_and_round_differently() {
    let closed = simulated(2, ROUNDS, PLAIN);
    let graph = simulated(2, ROUNDS, Variant { gradient: "autograd", ..PLAIN });
    assert_ne!(closed.model.sha256(), graph.model.sha256(), "the plan's choice made no difference");
    let accuracy = |outcome: &Outcome| {
        outcome.rounds.last().and_then(|round| round.sites).and_then(|metrics| metrics.accuracy).unwrap()
    };
    assert!((accuracy(&closed) - accuracy(&graph)).abs() < 0.02);
}
