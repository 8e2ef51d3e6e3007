//! Which sites are connected, since when, and when those that are not were seen last. For eyes: nothing is decided from it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use protocol::ClientId;
use tokio::sync::watch;
use tunnel::Tunnels;

use super::members::now;
use super::strangers::Origin;

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
}

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
    pub(crate) fn arrive(&self, site: &ClientId, session: u64, address: String, software: String) {
        let seen = Seen { session: Some(session), greeted: now(), left: None, address, software };
        self.change(|sites| drop(sites.insert(site.clone(), seen)));
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
        let arrive = |session| {
            presence.arrive(&north, session, "127.0.0.1:1".to_owned(), "a test".to_owned());
        };
        arrive(1);
        arrive(2);
        presence.leave(&north, 1);
        assert_eq!(presence.connected(), 1);
        presence.leave(&north, 2);
        assert_eq!(presence.connected(), 0);
        assert!(presence.sites()[&north].left.is_some());
    }
}
