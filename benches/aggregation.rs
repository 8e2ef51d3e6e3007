//! What the server and a client do with one update of 1,663,370 parameters (the MNIST network of McMahan et al. 2017), each
//! beside the plainest loop over the same numbers; and a round of a coordinator with a thousand clients and a model of two
//! parameters, which is all bookkeeping.
//!
//! `cargo bench --bench aggregation`. One thread, memory in reuse where the program reuses it. It says nothing of
//! networks or disks.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use privacy::{Encoded, Lattice, NormBound, Released, Sum, clip};
use protocol::{Answer, ClientId, Metrics, Outcome, Parameters, RunId, Seed, Task, Time, Work};
use server::{
    Action, Adaptive, AdaptiveKind, Averaging, Checkpoint, Coordinator, Event, ModelUpdate, Plan,
    ServerOptimizer, Setup,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARAMETERS: usize = 1_663_370;
const CLIENTS: usize = 1000;
const CLIENTS_MAX: u64 = 1 << 20;
const WEIGHT: u32 = 600;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    fold(&mut criterion);
    encode(&mut criterion);
    step(&mut criterion);
    coordinate(&mut criterion);
    criterion.final_summary();
}

fn lattice() -> Lattice {
    let bound = NormBound::new(10.0).expect("10 is a norm");
    Lattice::plan(bound, CLIENTS_MAX, 1000, PARAMETERS).expect("this cohort has a lattice")
}

/// Values of a plausible size: their norm is about 13, so that a bound of 10 clips.
fn delta() -> Vec<f32> {
    let value = |index: usize| ((index * 7919 % 2003) as f32 / 2003.0 - 0.5) * 0.035;
    (0..PARAMETERS).map(value).collect()
}

fn encoded(lattice: &Lattice) -> Encoded {
    let clipped = clip(delta(), lattice.bound()).expect("the values are finite");
    assert!(clipped.was_scaled(), "a delta that is not clipped measures less");
    Encoded::encode(&clipped, lattice.weigh(u64::from(WEIGHT)), lattice).expect("its length is the lattice's")
}

/// What the server does with each update that comes.
fn fold(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fold");
    group.throughput(Throughput::Bytes(4 * PARAMETERS as u64));
    let lattice = lattice();
    let mut points = encoded(&lattice).into_points();
    group.bench_function("admit and add", |bencher| {
        let mut sum = Sum::new(&lattice);
        bencher.iter(|| {
            let came = std::mem::take(&mut points);
            let update = Encoded::admit(came, WEIGHT, &lattice).expect("it was encoded for this lattice");
            sum.add(&update).expect("the sum has room");
            points = update.into_points();
        });
        black_box(sum);
    });
    let delta = delta();
    group.bench_function("reference: accumulate f32 in f64", |bencher| {
        let mut totals = vec![0.0f64; PARAMETERS];
        bencher.iter(|| {
            let weight = f64::from(black_box(WEIGHT));
            totals.iter_mut().zip(&delta).for_each(|(total, value)| *total += weight * f64::from(*value));
        });
        black_box(totals);
    });
    group.finish();
}

/// What a client does with what it has trained.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(4 * PARAMETERS as u64));
    let (lattice, delta) = (lattice(), delta());
    group.bench_function("clip and encode", |bencher| {
        let work = |delta: Vec<f32>| {
            let clipped = clip(delta, lattice.bound()).expect("the values are finite");
            let encoded = Encoded::encode(&clipped, lattice.weigh(u64::from(WEIGHT)), &lattice);
            (encoded.expect("its length is the lattice's").into_points(), clipped)
        };
        bencher.iter_batched(|| delta.clone(), work, BatchSize::PerIteration);
    });
    group.bench_function("reference: norm and scale in f32", |bencher| {
        let work = |mut delta: Vec<f32>| {
            let square: f64 =
                delta.chunks(256).map(|block| f64::from(block.iter().map(|x| x * x).sum::<f32>())).sum();
            let factor = (10.0 / square.sqrt()).min(1.0) as f32;
            delta.iter_mut().for_each(|value| *value *= factor);
            delta
        };
        bencher.iter_batched(|| delta.clone(), work, BatchSize::PerIteration);
    });
    group.finish();
}

/// What the server does once a round.
fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("server step");
    let lattice = lattice();
    let mut sum = Sum::new(&lattice);
    sum.add(&encoded(&lattice)).expect("the sum has room");
    let mean = ModelUpdate::Released(Released::unprotected(sum).expect("the sum holds an update"));
    let mut model = vec![0.1f32; PARAMETERS];
    let optimizers: [(&str, Box<dyn ServerOptimizer>); 3] = [
        ("fedavg", Box::new(Averaging::new(1.0, 0.0))),
        ("fedavgm", Box::new(Averaging::new(1.0, 0.9))),
        ("fedadam", Box::new(Adaptive::new(AdaptiveKind::Adam, 0.1, 0.9, 0.99, 1e-3))),
    ];
    for (name, mut optimizer) in optimizers {
        group.bench_function(name, |bencher| bencher.iter(|| optimizer.step(black_box(&mut model), &mean)));
    }
    let plain: Vec<f32> = mean.values().map(|value| value as f32).collect();
    group.bench_function("reference: add f32", |bencher| {
        bencher
            .iter(|| black_box(&mut model).iter_mut().zip(&plain).for_each(|(value, mean)| *value += mean));
    });
    group.finish();
}

/// A coordinator and the shell that it asks for least: commits succeed at once.
struct Stage {
    coordinator: Coordinator,
    clients: Vec<ClientId>,
    open: Vec<(ClientId, Task)>,
}

impl Stage {
    fn new() -> Self {
        let plan = format!(
            "name = \"bench\"\nrounds = 1000000\nmodel = \"linear\"\n\
             data = {{ table = {{ label = \"y\", target = \"real\", features = [\"a\"] }} }}\n\
             training = {{ batch_size = 8, optimizer = {{ sgd = {{ learning_rate = 0.1 }} }} }}\n\
             cohort = {{ clients_min = {CLIENTS}, count = {CLIENTS} }}\n\
             evaluation = {{ sites = \"none\", central = false }}\n"
        );
        let setup = Setup {
            run: RunId(1),
            plan: Arc::new(Plan::parse(&plan).expect("the plan is consistent")),
            entropy: Seed::from_number(1),
            is_seeded: true,
            central: false,
            checkpoint: Checkpoint::begin(Parameters::new(vec![0.0; 2])),
            clients: BTreeMap::new(),
            tensors: Vec::new(),
            dp_context: None,
        };
        let name = |index| ClientId::new(&format!("client-{index}")).expect("these characters are allowed");
        let clients: Vec<ClientId> = (0..CLIENTS).map(name).collect();
        let coordinator = Coordinator::new(setup).expect("plan and checkpoint go together");
        let mut stage = Self { coordinator, clients, open: Vec::new() };
        stage.handle(Event::joined_together(stage.clients.clone()));
        stage
    }

    fn handle(&mut self, event: Event) {
        self.coordinator.handle(Time::ZERO, event);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => self.open.push((client, task)),
                Action::Commit(_) => self.coordinator.handle(Time::ZERO, Event::Committed),
                other => drop(black_box(other)),
            }
        }
    }

    /// Every client answers; the coordinator releases, steps, commits and opens the next round.
    fn round(&mut self, points: &[i32]) {
        let open = std::mem::take(&mut self.open);
        assert_eq!(open.len(), CLIENTS, "every client is asked in every round");
        for (client, task) in open {
            debug_assert!(matches!(task.work, Work::Train { .. }));
            let metrics = Metrics { loss: 0.5, accuracy: None, examples: 10, seconds: 0.0 };
            let outcome = Outcome::trained(points.to_vec(), 10, 0, metrics);
            self.handle(Event::Answered { client, answer: Answer { task: task.id, outcome } });
        }
    }
}

/// A thousand clients, and a model so small that nothing else is left.
fn coordinate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coordinator");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    let mut stage = Stage::new();
    group.bench_function("a round of 1,000 clients", |bencher| bencher.iter(|| stage.round(&[3, -4])));
    group.finish();
    let rounds = stage.coordinator.checkpoint().round.0;
    let record = &stage.coordinator.clients()[&stage.clients[0]];
    assert_eq!(record.accepted, rounds, "an answer did not count");
}
