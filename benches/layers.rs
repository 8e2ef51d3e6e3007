//! One layer forward and backward as a candle operation (`learning::ops`), beside the same layer composed of candle's own
//! operations, in batches of 10 as in the networks of `docs/performance.md`.
//!
//! `cargo bench --bench layers`. Both sides run on one thread: the program starts itself again with `RAYON_NUM_THREADS=1`, which
//! is candle's only switch. What a training step takes with all its memory at hand, `consortia bench steps` tells.

use std::hint::black_box;
use std::process::{Command, ExitCode};

use candle_core::{Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion};
use learning::ops::{self, Activation, composed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const THREADS: &str = "RAYON_NUM_THREADS";
const BATCH: usize = 10;

/// A layer's inputs first, then its parameters; the layer in closed form and composed.
struct Case {
    name: &'static str,
    tensors: Vec<Var>,
    ours: fn(&[Var]) -> Result<Tensor>,
    composed: fn(&[Var]) -> Result<Tensor>,
}

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var(THREADS).as_deref() != Ok("1") {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(THREADS, "1").status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for case in images()?.into_iter().chain(sequences()?) {
        let mut group = criterion.benchmark_group(case.name);
        for (name, layer) in [("reference: composed", case.composed), ("closed form", case.ours)] {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                let pass = || -> Result<_> { layer(&case.tensors)?.sum_all()?.backward() };
                bencher.iter(|| black_box(pass().expect("the shapes fit")));
            });
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(ExitCode::SUCCESS)
}

/// Numbers between -0.5 and 0.5 in these shapes.
fn made_up(shapes: &[&[usize]]) -> Result<Vec<Var>> {
    let one = |shape: &&[usize]| {
        let value = |index: usize| (index * 7919 % 2003) as f32 / 2003.0 - 0.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Var::from_vec(values, *shape, &Device::Cpu)
    };
    shapes.iter().map(one).collect()
}

fn images() -> Result<[Case; 5]> {
    Ok([
        Case {
            name: "dense, 784 to 200, relu",
            tensors: made_up(&[&[BATCH, 784], &[200, 784], &[200]])?,
            ours: |v| ops::linear(&v[0], &v[1], &v[2], Activation::Relu),
            composed: |v| composed::linear(&v[0], &v[1], &v[2], Activation::Relu),
        },
        Case {
            name: "convolution 3 x 3, 64 channels of 32 x 32",
            tensors: made_up(&[&[BATCH, 64, 32, 32], &[64, 64, 3, 3], &[64]])?,
            ours: |v| ops::convolution(&v[0], &v[1], &v[2], (1, 1), Activation::Identity),
            composed: |v| composed::convolution(&v[0], &v[1], &v[2], (1, 1), Activation::Identity),
        },
        Case {
            name: "convolution 5 x 5, 32 to 64 channels of 14 x 14, relu",
            tensors: made_up(&[&[BATCH, 32, 14, 14], &[64, 32, 5, 5], &[64]])?,
            ours: |v| ops::convolution(&v[0], &v[1], &v[2], (1, 2), Activation::Relu),
            composed: |v| composed::convolution(&v[0], &v[1], &v[2], (1, 2), Activation::Relu),
        },
        Case {
            name: "max pool 2 x 2, 32 channels of 28 x 28",
            tensors: made_up(&[&[BATCH, 32, 28, 28]])?,
            ours: |v| ops::max_pool(&v[0], 2, 2),
            composed: |v| composed::max_pool(&v[0], 2, 2),
        },
        Case {
            name: "group norm, 64 channels of 32 x 32 in 8 groups",
            tensors: made_up(&[&[BATCH, 64, 32, 32], &[64], &[64]])?,
            ours: |v| ops::group_norm(&v[0], &v[1], &v[2], 8),
            composed: |v| composed::group_norm(&v[0], &v[1], &v[2], 8),
        },
    ])
}

fn sequences() -> Result<[Case; 2]> {
    Ok([
        Case {
            name: "lstm, 20 steps of 64, state of 128",
            tensors: made_up(&[&[BATCH, 20, 64], &[512, 64], &[512, 128], &[512]])?,
            ours: |v| ops::lstm(&v[0], &v[1], &v[2], &v[3]),
            composed: |v| composed::lstm(&v[0], &v[1], &v[2], &v[3]),
        },
        Case {
            name: "gru, 20 steps of 64, state of 128",
            tensors: made_up(&[&[BATCH, 20, 64], &[384, 64], &[384, 128], &[384], &[384]])?,
            ours: |v| ops::gru(&v[0], [&v[1], &v[2]], [&v[3], &v[4]]),
            composed: |v| composed::gru(&v[0], [&v[1], &v[2]], [&v[3], &v[4]]),
        },
    ])
}
