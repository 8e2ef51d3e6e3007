//! The last released model of a run that a site took part in, fetched on a connection of its own: the site's agent is not disturbed.

use protocol::wire::{ADMIN_MAX, AdminReply, FrameKind, ModelLine, PROBE, SiteRequest};
use protocol::{Capabilities, Layout, Parameters, RunId, Standardiser};
use quinn::{ConnectionError, RecvStream};

use super::connection::{DialError, Link, SERVER_NAME, Transport, explain};
use super::frames::{FrameError, read_frame, write_frame};
use super::greeting::{GreetError, greet};
use super::identity::Identity;
use super::values::read_model;
use crate::LedgerHistory;

/// A model that was fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchedModel {
    /// Its run.
    pub run: RunId,
    /// Its line.
    pub line: ModelLine,
    /// What may be said about its privacy, as JSON.
    pub statement: String,
    /// Its tensors.
    pub layout: Layout,
    /// Their values.
    pub model: Parameters,
    /// The standardisation it expects, where its plan asks for a common one.
    pub standardiser: Option<Standardiser>,
}

/// Why there is no model.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] DialError),
    /// A connection, and no welcome.
    #[error("the server does not greet this site: {0}")]
    Greeting(String),
    /// The server's own words.
    #[error("{0}")]
    Server(String),
    /// The connection broke.
    #[error("{0}; give the command again")]
    Lost(String),
    /// What came is not what was announced.
    #[error("a model with the fingerprint {found} came where {announced} was announced; fetch it again")]
    Damaged {
        /// By the server, before.
        announced: String,
        /// Of what came.
        found: String,
    },
    /// The reply is of another kind than the request.
    #[error("the server's reply does not fit the request; install the same release on both sides")]
    WrongReply,
}

/// What a model's reply may end in.
pub(super) enum Unread {
    Frame(FrameError),
    Damaged { announced: String, found: String },
    WrongReply,
}

/// Reads the values that follow a model's reply, and checks that they are the announced ones.
pub(super) async fn read_released(
    reply: AdminReply,
    replies: &mut RecvStream,
) -> Result<FetchedModel, Unread> {
    let AdminReply::Model { run, line, statement, tensors, standardiser, model_len } = reply else {
        return Err(Unread::WrongReply);
    };
    let side = |side: u64| usize::try_from(side).ok();
    let shape = |shape: Vec<u64>| shape.into_iter().map(side).collect::<Option<Vec<_>>>();
    let tensors = tensors.into_iter().map(|(name, sides)| Some((name, shape(sides)?)));
    let layout = tensors.collect::<Option<Vec<_>>>().and_then(|tensors| Layout::new(tensors).ok());
    let layout = layout.filter(|layout| layout.shared_len() as u64 == model_len);
    let layout = layout.ok_or(Unread::WrongReply)?;
    let values = read_model(replies, layout.shared_len(), Vec::new(), None).await;
    let model = Parameters::new(values.map_err(Unread::Frame)?);
    let found = model.sha256();
    if found != line.sha256 {
        return Err(Unread::Damaged { announced: line.sha256, found });
    }
    Ok(FetchedModel { run, line, statement, layout, model, standardiser })
}

/// Fetches the last released model of `run`, or of the newest run that the site took part in, from the first of `servers` that answers. The site
/// greets as `software`, with its `ledger` where it has one, and only looks: no task comes here.
///
/// # Errors
/// [`FetchError`] says what failed and what to do.
pub async fn fetch_model(
    servers: &[String],
    transport: Transport,
    identity: &Identity,
    (software, ledger): (&str, Option<&LedgerHistory>),
    run: Option<RunId>,
) -> Result<FetchedModel, FetchError> {
    let link = Link::open_any(servers, SERVER_NAME, transport, identity.tls()).await?;
    let (software, known) = (format!("{software}{PROBE}"), Capabilities::of_this_release());
    let greeted = greet(&link.connection, (&software, &known), ledger).await;
    greeted.map_err(|error| match error {
        GreetError::Rejected(rejection) => FetchError::Greeting(rejection.to_string()),
        GreetError::Version(error) => FetchError::Greeting(error.to_string()),
        GreetError::Lost(error) => FetchError::Greeting(error),
    })?;
    let fetched = fetch(&link, run).await;
    link.leave().await;
    fetched
}

async fn fetch(link: &Link, run: Option<RunId>) -> Result<FetchedModel, FetchError> {
    let blame = |error: FrameError| match link.connection.close_reason() {
        None | Some(ConnectionError::LocallyClosed) => FetchError::Lost(error.to_string()),
        // A server that does not know the request sends away whoever only looks.
        Some(ConnectionError::ApplicationClosed(_)) => FetchError::Server(
            "the server sends no model to sites: it is of an earlier release; ask its operator for the model"
                .to_owned(),
        ),
        Some(reason) => FetchError::Lost(explain(&reason)),
    };
    let opened = link.connection.open_bi().await;
    let (mut send, mut recv) = opened.map_err(|error| FetchError::Lost(explain(&error)))?;
    let asked = write_frame(&mut send, FrameKind::SiteRequest, &SiteRequest::Model { run }).await;
    asked.map_err(blame)?;
    let _ = send.finish();
    let reply = match read_frame(&mut recv, FrameKind::AdminReply, ADMIN_MAX).await.map_err(blame)? {
        Some(AdminReply::Error(text)) => return Err(FetchError::Server(text)),
        Some(reply) => reply,
        None => return Err(blame(FrameError::Ended)),
    };
    read_released(reply, &mut recv).await.map_err(|error| match error {
        Unread::Frame(error) => blame(error),
        Unread::Damaged { announced, found } => FetchError::Damaged { announced, found },
        Unread::WrongReply => FetchError::WrongReply,
    })
}
