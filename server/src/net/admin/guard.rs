//! Who may ask, how, and how often: asked before anything else looks at a request.
//!
//! A request must call this port by a name of its own, or a cross-origin page could reach it through a name that resolves to
//! loopback (DNS rebinding). It says that name once: a second `Host`, `Origin` or `Authorization`, or a target that names a host
//! of its own (`GET http://elsewhere/`), could mean one thing to a proxy and another here, and is refused; so is a header
//! longer than [`HEADER_MAX`]. What is behind `/api` and `/metrics` needs the token. Whoever shows a wrong one, or
//! none, draws on another bucket than whoever has it, and each attempt costs as much as twenty requests: nobody can guess fast,
//! and nobody can lock the operator out. The page's files have a bucket of their own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::views::Problem;
use super::{AdminConfig, AdminToken};
use crate::net::engine::metrics::Metrics;

/// What the page may do: run its own files and ask its own server.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// How long an answer may take to begin, the reading of a request's body included.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one header's value.
const HEADER_MAX: usize = 8 << 10;
/// Headers that mean something here, and stand in a request once at most.
const ONCE: [HeaderName; 3] = [HOST, ORIGIN, AUTHORIZATION];
/// What a wrong token costs, in requests.
const WRONG: f64 = 20.0;

/// Requests that may come at once, and how fast that room comes back.
struct Bucket {
    capacity: f64,
    per_second: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(capacity: f64, per_second: f64) -> Self {
        Self { capacity, per_second, level: Mutex::new((capacity, Instant::now())) }
    }

    fn take(&self, now: Instant, cost: f64) -> bool {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled = level.0 + (now - level.1).as_secs_f64() * self.per_second;
        let left = refilled.min(self.capacity) - cost;
        *level = (if left < 0.0 { left + cost } else { left }, now);
        left >= 0.0
    }
}

/// See the module.
pub(super) struct Guard {
    token: AdminToken,
    hosts: Vec<String>,
    metrics: Arc<Metrics>,
    operators: Bucket,
    strangers: Bucket,
    files: Bucket,
}

impl Guard {
    pub(super) fn new(config: &AdminConfig, address: SocketAddr, metrics: Arc<Metrics>) -> Self {
        let port = address.port();
        let names = ["localhost", "127.0.0.1", "[::1]"].map(|name| format!("{name}:{port}"));
        let mut hosts = Vec::from(names);
        hosts.push(address.to_string());
        hosts.extend(config.hosts.iter().map(|host| host.to_ascii_lowercase()));
        Self {
            token: config.token.clone(),
            hosts,
            metrics,
            operators: Bucket::new(200.0, 50.0),
            strangers: Bucket::new(200.0, 20.0),
            files: Bucket::new(200.0, 50.0),
        }
    }

    fn admit(&self, target: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let path = target.path();
        let refuse = |reason, status, message: &str| {
            self.metrics.admin_refused(reason);
            Err(Problem::new(status, message))
        };
        if target.authority().is_some() || target.scheme().is_some() {
            let message = "the target of a request is a path here, without scheme and host";
            return refuse("host", StatusCode::BAD_REQUEST, message);
        }
        if let Some(name) = ONCE.iter().find(|name| headers.get_all(*name).iter().count() > 1) {
            return refuse(
                "host",
                StatusCode::BAD_REQUEST,
                &format!("the header `{name}` stands there more than once"),
            );
        }
        if let Some((name, value)) = headers.iter().find(|(_, value)| value.len() > HEADER_MAX) {
            let message =
                format!("the header `{name}` has {} bytes; at most {HEADER_MAX} are allowed", value.len());
            return refuse("host", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &message);
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let known = |host: &str| self.hosts.contains(&host.to_ascii_lowercase());
        if !known(host) {
            let message = "this port is not called that; use its address, or name it in `hosts` under [admin] in server.toml";
            return refuse("host", StatusCode::MISDIRECTED_REQUEST, message);
        }
        if let Some(origin) = headers.get(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            if !origin.split_once("://").is_some_and(|(_, host)| known(host)) {
                return refuse("host", StatusCode::FORBIDDEN, "cross-origin request refused");
            }
        }
        let too_many = |bucket: &Bucket, cost| {
            if bucket.take(Instant::now(), cost) {
                return Ok(());
            }
            refuse("rate", StatusCode::TOO_MANY_REQUESTS, "too many requests; wait a second")
        };
        if !needs_token(path) {
            return too_many(&self.files, 1.0);
        }
        let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
        if self.token.is(shown) {
            return too_many(&self.operators, 1.0);
        }
        too_many(&self.strangers, WRONG)?;
        let message = "this needs the token in operator/admin.token beside server.toml, as `Authorization: Bearer TOKEN`";
        refuse("token", StatusCode::UNAUTHORIZED, message)
    }
}

fn needs_token(path: &str) -> bool {
    path == "/metrics" || path == "/api" || path.starts_with("/api/")
}

/// Lets a request through or answers it; every answer carries what browsers must know.
pub(super) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let private = needs_token(request.uri().path());
    let mut response = match guard.admit(request.uri(), request.headers()) {
        Err(problem) => problem.into_response(),
        Ok(()) => match tokio::time::timeout(PATIENCE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "this took too long").into_response(),
        },
    };
    let status = response.status();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(CONTENT_SECURITY_POLICY, CSP);
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(X_FRAME_OPTIONS, "DENY");
    set(REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    if private {
        set(CACHE_CONTROL, "no-store");
    }
    if status == StatusCode::UNAUTHORIZED {
        set(WWW_AUTHENTICATE, "Bearer");
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        set(RETRY_AFTER, "1");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_names_two_hosts_or_a_target_elsewhere_is_refused() {
        let token = AdminToken::read_or_make(&tempfile::tempdir().unwrap().path().join("token")).unwrap();
        let listen: SocketAddr = "127.0.0.1:4434".parse().unwrap();
        let (hosts, addresses) = (vec!["fed.example".to_owned()], Vec::new());
        let config = AdminConfig { listen, token, allow_remote: false, hosts, addresses };
        let guard = Guard::new(&config, listen, Arc::new(Metrics::new()));
        let status = |target: &str, headers: &[(HeaderName, &str)]| {
            let mut map = HeaderMap::new();
            headers.iter().for_each(|(name, value)| {
                assert!(map.append(name, value.parse().unwrap()) || map.contains_key(name))
            });
            let admitted = guard.admit(&target.parse().unwrap(), &map);
            admitted.map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
        };
        let ours = (HOST, "fed.example");
        assert_eq!(status("/", std::slice::from_ref(&ours)), 200);
        for other in ["fed.example", "evil.example"] {
            assert_eq!(status("/", &[ours.clone(), (HOST, other)]), 400, "{other}");
            assert_eq!(status("/", &[(HOST, other), ours.clone()]), 400, "{other}");
        }
        let origin = (ORIGIN, "https://fed.example");
        assert_eq!(status("/", &[ours.clone(), origin.clone()]), 200);
        assert_eq!(status("/", &[ours.clone(), origin.clone(), (ORIGIN, "https://evil.example")]), 400);
        assert_eq!(status("/", &[ours.clone(), (AUTHORIZATION, "a"), (AUTHORIZATION, "b")]), 400);
        for target in [
            "http://evil.example/",
            "http://fed.example/api/v1/runs",
            "https://127.0.0.1:4434/",
            "fed.example:4434",
        ] {
            assert_eq!(status(target, std::slice::from_ref(&ours)), 400, "{target}");
        }
        let long = "x".repeat(HEADER_MAX + 1);
        assert_eq!(status("/", &[ours.clone(), (REFERRER_POLICY, &long)]), 431);
        assert_eq!(status("/", &[ours, (REFERRER_POLICY, &long[1..])]), 200);
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_fills_with_time() {
        let (bucket, begin) = (Bucket::new(3.0, 1.0), Instant::now());
        let take = |seconds, cost| bucket.take(begin + Duration::from_secs(seconds), cost);
        assert!(take(1, 1.0) && take(1, 2.0) && !take(1, 1.0));
        assert!(!take(2, 2.0) && take(2, 1.0) && !take(2, 1.0));
        assert!(take(1000, 3.0) && !take(1000, 1.0));
    }
}
