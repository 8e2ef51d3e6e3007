//! How fast a model goes down to sites and their updates come up, beside the same bytes copied over bare QUIC, and what the
//! server's memory peaks at meanwhile.
//!
//! ```text
//! cargo bench --bench transport                      25,000,000 parameters (100 MB), one site and then eight
//! cargo bench --bench transport -- --parameters N    a model of another size
//! ```
//!
//! What is measured, and how, is [`consortia::measure::wire`]; the command `consortia bench wire` prints the same. This program
//! judges: it exits with failure when the server's peak of resident memory reaches five times the model.

use std::process::ExitCode;

use anyhow::Context;
use consortia::measure::wire::{Measured, Order, Program, Way, measure, role};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds timed.
const ROUNDS: usize = 5;
/// The parameters of the model that the promise is about.
const PARAMETERS: usize = 25_000_000;
/// Without `--bench` (as under `cargo test --benches`) this size shows that it all works.
const PARAMETERS_SMALL: usize = 100_000;
/// The server's peak of resident memory stays below this many models.
const MODELS_MAX: f64 = 5.0;

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(played) = runtime.block_on(role()) {
        return played.map(|()| ExitCode::SUCCESS);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (parameters, judged) = (parameters_asked(&words)?, words.contains(&"--bench"));
    let program = Program::with_arguments(&[]);
    for sites in [1, 8] {
        let order = Order { parameters, sites, rounds: if judged { ROUNDS } else { 1 } };
        let measured = runtime.block_on(measure(order, &program))?;
        print(&measured);
        if judged && parameters >= PARAMETERS && measured.server_peak_models >= MODELS_MAX {
            println!("this is not below {MODELS_MAX} models: failed");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parameters_asked(words: &[&str]) -> anyhow::Result<usize> {
    if let Some(place) = words.iter().position(|word| *word == "--parameters") {
        let number = words.get(place + 1).context("--parameters needs a number")?;
        return number.parse().with_context(|| format!("`{number}` is not a number of parameters"));
    }
    Ok(if words.contains(&"--bench") { PARAMETERS } else { PARAMETERS_SMALL })
}

fn print(measured: &Measured) {
    let Measured { sites, model_bytes, load_average, .. } = measured;
    println!("{sites} sites, {:.1} MB each way a site, load {load_average}", *model_bytes as f64 / 1e6);
    for (name, way) in [("down", measured.down), ("up", measured.up)] {
        let Way { seconds, bare_seconds, bare_usual_seconds, share_of_bare, bytes_per_s } = way;
        println!(
            "{name:>5}: {seconds:.3} s, {:.0} MB/s; bare QUIC {bare_seconds:.3} s, share {share_of_bare:.2}; with \
             packets of the usual size {bare_usual_seconds:.3} s",
            bytes_per_s / 1e6
        );
    }
    println!(
        "first byte to new model: {:.3} s, of which the server's own work is {:.3} s; share of the limit {:.2}; stored {:.3} s \
         later",
        measured.seconds_to_model, measured.work_seconds, measured.share_of_limit, measured.seconds_to_disk
    );
    println!(
        "with agents that encode meanwhile ({:.3} s when nothing travels): {:.3} s",
        measured.encode_seconds, measured.agents_seconds_to_model
    );
    let (bytes, models) = (measured.server_peak_rss_bytes, measured.server_peak_models);
    println!("server's peak of resident memory: {:.0} MB, {models:.2} models\n", bytes as f64 / 1e6);
}
