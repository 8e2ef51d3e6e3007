//! Removing the files that no row of the database names any more.
//!
//! A commit names the files that it has put out of use, so that it costs the same however many models a run has left, and they are
//! removed aside. The walk over everything that is there is made when a server starts: it also finds what a crash left behind. It is made at
//! no other time, since it would take files of commits whose transaction is still to come.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};

use super::blobs::Sealed;
use super::{Store, StoreError};

/// The files of a checkpoint, as its row names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Models and optimizers' states, of this checkpoint and of the one before.
    blobs: BTreeSet<String>,
    noise: Option<String>,
}

/// A file that may be needed no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unused {
    /// A model or an optimizer's state.
    Blob(String),
    /// Encrypted bytes of a file that has its name by now.
    Sealed(String),
    /// Kept noise.
    Noise(String),
}

/// What is to be looked at. In memory alone: the walk at a start finds what is forgotten here.
#[derive(Default)]
pub(super) struct Sweep(Mutex<BTreeSet<Unused>>);

impl Sweep {
    /// Adds files.
    pub(super) fn add(&self, unused: impl IntoIterator<Item = Unused>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(unused);
    }

    fn take(&self) -> BTreeSet<Unused> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Named {
    /// The columns that it is read from.
    pub(super) const COLUMNS: &str = "model, optimizer, model_before, optimizer_before, noise";

    pub(super) fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let mut blobs = BTreeSet::new();
        for column in ["model", "optimizer", "model_before", "optimizer_before"] {
            blobs.extend(row.try_get::<Option<String>, _>(column)?);
        }
        Ok(Self { blobs, noise: row.try_get("noise")? })
    }

    /// Those of a run's checkpoint; none for one that has not begun.
    pub(super) async fn of(connection: &mut AnyConnection, run: &str) -> Result<Self, StoreError> {
        let sql = format!("SELECT {} FROM checkpoints WHERE run = $1", Self::COLUMNS);
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(run).fetch_optional(connection).await?;
        row.as_ref().map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// What it names and `after` does not.
    pub(super) fn without(self, after: &Self) -> Vec<Unused> {
        let noise = self.noise.filter(|noise| after.noise.as_ref() != Some(noise)).map(Unused::Noise);
        let blobs = self.blobs.into_iter().filter(|name| !after.blobs.contains(name)).map(Unused::Blob);
        blobs.chain(noise).collect()
    }
}

/// The files that rows of the database name.
pub(super) struct Needed {
    pub(super) blobs: BTreeSet<String>,
    /// Those of them that are not published yet.
    pub(super) sealed: std::collections::BTreeMap<String, Sealed>,
    pub(super) secrets: BTreeSet<String>,
}

impl Store {
    /// Removes what commits have put out of use since the last time; another time, while a copy is being made or the storage refuses.
    pub(crate) async fn sweep(&self) {
        let unused = self.sweep.take();
        if unused.is_empty() {
            return;
        }
        let nobody_copies = match self.copying.is_over() {
            Ok(nobody_copies) => nobody_copies,
            Err(error) => return self.sweep_later(unused, &error),
        };
        if nobody_copies.is_none() {
            return self.sweep.add(unused);
        }
        let mut left = unused;
        while let Some(one) = left.pop_first() {
            match self.remove_unused(&one).await {
                Ok(true) => {}
                // Its bytes are needed until they are published, or a commit may be about to name it.
                Ok(false) => self.sweep.add([one]),
                Err(error) => {
                    left.insert(one);
                    return self.sweep_later(left, &error);
                }
            }
        }
    }

    fn sweep_later(&self, unused: BTreeSet<Unused>, error: &StoreError) {
        tracing::warn!("what nobody needs any more is not removed yet: {error}");
        self.sweep.add(unused);
    }

    /// Removes a file that no row names; `false` where it is to be looked at again.
    async fn remove_unused(&self, unused: &Unused) -> Result<bool, StoreError> {
        let _nobody_names_noise = match unused {
            Unused::Noise(_) => match self.noise_named.try_write() {
                Ok(alone) => Some(alone),
                Err(_) => return Ok(false),
            },
            Unused::Blob(_) | Unused::Sealed(_) => None,
        };
        let (sql, name) = match unused {
            Unused::Blob(name) => (
                "SELECT 1 FROM models WHERE blob = $1 AND kept = 1 UNION ALL SELECT 1 FROM checkpoints \
                 WHERE model = $1 OR optimizer = $1 OR model_before = $1 OR optimizer_before = $1 LIMIT 1",
                name,
            ),
            Unused::Sealed(name) => ("SELECT 1 FROM unpublished WHERE sealed = $1", name),
            Unused::Noise(known) => ("SELECT 1 FROM checkpoints WHERE noise = $1", known),
        };
        if sqlx::query(sql).bind(name).fetch_optional(&self.pool).await?.is_some() {
            return Ok(!matches!(unused, Unused::Sealed(_)));
        }
        match unused {
            Unused::Blob(name) => self.blobs.remove(name).await?,
            Unused::Sealed(name) => self.blobs.remove_sealed(name).await?,
            Unused::Noise(known) => self.secrets.remove(known).await?,
        }
        Ok(true)
    }

    /// Walks over everything that is there, and removes what no row names; another time, while a copy is being made.
    pub(super) async fn collect(&self) -> Result<(), StoreError> {
        let Some(_nobody_copies) = self.copying.is_over()? else { return Ok(()) };
        let Needed { blobs, sealed, secrets } = self.needed().await?;
        let sealed = sealed.into_values().map(|sealed| sealed.name).collect();
        self.blobs.collect(&blobs, &sealed).await?;
        self.secrets.collect(&secrets).await
    }

    pub(super) async fn needed(&self) -> Result<Needed, StoreError> {
        let mut kept = BTreeSet::new();
        for sql in [
            "SELECT model FROM checkpoints",
            "SELECT blob FROM models WHERE kept = 1",
            "SELECT optimizer FROM checkpoints WHERE optimizer IS NOT NULL",
            "SELECT model_before FROM checkpoints WHERE model_before IS NOT NULL",
            "SELECT optimizer_before FROM checkpoints WHERE optimizer_before IS NOT NULL",
        ] {
            for row in sqlx::query(sql).fetch_all(&self.pool).await? {
                kept.insert(row.try_get::<String, _>(0)?);
            }
        }
        let noise = sqlx::query("SELECT noise FROM checkpoints WHERE noise IS NOT NULL")
            .fetch_all(&self.pool)
            .await?;
        let secrets: Result<BTreeSet<String>, _> = noise.iter().map(|row| row.try_get(0)).collect();
        Ok(Needed { blobs: kept, sealed: self.unpublished().await?, secrets: secrets? })
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
