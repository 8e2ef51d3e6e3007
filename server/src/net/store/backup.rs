//! A copy of the state while the server goes on, and what must be booked before such a copy is worked with.
//!
//! A ledger that is older than the releases it should know of would pay for them a second time. So whoever brings an old state
//! back says how many releases may have been made since, and these are charged before anything else happens.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use privacy::ledger::{Charge, Ledger, Record, Release, ReserveError};
use protocol::RunId;

use super::blobs::Blobs;
use super::secrets::Secrets;
use super::{Needed, Store, StoreError, database, leading, transfer};
use crate::net::private;
use crate::{Booking, RunEnd};

/// How often a copy is begun anew when a server on another machine has removed a file meanwhile.
const ATTEMPTS: u32 = 10;
/// The run in whose name releases are charged that no state knows of.
const UNKNOWN_RUN: &str = "after-backup";

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
    /// A ledger cannot be read.
    #[error("the ledger of `{population}`: {message}")]
    Ledger {
        /// Whose.
        population: String,
        /// What is wrong.
        message: String,
    },
}

/// What was charged for releases that a state does not know of.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Whose ledger.
    pub population: String,
    /// Releases that it could pay for, at most as many as were named.
    pub charged: u64,
    /// Epsilon of everything booked now.
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
    /// Copies the state into the empty folder `to`, its rows into SQLite; a server may be working with it. Every file is checked on
    /// the way.
    ///
    /// # Errors
    /// [`BackupError`] names the file that is damaged or cannot be written.
    pub async fn back_up(&self, to: &Path) -> Result<(), BackupError> {
        let database = to.join("state.sqlite");
        let failed = |source| StoreError::File { path: to.to_owned(), source };
        private::folder(to).map_err(failed)?;
        let blobs = Blobs::open(leading::folder(to, "blobs")?, None).map_err(StoreError::from)?;
        let secrets = Secrets::open(to.join("secrets"), None, None)?;
        let _under_way = self.copying.begin().await?;
        for _ in 0..ATTEMPTS {
            self.copy_rows(to).await?;
            let copy = Self::look(to).await?;
            let needed = copy.needed().await;
            copy.close().await;
            if self.copy_files(&needed?, &blobs, &secrets).await? {
                return Ok(());
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

    /// Whether all of them were still there.
    async fn copy_files(
        &self,
        needed: &Needed,
        blobs: &Blobs,
        secrets: &Secrets,
    ) -> Result<bool, StoreError> {
        for hash in &needed.blobs {
            if !self.blobs.copy(hash, blobs).await? {
                return Ok(false);
            }
        }
        for name in &needed.secrets {
            if !self.secrets.copy(name, secrets).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Charges every population for `releases` releases that were made after this state was copied, each at the least noise
    /// that its ledger has seen. Runs that hold correlated noise end: their next release would reuse noise that the lost ones
    /// have used.
    ///
    /// # Errors
    /// [`BackupError`] when a ledger is damaged or cannot be written.
    pub async fn charge_lost(&self, releases: u64) -> Result<Vec<Lost>, BackupError> {
        let mut lost = Vec::new();
        for population in self.populations().await? {
            let links = self.ledger(&population).await?;
            let fault = |message: String| BackupError::Ledger { population: population.clone(), message };
            let mut ledger = Ledger::replay(&links).map_err(|error| fault(error.to_string()))?;
            let mut booking = Booking { population: population.clone(), links: ledger.settle() };
            let records = links.iter().filter_map(|link| link.read().ok());
            let dearest = records.filter_map(charge).reduce(dearer);
            let charged = match dearest {
                Some(charge) => charge_each(&mut ledger, &charge, releases, &mut booking).map_err(fault)?,
                None => 0,
            };
            self.book(&booking).await?;
            let epsilon = ledger.epsilon().map_err(|error| fault(error.to_string()))?.best();
            let epsilon_max = ledger.terms().epsilon_max;
            lost.push(Lost { population, charged, epsilon, epsilon_max });
        }
        if releases > 0 {
            self.end_correlated().await?;
        }
        Ok(lost)
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

/// What a record charges.
fn charge(record: Record) -> Option<Charge> {
    match record {
        Record::Reserved { charge, .. } | Record::Spent { charge, .. } => Some(charge),
        _ => None,
    }
}

fn dearer(one: Charge, other: Charge) -> Charge {
    if other.mechanism.noise_multiplier() < one.mechanism.noise_multiplier() { other } else { one }
}

/// Charges one release after the other, as far as the budget reaches.
fn charge_each(
    ledger: &mut Ledger,
    charge: &Charge,
    releases: u64,
    booking: &mut Booking,
) -> Result<u64, String> {
    for charged in 0..releases {
        let round = u32::try_from(charged + 1).unwrap_or(u32::MAX);
        match ledger.reserve(UNKNOWN_RUN, round, charge, 1) {
            Ok((permit, reserved)) => {
                let spent = ledger.spend(permit, Release::default());
                let (_, spent) = spent.map_err(|error| error.to_string())?;
                booking.links.extend([reserved, spent]);
            }
            Err(ReserveError::Exhausted { link, .. }) => {
                booking.links.push(*link);
                return Ok(charged);
            }
            Err(other) => return Err(other.to_string()),
        }
    }
    Ok(releases)
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
