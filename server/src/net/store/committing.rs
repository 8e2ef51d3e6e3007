//! A commit: its files first, then one transaction, then what follows from it. Each of the three can be tried again as often as the
//! storage refuses, and what was decided (noise, names, counts) is not decided again.

use std::collections::BTreeMap;

use protocol::{Layout, RunId};

use super::blobs::Sealed;
use super::crash;
use super::ledgers::Taken;
use super::sweeping::Unused;
use super::{Files, Readable, Store, StoreError, ledger, models, publishing, rows};
use crate::Commit;

/// A commit whose files are durable.
pub(crate) struct Prepared<'a> {
    run: RunId,
    commit: &'a Commit,
    files: Files,
    taken: Taken<'a>,
}

/// A commit whose transaction is durable.
pub(crate) struct Written {
    /// The model's fingerprint.
    pub(crate) model_sha256: String,
    /// What is paid for, and has no name yet.
    sealed: BTreeMap<String, Sealed>,
    /// The model's file, if the commit released it.
    released: Option<(u32, String)>,
    /// Whether the run is over.
    is_last: bool,
}

impl Store {
    /// Stores a commit in one transaction, publishes what it releases, then removes the files nobody needs any more; returns the
    /// model's fingerprint. Writes files on the calling thread.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written; what was stored before stands then.
    pub async fn commit(&self, run: RunId, layout: &Layout, commit: &Commit) -> Result<String, StoreError> {
        let mut prepared = self.prepare(run, layout, commit).await?;
        self.write(&mut prepared).await?;
        let written = self.written(prepared);
        self.finish(run, &written).await?;
        self.sweep().await;
        Ok(written.model_sha256)
    }

    /// The first part: the files. Where a plan's release is paid from a ledger they are encrypted until [`Store::finish`], so that a crash
    /// before the payment leaves nothing that is readable, and one after it leaves all that is needed to publish the same bytes.
    pub(crate) async fn prepare<'a>(
        &'a self,
        run: RunId,
        layout: &Layout,
        commit: &'a Commit,
    ) -> Result<Prepared<'a>, StoreError> {
        let readable = if commit.reservation.is_some() { Readable::OncePaid } else { Readable::AtOnce };
        let written = self.write_files(run, layout, &commit.checkpoint, readable).await;
        if written.is_err() {
            // A file that was written under a key that is lost with this attempt is written anew.
            self.forget_last(run);
        }
        let files = written?;
        crash::point("model-on-disk");
        Ok(Prepared { run, commit, files, taken: self.unwritten.take() })
    }

    /// The second part: the transaction. Whether the commit releases a model for the first time.
    pub(crate) async fn write(&self, prepared: &mut Prepared<'_>) -> Result<bool, StoreError> {
        let written = self.write_rows(prepared).await;
        if written.is_err() {
            self.forget_last(prepared.run);
        }
        written
    }

    async fn write_rows(&self, prepared: &mut Prepared<'_>) -> Result<bool, StoreError> {
        let Prepared { run, commit, files, taken } = prepared;
        let run = *run;
        let mut transaction = self.begin().await?;
        let statement = commit.statement.as_deref();
        let unused =
            rows::write_checkpoint(&mut transaction, run, &commit.checkpoint, files, statement).await?;
        let mut is_new = false;
        if commit.summary.released {
            is_new = models::add(&mut transaction, run, commit.summary.round, files, statement).await?;
        }
        publishing::announce(&mut transaction, &files.sealed).await?;
        if let Some(reservation) = &commit.reservation {
            ledger::append(&mut transaction, reservation).await?;
            crash::point("spent-uncommitted");
        }
        rows::write_round(&mut transaction, run, &commit.summary).await?;
        rows::write_reports(&mut transaction, run, &commit.reports).await?;
        if is_new || !commit.summary.released {
            self.count_secret_round(&mut transaction, run, taken).await?;
        }
        taken.add(&mut transaction).await?;
        rows::write_clients(&mut transaction, run, &commit.clients).await?;
        crash::point("transaction-full");
        transaction.commit().await?;
        crash::point("transaction-done");
        self.sweep.add(unused);
        // The same bytes may have been sealed before, in a commit that an evaluation has repeated.
        self.sweep.add(files.sealed.values().map(|sealed| Unused::Sealed(sealed.name.clone())));
        Ok(is_new)
    }

    /// The transaction is durable: what it has written is owed no more.
    pub(crate) fn written(&self, prepared: Prepared<'_>) -> Written {
        let Prepared { run, commit, files, taken } = prepared;
        taken.written();
        let is_last = commit.checkpoint.end.is_some();
        if is_last {
            self.forget_last(run);
        }
        let released = commit.summary.released.then(|| (commit.summary.round, files.model.clone()));
        Written { model_sha256: files.model_sha256, sealed: files.sealed, released, is_last }
    }

    /// The third part: publishes what this commit has paid for, and gives up the models that need not be kept. Their files go with the next
    /// [`Store::sweep`].
    pub(crate) async fn finish(&self, run: RunId, written: &Written) -> Result<(), StoreError> {
        // Its own files alone: what another run has paid for may not be in the audit log yet.
        self.publish(&written.sealed, None).await?;
        if let Some(last) = self.keep_last {
            self.thin(run, last, written.released.as_ref()).await?;
        }
        if written.is_last {
            self.kept.forget(run);
        }
        Ok(())
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
