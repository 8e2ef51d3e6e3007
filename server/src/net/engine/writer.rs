//! What a run gives to its store, on blocking threads: a reservation, a commit. Each is durable when it returns; nothing of the run
//! goes on before.

use protocol::{Layout, RunId};

use super::shared::Shared;
use crate::net::store::StoreError;
use crate::net::store::crash;
use crate::{Commit, LedgerReservation};

/// Stores a reservation.
pub(super) fn reserve(shared: &Shared, reservation: &LedgerReservation) -> Result<(), StoreError> {
    shared.storage.wait_for(async || shared.store.append_to_ledger(reservation).await)
}

/// Stores a commit; gives the model's fingerprint.
pub(super) fn commit(
    shared: &Shared,
    run: RunId,
    layout: &Layout,
    commit: &Commit,
) -> Result<String, StoreError> {
    let Shared { store, storage, clock, journal, meter, .. } = shared;
    let now = clock.now();
    let mut prepared = storage.wait_for(async || store.prepare(run, layout, commit).await)?;
    let is_new = storage.wait_for(async || store.write(&mut prepared).await)?;
    let written = store.written(prepared);
    if is_new {
        // On disk in the log before anybody can read it: what was released is known to two books, whatever becomes of one.
        let (round, model_sha256) = (commit.summary.round, written.model_sha256.clone());
        journal.write_blocking(move |log| log.released(now, run, round, &model_sha256))?;
        crash::point("release-logged");
    }
    storage.wait_for(async || store.finish(run, &written).await)?;
    shared.unused.notify_one();
    meter.committed(clock.now(), run, commit.summary.seconds);
    Ok(written.model_sha256)
}
