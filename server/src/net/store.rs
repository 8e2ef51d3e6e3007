//! What a server remembers: runs, checkpoints, rounds, reports and clients in SQLite or PostgreSQL, tensors in files.
//!
//! A commit is one transaction, synced to disk before it counts; the files it refers to are on disk before it begins. A
//! crash at any instant leaves either the state before a commit or the state after it. One server owns the state at
//! a time: with SQLite a second one is refused, with PostgreSQL it holds a lease, without which no transaction writes. The store
//! never guesses: a damaged file is an error that names it.

pub(super) mod archive;
pub(super) mod audit;
mod backup;
mod blobs;
pub(crate) mod calibrated;
mod committing;
mod compare;
pub(super) mod crash;
mod database;
mod error;
pub(super) mod fault;
mod founding;
mod leading;
mod lease;
pub(super) mod lease_renewer;
mod ledger;
mod ledgers;
mod members;
pub(super) mod messages;
mod models;
mod objects;
pub(super) mod outage;
pub(super) mod paths;
pub(super) mod private;
mod publishing;
mod queue;
mod reports;
pub(crate) mod rows;
mod sealing;
mod secrets;
mod sweeping;
mod transaction;
mod transfer;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use privacy::correlation::NoiseMemory;
use protocol::wire::RunSummary;
use protocol::{ClientId, Layout, Parameters, RunId, Standardiser};
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::{Checkpoint, ClientRecord};
use backup::Copying;
pub use backup::{BackupError, BroughtBack, Lost};
pub use blobs::BlobError;
use blobs::{Blobs, Piece, Sealed};
pub(crate) use compare::Unlogged;
pub use compare::{Agreement, BooksError};
pub use database::{Database, DatabaseError, Postgres};
pub use error::StoreError;
pub(crate) use founding::Opened;
pub use leading::HANDED_OVER;
use lease::Fence;
pub(crate) use ledgers::{Showing, ShownLedger};
pub(crate) use members::{Asking, Issued, Shown, Void, nobody};
pub use models::StoredModel;
pub use objects::{Objects, ObjectsError};
pub(crate) use queue::Queued;
pub(crate) use reports::{Counts, Report};
use secrets::Secrets;
use sweeping::{Needed, Sweep};
use transaction::Turns;
pub(crate) use transaction::{AuditHead, CrossCheck};
pub use transfer::{TransferError, Transferred};

/// Runs and rounds that a summary tells at most.
const RUNS_MAX: i64 = 200;
pub(crate) const HISTORY_MAX: i64 = 1000;

/// How long connections may take to end.
const CLOSE_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// The state folder of one server.
pub struct Store {
    pool: AnyPool,
    blobs: Blobs,
    secrets: Secrets,
    /// Of each run that is being worked on.
    last: Mutex<BTreeMap<RunId, Last>>,
    keep_last: Option<u32>,
    opinions: models::Opinions,
    kept: models::Kept,
    turns: Turns,
    sweep: Sweep,
    /// Shared by commits from the moment when they write kept noise until a row names it: such a file is named by what it holds, and two
    /// runs of one seed may write the same.
    noise_named: Arc<RwLock<()>>,
    copying: Copying,
    cross: Arc<CrossCheck>,
    /// Releases of which the audit log says nothing, until the log takes them up.
    unlogged: Mutex<Vec<Unlogged>>,
    unwritten: ledgers::Unwritten,
    /// What every transaction that writes must find, where several servers share the database.
    fence: Option<Fence>,
    _lock: Option<File>,
}

/// What was written last, so that the commit of an evaluation does not write it again.
#[derive(Default)]
struct Last {
    model: Option<Written>,
    optimizer: Option<(Vec<Weak<Vec<f32>>>, String)>,
}

/// The model last written. It is not kept alive.
#[derive(Clone)]
struct Written {
    model: Weak<Parameters>,
    blob: String,
    sha256: String,
}

/// What is handed in with a new run.
#[derive(Debug)]
pub struct Submission<'a> {
    /// The new run's id.
    pub run: RunId,
    /// The plan's name.
    pub name: &'a str,
    /// Rounds planned.
    pub rounds: u32,
    /// The plan as typed.
    pub plan_toml: &'a str,
    /// Makes it a seeded run.
    pub seed: Option<u64>,
    /// The noise multiplier that was found for the plan, where it names a target epsilon instead.
    pub calibrated: Option<protocol::Positive>,
    /// Names and shapes of the model's tensors.
    pub layout: &'a Layout,
    /// Where the run begins.
    pub checkpoint: &'a Checkpoint,
}

/// What a run was begun with.
pub(crate) struct Described {
    pub(crate) plan_toml: String,
    pub(crate) seed: Option<u64>,
    pub(crate) layout: Layout,
    /// Of the statistics round.
    pub(crate) standardiser: Option<Standardiser>,
}

/// A run as it was stored.
#[derive(Debug)]
pub struct StoredRun {
    /// The plan as typed.
    pub plan_toml: String,
    /// The seed of a seeded run.
    pub seed: Option<u64>,
    /// Names and shapes of the shared tensors.
    pub layout: Layout,
    /// Where it stands.
    pub checkpoint: Checkpoint,
    /// What is known of clients.
    pub clients: BTreeMap<ClientId, ClientRecord>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.blobs)
    }
}

impl Store {
    /// Keeps the files of the last so many models of a run and of the best one; without this, of all.
    #[must_use]
    pub fn keeping(mut self, last: Option<u32>) -> Self {
        self.keep_last = last;
        self
    }

    /// Closes the database, and gives the lease back where there is one. Not longer than some seconds: a database that does not answer
    /// is left.
    pub async fn close(&self) {
        self.release().await;
        let _ = tokio::time::timeout(CLOSE_MAX, self.pool.close()).await;
    }

    /// Takes in a new run. Writes files on the calling thread.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written; the run does not exist then.
    pub async fn submit(&self, new: &Submission<'_>) -> Result<(), StoreError> {
        let tensors: Vec<_> = new.layout.shared().map(|tensor| (&tensor.name, &tensor.shape)).collect();
        let tensors = serde_json::to_string(&tensors).expect("names and numbers have a JSON form");
        let files = self.write_files(new.run, new.layout, new.checkpoint, Readable::AtOnce).await?;
        // The run may wait for long before it begins.
        self.forget_last(new.run);
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO runs (run, name, rounds, plan_toml, seed, tensors, calibrated) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .persistent(false)
        .bind(new.run.to_string())
        .bind(new.name)
        .bind(i64::from(new.rounds))
        .bind(new.plan_toml)
        .bind(new.seed.map(|seed| seed.to_string()))
        .bind(tensors)
        .bind(new.calibrated.map(|found| calibrated::write(new.plan_toml, found)))
        .execute(&mut *transaction)
        .await?;
        // Nothing was there before it.
        let _ = rows::write_checkpoint(&mut transaction, new.run, new.checkpoint, &files, None).await?;
        models::add(&mut transaction, new.run, 0, &files, None).await?;
        Ok(transaction.commit().await?)
    }

    /// All that is needed to go on with a run. Reads files on the calling thread.
    ///
    /// # Errors
    /// [`StoreError::Blob`] names a damaged or missing file.
    pub async fn load(&self, run: RunId) -> Result<StoredRun, StoreError> {
        let sql = "SELECT * FROM runs JOIN checkpoints USING (run) WHERE run = $1";
        let row = sqlx::query(sql).bind(run.to_string()).fetch_optional(&self.pool).await?;
        let row = row.ok_or(StoreError::NoSuchRun(run))?;
        let layout = rows::layout(&row)?;
        let model = self.read_model(run, &row, &layout).await?;
        let optimizer = match row.try_get::<Option<String>, _>("optimizer")? {
            Some(hash) => {
                let flat = self.tensors(&hash).await?;
                flat.chunks(layout.shared_len().max(1)).map(|state| Arc::new(state.to_vec())).collect()
            }
            None => Vec::new(),
        };
        let rounds = self.rounds(run, 1).await?;
        let noise: Option<String> = row.try_get("noise")?;
        let noise = match noise {
            Some(known) => self.secrets.read(&known).await?,
            None => NoiseMemory::default(),
        };
        let summary = rounds.into_iter().next_back();
        let checkpoint = rows::checkpoint(&row, Arc::new(model), optimizer, summary, noise)?;
        Ok(StoredRun {
            plan_toml: row.try_get("plan_toml")?,
            seed: rows::seed(&row)?,
            layout,
            checkpoint,
            clients: self.clients(run).await?,
        })
    }

    /// Where the current model is, and its fingerprint ([`Parameters::sha256`]).
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`] for a run that is not here.
    pub async fn model_place(&self, run: RunId) -> Result<(String, String), StoreError> {
        let sql = "SELECT model, model_sha256 FROM checkpoints WHERE run = $1";
        let row = sqlx::query(sql).bind(run.to_string()).fetch_optional(&self.pool).await?;
        let row = row.ok_or(StoreError::NoSuchRun(run))?;
        Ok((self.blobs.show(&row.try_get::<String, _>("model")?), row.try_get("model_sha256")?))
    }

    /// What a run was begun with, and the standardisation of its models.
    pub(crate) async fn description(&self, run: RunId) -> Result<Described, StoreError> {
        let sql = "SELECT * FROM runs JOIN checkpoints USING (run) WHERE run = $1";
        let row = sqlx::query(sql).bind(run.to_string()).fetch_optional(&self.pool).await?;
        let row = row.ok_or(StoreError::NoSuchRun(run))?;
        let (plan_toml, seed) = (row.try_get("plan_toml")?, rows::seed(&row)?);
        Ok(Described {
            plan_toml,
            seed,
            layout: rows::layout(&row)?,
            standardiser: rows::standardiser(&row)?,
        })
    }

    /// The newest 200 runs, newest first, without rounds and clients. A run that has not ended is called queued: only
    /// the server knows which one it works on.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub(crate) async fn summaries(&self) -> Result<Vec<RunSummary>, StoreError> {
        let sql = "SELECT * FROM runs JOIN checkpoints USING (run) ORDER BY sequence DESC LIMIT $1";
        let found = sqlx::query(sql).bind(RUNS_MAX).fetch_all(&self.pool).await?;
        found.iter().map(rows::summary).collect()
    }

    /// One run with its last 1,000 rounds and its clients; the newest run when `run` is `None`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub async fn summary(&self, run: Option<RunId>) -> Result<Option<RunSummary>, StoreError> {
        let sql = "SELECT * FROM runs JOIN checkpoints USING (run) WHERE $1 IS NULL OR run = $1 \
                   ORDER BY sequence DESC LIMIT 1";
        let row = sqlx::query(sql).bind(run.map(|run| run.to_string())).fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(None) };
        let mut summary = rows::summary(&row)?;
        summary.history = self.rounds(summary.run, HISTORY_MAX).await?;
        let clients = self.clients(summary.run).await?;
        summary.clients =
            clients.iter().map(|(client, record)| rows::client_summary(client, record)).collect();
        Ok(Some(summary))
    }

    /// The last rounds of a run, oldest first.
    async fn rounds(&self, run: RunId, limit: i64) -> Result<Vec<protocol::wire::RoundSummary>, StoreError> {
        let sql = "SELECT run, summary FROM rounds WHERE run = $1 ORDER BY round DESC LIMIT $2";
        let found = sqlx::query(sql).bind(run.to_string()).bind(limit).fetch_all(&self.pool).await?;
        found.iter().rev().map(|row| rows::json(row, "summary")).collect()
    }

    async fn clients(&self, run: RunId) -> Result<BTreeMap<ClientId, ClientRecord>, StoreError> {
        let sql = "SELECT * FROM clients WHERE run = $1";
        let found = sqlx::query(sql).bind(run.to_string()).fetch_all(&self.pool).await?;
        found.iter().filter_map(|row| rows::client(row).transpose()).collect()
    }

    async fn read_model(&self, run: RunId, row: &AnyRow, layout: &Layout) -> Result<Parameters, StoreError> {
        let blob: String = row.try_get("model")?;
        let model = Parameters::new(self.tensors(&blob).await?);
        if model.len() == layout.shared_len() {
            return Ok(model);
        }
        let message = format!("{} values where the tensors have {}", model.len(), layout.shared_len());
        Err(StoreError::Row { run: run.to_string(), what: "model", message })
    }

    async fn write_files(
        &self,
        run: RunId,
        layout: &Layout,
        checkpoint: &Checkpoint,
        readable: Readable,
    ) -> Result<Files, StoreError> {
        let source = source_of(run, checkpoint.round);
        let mut sealed = BTreeMap::new();
        let Written { blob: model, sha256: model_sha256, .. } =
            self.write_model(run, layout, &checkpoint.model, (&source, readable), &mut sealed).await?;
        let optimizer = self.write_optimizer(run, checkpoint, (&source, readable), &mut sealed).await?;
        // A run that has ended draws no more noise.
        let (mut noise, mut unnamed) = (None, None);
        if checkpoint.end.is_none() && !checkpoint.noise.is_empty() {
            unnamed = Some(Arc::clone(&self.noise_named).read_owned().await);
            noise = Some(self.secrets.write(&checkpoint.noise).await?);
        }
        Ok(Files { model, model_sha256, optimizer, noise, _unnamed: unnamed, sealed })
    }

    async fn write_optimizer(
        &self,
        run: RunId,
        checkpoint: &Checkpoint,
        (source, readable): (&str, Readable),
        sealed: &mut BTreeMap<String, Sealed>,
    ) -> Result<Option<String>, StoreError> {
        let states = &checkpoint.optimizer;
        // A run that has ended never steps again.
        if states.is_empty() || checkpoint.end.is_some() {
            return Ok(None);
        }
        let identity: Vec<_> = states.iter().map(Arc::downgrade).collect();
        if let Some(Last { optimizer: Some((before, blob)), .. }) = self.last().get(&run)
            && before.len() == identity.len()
            && before.iter().zip(&identity).all(|(before, now)| before.ptr_eq(now))
        {
            return Ok(Some(blob.clone()));
        }
        let names: Vec<_> = (0..states.len()).map(|index| format!("state.{index}")).collect();
        let shapes: Vec<_> = states.iter().map(|state| [state.len()]).collect();
        let pieces = states.iter().zip(&names).zip(&shapes);
        let pieces: Vec<_> = pieces.map(|((values, name), shape)| Piece { name, shape, values }).collect();
        let blob = self.write_tensors(&pieces, source, readable, sealed).await?;
        self.last().entry(run).or_default().optimizer = Some((identity, blob.clone()));
        Ok(Some(blob))
    }

    async fn write_model(
        &self,
        run: RunId,
        layout: &Layout,
        model: &Arc<Parameters>,
        (source, readable): (&str, Readable),
        sealed: &mut BTreeMap<String, Sealed>,
    ) -> Result<Written, StoreError> {
        let now = Arc::downgrade(model);
        let written = self.last().get(&run).and_then(|last| last.model.clone());
        if let Some(written) = written.filter(|one| one.model.ptr_eq(&now)) {
            return Ok(written);
        }
        let (mut pieces, mut from) = (Vec::new(), 0);
        for tensor in layout.shared() {
            let values = &model.values()[from..from + tensor.len()];
            pieces.push(Piece { name: &tensor.name, shape: &tensor.shape, values });
            from += tensor.len();
        }
        let blob = self.write_tensors(&pieces, source, readable, sealed).await?;
        let written = Written { model: now, blob, sha256: model.sha256() };
        Ok(self.last().entry(run).or_default().model.insert(written).clone())
    }

    async fn write_tensors(
        &self,
        pieces: &[Piece<'_>],
        source: &str,
        readable: Readable,
        sealed: &mut BTreeMap<String, Sealed>,
    ) -> Result<String, StoreError> {
        match readable {
            Readable::AtOnce => Ok(self.blobs.write(pieces, source).await?),
            Readable::OncePaid => {
                let (name, file) = self.blobs.seal(pieces, source).await?;
                sealed.insert(name.clone(), file);
                Ok(name)
            }
        }
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<RunId, Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next commit of a run writes its files, whatever was written before.
    fn forget_last(&self, run: RunId) {
        self.last().remove(&run);
    }
}

/// The files of a checkpoint, by hash.
struct Files {
    model: String,
    model_sha256: String,
    optimizer: Option<String>,
    noise: Option<String>,
    /// See [`Store::noise_named`].
    _unnamed: Option<OwnedRwLockReadGuard<()>>,
    /// Those that nobody can read before they are published.
    sealed: BTreeMap<String, Sealed>,
}

/// When others may read a file that is written.
#[derive(Clone, Copy)]
enum Readable {
    /// It holds nothing that is paid for.
    AtOnce,
    /// Once the transaction that pays for it was made.
    OncePaid,
}

/// What a file with the tensors of a round says of where it comes from.
fn source_of(run: RunId, round: protocol::Round) -> String {
    format!("consortia run {run} round {round}")
}

#[cfg(unix)]
#[cfg(test)]
#[path = "store/tests/place.rs"]
mod place;
#[cfg(unix)]
#[cfg(test)]
mod tests;
#[cfg(unix)]
#[cfg(test)]
#[path = "store/tests.rs"]
#[expect(clippy::duplicate_mod, reason = "the same tests, in the other database")]
mod tests_in_postgres;
