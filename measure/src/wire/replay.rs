//! Sites whose update is ready before the round begins: only the server's time is measured. They speak the protocol over bare
//! QUIC, drop the model, wait for each other, and send.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use protocol::Metrics;
use protocol::wire::{
    ALPN, AnswerBody, AnswerHeader, DATAGRAM_MAX, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX,
    Hello, Receipt, SMALL_MAX, TaskHeader, decode, encode,
};
use quinn::{Connection, Endpoint, RecvStream};
use serde::de::DeserializeOwned;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{Stage, line, now, sites};

/// Seconds of one round's way up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replay {
    /// From the first byte until the server has acknowledged the last one.
    pub(super) acknowledged: f64,
    /// From the first byte to the new model.
    pub(super) model: f64,
    /// From the new model until it is stored.
    pub(super) stored: f64,
}

/// Each round but the first, and the most bytes the server has had resident.
pub(super) async fn run(stage: &Stage<'_>) -> anyhow::Result<(Vec<Replay>, u64)> {
    let (mut server, address) = stage.federation()?;
    let rounds = stage.order.rounds + 1;
    let barrier = Arc::new(Barrier::new(stage.order.sites));
    // A delta of one point everywhere: as many bytes as any other.
    let update = Bytes::from(1i32.to_le_bytes().repeat(stage.order.parameters));
    let mut playing = JoinSet::new();
    for site in sites(stage.order.sites)? {
        let (endpoint, connection) =
            line::connect(&stage.dir.join(site.as_str()), &address, ALPN, DATAGRAM_MAX).await?;
        let site =
            Site { _endpoint: endpoint, connection, update: update.clone(), barrier: Arc::clone(&barrier) };
        playing.spawn(site.play(rounds));
    }
    let told = tokio::task::spawn_blocking(move || {
        let mut moments = Vec::new();
        for _ in 0..rounds {
            server.expect("opened")?;
            moments.push((server.moment("closed")?, server.moment("stored")?));
        }
        anyhow::Ok((moments, server.peak()?, server))
    });
    let mut spans: Vec<(f64, f64)> = vec![(f64::INFINITY, 0.0); rounds];
    while let Some(played) = playing.join_next().await {
        for (span, (first, last)) in spans.iter_mut().zip(played??) {
            *span = (span.0.min(first), span.1.max(last));
        }
    }
    let (moments, peak, server) = told.await??;
    server.end()?;
    let replay = |((first, last), (closed, stored)): (&(f64, f64), &(f64, f64))| Replay {
        acknowledged: last - first,
        model: closed - first,
        stored: stored - closed,
    };
    Ok((spans.iter().zip(&moments).skip(1).map(replay).collect(), peak))
}

struct Site {
    _endpoint: Endpoint,
    connection: Connection,
    update: Bytes,
    barrier: Arc<Barrier>,
}

impl Site {
    /// Greets and does every round's task; when its update began and when the last of it was acknowledged, a pair a round.
    async fn play(self, rounds: usize) -> anyhow::Result<Vec<(f64, f64)>> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&encode(FrameKind::Hello, &Hello { software: "replay".to_owned() })).await?;
        send.finish()?;
        match frame(&mut recv, FrameKind::Greeting, SMALL_MAX).await? {
            Greeting::Welcome { .. } => {}
            Greeting::Rejected(rejection) => bail!("{rejection}"),
            Greeting::Prove { .. } => bail!("a proof of a ledger is asked for, and none was claimed"),
        }
        let mut spans = Vec::new();
        for _ in 0..rounds {
            spans.push(self.round().await?);
        }
        Ok(spans)
    }

    async fn round(&self) -> anyhow::Result<(f64, f64)> {
        let (mut send, mut recv) = self.connection.accept_bi().await?;
        let task: TaskHeader = frame(&mut recv, FrameKind::Task, HEADER_MAX).await?;
        line::take(&mut recv, usize::try_from(task.model_len)? * size_of::<f32>()).await?;
        self.barrier.wait().await;
        let began = now();
        let metrics = Metrics { loss: 0.0, accuracy: None, examples: 10, seconds: 0.0 };
        let body = AnswerBody::Trained { len: task.model_len, weight: 10, vote: 0, metrics };
        send.write_all(&encode(FrameKind::Answer, &AnswerHeader { task: task.id, body })).await?;
        send.write_chunk(self.update.clone()).await?;
        send.finish()?;
        send.stopped().await?;
        let acknowledged = now();
        match frame(&mut recv, FrameKind::Receipt, SMALL_MAX).await? {
            Receipt::Accepted => Ok((began, acknowledged)),
            Receipt::Refused(refusal) => bail!("an update was refused: {}", refusal.name()),
        }
    }
}

async fn frame<T: DeserializeOwned>(
    recv: &mut RecvStream,
    kind: FrameKind,
    limit: usize,
) -> anyhow::Result<T> {
    let mut head = [0; FRAME_HEAD];
    recv.read_exact(&mut head).await.context("no frame came")?;
    let mut body = vec![0; FrameHead::parse(head, kind, limit)?.len];
    recv.read_exact(&mut body).await?;
    Ok(decode(&body)?)
}
