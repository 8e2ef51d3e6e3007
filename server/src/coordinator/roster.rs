//! The names from which cohorts are drawn, in order: collected once and kept for as long as nobody comes or goes, so that a
//! round costs as much as its cohort and not as its population. And what happens when somebody does.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::{Capabilities, ClientId, Task, Time};

use super::{Action, ClientRecord, Coordinator, ParticipantStatus, Phase};
use crate::selection::Sampler;

/// See the module.
#[derive(Default)]
pub(super) struct Roster {
    connected: Option<Arc<[ClientId]>>,
    enrolled: Option<Arc<[ClientId]>>,
    /// What is drawn from.
    pub(super) sampler: Sampler,
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

impl Coordinator {
    /// These clients are connected.
    pub(super) fn joined_together(&mut self, clients: Vec<ClientId>, known: &Arc<Capabilities>) {
        if !self.clients.is_empty() {
            return clients.into_iter().for_each(|client| self.joined(client, Arc::clone(known)));
        }
        clients.iter().for_each(|client| self.abilities.learn(client, Arc::clone(known)));
        // Nobody was known, so nobody owes anything. Built at once, the map of a million takes half the memory and little time.
        let record = ClientRecord { connected: true, ..ClientRecord::default() };
        self.clients = clients.into_iter().map(|client| (client, record.clone())).collect();
        self.connected = self.clients.len();
        self.roster.forget_connected();
    }

    /// A client is connected; what it owes is put to it once more.
    pub(super) fn joined(&mut self, client: ClientId, known: Arc<Capabilities>) {
        self.abilities.learn(&client, known);
        if self.plan.spec.privacy.samples_secretly() && !self.clients.contains_key(&client) {
            // Who is enrolled is stored at once: it must not depend on who was drawn.
            self.changed.insert(client.clone());
        }
        let record = self.clients.entry(client.clone()).or_default();
        self.connected += usize::from(!record.connected);
        record.connected = true;
        self.roster.forget_connected();
        let Phase::Open(open) = &mut self.phase else { return };
        open.tracker.came_back(&client);
        if open.tracker.status(&client) == Some(ParticipantStatus::Waiting) {
            self.send_open_task(client);
        }
    }

    /// Sends the open task to a client, as the attempt that it has.
    pub(super) fn send_open_task(&mut self, client: ClientId) {
        let Phase::Open(open) = &self.phase else { return };
        let task = Task { id: open.tracker.task_of(&client), ..open.task.clone() };
        self.actions.push_back(Action::Send { client, task });
    }

    /// A client's connection is gone.
    pub(super) fn left(&mut self, now: Time, client: &ClientId) {
        if let Phase::Open(open) = &mut self.phase {
            open.tracker.left(client, now);
        }
        if let Some(record) = self.clients.get_mut(client) {
            self.connected -= usize::from(record.connected);
            record.connected = false;
            self.roster.forget_connected();
        }
    }
}
