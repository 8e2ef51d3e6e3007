//! Runs that have not ended: what they wait for, and what the operator wants of them.

use protocol::RunId;
use protocol::wire::Control;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::sweeping::Named;
use super::{Store, StoreError, rows};
use crate::RunEnd;

/// A run that has not ended.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) run: RunId,
    pub(crate) plan_toml: String,
    /// The noise that was found for it ([`calibrated::read`](super::calibrated::read)).
    pub(crate) calibrated: Option<String>,
    pub(crate) control: Control,
}

impl Store {
    /// The runs that have not ended, oldest first.
    pub(crate) async fn queue(&self) -> Result<Vec<Queued>, StoreError> {
        let sql = "SELECT run, plan_toml, calibrated, wish FROM runs JOIN checkpoints USING (run) WHERE ended IS NULL \
                   ORDER BY sequence";
        let found = sqlx::query(sql).fetch_all(&self.pool).await?;
        let queued = |row: &AnyRow| {
            let (run, control) = (rows::run_id(row)?, rows::control(row)?);
            let (plan_toml, calibrated) = (row.try_get("plan_toml")?, row.try_get("calibrated")?);
            Ok(Queued { run, plan_toml, calibrated, control })
        };
        found.iter().map(queued).collect()
    }

    /// Writes down what the operator wants of a run.
    pub(crate) async fn wish(&self, run: RunId, control: Control) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE runs SET wish = $1 WHERE run = $2")
            .bind(rows::wish(control))
            .bind(run.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Ends a run that is not being worked on. What only a run that goes on needs is dropped.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub async fn end(&self, run: RunId, end: &RunEnd) -> Result<(), StoreError> {
        self.end_queued(run, end).await?;
        self.sweep().await;
        Ok(())
    }

    /// The same, and leaves the files that are out of use to the next [`Store::sweep`]. Whether the run had not ended before.
    pub(crate) async fn end_queued(&self, run: RunId, end: &RunEnd) -> Result<bool, StoreError> {
        let (ended, reason) = rows::ended(end);
        let sql = "UPDATE checkpoints SET ended = $1, reason = $2, optimizer = NULL, optimizer_before = NULL, \
                   model_before = NULL, noise = NULL WHERE run = $3 AND ended IS NULL";
        let mut transaction = self.begin().await?;
        let run = run.to_string();
        let before = Named::of(&mut transaction, &run).await?;
        let done = sqlx::query(sql).bind(ended).bind(reason).bind(&run).execute(&mut *transaction).await?;
        let after = Named::of(&mut transaction, &run).await?;
        transaction.commit().await?;
        self.sweep.add(before.without(&after));
        Ok(done.rows_affected() == 1)
    }
}
