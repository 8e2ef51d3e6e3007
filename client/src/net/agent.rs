//! Keeps a participant connected, for as long as its site wants to take part.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::Capabilities;
use protocol::wire::{CodecError, ConnectError};
use quinn::ConnectionError;
use rand::TryRngCore;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::connection::{DialError, Link, SERVER_NAME, Transport, explain};
use super::events::AgentEvent;
use super::greeting::{GreetError, ended_for_good, greet};
use super::identity::Identity;
use super::outbox::Outbox;
use super::pace::Pace;
use super::session::TaskRunner;
use crate::audit::AuditEvent;
use crate::{LedgerHead, LedgerHistory, LocalState, Participant};

/// The first and the longest pause between two attempts to connect; each is drawn between zero and its bound.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A connection that lived this long was a good one: the next pause is short again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// Where the servers are and how much they may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// The servers' addresses, `host:port`, in the order in which they are tried; one of them works at a time. Names are looked up
    /// again at each attempt.
    pub servers: Vec<String>,
    /// The name that the server's certificate must hold; by default [`SERVER_NAME`], which the federation's authority
    /// puts into it beside real names.
    pub server_name: String,
    /// Which way packets take.
    pub transport: Transport,
    /// After how long on TCP UDP is tried again, where the transport is [`Transport::Auto`]; the site moves to it between two tasks.
    pub udp_again: Duration,
    /// What the server's log calls this program.
    pub software: String,
    /// The most bytes of a model this site takes; by default 4 GiB.
    pub model_bytes_max: u64,
    /// The most bytes a second that the values of answers take of the line; not limited by default.
    pub upload_bytes_per_second: Option<NonZeroU64>,
    /// The most bytes a second, on average, at which the models of tasks are taken from the line; not limited by default.
    pub download_bytes_per_second: Option<NonZeroU64>,
}

impl AgentConfig {
    /// The defaults for a server at `server` (`host:port`).
    pub fn new(server: impl Into<String>) -> Self {
        Self::any_of(vec![server.into()])
    }

    /// The defaults for servers that take turns, at these addresses (`host:port`).
    pub fn any_of(servers: Vec<String>) -> Self {
        Self {
            servers,
            server_name: SERVER_NAME.to_owned(),
            transport: Transport::default(),
            udp_again: Duration::from_secs(600),
            software: format!("consortia {}", env!("CARGO_PKG_VERSION")),
            model_bytes_max: 4 << 30,
            upload_bytes_per_second: None,
            download_bytes_per_second: None,
        }
    }
}

/// Why an agent gave up. Everything else it waits out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The server will not have this client.
    #[error("the server rejects this client: {0}")]
    Rejected(ConnectError),
    /// The server speaks another version of the protocol.
    #[error(transparent)]
    Version(CodecError),
    /// The configuration can never lead to a connection.
    #[error(transparent)]
    Configuration(DialError),
    /// The site's ledger or audit log could not be written. Nothing leaves that is not written down, so the site would keep every round
    /// waiting; a new start reads what the disk has.
    #[error("the site's books cannot be kept: {0}")]
    Unwritten(String),
}

/// A participant and its line to the server.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    identity: watch::Sender<Identity>,
    runner: TaskRunner,
    ledger: Option<LedgerHistory>,
    /// What the participant knows, for the hello.
    capabilities: Capabilities,
}

/// Why one attempt to connect failed.
enum Attempt {
    Final(AgentError),
    Passing(String),
}

impl Agent {
    /// An agent for `participant`; nothing happens before [`Agent::run`].
    pub fn new(participant: Participant, identity: Identity, config: AgentConfig) -> Self {
        let model_bytes_max = config.model_bytes_max;
        let capabilities = participant.capabilities();
        let (audit, ledger) = (participant.audit().cloned(), participant.history().cloned());
        let methods = participant.methods().clone();
        let participant = Arc::new(Mutex::new(participant));
        let runner = TaskRunner {
            participant,
            methods,
            audit,
            broken: CancellationToken::new(),
            sink: None,
            outbox: Arc::default(),
            ledger: ledger.clone(),
            events: None,
            model_bytes_max,
            spare: Arc::default(),
            up: config.upload_bytes_per_second.map(Pace::new),
            down: config.download_bytes_per_second.map(Pace::new),
        };
        Self { config, identity: watch::Sender::new(identity), runner, ledger, capabilities }
    }

    /// Where a renewed identity goes: the next connection shows it.
    pub fn identity(&self) -> watch::Sender<Identity> {
        self.identity.clone()
    }

    /// Sends what happens to `events`. A full channel misses events; it never holds up the work.
    #[must_use]
    pub fn with_events(mut self, events: mpsc::Sender<AgentEvent>) -> Self {
        self.runner.events = Some(events);
        self
    }

    /// Calls `keep` after every training that changed what stays at the site, on the thread that trained, so that it
    /// can be written to disk. [`Participant::restore_personal`] brings it back.
    #[must_use]
    pub fn with_keeper(mut self, keep: impl Fn(&LocalState) + Send + Sync + 'static) -> Self {
        self.runner.sink = Some(Arc::new(keep));
        self
    }

    /// Keeps answers in `outbox` until their run goes on, so that they outlive this program and the server's. Without one they are kept in memory,
    /// until they are acknowledged.
    #[must_use]
    pub fn with_outbox(mut self, outbox: Outbox) -> Self {
        self.runner.outbox = Arc::new(Mutex::new(outbox));
        self
    }

    /// Connects, does tasks, and connects again, until `shutdown` is cancelled: then the running task is stopped, the
    /// server hears a goodbye, and `Ok` is returned within about two seconds.
    ///
    /// Certificates that are not accepted are waited out like an absent server, since the operator may mend them; the
    /// event [`AgentEvent::Waiting`] says what to do.
    ///
    /// # Errors
    /// [`AgentError`] when no waiting can help: another protocol version, a certificate that names no site, a ledger that is not the one
    /// that the server remembers, books that cannot be written, or an impossible configuration.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let (mut failures, mut has_connected) = (0, false);
        while !shutdown.is_cancelled() {
            let error = match shutdown.run_until_cancelled(self.connect()).await {
                None => break,
                Some(Err(Attempt::Final(error))) => return Err(error),
                Some(Err(Attempt::Passing(error))) => error,
                Some(Ok(link)) => {
                    has_connected = true;
                    let since = tokio::time::Instant::now();
                    let served = shutdown.run_until_cancelled(self.serve(&link)).await;
                    if let Some(error) = self.runner.unwritten() {
                        link.leave().await;
                        return Err(AgentError::Unwritten(error));
                    }
                    let Some(Some(error)) = served else {
                        // Told to go, or there is a better way: the loop knows.
                        link.leave().await;
                        continue;
                    };
                    if let Some(rejection) = ended_for_good(&error) {
                        self.runner.note_the_end().await;
                        return Err(AgentError::Rejected(rejection));
                    }
                    failures = if since.elapsed() < GOOD_LIFE { failures } else { 0 };
                    explain(&error)
                }
            };
            let retry_in = pause(failures);
            failures += 1;
            self.runner.report(AgentEvent::Waiting { error, retry_in });
            shutdown.run_until_cancelled(tokio::time::sleep(retry_in)).await;
        }
        self.runner.note_the_end().await;
        if has_connected {
            self.runner.report(AgentEvent::Left);
        }
        Ok(())
    }

    /// Works until the connection ends, and says why; or until UDP turns out to lead to the server where TCP was needed, and no task is
    /// under way.
    async fn serve(&self, link: &Link) -> Option<ConnectionError> {
        let leave = CancellationToken::new();
        let work = self.runner.serve(&link.connection, &leave);
        let better = async {
            if link.is_over_tcp() && self.config.transport == Transport::Auto {
                self.wait_for_udp().await;
                leave.cancel();
            }
            std::future::pending().await
        };
        tokio::select! {
            ended = work => ended,
            never = better => never,
        }
    }

    async fn wait_for_udp(&self) {
        let AgentConfig { servers, server_name, udp_again, .. } = &self.config;
        loop {
            tokio::time::sleep(*udp_again).await;
            let identity = self.identity.borrow().clone();
            if Link::is_udp_open(servers, server_name, identity.tls()).await {
                return;
            }
        }
    }

    /// One attempt: a connection, and a server that has greeted.
    async fn connect(&self) -> Result<Link, Attempt> {
        let config = &self.config;
        let identity = self.identity.borrow().clone();
        let AgentConfig { servers, server_name, transport, .. } = config;
        let link = Link::open_any(servers, server_name, *transport, identity.tls()).await;
        let link = link.map_err(|error| match error {
            DialError::ServerName(_) | DialError::Nobody => Attempt::Final(AgentError::Configuration(error)),
            other => Attempt::Passing(other.to_string()),
        })?;
        let hello = (&*config.software, &self.capabilities);
        match greet(&link.connection, hello, self.ledger.as_ref()).await {
            Ok((software, you)) => {
                let (server, over_tcp) = (link.connection.remote_address(), link.is_over_tcp());
                let place = if over_tcp { format!("{server} (TCP)") } else { server.to_string() };
                self.runner.note(AuditEvent::Connected { server: place, you: you.clone() }).await;
                self.runner.report(AgentEvent::Connected { server, over_tcp, software, you });
                Ok(link)
            }
            Err(GreetError::Rejected(rejection)) => {
                if let ConnectError::LedgerForked { known, answered } = &rejection {
                    let known = LedgerHead { records: known.records, head: known.head };
                    let (server, answered) = (link.connection.remote_address().to_string(), *answered);
                    self.runner.note(AuditEvent::LedgerRefused { server, known, answered }).await;
                }
                Err(Attempt::Final(AgentError::Rejected(rejection)))
            }
            Err(GreetError::Version(error)) => Err(Attempt::Final(AgentError::Version(error))),
            Err(GreetError::Lost(error)) => Err(Attempt::Passing(error)),
        }
    }
}

/// A pause after `failures` failures in a row: exponential with full jitter, so that a thousand sites that lost the
/// same server do not come back in the same instant (Brooker 2015, "Exponential Backoff And Jitter").
fn pause(failures: u32) -> Duration {
    let bound = PAUSE_FIRST.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(PAUSE_MAX);
    // Without entropy there is no jitter, and the pause is the longest.
    let share = rand::rngs::OsRng.try_next_u32().map_or(1.0, |drawn| f64::from(drawn) / f64::from(u32::MAX));
    bound.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_and_not_beyond() {
        for failures in [0, 1, 5, 31, 32, u32::MAX] {
            let bound = if failures < 2 { PAUSE_FIRST * (1 << failures) } else { PAUSE_MAX };
            assert!((0..100).all(|_| pause(failures) <= bound), "{failures}");
        }
        let longest = (0..200).map(|_| pause(40)).max().unwrap();
        assert!(longest > Duration::from_secs(20), "{longest:?}");
    }
}
