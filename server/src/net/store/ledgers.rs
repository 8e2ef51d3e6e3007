//! The ledgers that sites have shown, one row a site, and the updates that have come since.
//!
//! Updates are counted in memory and written in the transaction that commits their round, so that a server that is killed has
//! forgotten none that moved a model.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use privacy::chain::Digest;
use protocol::ClientId;
use protocol::wire::LedgerClaim;
use sqlx::{AnyConnection, Row};

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

/// Updates that have come over open connections and are not written down yet.
#[derive(Default)]
pub(super) struct Unwritten(Mutex<BTreeMap<ClientId, Brought>>);

/// What the session of a site has brought since it showed its ledger, or since the last transaction.
struct Brought {
    session: u64,
    claim: LedgerClaim,
    updates: u64,
}

impl Unwritten {
    /// All that is not written down, with the ledger that was shown before it came. It is lost where the transaction that writes it
    /// fails; the server ends then.
    pub(super) fn take(&self) -> Vec<(ClientId, LedgerClaim, u64)> {
        self.open(|sessions| {
            let brought = sessions.iter_mut().filter(|(_, brought)| brought.updates > 0);
            let taken = brought
                .map(|(site, brought)| (site.clone(), brought.claim, std::mem::take(&mut brought.updates)));
            taken.collect()
        })
    }

    fn open<T>(&self, work: impl FnOnce(&mut BTreeMap<ClientId, Brought>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds updates to what is remembered of the ledger that was shown before they came. A site that has shown a later one meanwhile has
/// booked them in that.
pub(super) async fn add_updates(
    connection: &mut AnyConnection,
    taken: &[(ClientId, LedgerClaim, u64)],
) -> Result<(), StoreError> {
    for (site, claim, updates) in taken {
        sqlx::query(
            "UPDATE site_ledgers SET answered = answered + $1 WHERE site = $2 AND records = $3 AND head = $4",
        )
        .bind(updates.cast_signed())
        .bind(site.as_str())
        .bind(claim.records.cast_signed())
        .bind(claim.head.to_string())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl Store {
    /// Begins to count the updates of a session, which has just shown `claim`.
    pub(crate) fn count_updates(&self, site: &ClientId, session: u64, claim: LedgerClaim) {
        self.unwritten.open(|sessions| sessions.insert(site.clone(), Brought { session, claim, updates: 0 }));
    }

    /// An update has come over a session. Those of an older session may be in the ledger that a newer one has shown.
    pub(crate) fn count_update(&self, site: &ClientId, session: u64) {
        self.unwritten.open(|sessions| {
            if let Some(brought) = sessions.get_mut(site).filter(|brought| brought.session == session) {
                brought.updates += 1;
            }
        });
    }

    /// A session is over: what it has brought and is not written down yet is written now.
    pub(crate) async fn end_count(&self, site: &ClientId, session: u64) -> Result<(), StoreError> {
        let ended = self.unwritten.open(|sessions| {
            let is_own = sessions.get(site).is_some_and(|brought| brought.session == session);
            is_own.then(|| sessions.remove(site)).flatten()
        });
        let Some(Brought { claim, updates, .. }) = ended.filter(|brought| brought.updates > 0) else {
            return Ok(());
        };
        let mut transaction = self.begin().await?;
        add_updates(&mut transaction, &[(site.clone(), claim, updates)]).await?;
        Ok(transaction.commit().await?)
    }

    /// The ledger that a site showed last, with the updates that have come since then.
    pub(crate) async fn shown_ledger(&self, site: &ClientId) -> Result<Option<ShownLedger>, StoreError> {
        let found = sqlx::query("SELECT records, head, answered FROM site_ledgers WHERE site = $1");
        let Some(row) = found.bind(site.as_str()).fetch_optional(&self.pool).await? else { return Ok(None) };
        let (records, answered): (i64, i64) = (row.try_get("records")?, row.try_get("answered")?);
        let text: String = row.try_get("head")?;
        let head = text.parse().map_err(|message| StoreError::Member { name: site.to_string(), message })?;
        let claim = LedgerClaim { records: records.cast_unsigned(), head };
        let unwritten =
            self.unwritten.open(|sessions| sessions.get(site).map_or(0, |brought| brought.updates));
        Ok(Some(ShownLedger { claim, answered: answered.cast_unsigned().saturating_add(unwritten) }))
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
}

#[cfg(test)]
mod tests;
