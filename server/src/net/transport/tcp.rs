//! The TCP port with the number of the UDP port, for sites whose network lets no UDP out: TLS streams that carry QUIC's datagrams.
//!
//! Nobody is believed here: who it is, and what it may do, is asked inside, as over UDP. What is asked here is only whether a
//! stream is worth its memory: one that finishes no TLS, or shows no certificate of the federation, gives its place up when
//! others come ([`Places`]), and one name has few streams.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tunnel::Tunnels;

use super::limits::Limits;
use super::messages::OPENING;
use super::newcomers::Newcomers;
use super::peer::Peer;
use super::strangers::{Lines, Origin, Place, Places, Rates, Turn};

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
struct TcpAcceptor {
    tls: watch::Receiver<TlsAcceptor>,
    tunnels: Tunnels,
    /// Streams of those who have a certificate, and of those who have none.
    seats: Arc<Semaphore>,
    guests: Arc<Places>,
    /// TLS handshakes of each address.
    rates: Rates,
    lines: Lines,
    names: Newcomers,
}

impl TcpPort {
    /// Carries the datagrams of everybody who comes, until the endpoint is gone. Dropping the future ends all streams.
    pub(crate) async fn serve(self, limits: Limits) {
        let Self { listener, tls, tunnels } = self;
        let acceptor = Arc::new(TcpAcceptor {
            tls,
            tunnels: tunnels.clone(),
            seats: Arc::new(Semaphore::new(limits.connections_max)),
            guests: Places::new(limits.handshakes_max),
            rates: Rates::default(),
            lines: Lines::default(),
            names: Newcomers::default(),
        });
        let handshakes = Places::new(2 * limits.handshakes_max);
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                () = tunnels.closed() => return,
                Some(_) = streams.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some(place) = handshakes.take(Origin::of(peer)) {
                            streams.spawn(attend(Arc::clone(&acceptor), stream, peer, place));
                        }
                    }
                    Err(error) => {
                        tracing::warn!("a TCP stream cannot be accepted: {error}");
                        sleep(BREATH).await;
                    }
                },
            }
        }
    }
}

async fn attend(acceptor: Arc<TcpAcceptor>, stream: TcpStream, peer: SocketAddr, place: Place) {
    let refused = |why: &str| {
        if let Some(more) = acceptor.lines.next(Instant::now()) {
            tracing::info!("a stream from {peer} is refused: {why}{more}");
        }
    };
    let stream = match place.while_kept(timeout(OPENING, secure(&acceptor, stream, peer))).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => return refused(&format!("its TLS handshake failed: {error}")),
        Some(Err(_)) => return refused("its TLS handshake took too long"),
        None => return refused("it finished no TLS handshake, and others wait for its place"),
    };
    drop(place);
    let origin = Origin::of(peer);
    let carried = match who(&stream) {
        Some(name) => {
            acceptor.rates.end_well(origin);
            let Some(_one_of_few) = acceptor.names.admit(&name) else {
                return refused(&format!("{name} has too many"));
            };
            let Ok(_seat) = Arc::clone(&acceptor.seats).try_acquire_owned() else {
                return refused("there are too many");
            };
            acceptor.tunnels.carry(stream, peer, SILENCE).await
        }
        None => {
            let Some(place) = acceptor.guests.take(origin) else { return refused("there are too many") };
            let carried = timeout(GUEST_MAX, acceptor.tunnels.carry(stream, peer, SILENCE));
            match place.while_kept(carried).await {
                Some(carried) => carried.unwrap_or(Ok(())),
                None => return refused("it has no certificate, and others wait for its place"),
            }
        }
    };
    if let Err(error) = carried {
        tracing::debug!("the stream from {peer} is over: {error}");
    }
}

/// TLS around a stream, once something has come: one that says nothing is no handshake of its address.
async fn secure(
    acceptor: &TcpAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    // Datagrams have their own pace; a stream without the option is slower and works.
    let _ = stream.set_nodelay(true);
    if stream.peek(&mut [0]).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if acceptor.rates.begin(Origin::of(peer), true, Instant::now()) != Turn::Begin {
        return Err(io::Error::other("its address begins too many"));
    }
    let tls = acceptor.tls.borrow().clone();
    tls.accept(stream).await
}

/// The name in the certificate that was shown.
fn who(stream: &TlsStream<TcpStream>) -> Option<protocol::ClientId> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    match Peer::of(certificate)? {
        Peer::Site { name, .. } => Some(name),
        Peer::Operator(name) => protocol::ClientId::new(&name).ok(),
    }
}
