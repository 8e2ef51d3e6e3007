//! What an operator sees and does over HTTP: numbers for Prometheus, an API in JSON, and the page that is drawn from it.
//!
//! It has a TCP port of its own, on loopback unless the operator insists, and speaks plain HTTP/1.1: whoever lets it be reached
//! from elsewhere puts TLS in front. Everything but the page's own files needs the token. Connections, bytes, time and requests
//! are bounded; nothing here decides anything about a run.

mod books;
mod events;
mod guard;
mod journal;
mod pages;
mod runs;
mod sites;
mod status;
mod token;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::engine::metrics::Metrics;
use super::engine::presence::Presence;
use super::engine::service::OperatorService;
use super::membership::credentials::ServerCredentials;
use super::transport::endpoint::listening_advice;
use books::Books;
use guard::Guard;
pub use token::{AdminToken, TokenError};
use views::Problem;

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Bytes of a request's body.
const BODY_MAX: usize = 1 << 20;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(30);

/// Where operators look in.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Address and TCP port to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What a request must carry.
    pub token: AdminToken,
    /// Whether `listen` may be an address that other machines reach. The port speaks plain HTTP: put TLS in front.
    pub allow_remote: bool,
    /// Names by which requests may call this port, besides the names of loopback and `listen`.
    pub hosts: Vec<String>,
    /// Where sites reach the server, `host:port`, for invites that name nothing else.
    pub addresses: Vec<String>,
}

/// Why the admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Other machines could reach it.
    #[error(
        "the admin port would listen on {0}, which other machines can reach, and it speaks plain HTTP; take 127.0.0.1, or put TLS \
         in front and set `allow_remote = true` under [admin] in server.toml"
    )]
    Remote(SocketAddr),
    /// The address cannot be listened on.
    #[error(
        "the admin port cannot listen on {address}: {source}; {} (that under [admin])",
        listening_advice(source)
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Where the server keeps what is shown.
pub(crate) struct Places {
    /// The state folder.
    pub(crate) state: PathBuf,
    /// This server's audit log.
    pub(crate) audit: PathBuf,
}

/// What requests are answered from.
pub(crate) struct Admin {
    pub(crate) operators: Arc<OperatorService>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) credentials: Arc<ServerCredentials>,
    pub(crate) places: Places,
    /// Where the server listens for sites.
    pub(crate) address: SocketAddr,
    books: Books,
    addresses: Vec<String>,
    started: u64,
    streams: Arc<Semaphore>,
}

impl Admin {
    pub(crate) fn new(
        operators: Arc<OperatorService>,
        metrics: Arc<Metrics>,
        presence: Arc<Presence>,
        credentials: Arc<ServerCredentials>,
        places: Places,
        address: SocketAddr,
    ) -> Self {
        let (books, started) = (Books::new(Arc::clone(&operators.store)), super::membership::members::now());
        let streams = Arc::new(Semaphore::new(events::STREAMS));
        Self {
            operators,
            metrics,
            presence,
            credentials,
            places,
            address,
            books,
            addresses: Vec::new(),
            started,
            streams,
        }
    }
}

/// What everything that answers shares.
type Shared = Arc<Admin>;

/// Whose request it is, as far as that is known: everybody shares the token, and a proxy has one address.
#[derive(Clone, Copy, Debug)]
struct Caller(SocketAddr);

impl Caller {
    /// What the audit log calls it.
    fn name(self) -> String {
        format!("admin token, from {}", self.0)
    }
}

/// The open port.
pub(crate) struct Door {
    config: AdminConfig,
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Door {
    /// Opens the port, if there is to be one.
    pub(crate) async fn open(config: Option<AdminConfig>) -> Result<Option<Self>, AdminError> {
        let Some(config) = config else { return Ok(None) };
        if !config.listen.ip().is_loopback() {
            if !config.allow_remote {
                return Err(AdminError::Remote(config.listen));
            }
            tracing::warn!(
                "the admin port {} can be reached by other machines and speaks plain HTTP: let nothing but a proxy with TLS reach it",
                config.listen
            );
        }
        let failed = |source| AdminError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(Self { config, listener, address }))
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(self, mut admin: Admin, stop: CancellationToken) {
        let Self { config, listener, address } = self;
        admin.addresses.clone_from(&config.addresses);
        let guard = Arc::new(Guard::new(&config, address, Arc::clone(&admin.metrics)));
        let router = router(Arc::new(admin), guard);
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let seat = Arc::clone(&seats).acquire_owned().await.expect("this semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, address)) => {
                    let router = router.clone().layer(Extension(Caller(address)));
                    connections.spawn(async move {
                        attend(stream, router).await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: not at once again.
                    tracing::warn!("the admin port cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        connections.shutdown().await;
    }
}

async fn attend(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    // A browser that goes away is no fault.
    let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Consortia's admin API",
    description = "Everything needs the token of `operator/admin.token`, as `Authorization: Bearer TOKEN`. Errors are \
                   `{\"error\": \"...\"}`. Times are seconds since the Unix epoch."
))]
struct Description;

fn router(admin: Shared, guard: Arc<Guard>) -> Router {
    let (api, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status::status))
        .routes(routes!(runs::list, runs::submit))
        .routes(routes!(runs::one))
        .routes(routes!(runs::reports))
        .routes(routes!(runs::statement))
        .routes(routes!(runs::pause))
        .routes(routes!(runs::resume))
        .routes(routes!(runs::stop))
        .routes(routes!(sites::list))
        .routes(routes!(sites::revoke))
        .routes(routes!(sites::quarantine))
        .routes(routes!(sites::release))
        .routes(routes!(sites::approve))
        .routes(routes!(sites::refuse))
        .routes(routes!(sites::invite))
        .routes(routes!(books::ledger))
        .routes(routes!(journal::audit))
        .routes(routes!(events::events))
        .split_for_parts();
    let description = Arc::new(description);
    let describe = move || {
        let description = Arc::clone(&description);
        async move { Json((*description).clone()) }
    };
    api.route("/api/v1/openapi.json", get(describe))
        .route("/metrics", get(status::metrics))
        .route("/crl", get(sites::revocation_list))
        .fallback(pages::page)
        .method_not_allowed_fallback(not_allowed)
        .with_state(admin)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(guard, guard::guard))
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, message).into_response()
}
