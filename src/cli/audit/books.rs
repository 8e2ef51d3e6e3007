//! Books that are compared with one another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::client::SiteAccount;
use privacy::chain::segments::logs_in;
use privacy::counted;
use protocol::RunId;
use serde_json::{Value, json};
use server::net::Agreement;
use server::{Claim, PrivacyStatement};

use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::ServerFolder;
use super::super::statement::read_statement;
use super::super::watch::runtime;
use super::Verified;

/// Compares a server's books; the server may be running. What disagrees is a sentence.
pub(super) fn server(
    folder: &ServerFolder,
    archives: &[PathBuf],
) -> Result<Result<Agreement, String>, Failure> {
    let rows = folder.state().join("state.sqlite");
    let is_fresh = !rows.exists() && is_without_logs(folder) && !folder.begun().exists();
    if is_fresh && folder.read()?.is_sqlite(folder)? {
        return Ok(Ok(Agreement::default()));
    }
    let shown = folder.0.display();
    let compared = runtime()?.block_on(async {
        let store = folder.look().await?;
        let agreed = match store.check_books_with(&folder.state(), archives).await {
            Ok(agreed) => store.check_files().await.map(|()| agreed),
            Err(error) => Err(error),
        };
        store.close().await;
        Ok::<_, Failure>(agreed)
    });
    match compared {
        Ok(agreed) => Ok(agreed.map_err(|error| format!("{shown}: {error}"))),
        // A database that is not there or cannot be read is a finding like others.
        Err(failure) => Ok(Err(format!("{shown}: {}", failure.message()))),
    }
}

fn is_without_logs(folder: &ServerFolder) -> bool {
    logs_in(&folder.state()).is_ok_and(|logs| logs.is_empty())
}

pub(super) fn describe(folder: &Path, agreed: &Agreement) -> String {
    format!(
        "{}: the books agree: {} with {}, {} released, {} of them in the audit log",
        folder.display(),
        counted(agreed.populations, "ledger"),
        counted(agreed.paid, "release"),
        counted(agreed.released, "model"),
        agreed.logged
    )
}

pub(super) fn object(folder: &Path, agreed: &Agreement) -> Value {
    json!({
        "folder": folder, "ledgers": agreed.populations, "paid": agreed.paid, "released": agreed.released, "logged": agreed.logged,
    })
}

/// Reads a statement.
pub(super) fn statement(path: &Path) -> Result<PrivacyStatement, Failure> {
    read_statement(path)
}

/// Replays the ledger of a run's population, as a simulation leaves it: what contradicts itself is a sentence.
pub(super) fn run(ledger: &Verified) -> Option<String> {
    let fault = privacy::ledger::Ledger::replay(&ledger.links).err()?;
    Some(format!("{}: {fault}", ledger.path.display()))
}

/// Compares the ledger of a site with itself and with a statement of its server.
pub(super) fn site(ledger: &Path, statement: Option<&PrivacyStatement>) -> Result<Vec<String>, Failure> {
    let text = std::fs::read(ledger).or_fail(Kind::Configuration, ledger.display())?;
    let account = match SiteAccount::read(&text) {
        Ok(account) => account,
        Err(error) => return Ok(vec![format!("{}: {error}", ledger.display())]),
    };
    let trained: Vec<(RunId, u32)> = account.trained().map(|(run, round)| (run, round.0)).collect();
    let faults = disagreements(&trained, statement);
    Ok(faults.into_iter().map(|fault| format!("{}: {fault}", ledger.display())).collect())
}

/// What `trained`, in order, says against a server. A round that is asked again after a crash follows no later one.
fn disagreements(trained: &[(RunId, u32)], statement: Option<&PrivacyStatement>) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut reached, mut counts) = (BTreeMap::<RunId, u32>::new(), BTreeMap::<RunId, u64>::new());
    let mut back: BTreeMap<RunId, (u32, u32)> = BTreeMap::new();
    for (run, round) in trained {
        *counts.entry(*run).or_default() += 1;
        let highest = reached.entry(*run).or_insert(*round);
        if round < highest {
            back.entry(*run).or_insert((*round, *highest));
        }
        *highest = (*highest).max(*round);
    }
    let about = statement.and_then(|statement| Some((statement, statement.run.parse::<RunId>().ok()?)));
    for (run, (round, highest)) in back {
        let paid = about.as_ref().filter(|(_, named)| *named == run).map(|(statement, named)| {
            statement.claims.iter().map(|claim| paid_for(claim, *named)).max().unwrap_or(0)
        });
        if paid.is_none_or(|paid| paid < counts[&run]) {
            let has = paid.map_or_else(
                || "give its newest statement with --statement to see whether it paid".to_owned(),
                |paid| {
                    format!(
                        "its statement has {}, and this site trained {}",
                        counted(paid, "release"),
                        counted(counts[&run], "time")
                    )
                },
            );
            faults.push(format!(
                "round {round} of run {run} was trained again after round {highest}: the server was turned back; {has}"
            ));
        }
    }
    if let Some((statement, run)) = about {
        match reached.get(&run) {
            None => faults.push(format!("the statement is about run {run}, of which this ledger knows nothing")),
            Some(highest) if *highest > statement.round + 1 => faults.push(format!(
                "the statement ends at round {} of run {run}, and this site trained for round {highest}: it is of an older model, or the \
                 server was turned back",
                statement.round
            )),
            Some(_) => {}
        }
    }
    faults
}

/// How many releases of `run` a claim has paid for.
fn paid_for(claim: &Claim, run: RunId) -> u64 {
    let run = run.to_string();
    claim.runs.iter().filter(|part| part.run == run).fold(0, |sum, part| sum.saturating_add(part.releases))
}

#[cfg(test)]
mod tests {
    use server::Subject;

    use super::*;

    fn rounds(rounds: &[u32]) -> Vec<(RunId, u32)> {
        rounds.iter().map(|round| (RunId(7), *round)).collect()
    }

    fn of(round: u32) -> PrivacyStatement {
        let run = RunId(7).to_string();
        let subject = Subject { model_sha256: "ab".into(), run, round, is_seeded: false };
        PrivacyStatement::of(subject, &protocol::PrivacySpec::default(), None).unwrap()
    }

    #[test]
    fn a_server_that_was_turned_back_shows_in_a_site_s_ledger_and_a_crash_does_not() {
        assert!(disagreements(&rounds(&[1, 2, 2, 3, 5]), None).is_empty(), "a round that is asked again");
        let back = rounds(&[1, 2, 3, 2, 3, 4]);
        let found = disagreements(&back, None);
        assert!(found.len() == 1 && found[0].contains("round 2 of run"), "{found:?}");
        assert!(!disagreements(&back, Some(&of(4))).is_empty(), "a statement that claims nothing excuses it");
        assert!(disagreements(&rounds(&[1, 2, 3]), Some(&of(2))).is_empty());
        assert!(disagreements(&rounds(&[1, 2, 3]), Some(&of(1)))[0].contains("ends at round 1"));
        assert!(disagreements(&[], Some(&of(1)))[0].contains("knows nothing"));
    }
}
