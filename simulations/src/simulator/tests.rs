//! Small simulations: the same bits whatever the threads and whoever is there.

mod attacked;
mod going_on;

use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::{EvaluateOrder, Layout, LearnError, Learner, Metrics, Spec, Statistic, Stop, TrainOrder};

use super::*;
use crate::Worker;

/// Clients whose update is a number of their own plus seeded chance; the model has two values.
struct Toys {
    clients: Vec<ClientId>,
    visits: AtomicUsize,
    central_parts: usize,
}

struct Toy<'a> {
    toys: &'a Toys,
    layout: Layout,
    client: usize,
}

impl Toys {
    fn new(count: usize) -> Self {
        let clients = (0..count).map(|i| ClientId::new(&format!("c{i:03}")).unwrap()).collect();
        Self { clients, visits: AtomicUsize::new(0), central_parts: 0 }
    }
}

impl Workforce for Toys {
    fn clients(&self) -> &[ClientId] {
        &self.clients
    }
    fn worker(&self) -> Box<dyn Worker + '_> {
        let layout = Layout::new([("w".to_owned(), vec![2])]).unwrap();
        Box::new(Toy { toys: self, layout, client: 0 })
    }
    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
    fn central_parts(&self) -> usize {
        self.central_parts
    }
    fn size(&self, client: usize) -> usize {
        client % 5
    }
}

impl Worker for Toy<'_> {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        self.toys.visits.fetch_add(1, Ordering::Relaxed);
        self.client = client;
        self
    }
    fn visit_central(&mut self, part: usize) -> Option<&mut dyn Learner> {
        self.client = 1000 + part;
        Some(self)
    }
}

impl Learner for Toy<'_> {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; 2])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, model: &mut [f32], order: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        use rand::Rng;
        model[0] += self.client as f32;
        model[1] += order.seed.generator().random::<f32>();
        Ok(Metrics { examples: 1 + self.client as u64, ..Metrics::default() })
    }
    fn evaluate(&mut self, model: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let part = self.client.saturating_sub(1000) as f64;
        Ok(Metrics { loss: f64::from(model[0]) + 0.1 * part, examples: 1, ..Metrics::default() })
    }
}

const PLAN: &str = "name = \"t\"\nrounds = 4\nmodel = \"linear\"\n\
    data = { table = { label = \"y\", target = \"real\", features = [\"a\"] } }\n\
    training = { batch_size = 8, optimizer = { sgd = { learning_rate = 0.1 } } }\n";

fn run(plan: &str, availability: AvailabilityConfig, threads: usize) -> (Outcome, usize) {
    let plan = Plan::parse(&format!("{PLAN}{plan}")).unwrap();
    let simulator =
        Simulator::new(plan, Parameters::new(vec![0.0; 2]), 5, availability).unwrap().with_threads(threads);
    let toys = Toys::new(50);
    let outcome = simulator.run(&toys, &mut |_| {}).unwrap();
    (outcome, toys.visits.into_inner())
}

#[test]
fn the_model_is_the_same_on_one_thread_and_on_many() {
    let availability = AvailabilityConfig {
        latency_spread: 1.0,
        dropout: 0.1,
        availability: 0.8,
        ..AvailabilityConfig::default()
    };
    let plan = "cohort = { clients_min = 10, count = 20, quorum = 5, deadline_seconds = 3 }\n";
    let (one, _) = run(plan, availability, 1);
    for threads in [2, 7] {
        let (many, _) = run(plan, availability, threads);
        assert_eq!(one.model.sha256(), many.model.sha256());
        assert_eq!(one.elapsed, many.elapsed);
    }
    assert_eq!(one.end, RunEnd::Finished);
    assert_eq!(one.rounds.len(), 4);
}

#[test]
fn all_threads_measure_the_servers_records_and_find_the_same() {
    let measured = |threads| {
        let plan =
            Plan::parse(&format!("{PLAN}evaluation = {{ sites = \"none\", central = true }}\n")).unwrap();
        let start = Parameters::new(vec![0.0; 2]);
        let simulator =
            Simulator::new(plan, start, 5, AvailabilityConfig::default()).unwrap().with_threads(threads);
        let toys = Toys { central_parts: 7, ..Toys::new(10) };
        let outcome = simulator.run(&toys, &mut |_| {}).unwrap();
        let central = outcome.rounds.iter().map(|round| round.central.unwrap()).collect::<Vec<_>>();
        (central, outcome.model)
    };
    let (one, model) = measured(1);
    assert_eq!(one[3].examples, 7);
    // The parts have losses of 0, 0.1, ... 0.6 more than the model's first value.
    assert!((one[3].loss - f64::from(model.values()[0]) - 0.3).abs() < 1e-12, "{:?}", one[3]);
    for threads in [2, 3, 16] {
        assert_eq!(measured(threads).0, one);
    }
}

#[test]
fn stragglers_beyond_the_deadline_are_not_even_trained() {
    let availability = AvailabilityConfig { latency_spread: 3.0, ..AvailabilityConfig::default() };
    let plan = "cohort = { quorum = 1, deadline_seconds = 1 }\nevaluation = { sites = \"none\" }\n";
    let (outcome, visits) = run(plan, availability, 1);
    assert!(outcome.rounds.iter().all(|round| round.released && round.answered < 50));
    assert!(visits < 4 * 40, "{visits} visits");
    let answered: u64 = outcome.rounds.iter().map(|round| u64::from(round.answered)).sum();
    assert_eq!(outcome.updates, answered);
}

#[test]
fn too_few_clients_is_said_before_or_after_waiting() {
    let plan = |text: &str| Plan::parse(&format!("{PLAN}{text}")).unwrap();
    let start = || Parameters::new(vec![0.0; 2]);
    let toys = Toys::new(5);
    let simulator =
        Simulator::new(plan("cohort = { clients_min = 6 }\n"), start(), 1, AvailabilityConfig::default())
            .unwrap();
    assert!(matches!(
        simulator.run(&toys, &mut |_| {}),
        Err(SimulatorError::TooFewClients { needed: 6, found: 5 })
    ));
    let rain = AvailabilityConfig { availability: 1e-9, ..AvailabilityConfig::default() };
    let simulator = Simulator::new(plan("cohort = { clients_min = 5 }\n"), start(), 1, rain).unwrap();
    assert!(matches!(simulator.run(&toys, &mut |_| {}), Err(SimulatorError::TooFewClients { .. })));
}

#[test]
fn observers_see_virtual_time() {
    let availability = AvailabilityConfig {
        latency_seconds: protocol::Positive::new(30.0).unwrap(),
        ..AvailabilityConfig::default()
    };
    let simulator =
        Simulator::new(Plan::parse(PLAN).unwrap(), Parameters::new(vec![0.0; 2]), 5, availability).unwrap();
    let mut rounds = Vec::new();
    let toys = Toys::new(3);
    let outcome = simulator.run(&toys, &mut |seen| {
        if let Note::Round(summary) = seen.note {
            rounds.push((summary.round, seen.now.as_seconds()));
        }
    });
    assert_eq!(rounds, [(1, 60.0), (2, 120.0), (3, 180.0), (4, 240.0)]);
    assert_eq!(outcome.unwrap().elapsed.as_secs(), 240);
}
