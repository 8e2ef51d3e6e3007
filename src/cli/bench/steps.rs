//! One training step (forward, backward, SGD) on one thread, by network and batch size, beside the arithmetic in it at the
//! speed of the machine's matrix product.
//!
//! A step is what the trainer takes for a pass over some batches, divided by their number: loading and storing the
//! parameters, putting batches together and looking for numbers that are not finite are in it.

use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use clap::Args;
use learning::device::Device;
use learning::{Dataset, Labels, LayerTime, SiteData, Trainer, View, initial_parameters, step_time};
use protocol::{Learner, Positive, Round, Seed, Spec, Stop, TrainOrder};
use serde_json::{Value, json};
use simulations::SyntheticSource;

use super::limits::product_flops;
use super::machine::{load, machine, peak_rss_bytes};
use super::samples::Samples;
use super::workload::Workload;
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;
use crate::cli::output::table;

/// The only way to tell candle how many threads its operations may use.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

/// Operations of a step that is long: tens of milliseconds.
const FLOPS_LONG: u64 = 3_500_000_000;

#[derive(Debug, Args)]
pub(in crate::cli) struct StepsArgs {
    /// How often the passes are run, all networks in turn; medians are reported.
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Steps per pass; a fifth of them for networks with very slow steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Only networks whose name begins with this.
    #[arg(long)]
    only: Option<String>,
    /// Also report the time of each layer, where gradients have a closed form.
    #[arg(long)]
    profile: bool,
}

/// A network and a batch size.
struct Network {
    name: &'static str,
    batch: usize,
    spec: Arc<Spec>,
    /// Floating-point operations of the products of one step.
    flops: u64,
}

impl Network {
    /// Steps of a pass.
    fn steps(&self, args: &StepsArgs) -> usize {
        let share = if self.flops > FLOPS_LONG { 5 } else { 1 };
        args.steps.div_ceil(share).max(1)
    }
}

pub(super) fn measure(args: &StepsArgs, global: &Global) -> Result<(), Failure> {
    let wanted = |network: &Network| args.only.as_ref().is_none_or(|only| network.name.starts_with(only));
    let networks: Vec<Network> = networks()?.into_iter().filter(wanted).collect();
    if networks.is_empty() {
        return Err(Failure::new(
            Kind::Configuration,
            "--only: no network's name begins so; give mlp, cnn, lstm or resnet",
        ));
    }
    if std::env::var(CANDLE_THREADS).as_deref() != Ok("1") {
        return again();
    }
    let mut passes = networks
        .iter()
        .map(|network| Pass::new(network, network.steps(args)))
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
            "profile": if args.profile { layers(network, network.steps(args))? } else { Value::Null },
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

/// Every network, at every batch size that is measured.
fn networks() -> Result<Vec<Network>, Failure> {
    let image = r#"{"tensor": {"shape": [1, 28, 28], "target": {"classes": 10}}}"#;
    let mut networks = Vec::new();
    for (name, model, workload) in
        [("mlp", r#"{"mlp": {"hidden": [200, 200]}}"#, Workload::W3), ("cnn", r#"{"cnn": {}}"#, Workload::W2)]
    {
        for batch in [10, 32, 64] {
            let spec = spec(model, image, batch)?;
            networks.push(Network { name, batch, spec, flops: workload.flops(batch as u64) });
        }
    }
    networks.push(Network { name: "lstm", batch: 10, spec: characters()?, flops: 10 * CHARACTERS_FLOPS });
    networks.push(Network { name: "resnet", batch: 10, spec: resnet()?, flops: 10 * RESNET_FLOPS });
    Ok(networks)
}

/// Characters that there are, and how many are read.
const SYMBOLS: u64 = 90;
const LENGTH: u64 = 80;
/// Of one text: both layers' gates at each step, and the last step's dense layer; all of it three times.
const CHARACTERS_FLOPS: u64 = 2 * 3 * (LENGTH * 4 * 256 * (8 + 256 + 256 + 256) + 256 * SYMBOLS);

/// The characters of McMahan et al. 2017: the next from the 80 before it.
fn characters() -> Result<Arc<Spec>, Failure> {
    let layers = format!(
        r#"[{{"embedding": {{"symbols": {SYMBOLS}, "width": 8}}}}, {{"lstm": {{"hidden": 256}}}}, {{"lstm": {{"hidden": 256}}}}, "last"]"#
    );
    let data = format!(r#"{{"tensor": {{"shape": [{LENGTH}], "target": {{"classes": {SYMBOLS}}}}}}}"#);
    spec(&format!(r#"{{"layers": {layers}}}"#), &data, 10)
}

/// Multiplications with their additions of each stage, the first convolution, which needs no gradient of its input, apart.
const RESNET_FIRST: u64 = 32 * 32 * 9 * 3 * 64;
const RESNET_STAGE: u64 = 32 * 32 * 9 * 64 * 64;
const RESNET_REST: u64 =
    4 * RESNET_STAGE + 3 * (RESNET_STAGE / 2 + 3 * RESNET_STAGE + RESNET_STAGE / 18) + 512 * 10;
const RESNET_FLOPS: u64 = 2 * (2 * RESNET_FIRST + 3 * RESNET_REST);

/// ResNet-18 for pictures of 32 x 32 with group norm (He et al. 2016; Hsieh et al. 2020).
fn resnet() -> Result<Arc<Spec>, Failure> {
    let convolution = |channels: usize, kernel: usize, stride: usize| {
        let norm = r#"{"group_norm": {"groups": 32}}"#;
        format!(
            r#"{{"convolution": {{"channels": {channels}, "kernel": {kernel}, "stride": {stride}}}}}, {norm}"#
        )
    };
    let mut layers = format!(r#"{}, "relu""#, convolution(64, 3, 1));
    for (channels, stride) in [(64, 1), (128, 2), (256, 2), (512, 2)] {
        for stride in [stride, 1] {
            let shortcut = if stride == 1 { String::new() } else { convolution(channels, 1, stride) };
            let (first, second) = (convolution(channels, 3, stride), convolution(channels, 3, 1));
            layers += &format!(
                r#", {{"residual": {{"layers": [{first}, "relu", {second}], "shortcut": [{shortcut}]}}}}, "relu""#
            );
        }
    }
    let data = r#"{"tensor": {"shape": [3, 32, 32], "target": {"classes": 10}}}"#;
    spec(&format!(r#"{{"layers": [{layers}, "average_pool"]}}"#), data, 10)
}

fn spec(model: &str, data: &str, batch: usize) -> Result<Arc<Spec>, Failure> {
    let training = format!(r#"{{"batch_size": {batch}, "optimizer": {{"sgd": {{"learning_rate": 0.05}}}}}}"#);
    let text = format!(r#"{{"model": {model}, "data": {data}, "training": {training}, "cohort_max": 10}}"#);
    Spec::from_json(&text).map(Arc::new).or_fail(Kind::Defect, "the network")
}

/// Records of chance: symbols for texts, clouds for images.
fn records(spec: &Spec, rows: usize) -> Result<View, Failure> {
    let (shape, seed) = (spec.input_shape(), Seed::from_number(1));
    if let [length] = shape[..] {
        let symbol = |index: usize| (index * 7919 % 2003 % SYMBOLS as usize) as f32;
        let features: Vec<f32> = (0..rows * length).map(symbol).collect();
        let labels = Labels::Classes((0..SYMBOLS as u32).cycle().take(rows).collect());
        return Ok(View::whole(Arc::new(Dataset { shape, features: features.into(), labels })));
    }
    let spread = Positive::new(0.5).or_fail(Kind::Defect, "spread")?;
    let source = SyntheticSource { rows, test_rows: 1, spread };
    Ok(View::whole(Arc::new(source.make(&shape, spec.target(), seed).0)))
}

/// A trainer with a few batches of made-up records.
struct Pass {
    trainer: Trainer,
    parameters: Vec<f32>,
    steps: usize,
}

impl Pass {
    fn new(network: &Network, steps: usize) -> Result<Self, Failure> {
        let spec = &network.spec;
        let train = records(spec, network.batch * steps)?;
        let site = SiteData { train, test: None };
        let mut trainer = Trainer::new(Box::new(site), Device::Cpu);
        trainer.prepare(spec).or_fail(Kind::Defect, network.name)?;
        let parameters =
            initial_parameters(spec, Seed::from_number(1)).or_fail(Kind::Defect, network.name)?;
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

/// Seconds of each layer and of the rest of a step; null where nobody writes gradients down.
fn layers(network: &Network, steps: usize) -> Result<Value, Failure> {
    let data = records(&network.spec, network.batch * steps)?;
    let Some(time) = step_time(&network.spec, &data, seconds).or_fail(Kind::Defect, network.name)? else {
        return Ok(Value::Null);
    };
    let inside: f64 = time.layers.iter().map(|layer| layer.forward + layer.backward).sum();
    let layer = |layer: &LayerTime| json!({ "layer": layer.name, "forward_seconds": layer.forward, "backward_seconds": layer.backward });
    let layers: Vec<Value> = time.layers.iter().map(layer).collect();
    Ok(json!({ "layers": layers, "seconds": time.whole, "other_seconds": time.whole - inside }))
}

/// A clock, from the first time it is read.
fn seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
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
    let mut text =
        format!("one training step on one thread; matrix products do {flops:.0} GF/s\n{}", table(&rows));
    for network in object["networks"].as_array().into_iter().flatten() {
        if network["profile"].is_object() {
            text += &format!("\n\n{}", describe_layers(network));
        }
    }
    text
}

fn describe_layers(network: &Value) -> String {
    let name =
        format!("{}, batches of {}", network["network"].as_str().unwrap_or_default(), network["batch_size"]);
    let mut rows = vec![vec![name, "forward, us".to_owned(), "backward, us".to_owned()]];
    let micro = |value: &Value| format!("{:.1}", 1e6 * value.as_f64().unwrap_or(f64::NAN));
    for layer in network["profile"]["layers"].as_array().into_iter().flatten() {
        let name = layer["layer"].as_str().unwrap_or_default().to_owned();
        rows.push(vec![name, micro(&layer["forward_seconds"]), micro(&layer["backward_seconds"])]);
    }
    rows.push(vec!["records, loss".to_owned(), micro(&network["profile"]["other_seconds"])]);
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_the_parameters_that_their_papers_give() {
        let sizes: Vec<(&str, usize)> =
            networks().unwrap().iter().map(|network| (network.name, size(network))).collect();
        assert!(sizes.contains(&("mlp", 199_210)) && sizes.contains(&("cnn", 1_663_370)));
        // Embedding, two layers of four gates with one bias each, and the dense layer.
        let lstm = 90 * 8 + 4 * 256 * (8 + 256 + 1) + 4 * 256 * (512 + 1) + 257 * 90;
        assert!(
            sizes.iter().any(|(name, size)| *name == "lstm" && size.abs_diff(lstm) <= 2 * 4 * 256),
            "{sizes:?}"
        );
        assert!(sizes.iter().any(|(name, size)| *name == "resnet" && size / 100_000 == 111), "{sizes:?}");
    }

    fn size(network: &Network) -> usize {
        learning::layout_of(&network.spec).unwrap().len()
    }
}
