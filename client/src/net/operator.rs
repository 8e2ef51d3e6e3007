//! An operator's requests: each is one stream, with one request on it and replies until the server is done.
//!
//! The server tells an operator from a site by the certificate, so nothing is said before the first request. What an
//! operator may do is the server's to decide.

use protocol::wire::{
    ADMIN_MAX, AdminReply, AdminRequest, CodecError, ConnectError, FrameKind, ModelChoice, RunSummary,
};
use protocol::{Layout, Parameters, RunId, Values};
use quinn::{ConnectionError, RecvStream, SendStream};

use super::connection::{DialError, Link, Transport, explain};
use super::frames::{FrameError, read_frame, write_frame};
use super::identity::Identity;
use super::released::{FetchedModel, Unread, read_released};
use super::values::{bytes_of, write_payload};

/// Why a request has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The connection is gone.
    #[error("{0}")]
    Lost(String),
    /// The reply did not come or is not understood.
    #[error(transparent)]
    Frame(FrameError),
    /// The server took this party for a site.
    #[error("the certificate is a site's; requests need one made for an operator")]
    NotAnOperator,
    /// The server's own words.
    #[error("{0}")]
    Server(String),
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

/// An operator's connection.
#[derive(Debug)]
pub struct OperatorClient {
    link: Link,
}

impl OperatorClient {
    /// Connects to `server` (`host:port`), whose certificate must hold `server_name` (usually
    /// [`SERVER_NAME`](super::SERVER_NAME)), with an operator's identity. There is no second attempt.
    ///
    /// # Errors
    /// [`DialError`] says what failed and what to do. A certificate that the server does not accept may show only
    /// with the first request.
    pub async fn connect(server: &str, server_name: &str, identity: &Identity) -> Result<Self, DialError> {
        Self::connect_any(&[server.to_owned()], server_name, identity).await
    }

    /// Connects to the first of `servers` that answers, as [`OperatorClient::connect`] does to one.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn connect_any(
        servers: &[String],
        server_name: &str,
        identity: &Identity,
    ) -> Result<Self, DialError> {
        Ok(Self { link: Link::open_any(servers, server_name, Transport::Auto, identity.tls()).await? })
    }

    /// Sends a request and returns the first reply; [`AdminReply::Error`] comes back as an error.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn ask(&self, request: &AdminRequest) -> Result<AdminReply, OperatorError> {
        let mut replies = self.request(request).await?;
        self.reply(&mut replies).await?.ok_or(OperatorError::Frame(FrameError::Ended))
    }

    /// Submits a plan that begins with a file: these tensors with their values, one after another.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn submit_start(
        &self,
        plan_toml: String,
        seed: Option<u64>,
        layout: &Layout,
        values: Parameters,
    ) -> Result<RunId, OperatorError> {
        let sides = |shape: &[usize]| shape.iter().map(|side| *side as u64).collect();
        let tensors = layout.tensors().iter().map(|tensor| (tensor.name.clone(), sides(&tensor.shape)));
        let (tensors, model_len) = (tensors.collect(), values.len() as u64);
        let request = AdminRequest::SubmitStart { plan_toml, seed, tensors, model_len };
        let (mut send, mut replies) = self.begin(&request).await?;
        let payload = vec![bytes_of(Values::F32(values.into_values()))];
        // A server that refuses the plan stops reading: its reply says why.
        let sent = write_payload(&mut send, payload, None).await;
        let _ = send.finish();
        match self.reply(&mut replies).await {
            Ok(Some(AdminReply::Submitted { run })) => Ok(run),
            Ok(Some(_)) => Err(OperatorError::WrongReply),
            Ok(None) => {
                Err(sent.map_or_else(|error| self.blame(error), |()| OperatorError::Frame(FrameError::Ended)))
            }
            Err(error) => Err(error),
        }
    }

    /// Follows a run (the newest when `None`): calls `on_update` with its summary now and at every change, and returns
    /// the last summary when the server has no more to say, which is when the run has ended.
    ///
    /// # Errors
    /// [`OperatorError`], also when the connection is lost before the run has ended.
    pub async fn watch(
        &self,
        run: Option<RunId>,
        mut on_update: impl FnMut(&RunSummary),
    ) -> Result<RunSummary, OperatorError> {
        let mut replies = self.request(&AdminRequest::Watch { run }).await?;
        let mut last = None;
        while let Some(reply) = self.reply(&mut replies).await? {
            let AdminReply::Run(summary) = reply else { return Err(OperatorError::WrongReply) };
            on_update(&summary);
            last = Some(summary);
        }
        last.ok_or(OperatorError::Frame(FrameError::Ended))
    }

    /// Fetches a model of a run (the newest when `None`), and checks that it is the announced one.
    ///
    /// # Errors
    /// [`OperatorError`], also when it is another or does not fit its tensors.
    pub async fn model(
        &self,
        run: Option<RunId>,
        choice: ModelChoice,
    ) -> Result<FetchedModel, OperatorError> {
        let mut replies = self.request(&AdminRequest::Model { run, choice }).await?;
        let reply = self.reply(&mut replies).await?.ok_or(OperatorError::Frame(FrameError::Ended))?;
        read_released(reply, &mut replies).await.map_err(|error| match error {
            Unread::Frame(error) => self.blame(error),
            Unread::Damaged { announced, found } => OperatorError::Damaged { announced, found },
            Unread::WrongReply => OperatorError::WrongReply,
        })
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.link.leave().await;
    }

    async fn request(&self, request: &AdminRequest) -> Result<RecvStream, OperatorError> {
        let (mut send, recv) = self.begin(request).await?;
        let _ = send.finish();
        Ok(recv)
    }

    /// A request to which more may be added.
    async fn begin(&self, request: &AdminRequest) -> Result<(SendStream, RecvStream), OperatorError> {
        let opened = self.link.connection.open_bi().await;
        let (mut send, recv) = opened.map_err(|error| OperatorError::Lost(explain(&error)))?;
        let sent = write_frame(&mut send, FrameKind::AdminRequest, request).await;
        sent.map_err(|error| self.blame(error))?;
        Ok((send, recv))
    }

    async fn reply(&self, replies: &mut RecvStream) -> Result<Option<AdminReply>, OperatorError> {
        match read_frame(replies, FrameKind::AdminReply, ADMIN_MAX).await {
            Ok(Some(AdminReply::Error(text))) => Err(OperatorError::Server(text)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(self.blame(error)),
        }
    }

    /// A lost connection explains more than the stream that broke with it.
    fn blame(&self, error: FrameError) -> OperatorError {
        let greeted = |found: u8| found == FrameKind::Greeting as u8;
        if matches!(error, FrameError::Codec(CodecError::Kind { found, .. }) if greeted(found)) {
            return OperatorError::NotAnOperator;
        }
        match self.link.connection.close_reason() {
            None | Some(ConnectionError::LocallyClosed) => OperatorError::Frame(error),
            Some(ConnectionError::ApplicationClosed(close))
                if close.reason == ConnectError::NotAHello.to_string().as_bytes() =>
            {
                OperatorError::NotAnOperator
            }
            Some(reason) => OperatorError::Lost(explain(&reason)),
        }
    }
}
