//! A round of deployed sites whose programs train nothing, over loopback, beside sites with built-in learners.

use std::collections::BTreeMap;

use clap::Args;
use external::LearnerSettings;
use measure::learner::{self, Order};
use serde_json::{Value, json};

use super::machine::{load, machine};
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;

#[derive(Debug, Args)]
pub(in crate::cli) struct LearnerArgs {
    /// Values of the model; each is 4 bytes.
    #[arg(long, default_value_t = 250_000, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    parameters: u32,
    /// Sites, each with a program of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    sites: u32,
    /// Rounds that are timed; medians are reported.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// A Python that has the package `consortia`.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// What the programs find in their environment, such as PYTHONPATH=$PWD/python: each runs in a folder of its own.
    #[arg(long = "environment", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn measure(args: &LearnerArgs, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_fail(Kind::Defect, "no threads")?;
    let words = ["-u", "-m", "consortia._idle"].map(str::to_owned);
    let command = std::iter::once(args.python.clone()).chain(words).chain([args.parameters.to_string()]);
    let environment: BTreeMap<String, String> = args.environment.iter().cloned().collect();
    let settings = LearnerSettings { command: command.collect(), environment, ..LearnerSettings::default() };
    let order = Order {
        parameters: args.parameters as usize,
        sites: args.sites as usize,
        rounds: args.rounds as usize,
        settings: settings.checked().or_fail(Kind::Configuration, "--environment")?,
    };
    let measured = runtime.block_on(learner::measure(&order));
    let measured = measured.map_err(|error| Failure::new(Kind::Run, format!("{error:#}")))?;
    global.format.say(
        || measured.to_string(),
        || {
            json!({
                "workload": "learner",
                "parameters": args.parameters,
                "measured": serde_json::to_value(measured).unwrap_or(Value::Null),
                "load": load(),
                "machine": machine(),
            })
        },
    );
    Ok(())
}
