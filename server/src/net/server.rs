//! A server that runs: its settings, and how the rooms are put together and taken apart again.
//!
//! [`Server::start`] opens the state and the port, goes on with the runs that have not ended, and works on several of them side by
//! side in the order of their submission; sites stay connected from run to run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use privacy::chain::segments::SegmentBytes;
use protocol::RunId;
use protocol::wire::{ConnectError, Control, RunSummary};
use quinn::Endpoint;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::admin::{Admin, AdminConfig, AdminError, Door, Places};
use super::engine::metrics::Metrics;
use super::engine::presence::Presence;
use super::engine::service::OperatorService;
use super::engine::uploads::{Spare, Uploads};
use super::engine::{Command, Engine, EngineHandles, InitialModel, LiveRuns, ModelRoom};
use super::membership::authority::Issuing;
use super::membership::credentials::ServerCredentials;
use super::membership::members::{Approval, Members};
use super::operators;
use super::sessions::enrolment::Enrolments;
use super::sessions::ledgers::Ledgers;
use super::sessions::released::Fetches;
use super::sessions::session::{self, ServerContext};
use super::store::fault::StorageFault;
use super::store::lease_renewer::LeaseRenewer;
use super::store::{Database, Objects, Store, StoreError};
use super::transport::endpoint::{self, EndpointError, Listening, Port};
use super::transport::limits::Limits;
use super::transport::messages::close_all;
use super::transport::newcomers::Newcomers;
use super::transport::strangers::Strangers;
use crate::Note;

/// Commands that may wait for the engine; updates among them are bounded by bytes.
const COMMANDS: usize = 1024;
/// How long clients have to hear that the server ends, and how long where the storage has taken up the time.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_LATE: Duration = Duration::from_millis(500);
/// What the audit log calls the program that embeds the server.
const PROGRAM: &str = "this program";
/// Notes that a slow listener may be behind before it misses some.
const NOTES: usize = 4096;

/// Where the server keeps and finds things.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The state folder; one server at a time, or replicas that share it.
    pub state: PathBuf,
    /// Where the state's rows are.
    pub database: Database,
    /// Address and port to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether sites whose network lets no UDP out may come over TCP, to the port of the same number.
    pub tcp: bool,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// The key that certifies sites which come with an invite; nobody can be invited without.
    pub issuing: Option<Arc<Issuing>>,
    /// Where models and optimizers' states are, if not in the state folder.
    pub objects: Option<Objects>,
    /// Whether an operator must approve whoever comes with an invite.
    pub approval: Approval,
    /// How many of a run's last models keep their files, beside the best one; all when `None`.
    pub models_kept: Option<u32>,
    /// What clients may ask of this machine.
    pub limits: Limits,
    /// From which size on a file of the audit log is closed and the next one begun.
    pub audit_segment: SegmentBytes,
    /// Where operators look in over HTTP, if they may.
    pub admin: Option<AdminConfig>,
}

impl ServerConfig {
    /// A server that nobody can be invited to, over UDP and TCP, with its rows in SQLite and the usual limits.
    pub fn new(state: PathBuf, listen: SocketAddr, identity: PathBuf) -> Self {
        let (database, limits) = (Database::default(), Limits::default());
        Self {
            state,
            database,
            listen,
            tcp: true,
            identity,
            issuing: None,
            objects: None,
            approval: Approval::default(),
            models_kept: None,
            limits,
            audit_segment: SegmentBytes::default(),
            admin: None,
        }
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port cannot be opened.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The operating system refuses something basic.
    #[error("the operating system refuses: {0}")]
    System(#[from] std::io::Error),
    /// A defect in this program.
    #[error("the server's engine has stopped unexpectedly; this is a defect, and the log has more")]
    Died,
}

impl ServeError {
    /// Whether this server only has to stand by: another one has taken over, or the database does not answer for now.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Store(error) if error.passes())
    }
}

/// Where peers come in.
fn listening(config: &ServerConfig) -> Listening<'_> {
    let ServerConfig { listen, tcp, identity, limits, .. } = config;
    Listening { listen: *listen, tcp: *tcp, identity, limits: *limits }
}

/// Lets the engine work; `stopped` is cancelled with its end.
fn begun(
    engine: Engine,
    inbox: mpsc::Receiver<Command>,
    stopped: &CancellationToken,
) -> JoinHandle<Result<(), StoreError>> {
    let guard = stopped.clone().drop_guard();
    tokio::spawn(async move {
        let _stopped = guard;
        engine.run(inbox).await
    })
}

/// A server that runs. Dropping it stops it without waiting, as a crash would; [`Server::shutdown`] is the polite way.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    endpoint: Endpoint,
    tcp: Option<AbortOnDropHandle<()>>,
    operators: Arc<OperatorService>,
    store: Arc<Store>,
    notes: broadcast::Sender<(RunId, Note)>,
    stop: CancellationToken,
    stopped: CancellationToken,
    engine: Option<JoinHandle<Result<(), StoreError>>>,
    lease_renewer: Option<LeaseRenewer>,
}

/// What sessions work with.
fn context_of(
    limits: Limits,
    spare: Arc<Spare>,
    commands: mpsc::Sender<Command>,
    operators: &Arc<OperatorService>,
    (metrics, presence): (&Arc<Metrics>, &Arc<Presence>),
) -> ServerContext {
    ServerContext {
        limits,
        uploads: Uploads::new(limits.upload_bytes_max, spare),
        seats: Arc::new(Semaphore::new(limits.connections_max)),
        strangers: Strangers::new(2 * limits.handshakes_max),
        commands,
        operators: operators::welcome(Arc::clone(operators)),
        newcomers: Newcomers::default(),
        members: Arc::clone(&operators.members),
        enrolments: Enrolments::new(Arc::clone(&operators.members), Arc::clone(metrics)),
        metrics: Arc::clone(metrics),
        presence: Arc::clone(presence),
        ledgers: Ledgers::new(Arc::clone(&operators.store)),
        store: Arc::clone(&operators.store),
        fetches: Fetches::default(),
    }
}

impl Server {
    /// Opens the state and the port and begins to work. Where replicas share a database, it first waits until it is this one's
    /// turn, and refuses whoever comes meanwhile, so that sites try the next server. Must be called within a multi-threaded
    /// Tokio runtime.
    ///
    /// # Errors
    /// [`ServeError`] when state, identity or address cannot be used.
    pub async fn start(config: ServerConfig, room: Arc<dyn ModelRoom>) -> Result<Self, ServeError> {
        let (store, port) = match &config.database {
            Database::Sqlite => {
                let objects = config.objects.as_ref();
                let store = Store::lead_with(&config.state, &config.database, objects).await?;
                (store, endpoint::open(listening(&config)).await?)
            }
            Database::Postgres(_) => {
                let port = endpoint::open(listening(&config)).await?;
                let store = tokio::select! {
                    store = Store::lead_with(&config.state, &config.database, config.objects.as_ref()) => store?,
                    never = session::stand_by(&port.endpoint) => match never {},
                };
                (store, port)
            }
        };
        let store = Arc::new(store.keeping(config.models_kept));
        let started = Self::start_with(Arc::clone(&store), port, config, room).await;
        if started.is_err() {
            store.close().await;
        }
        started
    }

    async fn start_with(
        store: Arc<Store>,
        port: Port,
        config: ServerConfig,
        room: Arc<dyn ModelRoom>,
    ) -> Result<Self, ServeError> {
        let Port { endpoint, tunnels, tcp, shown } = port;
        let address = endpoint.local_addr()?;
        let door = Door::open(config.admin).await?;
        let admin = door.as_ref().map(|door| door.address);
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (live, watched) = watch::channel(LiveRuns::default());
        let notes = broadcast::Sender::new(NOTES);
        let spare = Arc::<Spare>::default();
        let (metrics, presence) = (Arc::new(Metrics::new()), Arc::new(Presence::new(tunnels)));
        let fault = StorageFault::default();
        let handles = EngineHandles {
            commands: commands.downgrade(),
            live,
            notes: notes.clone(),
            stop: stop.clone(),
            spare: Arc::clone(&spare),
            meter: Arc::clone(&metrics),
            held: store.quarantines().await?.into_keys().collect(),
            fault: fault.clone(),
        };
        let audit = config.database.audit_file(&config.state);
        let (runs_max, log) = (config.limits.runs_max.max(1), (&*audit, config.audit_segment));
        let engine = Engine::new(Arc::clone(&store), Arc::clone(&room), handles, log, runs_max)?;
        let lease_renewer =
            Some(LeaseRenewer::start(Arc::clone(&store), endpoint.clone(), stop.clone(), stopped.clone()));
        let engine = Some(begun(engine, inbox, &stopped));
        let keys = (config.issuing, config.approval);
        let members = Arc::new(Members::new(Arc::clone(&store), keys, Arc::new(commands.clone())).await?);
        let credentials =
            Arc::new(ServerCredentials::new(config.identity, endpoint.clone(), shown, Arc::clone(&members)));
        tokio::spawn(Arc::clone(&credentials).watch(stop.clone()));
        let operators = Arc::new(OperatorService {
            store: Arc::clone(&store),
            room,
            commands: commands.clone(),
            live: watched,
            state: config.state.clone(),
            members: Arc::clone(&members),
            presence: Arc::clone(&presence),
            fault,
        });
        let context = context_of(config.limits, spare, commands, &operators, (&metrics, &presence));
        tokio::spawn(session::welcome(Arc::new(context), endpoint.clone(), stop.clone()));
        if let Some(door) = door {
            let (operators, places) = (Arc::clone(&operators), Places { state: config.state, audit });
            let view = Admin::new(operators, metrics, presence, credentials, places, address);
            tokio::spawn(door.serve(view, stop.clone()));
        }
        tracing::info!("listening on {address}");
        Ok(Self {
            address,
            admin,
            endpoint,
            tcp,
            operators,
            store,
            notes,
            stop,
            stopped,
            engine,
            lease_renewer,
        })
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether sites may come over TCP, to the port of the same number.
    pub fn comes_over_tcp(&self) -> bool {
        self.tcp.is_some()
    }

    /// The address of the admin port, where there is one.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// How often the lease was taken up to this server's turn, where replicas share a database.
    pub fn epoch(&self) -> Option<i64> {
        self.store.epoch()
    }

    /// Takes a plan into the queue of runs; a seed makes it a seeded run.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn submit(&self, plan_toml: String, seed: Option<u64>) -> Result<RunId, String> {
        self.operators.submit(plan_toml, seed, None, PROGRAM).await
    }

    /// The same of a plan whose model is external: the run begins with these tensors and values, those of its start file.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn submit_starting(
        &self,
        plan_toml: String,
        seed: Option<u64>,
        start: InitialModel,
    ) -> Result<RunId, String> {
        self.operators.submit(plan_toml, seed, Some(start), PROGRAM).await
    }

    /// The runs, newest first, without their rounds and clients.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn runs(&self) -> Result<Vec<RunSummary>, String> {
        self.operators.list().await
    }

    /// One run as it is now; the newest when `run` is `None`.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn run(&self, run: Option<RunId>) -> Result<RunSummary, String> {
        self.operators.current(run).await
    }

    /// The runs that are being worked on, as they change, and those that ended since the last one began.
    pub fn watch(&self) -> watch::Receiver<LiveRuns> {
        self.operators.live.clone()
    }

    /// Lets a run that has not ended pause, go on or stop; `by` goes into the audit log.
    ///
    /// # Errors
    /// A sentence for the operator, when there is no such run or it is over.
    pub async fn control(&self, run: RunId, control: Control, by: &str) -> Result<RunSummary, String> {
        self.operators.control(run, control, by).await
    }

    /// What happens in runs, from now on.
    pub fn notes(&self) -> broadcast::Receiver<(RunId, Note)> {
        self.notes.subscribe()
    }

    /// Where a run's current model is, as safetensors: a path, or an address in object storage.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn model_place(&self, run: RunId) -> Result<String, String> {
        self.store.model_place(run).await.map(|(place, _)| place).map_err(|error| error.to_string())
    }

    /// Waits until the server can no longer work: [`Server::shutdown`] then says why.
    pub async fn wait(&self) {
        self.stopped.cancelled().await;
    }

    /// Finishes a commit in flight, tells the clients, closes the port and the state, gives the lease back.
    ///
    /// # Errors
    /// [`ServeError`] when the server had stopped by itself; after one that [passes](ServeError::passes) it may be started again.
    pub async fn shutdown(mut self) -> Result<(), ServeError> {
        // What it met by itself may mean that another server has taken over; one that is told to stop asks nobody.
        let by_itself = self.stopped.is_cancelled();
        self.stop.cancel();
        self.stopped.cancelled().await;
        let ended = match self.engine.take() {
            Some(engine) => engine.await,
            None => Ok(Ok(())),
        };
        close_all(&self.endpoint, &ConnectError::ShuttingDown);
        // A client that does not answer must not hold up the end, and less so where the storage has held it up.
        let is_clean = matches!(ended, Ok(Ok(())));
        let farewell = if is_clean { FAREWELL } else { FAREWELL_LATE };
        let _ = tokio::time::timeout(farewell, self.endpoint.wait_idle()).await;
        if let Some(tcp) = self.tcp.take() {
            tcp.abort();
            let _ = tcp.await;
        }
        let lost = match self.lease_renewer.take() {
            Some(lease_renewer) => lease_renewer.lost().await,
            None => None,
        };
        let ended = match (ended, lost) {
            (_, Some(lost)) => Err(lost.into()),
            (Ok(Err(met)), None) if by_itself => Err(self.store.verdict(met).await.into()),
            (Ok(Err(met)), None) => Err(met.into()),
            (Ok(Ok(())), None) => Ok(()),
            (Err(_), None) => Err(ServeError::Died),
        };
        self.store.close().await;
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        close_all(&self.endpoint, &ConnectError::ShuttingDown);
    }
}
