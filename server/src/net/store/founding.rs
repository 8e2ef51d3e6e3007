//! Where a population's ledger begins, and what it owes for releases that nobody remembers.
//!
//! A state that was brought back from a backup does not know the populations that were founded after it, and each could spend its
//! whole budget a second time. So as many releases as may have been lost are charged to every ledger that holds no charge yet, before
//! the first run that names it: by that run's charge, since nothing else is known. The number stays with the state for good.

use privacy::chain::Link;
use privacy::ledger::{Charge, Ledger, Record, Terms};
use sqlx::Row as _;

use super::{BackupError, Store, StoreError};
use crate::LedgerReservation;

/// The run in whose name releases are charged that no state knows of.
const UNKNOWN_RUN: &str = "after-backup";

/// The ledger of a population that a run is about to pay from.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) ledger: Ledger,
    /// Releases that were charged just now, since a backup may have forgotten them.
    pub(crate) charged: u64,
}

impl Store {
    /// The ledger on these terms, founded if nobody has named its population before; what is owed is charged, in the same
    /// transaction, by the `charge` of the run that is about to begin.
    ///
    /// # Errors
    /// [`BackupError::Ledger`] for a ledger that is damaged or has other terms; [`BackupError::Store`].
    pub(crate) async fn open_ledger(&self, terms: Terms, charge: &Charge) -> Result<Opened, BackupError> {
        let population = terms.population.clone();
        let fault = |message: String| BackupError::Ledger { population: population.clone(), message };
        let wrong = |error: privacy::ledger::LedgerError| fault(error.to_string());
        let known = self.ledger(&population).await?;
        let mut reservation = LedgerReservation { population: population.clone(), links: vec![] };
        let mut ledger = if known.is_empty() {
            let (ledger, first) = Ledger::found(terms.clone()).map_err(wrong)?;
            reservation.links.push(first);
            ledger
        } else {
            Ledger::replay(&known).map_err(wrong)?
        };
        ledger.agree(&terms).map_err(wrong)?;
        let mut charged = 0;
        if charges_in(&known).is_empty() {
            charged = self.owed().await?;
            let made = book_unknown(&mut ledger, std::slice::from_ref(charge), charged).map_err(fault)?;
            reservation.links.extend(made);
        }
        if !reservation.links.is_empty() {
            self.append_to_ledger(&reservation).await?;
        }
        Ok(Opened { ledger, charged })
    }

    /// Releases that this state may have forgotten, over all the times that it was brought back.
    pub(super) async fn owed(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT lost_releases FROM restored").fetch_optional(&self.pool).await?;
        let owed = row.map(|row| row.try_get::<i64, _>(0)).transpose()?.unwrap_or(0);
        Ok(owed.cast_unsigned())
    }
}

/// What a ledger has charged so far, releases that were not made included.
pub(super) fn charges_in(links: &[Link]) -> Vec<Charge> {
    let charge = |record| match record {
        Record::Reserved { charge, .. } | Record::Spent { charge, .. } => Some(charge),
        _ => None,
    };
    links.iter().filter_map(|link| link.read().ok()).filter_map(charge).collect()
}

/// Books `releases` that may have been charged as any of `candidates`: as that which raises epsilon most, also beyond the budget.
/// Nothing without candidates.
pub(super) fn book_unknown(
    ledger: &mut Ledger,
    candidates: &[Charge],
    releases: u64,
) -> Result<Vec<Link>, String> {
    if releases == 0 {
        return Ok(vec![]);
    }
    let dearest = ledger.dearest_charge(candidates, releases).map_err(|error| error.to_string())?;
    let Some(charge) = dearest else { return Ok(vec![]) };
    let made = ledger.book_made(UNKNOWN_RUN, &charge, releases).map_err(|error| error.to_string())?;
    Ok(made.into())
}
