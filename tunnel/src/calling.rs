//! The socket of an endpoint whose one peer is reached through a stream.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};

use crate::frames::{carry, drain, frames};

/// Batches of datagrams that wait for the stream, and datagrams that wait for quinn.
const WAITING: usize = 16;
/// Datagrams that quinn may hand over at a time.
const SEGMENTS: usize = 10;

/// Sends every datagram to the one server, whatever address quinn gives it, and holds quinn back while the stream is full.
pub struct ClientSocket {
    local: SocketAddr,
    server: SocketAddr,
    outgoing: mpsc::Sender<Bytes>,
    arrived: Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    ended: CancellationToken,
}

impl ClientSocket {
    /// Takes over `stream`, which leads from `local` to `server`, and closes it when the socket is dropped. Must be called within a
    /// Tokio runtime.
    pub fn new<S>(stream: S, local: SocketAddr, server: SocketAddr) -> Arc<Self>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (outgoing, waiting) = mpsc::channel(WAITING);
        let (sender, arrived) = mpsc::channel(WAITING * SEGMENTS);
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        tokio::spawn(async move {
            let _ended = guard;
            // How it ended makes no difference to QUIC.
            let _ = carry(stream, waiting, Duration::MAX, &sender, |datagram| (server, datagram)).await;
        });
        Arc::new(Self { local, server, outgoing, arrived: Mutex::new(arrived), ended })
    }

    /// Cancelled when the stream has ended. Nothing comes any more then; QUIC itself finds out when it has heard nothing for too long.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

impl AsyncUdpSocket for ClientSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(PollSender::new(self.outgoing.clone())))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let framed = frames(transmit.contents, transmit.segment_size);
        match self.outgoing.try_send(framed) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        drain(&self.arrived, cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSocket").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Says when there is room again.
#[derive(Debug)]
struct Room(PollSender<Bytes>);

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream that is gone takes everything.
        if ready!(self.0.poll_reserve(cx)).is_ok() {
            self.0.abort_send();
        }
        Poll::Ready(Ok(()))
    }
}
