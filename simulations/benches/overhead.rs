//! What a simulation costs beside local training: rounds of clients whose training is one addition a parameter, for the models
//! of `docs/performance.md`; and rounds of a thousand among a million registered clients.
//!
//! `cargo bench -p simulations --bench overhead`. Times are of a round; elements are client updates. What a deployment does
//! with an update is all in it (schedule, copy of the model, difference, norm, rounding, checks, sum, step, bookkeeping).
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use protocol::{
    ClientId, EvaluateOrder, Layout, LearnError, Learner, Metrics, Parameters, Seed, Spec, Statistic, Stop,
    TrainOrder,
};
use server::{Note, Plan};
use simulations::{AvailabilityConfig, Simulator, Worker, Workforce};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients, clients a round, parameters: W1, W3 and W2, and a population of a million.
const SHAPES: [(usize, usize, usize); 4] =
    [(1000, 100, 7_850), (100, 10, 199_210), (100, 10, 1_663_370), (1_000_000, 1000, 2)];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (clients, cohort, parameters) in SHAPES {
        let mut group = criterion.benchmark_group("a round beside training");
        group.throughput(Throughput::Elements(cohort as u64)).sample_size(10);
        let trivial = Trivial::new(clients, parameters);
        for threads in [1, 2] {
            let name = format!("{cohort} of {clients} clients, {parameters} parameters");
            group.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |bencher| {
                bencher.iter_custom(|rounds| run(&trivial, cohort, threads, rounds));
            });
        }
        group.finish();
        println!("peak resident memory so far: {}", peak_resident().unwrap_or_else(|| "unknown".to_owned()));
    }
    criterion.final_summary();
}

/// As Linux says it.
fn peak_resident() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().to_owned())
}

/// The time of `rounds` rounds, without what comes before the first.
fn run(trivial: &Trivial, cohort: usize, threads: usize, rounds: u64) -> Duration {
    let plan = Plan::parse(&format!(
        "name = \"overhead\"\nrounds = {}\nmodel = \"linear\"\n\
         data = {{ table = {{ label = \"y\", target = \"real\", features = [\"a\"] }} }}\n\
         training = {{ batch_size = 8, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}\n\
         cohort = {{ clients_min = {cohort}, count = {cohort} }}\n\
         update = {{ norm_max = 1e3 }}\nevaluation = {{ sites = \"none\", central = false }}\n",
        rounds + 1
    ));
    let plan = plan.expect("the plan is consistent");
    let first = Parameters::new(vec![0.0; trivial.parameters]);
    let simulator =
        Simulator::new(plan, first, 1, AvailabilityConfig::default()).expect("everybody is there");
    let (mut begun, mut elapsed) = (None, Duration::ZERO);
    let outcome = simulator.with_threads(threads).run(trivial, &mut |seen| {
        if let Note::Round(_) = seen.note {
            elapsed = begun.get_or_insert_with(Instant::now).elapsed();
        }
    });
    let updates = outcome.expect("nothing can go wrong").updates;
    assert_eq!(updates, (rounds + 1) * cohort as u64, "an update did not count");
    elapsed
}

/// Clients that add a little to every parameter.
struct Trivial {
    clients: Vec<ClientId>,
    parameters: usize,
}

impl Trivial {
    fn new(clients: usize, parameters: usize) -> Self {
        let name = |number| ClientId::new(&format!("client-{number:07}")).expect("the name is plain");
        Self { clients: (0..clients).map(name).collect(), parameters }
    }
}

impl Workforce for Trivial {
    fn clients(&self) -> &[ClientId] {
        &self.clients
    }
    fn worker(&self) -> Box<dyn Worker + '_> {
        let layout = Layout::new([("w".to_owned(), vec![self.parameters])]);
        Box::new(Adder { layout: layout.expect("one tensor"), client: 0 })
    }
    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
}

struct Adder {
    layout: Layout,
    client: usize,
}

impl Worker for Adder {
    fn visit(&mut self, client: usize) -> &mut dyn Learner {
        self.client = client;
        self
    }
}

impl Learner for Adder {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![0.0; self.layout.len()])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, model: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let change = 1e-3 * (1 + self.client % 7) as f32;
        model.iter_mut().for_each(|value| *value += change);
        Ok(Metrics { examples: 10, ..Metrics::default() })
    }
    fn evaluate(&mut self, _: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Ok(Metrics { examples: 1, ..Metrics::default() })
    }
}
