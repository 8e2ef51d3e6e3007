//! `consortia server export`: a released model out of the server's folder, with what may be said about its privacy beside it.
//! No model leaves without its statement.

use std::path::PathBuf;

use clap::Args;
use protocol::RunId;
use serde_json::json;
use server::net::ArchivedModel;

use super::control::Choice;
use super::failure::{Failure, OrBlame};
use super::folder::ServerFolder;
use super::global::Global;
use super::part::write_released;
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The run, as `run ls` names it; the newest if absent.
    run: Option<RunId>,
    /// Which model: `last`, `best`, or the number of the round that made it.
    #[arg(long, default_value = "last")]
    model: Choice,
    /// The server's folder; the server may be running.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The folder for `model.safetensors` and `privacy_statement.json`.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

pub(super) fn export(args: &ExportArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let released = runtime()?.block_on(async {
        let store = folder.look().await?;
        let released = store.released(args.run, args.model.0).await;
        store.close().await;
        released.or_blame()
    });
    let ArchivedModel { line, statement, layout, model, standardiser, .. } = released?;
    let (to, beside) =
        write_released(&args.out, &statement.to_json(), &layout, &model, standardiser.as_ref())?;
    let (round, sha256) = (line.round, &line.sha256);
    global.format.say(
        || {
            format!(
                "model of round {round}, sha256 of its parameters {sha256}\n  {}\n  {}",
                to.display(),
                beside.display()
            )
        },
        || json!({ "model": to, "statement": beside, "round": round, "model_sha256": sha256 }),
    );
    Ok(())
}
