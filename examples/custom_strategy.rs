//! A server optimizer of your own: Nesterov's momentum on the mean update, against plain averaging, on the four hospitals.
//!
//! A server optimizer sees one thing of a round, the mean that was released of the updates, so whatever it does costs no privacy. It
//! also says what it remembers, so that a run can be stored and taken up again. FedAvgM's heavy ball is built in
//! (`strategy = { fedavgm = {} }`); Nesterov looks one step ahead of it.
//!
//! ```text
//! $ cargo run --example custom_strategy
//! training loss  averaging  nesterov
//! round  1           0.6772    0.6772
//! round  5           0.5873    0.4974
//! round 10           0.5369    0.4342
//! round 15           0.5204    0.4272
//! round 20           0.5180    0.4265
//! ```

use std::path::Path;
use std::sync::Arc;

use anyhow::{Error, Result};
use consortia::first_model;
use consortia::learning::device::Device;
use consortia::protocol::Seed;
use consortia::server::{Averaging, ModelUpdate, ServerOptimizer, StateError};
use consortia::simulations::{Population, Scenario, Simulator};

/// `v = momentum * v + mean; model = model + mean + momentum * v` (Nesterov 1983, in the form of Sutskever et al. 2013).
struct Nesterov {
    momentum: f64,
    velocity: Arc<Vec<f32>>,
}

impl ServerOptimizer for Nesterov {
    fn step(&mut self, model: &mut [f32], update: &ModelUpdate) {
        if self.velocity.is_empty() {
            self.velocity = Arc::new(vec![0.0; model.len()]);
        }
        let velocity = Arc::make_mut(&mut self.velocity);
        for ((value, velocity), mean) in model.iter_mut().zip(velocity).zip(update.values()) {
            let moved = self.momentum * f64::from(*velocity) + mean;
            *velocity = moved as f32;
            *value += (mean + self.momentum * moved) as f32;
        }
    }

    fn state(&self) -> Vec<Arc<Vec<f32>>> {
        if self.velocity.is_empty() { Vec::new() } else { vec![Arc::clone(&self.velocity)] }
    }

    fn restore(&mut self, state: Vec<Arc<Vec<f32>>>) -> Result<(), StateError> {
        if state.len() > 1 {
            return Err(StateError { expected: 1, found: state.len() });
        }
        self.velocity = state.into_iter().next().unwrap_or_default();
        Ok(())
    }
}

/// Training loss after each round.
fn losses(optimizer: Box<dyn ServerOptimizer>) -> Result<Vec<f64>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    // A tenth of the file's learning rate: what a site dares where its records are few and noisy.
    let text = include_str!("heart.toml").replace("learning_rate = 0.05", "learning_rate = 0.005");
    let Scenario { plan, simulation } = Scenario::parse(&text, &folder, &|_| None)?;
    let population = Population::build(&simulation, &plan.spec, Device::Cpu)?;
    let seed = Seed::from_number(simulation.seed);
    let first = first_model(population.models(), &plan.spec, seed).map_err(Error::msg)?;
    let simulator = Simulator::new(plan, first.shared, simulation.seed, simulation.availability)?;
    let outcome = simulator.run_with(optimizer, &population, &mut |_| {})?;
    Ok(outcome.rounds.iter().filter_map(|round| round.train).map(|train| train.loss).collect())
}

fn main() -> Result<()> {
    let plain = losses(Box::new(Averaging::new(1.0, 0.0)))?;
    let nesterov = losses(Box::new(Nesterov { momentum: 0.8, velocity: Arc::default() }))?;
    println!("training loss  averaging  nesterov");
    for round in [1, 5, 10, 15, 20] {
        println!("round {round:>2}       {:>10.4} {:>9.4}", plain[round - 1], nesterov[round - 1]);
    }
    Ok(())
}
