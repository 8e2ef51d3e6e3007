//! A line between sites and a server that loses and delays packets, falls silent, and changes a sender's address.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

use crate::chance::draw;

/// What a line does to every packet, in both directions.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    /// How many packets of a thousand are lost.
    pub(crate) lost_of_1000: u64,
    /// How long a packet is on its way.
    pub(crate) delay: Duration,
}

/// A sender behind the relay: the socket by which the server knows it, and what it has sent since it has that socket.
struct Sender {
    socket: Arc<UdpSocket>,
    sent: u64,
    back: AbortHandle,
}

struct Shared {
    front: UdpSocket,
    server: SocketAddr,
    line: Line,
    seed: u64,
    packets: AtomicU64,
    silent: AtomicBool,
    /// Bytes after which the next sender that sends as many in one go gets another address; 0 for never.
    change_after: AtomicU64,
    changes: AtomicU64,
}

/// See the module. Dropping it cuts the line.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    _work: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr, line: Line, seed: u64) -> Self {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = front.local_addr().unwrap();
        let shared = Arc::new(Shared {
            front,
            server,
            line,
            seed,
            packets: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            change_after: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        });
        let mut work = JoinSet::new();
        work.spawn(there(Arc::clone(&shared)));
        Self { shared, address, _work: work }
    }

    /// Where sites find the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing through for so long.
    pub(crate) async fn part(&self, silence: Duration) {
        self.shut(true);
        tokio::time::sleep(silence).await;
        self.shut(false);
    }

    /// Lets nothing through from now on, or everything again.
    pub(crate) fn shut(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// How often a sender has got another address.
    pub(crate) fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Relaxed)
    }

    /// Gives the next sender that has sent so many bytes more another address, and waits until that has happened.
    pub(crate) async fn change_address_after(&self, bytes: u64) {
        let before = self.changes();
        self.shared.change_after.store(bytes, Ordering::Relaxed);
        while self.changes() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// From sites to the server.
async fn there(shared: Arc<Shared>) {
    let (mut senders, mut buffer) = (BTreeMap::<SocketAddr, Sender>::new(), vec![0; 1 << 16]);
    let mut work = JoinSet::new();
    loop {
        let Ok((len, site)) = shared.front.recv_from(&mut buffer).await else { continue };
        let limit = shared.change_after.load(Ordering::Relaxed);
        let moves = senders.get(&site).is_some_and(|sender| limit > 0 && sender.sent >= limit);
        if moves {
            shared.change_after.store(0, Ordering::Relaxed);
            shared.changes.fetch_add(1, Ordering::Relaxed);
            // What is still on its way to the old address is lost.
            senders.remove(&site).unwrap().back.abort();
        }
        if limit == 0 {
            senders.values_mut().for_each(|sender| sender.sent = 0);
        }
        let sender = match senders.entry(site) {
            Entry::Occupied(sender) => sender.into_mut(),
            Entry::Vacant(place) => {
                let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                let back = work.spawn(back(Arc::clone(&shared), Arc::clone(&socket), site));
                place.insert(Sender { socket, sent: 0, back })
            }
        };
        sender.sent += len as u64;
        deliver(&shared, buffer[..len].to_vec(), Way::There(Arc::clone(&sender.socket)));
    }
}

/// From the server to one site.
async fn back(shared: Arc<Shared>, socket: Arc<UdpSocket>, site: SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((len, _)) = socket.recv_from(&mut buffer).await else { continue };
        deliver(&shared, buffer[..len].to_vec(), Way::Back(site));
    }
}

/// Which way a packet goes.
enum Way {
    /// To the server, through a sender's own socket.
    There(Arc<UdpSocket>),
    /// To this site.
    Back(SocketAddr),
}

/// Loses the packet or sends it later.
fn deliver(shared: &Arc<Shared>, packet: Vec<u8>, way: Way) {
    let number = shared.packets.fetch_add(1, Ordering::Relaxed);
    let lost = draw((shared.seed << 32) + number, 1000) < shared.line.lost_of_1000;
    if lost || shared.silent.load(Ordering::Relaxed) {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::time::sleep(shared.line.delay).await;
        // A packet that cannot be sent is one more that is lost.
        let _ = match way {
            Way::There(socket) => socket.send_to(&packet, shared.server).await,
            Way::Back(site) => shared.front.send_to(&packet, site).await,
        };
    });
}
