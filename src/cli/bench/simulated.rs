//! A workload, run by the simulator: client updates a second, their share of what the machine's matrix product allows, and
//! where the rest went.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use consortia::first_model;
use privacy::counted;
use protocol::{EvaluateOrder, Metrics, Parameters, Seed, StepId, Stop};
use serde_json::{Value, json};
use server::{Note, Plan, RunEnd};
use simulations::{AvailabilityConfig, Observation, Outcome, Population, Simulator, Workforce};

use super::super::cores::cores;
use super::limits::product_flops;
use super::machine::{load, machine, peak_rss_bytes, processor_seconds};
use super::people::Images;
use super::profile::{Around, Profile};
use super::samples::Samples;
use super::workload::{BATCH, Workload};
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;

#[derive(Debug, Args)]
pub(in crate::cli) struct SimulatedArgs {
    /// Rounds of each repeat; by default as many as take a few seconds.
    #[arg(long)]
    rounds: Option<u32>,
    /// Images per client, instead of the workload's number.
    #[arg(long)]
    records: Option<usize>,
    /// Worker threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// How often the rounds are run; medians are reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Also run on one thread, alternating with the other runs.
    #[arg(long)]
    scaling: bool,
    /// Also report where the time is spent.
    #[arg(long)]
    profile: bool,
    /// The folder with MNIST's four files in `mnist`; without it images are synthetic.
    #[arg(long, env = "CONSORTIA_DATA")]
    data: Option<PathBuf>,
    /// The seed from which everything random follows, but for noise.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

/// One run of all rounds.
pub(super) struct Run {
    threads: usize,
    /// Client updates a second of the rounds behind the first, or of the first if there is no other.
    pub(super) updates_per_s: f64,
    /// Share of the threads' time in those rounds that no learner was training.
    share_outside_training: f64,
    /// Seconds of training in those rounds, a client update.
    pub(super) training_seconds: f64,
    /// The same client updates for each second of processor time: what other programs disturb less.
    updates_per_processor_s: Option<f64>,
    /// When the first round was released.
    first_release: Instant,
    outcome: Outcome,
}

/// Everything of one measurement.
struct Measured<'a> {
    workload: Workload,
    args: &'a SimulatedArgs,
    images: &'static str,
    plan: Plan,
    runs: Vec<Run>,
    threads: usize,
    /// Floating-point operations a second of the matrix product on as many threads, before each run.
    product_flops: Samples,
    seconds_to_first_aggregate: f64,
    tested: Metrics,
    seconds_of_test: f64,
    profile: Option<Profile>,
}

pub(super) fn measure(workload: Workload, args: &SimulatedArgs, global: &Global) -> Result<(), Failure> {
    let started = Instant::now();
    let images = Images::find(args.data.as_deref())?;
    let text = workload.plan(args.rounds.unwrap_or_else(|| workload.rounds()));
    let plan = Plan::parse(&text).or_fail(Kind::Configuration, "--rounds")?;
    let records = args.records.unwrap_or_else(|| workload.records());
    let population = images.population(workload, records, &plan.spec, args.seed)?;
    let first = first_model(population.models(), &plan.spec, Seed::from_number(args.seed))
        .or_fail(Kind::Defect, "the first model")?;
    let threads = args.threads.unwrap_or_else(cores).max(1);

    let mut runs = vec![run(&plan, &first.shared, &population, args.seed, threads)?];
    let seconds_to_first_aggregate = (runs[0].first_release - started).as_secs_f64();
    let mut flops = vec![product_flops(threads)?];
    for repeat in 0..args.repeats.max(1) {
        if repeat > 0 {
            flops.push(product_flops(threads)?);
            runs.push(run(&plan, &first.shared, &population, args.seed, threads)?);
        }
        if args.scaling && threads > 1 {
            runs.push(run(&plan, &first.shared, &population, args.seed, 1)?);
        }
    }
    let model = &runs[0].outcome.model;
    let began = Instant::now();
    let tested = test(&population, &plan, model.values())?;
    let seconds_of_test = began.elapsed().as_secs_f64();
    let profile = args.profile.then(|| {
        let around = Around { plan: &plan, first: &first, population: &population, threads };
        let own: Vec<&Run> = runs.iter().filter(|run| run.threads == threads).collect();
        let mean =
            |number: fn(&Run) -> f64| own.iter().map(|run| number(run)).sum::<f64>() / own.len() as f64;
        let wall = mean(|run| 1.0 / run.updates_per_s);
        around.measure(args.seed, records as u64, wall * threads as f64, mean(|run| run.training_seconds))
    });
    let measured = Measured {
        profile: profile.transpose()?,
        workload,
        args,
        images: images.name(),
        product_flops: Samples::new(flops).ok_or_else(nothing)?,
        seconds_to_first_aggregate,
        tested,
        seconds_of_test,
        plan,
        runs,
        threads,
    };
    measured.say(global)
}

fn nothing() -> Failure {
    Failure::new(Kind::Defect, "nothing was measured")
}

/// Runs all rounds once.
pub(super) fn run(
    plan: &Plan,
    first: &Parameters,
    workforce: &dyn Workforce,
    seed: u64,
    threads: usize,
) -> Result<Run, Failure> {
    let simulator = Simulator::new(plan.clone(), first.clone(), seed, AvailabilityConfig::default())
        .or_fail(Kind::Defect, "the workload")?
        .with_threads(threads);
    let mut opened: Option<Instant> = None;
    // At each release: when it was, and for how many seconds learners had trained by then.
    let (mut trained, mut updates, mut releases) = (0.0, 0u64, Vec::new());
    let mut processor = None;
    let mut observe = |seen: Observation<'_>| match seen.note {
        Note::Opened { .. } => {
            opened.get_or_insert_with(Instant::now);
        }
        Note::Accepted { task, metrics, .. } if task.step == StepId::TRAIN => {
            updates += 1;
            trained += metrics.map_or(0.0, |metrics| metrics.seconds);
        }
        Note::Round(_) => {
            if releases.is_empty() {
                processor = processor_seconds();
            }
            releases.push((Instant::now(), trained, updates));
        }
        _ => {}
    };
    let outcome = simulator.run(workforce, &mut observe).or_fail(Kind::Run, "the workload")?;
    let processor = processor.and_then(|before| Some(processor_seconds()? - before));
    if let RunEnd::Failed(why) | RunEnd::BudgetExhausted(why) = &outcome.end {
        return Err(Failure::new(Kind::Run, why));
    }
    let opened = opened.ok_or_else(nothing)?;
    let first_release = releases.first().ok_or_else(nothing)?.0;
    let from = if releases.len() > 1 { releases[0] } else { (opened, 0.0, 0) };
    let to = *releases.last().ok_or_else(nothing)?;
    let (seconds, updates) = ((to.0 - from.0).as_secs_f64(), to.2 - from.2);
    Ok(Run {
        threads,
        updates_per_s: updates as f64 / seconds,
        updates_per_processor_s: processor.filter(|_| releases.len() > 1).map(|spent| updates as f64 / spent),
        training_seconds: (to.1 - from.1) / updates as f64,
        share_outside_training: 1.0 - (to.1 - from.1) / (seconds * threads as f64),
        first_release,
        outcome,
    })
}

/// Measures the last model on the test images, outside the time of the rounds.
fn test(population: &Population, plan: &Plan, model: &[f32]) -> Result<Metrics, Failure> {
    let mut learner = population.central().ok_or_else(nothing)?;
    learner.prepare(&plan.spec).or_fail(Kind::Defect, "evaluation")?;
    let order = EvaluateOrder { standardiser: None };
    learner.evaluate(model, &order, &Stop::default()).or_fail(Kind::Run, "evaluation")
}

impl Measured<'_> {
    /// One number of each run on `threads` threads.
    fn samples(&self, threads: usize, number: fn(&Run) -> f64) -> Option<Samples> {
        Samples::new(self.runs.iter().filter(|run| run.threads == threads).map(number).collect())
    }

    /// Client updates for each second of processor time, in the best run on all threads.
    fn best_by_processor(&self) -> Option<f64> {
        let runs = self.runs.iter().filter(|run| run.threads == self.threads);
        runs.filter_map(|run| run.updates_per_processor_s).max_by(f64::total_cmp)
    }

    fn say(&self, global: &Global) -> Result<(), Failure> {
        let speed = self.samples(self.threads, |run| run.updates_per_s).ok_or_else(nothing)?;
        let outside = self.samples(self.threads, |run| run.share_outside_training).ok_or_else(nothing)?;
        let alone = self.samples(1, |run| run.updates_per_s).filter(|_| self.args.scaling);
        let records = self.args.records.unwrap_or_else(|| self.workload.records());
        // The best of the limit beside the best of ours would flatter neither; medians are what was there to be had.
        let limit = self.product_flops.median() / self.workload.flops(records as u64) as f64;
        let outcome = &self.runs[0].outcome;
        let object = json!({
            "workload": self.workload.name(),
            "images": self.images,
            "clients": self.workload.clients(),
            "cohort": self.workload.cohort(),
            "records": records,
            "batch_size": BATCH,
            "parameters": outcome.model.len(),
            "rounds": self.plan.rounds,
            "repeats": self.args.repeats.max(1),
            "threads": self.threads,
            "updates": outcome.updates,
            "updates_per_s": speed.median(),
            "updates_per_s_of": speed.object(),
            "updates_per_processor_s": self.best_by_processor(),
            "limit": {
                "what": "sgemm",
                "flops_per_s": self.product_flops.object(),
                "updates_per_s": limit,
            },
            "share_of_limit": speed.median() / limit,
            "share_outside_training": outside.median(),
            "scaling": alone.as_ref().map(|alone| speed.median() / alone.median()),
            "updates_per_s_alone": alone.as_ref().map(Samples::object),
            "peak_rss_bytes": peak_rss_bytes(),
            "seconds_to_first_aggregate": self.seconds_to_first_aggregate,
            "accuracy": self.tested.accuracy,
            "loss": self.tested.loss,
            "test_seconds": self.seconds_of_test,
            "profile": self.profile.as_ref().map(Profile::object),
            "model_sha256": outcome.model.sha256(),
            "load": load(),
            "machine": machine(),
        });
        global.format.say(|| describe(&object), || object.clone());
        Ok(())
    }
}

/// The object as people read it.
fn describe(object: &Value) -> String {
    let number = |key: &str| object[key].as_f64().unwrap_or(f64::NAN);
    let share = |key: &str| format!("{:.1} %", 100.0 * number(key));
    let images = if object["images"] == "mnist" { "MNIST" } else { "made-up images of MNIST's shape" };
    let mut lines = vec![
        format!(
            "{}: {} clients with {} of {images}, {} a round, {} parameters, {} threads",
            object["workload"].as_str().unwrap_or_default(),
            object["clients"],
            object["records"],
            object["cohort"],
            object["parameters"],
            object["threads"]
        ),
        format!("client updates a second  {:.1}", number("updates_per_s")),
        format!(
            "share of the limit       {} of {:.1}, what {:.0} GF/s of matrix products allow",
            share("share_of_limit"),
            object["limit"]["updates_per_s"].as_f64().unwrap_or(f64::NAN),
            object["limit"]["flops_per_s"]["median"].as_f64().unwrap_or(f64::NAN) / 1e9
        ),
        format!("outside training         {}", share("share_outside_training")),
    ];
    if object["scaling"].is_f64() {
        lines.push(format!("over one thread          {:.2} times", number("scaling")));
    }
    if object["peak_rss_bytes"].is_u64() {
        lines.push(format!("peak of resident memory  {:.0} MB", number("peak_rss_bytes") / 1e6));
    }
    lines.push(format!("first aggregate after    {:.2} s", number("seconds_to_first_aggregate")));
    lines.push(format!(
        "test accuracy            {:.4} after {}",
        number("accuracy"),
        counted(object["rounds"].as_u64().unwrap_or(0), "round")
    ));
    if let Some(phases) = object["profile"]["phases"].as_array() {
        lines.push(String::new());
        lines.push(Profile::describe(phases));
    }
    lines.join("\n")
}
