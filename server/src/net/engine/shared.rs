//! What all runs share. Each part has one owner that changes it: the dispatcher changes who is connected, the journal writes the audit
//! log, a run changes its own line of the live summary.

#![expect(clippy::disallowed_methods, reason = "this is the shell that tells coordinators the time")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use protocol::{Capabilities, ClientId, Time};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::messages::ModelRoom;
use super::metrics::Metrics;
use super::uploads::Spare;
use super::{Command, Link, LiveRuns, Order};
use crate::net::store::Store;
use crate::net::store::outage::Patience;
use crate::net::transport::messages::CODE_MISBEHAVED;

/// See the module.
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    /// How blocking threads use the store.
    pub(super) storage: Patience,
    pub(super) room: Arc<dyn ModelRoom>,
    pub(super) clock: Clock,
    pub(super) journal: Journal,
    pub(super) sites: Sites,
    pub(super) live: watch::Sender<LiveRuns>,
    pub(super) spare: Arc<Spare>,
    pub(super) meter: Arc<Metrics>,
    pub(super) commands: mpsc::WeakSender<Command>,
    /// How many answers may be checked on blocking threads at a time.
    pub(super) verifications: Arc<Semaphore>,
    /// Told when a commit has put files out of use.
    pub(super) unused: Notify,
    /// Cancelled when the engine ends, for whatever reason.
    pub(super) halt: CancellationToken,
}

/// Microseconds since the Unix epoch that never go backwards.
pub(super) struct Clock {
    epoch: Time,
    started: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { epoch: Time::ZERO + epoch, started: Instant::now() }
    }

    pub(super) fn now(&self) -> Time {
        self.epoch + self.started.elapsed()
    }
}

/// The connected sites, each by its newest session.
#[derive(Default)]
pub(super) struct Sites(Mutex<BTreeMap<ClientId, Link>>);

impl Sites {
    /// Takes in a session; gives the one that it replaces.
    pub(super) fn join(&self, client: ClientId, link: Link) -> Option<Link> {
        self.links().insert(client, link)
    }

    /// A session is over. Whether it was the site's newest.
    pub(super) fn leave(&self, client: &ClientId, session: u64) -> bool {
        let mut links = self.links();
        let is_newest = links.get(client).is_some_and(|link| link.session == session);
        if is_newest {
            links.remove(client);
        }
        is_newest
    }

    /// The newest session of a connected site.
    pub(super) fn session(&self, client: &ClientId) -> Option<u64> {
        self.links().get(client).map(|link| link.session)
    }

    /// The newest session of a connected site, and what the site knows.
    pub(super) fn greeted(&self, client: &ClientId) -> Option<(u64, Arc<Capabilities>)> {
        self.links().get(client).map(Link::greeted)
    }

    /// The same of all connected sites.
    pub(super) fn all_greeted(&self) -> Vec<(ClientId, (u64, Arc<Capabilities>))> {
        self.links().iter().map(|(client, link)| (client.clone(), link.greeted())).collect()
    }

    /// Passes an order to a session; to none where that is over or was replaced.
    pub(super) fn send(&self, client: &ClientId, session: u64, order: Order) {
        let links = self.links();
        let Some(link) = links.get(client).filter(|link| link.session == session) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = link.orders.try_send(order) {
            link.connection.close(CODE_MISBEHAVED, b"the connection does not keep up");
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<ClientId, Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
