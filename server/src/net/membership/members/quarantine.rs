//! Sites that stay members and get no task: an operator looks into something first.
//!
//! A quarantine is on disk before it takes effect, and holds until an operator ends it: over restarts, over a takeover, and over a
//! new certificate. What a site gave before stays in the models. The site is told, with the operator's words.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use protocol::ClientId;
use protocol::wire::{FrameKind, Notice, Quarantine};
use quinn::Connection;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Members, now};
use crate::net::membership::messages::ToEngine;
use crate::net::store::messages::Record;
use crate::net::transport::frames::write_frame;
use crate::net::transport::messages::OPENING;

/// Bytes of a reason.
const REASON_MAX: usize = 500;

/// Who gets no task, and why.
pub(crate) type Quarantines = Arc<BTreeMap<ClientId, Quarantine>>;

impl Members {
    /// Gives a site no task from now on, and takes no answer that it still owes. When this returns, it holds.
    pub(crate) async fn quarantine(&self, site: ClientId, reason: &str, by: &str) -> Result<(), String> {
        let reason = reason.trim();
        if reason.len() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(format!("a reason is one line of at most {REASON_MAX} bytes"));
        }
        let _turn = self.turn.lock().await;
        let since = now();
        self.store.quarantine(&site, since, reason).await.map_err(|error| error.to_string())?;
        self.hold(&site, true).await?;
        self.quarantined.send_modify(|held| {
            let held = Arc::make_mut(held);
            let since = held.get(&site).map_or(since, |before| before.since);
            held.insert(site.clone(), Quarantine { since, reason: reason.to_owned() });
        });
        tracing::warn!("operator {by} holds {site} in quarantine: {reason}");
        self.record(Record::Quarantined { site, reason: reason.to_owned(), by: by.to_owned() }).await;
        Ok(())
    }

    /// Ends a site's quarantine: the next round may ask it again.
    pub(crate) async fn release(&self, site: ClientId, by: &str) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        if !self.store.end_quarantine(&site).await.map_err(|error| error.to_string())? {
            return Err(format!("{site} is not in quarantine"));
        }
        self.hold(&site, false).await?;
        self.quarantined.send_modify(|held| drop(Arc::make_mut(held).remove(&site)));
        tracing::info!("operator {by} has released {site} from quarantine");
        self.record(Record::QuarantineEnded { site, by: by.to_owned() }).await;
        Ok(())
    }

    /// Lets the engine know, and waits until it does.
    async fn hold(&self, site: &ClientId, held: bool) -> Result<(), String> {
        let stopping = || "the server is shutting down; what was asked for is stored".to_owned();
        let (reply, done) = oneshot::channel();
        if !self.engine.hear(ToEngine::Hold { client: site.clone(), held, reply }).await {
            return Err(stopping());
        }
        done.await.map_err(|_| stopping())
    }

    /// How many sites are held.
    pub(crate) fn quarantined(&self) -> usize {
        self.quarantined.borrow().len()
    }

    /// Tells a site that it is held in quarantine, and when it no longer is, for as long as this is polled.
    pub(crate) async fn keep_told(&self, connection: &Connection, site: &ClientId) -> Infallible {
        let mut quarantined = self.quarantined.subscribe();
        let mut told: Option<String> = None;
        loop {
            let held = quarantined.borrow_and_update().get(site).map(|held| held.reason.clone());
            if held != told {
                let notice = match &held {
                    Some(reason) => Notice::Quarantined { reason: reason.clone() },
                    None => Notice::Released,
                };
                // A peer that takes no stream misses its notice, and nothing else.
                let _ = timeout(OPENING, tell(connection, &notice)).await;
                told = held;
            }
            if quarantined.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn tell(connection: &Connection, notice: &Notice) -> Option<()> {
    let (mut send, _recv) = connection.open_bi().await.ok()?;
    write_frame(&mut send, FrameKind::Notice, notice).await.ok()?;
    send.finish().ok()?;
    // It is away once the peer has it.
    send.stopped().await.ok().map(drop)
}
