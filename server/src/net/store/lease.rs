//! Who of several servers on one database may write: the one whose epoch stands in the lease.
//!
//! The lease is one row: a holder, an epoch, and until when the holder has it, by the database's clock. Whoever takes it raises
//! the epoch. Every transaction that writes begins with a look at that row ([`Fence::check`]), shared and locked until it ends: so
//! a lease is never taken while a transaction of its holder is under way, and after it was taken no transaction of the one before
//! can begin. Time decides only when a lease may be taken; that two never write is decided by the epoch alone.

use std::time::Duration;

use sqlx::{Any, AnyPool, Row, Transaction};

use super::{Postgres, StoreError};

/// A lease that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    epoch: i64,
    life: Duration,
}

impl Fence {
    /// Takes the lease if it is nobody's or its time is over.
    pub(super) async fn take(pool: &AnyPool, postgres: &Postgres) -> Result<Option<Self>, StoreError> {
        let life = postgres.lease();
        // A look first: a server that stands by for months writes nothing.
        let held = "SELECT epoch FROM leases WHERE name = 'server' AND expires > EXTRACT(EPOCH FROM clock_timestamp())";
        if sqlx::query(held).fetch_optional(pool).await?.is_some() {
            return Ok(None);
        }
        let take = "INSERT INTO leases (name, holder, epoch, expires) \
                    VALUES ('server', $1, 1, $2 + EXTRACT(EPOCH FROM clock_timestamp())) \
                    ON CONFLICT (name) DO UPDATE SET holder = $1, epoch = leases.epoch + 1, \
                    expires = $2 + EXTRACT(EPOCH FROM clock_timestamp()) \
                    WHERE leases.expires <= EXTRACT(EPOCH FROM clock_timestamp()) RETURNING epoch";
        let taken = sqlx::query(take).bind(postgres.replica()).bind(life.as_secs_f64());
        let taken = taken.fetch_optional(pool).await?;
        let epoch = taken.map(|row| row.try_get::<i64, _>("epoch")).transpose()?;
        Ok(epoch.map(|epoch| Self { epoch, life }))
    }

    /// How often the lease was taken, this time included.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// How long the lease is good without being renewed.
    pub(super) fn life(&self) -> Duration {
        self.life
    }

    /// Makes the lease good for another life.
    pub(super) async fn renew(&self, pool: &AnyPool) -> Result<(), StoreError> {
        let renew = "UPDATE leases SET expires = $2 + EXTRACT(EPOCH FROM clock_timestamp()) \
                     WHERE name = 'server' AND epoch = $1";
        let done = sqlx::query(renew).bind(self.epoch).bind(self.life.as_secs_f64()).execute(pool).await?;
        if done.rows_affected() == 1 {
            return Ok(());
        }
        let mut transaction = pool.begin().await?;
        self.check(&mut transaction).await
    }

    /// Gives the lease back, so that nobody waits for its time to be over.
    pub(super) async fn release(&self, pool: &AnyPool) -> Result<(), StoreError> {
        let give = "UPDATE leases SET expires = 0 WHERE name = 'server' AND epoch = $1";
        sqlx::query(give).bind(self.epoch).execute(pool).await?;
        Ok(())
    }

    /// That the lease is still ours, and stays so until the transaction has ended.
    pub(super) async fn check(&self, transaction: &mut Transaction<'_, Any>) -> Result<(), StoreError> {
        let look = "SELECT holder, epoch FROM leases WHERE name = 'server' FOR SHARE";
        let row = sqlx::query(look).fetch_optional(&mut **transaction).await?;
        let (holder, epoch) = match row {
            Some(row) => (row.try_get::<String, _>("holder")?, row.try_get::<i64, _>("epoch")?),
            None => ("nobody".to_owned(), 0),
        };
        if epoch == self.epoch { Ok(()) } else { Err(StoreError::Deposed { holder, epoch, own: self.epoch }) }
    }
}
