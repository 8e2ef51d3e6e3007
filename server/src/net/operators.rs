//! What operators ask for over QUIC: each request on a stream of its own, which the engine's service answers.

use std::sync::Arc;

use protocol::wire::{
    ADMIN_MAX, AdminReply, AdminRequest, CodecError, ConnectError, FRAME_HEAD, FrameKind, RunSummary, encode,
};
use protocol::{Layout, Parameters, RunId};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::engine::InitialModel;
use super::engine::service::{OperatorService, check_start};
use super::sessions::messages::OperatorArrived;
use super::sessions::released::send_released;
use super::store::messages::Verdict;
use super::transport::frames::{FrameError, Pace, Patience, at_end, read_frame, read_values, write_frame};
use super::transport::messages::{OPENING, reject_on};

/// Requests of one operator at a time.
const REQUESTS: u32 = 16;
/// Operators that may wait to be attended to.
const WAITING: usize = 64;

/// Attends to every operator that is sent here, until nobody can send one any more.
pub(crate) fn welcome(service: Arc<OperatorService>) -> mpsc::Sender<OperatorArrived> {
    let (sender, mut arrived) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        while let Some(OperatorArrived { connection, name, seat }) = arrived.recv().await {
            let operator = Operators(Arc::clone(&service));
            tokio::spawn(async move {
                operator.attend(&connection, &name).await;
                drop(seat);
            });
        }
    });
    sender
}

/// Answers operators.
#[derive(Clone)]
struct Operators(Arc<OperatorService>);

impl Operators {
    /// Serves the connection of the operator of this name until it is gone.
    async fn attend(&self, connection: &Connection, name: &str) {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(REQUESTS));
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (operators, connection, by) = (self.clone(), connection.clone(), name.to_owned());
                        streams.spawn(async move { operators.answer(&connection, &by, send, recv).await });
                    }
                    Err(_) => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }

    async fn answer(&self, connection: &Connection, by: &str, mut send: SendStream, mut recv: RecvStream) {
        let patience = Patience { first: Some(OPENING), idle: OPENING };
        let reply = match read_frame(&mut recv, FrameKind::AdminRequest, ADMIN_MAX, patience).await {
            Ok(AdminRequest::Submit { plan_toml, seed }) => {
                self.0.submit(plan_toml, seed, None, by).await.map(|run| AdminReply::Submitted { run })
            }
            Ok(AdminRequest::SubmitStart { plan_toml, seed, tensors, model_len }) => {
                let start = read_start(&plan_toml, tensors, model_len, &mut recv).await;
                let submitted = match start {
                    Ok(start) => self.0.submit(plan_toml, seed, Some(start), by).await,
                    Err(error) => Err(error),
                };
                submitted.map(|run| AdminReply::Submitted { run })
            }
            Ok(AdminRequest::List) => self.0.list().await.map(AdminReply::Runs),
            Ok(AdminRequest::Invite { sites, servers, seconds }) => {
                self.0.members.invite(&sites, &servers, seconds, by).await.map(AdminReply::Invites)
            }
            Ok(AdminRequest::Members) => self.0.members().await.map(AdminReply::Members),
            Ok(AdminRequest::Revoke { site }) => {
                self.0.members.revoke(site, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Quarantine { site, reason }) => {
                self.0.members.quarantine(site, &reason, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Release { site }) => {
                self.0.members.release(site, by).await.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Approve { site, phrase }) => {
                let decided = self.0.members.decide(site, Verdict::Approved, phrase.as_deref(), by).await;
                decided.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Refuse { site, phrase }) => {
                let decided = self.0.members.decide(site, Verdict::Refused, phrase.as_deref(), by).await;
                decided.map(|()| AdminReply::Done)
            }
            Ok(AdminRequest::Control { run, control }) => {
                self.0.control(run, control, by).await.map(AdminReply::Run)
            }
            Ok(AdminRequest::Log { run }) => self.0.log(run).await.map(AdminReply::Log),
            Ok(AdminRequest::Plan { run }) => self.0.plan(run).await.map(AdminReply::Plan),
            Ok(AdminRequest::Models { run }) => self.0.models(run, None).await.map(AdminReply::Models),
            Ok(AdminRequest::ModelsBefore { run, before }) => {
                self.0.models(run, Some(before)).await.map(AdminReply::Models)
            }
            Ok(AdminRequest::Model { run, choice }) => {
                match send_released(&self.0.store, run, choice, &mut send).await {
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Ok(AdminRequest::Watch { run }) => match self.watch(run, &mut send).await {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            // An operator's certificate in a site's hands.
            Err(FrameError::Codec(CodecError::Kind { found, .. })) if found == FrameKind::Hello as u8 => {
                return reject_on(connection, &mut send, by, ConnectError::NotASite).await;
            }
            Err(error) => Err(error.to_string()),
        };
        let reply = reply.unwrap_or_else(AdminReply::Error);
        if write_frame(&mut send, FrameKind::AdminReply, &reply).await.is_ok() {
            // The peer may be gone.
            let _ = send.finish();
        }
    }

    /// Sends a run's summary now and whenever it changes, until it has ended.
    async fn watch(&self, run: Option<RunId>, send: &mut SendStream) -> Result<(), String> {
        let mut live = self.0.live.clone();
        let mut last: Option<RunSummary> = None;
        let mut run = run;
        loop {
            live.borrow_and_update();
            let current = self.0.current(run).await?;
            run = Some(current.run);
            let ended = current.state.is_over();
            if last.as_ref() != Some(&current) {
                if send.write_all(&fitting(current.clone())).await.is_err() {
                    return Ok(());
                }
                last = Some(current);
            }
            if ended {
                // The peer may be gone.
                let _ = send.finish();
                return Ok(());
            }
            tokio::select! {
                changed = live.changed() => changed.map_err(|_| "the server is shutting down".to_owned())?,
                _ = send.stopped() => return Ok(()),
            }
        }
    }
}

/// Reads the values with which a run is to begin. No memory is taken for them before the plan has been looked at.
async fn read_start(
    plan_toml: &str,
    tensors: Vec<(String, Vec<u64>)>,
    model_len: u64,
    recv: &mut RecvStream,
) -> Result<InitialModel, String> {
    check_start(plan_toml, model_len)?;
    let side = |side: u64| usize::try_from(side).ok();
    let shape = |sides: Vec<u64>| sides.into_iter().map(side).collect::<Option<Vec<_>>>();
    let tensors = tensors.into_iter().map(|(name, sides)| Some((name, shape(sides)?)));
    let tensors: Option<Vec<(String, Vec<usize>)>> = tensors.collect();
    let layout = tensors.ok_or("a tensor is larger than this server can address")?;
    let layout = Layout::new(layout).map_err(|error| error.to_string())?;
    if layout.len() as u64 != model_len {
        return Err(format!("{model_len} values are announced for tensors of {}", layout.len()));
    }
    let pace = Pace { idle: OPENING, tail: 0 };
    let values = read_values(recv, vec![0f32; layout.len()], pace, || ()).await;
    let values = values.map_err(|error| format!("the values of the start file: {error}"))?;
    match at_end(recv, OPENING).await {
        Ok(true) => Ok(InitialModel { layout, shared: Parameters::new(values) }),
        Ok(false) => Err(format!("the values of the start file: {}", FrameError::Excess)),
        Err(error) => Err(format!("the values of the start file: {error}")),
    }
}

/// The frame of a summary, with as many clients as fit into one. Its message says so where some are left out.
fn fitting(mut summary: RunSummary) -> Vec<u8> {
    let (clients, message) = (summary.clients.len(), summary.message.clone());
    loop {
        if summary.clients.len() < clients {
            let shown = summary.clients.len();
            summary.message = format!("{message} ({shown} of {clients} clients are listed)");
        }
        let frame = encode(FrameKind::AdminReply, &AdminReply::Run(summary.clone()));
        if frame.len() <= FRAME_HEAD + ADMIN_MAX || summary.clients.is_empty() {
            return frame;
        }
        summary.clients.truncate(summary.clients.len() / 2);
    }
}

#[cfg(test)]
mod tests {
    use protocol::ClientId;
    use protocol::wire::{ClientSummary, RunState};

    use super::*;

    #[test]
    fn a_summary_of_very_many_clients_still_fits_into_a_frame() {
        let client = |index: u32| ClientSummary {
            client: ClientId::new(&format!("site-{index}")).unwrap(),
            connected: true,
            accepted: index,
            refused: vec![("truncated".into(), 1)],
            declined: vec![],
            test: None,
        };
        let summary = RunSummary {
            run: RunId(1),
            name: "large".into(),
            state: RunState::Running,
            message: String::new(),
            rounds_done: 0,
            rounds: 1,
            is_seeded: false,
            model_sha256: String::new(),
            history: vec![],
            clients: (0..50_000).map(client).collect(),
        };
        let frame = fitting(summary);
        let said = String::from_utf8_lossy(&frame);
        assert!(said.contains(" of 50000 clients are listed)"));
        assert!((ADMIN_MAX / 4..=FRAME_HEAD + ADMIN_MAX).contains(&frame.len()), "{}", frame.len());
    }
}
