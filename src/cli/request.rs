//! An operator's request to a server that may take its time: says so, and what an interruption means.
//!
//! A server whose database is locked, or whose disk is full, waits. Whoever asked sees that the command is no dead one; and whoever gives
//! up is told whether what they asked for may happen all the same.

use std::time::Duration;

use ::client::net::{OperatorClient, OperatorError};
use protocol::wire::{AdminReply, AdminRequest};

use super::failure::{Blame, Failure, Kind, OrBlame};
use super::global::Global;
use super::hints::Given;
use super::output::tell;
use super::watch::interrupted;

/// How long nothing is said of a server that has not answered.
const SILENCE: Duration = Duration::from_secs(2);

/// The command that shows whether a request was done; `None` for one that changes nothing.
fn shown_by(request: &AdminRequest) -> Option<&'static str> {
    match request {
        AdminRequest::Submit { .. } | AdminRequest::SubmitStart { .. } | AdminRequest::Control { .. } => {
            Some("run ls")
        }
        AdminRequest::Invite { .. }
        | AdminRequest::Revoke { .. }
        | AdminRequest::Quarantine { .. }
        | AdminRequest::Release { .. }
        | AdminRequest::Approve { .. }
        | AdminRequest::Refuse { .. } => Some("site ls"),
        AdminRequest::List
        | AdminRequest::Watch { .. }
        | AdminRequest::Members
        | AdminRequest::Log { .. }
        | AdminRequest::Models { .. }
        | AdminRequest::ModelsBefore { .. }
        | AdminRequest::Model { .. }
        | AdminRequest::Plan { .. } => None,
    }
}

/// Sends a request and gives the server's reply. `given` completes the commands that are named when there is none.
pub(super) async fn put(
    operator: &OperatorClient,
    request: &AdminRequest,
    given: Given<'_>,
    global: &Global,
) -> Result<AdminReply, Failure> {
    patiently(operator.ask(request), shown_by(request), given, global).await
}

/// Waits for what was asked of the server; `shown_by` is the command that shows whether it was done, of what changes something.
pub(super) async fn patiently<T>(
    asking: impl Future<Output = Result<T, OperatorError>>,
    shown_by: Option<&str>,
    given: Given<'_>,
    global: &Global,
) -> Result<T, Failure> {
    let shown_by = shown_by.map(|command| given.command(command));
    let shown_by = shown_by.as_deref();
    tokio::pin!(asking);
    let reply = tokio::select! {
        reply = &mut asking => reply,
        () = tokio::time::sleep(SILENCE) => {
            if global.quiet == 0 {
                tell(slow(shown_by));
            }
            tokio::select! {
                reply = &mut asking => reply,
                () = interrupted() => return Err(Failure::new(Kind::Run, given_up(shown_by))),
            }
        }
    };
    match (reply, shown_by) {
        (Err(error @ (OperatorError::Lost(_) | OperatorError::Frame(_))), Some(command)) => {
            let message = format!("{error}; it may have been done: `{command}` shows whether it was");
            Err(Failure::new(error.kind(), message))
        }
        (reply, _) => reply.or_blame(),
    }
}

fn slow(shown_by: Option<&str>) -> String {
    let waits = "the server has not answered yet: it may be waiting for its database or its disk, which its log says; this command waits with it";
    match shown_by {
        Some(command) => format!(
            "{waits}. Interrupt it and nothing is done, unless the server has begun: `{command}` shows whether it was done"
        ),
        None => waits.to_owned(),
    }
}

fn given_up(shown_by: Option<&str>) -> String {
    match shown_by {
        Some(command) => format!(
            "interrupted before the server answered: nothing is done, unless it had begun; `{command}` shows whether it was done"
        ),
        None => "interrupted before the server answered".to_owned(),
    }
}
