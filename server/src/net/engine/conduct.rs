//! What ledgers must know of runs besides their charges, declared before anything is counted.
//!
//! Amplification by sampling is counted only for runs whose cohorts the ledger declares secret. A run declares it when it begins.
//! Runs of earlier versions have declared nothing: what their plans and seeds say is declared when the server starts, and
//! what cannot be shown any more counts as known.

use std::collections::BTreeSet;

use privacy::chain::Link;
use privacy::ledger::Ledger;

use super::shared::Shared;
use crate::LedgerReservation;
use crate::net::store::StoreError;
use crate::plan::conduct_of;

impl Shared {
    /// Declares the runs of every ledger of which nothing is declared yet. A damaged ledger is passed over: a run that needs it
    /// will say so.
    pub(super) fn declare_earlier_runs(&self) -> Result<(), StoreError> {
        for population in self.storage.wait_for(async || self.store.populations().await)? {
            let links = match self.storage.wait_for(async || self.store.ledger(&population).await) {
                Err(StoreError::Ledger { .. }) => continue,
                links => links?,
            };
            let Ok(mut ledger) = Ledger::replay(&links) else { continue };
            let links = self.declare(&mut ledger, None)?;
            self.book_declarations(population, links)?;
        }
        Ok(())
    }

    /// Declares every run of the ledger of which nothing is declared, and `beginning`. Gives the records that are to be stored.
    pub(super) fn declare(
        &self,
        ledger: &mut Ledger,
        beginning: Option<String>,
    ) -> Result<Vec<Link>, StoreError> {
        let charged = ledger.run_charges().into_iter().map(|charged| charged.run);
        let runs: BTreeSet<String> = charged.chain(beginning).collect();
        let mut links = Vec::new();
        for run in runs {
            if ledger.conduct(&run).is_some() {
                continue;
            }
            // A run that is not here counts as known, as does one that declares so.
            let origin = self.storage.wait_for(async || self.store.origin(&run).await)?;
            let Some((plan_toml, is_seeded)) = origin else {
                continue;
            };
            links.extend(ledger.declare(&run, conduct_of(&plan_toml, is_seeded)));
        }
        Ok(links)
    }

    /// Stores what was declared, before anything is counted by it.
    pub(super) fn book_declarations(&self, population: String, links: Vec<Link>) -> Result<(), StoreError> {
        if links.is_empty() {
            return Ok(());
        }
        let reservation = LedgerReservation { population, links };
        self.storage.wait_for(async || self.store.append_to_ledger(&reservation).await)
    }
}
