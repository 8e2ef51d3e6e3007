//! A learner of your own, without gradients: every site moves three centres to the middle of its own numbers (Lloyd 1982). What
//! trains may as well be another program. A deployed site runs it with `Agent::new(Participant::new(name, Box::new(learner)), ...)`
//! at a server whose `ModelRoom` begins with the same layout; here both are simulated.
//!
//! ```text
//! $ cargo run --example custom_learner
//! round  1: squared distance 3.623
//! round 10: squared distance 1.063
//! ```

use std::sync::Arc;

use anyhow::Result;
use consortia::protocol::{ClientId, EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters};
use consortia::protocol::{Seed, Spec, Statistic, Stop, TrainOrder};
use consortia::server::Plan;
use consortia::simulations::{Simulator, Worker, Workforce};

const PLAN: &str = r#"name = "centres"
rounds = 10
model = { custom = { name = "centres" } }
data = { tensor = { shape = [1], target = "real" } }
training = { batch_size = 0, optimizer = { sgd = { learning_rate = 1.0 } } }"#;
const FIRST: [f32; 3] = [0.0, 0.1, 0.2];

/// One site: its points, which are numbers, and the layout of the model.
#[derive(Clone)]
struct Site(Vec<f32>, Layout);

impl Site {
    /// Of the points nearest to each centre their sum and number; and the mean squared distance.
    fn nearest(&self, centres: &[f32]) -> ([(f32, f32); 3], Metrics) {
        let (mut sums, mut loss) = ([(0.0, 0.0); 3], 0.0);
        for point in &self.0 {
            let distance = |at: &usize| (point - centres[*at]).abs();
            let best = (0..3).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
            sums[best] = (sums[best].0 + point, sums[best].1 + 1.0);
            loss += f64::from(distance(&best).powi(2)) / self.0.len() as f64;
        }
        (sums, Metrics { loss, accuracy: None, examples: self.0.len() as u64, seconds: 0.0 })
    }
}

impl Learner for Site {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.1
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(FIRST.to_vec())
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, centres: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let (sums, metrics) = self.nearest(centres);
        let moved = centres.iter_mut().zip(sums).filter(|(_, of)| of.1 > 0.0);
        moved.for_each(|(centre, (sum, count))| *centre = sum / count);
        Ok(metrics)
    }
    fn evaluate(&mut self, centres: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(self.nearest(centres).1)
    }
}

/// The sites of the simulation; each of its threads has a copy.
#[derive(Clone)]
struct Sites(Vec<ClientId>, Vec<Site>);

impl Workforce for Sites {
    fn clients(&self) -> &[ClientId] {
        &self.0
    }
    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(self.clone())
    }
    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
}

impl Worker for Sites {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        &mut self.1[client]
    }
}

fn main() -> Result<()> {
    let layout = Layout::new([("centres".to_owned(), vec![3])])?;
    let point = |row, site| ((row + 4 * site) % 9 + row / 99) as f32;
    let site = |site| Site((0..160).map(|row| point(row, site)).collect(), layout.clone());
    let names = (0..4).map(|site| ClientId::new(&format!("site-{site}"))).collect::<Result<_, _>>()?;
    let run = Simulator::new(Plan::parse(PLAN)?, Parameters::new(FIRST.to_vec()), 1, Default::default())?;
    for round in run.run(&Sites(names, (0..4).map(site).collect()), &mut |_| {})?.rounds {
        println!("round {:2}: squared distance {:.3}", round.round, round.sites.unwrap_or_default().loss);
    }
    Ok(())
}
