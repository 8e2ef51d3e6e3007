//! `consortia site model`: the model of a run that this site took part in, for the site's own use.

use std::path::PathBuf;

use ::client::net::{FetchError, FetchedModel, check_books, fetch_model};
use clap::Args;
use protocol::RunId;
use serde_json::json;

use super::super::failure::{Blame, Failure, Kind};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::identity::refuse_left;
use super::super::part::write_released;
use super::super::watch::runtime;
use super::begun::refuse_lost_books;
use super::owner::refuse_books;

const SOFTWARE: &str = concat!("consortia ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Args)]
pub(in crate::cli) struct ModelArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// The run; by default the newest that the site took part in.
    #[arg(long)]
    run: Option<RunId>,
    /// The folder for `model.safetensors` and `privacy_statement.json`.
    #[arg(long, default_value = "model")]
    out: PathBuf,
}

pub(in crate::cli) fn model(args: &ModelArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    refuse_left(&file)?;
    refuse_lost_books(&file, Kind::Configuration)?;
    refuse_books(&file, Kind::Configuration)?;
    let identity = super::super::renewal::load(&file.identity)?;
    let ledger = check_books(&file.state).map_err(|error| Failure::new(error.kind(), error))?.history;
    let servers = file.servers();
    let fetched = fetch_model(&servers, file.transport, &identity, (SOFTWARE, Some(&ledger)), args.run);
    let fetched = runtime()?.block_on(fetched).map_err(failure_of)?;
    let FetchedModel { run, line, statement, layout, model, standardiser } = fetched;
    let (to, beside) = write_released(&args.out, &statement, &layout, &model, standardiser.as_ref())?;
    let (round, sha256) = (line.round, &line.sha256);
    global.format.say(
        || {
            let (to, beside) = (to.display(), beside.display());
            format!("{to}: the model of round {round} of run {run}, sha256 {sha256}\n{beside}: what may be said about its privacy")
        },
        || json!({ "run": run.to_string(), "round": round, "sha256": sha256, "model": to, "statement": beside }),
    );
    Ok(())
}

fn failure_of(error: FetchError) -> Failure {
    let kind = match error {
        FetchError::Connect(_) | FetchError::Greeting(_) | FetchError::Lost(_) => Kind::Connection,
        _ => Kind::Run,
    };
    Failure::new(kind, error)
}
