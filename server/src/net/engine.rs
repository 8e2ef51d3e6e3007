//! What works on runs: a dispatcher, one actor a run, the audit log's writer, and jobs on blocking threads.
//!
//! Several runs are worked on side by side; the others wait, oldest first. What one run waits for, or works on for long, holds up no other
//! run, no site that joins and no operator. Within a run a commit is on disk before anything follows from it. A run that cannot go on is
//! marked as failed; a disk that fails, or a file that is damaged, stops the server and is named.

mod actor;
mod calibration;
mod central;
mod conduct;
mod deciding;
mod dispatcher;
mod journal;
mod live;
mod messages;
pub(super) mod metrics;
mod outgoing;
pub(super) mod presence;
pub(super) mod request;
pub(super) mod service;
mod shared;
mod submitting;
pub(super) mod uploads;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use privacy::chain::segments::SegmentBytes;
use protocol::wire::RunSummary;
use protocol::{ClientId, RunId, Seed};
use rand::TryRngCore;
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::store::audit::AuditLog;
use super::store::fault::StorageFault;
use super::store::outage::Patience;
use super::store::{Store, StoreError};
use crate::Note;
use dispatcher::Dispatcher;
use journal::Journal;
pub(crate) use messages::{Command, Link, Order, TaskOrder};
pub use messages::{InitialModel, ModelRoom};
use metrics::Metrics as Meter;
use shared::{Clock, Shared, Sites};
use uploads::Spare;

/// How long removing what nobody needs may hold up a server that stops.
const LAST_SWEEP: Duration = Duration::from_secs(1);

/// The runs that are being worked on, and those that ended since the last one began, as watchers see them.
pub type LiveRuns = BTreeMap<RunId, Arc<RunSummary>>;

/// The engine's ties to the rest of the server.
pub(crate) struct EngineHandles {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) live: watch::Sender<LiveRuns>,
    pub(crate) notes: broadcast::Sender<(RunId, Note)>,
    pub(crate) stop: CancellationToken,
    pub(crate) spare: Arc<Spare>,
    pub(crate) meter: Arc<Meter>,
    /// Sites that are in quarantine.
    pub(crate) held: BTreeSet<ClientId>,
    /// Where it shows what it waits for.
    pub(crate) fault: StorageFault,
}

/// See the module.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    dispatcher: Dispatcher,
    journal: JoinHandle<Result<(), StoreError>>,
}

impl Engine {
    /// An engine on the current runtime.
    pub(crate) fn new(
        store: Arc<Store>,
        room: Arc<dyn ModelRoom>,
        handles: EngineHandles,
        (audit, segment): (&Path, SegmentBytes),
        runs_max: usize,
    ) -> Result<Self, StoreError> {
        let EngineHandles { commands, live, notes, stop, spare, meter, held, fault } = handles;
        let (clock, halt) = (Clock::new(), stop.child_token());
        let mut log = AuditLog::open(audit, segment, store.cross_check(), clock.now())?;
        log.recover(clock.now(), &store.take_unlogged())?;
        let storage = Patience::new(halt.clone(), store.lease_life().is_none(), fault);
        let (journal, writer) = Journal::start(log, storage.clone(), notes, halt.clone())
            .map_err(|source| StoreError::File { path: audit.to_owned(), source })?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            store,
            storage,
            room,
            clock,
            journal,
            sites: Sites::default(),
            live,
            spare,
            meter,
            commands,
            verifications: Arc::new(Semaphore::new(threads)),
            unused: Notify::new(),
            halt,
        });
        let dispatcher = Dispatcher::new(Arc::clone(&shared), held, runs_max);
        Ok(Self { shared, dispatcher, journal: writer })
    }

    /// Works until told to stop. An action that has begun is always finished.
    pub(crate) async fn run(self, mut inbox: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let Self { shared, dispatcher, journal } = self;
        let sweeper = tokio::spawn(sweep(Arc::clone(&shared)));
        let mut ended = dispatcher.work(&mut inbox).await;
        joined(sweeper.await)?;
        drop(shared);
        // The writer ends when nobody can hand anything in any more; its fault is why others were cut off.
        match joined(on_blocking_thread(move || journal.join()).await)? {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => ended = Err(fault),
            Err(panic) => resume_unwind(panic),
        }
        match &ended {
            Err(error @ StoreError::Stopping) => tracing::warn!("{error}"),
            Err(error) => tracing::error!("the server stops: {error}"),
            Ok(()) => {}
        }
        ended
    }
}

/// Removes files that nobody needs any more, aside from all runs.
async fn sweep(shared: Arc<Shared>) {
    while shared.halt.run_until_cancelled(shared.unused.notified()).await.is_some() {
        let overdue = async {
            shared.halt.cancelled().await;
            tokio::time::sleep(LAST_SWEEP).await;
        };
        // A database that does not answer must not hold up a server that stops: the next start finds what is left.
        tokio::select! {
            () = shared.store.sweep() => {}
            () = overdue => return,
        }
    }
    let _ = tokio::time::timeout(LAST_SWEEP, shared.store.sweep()).await;
}

/// Works on a thread that may be kept busy.
fn on_blocking_thread<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(job)
}

/// What a task or a thread has given. A panic there is one here; a job that the runtime has dropped was cut off by its end.
fn joined<T>(done: Result<T, JoinError>) -> Result<T, StoreError> {
    done.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => StoreError::Stopping,
    })
}

/// The seed of a seeded run, or fresh entropy.
pub(crate) fn seed_of(number: Option<u64>) -> Seed {
    number.map_or_else(|| Seed::from_entropy(entropy()), Seed::from_number)
}

/// Bytes from the operating system.
fn entropy<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .expect("an operating system without entropy runs no TLS either");
    bytes
}
