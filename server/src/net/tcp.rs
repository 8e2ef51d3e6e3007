//! The TCP port with the number of the UDP port, for sites whose network lets no UDP out: TLS streams that carry QUIC's datagrams.
//!
//! Nobody is believed here: who it is, and what it may do, is asked inside, as over UDP. What is asked here is only whether a
//! stream is worth its memory: whoever shows no certificate of the federation came to enrol and has little time, and one name
//! has few streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tunnel::Tunnels;

use super::Limits;
use super::peer::Peer;
use super::session::{Newcomers, OPENING};

/// How long a stream may carry nothing. A site over QUIC says something every five seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// How long somebody without a certificate may stay.
const GUEST_MAX: Duration = Duration::from_secs(300);
/// After a stream that could not be accepted: the system may be short of something.
const BREATH: Duration = Duration::from_millis(100);

/// A port that listens.
pub(crate) struct TcpPort {
    pub(crate) listener: TcpListener,
    pub(crate) tls: watch::Receiver<TlsAcceptor>,
    pub(crate) tunnels: Tunnels,
}

/// What all streams share.
struct Porch {
    tls: watch::Receiver<TlsAcceptor>,
    tunnels: Tunnels,
    /// Streams of those who have a certificate, and of those who have none.
    seats: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    names: Newcomers,
}

impl TcpPort {
    /// Carries the datagrams of everybody who comes, until the endpoint is gone. Dropping the future ends all streams.
    pub(crate) async fn serve(self, limits: Limits) {
        let Self { listener, tls, tunnels } = self;
        let porch = Arc::new(Porch {
            tls,
            tunnels: tunnels.clone(),
            seats: Arc::new(Semaphore::new(limits.connections_max)),
            guests: Arc::new(Semaphore::new(limits.handshakes_max)),
            names: Newcomers::default(),
        });
        let handshakes = Arc::new(Semaphore::new(2 * limits.handshakes_max));
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                () = tunnels.closed() => return,
                Some(_) = streams.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => match Arc::clone(&handshakes).try_acquire_owned() {
                        Ok(turn) => drop(streams.spawn(attend(Arc::clone(&porch), stream, peer, turn))),
                        Err(_) => tracing::info!("a stream from {peer} is refused: too many come at once"),
                    },
                    Err(error) => {
                        tracing::warn!("a TCP stream cannot be accepted: {error}");
                        sleep(BREATH).await;
                    }
                },
            }
        }
    }
}

async fn attend(porch: Arc<Porch>, stream: TcpStream, peer: SocketAddr, turn: OwnedSemaphorePermit) {
    // Datagrams have their own pace; a stream without the option is slower and works.
    let _ = stream.set_nodelay(true);
    let tls = porch.tls.borrow().clone();
    let stream = match timeout(OPENING, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::info!("a TLS handshake from {peer} failed: {error}"),
        Err(_) => return tracing::info!("a TLS handshake from {peer} took too long"),
    };
    drop(turn);
    let refused = |why: &str| tracing::info!("a stream from {peer} is refused: {why}");
    let carried = match who(&stream) {
        Some(name) => {
            let Some(_one_of_few) = porch.names.admit(&name) else {
                return refused(&format!("{name} has too many"));
            };
            let Ok(_seat) = Arc::clone(&porch.seats).try_acquire_owned() else {
                return refused("there are too many");
            };
            porch.tunnels.carry(stream, peer, SILENCE).await
        }
        None => {
            let Ok(_seat) = Arc::clone(&porch.guests).try_acquire_owned() else {
                return refused("there are too many without a certificate");
            };
            timeout(GUEST_MAX, porch.tunnels.carry(stream, peer, SILENCE)).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = carried {
        tracing::debug!("the stream from {peer} is over: {error}");
    }
}

/// The name in the certificate that was shown.
fn who(stream: &TlsStream<TcpStream>) -> Option<protocol::ClientId> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    match Peer::of(certificate)? {
        Peer::Site { name, .. } => Some(name),
        Peer::Operator(name) => protocol::ClientId::new(&name).ok(),
    }
}
