//! What the audit logs of a state folder say that its database must know.
//!
//! It reads and judges nothing: [`crate::net::store`] compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use privacy::chain::segments::{HeadSought, KnownHead, Segment, SegmentFault, Snapshot, logs_in, survey};
use privacy::chain::{Chain, ChainError, DamagedLine, Digest, Link};
use protocol::{ClientId, RunId};
use serde::Deserialize;

use super::AuditError;

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
    path: PathBuf,
    /// What was read of it: the chain before each segment, and the hashes of its records.
    parts: Vec<(Chain, Vec<Digest>)>,
}

impl Log {
    /// Records up to its end, those included that were not read.
    pub(crate) fn records(&self) -> u64 {
        self.parts.last().map_or(0, |(start, hashes)| start.len() + hashes.len() as u64)
    }

    /// The hash of the last of its first `records` records.
    pub(crate) fn head_at(&self, records: u64) -> Result<KnownHead, AuditError> {
        let Some((start, hashes)) = self.parts.iter().rev().find(|(start, _)| start.len() <= records) else {
            // A start reads one segment alone; which of the others is needed, the database says.
            let (found, mut sought) = (Snapshot::of(&self.path)?, HeadSought::new(records));
            let newest = found.newest(&mut |link| sought.see(link))?;
            return Ok(found.head_at(&newest, &sought)?);
        };
        let count = records - start.len();
        let at = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(match at.checked_sub(1).map(|last| hashes.get(last)) {
            None => KnownHead::Is(start.head()),
            Some(Some(hash)) => KnownHead::Is(*hash),
            Some(None) if records > self.records() => KnownHead::Beyond,
            Some(None) => KnownHead::Elsewhere,
        })
    }
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
    /// Up to which round segments before say of a run what was released, as those say that were read.
    carried: BTreeMap<RunId, u32>,
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

#[derive(Deserialize)]
struct RunCarried {
    plan_sha256: Option<String>,
    round: u32,
    model_sha256: Option<String>,
}

/// What a record says that is compared.
pub(super) enum Claim {
    Released {
        run: RunId,
        round: u32,
        model_sha256: Option<String>,
        recovered: bool,
    },
    /// The line at a round's end, which tells of the same release.
    Round {
        run: RunId,
        round: u32,
    },
    Submitted {
        run: RunId,
        plan_sha256: String,
    },
    /// What segments before say of a run.
    Carried {
        run: RunId,
        plan_sha256: Option<String>,
        round: u32,
        model_sha256: Option<String>,
    },
    Revoked {
        client: ClientId,
        before: u64,
    },
}

impl Claim {
    /// # Errors
    /// [`ChainError::Record`] for a record of a kind that is compared and without its fields.
    pub(super) fn of(link: &Link) -> Result<Option<Self>, ChainError> {
        Self::with(link, &link.read()?)
    }

    fn with(link: &Link, head: &Head) -> Result<Option<Self>, ChainError> {
        let run = head.run.as_ref().and_then(|run| run.parse::<RunId>().ok());
        Ok(match (head.event.as_str(), run) {
            ("released", Some(run)) => {
                let Released { round, model_sha256, recovered } = link.read()?;
                Some(Self::Released { run, round, model_sha256, recovered })
            }
            ("round", Some(run)) => {
                let Ended { round, released } = link.read()?;
                (released && round > 0).then_some(Self::Round { run, round })
            }
            ("submitted", Some(run)) => {
                let Submitted { plan_sha256 } = link.read()?;
                plan_sha256.map(|plan_sha256| Self::Submitted { run, plan_sha256 })
            }
            ("run_carried", Some(run)) => {
                let RunCarried { plan_sha256, round, model_sha256 } = link.read()?;
                Some(Self::Carried { run, plan_sha256, round, model_sha256 })
            }
            ("revoked" | "revocation_carried", _) => {
                let Revoked { client, before } = link.read()?;
                ClientId::new(&client).ok().map(|client| Self::Revoked { client, before })
            }
            _ => None,
        })
    }
}

impl Witness {
    /// Reads every segment of every log in `state`, and in the folders `archives`. Half a line at an end, which a crash leaves, is passed
    /// over; so is a log whose current segment is gone, of which [`Witness::logs`] says nothing.
    pub(crate) fn read(state: &Path, archives: &[PathBuf]) -> Result<Self, AuditError> {
        let mut witness = Self::default();
        for log in listed(state)? {
            let (mut parts, mut told, mut fault) = (Vec::new(), Told::default(), None);
            let found = survey(&log, archives, &mut |path, segment| {
                if fault.is_none() {
                    parts.push(hashes_of(segment));
                    let mut lines = (1..).zip(&segment.lines.links);
                    fault = lines.find_map(|(line, link)| witness.add(path, line, link, &mut told).err());
                }
            })?;
            let mut is_there = true;
            for fault in found.faults {
                match fault {
                    SegmentFault::NoCurrent { .. } => is_there = false,
                    fault => return Err(fault.into()),
                }
            }
            fault.map_or(Ok(()), Err)?;
            if is_there {
                witness.logs.push(Log { name: name_of(&log), path: log, parts });
            }
        }
        Ok(witness)
    }

    /// Reads the newest segment of every log in `state`, which says what a start must know of those before.
    pub(crate) fn read_newest(state: &Path) -> Result<Self, AuditError> {
        let mut witness = Self::default();
        for log in listed(state)? {
            let found = Snapshot::of(&log)?;
            let path = found.file.as_ref().unwrap_or(&log);
            let (mut hashes, mut told, mut fault) = (Vec::new(), Told::default(), None);
            let read = found.newest(&mut |link| {
                hashes.push(link.hash);
                if fault.is_none() {
                    fault = witness.add(path, hashes.len(), link, &mut told).err();
                }
            });
            let segment = match read {
                // Whoever misses it says so.
                Err(SegmentFault::NoCurrent { .. }) => continue,
                segment => segment?,
            };
            fault.map_or(Ok(()), Err)?;
            witness.logs.push(Log { name: name_of(&log), path: log, parts: vec![(segment.start, hashes)] });
        }
        Ok(witness)
    }

    /// Whether a log tells of this release.
    pub(crate) fn knows(&self, run: RunId, round: u32) -> bool {
        self.releases.contains_key(&(run, round)) || self.carried.get(&run).is_some_and(|last| round <= *last)
    }

    /// Takes in what stands in a line of the file `path`.
    fn add(&mut self, path: &Path, line: usize, link: &Link, told: &mut Told) -> Result<(), AuditError> {
        // None of this release's.
        self.take(link, Place { log: path.to_owned(), line }, told).map_err(|fault| {
            let fault = DamagedLine { line, fault: fault.into() };
            AuditError::Damaged { path: path.to_owned(), fault }
        })
    }

    fn take(&mut self, link: &Link, place: Place, told: &mut Told) -> Result<(), ChainError> {
        let head: Head = link.read()?;
        if head.database > 0 && self.version.as_ref().is_none_or(|(highest, _)| head.database > *highest) {
            self.version = Some((head.database, place.clone()));
        }
        match Claim::with(link, &head)? {
            Some(Claim::Released { run, round, model_sha256, recovered }) => {
                let before = self.releases.get(&(run, round)).and_then(|(sha256, _)| sha256.as_ref());
                let again = !recovered && told.has(run, round);
                if again || before.is_some_and(|before| Some(before) != model_sha256.as_ref()) {
                    self.twice.push((run, round, place.clone()));
                }
                told.released.insert((run, round));
                self.releases.insert((run, round), (model_sha256, place));
            }
            Some(Claim::Round { run, round }) => {
                if !told.ended.insert((run, round)) {
                    self.twice.push((run, round, place.clone()));
                }
                self.releases.entry((run, round)).or_insert((None, place));
            }
            Some(Claim::Submitted { run, plan_sha256 }) => {
                self.plans.insert(run, (plan_sha256, place));
            }
            Some(Claim::Carried { run, plan_sha256, round, model_sha256 }) => {
                for carried in [&mut self.carried, &mut told.carried] {
                    let last = carried.entry(run).or_default();
                    *last = (*last).max(round);
                }
                if let Some(sha256) = plan_sha256 {
                    self.plans.entry(run).or_insert_with(|| (sha256, place.clone()));
                }
                if round > 0 {
                    self.releases.entry((run, round)).or_insert((model_sha256, place));
                }
            }
            Some(Claim::Revoked { client, before }) => {
                let known = self.revoked.entry(client).or_insert_with(|| (before, place.clone()));
                if before > known.0 {
                    *known = (before, place);
                }
            }
            None => {}
        }
        Ok(())
    }
}

fn listed(state: &Path) -> Result<Vec<PathBuf>, AuditError> {
    logs_in(state).map_err(|source| AuditError::File { path: state.to_owned(), source })
}

fn name_of(log: &Path) -> String {
    log.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn hashes_of(segment: &Segment) -> (Chain, Vec<Digest>) {
    (segment.lines.start, segment.lines.links.iter().map(|link| link.hash).collect())
}

/// Rounds of one log: by the line that tells of the release itself, and by the line at the round's end, which tells of the same one.
#[derive(Default)]
struct Told {
    released: BTreeSet<(RunId, u32)>,
    ended: BTreeSet<(RunId, u32)>,
    /// What segments before told. In one log rounds go up.
    carried: BTreeMap<RunId, u32>,
}

impl Told {
    fn has(&self, run: RunId, round: u32) -> bool {
        self.released.contains(&(run, round)) || self.carried.get(&run).is_some_and(|last| round <= *last)
    }
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
        let mut told = Told::default();
        for (line, link) in (1..).zip(&links) {
            witness.add(Path::new("audit.jsonl"), line, link, &mut told).unwrap();
        }
        witness
    }

    #[test]
    fn a_round_that_was_released_twice_is_found_and_one_that_is_told_twice_is_not() {
        let run = RunId(7).to_string();
        let released = |round: u32, sha256: &str, recovered: bool| json!({ "event": "released", "run": run, "round": round, "model_sha256": sha256, "recovered": recovered, "database": 3 });
        let ended = |round: u32| json!({ "event": "round", "run": run, "round": round, "released": true, "database": 3 });
        let carried = json!({ "event": "run_carried", "run": run, "round": 2, "model_sha256": "b", "plan_sha256": "p" });
        let good = [released(1, "a", false), ended(1), released(2, "b", true), ended(2)];
        assert!(of(&good).twice.is_empty());
        assert_eq!(of(&good).version.unwrap().0, 3);
        let newest = of(&[carried.clone(), ended(2), released(3, "c", false)]);
        assert!(newest.twice.is_empty() && newest.plans.len() == 1);
        assert!((1..4).all(|round| newest.knows(RunId(7), round)) && !newest.knows(RunId(7), 4));
        for bad in [
            vec![released(1, "a", false), released(1, "b", false)],
            vec![released(1, "a", false), released(1, "a", false)],
            vec![released(1, "a", false), released(1, "b", true)],
            vec![ended(1), ended(2), ended(1)],
            // In a segment before.
            vec![carried.clone(), released(2, "b", false)],
            vec![carried, released(1, "a", false)],
        ] {
            assert_eq!(of(&bad).twice.len(), 1, "{bad:?}");
        }
    }
}
