//! A UDP socket to which tunnels are added: one endpoint, whichever way its peers come.
//!
//! Each tunnel has an address that no packet on a network has, in the discard-only prefix 100::/64 (RFC 6666), so that no peer over UDP
//! can be taken for one. What quinn sends to a tunnel whose stream is full is dropped, as a network would: QUIC then slows down.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::frames::{carry, drain, frames};

/// Batches of datagrams that may wait for one tunnel.
const OUTGOING: usize = 64;
/// Datagrams of all tunnels that may wait for quinn. A tunnel that finds no room stops reading.
const ARRIVED: usize = 256;
/// Tunnels' port; it says nothing.
const PORT: u16 = 1;

/// The streams through which peers come that have no UDP. Clones are the same.
#[derive(Clone)]
pub struct Tunnels {
    open: Arc<Mutex<BTreeMap<u64, Open>>>,
    serial: Arc<AtomicU64>,
    arrived: mpsc::Sender<(SocketAddr, Bytes)>,
}

/// One stream.
struct Open {
    peer: SocketAddr,
    outgoing: mpsc::Sender<Bytes>,
}

/// What an endpoint reads from and writes to.
pub struct ServerSocket {
    udp: Arc<dyn AsyncUdpSocket>,
    tunnels: Tunnels,
    arrived: Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    /// Whose turn it is to be read first.
    udp_first: AtomicBool,
}

impl ServerSocket {
    /// `udp`, and room for tunnels.
    pub fn new(udp: Arc<dyn AsyncUdpSocket>) -> (Arc<Self>, Tunnels) {
        let (sender, arrived) = mpsc::channel(ARRIVED);
        let tunnels = Tunnels { open: Arc::default(), serial: Arc::default(), arrived: sender };
        let socket = Self {
            udp,
            tunnels: tunnels.clone(),
            arrived: Mutex::new(arrived),
            udp_first: AtomicBool::new(true),
        };
        (Arc::new(socket), tunnels)
    }
}

impl Tunnels {
    /// Carries datagrams between `stream`, which leads to `peer`, and the endpoint, until the stream or the endpoint ends or the peer
    /// is silent for `silence`.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn carry<S>(&self, stream: S, peer: SocketAddr, silence: Duration) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite,
    {
        let id = self.serial.fetch_add(1, Ordering::Relaxed);
        let (outgoing, waiting) = mpsc::channel(OUTGOING);
        self.open().insert(id, Open { peer, outgoing });
        let _closed = Closed { tunnels: self, id };
        let from = address(id);
        carry(stream, waiting, silence, &self.arrived, |datagram| (from, datagram)).await
    }

    /// Where the stream of a tunnel comes from; `None` for an address that is no open tunnel's.
    pub fn peer(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.open().get(&id(address)?).map(|open| open.peer)
    }

    /// Tunnels that are open.
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// Returns when the endpoint is gone.
    pub async fn closed(&self) {
        self.arrived.closed().await;
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a tunnel, however it ends.
struct Closed<'a> {
    tunnels: &'a Tunnels,
    id: u64,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.tunnels.open().remove(&self.id);
    }
}

pub(crate) fn address(id: u64) -> SocketAddr {
    let address = (0x0100_u128 << 112) | u128::from(id);
    (Ipv6Addr::from_bits(address), PORT).into()
}

/// The number of the tunnel with this address, if it can be one's.
fn id(address: SocketAddr) -> Option<u64> {
    let SocketAddr::V6(address) = address else { return None };
    let bits = address.ip().to_bits();
    (bits >> 64 == 0x0100_u128 << 48).then_some(bits as u64)
}

impl AsyncUdpSocket for ServerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.udp).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(id) = id(transmit.destination) else { return self.udp.try_send(transmit) };
        if let Some(tunnel) = self.tunnels.open().get(&id) {
            // A full tunnel loses it, and a closed one.
            let _ = tunnel.outgoing.try_send(frames(transmit.contents, transmit.segment_size));
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let udp_first = self.udp_first.fetch_xor(true, Ordering::Relaxed);
        if udp_first && let Poll::Ready(read) = self.udp.poll_recv(cx, bufs, meta) {
            return Poll::Ready(read);
        }
        if let Poll::Ready(read) = drain(&self.arrived, cx, bufs, meta) {
            return Poll::Ready(read);
        }
        if udp_first { Poll::Pending } else { self.udp.poll_recv(cx, bufs, meta) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

impl fmt::Debug for ServerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSocket").field("udp", &self.udp).finish_non_exhaustive()
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("open", &self.count()).finish_non_exhaustive()
    }
}
