//! `consortia server export`: a released model out of the server's folder, with what may be said about its privacy beside it.
//! No model leaves without its statement.

use std::path::PathBuf;

use clap::Args;
use consortia::results::write_model;
use protocol::RunId;
use serde_json::json;
use server::net::{Store, StoredRun};
use server::{Plan, PrivacyStatement, Subject};

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::folder::ServerFolder;
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The run, as `run ls` names it.
    run: RunId,
    /// The server's folder; the server may be running.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The folder for `model.safetensors` and `privacy_statement.json`.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

pub(super) fn export(args: &ExportArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let (run, statement) = runtime()?.block_on(released(&folder, args.run))?;
    statement.recompute().or_fail(Kind::Run, "privacy_statement.json")?;
    std::fs::create_dir_all(&args.out).or_fail(Kind::Configuration, args.out.display())?;
    let (to, beside) = (args.out.join("model.safetensors"), args.out.join("privacy_statement.json"));
    std::fs::write(&beside, statement.to_json()).or_fail(Kind::Run, beside.display())?;
    let standardiser = run.checkpoint.standardiser.as_deref();
    write_model(&to, &run.layout, &run.checkpoint.model, standardiser).or_fail(Kind::Run, to.display())?;
    let (round, sha256) = (statement.round, &statement.model_sha256);
    global.format.say(
        || format!("model of round {round}, sha256 {sha256}\n  {}\n  {}", to.display(), beside.display()),
        || json!({ "model": to, "statement": beside, "round": round, "model_sha256": sha256 }),
    );
    Ok(())
}

/// The run with its current model, and the model's statement.
async fn released(folder: &ServerFolder, run: RunId) -> Result<(StoredRun, PrivacyStatement), Failure> {
    let store = Store::look(&folder.state()).await.or_fail(Kind::Configuration, "")?;
    let stored = store.load(run).await.or_fail(Kind::Configuration, "")?;
    let model_sha256 = stored.checkpoint.model.sha256();
    let written = store.statement(run).await.or_fail(Kind::Configuration, "")?;
    store.close().await;
    let plan = Plan::parse(&stored.plan_toml).or_fail(Kind::Run, "the run's plan")?;
    let round = stored.checkpoint.round.0;
    let statement = match written {
        Some(text) => serde_json::from_str(&text).or_fail(Kind::Run, "the run's privacy statement")?,
        None if plan.spec.privacy.is_none() || round == 0 => {
            let subject = Subject {
                model_sha256: model_sha256.clone(),
                run: run.to_string(),
                round,
                rehearsal: stored.seed.is_some(),
            };
            PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None)
                .or_fail(Kind::Defect, "")?
        }
        None => {
            let message = "the run promises privacy, but its model has no statement; nothing was exported";
            return Err(Failure::new(Kind::Refused, message));
        }
    };
    may_leave(&statement, &model_sha256)?;
    Ok((stored, statement))
}

/// Whether a model with this fingerprint may leave with this statement.
fn may_leave(statement: &PrivacyStatement, model_sha256: &str) -> Result<(), Failure> {
    if let Some(void) = statement.void.as_ref().filter(|void| void.starts_with("INSECURE")) {
        return Err(Failure::new(Kind::Refused, format!("{void}; nothing was exported")));
    }
    if statement.model_sha256 != model_sha256 {
        let message = "the statement is about another model than the stored one; nothing was exported";
        return Err(Failure::new(Kind::Refused, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_with_noise_that_can_be_predicted_or_with_another_model_s_statement_does_not_leave() {
        let subject = Subject { model_sha256: "ab".into(), run: "r".into(), round: 1, rehearsal: false };
        let good = PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None).unwrap();
        assert!(may_leave(&good, "ab").is_ok() && may_leave(&good, "cd").is_err());
        let void = "INSECURE: the noise came from a test's seed and can be taken off again";
        let insecure = PrivacyStatement { void: Some(void.into()), ..good.clone() };
        assert!(may_leave(&insecure, "ab").is_err());
        let rehearsed = PrivacyStatement { void: Some("a rehearsal".into()), ..good };
        assert!(may_leave(&rehearsed, "ab").is_ok());
    }
}
