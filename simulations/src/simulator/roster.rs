//! Every client's number, found by its name.

use std::sync::Arc;

use protocol::{Capabilities, ClientId};
use server::Event;

use crate::Workforce;

/// See the module.
pub(super) struct Roster<'a> {
    pub(super) workforce: &'a dyn Workforce,
    /// The numbers in order of their names.
    pub(super) sorted: Vec<u32>,
    capabilities: Arc<Capabilities>,
}

impl<'a> Roster<'a> {
    pub(super) fn new(workforce: &'a dyn Workforce) -> Self {
        let clients = workforce.clients();
        let mut sorted: Vec<u32> = (0u32..).take(clients.len()).collect();
        sorted.sort_unstable_by_key(|number| &clients[*number as usize]);
        Self {
            workforce,
            sorted,
            capabilities: Arc::new(workforce.methods().capabilities(workforce.trains())),
        }
    }

    /// What a coordinator is told when these come.
    pub(super) fn join(&self, clients: Vec<ClientId>) -> Event {
        Event::JoinedTogether { clients, capabilities: Arc::clone(&self.capabilities) }
    }

    /// The number of a client that the coordinator knows, and so was told of from here.
    pub(super) fn find(&self, client: &ClientId) -> Option<usize> {
        let clients = self.workforce.clients();
        let place = self.sorted.binary_search_by_key(&client, |number| &clients[*number as usize]).ok()?;
        Some(self.sorted[place] as usize)
    }

    /// All clients in order of their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &ClientId> {
        self.sorted.iter().map(|number| &self.workforce.clients()[*number as usize])
    }
}
