//! The names from which cohorts are drawn, in order: collected once and kept for as long as nobody comes or goes, so that a
//! round costs as much as its cohort and not as its population.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::ClientId;

use super::ClientRecord;
use crate::selection::Urn;

/// See the module.
#[derive(Default)]
pub(super) struct Roster {
    connected: Option<Arc<[ClientId]>>,
    enrolled: Option<Arc<[ClientId]>>,
    /// What is drawn from.
    pub(super) urn: Urn,
}

impl Roster {
    /// Somebody has come or gone.
    pub(super) fn forget_connected(&mut self) {
        self.connected = None;
    }

    /// The names of those who are connected.
    pub(super) fn connected(&mut self, clients: &BTreeMap<ClientId, ClientRecord>) -> Arc<[ClientId]> {
        let names = || {
            let connected = clients.iter().filter(|(_, record)| record.connected);
            connected.map(|(client, _)| client.clone()).collect()
        };
        Arc::clone(self.connected.get_or_insert_with(names))
    }

    /// The names of all that were ever heard of; none is ever forgotten.
    pub(super) fn enrolled(&mut self, clients: &BTreeMap<ClientId, ClientRecord>) -> Arc<[ClientId]> {
        let known = self.enrolled.take().filter(|names| names.len() == clients.len());
        Arc::clone(self.enrolled.insert(known.unwrap_or_else(|| clients.keys().cloned().collect())))
    }
}
