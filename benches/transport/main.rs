//! How fast a model goes down to sites and their updates come up, beside the same bytes copied over bare QUIC, and what the
//! server's memory peaks at meanwhile.
//!
//! ```text
//! cargo bench --bench transport                      25,000,000 parameters (100 MB), one site and then eight
//! cargo bench --bench transport -- --parameters N    a model of another size
//! ```
//!
//! What is measured, and how, is [`measure::wire`]; the command `consortia bench wire` prints the same. This program
//! judges: it exits with failure when the server's peak of resident memory reaches five times the model.

use std::process::ExitCode;

use anyhow::Context;
use measure::wire::{Order, measure};
use measure::{Program, role};

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
        println!("{measured}\n");
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
