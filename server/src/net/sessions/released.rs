//! Released models on their way: to operators, and to sites that took part in their runs.
//!
//! A site asks on a connection that only looks (a probe), so that its agent is not disturbed.

use std::sync::Arc;
use std::time::Duration;

use protocol::wire::{AdminReply, ConnectError, FrameKind, ModelChoice, SMALL_MAX, SiteRequest};
use protocol::{ClientId, RunId};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::session::ServerContext;
use crate::net::store::Store;
use crate::net::store::archive::ArchivedModel;
use crate::net::transport::frames::{Patience, model_bytes, read_frame, write_frame};
use crate::net::transport::messages::{OPENING, close};

/// Models that are sent to sites at a time: each takes its memory here.
const FETCHES: usize = 4;
/// How long one may take.
const FETCH_MAX: Duration = Duration::from_secs(3600);

/// The places of sites that fetch models.
#[derive(Debug)]
pub(crate) struct Fetches(Semaphore);

impl Default for Fetches {
    fn default() -> Self {
        Self(Semaphore::new(FETCHES))
    }
}

/// Sends a model: what is known of it and may be said about it, then its values.
///
/// # Errors
/// A sentence for whoever asked, when nothing was sent.
pub(crate) async fn send_released(
    store: &Store,
    run: Option<RunId>,
    choice: ModelChoice,
    send: &mut SendStream,
) -> Result<(), String> {
    let shelved = store.released(run, choice).await.map_err(|error| error.to_string())?;
    let ArchivedModel { run, line, statement, layout, model, standardiser } = shelved;
    let side = |side: &usize| *side as u64;
    let tensors = layout.shared().map(|one| (one.name.clone(), one.shape.iter().map(side).collect()));
    let (tensors, model_len) = (tensors.collect(), model.len() as u64);
    let statement = statement.to_json();
    let reply = AdminReply::Model { run, line, statement, tensors, standardiser, model_len };
    // The peer may be gone; then there is nobody to tell.
    if write_frame(send, FrameKind::AdminReply, &reply).await.is_ok()
        && send.write_chunk(model_bytes(&Arc::new(model))).await.is_ok()
    {
        let _ = send.finish();
    }
    Ok(())
}

/// Answers what a site asks that only looks, until it goes. One that asks nothing goes soon, or is sent away.
pub(super) async fn attend(context: &ServerContext, connection: &Connection, site: &ClientId) {
    loop {
        let stream = tokio::select! {
            stream = timeout(OPENING, connection.accept_bi()) => stream,
            _ = connection.closed() => return,
        };
        match stream {
            Ok(Ok((send, recv))) => {
                // One that is cut off is the site's to ask for again.
                let _ = timeout(FETCH_MAX, answer(context, site, send, recv)).await;
            }
            Ok(Err(_)) => return,
            Err(_) => return close(connection, &ConnectError::Late),
        }
    }
}

async fn answer(context: &ServerContext, site: &ClientId, mut send: SendStream, mut recv: RecvStream) {
    let patience = Patience { first: Some(OPENING), idle: OPENING };
    let asked = read_frame(&mut recv, FrameKind::SiteRequest, SMALL_MAX, patience).await;
    let failed = match asked {
        Ok(SiteRequest::Model { run }) => match model(context, site, run, &mut send).await {
            Ok(()) => {
                // The bytes are acknowledged, or the peer is gone.
                let _ = send.stopped().await;
                return;
            }
            Err(error) => error,
        },
        Err(error) => error.to_string(),
    };
    if write_frame(&mut send, FrameKind::AdminReply, &AdminReply::Error(failed)).await.is_ok() {
        let _ = send.finish();
    }
}

/// Sends the last released model of a run in which the site took part; of the newest such run where none is named.
async fn model(
    context: &ServerContext,
    site: &ClientId,
    run: Option<RunId>,
    send: &mut SendStream,
) -> Result<(), String> {
    let Ok(Ok(_place)) = timeout(OPENING, context.fetches.0.acquire()).await else {
        return Err("the server sends models to other sites; ask again in a moment".to_owned());
    };
    let found = context.store.took_part(site, run).await.map_err(|error| error.to_string())?;
    let run = found.ok_or_else(|| match run {
        Some(run) => format!("this site took part in no run {run} here"),
        None => "this site has taken part in no run here yet".to_owned(),
    })?;
    tracing::info!("{site} fetches the last model of run {run}");
    send_released(&context.store, Some(run), ModelChoice::Last, send).await
}
