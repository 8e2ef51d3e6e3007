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

/// The parts of a record that are compared.
#[derive(Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    database: i64,
    run: Option<String>,
    round: Option<u32>,
    #[serde(default)]
    released: bool,
    model_sha256: Option<String>,
    #[serde(default)]
    recovered: bool,
    plan_sha256: Option<String>,
    client: Option<String>,
    before: Option<u64>,
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
        // By the line that tells of the release itself; the line at the round's end tells of the same one.
        let (mut released, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for (line, link) in (1..).zip(links) {
            let read: Line = link.read().map_err(|fault| (line, fault))?;
            let place = || Place { log: path.to_owned(), line };
            if self.version.as_ref().is_none_or(|(highest, _)| read.database > *highest) && read.database > 0
            {
                self.version = Some((read.database, place()));
            }
            let run = read.run.and_then(|run| run.parse::<RunId>().ok());
            match (read.event.as_str(), run, read.round) {
                ("released", Some(run), Some(round)) => {
                    let before = self.releases.get(&(run, round)).and_then(|(sha256, _)| sha256.as_ref());
                    let again = !read.recovered && released.contains(&(run, round));
                    if again || before.is_some_and(|before| Some(before) != read.model_sha256.as_ref()) {
                        self.twice.push((run, round, place()));
                    }
                    released.insert((run, round));
                    self.releases.insert((run, round), (read.model_sha256, place()));
                }
                ("round", Some(run), Some(round)) if read.released && round > 0 => {
                    if !ended.insert((run, round)) {
                        self.twice.push((run, round, place()));
                    }
                    self.releases.entry((run, round)).or_insert_with(|| (None, place()));
                }
                ("submitted", Some(run), _) => {
                    if let Some(sha256) = read.plan_sha256 {
                        self.plans.insert(run, (sha256, place()));
                    }
                }
                ("revoked", _, _) => {
                    if let Some(client) = read.client.and_then(|client| ClientId::new(&client).ok()) {
                        let before = read.before.unwrap_or(0);
                        let known = self.revoked.entry(client).or_insert_with(|| (before, place()));
                        if before > known.0 {
                            *known = (before, place());
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// How many of these records a database of this `version` can know: those before the first that names a later one.
pub(crate) fn known_to(version: i64, links: &[Link]) -> usize {
    let later = |link: &Link| link.read::<Line>().is_ok_and(|line| line.database > version);
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
