//! How many connections one name may have at a time, of a kind of which a few are enough.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use protocol::ClientId;

/// Connections of one site that have not been greeted, at a time. An honest site has one; one that opens more and says
/// nothing must not take the seats of others.
const NEWCOMERS: usize = 4;

/// Connections by the name in their certificate, a few for each: those that have not been greeted, or streams over TCP.
#[derive(Default)]
pub(crate) struct Newcomers(Mutex<BTreeMap<ClientId, usize>>);

impl Newcomers {
    /// Counts one more while what is returned lives; `None` when the site has all it may.
    pub(crate) fn admit<'a>(&'a self, client: &'a ClientId) -> Option<Newcomer<'a>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(client.clone()).or_default();
        (*count < NEWCOMERS).then(|| {
            *count += 1;
            Newcomer { all: self, client }
        })
    }
}

/// One of the few.
pub(crate) struct Newcomer<'a> {
    all: &'a Newcomers,
    client: &'a ClientId,
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.client);
            }
        }
    }
}
