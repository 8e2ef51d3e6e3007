//! Spans to a collector: OTLP in protobuf over HTTP, to where `OTEL_EXPORTER_OTLP_ENDPOINT` says; without that, nowhere.
//!
//! The SDK keeps spans in a bounded queue and sends them from a thread of its own; what finds the queue full is dropped. It
//! speaks plain HTTP only, as collectors beside a program do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ::client::net::AgentEvent;
use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{
    Event, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, Sampler, SdkTracer, SdkTracerProvider};
use protocol::RunId;
use server::Note;
use server::net::LiveRuns;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::spans::{Parent, Runs, Span, Tasks, trace_id};

/// Where the standard says that collectors are named.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the program waits for the last spans.
const FLUSHED_WITHIN: Duration = Duration::from_secs(2);
/// The largest answer of a collector that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The line to a collector, if there is one.
#[derive(Debug)]
pub(in super::super) struct Telemetry(Option<Exporting>);

#[derive(Debug)]
struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    ids: Ids,
    open: Mutex<(Runs, Tasks)>,
}

impl Telemetry {
    /// As the environment says; within a runtime. `role` is the name of the service unless `OTEL_SERVICE_NAME` gives one.
    pub(in super::super) fn from_environment(role: &'static str) -> Self {
        let named = |name: &&str| std::env::var(name).is_ok_and(|endpoint| !endpoint.is_empty());
        let Some(named) = ENDPOINTS.into_iter().find(named) else { return Self(None) };
        let endpoint = std::env::var(named).unwrap_or_default();
        if !endpoint.starts_with("http://") {
            tracing::error!(
                "{named}: `{endpoint}` is not an address of plain HTTP, and no traces are exported; name a collector on this \
                 machine, such as http://127.0.0.1:4318, and let it speak TLS to others"
            );
            return Self(None);
        }
        match Exporting::begin(role) {
            Ok(exporting) => Self(Some(exporting)),
            Err(error) => {
                tracing::error!("{named}: {error}; no traces are exported");
                Self(None)
            }
        }
    }

    /// A server has noted this.
    pub(in super::super) fn note(&self, run: RunId, note: &Note, live: &LiveRuns) {
        let Some(exporting) = &self.0 else { return };
        let mut open = exporting.open.lock().unwrap_or_else(PoisonError::into_inner);
        for span in open.0.note(SystemTime::now(), run, note, live) {
            exporting.tell(span);
        }
    }

    /// This has happened at a site.
    pub(in super::super) fn event(&self, event: &AgentEvent) {
        let Some(exporting) = &self.0 else { return };
        let mut open = exporting.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(span) = open.1.event(SystemTime::now(), event) {
            exporting.tell(span);
        }
    }

    /// Sends what is left, for a short while.
    pub(in super::super) async fn flush(self) {
        let Some(exporting) = self.0 else { return };
        let flushed =
            tokio::task::spawn_blocking(move || exporting.provider.shutdown_with_timeout(FLUSHED_WITHIN));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!("the last traces were not exported: {error}");
        }
    }
}

impl Exporting {
    fn begin(role: &'static str) -> Result<Self, ExporterBuildError> {
        let collector = Collector { runtime: Handle::current(), fails: Arc::default() };
        let exporter = SpanExporter::builder().with_http().with_http_client(collector).build()?;
        let ids = Ids::default();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_id_generator(ids.clone())
            // A sample would have rounds without their tasks: each side would choose for itself.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource(role))
            .build();
        let tracer = provider.tracer("consortia");
        Ok(Self { provider, tracer, ids, open: Mutex::default() })
    }

    fn tell(&self, span: Span) {
        let trace = TraceId::from(trace_id(span.run));
        self.ids.plan(trace, SpanId::from(span.id));
        let parent = span.parent.map_or_else(Context::new, |parent| {
            let (id, remote) = match parent {
                Parent::Here(id) => (id, false),
                Parent::AtTheServer(id) => (id, true),
            };
            let above =
                SpanContext::new(trace, SpanId::from(id), TraceFlags::SAMPLED, remote, TraceState::default());
            Context::new().with_remote_span_context(above)
        });
        let answering = span.answering.map(|at| Event::new("answering", at, Vec::new(), 0));
        let builder = SpanBuilder::from_name(span.name)
            .with_kind(SpanKind::Internal)
            .with_start_time(span.start)
            .with_attributes(span.attributes)
            .with_events(answering.into_iter().collect());
        let mut told = self.tracer.build_with_context(builder, &parent);
        if let Some(error) = span.error {
            told.set_status(Status::error(error));
        }
        told.end_with_timestamp(span.end);
    }
}

/// Who tells: what the environment says of it, and else the role.
fn resource(role: &'static str) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let told = Resource::builder().with_attribute(version.clone()).build();
    let name = told.get(&"service.name".into()).map(|name| name.to_string());
    if name.is_some_and(|name| !name.starts_with("unknown_service")) {
        return told;
    }
    Resource::builder().with_attribute(version).with_service_name(role).build()
}

/// Gives the next span the ids that were planned for it.
#[derive(Clone, Debug, Default)]
struct Ids(Arc<Mutex<Option<(TraceId, SpanId)>>>);

impl Ids {
    fn plan(&self, trace: TraceId, span: SpanId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((trace, span));
    }

    fn planned(&self) -> (TraceId, SpanId) {
        let planned = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        planned.unwrap_or((TraceId::INVALID, SpanId::INVALID))
    }
}

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        self.planned().0
    }

    fn new_span_id(&self) -> SpanId {
        self.planned().1
    }
}

/// One request after another to the collector, each on a connection of its own.
#[derive(Debug)]
struct Collector {
    runtime: Handle,
    /// Whether the last request failed: only the first of several failures is told.
    fails: Arc<AtomicBool>,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let endpoint = request.uri().to_string();
        // Called from the thread of the SDK, where no runtime is.
        let sent = self.runtime.spawn(async { tokio::time::timeout(PATIENCE, post(request)).await });
        let answer = match sent.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(format!("no answer within {} s", PATIENCE.as_secs()).into()),
            Err(ended) => return Err(ended.into()),
        };
        let error = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let failed = self.fails.swap(error.is_some(), Ordering::Relaxed);
        if let (Some(error), false) = (error, failed) {
            tracing::warn!("{endpoint}: {error}; traces are lost until this collector answers");
        }
        answer
    }
}

async fn post(mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let authority = request.uri().authority().ok_or("the endpoint names no host")?.clone();
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
    *request.uri_mut() = path;
    request.headers_mut().insert(hyper::header::HOST, authority.as_str().parse()?);
    let answer = sender.send_request(request.map(Full::new)).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}
