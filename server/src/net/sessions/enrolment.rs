//! Connections that come to enrol: each has one small request, which [`Members`] judges.
//!
//! Enrolment is the one thing that somebody without a certificate may ask for: on a connection of its own ALPN, a few of them at a time,
//! each with little patience. Those who have a certificate and want the next one have places of their own. Every refusal is counted; of
//! those that strangers can cause, a few are logged and written down.

use std::sync::Arc;

use protocol::ClientId;
use protocol::wire::{ConnectError, ENROL_MAX, EnrolRejection, EnrolReply, EnrolRequest, FrameKind};
use quinn::{Connection, SendStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::refusals::Rejections;
use crate::net::engine::metrics::{Enrolment, Metrics};
use crate::net::membership::members::{Members, Redeemed, now};
use crate::net::store::messages::Record;
use crate::net::transport::frames::{FrameError, Patience, read_frame, write_frame};
use crate::net::transport::messages::{LAST_WORDS, OPENING, close};
use crate::net::transport::newcomers::Newcomers;
use crate::net::transport::peer::Peer;
use crate::net::transport::strangers::{Origin, Places};

/// Enrolments of those without a certificate at a time, and renewals of those who have one.
const STRANGERS: usize = 64;
const RENEWALS: usize = 64;

/// See the module.
pub(crate) struct Enrolments {
    members: Arc<Members>,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    renewals: Semaphore,
    renewing: Newcomers,
    refusals: Rejections,
}

impl Enrolments {
    pub(crate) fn new(members: Arc<Members>, metrics: Arc<Metrics>) -> Self {
        Self {
            members,
            metrics,
            places: Places::new(STRANGERS),
            renewals: Semaphore::new(RENEWALS),
            renewing: Newcomers::default(),
            refusals: Rejections::default(),
        }
    }

    /// Serves a connection that came to enrol from `address`, until it is done.
    pub(crate) async fn attend(&self, connection: &Connection, address: &str, origin: Origin) {
        let done = match Peer::of_connection(connection) {
            Some(Peer::Site { name, issued }) => {
                let (Some(_one_of_few), Ok(_place)) =
                    (self.renewing.admit(&name), self.renewals.try_acquire())
                else {
                    return self.turn_away(connection, address, ConnectError::Busy).await;
                };
                match request_on(connection).await {
                    Ok((send, request)) => {
                        Ok((send, self.renewed(name.clone(), issued, &request, address).await))
                    }
                    Err(why) => Err(why),
                }
            }
            Some(Peer::Operator(_)) | None => {
                let Some(mut place) = self.places.take(origin) else {
                    return self.turn_away(connection, address, ConnectError::Busy).await;
                };
                match place.while_kept(request_on(connection)).await {
                    // What is asked now takes no longer because of who asks.
                    Some(Ok((send, request))) if place.keep() => {
                        Ok((send, self.redeemed(&request, address).await))
                    }
                    Some(Err(why)) => Err(why),
                    Some(Ok(_)) | None => Err(ConnectError::Busy),
                }
            }
        };
        let (mut send, done) = match done {
            Ok(done) => done,
            Err(why) => return self.turn_away(connection, address, why).await,
        };
        let reply = self.told(done, address).await;
        let said = write_frame(&mut send, FrameKind::EnrolReply, &reply).await;
        if said.is_ok() && send.finish().is_ok() {
            let _ = timeout(LAST_WORDS, send.stopped()).await;
        }
    }

    /// Closes a connection that came to enrol and was not heard.
    async fn turn_away(&self, connection: &Connection, address: &str, why: ConnectError) {
        close(connection, &why);
        self.refused(address, &why, None).await;
    }

    /// Counts a refusal, and says it where that is not one of too many.
    async fn refused(&self, address: &str, why: &(dyn std::fmt::Display + Sync), used: Option<String>) {
        self.metrics.enrolment(Enrolment::Refused);
        if let Some(more) = self.refusals.line() {
            tracing::warn!("an enrolment from {address} is refused: {why}{more}");
        }
        if let Some(token_sha256) = used.filter(|token| self.refusals.is_news(token, now())) {
            self.members.record(Record::InviteReused { token_sha256 }).await;
        }
        if let Some(count) = self.refusals.count(now()) {
            self.members.record(Record::EnrolmentsRefused { count }).await;
        }
    }

    /// What is answered to a request, and counted.
    async fn told(&self, done: Result<Done, (EnrolRejection, Option<String>)>, address: &str) -> EnrolReply {
        match done {
            Ok(Done::Issued(good, (chain_pem, root_pem))) => {
                self.metrics.enrolment(good);
                EnrolReply::Issued { chain_pem, root_pem }
            }
            Ok(Done::Waiting) => EnrolReply::Waiting,
            Err((refused, used)) => {
                self.refused(address, &refused, used).await;
                EnrolReply::Refused(refused)
            }
        }
    }

    async fn redeemed(
        &self,
        request: &EnrolRequest,
        address: &str,
    ) -> Result<Done, (EnrolRejection, Option<String>)> {
        let Some(token) = &request.token else { return Err((EnrolRejection::NotASite, None)) };
        match self.members.redeem(token, request, address).await {
            Ok(Redeemed::Issued(chain, root)) => Ok(Done::Issued(Enrolment::Issued, (chain, root))),
            Ok(Redeemed::Asked) => {
                self.metrics.enrolment(Enrolment::Waiting);
                Ok(Done::Waiting)
            }
            Ok(Redeemed::Waiting) => Ok(Done::Waiting),
            Err(refused) => Err((refused, (refused == EnrolRejection::Used).then(|| token.sha256()))),
        }
    }

    /// A site may use an invite as anybody may; without one it renews its certificate.
    async fn renewed(
        &self,
        name: ClientId,
        issued: u64,
        request: &EnrolRequest,
        address: &str,
    ) -> Result<Done, (EnrolRejection, Option<String>)> {
        if request.token.is_some() {
            return self.redeemed(request, address).await;
        }
        let chain = self.members.renew(name, issued, request).await.map_err(|refused| (refused, None))?;
        Ok(Done::Issued(Enrolment::Renewed, chain))
    }
}

/// What became of a request that was not refused.
enum Done {
    /// Chain and root.
    Issued(Enrolment, (String, String)),
    Waiting,
}

/// The one request of a connection, and where it is answered.
async fn request_on(connection: &Connection) -> Result<(SendStream, EnrolRequest), ConnectError> {
    let Ok(Ok((send, mut recv))) = timeout(OPENING, connection.accept_bi()).await else {
        return Err(ConnectError::Late);
    };
    let patience = Patience { first: Some(OPENING), idle: OPENING };
    match read_frame(&mut recv, FrameKind::EnrolRequest, ENROL_MAX, patience).await {
        Ok(request) => Ok((send, request)),
        Err(FrameError::TooSlow) => Err(ConnectError::Late),
        Err(_) => Err(ConnectError::NotAHello),
    }
}
