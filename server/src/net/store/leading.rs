//! Opening the state: to write, which one server does at a time, and to look at it, which everybody may.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::AnyPool;
use tokio::time::timeout;

use super::audit::AuditError;
use super::backup::Copying;
use super::blobs::{BlobError, Blobs};
use super::database::{self, SCHEMA};
use super::lease::Fence;
use super::ledgers::Unwritten;
use super::models::{Kept, Opinions};
use super::objects::Objects;
use super::outage::Reminder;
use super::private;
use super::secrets::Secrets;
use super::sweeping::Sweep;
use super::transaction::Turns;
use super::{Database, Postgres, Store, StoreError, compare};

/// How long a database has to say whether there is another leader, when there is a reason to stop anyhow.
const SECOND_LOOK: Duration = Duration::from_secs(5);
/// How long giving the lease back may take.
const RELEASE_MAX: Duration = Duration::from_secs(1);
/// The step of the schema from which on nothing readable lies in the storage before it is paid for.
const PUBLISHING: i64 = 8;
/// What becomes of SQLite's file when its rows move.
pub(super) const MIGRATED: &str = "state.sqlite.migrated";
/// What lies beside it while they do.
pub(super) const MIGRATING: &str = "state.sqlite.moving";
/// What lies in a state that was brought into another folder, with that folder's name.
pub const HANDED_OVER: &str = "handed-over";

impl Store {
    /// Opens the state in `dir` with its rows in SQLite, making it if need be.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another server has it open, [`StoreError::Moved`] when its rows are somewhere else.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, None).await
    }

    /// The same without a look at what the books say of each other, for whoever makes them agree.
    pub(super) async fn open_unchecked(dir: &Path) -> Result<Self, StoreError> {
        let store = Self::own(dir, None).await?;
        let migrated = store.migrate().await;
        if migrated.is_err() {
            store.close().await;
        }
        match migrated {
            Ok(_) => Ok(store),
            Err(error) => Err(store.named(dir, error)),
        }
    }

    /// The state of a stopped server that is to be moved, also where an earlier attempt was cut off.
    pub(super) async fn open_to_move(dir: &Path) -> Result<Self, StoreError> {
        Self::own(dir, None).await?.begun(dir, &Database::Sqlite, None).await
    }

    async fn open_with(dir: &Path, objects: Option<&Objects>) -> Result<Self, StoreError> {
        let moving = dir.join(MIGRATING);
        if moving.exists() && dir.join("state.sqlite").exists() {
            return Err(StoreError::Moving(moving));
        }
        let store = Self::own(dir, objects).await?;
        store.begun(dir, &Database::Sqlite, objects).await
    }

    /// The state in SQLite, which is this program's alone from here on.
    async fn own(dir: &Path, objects: Option<&Objects>) -> Result<Self, StoreError> {
        let moved = dir.join(MIGRATED);
        if moved.exists() && !dir.join("state.sqlite").exists() {
            return Err(StoreError::Moved(moved));
        }
        let lock = lock(dir, &Database::Sqlite)?;
        if !dir.join("state.sqlite").exists() {
            compare::miss_database(dir)?;
        }
        let pool = database::sqlite(dir, true).await?;
        Self::over(dir, pool, None, lock, objects)
    }

    /// Opens the state with its rows in `database`, making it if need be. In PostgreSQL this takes the lease: it waits for as long
    /// as another server holds it, and for a database that does not answer. Give the wait up by dropping the future.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another server of this name runs on this machine; [`StoreError::Database`] when the
    /// database refuses this server.
    pub async fn lead(dir: &Path, database: &Database) -> Result<Self, StoreError> {
        Self::lead_with(dir, database, None).await
    }

    /// As [`Store::lead`], with models and optimizers' states in object storage instead of the state folder. What is in the folder and
    /// not yet there is moved there first.
    ///
    /// # Errors
    /// As [`Store::lead`]; [`StoreError::Elsewhere`] when nothing that the rows name is there.
    pub async fn lead_with(
        dir: &Path,
        database: &Database,
        objects: Option<&Objects>,
    ) -> Result<Self, StoreError> {
        let Database::Postgres(postgres) = database else { return Self::open_with(dir, objects).await };
        let lock = lock(dir, database)?;
        let path = dir.join("state.sqlite");
        if path.exists() {
            return Err(StoreError::TwoStates { path, database: postgres.to_string() });
        }
        let (mut known, mut reminder) = (None, Reminder::default());
        loop {
            match attempt(&mut known, postgres).await {
                Ok(Some((pool, fence))) => {
                    let store = Self::over(dir, pool, Some(fence), lock, objects)?;
                    return store.begun(dir, database, objects).await;
                }
                Ok(None) => reminder = Reminder::default(),
                Err(error) if error.passes() => {
                    known = None;
                    reminder.tell(&format!("{postgres} does not answer as it should"), &error);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(postgres.lease() / 3).await;
        }
    }

    /// The state whose rows are in `pool`: nobody else writes from here on.
    fn over(
        dir: &Path,
        pool: AnyPool,
        fence: Option<Fence>,
        lock: File,
        objects: Option<&Objects>,
    ) -> Result<Self, StoreError> {
        let epoch = fence.map(|fence| fence.epoch());
        let below = |name| objects.map(|objects| objects.below(name));
        let tensors = below("models").map_or_else(|| folder(dir, "blobs"), Ok)?;
        let blobs = Blobs::open(tensors, epoch)?;
        let secrets = Secrets::open(dir.join("secrets"), below("noise"), epoch)?;
        Ok(Self {
            pool,
            blobs,
            secrets,
            last: Mutex::default(),
            keep_last: None,
            opinions: Opinions::default(),
            kept: Kept::default(),
            turns: Turns::default(),
            sweep: Sweep::default(),
            noise_named: Arc::default(),
            copying: Copying::of(dir),
            cross: Arc::default(),
            unlogged: Mutex::default(),
            unwritten: Unwritten::default(),
            fence,
            _lock: Some(lock),
        })
    }

    async fn begun(
        self,
        dir: &Path,
        database: &Database,
        objects: Option<&Objects>,
    ) -> Result<Self, StoreError> {
        let begun = async {
            if matches!(database, Database::Sqlite) {
                self.refuse_copy(dir).await?;
            }
            self.tidy(dir, &database.audit_file(dir), objects.is_some()).await
        };
        let begun = begun.await;
        if begun.is_err() {
            self.close().await;
        }
        match begun {
            Ok(()) => Ok(self),
            Err(error) => Err(self.named(dir, error)),
        }
    }

    /// Refuses a state that others go on from, or that must be charged first.
    async fn refuse_copy(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(HANDED_OVER);
        if path.exists() {
            let to = std::fs::read_to_string(&path);
            let to = to.map_err(|source| StoreError::File { path: path.clone(), source })?;
            return Err(StoreError::HandedOver { path, to: to.trim_end().to_owned() });
        }
        // The table is there from its step of the schema on.
        let table = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'backup_mark'";
        if sqlx::query(table).fetch_optional(&self.pool).await?.is_none() {
            return Ok(());
        }
        match sqlx::query("SELECT one FROM backup_mark").fetch_optional(&self.pool).await? {
            Some(_) => Err(StoreError::Backup(dir.to_owned())),
            None => Ok(()),
        }
    }

    /// Brings the schema up to date, and says at which step it was.
    async fn migrate(&self) -> Result<i64, StoreError> {
        let mut transaction = self.begin_unversioned().await?;
        let before = database::version(&mut transaction).await?;
        database::migrate(&mut transaction).await?;
        transaction.commit().await?;
        Ok(before)
    }

    /// Brings the schema up to date, compares the books, moves what the state folder holds into object storage where there is one,
    /// publishes what a crash left unpublished, and removes what it left behind.
    async fn tidy(&self, dir: &Path, own_log: &Path, moved: bool) -> Result<(), StoreError> {
        let mut transaction = self.begin_unversioned().await?;
        if database::version(&mut transaction).await? == 0 {
            compare::miss_database(dir)?;
        }
        drop(transaction);
        let before = self.migrate().await?;
        // Before anything is kept or removed: in a state that was turned back every file is evidence.
        self.compare(dir, own_log).await?;
        let needed = self.needed().await?;
        let mut here = self.blobs.list().await?;
        let old = match moved && dir.join("blobs").exists() {
            true => Some(Blobs::open(folder(dir, "blobs")?, None)?),
            false => None,
        };
        if let Some(old) = &old {
            for name in old.list().await? {
                if needed.blobs.contains(&name) && here.insert(name.clone()) {
                    old.copy(&name, &self.blobs).await?;
                    tracing::info!("{name} was moved into {}", self.blobs.place());
                }
                old.remove(&name).await?;
            }
        }
        let published: BTreeSet<String> =
            needed.blobs.iter().filter(|name| !needed.sealed.contains_key(*name)).cloned().collect();
        let shared = moved || self.fence.is_some();
        if shared && !published.is_empty() && published.is_disjoint(&here) {
            let (count, place) = (published.len(), self.blobs.place().to_owned());
            return Err(StoreError::Elsewhere { count, place });
        }
        self.publish_rest(old.as_ref()).await?;
        if let Some(old) = &old {
            old.collect(&BTreeSet::new(), &BTreeSet::new()).await?;
        }
        // Releases before this one left files of models behind that were never paid for.
        if before >= PUBLISHING {
            self.check_models(&self.known().await?, &here).await?;
        }
        // What a crash left behind unreferenced was never released: it goes before anything else happens.
        self.collect().await?;
        self.forget_unknown_models().await
    }

    /// The files of what a backup had forgotten are gone. What was charged is not forgotten: other populations may owe it still.
    async fn forget_unknown_models(&self) -> Result<(), StoreError> {
        let expected = "SELECT one FROM restored WHERE unknown_models > 0";
        if sqlx::query(expected).fetch_optional(&self.pool).await?.is_none() {
            return Ok(());
        }
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE restored SET unknown_models = 0").execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether `dir` holds rows of a server in SQLite: a file that is missing, empty, or some other program's database does not.
    ///
    /// # Errors
    /// [`StoreError`] for a file that cannot be read as a database.
    pub async fn is_kept_in(dir: &Path) -> Result<bool, StoreError> {
        if !dir.join("state.sqlite").exists() {
            return Ok(false);
        }
        let pool = database::sqlite(dir, false).await?;
        let found = database::has_taken_a_step(&mut pool.begin().await?).await;
        pool.close().await;
        found
    }

    /// Looks into the state in `dir` with its rows in SQLite, also while a server uses it. Nothing can be written.
    ///
    /// # Errors
    /// [`StoreError`] when there is no state, or one of another release.
    pub async fn look(dir: &Path) -> Result<Self, StoreError> {
        Self::look_into(dir, &Database::Sqlite).await
    }

    /// Looks into the state with its rows in `database`, also while servers use it. Nothing can be written.
    ///
    /// # Errors
    /// [`StoreError`] when there is no state, or one of another release.
    pub async fn look_into(dir: &Path, database: &Database) -> Result<Self, StoreError> {
        Self::look_with(dir, database, None).await
    }

    /// As [`Store::look_into`], with models and optimizers' states in object storage.
    ///
    /// # Errors
    /// As [`Store::look_into`].
    pub async fn look_with(
        dir: &Path,
        database: &Database,
        objects: Option<&Objects>,
    ) -> Result<Self, StoreError> {
        let pool = match database {
            Database::Sqlite => {
                let path = dir.join("state.sqlite");
                if !path.exists() {
                    return Err(StoreError::Empty(path.display().to_string()));
                }
                database::sqlite(dir, false).await?
            }
            Database::Postgres(postgres) => postgres.look().await?,
        };
        let found = async { database::version(&mut pool.begin().await?).await };
        let found = found.await.map_err(|error| match database {
            Database::Sqlite => database::of_sqlite(dir, error),
            Database::Postgres(_) => error,
        })?;
        match found.cmp(&SCHEMA) {
            Ordering::Less => return Err(StoreError::Older { found, known: SCHEMA }),
            Ordering::Greater => return Err(StoreError::Newer { found, known: SCHEMA }),
            Ordering::Equal => {}
        }
        let below = |name| objects.map(|objects| objects.below(name));
        let blobs = Blobs::look(below("models").map_or_else(|| folder(dir, "blobs"), Ok)?);
        let secrets = Secrets::look(dir.join("secrets"), below("noise"));
        Ok(Self {
            pool,
            blobs,
            secrets,
            last: Mutex::default(),
            keep_last: None,
            opinions: Opinions::default(),
            kept: Kept::default(),
            turns: Turns::default(),
            sweep: Sweep::default(),
            noise_named: Arc::default(),
            copying: Copying::of(dir),
            cross: Arc::default(),
            unlogged: Mutex::default(),
            unwritten: Unwritten::default(),
            fence: None,
            _lock: None,
        })
    }

    /// What the database says, with its file's name where it has one.
    pub(super) fn named(&self, dir: &Path, error: StoreError) -> StoreError {
        let is_sqlite = self.pool.connect_options().database_url.scheme() == "sqlite";
        if is_sqlite { database::of_sqlite(dir, error) } else { error }
    }

    /// How often the lease was taken up to now, where there is one.
    pub fn epoch(&self) -> Option<i64> {
        self.fence.map(|fence| fence.epoch())
    }

    /// How long the lease is good without being renewed, where there is one.
    pub(crate) fn lease_life(&self) -> Option<Duration> {
        self.fence.map(|fence| fence.life())
    }

    /// Makes the lease good for another life.
    pub(crate) async fn renew(&self) -> Result<(), StoreError> {
        match &self.fence {
            Some(fence) => fence.renew(&self.pool).await,
            None => Ok(()),
        }
    }

    /// Gives the lease back: the next server need not wait for its end.
    pub(crate) async fn release(&self) {
        let Some(fence) = &self.fence else { return };
        // Without it the others wait a little longer.
        let _ = timeout(fence.life().min(RELEASE_MAX), fence.release(&self.pool)).await;
    }

    /// Why the engine could not go on, given what it met: a file that is gone, a record that has no place and a connection that the
    /// database has ended mean no damage where another server has taken over.
    pub(crate) async fn verdict(&self, met: StoreError) -> StoreError {
        if self.fence.is_none()
            || matches!(met, StoreError::Deposed { .. } | StoreError::LeaseLost { .. } | StoreError::Stopping)
        {
            return met;
        }
        match timeout(SECOND_LOOK, self.begin()).await {
            Ok(Err(deposed @ StoreError::Deposed { .. })) => {
                tracing::error!("{deposed}");
                deposed
            }
            _ => met,
        }
    }
}

impl StoreError {
    /// Whether it needs nobody to change a file: another server has taken over, the database does not answer or takes no writes, another
    /// program holds a lock, a disk is full.
    pub fn passes(&self) -> bool {
        match self {
            _ if self.may_be_tried_again() => true,
            Self::Deposed { .. } | Self::LeaseLost { .. } | Self::Stopping => true,
            Self::Audit(audit) => matches!(**audit, AuditError::Sync { .. }),
            // Another server may reach the storage, and this one later.
            Self::Blob(BlobError::Storage { remote, .. }) => *remote,
            // A certificate that does not fit will not fit later: rustls calls it invalid data.
            Self::Database(sqlx::Error::Io(error)) => error.kind() != std::io::ErrorKind::InvalidData,
            Self::Database(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => true,
            // Class 08: the connection; 57: somebody stopped the database; 25P03: a transaction stood still for too long; 53: it is
            // out of something; 40: it could not serialise; 25006: it takes no writes, as a standby does.
            Self::Database(sqlx::Error::Database(refused)) => refused.code().is_some_and(|code| {
                let is_class = |class: &&str| code.len() == 5 && code.starts_with(*class);
                ["08", "57", "53", "40"].iter().any(is_class) || ["25P03", "25006"].contains(&&*code)
            }),
            _ => false,
        }
    }
}

/// A folder of the state as storage.
pub(super) fn folder(dir: &Path, name: &str) -> Result<Objects, StoreError> {
    let path: PathBuf = dir.join(name);
    Objects::folder(path.clone())
        .map_err(|source| StoreError::File { path, source: std::io::Error::other(source) })
}

/// One attempt to take the lease, on connections that are kept for the next one.
async fn attempt(
    known: &mut Option<AnyPool>,
    postgres: &Postgres,
) -> Result<Option<(AnyPool, Fence)>, StoreError> {
    let pool = match known {
        Some(pool) => pool.clone(),
        None => known.insert(postgres.connect().await?).clone(),
    };
    let taken = Fence::take(&pool, postgres).await?;
    Ok(taken.map(|fence| (pool, fence)))
}

fn lock(dir: &Path, database: &Database) -> Result<File, StoreError> {
    private::folder(dir).map_err(|source| StoreError::File { path: dir.to_owned(), source })?;
    let path = database.lock_file(dir);
    let failed = |source| StoreError::File { path: path.clone(), source };
    let file = private::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
