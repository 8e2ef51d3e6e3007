//! What one update costs on its way through the lattice, for the models of `docs/performance.md`: at a client the difference,
//! its norm, clipping and rounding; at a server the checks and the sum; and once a round the step.
//!
//! `cargo bench -p privacy --bench lattice`. One thread, memory in reuse. Throughput counts four bytes a parameter.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use privacy::{Encoded, Lattice, NormBound, Released, Sum};

/// Logistic regression, a perceptron of two layers, and the network of McMahan et al. 2017, on 28 x 28 pixels.
const MODELS: [usize; 3] = [7_850, 199_210, 1_663_370];
const WEIGHT: u64 = 600;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for parameters in MODELS {
        walk(&mut criterion, parameters);
    }
    criterion.final_summary();
}

/// An update whose norm is about 10: twice the bound of the one, half that of the other.
fn walk(criterion: &mut Criterion, parameters: usize) {
    let value = |index: usize| (index * 7919 % 2003) as f32 / 2003.0 - 0.5;
    let scale = 35.0 / (parameters as f32).sqrt();
    let start: Vec<f32> = (0..parameters).map(|index| value(index + 1)).collect();
    let trained: Vec<f32> =
        start.iter().zip(0..).map(|(start, index)| start + scale * value(index)).collect();
    let mut group = criterion.benchmark_group("update");
    group.throughput(Throughput::Bytes(4 * parameters as u64));
    let lattice_of = |norm: f64| {
        let bound = NormBound::new(norm).expect("it is positive");
        Lattice::plan(bound, 1 << 20, 1000, parameters).expect("this cohort has a lattice")
    };
    for (name, lattice) in [("encode, short", lattice_of(20.0)), ("encode, clipped", lattice_of(5.0))] {
        let (mut values, mut points) = (trained.clone(), Vec::new());
        group.bench_function(BenchmarkId::new(name, parameters), |bencher| {
            bencher.iter(|| {
                let mut trained_now = std::mem::take(&mut values);
                trained_now.copy_from_slice(&trained);
                let clipped = lattice.clip_difference(trained_now, &start).expect("it is finite");
                let memory = std::mem::take(&mut points);
                let encoded = Encoded::encode_into(&clipped, lattice.weigh(WEIGHT), &lattice, memory);
                points = encoded.expect("it has the lattice's length").into_points();
                values = clipped.into_values();
            });
        });
    }
    let lattice = lattice_of(20.0);
    let clipped = lattice.clip_difference(trained.clone(), &start).expect("it is finite");
    let encoded = Encoded::encode(&clipped, lattice.weigh(WEIGHT), &lattice).expect("it has its length");
    let (weight, mut points) = (encoded.weight().value(), encoded.into_points());
    let mut sum = Sum::new(&lattice);
    group.bench_function(BenchmarkId::new("admit and add", parameters), |bencher| {
        bencher.iter(|| {
            let update = Encoded::admit(std::mem::take(&mut points), weight, &lattice);
            let update = update.expect("it was encoded for this lattice");
            sum.add(&update).expect("the sum has room");
            points = update.into_points();
        });
    });
    let (released, mut model) = (Released::unprotected(sum).expect("it holds updates"), start);
    group.bench_function(BenchmarkId::new("step", parameters), |bencher| {
        bencher.iter(|| {
            released.apply(black_box(&mut model), |value, mean| (f64::from(value) + 0.1 * mean) as f32);
        });
    });
    group.finish();
}
