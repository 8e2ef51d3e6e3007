//! Sites that get no task: to the runs they are as absent as a site whose line is down, and what they owed is refused.

use protocol::{ClientId, Refusal, RunId};

use super::{Engine, Order};
use crate::Event;
use crate::net::store::StoreError;

impl Engine {
    /// Holds a client back from every run, or lets it take part again.
    pub(super) fn hold(&mut self, client: ClientId, held: bool) -> Result<(), StoreError> {
        if !held {
            let was_held = self.held.remove(&client);
            if was_held && self.links.contains_key(&client) {
                self.event_everywhere(|| Event::Joined(client.clone()))?;
            }
            return Ok(());
        }
        if !self.held.insert(client.clone()) {
            return Ok(());
        }
        // A round that opens because this answer is not awaited any more must not ask this client again.
        self.event_everywhere(|| Event::Left(client.clone()))?;
        let runs: Vec<RunId> = self.active.keys().copied().collect();
        for run in runs {
            let owed = self.active.get(&run).and_then(|active| active.coordinator.owed(&client));
            if let Some(task) = owed {
                let (client, reason) = (client.clone(), Refusal::Quarantined);
                // Its stream is given up first, so that its site stops working.
                self.order(&client, Order::Cancel(task));
                self.event(run, Event::Refused { client, task: Some(task), reason })?;
            }
        }
        Ok(())
    }
}
