//! Transactions that write, and what the database and the audit log know of each other.
//!
//! Every transaction counts the state's version up and writes down how far the audit log is on disk; every line of the audit log
//! names the version that was committed before it. So each of the two can tell whether the other one was turned back
//! ([`super::compare`]). A transaction that is dropped or fails changes neither.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use privacy::chain::Digest;
use sqlx::{Any, AnyConnection, Row as _, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Store, StoreError};

/// How long one writer of this program waits for another one before it leaves the order to the database.
const TURN_MAX: Duration = Duration::from_secs(3);

/// The order in which transactions of this program that write are begun. The database would let one of them in at a time, too, but in no
/// order, and SQLite only after a pause. It is no protection: the database's own locks are.
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Turns {
    async fn next(&self) -> Option<OwnedSemaphorePermit> {
        timeout(TURN_MAX, Arc::clone(&self.0).acquire_owned()).await.ok()?.ok()
    }
}

/// How far an audit log is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditHead {
    /// The file's name.
    pub(crate) log: String,
    /// Records that are durable.
    pub(crate) records: u64,
    /// The hash of the last of them.
    pub(crate) head: Digest,
}

/// What is carried between the database and the audit log of a server.
#[derive(Debug, Default)]
pub(crate) struct CrossCheck {
    version: AtomicI64,
    head: Mutex<Option<AuditHead>>,
}

impl CrossCheck {
    /// The version of the state that was committed last.
    pub(crate) fn version(&self) -> i64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Notes how far the audit log is durable; the next transaction writes it down.
    pub(crate) fn note(&self, head: AuditHead) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }

    fn head(&self) -> Option<AuditHead> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn committed(&self, version: i64) {
        self.version.fetch_max(version, Ordering::SeqCst);
    }
}

/// A transaction that may write.
pub(super) struct StateTransaction {
    transaction: Transaction<'static, Any>,
    version: i64,
    cross: Arc<CrossCheck>,
    /// Given to the next one after the transaction has ended: fields are dropped in their order.
    _turn: Option<OwnedSemaphorePermit>,
}

impl StateTransaction {
    /// Makes it durable. The audit log may name its version from here on.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await?;
        self.cross.committed(self.version);
        Ok(())
    }
}

impl Deref for StateTransaction {
    type Target = AnyConnection;
    fn deref(&self) -> &AnyConnection {
        &self.transaction
    }
}

impl DerefMut for StateTransaction {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }
}

impl Store {
    /// A transaction that may write.
    pub(super) async fn begin(&self) -> Result<StateTransaction, StoreError> {
        let turn = self.turns.next().await;
        let mut transaction = self.begin_unversioned().await?;
        let count = "INSERT INTO state_version (one, version) VALUES (1, 1) \
                     ON CONFLICT (one) DO UPDATE SET version = state_version.version + 1 RETURNING version";
        let version = sqlx::query(count).fetch_one(&mut *transaction).await?.try_get("version")?;
        if let Some(AuditHead { log, records, head }) = self.cross.head() {
            let note = "INSERT INTO audit_heads (log, records, head) VALUES ($1, $2, $3) \
                        ON CONFLICT (log) DO UPDATE SET records = $2, head = $3";
            sqlx::query(note)
                .bind(log)
                .bind(records.cast_signed())
                .bind(head.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(StateTransaction { transaction, version, cross: Arc::clone(&self.cross), _turn: turn })
    }

    /// A transaction that changes the schema, of which no version may exist yet.
    pub(super) async fn begin_unversioned(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        if let Some(fence) = &self.fence {
            fence.check(&mut transaction).await?;
        }
        Ok(transaction)
    }

    /// Takes up the version that the database has.
    pub(super) async fn read_version(&self) -> Result<i64, StoreError> {
        let found = sqlx::query("SELECT version FROM state_version").fetch_optional(&self.pool).await?;
        let version = found.map(|row| row.try_get("version")).transpose()?.unwrap_or(0);
        self.cross.committed(version);
        Ok(version)
    }

    /// What this state and its audit log tell each other.
    pub(crate) fn cross_check(&self) -> Arc<CrossCheck> {
        Arc::clone(&self.cross)
    }
}
