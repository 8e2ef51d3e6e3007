//! The ledgers that sites have shown, one row a site, and what may have been reserved in them since.
//!
//! Updates are counted in memory and written in the transaction that commits their round, so that a server that is killed has
//! forgotten none that moved a model. They leave memory once that transaction is durable; one that fails leaves them to the next. Of runs whose cohorts are secret no update is counted: each committed round counts for every site
//! that was connected, which bounds what a site has reserved and does not depend on who was drawn.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use privacy::chain::Digest;
use protocol::wire::LedgerClaim;
use protocol::{ClientId, RunId};
use sqlx::{AnyConnection, Row};
use tokio::sync::Notify;

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
pub(super) struct Unwritten {
    connections: Mutex<Connections>,
    /// Told when a transaction that was to write some of it has ended, whichever way.
    ended: Notify,
}

#[derive(Default)]
struct Connections {
    open: BTreeMap<ClientId, Brought>,
    /// Sites that left, with the ledger that they had shown, and the runs of which a round was committed since: each may have been asked
    /// for one that was open when it left.
    left: BTreeMap<ClientId, (LedgerClaim, BTreeSet<RunId>)>,
    /// Whether the cohorts of a run are secret.
    secret_runs: BTreeMap<RunId, bool>,
    /// What ended sessions, and transactions that failed, have left for the next transaction.
    owed: Vec<Addition>,
    /// Transactions under way that write additions, by site.
    writing: BTreeMap<ClientId, usize>,
    /// Transactions that have ended, so that a reader notices one that began and ended meanwhile.
    transactions: u64,
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

/// Additions that one transaction writes, however often it is tried. Unless it is [written](Taken::written), the updates are owed again
/// when this is dropped, and the secret round was none.
pub(super) struct Taken<'a> {
    from: &'a Unwritten,
    updates: Vec<Addition>,
    secret: Option<SecretRound>,
    is_written: bool,
}

/// One round of a run with secret cohorts.
struct SecretRound {
    run: RunId,
    additions: Vec<Addition>,
    /// Sites that had left, for which this run is counted from here on.
    counted: Vec<ClientId>,
}

impl Unwritten {
    /// The updates that are not written down, of sessions that are over, too.
    pub(super) fn take(&self) -> Taken<'_> {
        self.taken(|connections| {
            let brought = connections.open.iter_mut().filter(|(_, brought)| brought.updates > 0);
            let of_open = brought.map(|(site, brought)| Addition {
                site: site.clone(),
                claim: brought.claim,
                updates: std::mem::take(&mut brought.updates),
                secret_rounds: 0,
            });
            std::mem::take(&mut connections.owed).into_iter().chain(of_open).collect()
        })
    }

    /// Those of sessions that are over, and of transactions that failed.
    fn take_owed(&self) -> Taken<'_> {
        self.taken(|connections| std::mem::take(&mut connections.owed))
    }

    fn taken(&self, take: impl FnOnce(&mut Connections) -> Vec<Addition>) -> Taken<'_> {
        let updates = self.with(|connections| {
            let updates = take(connections);
            connections.begin(&updates);
            updates
        });
        Taken { from: self, updates, secret: None, is_written: false }
    }

    /// Waits until no transaction writes additions of this site. Gives how many transactions have ended.
    async fn at_rest(&self, site: &ClientId) -> u64 {
        loop {
            // Made before the look: it hears of all that ends from here on.
            let ended = self.ended.notified();
            let rests = self.with(|connections| {
                (!connections.writing.contains_key(site)).then_some(connections.transactions)
            });
            match rests {
                Some(transactions) => return transactions,
                None => ended.await,
            }
        }
    }

    /// Updates of a site since it showed `claim` that are in no row; `None` where a transaction of that site has begun or ended since
    /// `transactions` had.
    fn updates_since(&self, transactions: u64, site: &ClientId, claim: LedgerClaim) -> Option<u64> {
        self.with(|connections| {
            if connections.transactions != transactions || connections.writing.contains_key(site) {
                return None;
            }
            let of_open = connections.open.get(site).map_or(0, |brought| brought.updates);
            let of_ledger = |addition: &&Addition| addition.site == *site && addition.claim == claim;
            let owed = connections.owed.iter().filter(of_ledger).map(|addition| addition.updates);
            Some(owed.fold(of_open, u64::saturating_add))
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connections) -> T) -> T {
        work(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Connections {
    fn begin(&mut self, additions: &[Addition]) {
        for addition in additions {
            *self.writing.entry(addition.site.clone()).or_default() += 1;
        }
    }

    fn end(&mut self, additions: &[Addition]) {
        for addition in additions {
            if let Entry::Occupied(mut writing) = self.writing.entry(addition.site.clone()) {
                *writing.get_mut() -= 1;
                if *writing.get() == 0 {
                    writing.remove();
                }
            }
        }
    }

    /// One round of a run with secret cohorts, for every site that is connected or has left since the round before.
    fn secret_round(&mut self, run: RunId) -> SecretRound {
        let one =
            |site: &ClientId, claim| Addition { site: site.clone(), claim, updates: 0, secret_rounds: 1 };
        let mut additions: Vec<_> =
            self.open.iter().map(|(site, brought)| one(site, brought.claim)).collect();
        let mut newly_counted = Vec::new();
        for (site, (claim, counted)) in &mut self.left {
            let is_open = self.open.get(site).is_some_and(|brought| brought.claim == *claim);
            if counted.insert(run) {
                newly_counted.push(site.clone());
                if !is_open {
                    additions.push(one(site, *claim));
                }
            }
        }
        SecretRound { run, additions, counted: newly_counted }
    }
}

impl Taken<'_> {
    /// Counts one round of a run with secret cohorts, once.
    fn count_secret_round(&mut self, run: RunId) {
        if self.secret.is_none() {
            self.secret = Some(self.from.with(|connections| {
                let round = connections.secret_round(run);
                connections.begin(&round.additions);
                round
            }));
        }
    }

    fn additions(&self) -> impl Iterator<Item = &Addition> {
        self.updates.iter().chain(self.secret.iter().flat_map(|round| &round.additions))
    }

    /// Adds all of it to the rows.
    pub(super) async fn add(&self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        add(connection, self.additions()).await
    }

    /// The transaction is durable: nothing of it is owed any more.
    pub(super) fn written(mut self) {
        self.is_written = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let (updates, secret) = (std::mem::take(&mut self.updates), self.secret.take());
        self.from.with(|connections| {
            connections.end(&updates);
            connections.transactions += 1;
            if !self.is_written {
                connections.owed.extend(updates);
            }
            let Some(SecretRound { run, additions, counted }) = secret else { return };
            connections.end(&additions);
            for site in counted.iter().filter(|_| !self.is_written) {
                if let Some((_, counted)) = connections.left.get_mut(site) {
                    counted.remove(&run);
                }
            }
        });
        self.from.ended.notify_waiters();
    }
}

/// Adds to what is remembered of the ledger that was shown before it came. A site that has shown a later one meanwhile has reserved it in
/// that.
async fn add(
    connection: &mut AnyConnection,
    additions: impl Iterator<Item = &Addition>,
) -> Result<(), StoreError> {
    for Addition { site, claim, updates, secret_rounds } in additions {
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
        taken: &mut Taken<'_>,
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
            taken.count_secret_round(run);
        }
        Ok(())
    }

    /// A session is over: what it has brought and is not written down yet is written now, or else with the next round.
    pub(crate) async fn end_count(&self, site: &ClientId, session: u64) -> Result<(), StoreError> {
        let is_owed = self.unwritten.with(|connections| {
            let is_own = connections.open.get(site).is_some_and(|brought| brought.session == session);
            let ended = is_own.then(|| connections.open.remove(site)).flatten();
            if let Some(Brought { claim, updates, .. }) = ended {
                connections.left.insert(site.clone(), (claim, BTreeSet::new()));
                if updates > 0 {
                    let site = site.clone();
                    connections.owed.push(Addition { site, claim, updates, secret_rounds: 0 });
                }
            }
            !connections.owed.is_empty()
        });
        if !is_owed {
            return Ok(());
        }
        let taken = self.unwritten.take_owed();
        let mut transaction = self.begin().await?;
        taken.add(&mut transaction).await?;
        transaction.commit().await?;
        taken.written();
        Ok(())
    }

    /// The ledger that a site showed last, with what has come since then: each update once, in its row or still in memory.
    pub(crate) async fn shown_ledger(&self, site: &ClientId) -> Result<Option<ShownLedger>, StoreError> {
        loop {
            let transactions = self.unwritten.at_rest(site).await;
            let Some(shown) = self.shown_row(site).await? else { return Ok(None) };
            // A transaction has come in between, and its updates may be in neither or in both.
            let Some(unwritten) = self.unwritten.updates_since(transactions, site, shown.claim) else {
                continue;
            };
            return Ok(Some(ShownLedger { answered: shown.answered.saturating_add(unwritten), ..shown }));
        }
    }

    async fn shown_row(&self, site: &ClientId) -> Result<Option<ShownLedger>, StoreError> {
        let found =
            sqlx::query("SELECT records, head, answered, secret_rounds FROM site_ledgers WHERE site = $1");
        let Some(row) = found.bind(site.as_str()).fetch_optional(&self.pool).await? else { return Ok(None) };
        let number =
            |column: &str| -> Result<u64, StoreError> { Ok(row.try_get::<i64, _>(column)?.cast_unsigned()) };
        let text: String = row.try_get("head")?;
        let head = text.parse().map_err(|message| StoreError::Member { name: site.to_string(), message })?;
        let claim = LedgerClaim { records: number("records")?, head };
        let (answered, secret_rounds) = (number("answered")?, number("secret_rounds")?);
        Ok(Some(ShownLedger { claim, answered, secret_rounds }))
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
