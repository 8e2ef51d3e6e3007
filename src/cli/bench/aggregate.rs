//! What a client and the server do with one update, beside copying it: clip and encode, admit and add, noise, the server's
//! step. Their limit is memory: the bytes that each cannot avoid to read and write, at the speed of a large copy.

use std::hint::black_box;

use clap::Args;
use privacy::noise::{NoiseSource, Sigma, add_noise};
use privacy::{Encoded, Lattice, NormBound, Released, Sum, clip};
use serde_json::{Value, json};
use server::{Averaging, ModelUpdate, ServerOptimizer};

use super::super::cores::cores;
use super::limits::Copying;
use super::machine::{load, machine, peak_rss_bytes};
use super::samples::Samples;
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;
use crate::cli::output::table;

/// Clients for which the lattice has room.
const CLIENTS_MAX: u64 = 1 << 20;
const WEIGHT: u32 = 600;
/// Bytes of each buffer of the copy: no cache holds two of them.
const COPIED: usize = 256 << 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct AggregateArgs {
    /// Values of an update.
    #[arg(long, default_value_t = 1_663_370)]
    parameters: usize,
    /// How often each is done; medians are reported.
    #[arg(long, default_value_t = 15)]
    repeats: usize,
    /// Threads that draw noise; all cores by default. Everything else runs on one thread.
    #[arg(long)]
    threads: Option<usize>,
}

/// One thing that is done with an update.
struct Step {
    name: &'static str,
    seconds: Samples,
    /// Bytes that it has to read and write a parameter; none where memory is not what bounds it.
    bytes: Option<usize>,
}

pub(super) fn measure(args: &AggregateArgs, global: &Global) -> Result<(), Failure> {
    let defect =
        |what: &'static str| move |error: String| Failure::new(Kind::Defect, format!("{what}: {error}"));
    let bound = NormBound::new(10.0).or_fail(Kind::Defect, "the norm")?;
    let lattice = Lattice::plan(bound, CLIENTS_MAX, 1000, args.parameters)
        .or_fail(Kind::Configuration, "--parameters")?;
    let threads = args.threads.unwrap_or_else(cores).max(1);
    let mut copying = Copying::new(COPIED);
    let copied = Samples::of_seconds(args.repeats.clamp(3, 5), || copying.copy());
    let bandwidth = copying.bytes_moved() as f64 / copied.least();
    drop(copying);
    let steps = [
        encode(args, &lattice).map_err(defect("encode"))?,
        admit(args, &lattice).map_err(defect("admit"))?,
        noise(args, threads).map_err(defect("noise"))?,
        advance(args, &lattice).map_err(defect("step"))?,
    ];
    let row = |step: &Step| {
        let limit = step.bytes.map(|bytes| (bytes * args.parameters) as f64 / bandwidth);
        json!({
            "step": step.name,
            "seconds": step.seconds.object(),
            "updates_per_s": 1.0 / step.seconds.median(),
            "limit_seconds": limit,
            "share_of_limit": limit.map(|limit| limit / step.seconds.median()),
        })
    };
    let rows: Vec<Value> = steps.iter().map(row).collect();
    let object = json!({
        "workload": "aggregate",
        "parameters": args.parameters,
        "threads": threads,
        "repeats": args.repeats.max(1),
        "limit": { "what": "memory", "bytes_per_s": bandwidth },
        "steps": rows,
        "updates_per_s": rows[1]["updates_per_s"],
        "share_of_limit": rows[1]["share_of_limit"],
        "peak_rss_bytes": peak_rss_bytes(),
        "load": load(),
        "machine": machine(),
    });
    global.format.say(|| describe(&object), || object.clone());
    Ok(())
}

/// Values of a plausible size: their norm is above the bound, so that they are clipped.
fn delta(parameters: usize) -> Vec<f32> {
    let size = 45.0 / (parameters as f32).sqrt();
    let value = |index: usize| ((index * 7919 % 2003) as f32 / 2003.0 - 0.5) * size;
    (0..parameters).map(value).collect()
}

fn encoded(args: &AggregateArgs, lattice: &Lattice) -> Result<Encoded, String> {
    let clipped = clip(delta(args.parameters), lattice.bound()).map_err(|error| error.to_string())?;
    let weight = lattice.weigh(WEIGHT.into());
    Encoded::encode(&clipped, weight, lattice).map_err(|error| error.to_string())
}

/// What the client does with what it has trained.
fn encode(args: &AggregateArgs, lattice: &Lattice) -> Result<Step, String> {
    let delta = delta(args.parameters);
    let weight = lattice.weigh(WEIGHT.into());
    encoded(args, lattice)?;
    let mut seconds = Vec::new();
    for _ in 0..=args.repeats.max(1) {
        let fresh = delta.clone();
        let began = std::time::Instant::now();
        let clipped = clip(fresh, lattice.bound()).map_err(|error| error.to_string())?;
        black_box(Encoded::encode(&clipped, weight, lattice).map_err(|error| error.to_string())?);
        seconds.push(began.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    let seconds = Samples::new(seconds).ok_or("no repeat")?;
    // The norm reads it once, the encoding again, and a point is written.
    Ok(Step { name: "client: clip and encode", seconds, bytes: Some(12) })
}

/// What the server does with each update that comes.
fn admit(args: &AggregateArgs, lattice: &Lattice) -> Result<Step, String> {
    let mut points = encoded(args, lattice)?.into_points();
    let mut sum = Sum::new(lattice);
    let mut failed = None;
    let seconds = Samples::of_seconds(args.repeats, || {
        let came = Encoded::admit(std::mem::take(&mut points), WEIGHT, lattice);
        let added = came.map_err(|error| error.to_string()).and_then(|update| {
            sum.add(&update).map_err(|error| error.to_string())?;
            Ok(update.into_points())
        });
        match added {
            Ok(back) => points = back,
            Err(error) => failed = Some(error),
        }
    });
    black_box(sum);
    // The points are read to be checked and again to be added; the sum is read and written.
    failed.map_or(Ok(Step { name: "server: admit and add", seconds, bytes: Some(24) }), Err)
}

/// Exact noise for a release.
fn noise(args: &AggregateArgs, threads: usize) -> Result<Step, String> {
    let sigma = Sigma::whole(1 << 30).map_err(|error| error.to_string())?;
    let mut totals = vec![0i64; args.parameters];
    let mut failed = None;
    let seconds = Samples::of_seconds(args.repeats.min(5), || {
        let added = NoiseSource::from_entropy().map_err(|error| error.to_string()).and_then(|source| {
            add_noise(&mut totals, sigma, source, threads).map_err(|error| error.to_string())
        });
        failed = added.err().or_else(|| failed.take());
    });
    black_box(totals);
    failed.map_or(Ok(Step { name: "server: exact noise", seconds, bytes: None }), Err)
}

/// What the server does once a round.
fn advance(args: &AggregateArgs, lattice: &Lattice) -> Result<Step, String> {
    let mut sum = Sum::new(lattice);
    sum.add(&encoded(args, lattice)?).map_err(|error| error.to_string())?;
    let mean = ModelUpdate::Released(Released::unprotected(sum).ok_or("a sum of one update is empty")?);
    let mut model = vec![0.1f32; args.parameters];
    let mut averaging = Averaging::new(1.0, 0.0);
    let seconds = Samples::of_seconds(args.repeats, || averaging.step(black_box(&mut model), &mean));
    // Totals are read, the model is read and written.
    Ok(Step { name: "server: fedavg step", seconds, bytes: Some(16) })
}

fn describe(object: &Value) -> String {
    let bandwidth = object["limit"]["bytes_per_s"].as_f64().unwrap_or(f64::NAN) / 1e9;
    let mut rows = vec![["", "ms", "limit, ms", "share"].map(str::to_owned).to_vec()];
    for step in object["steps"].as_array().into_iter().flatten() {
        let cell = |value: &Value, factor: f64, unit: &str| {
            value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{:.2}{unit}", value * factor))
        };
        rows.push(vec![
            step["step"].as_str().unwrap_or_default().to_owned(),
            cell(&step["seconds"]["median"], 1e3, ""),
            cell(&step["limit_seconds"], 1e3, ""),
            cell(&step["share_of_limit"], 1.0, ""),
        ]);
    }
    format!(
        "one update of {} parameters; a large copy moves {bandwidth:.1} GB/s\n{}",
        object["parameters"],
        table(&rows)
    )
}
