//! Which sites are connected, since when, and when those that are not were seen last. For eyes: nothing is decided from it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use protocol::{ClientId, wire};
use tokio::sync::watch;
use tunnel::Tunnels;

use crate::net::membership::members::now;
use crate::net::transport::strangers::Origin;

/// What is known of a site's connection since the server was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The session that is open.
    session: Option<u64>,
    /// When it was greeted last, in seconds since the Unix epoch.
    pub(crate) greeted: u64,
    /// When its connection ended, if it has.
    pub(crate) left: Option<u64>,
    /// From where, and how, it came.
    pub(crate) address: String,
    /// What its program calls itself.
    pub(crate) software: String,
    /// When a connection that was open was ended by a newer one, of late.
    displaced: Vec<u64>,
}

impl Seen {
    /// What operators are told of it.
    pub(crate) fn told(self) -> wire::Seen {
        let Self { greeted, left, address, software, .. } = self;
        wire::Seen { since: greeted, left, address, software }
    }
}

/// A connection that was open and was ended by a newer one of the same site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Displaced {
    /// Where the older one came from.
    pub(crate) before: String,
    /// How often that has happened of late, this time included.
    pub(crate) times: u64,
}

impl Displaced {
    /// Whether it happens too often for a line that was lost: two programs may have the same key.
    pub(crate) fn alternates(&self) -> bool {
        self.times >= ALTERNATES
    }

    /// Whether this time is to be told, among many.
    pub(crate) fn is_told(&self) -> bool {
        self.times == ALTERNATES || self.alternates() && self.times.is_power_of_two()
    }
}

/// Displacements within [`OF_LATE`] from which on two connections take turns.
const ALTERNATES: u64 = 3;
/// For how long a displacement counts, in seconds.
const OF_LATE: u64 = 600;
/// Displacements of a site that are remembered at most.
const DISPLACED_MAX: usize = 64;

/// See the module. Only who has a certificate is ever in it.
#[derive(Debug)]
pub(crate) struct Presence {
    sites: Mutex<BTreeMap<ClientId, Seen>>,
    changed: watch::Sender<()>,
    tunnels: Tunnels,
}

impl Presence {
    pub(crate) fn new(tunnels: Tunnels) -> Self {
        Self { sites: Mutex::default(), changed: watch::Sender::new(()), tunnels }
    }

    /// What to call the place with this address: a peer in a tunnel is where its TCP stream comes from.
    pub(crate) fn place(&self, address: SocketAddr) -> String {
        self.tunnels.peer(address).map_or_else(|| address.to_string(), |peer| format!("{peer} (TCP)"))
    }

    /// Whose address that is: a peer in a tunnel is where its TCP stream comes from.
    pub(crate) fn origin(&self, address: SocketAddr) -> Origin {
        Origin::of(self.tunnels.peer(address).unwrap_or(address))
    }

    /// Streams over TCP that are open.
    pub(crate) fn tunnels(&self) -> usize {
        self.tunnels.count()
    }

    /// A site has been greeted; a session that it had before counts no more.
    pub(crate) fn arrive(
        &self,
        site: &ClientId,
        session: u64,
        address: String,
        software: String,
    ) -> Option<Displaced> {
        let (now, mut before) = (now(), None);
        self.change(|sites| {
            let mut displaced = Vec::new();
            if let Some(seen) = sites.get_mut(site) {
                displaced = std::mem::take(&mut seen.displaced);
                displaced.retain(|at| now.saturating_sub(*at) < OF_LATE);
                if seen.session.is_some() {
                    displaced.push(now);
                    displaced.drain(..displaced.len().saturating_sub(DISPLACED_MAX));
                    let times = displaced.len() as u64;
                    before = Some(Displaced { before: seen.address.clone(), times });
                }
            }
            let seen =
                Seen { session: Some(session), greeted: now, left: None, address, software, displaced };
            sites.insert(site.clone(), seen);
        });
        before
    }

    /// A session is over.
    pub(crate) fn leave(&self, site: &ClientId, session: u64) {
        self.change(|sites| {
            if let Some(seen) = sites.get_mut(site).filter(|seen| seen.session == Some(session)) {
                (seen.session, seen.left) = (None, Some(now()));
            }
        });
    }

    /// How many are connected.
    pub(crate) fn connected(&self) -> usize {
        self.sites().values().filter(|seen| seen.left.is_none()).count()
    }

    /// Everybody who was seen.
    pub(crate) fn sites(&self) -> BTreeMap<ClientId, Seen> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes when somebody comes or goes.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ClientId, Seen>)) {
        change(&mut self.sites.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_that_was_replaced_does_not_take_its_site_away() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, udp).unwrap();
        let (_socket, tunnels) = tunnel::ServerSocket::new(udp);
        let (presence, north) = (Presence::new(tunnels), ClientId::new("north").unwrap());
        let arrive =
            |session| presence.arrive(&north, session, format!("127.0.0.1:{session}"), "a test".to_owned());
        assert_eq!(arrive(1), None);
        assert_eq!(arrive(2).unwrap().times, 1);
        presence.leave(&north, 1);
        assert_eq!(presence.connected(), 1);
        presence.leave(&north, 2);
        assert_eq!(presence.connected(), 0);
        assert!(presence.sites()[&north].left.is_some());
        assert_eq!(arrive(3), None, "nobody was displaced");
        let turns: Vec<_> = (4..9).map(|session| arrive(session).unwrap()).collect();
        assert_eq!(turns[0], Displaced { before: "127.0.0.1:3".to_owned(), times: 2 });
        assert_eq!(
            turns.iter().map(Displaced::alternates).collect::<Vec<_>>(),
            [false, true, true, true, true]
        );
        assert_eq!(
            turns.iter().map(Displaced::is_told).collect::<Vec<_>>(),
            [false, true, true, false, false]
        );
    }
}
