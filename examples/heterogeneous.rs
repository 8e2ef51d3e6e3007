//! One data set under four divisions, and what each does to FedAvg and FedProx.
//!
//! Ten clients hold 4,000 made-up records of ten classes: dealt evenly, sorted by class into one shard each, by a Dirichlet
//! distribution a class (most of a class at one or two clients), or evenly mixed but of very different sizes. Where clients see
//! other classes, their local models drift apart. FedProx (Li et al. 2020) holds them near the federation's model; that is
//! no cure here, where every client does its work: it trades speed for caution, and averaging goes further.
//!
//! ```text
//! $ cargo run --example heterogeneous
//!                 fedavg        fedprox       classes of each
//! division        2nd    last   2nd    last   of ten clients
//! iid             0.976  0.982  0.936  0.981  10 10 10 10 10 10 10 10 10 10
//! shards          0.446  0.884  0.373  0.807  3 2 1 2 2 1 2 2 2 2
//! dirichlet(0.1)  0.735  0.964  0.721  0.951  5 2 6 5 5 4 2 4 6 7
//! quantity skew   0.981  0.978  0.963  0.980  10 9 10 10 10 10 10 10 10 10
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Error, Result};
use consortia::first_model;
use consortia::learning::{Labels, View, device::Device};
use consortia::protocol::Seed;
use consortia::simulations::{Population, Scenario, Simulator};

const SEED: u64 = 3;
const DIVISIONS: [(&str, &str); 4] = [
    ("iid", r#""iid""#),
    ("shards", "{ shards = { per_client = 1 } }"),
    ("dirichlet(0.1)", "{ dirichlet = { alpha = 0.1 } }"),
    ("quantity skew", "{ quantity_skew = { exponent = 2.0 } }"),
];

fn file(strategy: &str, partition: &str) -> String {
    format!(
        r#"
name = "heterogeneous"
rounds = 20
strategy = {strategy}
model = {{ mlp = {{ hidden = [32] }} }}
data = {{ tensor = {{ shape = [16], target = {{ classes = 10 }} }} }}
training = {{ epochs = 10, batch_size = 20, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}
update = {{ weight_max = 4000 }}
evaluation = {{ sites = "none" }}
[simulation]
seed = {SEED}
clients = 10
partition = {partition}
dataset = {{ synthetic = {{ rows = 4000, test_rows = 2000, spread = 0.8 }} }}
"#
    )
}

fn scenario(strategy: &str, partition: &str) -> Result<(Scenario, Population)> {
    let scenario = Scenario::parse(&file(strategy, partition), Path::new(""), &|_| None)?;
    let population = Population::build(&scenario.simulation, &scenario.plan.spec, Device::Cpu)?;
    Ok((scenario, population))
}

/// Test accuracy after two rounds and after all.
fn accuracy(strategy: &str, partition: &str) -> Result<[f64; 2]> {
    let (Scenario { plan, simulation }, population) = scenario(strategy, partition)?;
    let seed = Seed::from_number(SEED);
    let first = first_model(population.models(), &plan.spec, seed).map_err(Error::msg)?;
    let outcome =
        Simulator::new(plan, first.shared, SEED, simulation.availability)?.run(&population, &mut |_| {})?;
    let tests = outcome.rounds.iter().filter_map(|round| round.central?.accuracy);
    let tests: Vec<f64> = tests.collect();
    Ok([tests[1], tests[tests.len() - 1]])
}

/// How many classes a client has seen.
fn classes(records: &View) -> usize {
    let Labels::Classes(all) = &records.dataset.labels else { return 0 };
    records.rows.iter().map(|row| all[*row as usize]).collect::<BTreeSet<_>>().len()
}

fn main() -> Result<()> {
    println!("{:<14}  fedavg        fedprox       classes of each", "");
    println!("{:<14}  2nd    last   2nd    last   of ten clients", "division");
    for (name, partition) in DIVISIONS {
        let (_, population) = scenario(r#""fedavg""#, partition)?;
        let seen = population.sites().map(|(_, records)| classes(&records.train).to_string());
        let [avg, avg_last] = accuracy(r#""fedavg""#, partition)?;
        let [prox, prox_last] = accuracy("{ fedprox = { mu = 0.1 } }", partition)?;
        let seen = seen.collect::<Vec<_>>().join(" ");
        println!("{name:<14}  {avg:.3}  {avg_last:.3}  {prox:.3}  {prox_last:.3}  {seen}");
    }
    Ok(())
}
