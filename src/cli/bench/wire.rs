//! A model to sites and their updates back, over loopback. Their limit is bare QUIC, and on the way up the server's own work
//! where that is slower.

use clap::Args;
use measure::Program;
use measure::wire::{self, Order};
use serde_json::{Value, json};

use super::machine::{load, machine};
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::global::Global;

#[derive(Debug, Args)]
pub(in crate::cli) struct WireArgs {
    /// Values of the model; each is 4 bytes.
    #[arg(long, default_value_t = 25_000_000, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    parameters: u32,
    /// Sites of the second measurement; the first has one.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    sites: u32,
    /// Rounds that are timed; medians are reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

pub(super) fn measure(args: &WireArgs, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_fail(Kind::Defect, "no threads")?;
    if let Some(played) = runtime.block_on(measure::role()) {
        return played.map_err(|error| Failure::new(Kind::Defect, format!("{error:#}")));
    }
    let program = Program::with_arguments(&["bench", "wire"]);
    let order = |sites: u32| Order {
        parameters: args.parameters as usize,
        sites: sites as usize,
        rounds: args.rounds as usize,
    };
    let measured = |sites: u32| {
        let measured = runtime.block_on(wire::measure(order(sites), &program));
        measured.map_err(|error| Failure::new(Kind::Defect, format!("{error:#}")))
    };
    let (one, many) = (measured(1)?, measured(args.sites)?);
    let object = |measured| serde_json::to_value(measured).unwrap_or(Value::Null);
    global.format.say(
        || format!("{one}\n\n{many}"),
        || {
            json!({
                "workload": "wire",
                "parameters": args.parameters,
                "one_site": object(&one),
                "sites": object(&many),
                "updates_per_s": many.sites as f64 / many.seconds_to_model,
                "share_of_limit": many.share_of_limit,
                "peak_rss_bytes": one.server_peak_rss_bytes.max(many.server_peak_rss_bytes),
                "load": load(),
                "machine": machine(),
            })
        },
    );
    Ok(())
}
