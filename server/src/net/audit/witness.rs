//! What the audit logs of a state folder say that its database must know.
//!
//! It reads and judges nothing: [`crate::net::store`] compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use privacy::chain::{ChainError, DamagedLine, Digest, Link, read_lines};
use protocol::{ClientId, RunId};
use serde::Deserialize;

use super::{AuditError, logs_in};

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) log: PathBuf,
    /// From 1.
    pub(crate) line: usize,
}

/// One audit log.
#[derive(Debug)]
pub(crate) struct Log {
    /// The file's name.
    pub(crate) name: String,
    /// The hash of each record.
    pub(crate) hashes: Vec<Digest>,
}

/// What all logs of a folder say together.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    pub(crate) logs: Vec<Log>,
    /// The highest version of the database that a line names, and the first such line.
    pub(crate) version: Option<(i64, Place)>,
    /// Releases by run and round: the model's fingerprint where the line names it.
    pub(crate) releases: BTreeMap<(RunId, u32), (Option<String>, Place)>,
    /// The SHA-256 of each run's plan.
    pub(crate) plans: BTreeMap<RunId, (String, Place)>,
    /// Up to when certificates of revoked sites are void; 0 where an older release wrote the line.
    pub(crate) revoked: BTreeMap<ClientId, (u64, Place)>,
    /// Rounds that were released more than once.
    pub(crate) twice: Vec<(RunId, u32, Place)>,
}

/// What every record has.
#[derive(Deserialize)]
struct Head {
    event: String,
    #[serde(default)]
    database: i64,
    run: Option<String>,
}

// The fields of the kinds that are compared. A line is read as one of them only where its `event` says so: whatever other kinds
// hold, now or in a later release, cannot make a log unreadable.

#[derive(Deserialize)]
struct Released {
    round: u32,
    model_sha256: Option<String>,
    #[serde(default)]
    recovered: bool,
}

#[derive(Deserialize)]
struct Ended {
    round: u32,
    #[serde(default)]
    released: bool,
}

#[derive(Deserialize)]
struct Submitted {
    plan_sha256: Option<String>,
}

#[derive(Deserialize)]
struct Revoked {
    client: String,
    /// Missing where an older release wrote the line.
    #[serde(default)]
    before: u64,
}

impl Witness {
    /// Reads every log in `state`. Half a line at an end, which a crash leaves, is passed over.
    pub(crate) fn read(state: &Path) -> Result<Self, AuditError> {
        let mut witness = Self::default();
        let failed = |path: &Path, source| AuditError::File { path: path.to_owned(), source };
        for path in logs_in(state).map_err(|source| failed(state, source))? {
            let text = std::fs::read(&path).map_err(|source| failed(&path, source))?;
            let damaged = |fault| AuditError::Damaged { path: path.clone(), fault };
            let lines = read_lines(&text).map_err(damaged)?;
            let told = witness.add(&path, &lines.links);
            told.map_err(|(line, fault)| damaged(DamagedLine { line, fault: fault.into() }))?;
        }
        Ok(witness)
    }

    /// Takes a log in; what is wrong with a line that is not understood, which is none of this release's.
    fn add(&mut self, path: &Path, links: &[Link]) -> Result<(), (usize, ChainError)> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.logs.push(Log { name, hashes: links.iter().map(|link| link.hash).collect() });
        let mut told = Told::default();
        for (line, link) in (1..).zip(links) {
            let place = Place { log: path.to_owned(), line };
            self.take(link, place, &mut told).map_err(|fault| (line, fault))?;
        }
        Ok(())
    }

    fn take(&mut self, link: &Link, place: Place, told: &mut Told) -> Result<(), ChainError> {
        let head: Head = link.read()?;
        if head.database > 0 && self.version.as_ref().is_none_or(|(highest, _)| head.database > *highest) {
            self.version = Some((head.database, place.clone()));
        }
        let run = head.run.and_then(|run| run.parse::<RunId>().ok());
        match (head.event.as_str(), run) {
            ("released", Some(run)) => {
                let Released { round, model_sha256, recovered } = link.read()?;
                let before = self.releases.get(&(run, round)).and_then(|(sha256, _)| sha256.as_ref());
                let again = !recovered && told.released.contains(&(run, round));
                if again || before.is_some_and(|before| Some(before) != model_sha256.as_ref()) {
                    self.twice.push((run, round, place.clone()));
                }
                told.released.insert((run, round));
                self.releases.insert((run, round), (model_sha256, place));
            }
            ("round", Some(run)) => {
                let Ended { round, released } = link.read()?;
                if !released || round == 0 {
                    return Ok(());
                }
                if !told.ended.insert((run, round)) {
                    self.twice.push((run, round, place.clone()));
                }
                self.releases.entry((run, round)).or_insert((None, place));
            }
            ("submitted", Some(run)) => {
                let Submitted { plan_sha256 } = link.read()?;
                if let Some(sha256) = plan_sha256 {
                    self.plans.insert(run, (sha256, place));
                }
            }
            ("revoked", _) => {
                let Revoked { client, before } = link.read()?;
                let Ok(client) = ClientId::new(&client) else { return Ok(()) };
                let known = self.revoked.entry(client).or_insert_with(|| (before, place.clone()));
                if before > known.0 {
                    *known = (before, place);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Rounds of one log: by the line that tells of the release itself, and by the line at the round's end, which tells of the same one.
#[derive(Default)]
struct Told {
    released: BTreeSet<(RunId, u32)>,
    ended: BTreeSet<(RunId, u32)>,
}

/// How many of these records a database of this `version` can know: those before the first that names a later one.
pub(crate) fn known_to(version: i64, links: &[Link]) -> usize {
    let later = |link: &Link| link.read::<Head>().is_ok_and(|line| line.database > version);
    links.iter().position(later).unwrap_or(links.len())
}

#[cfg(test)]
mod tests {
    use privacy::chain::Chain;
    use serde_json::{Value, json};

    use super::*;

    fn of(records: &[Value]) -> Witness {
        let (mut chain, mut witness) = (Chain::new(), Witness::default());
        let links: Vec<Link> = records.iter().map(|record| chain.append(record)).collect();
        witness.add(Path::new("audit.jsonl"), &links).unwrap();
        witness
    }

    #[test]
    fn a_round_that_was_released_twice_is_found_and_one_that_is_told_twice_is_not() {
        let run = RunId(7).to_string();
        let released = |round: u32, sha256: &str, recovered: bool| json!({ "event": "released", "run": run, "round": round, "model_sha256": sha256, "recovered": recovered, "database": 3 });
        let ended = |round: u32| json!({ "event": "round", "run": run, "round": round, "released": true, "database": 3 });
        let good = [released(1, "a", false), ended(1), released(2, "b", true), ended(2)];
        assert!(of(&good).twice.is_empty());
        assert_eq!(of(&good).version.unwrap().0, 3);
        for bad in [
            vec![released(1, "a", false), released(1, "b", false)],
            vec![released(1, "a", false), released(1, "a", false)],
            vec![released(1, "a", false), released(1, "b", true)],
            vec![ended(1), ended(2), ended(1)],
        ] {
            assert_eq!(of(&bad).twice.len(), 1, "{bad:?}");
        }
    }
}
