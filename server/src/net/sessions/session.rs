//! One connection: who it is, what it says first, and then a stream per task that the engine gives it.
//!
//! A session decides nothing about a run. It refuses peers that do not speak this protocol, tells them why in the text
//! of the close, and lets a newer connection of the same site replace an older one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::wire::{
    CapableHello, CodecError, ConnectError, FrameKind, Greeting, HELLO_MAX, Hello, Receipt, SMALL_MAX,
    VERSION,
};
use protocol::{Capabilities, Capability, ClientId, TaskId, software_name};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::dialogue::Dialogue;
use super::enrolment::Enrolments;
use super::exchange::Exchange;
use super::ledgers::Ledgers;
use super::messages::OperatorArrived;
use super::released::{self, Fetches};
use crate::net::engine::metrics::Metrics;
use crate::net::engine::presence::{Displaced, Presence};
use crate::net::engine::uploads::Uploads;
use crate::net::engine::{Command, Link, Order};
use crate::net::membership::members::{Members, Revocations};
use crate::net::store::Store;
use crate::net::store::messages::Record;
use crate::net::transport::frames::{FrameError, Patience, read_frame, write_frame};
use crate::net::transport::limits::Limits;
use crate::net::transport::messages::{OPENING, SOFTWARE, close, reject_on};
use crate::net::transport::newcomers::Newcomers;
use crate::net::transport::peer::{Peer, is_capable, is_enrolment};
use crate::net::transport::strangers::{Origin, Place, Strangers, Turn};

/// Orders that may wait for a session.
const ORDERS: usize = 64;

static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// What all sessions share.
pub(crate) struct ServerContext {
    pub(crate) limits: Limits,
    pub(crate) uploads: Uploads,
    pub(crate) seats: Arc<Semaphore>,
    pub(crate) strangers: Strangers,
    pub(crate) commands: mpsc::Sender<Command>,
    /// Where operators are attended to.
    pub(crate) operators: mpsc::Sender<OperatorArrived>,
    pub(crate) newcomers: Newcomers,
    pub(crate) members: Arc<Members>,
    pub(crate) enrolments: Enrolments,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) ledgers: Ledgers,
    pub(crate) store: Arc<Store>,
    pub(crate) fetches: Fetches,
}

/// Lets connections in until `stop`.
pub(crate) async fn welcome(context: Arc<ServerContext>, endpoint: Endpoint, stop: CancellationToken) {
    while let Some(Some(incoming)) = stop.run_until_cancelled(endpoint.accept()).await {
        let origin = context.presence.origin(incoming.remote_address());
        let proven = incoming.remote_address_validated();
        let turn = context.strangers.rates.begin(origin, proven, Instant::now());
        let busy = context.strangers.handshakes.count() >= context.limits.handshakes_max;
        if (turn == Turn::Prove || busy) && incoming.may_retry() && !proven {
            // It fails only for an address that has proved itself, which was just ruled out.
            let _ = incoming.retry();
            continue;
        }
        if turn == Turn::Refuse {
            // An answer would only make it try again at once.
            context.metrics.handshake_refused();
            incoming.ignore();
            continue;
        }
        match context.strangers.handshakes.take(origin) {
            Some(place) => drop(tokio::spawn(open(Arc::clone(&context), incoming, place, origin))),
            None => {
                context.metrics.handshake_refused();
                incoming.refuse();
            }
        }
    }
}

/// Refuses every newcomer, for as long as it is polled. Whoever still speaks to a server that died here hears that it is gone.
pub(crate) async fn stand_by(endpoint: &Endpoint) -> Infallible {
    while let Some(incoming) = endpoint.accept().await {
        incoming.refuse();
    }
    std::future::pending().await
}

async fn open(context: Arc<ServerContext>, incoming: Incoming, place: Place, origin: Origin) {
    let address = context.presence.place(incoming.remote_address());
    let Ok(connecting) = incoming.accept() else { return };
    let failed = |why: &str| {
        context.metrics.handshake_refused();
        if let Some(more) = context.strangers.lines.next(Instant::now()) {
            tracing::info!("a handshake from {address} {why}{more}");
        }
    };
    let connection = match place.while_kept(timeout(OPENING, connecting)).await {
        Some(Ok(Ok(connection))) => connection,
        Some(Ok(Err(error))) => return failed(&format!("failed: {error}")),
        Some(Err(_)) => return failed("took too long"),
        None => return failed("was given up: others wait for its place"),
    };
    let certified = connection.peer_identity().is_some();
    if certified {
        context.strangers.rates.end_well(origin);
    }
    // Whoever has no certificate must not take the room of those who have; enrolments have places of their own.
    if is_enrolment(&connection) {
        drop(place);
        return context.enrolments.attend(&connection, &address, origin).await;
    }
    if !certified {
        context.metrics.handshake_refused();
        return close(&connection, &ConnectError::NotASite);
    }
    let Ok(seat) = Arc::clone(&context.seats).try_acquire_owned() else {
        // Its place may go to others while it listens.
        let said = place.while_kept(reject(&connection, &address, ConnectError::Busy)).await;
        return said.unwrap_or_else(|| close(&connection, &ConnectError::Busy));
    };
    drop(place);
    match Peer::of_connection(&connection) {
        Some(Peer::Site { name, issued }) => attend_site(&context, &connection, address, name, issued).await,
        Some(Peer::Operator(name)) => {
            tracing::info!("operator {name} is connected from {address}");
            // Whoever attends to operators does so for as long as there are sessions.
            let _ = context.operators.send(OperatorArrived { connection, name, seat }).await;
        }
        None => reject(&connection, &address, ConnectError::NotASite).await,
    }
}

/// Waits for the peer's first stream, rejects it there, and closes the connection. `who` is for the log.
async fn reject(connection: &Connection, who: &str, why: ConnectError) {
    if let Ok(Ok((mut send, _recv))) = timeout(OPENING, connection.accept_bi()).await {
        return reject_on(connection, &mut send, who, why).await;
    }
    close(connection, &why);
}

/// A site that was let in.
struct Greeted {
    /// What its program calls itself.
    software: String,
    /// Whether it only looks.
    is_probe: bool,
    /// What it says that it knows.
    capabilities: Capabilities,
}

/// The words of a site's first stream. `None` when the connection is of no use.
async fn greet(
    context: &ServerContext,
    connection: &Connection,
    client: &ClientId,
    session: u64,
    address: &str,
) -> Option<Greeted> {
    let Ok(Ok((mut send, mut recv))) = timeout(OPENING, connection.accept_bi()).await else {
        close(connection, &ConnectError::Late);
        return None;
    };
    let patience = Patience { first: Some(OPENING), idle: OPENING };
    let hello = if is_capable(connection) {
        read_frame::<CapableHello>(&mut recv, FrameKind::Hello, HELLO_MAX, patience).await
    } else {
        read_frame::<Hello>(&mut recv, FrameKind::Hello, SMALL_MAX, patience).await.map(CapableHello::from)
    };
    let greeted = match hello {
        Ok(hello) => {
            let (software, is_probe) = (software_name(&hello.software), hello.is_probe());
            tracing::info!("{client} is connected from {address} with {software}");
            Greeted { software, is_probe, capabilities: hello.capabilities }
        }
        Err(FrameError::Lost(_)) => return None,
        Err(FrameError::TooSlow) => {
            reject_on(connection, &mut send, address, ConnectError::Late).await;
            return None;
        }
        Err(FrameError::Codec(CodecError::Version { theirs, .. })) => {
            let why = ConnectError::Version { server: VERSION, client: theirs };
            reject_on(connection, &mut send, address, why).await;
            return None;
        }
        Err(_) => {
            reject_on(connection, &mut send, address, ConnectError::NotAHello).await;
            return None;
        }
    };
    let is_probe = greeted.is_probe;
    let mut dialogue = Dialogue { context, connection, client, session, address, is_probe, send, recv };
    dialogue.hear_ledger().await?;
    let mut send = dialogue.send;
    let welcome = Greeting::Welcome { software: SOFTWARE.to_owned(), you: client.to_string() };
    write_frame(&mut send, FrameKind::Greeting, &welcome).await.ok()?;
    send.finish().ok()?;
    Some(greeted)
}

/// Counts a connection that a newer one of its site has ended, and says so where the two take turns.
async fn tell_displaced(context: &ServerContext, site: &ClientId, address: String, displaced: Displaced) {
    context.metrics.displaced(displaced.alternates());
    if !displaced.is_told() {
        return;
    }
    let Displaced { before, times } = displaced;
    tracing::warn!(
        "{site} has connected again {times} times within ten minutes while it was connected, from {address} now and {before} before: two \
         programs have its key, or one is restarted again and again"
    );
    let record = Record::Alternating { site: site.clone(), address, replaced_address: before, times };
    let _ = context.commands.send(Command::Record(record)).await;
}

async fn attend_site(
    context: &Arc<ServerContext>,
    connection: &Connection,
    address: String,
    client: ClientId,
    issued: u64,
) {
    let mut revoked = context.members.revocations();
    let name = client.clone();
    let is_void = |revoked: &Revocations| revoked.get(&name).is_some_and(|before| issued <= *before);
    if is_void(&revoked.borrow_and_update()) {
        return reject(connection, &address, ConnectError::Revoked).await;
    }
    let Some(newcomer) = context.newcomers.admit(&client) else {
        return close(connection, &ConnectError::Busy);
    };
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let Some(greeted) = greet(context, connection, &client, session, &address).await else { return };
    drop(newcomer);
    if greeted.is_probe {
        // It has its answer, and goes, or asks for a model. It is no session: no task may reach it, and it must not end the one that works.
        return released::attend(context, connection, &client).await;
    }
    let Greeted { software, capabilities, .. } = greeted;
    let capabilities = Arc::new(capabilities);
    // From here on the server opens the streams.
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(0));
    let (orders, inbox) = mpsc::channel(ORDERS);
    let link =
        Link { session, orders, connection: connection.clone(), capabilities: Arc::clone(&capabilities) };
    let joined = Command::Joined { client: client.clone(), link };
    // Before the engine closes the connection that this one replaces: the end of that one must not hide it.
    let displaced = context.presence.arrive(&client, session, address.clone(), software);
    if context.commands.send(joined).await.is_err() {
        context.presence.leave(&client, session);
        return close(connection, &ConnectError::ShuttingDown);
    }
    if let Some(displaced) = displaced {
        tell_displaced(context, &client, address, displaced).await;
    }
    let mut site = Site {
        context,
        connection,
        client,
        session,
        knows_attempts: capabilities.has(&Capability::attempts()),
        open: BTreeMap::new(),
        streams: JoinSet::new(),
        serial: 0,
    };
    let why = tokio::select! {
        why = site.serve(inbox) => why,
        _ = revoked.wait_for(is_void) => {
            close(connection, &ConnectError::Revoked);
            "it is revoked".to_owned()
        }
        never = context.members.keep_told(connection, &name) => match never {},
    };
    // Streams end before the engine hears that the site has left: it may be asked again at once.
    site.streams.shutdown().await;
    context.presence.leave(&site.client, session);
    context.ledgers.settle(&site.client, session).await;
    tracing::info!("{} has left: {why}", site.client);
    let _ = context.commands.send(Command::Left { client: site.client, session }).await;
}

/// A greeted site.
struct Site<'a> {
    context: &'a Arc<ServerContext>,
    connection: &'a Connection,
    client: ClientId,
    session: u64,
    /// Whether it reads the number of an attempt.
    knows_attempts: bool,
    open: BTreeMap<TaskId, OpenTask>,
    streams: JoinSet<(TaskId, u64)>,
    serial: u64,
}

/// A task whose stream is open.
struct OpenTask {
    serial: u64,
    cancel: CancellationToken,
    receipt: Option<oneshot::Sender<Receipt>>,
}

impl Site<'_> {
    /// Carries out orders until the connection is gone; says why it is.
    async fn serve(&mut self, mut inbox: mpsc::Receiver<Order>) -> String {
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => self.obey(order),
                    None => {
                        // A replaced connection has been closed already, and that text stands.
                        close(self.connection, &ConnectError::ShuttingDown);
                        return "it was replaced, or the server is stopping".to_owned();
                    }
                },
                Some(ended) = self.streams.join_next() => {
                    if let Ok((task, serial)) = ended
                        && self.open.get(&task).is_some_and(|open| open.serial == serial)
                    {
                        self.open.remove(&task);
                    }
                }
                error = self.connection.closed() => return error.to_string(),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Task(order) => {
                let (task, cancel) = (order.task.id, CancellationToken::new());
                let (sender, receipt) = oneshot::channel();
                self.serial += 1;
                let serial = self.serial;
                let open = OpenTask { serial, cancel: cancel.clone(), receipt: Some(sender) };
                if let Some(before) = self.open.insert(task, open) {
                    before.cancel.cancel();
                }
                let exchange = Exchange {
                    context: Arc::clone(self.context),
                    connection: self.connection.clone(),
                    client: self.client.clone(),
                    session: self.session,
                    knows_attempts: self.knows_attempts,
                };
                self.streams.spawn(async move {
                    exchange.carry_out(order, receipt, cancel).await;
                    (task, serial)
                });
            }
            Order::Cancel(task) => {
                if let Some(open) = self.open.remove(&task) {
                    open.cancel.cancel();
                }
            }
            Order::Receipt(task, receipt) => {
                let sender = self.open.get_mut(&task).and_then(|open| open.receipt.take());
                // A stream that is gone needs no receipt.
                let _ = sender.map(|sender| sender.send(receipt));
            }
        }
    }
}
