//! Giving a paid release its name: files that were encrypted until the transaction which pays for them are published after it.
//!
//! The row in `unpublished` was written by that transaction. If the program dies before the file has its name, the next start publishes
//! the same bytes: noise is never drawn a second time for a release that was paid.

use std::collections::BTreeMap;

use sqlx::{AnyConnection, Row as _};

use super::blobs::{BlobError, Blobs, Sealed};
use super::crash;
use super::{Store, StoreError};

/// Writes down which files are to be published, and the keys that open them.
pub(super) async fn announce(
    transaction: &mut AnyConnection,
    sealed: &BTreeMap<String, Sealed>,
) -> Result<(), StoreError> {
    for (name, Sealed { name: sealed, key }) in sealed {
        // The same bytes, sealed again: an evaluation's commit, say. The older file is swept.
        let sql = "INSERT INTO unpublished (blob, sealed, key) VALUES ($1, $2, $3) \
                   ON CONFLICT (blob) DO UPDATE SET sealed = $2, key = $3";
        sqlx::query(sql).bind(name).bind(sealed).bind(key).execute(&mut *transaction).await?;
    }
    Ok(())
}

impl Store {
    /// The files that are paid for and have no name yet.
    pub(super) async fn unpublished(&self) -> Result<BTreeMap<String, Sealed>, StoreError> {
        let rows = sqlx::query("SELECT blob, sealed, key FROM unpublished").fetch_all(&self.pool).await?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok((row.try_get("blob")?, Sealed { name: row.try_get("sealed")?, key: row.try_get("key")? }))
        };
        rows.iter().map(read).collect()
    }

    /// Publishes what a crash has left unpublished; `before` is where an earlier server, with another storage, may have left it. What is lost
    /// stays among it: the run that needs it says so, and cannot go on.
    pub(super) async fn publish_rest(&self, before: Option<&Blobs>) -> Result<(), StoreError> {
        self.publish(&self.unpublished().await?, before).await
    }

    /// Publishes these files, which are paid for.
    pub(super) async fn publish(
        &self,
        files: &BTreeMap<String, Sealed>,
        before: Option<&Blobs>,
    ) -> Result<(), StoreError> {
        let mut published = Vec::new();
        for (name, sealed) in files {
            match self.publish_one(name, sealed, before).await {
                Ok(()) => published.push(name),
                Err(error @ BlobError::Damaged { .. }) => tracing::error!("{error}"),
                Err(error) => return Err(error.into()),
            }
        }
        if published.is_empty() {
            return Ok(());
        }
        crash::point("published");
        let mut transaction = self.begin().await?;
        for name in &published {
            let sql = "DELETE FROM unpublished WHERE blob = $1";
            sqlx::query(sql).bind(name).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn publish_one(
        &self,
        name: &str,
        sealed: &Sealed,
        before: Option<&Blobs>,
    ) -> Result<(), BlobError> {
        if self.blobs.has(name).await? || self.blobs.publish(name, sealed, &self.blobs).await? {
            return Ok(());
        }
        if let Some(before) = before
            && before.publish(name, sealed, &self.blobs).await?
        {
            return Ok(());
        }
        let message = "the release is paid for, and its encrypted bytes are gone".to_owned();
        Err(BlobError::Damaged { place: self.blobs.show(name), message })
    }

    /// The values of a file, also of one that has no name yet.
    pub(super) async fn tensors(&self, name: &str) -> Result<Vec<f32>, StoreError> {
        if !self.blobs.has(name).await?
            && let Some(sealed) = self.unpublished().await?.get(name)
        {
            return Ok(self.blobs.read_from(name, Some(sealed)).await?);
        }
        Ok(self.blobs.read(name).await?)
    }
}
