//! The ledgers that sites have shown, one row a site, and what may have been booked in them since.
//!
//! Updates are counted in memory and written in the transaction that commits their round, so that a server that is killed has
//! forgotten none that moved a model. Of runs whose cohorts are secret no update is counted: each committed round counts for every site
//! that was connected, which bounds what a site has booked and does not depend on who was drawn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use privacy::chain::Digest;
use protocol::wire::LedgerClaim;
use protocol::{ClientId, RunId};
use sqlx::{AnyConnection, Row};

use super::{Store, StoreError, rows};
use crate::plan::draws_secretly;

/// What is remembered of a site's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShownLedger {
    pub(crate) claim: LedgerClaim,
    /// Updates that have come since then, of runs that show who takes part.
    pub(crate) answered: u64,
    /// Rounds of other runs that the site may have trained in since then; the same for every connected site.
    pub(crate) secret_rounds: u64,
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

/// What is known of open and ended connections and is not written down yet.
#[derive(Default)]
pub(super) struct Unwritten(Mutex<Connections>);

#[derive(Default)]
struct Connections {
    open: BTreeMap<ClientId, Brought>,
    /// Sites that left, with the ledger that they had shown, and the runs of which a round was committed since: each may have been asked
    /// for one that was open when it left.
    left: BTreeMap<ClientId, (LedgerClaim, BTreeSet<RunId>)>,
    /// Whether the cohorts of a run are secret.
    secret_runs: BTreeMap<RunId, bool>,
}

/// What the session of a site has brought since it showed its ledger, or since the last transaction.
struct Brought {
    session: u64,
    claim: LedgerClaim,
    updates: u64,
}

/// What is to be added to the row of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addition {
    site: ClientId,
    /// The ledger that was shown before it came.
    claim: LedgerClaim,
    updates: u64,
    secret_rounds: u64,
}

impl Unwritten {
    /// The updates that are not written down. They are lost where the transaction that writes them fails; the server ends then.
    pub(super) fn take(&self) -> Vec<Addition> {
        self.with(|connections| {
            let brought = connections.open.iter_mut().filter(|(_, brought)| brought.updates > 0);
            let taken = brought.map(|(site, brought)| Addition {
                site: site.clone(),
                claim: brought.claim,
                updates: std::mem::take(&mut brought.updates),
                secret_rounds: 0,
            });
            taken.collect()
        })
    }

    /// One round of a run with secret cohorts, for every site that is connected or has left since the round before.
    fn take_secret_round(&self, run: RunId) -> Vec<Addition> {
        self.with(|connections| {
            let one =
                |site: &ClientId, claim| Addition { site: site.clone(), claim, updates: 0, secret_rounds: 1 };
            let mut taken: Vec<_> =
                connections.open.iter().map(|(site, brought)| one(site, brought.claim)).collect();
            for (site, (claim, counted)) in &mut connections.left {
                let is_open = connections.open.get(site).is_some_and(|brought| brought.claim == *claim);
                if counted.insert(run) && !is_open {
                    taken.push(one(site, *claim));
                }
            }
            taken
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connections) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds to what is remembered of the ledger that was shown before it came. A site that has shown a later one meanwhile has booked it in
/// that.
pub(super) async fn add(connection: &mut AnyConnection, taken: &[Addition]) -> Result<(), StoreError> {
    for Addition { site, claim, updates, secret_rounds } in taken {
        sqlx::query(
            "UPDATE site_ledgers SET answered = answered + $1, secret_rounds = secret_rounds + $2 \
             WHERE site = $3 AND records = $4 AND head = $5",
        )
        .bind(updates.cast_signed())
        .bind(secret_rounds.cast_signed())
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
        self.unwritten.with(|connections| {
            connections.open.insert(site.clone(), Brought { session, claim, updates: 0 });
        });
    }

    /// An update has come over a session. Those of an older session may be in the ledger that a newer one has shown.
    pub(crate) fn count_update(&self, site: &ClientId, session: u64) {
        self.unwritten.with(|connections| {
            let brought = connections.open.get_mut(site).filter(|brought| brought.session == session);
            if let Some(brought) = brought {
                brought.updates += 1;
            }
        });
    }

    /// Counts a round of `run`, which is about to be committed, where its cohorts are secret.
    pub(super) async fn count_secret_round(
        &self,
        connection: &mut AnyConnection,
        run: RunId,
    ) -> Result<(), StoreError> {
        let known = self.unwritten.with(|connections| connections.secret_runs.get(&run).copied());
        let is_secret = match known {
            Some(is_secret) => is_secret,
            None => {
                let sql = sqlx::query("SELECT * FROM runs WHERE run = $1").bind(run.to_string());
                let row = sql.fetch_optional(&mut *connection).await?.ok_or(StoreError::NoSuchRun(run))?;
                let plan_toml: String = row.try_get("plan_toml")?;
                rows::seed(&row)?.is_none() && draws_secretly(&plan_toml)
            }
        };
        self.unwritten.with(|connections| connections.secret_runs.insert(run, is_secret));
        if is_secret {
            add(connection, &self.unwritten.take_secret_round(run)).await?;
        }
        Ok(())
    }

    /// A session is over: what it has brought and is not written down yet is written now.
    pub(crate) async fn end_count(&self, site: &ClientId, session: u64) -> Result<(), StoreError> {
        let ended = self.unwritten.with(|connections| {
            let is_own = connections.open.get(site).is_some_and(|brought| brought.session == session);
            let ended = is_own.then(|| connections.open.remove(site)).flatten()?;
            connections.left.insert(site.clone(), (ended.claim, BTreeSet::new()));
            Some(ended)
        });
        let Some(Brought { claim, updates, .. }) = ended.filter(|brought| brought.updates > 0) else {
            return Ok(());
        };
        let mut transaction = self.begin().await?;
        let brought = Addition { site: site.clone(), claim, updates, secret_rounds: 0 };
        add(&mut transaction, &[brought]).await?;
        Ok(transaction.commit().await?)
    }

    /// The ledger that a site showed last, with what has come since then.
    pub(crate) async fn shown_ledger(&self, site: &ClientId) -> Result<Option<ShownLedger>, StoreError> {
        let found =
            sqlx::query("SELECT records, head, answered, secret_rounds FROM site_ledgers WHERE site = $1");
        let Some(row) = found.bind(site.as_str()).fetch_optional(&self.pool).await? else { return Ok(None) };
        let number =
            |column: &str| -> Result<u64, StoreError> { Ok(row.try_get::<i64, _>(column)?.cast_unsigned()) };
        let text: String = row.try_get("head")?;
        let head = text.parse().map_err(|message| StoreError::Member { name: site.to_string(), message })?;
        let claim = LedgerClaim { records: number("records")?, head };
        let unwritten = self
            .unwritten
            .with(|connections| connections.open.get(site).map_or(0, |brought| brought.updates));
        let answered = number("answered")?.saturating_add(unwritten);
        Ok(Some(ShownLedger { claim, answered, secret_rounds: number("secret_rounds")? }))
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
                "INSERT INTO site_ledgers (records, head, certificate, address, shown, site, answered, secret_rounds)
                 VALUES ($1, $2, $3, $4, $5, $6, 0, 0) ON CONFLICT (site) DO NOTHING"
            }
            Some(_) => {
                "UPDATE site_ledgers SET records = $1, head = $2, certificate = $3, address = $4, shown = $5, answered = 0,
                 secret_rounds = 0 WHERE site = $6 AND records = $7 AND head = $8"
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
