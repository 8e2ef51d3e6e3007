//! An update of 1,663,370 parameters in its short forms: choosing points that have one and packing them at the client, unpacking
//! at the server, beside a copy of the points as they are.
//!
//! `cargo bench --bench codecs`. One thread. The bytes each form takes are printed first.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use privacy::{Encoded, Lattice, NormBound, clip};
use protocol::{BroadcastCodec, Seed, UpdateCodec};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARAMETERS: usize = 1_663_370;
const WEIGHT: u32 = 600;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    updates(&mut criterion);
    models(&mut criterion);
    criterion.final_summary();
}

/// Values of a plausible size, many small ones and few large ones.
fn values() -> Vec<f32> {
    let value = |index: usize| {
        let uniform = (index * 7919 % 2003) as f32 / 1001.5 - 1.0;
        0.02 * uniform * uniform * uniform
    };
    (0..PARAMETERS).map(value).collect()
}

/// The points of an update, and their lattice.
fn update() -> (Vec<i32>, Lattice) {
    let bound = NormBound::new(10.0).expect("10 is a norm");
    let lattice = Lattice::plan(bound, 1000, 1000, PARAMETERS).expect("this cohort has a lattice");
    let clipped = clip(values(), lattice.bound()).expect("the values are finite");
    let encoded = Encoded::encode(&clipped, lattice.weigh(u64::from(WEIGHT)), &lattice);
    (encoded.expect("its length is the lattice's").into_points(), lattice)
}

fn updates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("update");
    group.throughput(Throughput::Bytes(4 * PARAMETERS as u64));
    let ((points, lattice), seed) = (update(), Seed::from_number(1));
    let encoded =
        || Encoded::admit(points.clone(), WEIGHT, &lattice).expect("the points are within the bounds");
    let codecs = [
        ("packed", UpdateCodec::Packed),
        ("f16", UpdateCodec::F16),
        ("bf16", UpdateCodec::Bf16),
        ("int8", UpdateCodec::Int8),
        ("top 1 %", UpdateCodec::TopK { fraction: 0.01 }),
    ];
    for (name, codec) in codecs {
        let chosen = codec.compress(encoded(), &seed).into_points();
        let bytes = codec.pack(&chosen).expect("compressed points have a short form");
        println!("{name}: {:.3} bytes a parameter", bytes.len() as f64 / PARAMETERS as f64);
        group.bench_function(BenchmarkId::new("compress and pack", name), |bencher| {
            let work = |update| codec.pack(codec.compress(update, &seed).points());
            bencher.iter_batched(encoded, work, BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("unpack", name), |bencher| {
            bencher.iter(|| black_box(codec.unpack(&bytes, PARAMETERS).expect("it was packed so")));
        });
    }
    group.bench_function("reference: copy the points", |bencher| {
        bencher.iter(|| black_box(points.clone()));
    });
    group.finish();
}

fn models(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("model");
    group.throughput(Throughput::Bytes(4 * PARAMETERS as u64));
    let values = values();
    for (name, codec) in [("f16", BroadcastCodec::F16), ("bf16", BroadcastCodec::Bf16)] {
        group.bench_function(BenchmarkId::new("round", name), |bencher| {
            bencher.iter(|| black_box(codec.round(&values)));
        });
    }
    group.bench_function("reference: copy the values", |bencher| {
        bencher.iter(|| black_box(values.clone()));
    });
    group.finish();
}
