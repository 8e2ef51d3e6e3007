//! The shortest way in: four hospitals train one model, simulated in this process.
//!
//! The plan is TOML, as in a file; the hospitals are found in the column `site` of the records. Try another strategy,
//! such as `strategy = { fedprox = { mu = 0.1 } }`, or more `epochs`.
//!
//! ```text
//! $ cargo run --example quickstart
//! cleveland     199 training rows, 104 test rows
//! hungarian     172 training rows,  89 test rows
//! switzerland    30 training rows,  16 test rows
//! va             85 training rows,  45 test rows
//! round  1: 0.791 of 254 test rows right
//! ...
//! round 10: 0.799 of 254 test rows right
//! model c4d7e3da351e2d9fa24c695fecb00316f0da40007123183a43d9b6a55bc4ea73
//! ```
//!
//! The same seed gives the same model whatever the number of threads; another kind of processor may round differently.

use std::path::Path;

use anyhow::Result;
use consortia::first_model;
use consortia::learning::device::Device;
use consortia::protocol::Seed;
use consortia::server::Note;
use consortia::simulations::{Population, Scenario, Simulator};

const PLAN: &str = r#"
name = "quickstart"
rounds = 10
model = "logistic"
strategy = "fedavg"

[data.table]
label = "label"
target = { classes = 2 }
features = [
    "age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak",
    "cp_2", "cp_3", "cp_4", "restecg_1", "restecg_2",
]
standardise = "federated"

[training]
epochs = 1
batch_size = 16
optimizer = { sgd = { learning_rate = 0.05 } }

[simulation]
seed = 7
partition = { natural = { column = "site" } }
dataset = { files = { csv = { train = "heart_disease.csv", split_column = "split" } } }
"#;

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let Scenario { plan, simulation } = Scenario::parse(PLAN, &folder, &|_| None)?;

    let hospitals = Population::build(&simulation, &plan.spec, Device::Cpu)?;
    for (name, records) in hospitals.sites() {
        let test = records.test.as_ref().map_or(0, |test| test.len());
        println!("{name:<12} {:>4} training rows, {test:>3} test rows", records.train.len());
    }

    let seed = simulation.seed;
    let first =
        first_model(hospitals.models(), &plan.spec, Seed::from_number(seed)).map_err(anyhow::Error::msg)?;
    let simulator = Simulator::new(plan, first.shared, seed, simulation.availability)?;
    let outcome = simulator.run(&hospitals, &mut |seen| {
        if let Note::Round(round) = seen.note
            && let Some(test) = round.sites
        {
            println!(
                "round {:>2}: {:.3} of {} test rows right",
                round.round,
                test.accuracy.unwrap_or(0.0),
                test.examples
            );
        }
    })?;
    println!("model {}", outcome.model.sha256());
    Ok(())
}
