//! The ledgers that sites have shown, one row a site.

use privacy::chain::Digest;
use protocol::ClientId;
use protocol::wire::LedgerClaim;
use sqlx::Row;

use super::{Store, StoreError};

/// What is remembered of a site's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShownLedger {
    pub(crate) claim: LedgerClaim,
    /// Updates that have come since then.
    pub(crate) answered: u64,
}

/// With what a ledger was shown.
#[derive(Clone, Debug)]
pub(crate) struct Showing {
    /// SHA-256 of the certificate.
    pub(crate) certificate: Digest,
    pub(crate) address: String,
    /// Seconds since the Unix epoch.
    pub(crate) at: u64,
}

impl Store {
    /// The ledger that a site showed last.
    pub(crate) async fn shown_ledger(&self, site: &ClientId) -> Result<Option<ShownLedger>, StoreError> {
        let found = sqlx::query("SELECT records, head, answered FROM site_ledgers WHERE site = $1");
        let Some(row) = found.bind(site.as_str()).fetch_optional(&self.pool).await? else { return Ok(None) };
        let (records, answered): (i64, i64) = (row.try_get("records")?, row.try_get("answered")?);
        let text: String = row.try_get("head")?;
        let head = text.parse().map_err(|message| StoreError::Member { name: site.to_string(), message })?;
        let claim = LedgerClaim { records: records.cast_unsigned(), head };
        Ok(Some(ShownLedger { claim, answered: answered.cast_unsigned() }))
    }

    /// Remembers the ledger that a site shows now in the place of `before`. Whether that was still the one that it showed last.
    pub(crate) async fn show_ledger(
        &self,
        site: &ClientId,
        before: Option<ShownLedger>,
        claim: LedgerClaim,
        showing: &Showing,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let sql = match before {
            None => {
                "INSERT INTO site_ledgers (records, head, certificate, address, shown, site, answered)
                 VALUES ($1, $2, $3, $4, $5, $6, 0) ON CONFLICT (site) DO NOTHING"
            }
            Some(_) => {
                "UPDATE site_ledgers SET records = $1, head = $2, certificate = $3, address = $4, shown = $5, answered = 0
                 WHERE site = $6 AND records = $7 AND head = $8"
            }
        };
        let mut query = sqlx::query(sql)
            .bind(claim.records.cast_signed())
            .bind(claim.head.to_string())
            .bind(showing.certificate.to_string())
            .bind(&showing.address)
            .bind(showing.at.cast_signed())
            .bind(site.as_str());
        if let Some(before) = before {
            query = query.bind(before.claim.records.cast_signed()).bind(before.claim.head.to_string());
        }
        let done = query.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// Counts updates that have come from a site since it showed its ledger.
    pub(crate) async fn add_answered(&self, site: &ClientId, more: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE site_ledgers SET answered = answered + $1 WHERE site = $2")
            .bind(more.cast_signed())
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }
}
