//! Whether a site that connects still has the ledger that it had: a copy of its folder on another machine, or an older backup, would
//! have the whole budget once more.
//!
//! A site says how long its ledger is and which record is the last. The server remembers that, durably, and asks a site that comes back
//! with another length for the head that it had at the remembered one. It knows no record, believes no length before it has seen that head, and
//! counts the updates that come, each of which an honest ledger has reserved: so two copies are told apart even where both showed the same.
//! Updates of runs with secret cohorts are not counted, since whoever has a copied certificate could read from a refusal who was drawn: there
//! two copies are told apart once one of them has shown a longer ledger.
//! A site that never claimed a ledger is let in without one. It decides nothing about budgets: those are the site's.

use std::sync::Arc;

use privacy::chain::Digest;
use protocol::ClientId;
use protocol::wire::{ConnectError, LedgerClaim, LedgerProof};

use crate::net::store::{Showing, ShownLedger, Store, StoreError};

/// See the module.
pub(crate) struct Ledgers {
    store: Arc<Store>,
}

/// What is to be done with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It is the ledger that is remembered, the first, or none where none is remembered.
    Welcome(Option<ShownLedger>),
    /// A head of this length is to be shown.
    Prove(ShownLedger, LedgerClaim),
    /// It is another ledger.
    Refused(ConnectError),
}

/// How a proof came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proven {
    /// The ledger goes on from the remembered one.
    GoesOn,
    /// It does not, and says that the loss of that one is reserved.
    Replaces,
}

impl Ledgers {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// What a claim is worth, before anything was proven.
    pub(crate) async fn judge(
        &self,
        site: &ClientId,
        claim: Option<LedgerClaim>,
    ) -> Result<Judged, StoreError> {
        let known = self.store.shown_ledger(site).await?;
        Ok(match (known, claim) {
            (None, _) => Judged::Welcome(None),
            (Some(_), None) => Judged::Refused(ConnectError::LedgerMissing),
            (Some(known), Some(claim)) if known.claim == claim && known.answered == 0 => {
                Judged::Welcome(Some(known))
            }
            (Some(known), Some(claim)) => Judged::Prove(known, claim),
        })
    }

    /// Remembers what a session claims in the place of `known`. Whether another connection of the site was not quicker.
    pub(crate) async fn remember(
        &self,
        site: &ClientId,
        session: u64,
        known: Option<ShownLedger>,
        claim: LedgerClaim,
        showing: &Showing,
    ) -> Result<bool, StoreError> {
        let is_same = known.is_some_and(|known| known.claim == claim && known.answered == 0);
        let shown = is_same || self.store.show_ledger(site, known, claim, showing).await?;
        if shown {
            self.store.count_updates(site, session, claim);
        }
        Ok(shown)
    }

    /// A session has brought an update, which an honest ledger has reserved.
    pub(crate) fn answered(&self, site: &ClientId, session: u64) {
        self.store.count_update(site, session);
    }

    /// A session is over: what it brought is written down.
    pub(crate) async fn settle(&self, site: &ClientId, session: u64) {
        if let Err(error) = self.store.end_count(site, session).await {
            tracing::warn!("the last updates of {site} could not be written down: {error}");
        }
    }
}

/// Whether a claim and its proof go on from what is remembered.
pub(crate) fn check(
    known: ShownLedger,
    claim: LedgerClaim,
    proof: &LedgerProof,
) -> Result<Proven, ConnectError> {
    let grown = known.claim.records.checked_add(known.answered).is_some_and(|least| claim.records >= least);
    if grown && proof.head == Some(known.claim.head) {
        return Ok(Proven::GoesOn);
    }
    // A site that believes it charges as many records: what nobody may count is charged by its bound.
    let answered = known.answered.saturating_add(known.secret_rounds);
    let name = known.claim.name_of_loss(answered);
    // Zeros are no name: older sites say them of losses whose ledger they could only count.
    if proof.replaced.contains(&name) && name != Digest::default() {
        return Ok(Proven::Replaces);
    }
    Err(ConnectError::LedgerForked { known: known.claim, answered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(records: u64, head: &str) -> LedgerClaim {
        LedgerClaim { records, head: Digest::of(head.as_bytes()) }
    }

    fn proof(head: Option<&str>, replaced: &[&str]) -> LedgerProof {
        let of = |text: &str| Digest::of(text.as_bytes());
        LedgerProof { head: head.map(of), replaced: replaced.iter().map(|text| of(text)).collect() }
    }

    #[test]
    fn a_ledger_goes_on_where_it_has_the_remembered_head_and_a_record_for_every_update() {
        let known = ShownLedger { claim: claim(5, "a"), answered: 2, secret_rounds: 0 };
        assert_eq!(check(known, claim(7, "b"), &proof(Some("a"), &[])), Ok(Proven::GoesOn));
        let forked = ConnectError::LedgerForked { known: known.claim, answered: 2 };
        for (records, head) in [(6, Some("a")), (5, Some("a")), (4, None), (7, Some("x")), (u64::MAX, None)] {
            let refused = check(known, claim(records, "b"), &proof(head, &["y"]));
            assert_eq!(refused, Err(forked.clone()), "{records} {head:?}");
        }
        assert_eq!(check(known, claim(6, "b"), &proof(None, &["y", "a"])), Ok(Proven::Replaces));
        let most = ShownLedger { answered: u64::MAX, ..known };
        assert!(check(most, claim(u64::MAX, "b"), &proof(Some("a"), &[])).is_err());
    }

    #[test]
    fn rounds_of_secret_cohorts_ask_for_no_record_and_are_told_as_a_bound_to_a_ledger_that_is_refused() {
        let known = ShownLedger { claim: claim(5, "a"), answered: 2, secret_rounds: 40 };
        assert_eq!(check(known, claim(7, "b"), &proof(Some("a"), &[])), Ok(Proven::GoesOn));
        let undrawn = ShownLedger { answered: 0, ..known };
        assert_eq!(check(undrawn, claim(5, "a"), &proof(Some("a"), &[])), Ok(Proven::GoesOn));
        let forked = ConnectError::LedgerForked { known: known.claim, answered: 42 };
        assert_eq!(check(known, claim(7, "b"), &proof(None, &[])), Err(forked));
    }

    #[test]
    fn a_ledger_without_records_is_replaced_by_one_that_has_reserved_exactly_the_updates_it_has_had() {
        let empty = ShownLedger { claim: LedgerClaim::default(), answered: 3, secret_rounds: 0 };
        let nothing = LedgerProof { head: Some(Digest::default()), replaced: vec![Digest::default()] };
        assert!(check(empty, LedgerClaim::default(), &nothing).is_err());
        assert_eq!(check(empty, claim(3, "a"), &nothing), Ok(Proven::GoesOn));
        let reserved =
            |updates| LedgerProof { head: None, replaced: vec![empty.claim.name_of_loss(updates)] };
        assert_eq!(check(empty, claim(2, "a"), &reserved(3)), Ok(Proven::Replaces));
        for other in [0, 2, 4] {
            assert!(check(empty, claim(2, "a"), &reserved(other)).is_err(), "{other}");
        }
    }
}
