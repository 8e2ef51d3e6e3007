//! What a site says of its ledger between its hello and the welcome.

use std::time::Duration;

use privacy::chain::Digest;
use protocol::ClientId;
use protocol::wire::{ConnectError, FrameKind, Greeting, LedgerClaim, LedgerProof, SMALL_MAX, decode};
use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;

use super::ledgers::{Judged, Proven, check};
use super::session::ServerContext;
use crate::net::engine::Command;
use crate::net::membership::members::now;
use crate::net::store::messages::Record;
use crate::net::store::{Showing, ShownLedger, StoreError};
use crate::net::transport::frames::{FrameError, Patience, read_known, write_frame};
use crate::net::transport::messages::{OPENING, close, reject_on};

/// Connections of one site that may be quicker than this one, before it has to call again.
const TRIES: usize = 4;

/// A site's first stream, once it has said hello.
pub(crate) struct Dialogue<'a> {
    pub(crate) context: &'a ServerContext,
    pub(crate) connection: &'a Connection,
    pub(crate) client: &'a ClientId,
    pub(crate) session: u64,
    pub(crate) address: &'a str,
    /// Whether the site only looks: what it claims is judged, and not remembered.
    pub(crate) is_probe: bool,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Dialogue<'_> {
    /// Hears what the site claims, has it proven where it is not what is remembered, and remembers it. `None` when the connection is of
    /// no use.
    pub(crate) async fn hear_ledger(&mut self) -> Option<()> {
        let claim = match self.read::<LedgerClaim>(FrameKind::LedgerClaim, OPENING).await {
            Ok(claim) => Some(claim),
            // A program without a ledger, or of an older release, has no more to say. Frames of unknown kinds were passed over.
            Err(FrameError::Truncated | FrameError::TooSlow) => None,
            Err(FrameError::Lost(_)) => return None,
            Err(_) => return self.reject(ConnectError::NotAHello).await,
        };
        for _ in 0..TRIES {
            match self.settle(claim).await {
                Ok(Settled::Welcome) => return Some(()),
                Ok(Settled::Refused(why)) => return self.refuse(why).await,
                Ok(Settled::Gone) => return None,
                Ok(Settled::Overtaken) => {}
                Err(error) => {
                    tracing::error!("the ledger of {} could not be looked up: {error}", self.client);
                    break;
                }
            }
        }
        close(self.connection, &ConnectError::Busy);
        None
    }

    async fn settle(&mut self, claim: Option<LedgerClaim>) -> Result<Settled, StoreError> {
        let known = match self.context.ledgers.judge(self.client, claim).await? {
            Judged::Welcome(known) => known,
            Judged::Refused(why) => return Ok(Settled::Refused(why)),
            Judged::Prove(known, claim) => match self.prove(known, claim).await {
                Some(Ok(proven)) => {
                    if !self.is_probe {
                        self.tell(proven).await;
                    }
                    Some(known)
                }
                Some(Err(why)) => return Ok(Settled::Refused(why)),
                None => return Ok(Settled::Gone),
            },
        };
        let Some(claim) = claim.filter(|_| !self.is_probe) else { return Ok(Settled::Welcome) };
        let showing =
            Showing { certificate: self.certificate(), address: self.address.to_owned(), at: now() };
        let (ledgers, session) = (&self.context.ledgers, self.session);
        let shown = ledgers.remember(self.client, session, known, claim, &showing).await?;
        Ok(if shown { Settled::Welcome } else { Settled::Overtaken })
    }

    /// Asks for the head at the remembered length.
    async fn prove(
        &mut self,
        known: ShownLedger,
        claim: LedgerClaim,
    ) -> Option<Result<Proven, ConnectError>> {
        let ask = Greeting::Prove { records: known.claim.records };
        write_frame(&mut self.send, FrameKind::Greeting, &ask).await.ok()?;
        match self.read::<LedgerProof>(FrameKind::LedgerProof, OPENING).await {
            Ok(proof) => Some(check(known, claim, &proof)),
            Err(FrameError::Lost(_)) => None,
            Err(FrameError::TooSlow) => Some(Err(ConnectError::Late)),
            Err(_) => Some(Err(ConnectError::NotAHello)),
        }
    }

    /// How long a ledger is shows how often its site was drawn: no log says it.
    async fn tell(&self, proven: Proven) {
        if proven == Proven::Replaces {
            tracing::warn!(
                "{} goes on with another ledger, from {}: it has charged the loss of the one that it showed last",
                self.client,
                self.address
            );
            let (site, address) = (self.client.clone(), self.address.to_owned());
            self.record(Record::LedgerReplaced { site, address }).await;
        }
    }

    async fn refuse(&mut self, why: ConnectError) -> Option<()> {
        if matches!(why, ConnectError::LedgerForked { .. } | ConnectError::LedgerMissing) {
            self.context.metrics.ledger_refused();
            tracing::warn!("{} at {} is refused: {why}", self.client, self.address);
            let (site, address, reason) = (self.client.clone(), self.address.to_owned(), why.to_string());
            self.record(Record::LedgerRefused { site, address, reason }).await;
        }
        self.reject(why).await
    }

    async fn reject(&mut self, why: ConnectError) -> Option<()> {
        reject_on(self.connection, &mut self.send, self.address, why).await;
        None
    }

    async fn record(&self, record: Record) {
        // A server that is shutting down has closed its log.
        let _ = self.context.commands.send(Command::Record(record)).await;
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &mut self,
        kind: FrameKind,
        first: Duration,
    ) -> Result<T, FrameError> {
        let patience = Patience { first: Some(first), idle: OPENING };
        let (head, body) = read_known(&mut self.recv, SMALL_MAX, patience).await?;
        head.expect(kind, SMALL_MAX)?;
        Ok(decode(&body)?)
    }

    /// SHA-256 of the certificate that the site shows.
    fn certificate(&self) -> Digest {
        let chain =
            self.connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
        chain.and_then(|chain| chain.first().map(|first| Digest::of(first))).unwrap_or_default()
    }
}

/// What became of a claim.
enum Settled {
    Welcome,
    Refused(ConnectError),
    /// Another connection of the site was quicker.
    Overtaken,
    /// The connection is gone.
    Gone,
}
