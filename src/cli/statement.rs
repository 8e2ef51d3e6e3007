//! `consortia privacy verify`: computes every epsilon of a privacy statement again, from the events it names.
//!
//! It judges the arithmetic. Whether the events are those that happened is for the ledger, whose head a claim names.

use std::path::{Path, PathBuf};

use clap::Args;
use privacy::accounting::Figure;
use serde_json::json;
use server::{Adversary, Claim, PrivacyStatement};

use super::failure::{Failure, Kind};
use super::global::Global;
use super::kinds::{FileKind, or_what_it_is};
use super::text::read_text;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A `privacy_statement.json`.
    file: PathBuf,
}

pub(super) fn verify(args: &VerifyArgs, global: &Global) -> Result<(), Failure> {
    let path = args.file.display();
    let statement = read_statement(&args.file)?;
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

/// A statement whose every epsilon follows from its events.
pub(super) fn read_statement(file: &Path) -> Result<PrivacyStatement, Failure> {
    let path = file.display();
    let what = |failure| or_what_it_is(file, &[FileKind::Statement], "a privacy statement", failure);
    // Other files may be longer than any statement, or no text.
    let text = read_text(file).map_err(what)?;
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
         after {releases} releases, {runs} charges",
        Figure(epsilon),
        Figure(delta)
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
