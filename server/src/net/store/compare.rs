//! Whether the books of a state agree: its database with its ledgers, its audit log, and the models that are there.
//!
//! A database that was turned back (an older copy, one flipped bit in its log) looks whole, and would pay a second time for
//! what it has forgotten. So before anything else happens it is compared with what else remembers. It repairs nothing: what disagrees is an
//! error that says which record it is, and what to do.
//!
//! After a crash at any instant the order of writes leaves: the database ahead of the audit log by at most the last
//! transaction, never behind it; the audit log at least as long as the database knows; and no model that anybody can read of which the
//! database does not know.

mod logs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use privacy::chain::Digest;
use privacy::ledger::{Ledger, LedgerError, Record};
use protocol::RunId;
use sqlx::Row as _;

use super::audit::witness::{Place, Witness};
use super::blobs::{Sealed, is_later};
use super::{Needed, Store, StoreError, database, rows};
use crate::plan::typed_privacy;

pub(super) use logs::miss_database;

/// Why a state is not worked with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BooksError {
    /// The audit log knows more than the database.
    #[error(
        "{}, line {line}: {what}. The database was turned back, exchanged or damaged, and would spend again what it has forgotten; nothing was \
         started. Stop, and bring the newest backup or this folder itself into a new folder with `consortia server restore FOLDER --to \
         NEW --lost-releases N`: N is {lost} for this folder, and for a backup the releases made after it as well (docs/operations.md, \
         When books disagree)", log.display()
    )]
    Forgotten {
        /// The audit log.
        log: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What the line says, and what the database says.
        what: String,
        /// Releases in the log of which the database does not know.
        lost: u64,
    },
    /// There is no database where one has worked.
    #[error(
        "{}: this is of a server that has worked, and its database is empty or gone, and with it every budget and every revocation. Nothing was started. \
         Put state.sqlite (with state.sqlite-wal) back, or restore the newest backup: `consortia server restore BACKUP --to NEW \
         --lost-releases N` (docs/operations.md, When books disagree)", .0.display()
    )]
    NoDatabase(PathBuf),
    /// The database knows more than the audit log.
    #[error(
        "{}: the database knows {known} records of this audit log, and {found}: the log was cut, exchanged or removed. Put the right file back; if it \
         is gone, bring this folder into a new one with `consortia server restore FOLDER --to NEW --lost-releases N`, N being the \
         releases that the database may have forgotten as well, 0 if only the log was touched (docs/operations.md, When books \
         disagree)", log.display()
    )]
    Log {
        /// The audit log.
        log: PathBuf,
        /// Records that were on disk.
        known: u64,
        /// What is there instead.
        found: String,
    },
    /// The database contradicts itself.
    #[error(
        "the state's database contradicts itself: {0}. It was damaged or changed; nothing was started. Restore the newest backup: \
         `consortia server restore BACKUP --to NEW --lost-releases N` (docs/operations.md, When books disagree)"
    )]
    Contradiction(String),
    /// SQLite cannot read its file.
    #[error(
        "{}: SQLite says of it: {message}. The file was damaged, or this program may not read and write it and its folder; nothing was started. \
         See to their permissions; where those are right, restore the newest backup: `consortia server restore BACKUP --to NEW \
         --lost-releases N` (docs/operations.md, When books disagree)", path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        message: String,
    },
    /// There are models that the database has forgotten.
    #[error(
        "{place}: {name} is a model of round {round} of run {run}, which the database does not know; {count} releases are unknown to it. The \
         database was turned back or exchanged; nothing was started and no file was removed. Restore the newest backup with --lost-releases \
         {count} or more, or move these files away if they are not this state's (docs/operations.md, When books disagree)"
    )]
    Models {
        /// Where models are.
        place: String,
        /// A file.
        name: String,
        /// Its run.
        run: RunId,
        /// Its round.
        round: u32,
        /// Rounds of which there are such files.
        count: usize,
    },
}

impl From<BooksError> for StoreError {
    fn from(error: BooksError) -> Self {
        Self::Books(Box::new(error))
    }
}

/// A release that the database knows and the audit log does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unlogged {
    pub(crate) run: RunId,
    pub(crate) round: u32,
    pub(crate) model_sha256: String,
}

/// What a log says and the database does not know.
pub(super) struct Ahead {
    pub(super) place: Place,
    pub(super) what: String,
    /// Whether it is a release that a budget may have to pay for.
    pub(super) is_release: bool,
}

/// A run as its checkpoint has it.
struct Stand {
    round: u32,
    releases: u32,
    model_sha256: String,
    plan_sha256: String,
    norm_max: Option<f64>,
    /// Whether its releases are paid for from a ledger.
    is_private: bool,
}

/// What the database says of releases.
pub(super) struct Known {
    version: i64,
    runs: BTreeMap<RunId, Stand>,
    models: BTreeMap<(RunId, u32), String>,
    revoked: BTreeMap<protocol::ClientId, u64>,
}

/// What was found in agreement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agreement {
    /// Populations whose ledger was replayed.
    pub populations: usize,
    /// Releases in these ledgers that made a model of a run.
    pub paid: usize,
    /// Models of runs that were released, paid or not.
    pub released: usize,
    /// Of those, how many the audit logs tell of.
    pub logged: usize,
}

impl Store {
    /// Compares the database with itself, with the audit logs in `dir` and with the models that are there.
    ///
    /// # Errors
    /// [`StoreError::Books`] says what disagrees; [`StoreError::Audit`] for a log that is damaged.
    pub async fn check_books(&self, dir: &Path) -> Result<Agreement, StoreError> {
        self.check_books_with(dir, &[]).await
    }

    /// The same where closed segments of the audit logs were moved into the folders `archives`.
    ///
    /// # Errors
    /// As [`Store::check_books`].
    pub async fn check_books_with(&self, dir: &Path, archives: &[PathBuf]) -> Result<Agreement, StoreError> {
        self.compare_all(dir, archives).await.map_err(|error| self.named(dir, error))
    }

    async fn compare_all(&self, dir: &Path, archives: &[PathBuf]) -> Result<Agreement, StoreError> {
        self.check_integrity().await?;
        // A server that works meanwhile writes into the database first: a log that was read before it is not ahead of it, and one that
        // is read after it is not behind.
        let before = Witness::read(dir, archives)?;
        self.hold_still().await?;
        let known = self.known().await?;
        let (populations, paid) = self.check_ledgers(&known).await?;
        agree(&known, &before)?;
        let witness = Witness::read(dir, archives)?;
        self.check_heads(dir, Path::new("audit.jsonl"), &witness).await?;
        self.check_models(&known, &self.blobs.list().await?).await?;
        self.let_go().await?;
        if let Some((run, round, Place { log, line })) = witness.twice.first() {
            let times = witness.twice.len();
            let what = format!(
                "{}, line {line}: round {round} of run {run} was released a second time ({times} such lines)",
                log.display()
            );
            return Err(BooksError::Contradiction(what).into());
        }
        let logged = known.models.keys().filter(|(run, round)| witness.knows(*run, *round)).count();
        Ok(Agreement { populations, paid, released: known.models.len(), logged })
    }

    /// The same before a server begins to work. `own` is the log that it will go on with.
    pub(super) async fn compare(&self, dir: &Path, own: &Path) -> Result<(), StoreError> {
        // Both take as long as the state is large, and neither needs the other.
        let folder = dir.to_owned();
        let reading = tokio::task::spawn_blocking(move || Witness::read_newest(&folder));
        let integrity = self.check_integrity().await;
        let witness = reading.await.map_err(|panic| StoreError::File {
            path: dir.to_owned(),
            source: std::io::Error::other(panic),
        })??;
        integrity?;
        let known = self.known().await?;
        self.check_ledgers(&known).await?;
        if agree(&known, &witness).is_err() {
            // How much was forgotten stands in all segments.
            agree(&known, &Witness::read(dir, &[])?)?;
            agree(&known, &witness)?;
        }
        self.check_heads(dir, own, &witness).await?;
        for (run, round, Place { log, line }) in &witness.twice {
            let log = log.display();
            tracing::error!(
                "{log}, line {line}: round {round} of run {run} was released a second time, and may not have been paid twice"
            );
        }
        let unlogged = known.models.iter().filter(|((run, round), _)| !witness.knows(*run, *round));
        let unlogged = unlogged.map(|((run, round), sha256)| Unlogged {
            run: *run,
            round: *round,
            model_sha256: sha256.clone(),
        });
        *self.unlogged.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = unlogged.collect();
        Ok(())
    }

    /// The releases of which the audit log says nothing, once.
    pub(crate) fn take_unlogged(&self) -> Vec<Unlogged> {
        std::mem::take(&mut *self.unlogged.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// What logs know and the database does not.
    pub(super) async fn ahead(&self, witness: &Witness) -> Result<Vec<Ahead>, StoreError> {
        Ok(ahead(&self.known().await?, witness))
    }

    /// Lets SQLite look at every page. PostgreSQL looks after its own.
    pub(super) async fn check_integrity(&self) -> Result<(), StoreError> {
        if database::is_postgres(&*self.pool.acquire().await?) {
            return Ok(());
        }
        let said: String =
            sqlx::query("PRAGMA integrity_check(1)").fetch_one(&self.pool).await?.try_get(0)?;
        if said == "ok" {
            return Ok(());
        }
        let sql = "SELECT file FROM pragma_database_list WHERE name = 'main'";
        let path: String = sqlx::query(sql).fetch_one(&self.pool).await?.try_get(0)?;
        Err(BooksError::Unreadable { path: path.into(), message: said.replace('\n', " ") }.into())
    }

    /// Looks at every file that the rows name, byte by byte: models that are kept, and what runs that have not ended need to go on. A
    /// server may be working meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Files`] names those that are missing or damaged.
    pub async fn check_files(&self) -> Result<(), StoreError> {
        let mut faults = Vec::new();
        let Needed { blobs, sealed, secrets } = self.needed().await?;
        for name in &blobs {
            faults.extend(self.blob_fault(name, sealed.get(name)).await?);
        }
        for known in &secrets {
            // A server that works has meanwhile replaced it, perhaps, and removed it.
            if let Err(error) = self.secrets.read(known).await
                && self.needed().await?.secrets.contains(known)
            {
                faults.push(error.to_string());
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(StoreError::Files { faults }) }
    }

    async fn blob_fault(&self, name: &str, sealed: Option<&Sealed>) -> Result<Option<String>, StoreError> {
        let Err(first) = self.blobs.verify(name, sealed).await else { return Ok(None) };
        // A server that works has meanwhile published or removed it, perhaps.
        let now = self.needed().await?;
        if !now.blobs.contains(name) {
            return Ok(None);
        }
        match self.blobs.verify(name, now.sealed.get(name)).await {
            Ok(()) => Ok(None),
            Err(_) => Ok(Some(first.to_string())),
        }
    }

    /// Shows the database as it is at one moment from here on; a store that looks has one connection alone.
    async fn hold_still(&self) -> Result<(), StoreError> {
        let postgres = database::is_postgres(&*self.pool.acquire().await?);
        if self.looks() {
            let begin = if postgres { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" } else { "BEGIN" };
            sqlx::raw_sql(begin).execute(&self.pool).await?;
        }
        Ok(())
    }

    async fn let_go(&self) -> Result<(), StoreError> {
        if self.looks() {
            sqlx::raw_sql("COMMIT").execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Whether this store only looks, while a server may write.
    fn looks(&self) -> bool {
        self._lock.is_none()
    }

    pub(super) async fn known(&self) -> Result<Known, StoreError> {
        let mut runs = BTreeMap::new();
        let sql = "SELECT runs.run AS run, plan_toml, round, releases, model_sha256, norm_max \
                   FROM runs JOIN checkpoints ON runs.run = checkpoints.run";
        for row in sqlx::query(sql).fetch_all(&self.pool).await? {
            let (plan, releases) = (row.try_get::<String, _>("plan_toml")?, rows::number(&row, "releases")?);
            let stand = Stand {
                round: rows::number(&row, "round")?,
                releases,
                model_sha256: row.try_get("model_sha256")?,
                plan_sha256: Digest::of(plan.as_bytes()).to_string(),
                norm_max: row.try_get("norm_max")?,
                is_private: pays(&plan),
            };
            runs.insert(rows::run_id(&row)?, stand);
        }
        let mut models = BTreeMap::new();
        for row in
            sqlx::query("SELECT run, round, sha256 FROM models WHERE round > 0").fetch_all(&self.pool).await?
        {
            models.insert((rows::run_id(&row)?, rows::number(&row, "round")?), row.try_get("sha256")?);
        }
        let (version, revoked) = (self.read_version().await?, self.revocations().await?);
        Ok(Known { version, runs, models, revoked })
    }

    /// Replays every ledger and compares it with rounds and models. Returns how many there are, and the releases of runs in them.
    async fn check_ledgers(&self, known: &Known) -> Result<(usize, usize), StoreError> {
        let (populations, paid) = self.paid().await?;
        paid.fits(known).map_err(BooksError::Contradiction)?;
        Ok((populations, paid.models.len()))
    }

    /// What all ledgers say was paid for, and how many they are.
    async fn paid(&self) -> Result<(usize, Paid), StoreError> {
        let wrong = |what: String| -> StoreError { BooksError::Contradiction(what).into() };
        let mut paid = Paid::default();
        let populations = self.populations().await?;
        for population in &populations {
            let links = self.ledger(population).await?;
            let ledger = Ledger::replay(&links)
                .map_err(|error: LedgerError| wrong(format!("ledger of `{population}`: {error}")))?;
            let terms = &ledger.terms().population;
            if terms != population {
                return Err(wrong(format!("the ledger of `{population}` is that of `{terms}`")));
            }
            for link in &links {
                let Ok(Record::Spent { run, round, release, .. }) = link.read() else { continue };
                // What was charged for releases that nobody knows names no run.
                let (Ok(run), false) = (run.parse::<RunId>(), release.sha256.is_empty()) else { continue };
                paid.norms.insert(run, (round, release.norm_next));
                if paid.models.insert((run, round), release.sha256).is_some() {
                    return Err(wrong(format!("round {round} of run {run} was paid for twice")));
                }
            }
        }
        Ok((populations.len(), paid))
    }

    /// Whether the database knows every private model that anybody could read.
    pub(super) async fn check_models(
        &self,
        known: &Known,
        here: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let mut named: BTreeSet<String> = self.needed().await?.blobs;
        for row in sqlx::query("SELECT blob FROM models").fetch_all(&self.pool).await? {
            named.insert(row.try_get("blob")?);
        }
        let restored = sqlx::query("SELECT unknown_models FROM restored").fetch_optional(&self.pool).await?;
        let charged = restored.map(|row| row.try_get::<i64, _>(0)).transpose()?.unwrap_or(0);
        let mut unknown: BTreeMap<(RunId, u32), String> = BTreeMap::new();
        for name in here {
            if named.contains(name) || is_later(name, self.epoch()) {
                continue;
            }
            let Some((run, round)) = self.blobs.source(name).await?.as_deref().and_then(origin) else {
                continue;
            };
            // The files of plans that pay nothing are written before their transaction, and a crash may come in between.
            let is_unknown = match known.runs.get(&run) {
                Some(stand) => stand.is_private && round > stand.round,
                None => round > 0,
            };
            if is_unknown {
                unknown.insert((run, round), name.clone());
            }
        }
        let count = unknown.len();
        match unknown.into_iter().next_back() {
            Some(((run, round), name)) if count as i64 > charged => {
                let place = self.blobs.place().to_owned();
                Err(BooksError::Models { place, name, run, round, count }.into())
            }
            _ => Ok(()),
        }
    }
}

/// Whether a run pays for its releases. A plan of an earlier release may not be read any more, and its run has paid all the same.
fn pays(plan_toml: &str) -> bool {
    typed_privacy(plan_toml).map_or_else(
        |_| {
            let table: toml::Table = toml::from_str(plan_toml).unwrap_or_default();
            table.get("privacy").is_some_and(|privacy| privacy.get("central").is_some())
        },
        |typed| typed.central.is_some(),
    )
}

/// What ledgers say was paid for.
#[derive(Default)]
struct Paid {
    /// The fingerprints of models, by run and round.
    models: BTreeMap<(RunId, u32), String>,
    /// The clipping norm after the last of them, by run, where it follows the updates.
    norms: BTreeMap<RunId, (u32, Option<f64>)>,
}

impl Paid {
    /// Whether every payment has its model, every private model its payment, and every run stands where they end.
    fn fits(&self, known: &Known) -> Result<(), String> {
        let mut counts: BTreeMap<RunId, u32> = BTreeMap::new();
        for ((run, round), sha256) in &self.models {
            let Some(stand) = known.runs.get(run) else {
                return Err(format!("round {round} of run {run} was paid for, and there is no such run"));
            };
            *counts.entry(*run).or_default() += 1;
            match known.models.get(&(*run, *round)) {
                Some(model) if model == sha256 => {}
                Some(_) => {
                    return Err(format!(
                        "round {round} of run {run} was paid for with another model than its own"
                    ));
                }
                // Before there was a table of models, the last one alone was kept.
                None if stand.round > *round => {}
                None => return Err(format!("round {round} of run {run} was paid for, and has no model")),
            }
        }
        let stray = known.models.keys().find(|(run, _)| !known.runs.contains_key(run));
        if let Some((run, round)) = stray {
            return Err(format!("there is a model of round {round} of run {run}, and no such run"));
        }
        known.runs.iter().try_for_each(|(run, stand)| {
            let count = counts.get(run).copied().unwrap_or(0);
            self.fits_run(*run, stand, count, &known.models)
        })
    }

    /// The same of one run, which has paid `count` times.
    fn fits_run(
        &self,
        run: RunId,
        stand: &Stand,
        count: u32,
        models: &BTreeMap<(RunId, u32), String>,
    ) -> Result<(), String> {
        let Stand { round: done, releases, model_sha256, norm_max, .. } = stand;
        // Runs without a promise count their releases, too, and pay for none.
        let releases = if stand.is_private { *releases } else { 0 };
        if releases != count {
            return Err(format!(
                "run {run} has made {releases} private releases, and its ledger has {count}"
            ));
        }
        if let Some((round, Some(norm))) = self.norms.get(&run).copied()
            && *norm_max != Some(norm)
        {
            return Err(format!(
                "the clipping norm after round {round} of run {run} is not the one in its ledger"
            ));
        }
        let own = || models.range((run, 0)..=(run, u32::MAX));
        if let Some(((_, round), sha256)) = own().next_back() {
            if round > done {
                return Err(format!("run {run} has a model of round {round}, and ended round {done} last"));
            }
            if sha256 != model_sha256 {
                return Err(format!(
                    "the model of run {run} is not the one of its last release, round {round}"
                ));
            }
        }
        match own().find(|(at, _)| count > 0 && !self.models.contains_key(at)) {
            Some(((_, round), _)) => Err(format!("round {round} of run {run} was released and not paid for")),
            None => Ok(()),
        }
    }
}

/// Run and round from what a file says of itself ([`super::source_of`]).
fn origin(source: &str) -> Option<(RunId, u32)> {
    let (run, round) = source.strip_prefix("consortia run ")?.split_once(" round ")?;
    Some((run.parse().ok()?, round.parse().ok()?))
}

fn agree(known: &Known, witness: &Witness) -> Result<(), StoreError> {
    let found = ahead(known, witness);
    let lost = found.iter().filter(|one| one.is_release).count() as u64;
    match found.into_iter().next() {
        Some(Ahead { place: Place { log, line }, what, .. }) => {
            Err(BooksError::Forgotten { log, line, what, lost }.into())
        }
        None => Ok(()),
    }
}

fn ahead(known: &Known, witness: &Witness) -> Vec<Ahead> {
    let mut found = Vec::new();
    for ((run, round), (sha256, place)) in &witness.releases {
        let stored = known.models.get(&(*run, *round));
        let done = known.runs.get(run).map_or(0, |stand| stand.round);
        let what = match (sha256, stored) {
            (Some(sha256), Some(stored)) if sha256 == stored => continue,
            // A line of an older release, or a round before there was a table of models.
            (None, _) | (Some(_), None) if done >= *round && (sha256.is_none()) => continue,
            (_, Some(_)) => {
                format!(
                    "round {round} of run {run} was released, and the database has another model of that round"
                )
            }
            (_, None) => {
                format!("round {round} of run {run} was released, and the database ends at round {done}")
            }
        };
        let is_release = known.runs.get(run).is_none_or(|stand| stand.is_private);
        found.push(Ahead { place: place.clone(), what, is_release });
    }
    for (run, (sha256, place)) in &witness.plans {
        let what = match known.runs.get(run) {
            Some(stand) if stand.plan_sha256 == *sha256 => continue,
            Some(_) => format!("run {run} was handed in, and the database has another plan of it"),
            None => format!("run {run} was handed in, and the database has no such run"),
        };
        found.push(Ahead { place: place.clone(), what, is_release: false });
    }
    for (site, (before, place)) in &witness.revoked {
        if known.revoked.get(site).is_none_or(|known| known < before) {
            let what = format!("site {site} was revoked, and the database does not know of it");
            found.push(Ahead { place: place.clone(), what, is_release: false });
        }
    }
    if let Some((version, place)) = witness.version.as_ref().filter(|(version, _)| *version > known.version) {
        let what = format!(
            "it was written at version {version} of the database, which has version {}",
            known.version
        );
        found.push(Ahead { place: place.clone(), what, is_release: false });
    }
    found
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
