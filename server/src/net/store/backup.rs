//! A copy of the state while the server goes on, and what must be reserved before such a copy is worked with.
//!
//! A copy holds the database as it is at one moment, the files that it names, and the audit logs up to that moment; it counts once its books
//! were compared. A ledger that is older than the releases it should know of would pay for them a second time. So whoever brings an
//! old state back says how many releases may have been made since, and these are charged before anything else happens.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use privacy::chain::Link;
use privacy::chain::segments::{Segment, SegmentFault, closed_in, is_opening, logs_in, survey};
use privacy::ledger::Ledger;
use protocol::RunId;

use super::audit::AuditError;
use super::audit::witness::{Witness, known_to};
use super::blobs::Blobs;
use super::compare::Agreement;
use super::founding::{book_unknown, charges_in};
use super::private;
use super::secrets::Secrets;
use super::{Needed, Store, StoreError, database, leading, transfer};
use crate::{LedgerReservation, RunEnd};

/// How often a copy is begun anew when a server on another machine has removed files meanwhile.
const ATTEMPTS: u32 = 10;

/// Why a state is not copied, or not brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The state cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Files went while they were copied, again and again.
    #[error(
        "the server released models faster than they could be copied, {0} times; pause its runs and try again"
    )]
    Busy(u32),
    /// A file is not there.
    #[error(
        "{0} is missing, which the database names; put it back from an earlier backup. `consortia audit verify FOLDER` names all that is missing or damaged"
    )]
    Missing(String),
    /// The state was brought into another folder before.
    #[error(
        "this state was brought into {0} before, and only one folder may go on from it; remove that folder first if no server has started in it"
    )]
    HandedOver(String),
    /// Nobody has said how many releases may be missing.
    #[error(
        "the state does not know of releases that were made after it, nor of privacy budgets that were first spent from then; say how many \
         releases there may have been, at most, with --lost-releases N, and they are charged. The old server's audit.jsonl and the sites' \
         ledgers tell; 0 only if no server has worked since"
    )]
    LostUnknown,
    /// The audit log knows of more releases than are to be charged.
    #[error(
        "the audit log beside the database tells of {known} releases that the database does not know, and --lost-releases is {given}; say \
         {known} or more"
    )]
    TooFew {
        /// In the log.
        known: u64,
        /// What was said.
        given: u64,
    },
    /// The database ends in a part of the audit log that is not here.
    #[error(
        "{}: the database ends before the first record of this file, and the segment of the audit log before it is not here; put the closed \
         segments back from their archive and try again", .0.display()
    )]
    Archived(PathBuf),
    /// A ledger cannot be read.
    #[error("the ledger of `{population}`: {message}")]
    Ledger {
        /// Whose.
        population: String,
        /// What is wrong.
        message: String,
    },
}

/// What a state that was brought back owes for releases that it does not know of.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BroughtBack {
    /// What each population was charged, by name.
    pub charged: Vec<Lost>,
    /// Releases that a population is charged before its first run where the state knows no charge of it: one that was founded after the
    /// backup, or that had released nothing yet.
    pub owed: u64,
}

/// What was charged for releases that a state does not know of.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Whose ledger.
    pub population: String,
    /// Releases that were charged, whether or not the budget can pay for them; 0 where its first run will be charged
    /// ([`BroughtBack::owed`]).
    pub charged: u64,
    /// Epsilon of everything charged now.
    pub epsilon: f64,
    /// The budget.
    pub epsilon_max: f64,
}

/// The file through which a copy and the server of one state folder see each other: a server removes nothing while a copy is being
/// made, so that whatever the copied rows name is there. The system forgets it with the program that held it.
pub(super) struct Copying(PathBuf);

impl Copying {
    pub(super) fn of(dir: &Path) -> Self {
        Self(dir.join("copying"))
    }

    fn open(&self) -> Result<File, StoreError> {
        let opened = private::options().create(true).truncate(false).write(true).open(&self.0);
        opened.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError::File { path: self.0.clone(), source }
    }

    /// A copy is under way while what is returned lives.
    async fn begin(&self) -> Result<File, StoreError> {
        let file = self.open()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(TryLockError::Error(source)) => return Err(self.failed(source)),
            }
        }
    }

    /// Lets no copy begin while what is returned lives; `None` when one is under way.
    pub(super) fn is_over(&self) -> Result<Option<File>, StoreError> {
        let file = self.open()?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(self.failed(source)),
        }
    }
}

impl Store {
    /// Copies the state in the folder `from` into the empty folder `to`, its rows into SQLite, with the audit logs as far as the rows know
    /// them; a server may be working with it. Every file is checked on the way, and the books of the copy are compared. The copy is marked, so
    /// that no server works with it before [`Store::bring_back`].
    ///
    /// # Errors
    /// [`BackupError`] names what is damaged, contradicts something else or cannot be written.
    pub async fn back_up(&self, from: &Path, to: &Path) -> Result<Agreement, BackupError> {
        self.check_integrity().await.map_err(|error| self.named(from, error))?;
        self.copy_state(to).await?;
        let copy = Self::look(to).await?;
        let agreed = async {
            let version = copy.read_version().await?;
            for log in logs_in(from).map_err(|source| failed(from, source))? {
                copy_log(&log, to, version)?;
            }
            Ok::<_, BackupError>(copy.check_books(to).await?)
        };
        let agreed = agreed.await;
        copy.close().await;
        database::mark_backup(to).await?;
        agreed
    }

    async fn copy_state(&self, to: &Path) -> Result<(), BackupError> {
        let database = to.join("state.sqlite");
        let failed = |source| StoreError::File { path: to.to_owned(), source };
        private::folder(to).map_err(failed)?;
        let blobs = Blobs::open(leading::folder(to, "blobs")?, None).map_err(StoreError::from)?;
        let secrets = Secrets::open(to.join("secrets"), None, None)?;
        let _under_way = self.copying.begin().await?;
        let mut missed = None;
        for _ in 0..ATTEMPTS {
            self.copy_rows(to).await?;
            let copy = Self::look(to).await?;
            let needed = copy.needed().await;
            copy.close().await;
            match self.copy_files(&needed?, &blobs, &secrets).await? {
                None => return Ok(()),
                // Rows that were copied after it was missed name it still: nobody has removed it in order.
                Some(missing) if missed.as_ref() == Some(&missing) => {
                    return Err(BackupError::Missing(missing));
                }
                Some(missing) => missed = Some(missing),
            }
            std::fs::remove_file(&database).map_err(failed)?;
        }
        Err(BackupError::Busy(ATTEMPTS))
    }

    /// Copies the rows as they are at one moment, into SQLite wherever they are here.
    async fn copy_rows(&self, to: &Path) -> Result<(), StoreError> {
        if database::is_postgres(&*self.pool.acquire().await?) {
            return transfer::copy_out(&self.pool, to).await;
        }
        let name = to.join("state.sqlite");
        sqlx::query("VACUUM INTO $1").bind(&*name.to_string_lossy()).execute(&self.pool).await?;
        Ok(())
    }

    /// Which of them is not there, if one is not.
    async fn copy_files(
        &self,
        needed: &Needed,
        blobs: &Blobs,
        secrets: &Secrets,
    ) -> Result<Option<String>, StoreError> {
        for hash in &needed.blobs {
            let copied = match needed.sealed.get(hash) {
                // Paid for, and not published when the rows were copied.
                Some(sealed) if !self.blobs.has(hash).await? => {
                    self.blobs.publish(hash, sealed, blobs).await?
                }
                _ => self.blobs.copy(hash, blobs).await?,
            };
            if !copied {
                return Ok(Some(self.blobs.show(hash)));
            }
        }
        for known in &needed.secrets {
            if !self.secrets.copy(known, secrets).await? {
                return Ok(Some(self.secrets.show(known)));
            }
        }
        Ok(None)
    }

    /// Writes into the state of a stopped server in `dir` that the folder `to` goes on from it, so that none starts here any more.
    ///
    /// # Errors
    /// [`BackupError::HandedOver`] where another folder that is there does; [`BackupError::Store`] when it cannot be written.
    pub fn hand_over(dir: &Path, to: &Path) -> Result<(), BackupError> {
        let mark = dir.join(leading::HANDED_OVER);
        let to = std::path::absolute(to).map_err(|source| failed(to, source))?;
        if let Ok(before) = std::fs::read_to_string(&mark)
            && before.trim_end() != to.to_string_lossy()
            && Path::new(before.trim_end()).exists()
        {
            return Err(BackupError::HandedOver(before.trim_end().to_owned()));
        }
        Ok(write_private(&mark, format!("{}\n", to.display()).as_bytes())?)
    }

    /// Makes a state of a copy in `dir` that a server may go on with: whatever the audit logs know and the rows do not is taken out of the
    /// logs, into files beside them; every population is charged for `lost` releases, those of which the state knows no charge before
    /// their first run, and runs that hold correlated noise end if any was lost: their next release would reuse noise. Then the books
    /// must agree.
    ///
    /// # Errors
    /// [`BackupError::LostUnknown`] where `lost` is not given, [`BackupError::TooFew`] where the logs know better; what is damaged stays
    /// so.
    pub async fn bring_back(dir: &Path, lost: Option<u64>) -> Result<BroughtBack, BackupError> {
        // Also where no ledger is kept: the first may have been founded since.
        let given = lost.ok_or(BackupError::LostUnknown)?;
        let store = Self::open_unchecked(dir).await?;
        let charged = async {
            store.check_integrity().await.map_err(|error| store.named(dir, error))?;
            let known = store.cut_logs(dir).await?;
            if known > given {
                return Err(BackupError::TooFew { known, given });
            }
            let charged = store.charge_lost(given).await?;
            store.forget_mark().await?;
            Ok(BroughtBack { charged, owed: store.owed().await? })
        };
        let charged = charged.await;
        store.close().await;
        drop(store);
        let charged = charged?;
        Self::open(dir).await?.close().await;
        Ok(charged)
    }

    /// Ends every audit log where the rows end, and says how many private releases were in what was taken away.
    async fn cut_logs(&self, dir: &Path) -> Result<u64, BackupError> {
        let witness = Witness::read(dir, &[]).map_err(StoreError::from)?;
        let (ahead, version) = (self.ahead(&witness).await?, self.read_version().await?);
        for log in logs_in(dir).map_err(|source| failed(dir, source))? {
            let known = KnownPart::of(&log, |path, segment| {
                let here = ahead.iter().filter(|one| one.place.log == path).map(|one| one.place.line - 1);
                here.min().unwrap_or(usize::MAX).min(known_to(version, &segment.lines.links))
            })?;
            known.replace(&log)?;
        }
        self.forget_heads().await?;
        Ok(ahead.iter().filter(|one| one.is_release).count() as u64)
    }

    /// Everything is charged: it is a backup no more.
    async fn forget_mark(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM backup_mark").execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// The logs are what they are from here on.
    async fn forget_heads(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM audit_heads").execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Charges every population for `releases` releases that were made after this state was copied, each by that charge of its ledger
    /// which raises epsilon most. Runs that hold correlated noise end: their next release would reuse noise that the lost ones have used.
    ///
    /// # Errors
    /// [`BackupError`] when a ledger is damaged or cannot be written.
    pub(crate) async fn charge_lost(&self, releases: u64) -> Result<Vec<Lost>, BackupError> {
        let mut lost = Vec::new();
        for population in self.populations().await? {
            let links = self.ledger(&population).await?;
            let fault = |message: String| BackupError::Ledger { population: population.clone(), message };
            let mut ledger = Ledger::replay(&links).map_err(|error| fault(error.to_string()))?;
            let mut reservation =
                LedgerReservation { population: population.clone(), links: ledger.settle() };
            let candidates = charges_in(&links);
            let made = book_unknown(&mut ledger, &candidates, releases).map_err(fault)?;
            let charged = if made.is_empty() { 0 } else { releases };
            reservation.links.extend(made);
            self.append_to_ledger(&reservation).await?;
            let epsilon = ledger.epsilon().map_err(|error| fault(error.to_string()))?.best();
            let epsilon_max = ledger.terms().epsilon_max;
            lost.push(Lost { population, charged, epsilon, epsilon_max });
        }
        if releases > 0 {
            self.end_correlated().await?;
            self.expect_lost(releases).await?;
        }
        Ok(lost)
    }

    /// Writes down that models of so many releases may lie in the storage of which this state does not know, and that so many more are owed
    /// by populations of which it does not know.
    async fn expect_lost(&self, releases: u64) -> Result<(), StoreError> {
        let owed = self.owed().await?.saturating_add(releases);
        let whole = |releases: u64| i64::try_from(releases).unwrap_or(i64::MAX);
        let mut transaction = self.begin().await?;
        let sql = "INSERT INTO restored (one, lost_releases, unknown_models) VALUES (1, $1, $2) \
                   ON CONFLICT (one) DO UPDATE SET lost_releases = $1, unknown_models = restored.unknown_models + $2";
        let sql = sqlx::query(sql).bind(whole(owed)).bind(whole(releases.min(u64::from(u32::MAX))));
        sql.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    async fn end_correlated(&self) -> Result<(), StoreError> {
        let sql = "SELECT run FROM checkpoints WHERE ended IS NULL AND noise IS NOT NULL";
        for row in sqlx::query(sql).fetch_all(&self.pool).await? {
            let run: RunId = super::rows::run_id(&row)?;
            let why = "it was brought back from a backup that is older than its last release, and its noise is correlated: \
                       submit its plan again";
            self.end(run, &RunEnd::Failed(why.to_owned())).await?;
        }
        Ok(())
    }
}

/// The part of an audit log that a database knows.
#[derive(Default)]
struct KnownPart {
    /// Segments before the last of them.
    whole: Vec<PathBuf>,
    /// The last of them: its number, its file and its text.
    last: Option<(u64, PathBuf, Vec<u8>)>,
    /// What stands behind.
    rest: Vec<u8>,
}

impl KnownPart {
    /// Reads a log of which `keep` says how many lines of a segment are known. Behind the first line that is not, none is.
    fn of(log: &Path, keep: impl Fn(&Path, &Segment) -> usize) -> Result<Self, BackupError> {
        let (mut known, mut is_over, mut gap) = (Self::default(), false, None);
        let found = survey(log, &[], &mut |path, segment| {
            let links = &segment.lines.links;
            let mut kept = if is_over { 0 } else { keep(path, segment).min(links.len()) };
            // An opening is whole or not there.
            let opening =
                if segment.number > 1 { links.iter().take_while(|link| is_opening(link)).count() } else { 0 };
            if kept < opening {
                kept = 0;
            }
            let before = known.last.as_ref().map_or(0, |(number, ..)| *number);
            if !is_over && kept == 0 && before + 1 < segment.number {
                gap = Some(path.to_owned());
            }
            known.rest.extend(text_of(&links[kept..]));
            if kept > 0 || (before == 0 && !is_over) {
                let before = known.last.replace((segment.number, path.to_owned(), text_of(&links[..kept])));
                known.whole.extend(before.map(|(_, path, _)| path));
            }
            is_over |= kept < links.len();
        });
        for fault in found.map_err(of_log)?.faults {
            // The end of the log is missing: it goes on from what is left.
            if !matches!(fault, SegmentFault::NoCurrent { .. }) {
                return Err(of_log(fault).into());
            }
        }
        gap.map_or(Ok(known), |path| Err(BackupError::Archived(path)))
    }

    /// Writes it into the folder `to`, its last segment as the current one.
    fn copy(&self, log: &Path, to: &Path) -> Result<(), StoreError> {
        for segment in &self.whole {
            let target = to.join(segment.file_name().unwrap_or_default());
            std::fs::copy(segment, &target).map_err(|source| failed(segment, source))?;
            File::open(&target).and_then(|file| file.sync_all()).map_err(|source| failed(&target, source))?;
        }
        let text = self.last.as_ref().map_or(&[][..], |(.., text)| text);
        write_private(&to.join(log.file_name().unwrap_or_default()), text)
    }

    /// Ends the log there, and keeps the rest beside it.
    fn replace(&self, log: &Path) -> Result<(), StoreError> {
        let Some((number, path, text)) = &self.last else { return Ok(()) };
        if self.rest.is_empty() && path == log {
            return Ok(());
        }
        if !self.rest.is_empty() {
            write_aside(log, &self.rest)?;
        }
        write_private(log, text)?;
        let dir = log.parent().unwrap_or_else(|| Path::new("."));
        for closed in closed_in(dir, log).map_err(|source| failed(dir, source))? {
            if closed.number >= *number {
                std::fs::remove_file(&closed.path).map_err(|source| failed(&closed.path, source))?;
            }
        }
        Ok(())
    }
}

fn of_log(fault: SegmentFault) -> StoreError {
    AuditError::from(fault).into()
}

fn text_of(links: &[Link]) -> Vec<u8> {
    let mut text = Vec::new();
    for link in links {
        text.extend(serde_json::to_vec(link).expect("a link has a JSON form"));
        text.push(b'\n');
    }
    text
}

/// Copies as much of an audit log as a database of this version knows.
fn copy_log(log: &Path, to: &Path, version: i64) -> Result<(), BackupError> {
    let known = KnownPart::of(log, |_, segment| known_to(version, &segment.lines.links))?;
    Ok(known.copy(log, to)?)
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut options = File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| failed(path, source))
}

/// Keeps what is taken out of an audit log in a file beside it that is new: an earlier restore may have left one.
fn write_aside(log: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut aside = log.with_extension("jsonl.forgotten");
    let mut number = 1;
    while aside.symlink_metadata().is_ok() {
        number += 1;
        aside = log.with_extension(format!("jsonl.forgotten-{number}"));
    }
    write_private(&aside, bytes)
}

fn failed(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
