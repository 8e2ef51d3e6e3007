//! `consortia privacy verify`: computes every epsilon of a privacy statement again, from the events it names.
//!
//! It judges the arithmetic. Whether the events are those that happened is for the ledger, whose head a claim names.

use std::path::{Path, PathBuf};

use clap::Args;
use privacy::accounting::Figure;
use privacy::counted;
use serde_json::json;
use server::{Adversary, Claim, PrivacyStatement};

use super::failure::{Failure, Kind, OrFail};
use super::global::Global;
use super::kinds::{FileKind, or_what_it_is};
use super::plans::plan_of;
use super::shell::quoted;
use super::text::read_text;

/// The statement's name in a folder of results.
const STATEMENT: &str = "privacy_statement.json";

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A `privacy_statement.json`, or the folder of a run's results that has one.
    file: PathBuf,
}

pub(super) fn verify(args: &VerifyArgs, global: &Global) -> Result<(), Failure> {
    let file = statement_of(&args.file)?;
    let path = file.display();
    let statement = read_statement(&file)?;
    if statement.promises_nothing() {
        let message = format!(
            "{path}: the run of this statement promises no privacy, so there is no epsilon to verify"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let text = || {
        let claims: Vec<String> = statement.claims.iter().map(claim_line).collect();
        let held = match (&statement.void, claims.is_empty()) {
            (Some(why), _) => format!("claims nothing: {why}"),
            (None, true) => "this statement claims nothing about clients; what protects records is accounted for at each site: `consortia budget show \
                             SITE`"
                .to_owned(),
            (None, false) => format!("every epsilon follows from its events\n{}", claims.join("\n")),
        };
        format!("{path}: {held}")
    };
    let object = || {
        json!({
            "holds": true,
            "claims": statement.claims.len(),
            "epsilon": statement.claims.iter().map(claim_object).collect::<Vec<_>>(),
            "void": statement.void,
            "model_sha256": statement.model_sha256,
            "run": statement.run,
            "round": statement.round,
        })
    };
    global.format.say(text, object);
    Ok(())
}

/// The statement that was named, itself or by its folder. Where a run has none, that is said.
fn statement_of(named: &Path) -> Result<PathBuf, Failure> {
    let refused = |message: String| Err(Failure::new(Kind::Configuration, message));
    let shown = named.display();
    if named.is_dir() {
        let file = named.join(STATEMENT);
        if file.exists() {
            return Ok(file);
        }
        let is_run = ["resolved.toml", "model.safetensors"].iter().any(|file| named.join(file).exists());
        return match is_run {
            true => refused(format!(
                "{shown}: this run promises no privacy: it has no {STATEMENT}, so there is no epsilon to verify"
            )),
            false => refused(format!(
                "{shown}: there is no {STATEMENT} in this folder; name the file, or a folder that has one"
            )),
        };
    }
    match FileKind::of(named) {
        Some(FileKind::Plan) => {
            let plan = read_text(named).ok().and_then(|text| plan_of(&text).ok());
            let why = match plan.is_some_and(|plan| plan.spec.privacy.is_none()) {
                true => "and it promises no privacy: its runs have no privacy statement",
                false => "and not a privacy statement: each of its runs writes one",
            };
            let explains =
                format!("`consortia privacy explain {}` says what the plan promises", quoted(named));
            refused(format!("{shown}: this is a plan, {why}, so there is no epsilon to verify; {explains}"))
        }
        _ => Ok(named.to_owned()),
    }
}

/// A statement whose every epsilon follows from its events.
pub(super) fn read_statement(file: &Path) -> Result<PrivacyStatement, Failure> {
    let path = file.display();
    let what = |failure| or_what_it_is(file, &[FileKind::Statement], "a privacy statement", failure);
    // Other files may be longer than any statement, or no text.
    let text = read_text(file).map_err(what)?;
    // A plan that is broken where it stands, say.
    if file.extension().is_some_and(|extension| extension == "toml") {
        server::read_toml::<toml::Table>(&text).or_fail(Kind::Configuration, &path)?;
    }
    PrivacyStatement::read(&text).map_err(|error| {
        let failure = |kind| Failure::new(kind, format!("{path}: {error}"));
        match error {
            server::StatementError::Form(_) | server::StatementError::Version(_) => {
                what(failure(Kind::Configuration))
            }
            _ => failure(Kind::Run),
        }
    })
}

fn claim_line(claim: &Claim) -> String {
    let epsilon = [claim.epsilon.rdp, claim.epsilon.pld].into_iter().flatten().fold(f64::INFINITY, f64::min);
    let (unit, population, delta, releases) = (claim.unit, &claim.population, claim.delta, claim.releases);
    let (relation, runs) = (claim.relation, claim.runs.len());
    let adversary = match claim.adversary {
        Adversary::DoesNotSeeParticipants => "does not see who took part",
        Adversary::SeesParticipants => "sees who took part",
    };
    format!(
        "for {unit} of {population} ({relation}), against an adversary who {adversary}: epsilon {:.6} at delta {} \
         after {}, {}",
        Figure(epsilon),
        Figure(delta),
        counted(releases, "release"),
        counted(runs, "charge")
    )
}

fn claim_object(claim: &Claim) -> serde_json::Value {
    json!({
        "adversary": claim.adversary,
        "relation": claim.relation,
        "delta": claim.delta,
        "rdp": claim.epsilon.rdp,
        "pld": claim.epsilon.pld,
        "releases": claim.releases,
    })
}
