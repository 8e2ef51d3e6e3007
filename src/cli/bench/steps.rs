//! One training step (forward, backward, SGD) on one thread, by network and batch size, beside the arithmetic in it at the
//! speed of the machine's matrix product.
//!
//! A step is what the trainer takes for a pass over some batches, divided by their number: loading and storing the
//! parameters, putting batches together and looking for numbers that are not finite are in it.

use std::process::Command;
use std::sync::Arc;

use clap::Args;
use learning::device::Device;
use learning::{SiteData, Trainer, View, initial_parameters};
use protocol::{Learner, Positive, Round, Seed, Spec, Stop, TrainOrder};
use serde_json::{Value, json};
use simulations::SyntheticSource;

use super::limits::product_flops;
use super::machine::{load, machine, peak_rss_bytes};
use super::samples::Samples;
use super::workload::Workload;
use crate::cli::Global;
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::output::table;

/// The only way to tell candle how many threads its operations may use.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

#[derive(Debug, Args)]
pub(in crate::cli) struct StepsArgs {
    /// How often the passes are run, all networks in turn; medians are told.
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Steps a pass.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Only networks whose name begins so.
    #[arg(long)]
    only: Option<String>,
}

/// A network and a batch size.
struct Network {
    name: &'static str,
    batch: usize,
    spec: Arc<Spec>,
    /// Floating-point operations of the products of one step.
    flops: u64,
}

pub(super) fn measure(args: &StepsArgs, global: &Global) -> Result<(), Failure> {
    let wanted = |network: &Network| args.only.as_ref().is_none_or(|only| network.name.starts_with(only));
    let networks: Vec<Network> = networks()?.into_iter().filter(wanted).collect();
    if networks.is_empty() {
        return Err(Failure::new(
            Kind::Configuration,
            "--only: no network's name begins so; give mlp or cnn",
        ));
    }
    if std::env::var(CANDLE_THREADS).as_deref() != Ok("1") {
        return again();
    }
    let mut passes = networks
        .iter()
        .map(|network| Pass::new(network, args.steps.max(1)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seconds = vec![Vec::new(); networks.len()];
    let mut flops = Vec::new();
    for repeat in 0..=args.repeats.max(1) {
        flops.push(product_flops(1)?);
        for (pass, seconds) in passes.iter_mut().zip(&mut seconds) {
            let taken = pass.seconds_a_step()?;
            if repeat > 0 {
                seconds.push(taken);
            }
        }
    }
    let defect = || Failure::new(Kind::Defect, "nothing was measured");
    let flops = Samples::new(flops).ok_or_else(defect)?;
    let mut rows = Vec::new();
    for (network, seconds) in networks.iter().zip(seconds) {
        let seconds = Samples::new(seconds).ok_or_else(defect)?;
        let limit = network.flops as f64 / flops.median();
        rows.push(json!({
            "network": network.name,
            "batch_size": network.batch,
            "seconds": seconds.object(),
            "flops": network.flops,
            "limit_seconds": limit,
            "share_of_limit": limit / seconds.median(),
        }));
    }
    let object = json!({
        "workload": "steps",
        "threads": 1,
        "steps": args.steps.max(1),
        "repeats": args.repeats.max(1),
        "limit": { "what": "sgemm", "flops_per_s": flops.object() },
        "networks": rows,
        "peak_rss_bytes": peak_rss_bytes(),
        "load": load(),
        "machine": machine(),
    });
    global.format.say(|| describe(&object), || object.clone());
    Ok(())
}

/// The same command with candle's operations on one thread.
fn again() -> Result<(), Failure> {
    let program = std::env::current_exe().or_fail(Kind::Defect, "this program")?;
    let mut command = Command::new(program);
    let status = command.args(std::env::args_os().skip(1)).env(CANDLE_THREADS, "1").status();
    match status.or_fail(Kind::Run, "this program, again")? {
        status if status.success() => Ok(()),
        status => Err(Failure::new(Kind::Run, format!("the measuring process ended with {status}"))),
    }
}

fn networks() -> Result<Vec<Network>, Failure> {
    let image = r#"{"tensor": {"shape": [1, 28, 28], "target": {"classes": 10}}}"#;
    let mut networks = Vec::new();
    for batch in [10, 32, 64] {
        let flops = |workload: Workload| workload.flops(batch as u64);
        let mlp = spec(r#"{"mlp": {"hidden": [200, 200]}}"#, image, batch)?;
        networks.push(Network { name: "mlp", batch, spec: mlp, flops: flops(Workload::W3) });
        let cnn = spec(r#"{"cnn": {}}"#, image, batch)?;
        networks.push(Network { name: "cnn", batch, spec: cnn, flops: flops(Workload::W2) });
    }
    networks.sort_by_key(|network| std::cmp::Reverse(network.name));
    Ok(networks)
}

fn spec(model: &str, data: &str, batch: usize) -> Result<Arc<Spec>, Failure> {
    let training = format!(r#"{{"batch_size": {batch}, "optimizer": {{"sgd": {{"learning_rate": 0.05}}}}}}"#);
    let text = format!(r#"{{"model": {model}, "data": {data}, "training": {training}, "cohort_max": 10}}"#);
    Spec::from_json(&text).map(Arc::new).or_fail(Kind::Defect, "the network")
}

/// A trainer with a few batches of made-up records.
struct Pass {
    trainer: Trainer,
    parameters: Vec<f32>,
    steps: usize,
}

impl Pass {
    fn new(network: &Network, steps: usize) -> Result<Self, Failure> {
        let (spec, seed) = (&network.spec, Seed::from_number(1));
        let spread = Positive::new(0.5).or_fail(Kind::Defect, "spread")?;
        let source = SyntheticSource { rows: network.batch * steps, test_rows: 1, spread };
        let (train, _) = source.make(&spec.input_shape(), spec.target(), seed);
        let site = SiteData { train: View::whole(Arc::new(train)), test: None };
        let mut trainer = Trainer::new(Box::new(site), Device::Cpu);
        trainer.prepare(spec).or_fail(Kind::Defect, network.name)?;
        let parameters = initial_parameters(spec, seed).or_fail(Kind::Defect, network.name)?;
        Ok(Self { trainer, parameters, steps })
    }

    fn seconds_a_step(&mut self) -> Result<f64, Failure> {
        let seed = Seed::from_number(2);
        let order =
            TrainOrder { round: Round(1), seed, learning_rate_scale: 1.0, standardiser: None, permit: None };
        let metrics = self.trainer.train(&mut self.parameters, &order, &Stop::default());
        Ok(metrics.or_fail(Kind::Run, "a pass")?.seconds / self.steps as f64)
    }
}

fn describe(object: &Value) -> String {
    let flops = object["limit"]["flops_per_s"]["median"].as_f64().unwrap_or(f64::NAN) / 1e9;
    let heads = ["network", "batch", "ms a step", "least", "share of the limit"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for network in object["networks"].as_array().into_iter().flatten() {
        let milliseconds = |value: &Value| format!("{:.3}", 1e3 * value.as_f64().unwrap_or(f64::NAN));
        rows.push(vec![
            network["network"].as_str().unwrap_or_default().to_owned(),
            network["batch_size"].to_string(),
            milliseconds(&network["seconds"]["median"]),
            milliseconds(&network["seconds"]["least"]),
            format!("{:.1} %", 100.0 * network["share_of_limit"].as_f64().unwrap_or(f64::NAN)),
        ]);
    }
    format!("one training step on one thread; matrix products do {flops:.0} GF/s\n{}", table(&rows))
}
