//! Ten steps of local training at batch size 10 with the trainer, beside the same network on candle's stock operations
//! and automatic differentiation.
//!
//! `cargo bench --bench training`. Both sides run on one thread, as one client does in a simulation: the program starts
//! itself again with `RAYON_NUM_THREADS=1`, which is candle's only switch. The trainer's time holds loading the
//! parameters and storing them back, counting right answers and checking for numbers that are not finite; the
//! reference's does not. It judges speed alone: candle 0.11's pooling returns a quarter of the gradient.

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion};
use learning::{Dataset, Labels, SiteData, Trainer, View, initial_parameters, layout_of};
use protocol::{Learner, Round, Seed, Spec, Stop, TrainOrder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const THREADS: &str = "RAYON_NUM_THREADS";
const BATCH: usize = 10;
const STEPS: usize = 10;
const RATE: f64 = 0.05;
const CNN: &str = r#"{"cnn": {}}"#;
const MLP: &str = r#"{"mlp": {"hidden": [200, 200]}}"#;

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var(THREADS).as_deref() != Ok("1") {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(THREADS, "1").status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for (name, model) in [("mlp", MLP), ("cnn", CNN)] {
        train(&mut criterion, name, &spec(model)?)?;
    }
    criterion.final_summary();
    Ok(ExitCode::SUCCESS)
}

fn spec(model: &str) -> anyhow::Result<Arc<Spec>> {
    let json = format!(
        r#"{{"model": {model}, "data": {{"tensor": {{"shape": [1, 28, 28], "target": {{"classes": 10}}}}}},
        "training": {{"batch_size": {BATCH}, "optimizer": {{"sgd": {{"learning_rate": {RATE}}}}}}}, "cohort_max": 10}}"#
    );
    Ok(Arc::new(Spec::from_json(&json)?))
}

/// Images of noise; ten classes in turn.
fn images() -> Dataset {
    let pixel = |index: usize| (index * 7919 % 997) as f32 / 997.0;
    let features: Vec<f32> = (0..BATCH * STEPS * 784).map(pixel).collect();
    let labels = Labels::Classes((0..10).cycle().take(BATCH * STEPS).collect());
    Dataset { shape: vec![1, 28, 28], features: features.into(), labels }
}

fn train(criterion: &mut Criterion, name: &str, spec: &Arc<Spec>) -> anyhow::Result<()> {
    let mut group = criterion.benchmark_group(format!("ten steps, {name}"));
    let data = images();
    let start = initial_parameters(spec, Seed::from_number(1))?;

    let reference = Reference::new(spec, &start, &data)?;
    group.bench_function(BenchmarkId::from_parameter("reference: candle"), |bencher| {
        bencher.iter(|| black_box(reference.train().expect("candle trains this network")));
    });

    let site = SiteData { train: View::whole(Arc::new(data)), test: None };
    let mut trainer = Trainer::new(Box::new(site), Device::Cpu);
    trainer.prepare(spec)?;
    let seed = Seed::from_number(2);
    let order =
        TrainOrder { round: Round(1), seed, learning_rate_scale: 1.0, standardiser: None, permit: None };
    let mut parameters = start;
    group.bench_function(BenchmarkId::from_parameter("trainer"), |bencher| {
        bencher.iter(|| trainer.train(&mut parameters, &order, &Stop::default()).expect("it trains"));
    });
    group.finish();
    Ok(())
}

/// The network of a spec as candle's users write it.
struct Reference {
    vars: Vec<Var>,
    batches: Vec<(Tensor, Tensor)>,
}

impl Reference {
    fn new(spec: &Spec, start: &[f32], data: &Dataset) -> anyhow::Result<Self> {
        let Labels::Classes(classes) = &data.labels else { anyhow::bail!("the images have classes") };
        let mut vars = Vec::new();
        for tensor in layout_of(spec)?.tensors() {
            let values = &start[tensor.range()];
            vars.push(Var::from_slice(values, tensor.shape.as_slice(), &Device::Cpu)?);
        }
        let pixels = data.features.to_vec();
        let pairs = pixels.chunks(BATCH * 784).zip(classes.chunks(BATCH));
        let batch = |(pixels, classes): (&[f32], &[u32])| -> Result<(Tensor, Tensor)> {
            let images = Tensor::from_slice(pixels, (BATCH, 1, 28, 28), &Device::Cpu)?;
            Ok((images, Tensor::from_slice(classes, BATCH, &Device::Cpu)?))
        };
        Ok(Self { vars, batches: pairs.map(batch).collect::<Result<_>>()? })
    }

    /// One pass over the batches; the last loss.
    fn train(&self) -> Result<f32> {
        let mut last = 0.0;
        for (images, classes) in &self.batches {
            let loss = candle_nn::loss::cross_entropy(&self.forward(images)?, classes)?;
            let gradients = loss.backward()?;
            for var in &self.vars {
                if let Some(gradient) = gradients.get(var) {
                    var.set(&var.sub(&(gradient * RATE)?)?)?;
                }
            }
            last = loss.to_dtype(DType::F32)?.to_scalar()?;
        }
        Ok(last)
    }

    /// Convolutions while the weights have four dimensions, then dense layers.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let layers = self.vars.len() / 2;
        let mut x = images.clone();
        for (index, layer) in self.vars.chunks_exact(2).enumerate() {
            let (weight, bias) = (&layer[0], &layer[1]);
            x = if weight.rank() == 4 {
                let sums = x.conv2d(weight, weight.dim(2)? / 2, 1, 1, 1)?;
                sums.broadcast_add(&bias.reshape((1, (), 1, 1))?)?.relu()?.max_pool2d(2)?
            } else {
                let sums = x.flatten_from(1)?.matmul(&weight.t()?)?.broadcast_add(bias)?;
                if index + 1 < layers { sums.relu()? } else { sums }
            };
        }
        Ok(x)
    }
}
