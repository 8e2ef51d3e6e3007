//! The ledgers of populations in the database: rows that are only ever added.

use privacy::chain::Link;
use serde_json::value::RawValue;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Store, StoreError};
use crate::LedgerReservation;

impl Store {
    /// Every record of a population's ledger, oldest first; none for a population that is not known yet. They are not
    /// checked here: [`privacy::ledger::Ledger::replay`] does that.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn ledger(&self, population: &str) -> Result<Vec<Link>, StoreError> {
        records(&mut *self.pool.acquire().await?, population).await
    }

    /// The populations that have a ledger, in order of their names.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn populations(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT population FROM ledger ORDER BY population";
        let found = sqlx::query(sql).fetch_all(&self.pool).await?;
        found.iter().map(|row| Ok(row.try_get("population")?)).collect()
    }

    /// Appends records to a ledger, synced to disk.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be written; nothing was added then.
    pub async fn append_to_ledger(&self, reservation: &LedgerReservation) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        append(&mut transaction, reservation).await?;
        super::crash::point("reservation-uncommitted");
        transaction.commit().await?;
        Ok(())
    }
}

/// Every record of a population's ledger, oldest first.
pub(super) async fn records(
    connection: &mut AnyConnection,
    population: &str,
) -> Result<Vec<Link>, StoreError> {
    let sql = "SELECT * FROM ledger WHERE population = $1 ORDER BY sequence";
    let found = sqlx::query(sql).bind(population).fetch_all(connection).await?;
    found.iter().map(|row| link(population, row)).collect()
}

/// Appends records within a transaction. The primary key refuses a second record at one place.
pub(super) async fn append(
    transaction: &mut AnyConnection,
    reservation: &LedgerReservation,
) -> Result<(), StoreError> {
    for link in &reservation.links {
        sqlx::query(
            "INSERT INTO ledger (population, sequence, previous, record, hash) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&reservation.population)
        .bind(i64::try_from(link.sequence).unwrap_or(i64::MAX))
        .bind(link.previous.to_string())
        .bind(link.record.get())
        .bind(link.hash.to_string())
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

fn link(population: &str, row: &AnyRow) -> Result<Link, StoreError> {
    let sequence: i64 = row.try_get("sequence")?;
    let wrong = |message: String| StoreError::Ledger { population: population.to_owned(), sequence, message };
    let digest =
        |column: &str| -> Result<_, StoreError> { row.try_get::<String, _>(column)?.parse().map_err(wrong) };
    let record = RawValue::from_string(row.try_get("record")?).map_err(|error| wrong(error.to_string()))?;
    let sequence = u64::try_from(sequence).map_err(|error| wrong(error.to_string()))?;
    Ok(Link { sequence, previous: digest("previous")?, record, hash: digest("hash")? })
}
