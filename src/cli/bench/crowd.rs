//! Very many sites at one server: what an idle one costs, and whether all are served.

use ::client::net::Transport;
use clap::Args;
use measure::{Program, crowd};
use serde_json::{Value, json};

use super::machine::machine;
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;

#[derive(Debug, Args)]
pub(in crate::cli) struct CrowdArgs {
    /// Sites, each with a socket and a certificate of its own. `ulimit -n` must allow a few more open files.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sites: u32,
    /// Rounds; every site takes part in every one.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Values of the model; each is 4 bytes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    parameters: u32,
    /// Connect all sites over TCP, as from networks that block UDP.
    #[arg(long)]
    tcp: bool,
}

pub(super) fn measure(args: &CrowdArgs, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_fail(Kind::Defect, "no threads")?;
    let failed = |error: anyhow::Error| Failure::new(Kind::Run, format!("{error:#}"));
    if let Some(played) = runtime.block_on(measure::role()) {
        return played.map_err(failed);
    }
    let order = crowd::Order {
        parameters: args.parameters as usize,
        sites: args.sites as usize,
        rounds: args.rounds as usize,
        transport: if args.tcp { Transport::Tcp } else { Transport::Auto },
    };
    let program = Program::with_arguments(&["bench", "crowd"]);
    let measured = runtime.block_on(crowd::measure(order, &program)).map_err(failed)?;
    global.format.say(
        || measured.to_string(),
        || {
            let mut object = serde_json::to_value(measured).unwrap_or(Value::Null);
            object["workload"] = "crowd".into();
            object["machine"] = json!(machine());
            object
        },
    );
    Ok(())
}
