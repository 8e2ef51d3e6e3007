//! Who belongs to the federation: invites are made, redeemed and taken back, members are told from those whose certificates are
//! void.
//!
//! Enrolment is the one thing that somebody without a certificate may ask for: one small request on a connection of its own
//! ALPN, a few of them at a time, each with little patience. Of the request only the public key is used; name, usage and
//! lifetime are the server's. Tokens are kept as hashes and are good once.

mod approval;
mod quarantine;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::wire::{
    Applicant, ENROL_MAX, EnrolRefusal, EnrolReply, EnrolRequest, FrameKind, InviteText, Member, Rejection,
};
use protocol::{ClientId, Invite, Token};
use quinn::Connection;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::authority::{Issuing, Request, RevocationList, issued};
use super::engine::{Command, Record};
use super::frames::{FrameError, Patience, read_frame, write_frame};
use super::metrics::{Enrolment, Metrics};
use super::peer::Peer;
use super::session::{LAST_WORDS, OPENING, close};
use super::store::{Asking, Shown, Store, StoreError};
pub use approval::Approval;
pub(crate) use approval::Verdict;
use quarantine::Quarantines;

/// Enrolments at a time.
const AT_ONCE: usize = 16;
/// How long an invite may be good: a season.
const VALID_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// Up to when each revoked site's certificates are void, in seconds since the Unix epoch.
pub(crate) type Revocations = Arc<BTreeMap<ClientId, u64>>;

/// See the module.
pub(crate) struct Members {
    store: Arc<Store>,
    issuing: RwLock<Option<Arc<Issuing>>>,
    approval: Approval,
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
    revoked: watch::Sender<Revocations>,
    quarantined: watch::Sender<Quarantines>,
    places: Semaphore,
    /// One invite is looked at after the other.
    turn: Mutex<()>,
}

impl Members {
    pub(crate) async fn new(
        store: Arc<Store>,
        issuing: Option<Arc<Issuing>>,
        approval: Approval,
        metrics: Arc<Metrics>,
        commands: mpsc::Sender<Command>,
    ) -> Result<Self, StoreError> {
        let revoked = watch::Sender::new(Arc::new(store.revocations().await?));
        let quarantined = watch::Sender::new(Arc::new(store.quarantines().await?));
        Ok(Self {
            store,
            issuing: RwLock::new(issuing),
            approval,
            metrics,
            commands,
            revoked,
            quarantined,
            places: Semaphore::new(AT_ONCE),
            turn: Mutex::default(),
        })
    }

    /// The key that certifies sites, where there is one.
    pub(crate) fn issuing(&self) -> Option<Arc<Issuing>> {
        self.issuing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certifies with this one from now on.
    pub(crate) fn issue_with(&self, issuing: Issuing) {
        *self.issuing.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(issuing));
    }

    /// What is void, now and as it changes.
    pub(crate) fn revocations(&self) -> watch::Receiver<Revocations> {
        self.revoked.subscribe()
    }

    /// Makes an invite for each site; `by` goes into the audit log.
    pub(crate) async fn invite(
        &self,
        sites: &[ClientId],
        servers: &[String],
        seconds: u64,
        by: &str,
    ) -> Result<Vec<InviteText>, String> {
        let issuing = self.issuing().ok_or(
            "this server has no issuing key (authority/issuer-key.pem beside server.toml); make the federation with this release's \
             `server init`",
        )?;
        if servers.is_empty() {
            return Err("an invite names at least one server, host:port".to_owned());
        }
        let valid = Duration::from_secs(seconds);
        if valid > VALID_MAX || valid.is_zero() {
            return Err(format!("an invite is good for 1 second to {} days", VALID_MAX.as_secs() / 86_400));
        }
        let created = now();
        let mut made = Vec::with_capacity(sites.len());
        for site in sites {
            let mut chance = [0; 16];
            aws_lc_rs::rand::fill(&mut chance).map_err(|_| "the operating system gave no entropy")?;
            let token = Token::new(chance);
            let expires = created + seconds;
            let stored = self.store.add_invite(site, &token.sha256(), created, expires).await;
            stored.map_err(|error| error.to_string())?;
            let (site, servers) = (site.clone(), servers.to_vec());
            let invite = Invite { site, servers, root_sha256: issuing.root_sha256(), token, expires };
            made.push(InviteText {
                site: invite.site.clone(),
                text: invite.to_text(),
                phrase: invite.phrase(),
                expires,
            });
            self.record(Record::Invited { site: invite.site, expires, by: by.to_owned() }).await;
        }
        Ok(made)
    }

    /// Voids a site's certificates and invites. Its connection is closed before this returns or soon after.
    pub(crate) async fn revoke(&self, site: ClientId, by: &str) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let before = now();
        self.store.revoke(&site, before).await.map_err(|error| error.to_string())?;
        self.revoked.send_modify(|revoked| {
            Arc::make_mut(revoked).insert(site.clone(), before);
        });
        tracing::info!("operator {by} has revoked {site}");
        self.record(Record::Revoked { site, before, by: by.to_owned() }).await;
        Ok(())
    }

    /// Everybody who was ever invited, revoked or held in quarantine.
    pub(crate) async fn list(&self) -> Result<Vec<Member>, String> {
        let wrong = |error: StoreError| error.to_string();
        let mut members = self.store.members().await.map_err(wrong)?;
        let now = now();
        for asking in self.store.asking().await.map_err(wrong)? {
            let Asking { site, key_sha256, asked: since, expires, address, .. } = asking;
            let member = members.iter_mut().find(|member| member.site == site).filter(|_| expires >= now);
            let applicant = Applicant { phrase: approval::phrase(&key_sha256), since, expires, address };
            member.into_iter().for_each(|member| member.waiting.push(applicant.clone()));
        }
        Ok(members)
    }

    /// Serves a connection that came to enrol, until it is done.
    pub(crate) async fn attend(&self, connection: &Connection) {
        let Ok(_place) = self.places.try_acquire() else {
            return close(connection, &Rejection::Busy);
        };
        let Ok(Ok((mut send, mut recv))) = timeout(OPENING, connection.accept_bi()).await else {
            return close(connection, &Rejection::Late);
        };
        let patience = Patience { first: Some(OPENING), idle: OPENING };
        let request =
            read_frame::<EnrolRequest>(&mut recv, FrameKind::EnrolRequest, ENROL_MAX, patience).await;
        let request = match request {
            Ok(request) => request,
            Err(FrameError::TooSlow) => return close(connection, &Rejection::Late),
            Err(_) => return close(connection, &Rejection::NotAHello),
        };
        let reply = self.enrol(&request, connection).await;
        let said = write_frame(&mut send, FrameKind::EnrolReply, &reply).await;
        if said.is_ok() && send.finish().is_ok() {
            let _ = timeout(LAST_WORDS, send.stopped()).await;
        }
    }

    async fn enrol(&self, request: &EnrolRequest, connection: &Connection) -> EnrolReply {
        let (done, good) = match &request.token {
            Some(token) => {
                let address = connection.remote_address().to_string();
                (self.redeem(token, request, &address).await, Enrolment::Issued)
            }
            None => {
                (self.renew(Peer::of_connection(connection), request).await.map(Some), Enrolment::Renewed)
            }
        };
        match done {
            Ok(Some((chain_pem, root_pem))) => {
                self.metrics.enrolment(good);
                EnrolReply::Issued { chain_pem, root_pem }
            }
            Ok(None) => EnrolReply::Waiting,
            Err(refused) => {
                self.metrics.enrolment(Enrolment::Refused);
                let address = connection.remote_address();
                tracing::warn!("an enrolment from {address} is refused: {refused}");
                if let (EnrolRefusal::Used, Some(token)) = (refused, &request.token) {
                    self.record(Record::InviteReused { token_sha256: token.sha256() }).await;
                }
                EnrolReply::Refused(refused)
            }
        }
    }

    /// The chain of the site that the token is for, and the root; none while an operator has to approve.
    async fn redeem(
        &self,
        token: &Token,
        request: &EnrolRequest,
        address: &str,
    ) -> Result<Option<(String, String)>, EnrolRefusal> {
        let (issuing, csr) = self.ready(request)?;
        let (token, key) = (token.sha256(), csr.key_sha256());
        let _turn = self.turn.lock().await;
        let site = match self.store.show(&token, &key, now()).await.map_err(|error| unable(&error))? {
            Shown::Good(site) if self.approval == Approval::ByOperator => {
                let asked = self.store.ask(&token, &key, address, now()).await;
                if !asked.map_err(|error| unable(&error))? {
                    return Err(EnrolRefusal::Used);
                }
                self.metrics.enrolment(Enrolment::Waiting);
                tracing::warn!(
                    "somebody at {address} waits to become {site}: compare \"{}\" by telephone, then `consortia site approve {site}`",
                    approval::phrase(&key)
                );
                let address = address.to_owned();
                self.record(Record::Asked { site, key_sha256: key, address }).await;
                return Ok(None);
            }
            Shown::Waiting => return Ok(None),
            Shown::Good(site) | Shown::Approved(site) => site,
            Shown::Again { chain_pem } => return Ok(Some((chain_pem, issuing.root_pem().to_owned()))),
            Shown::Refused(refused) => return Err(refused),
        };
        let chain = self.certify(&issuing, &site, &csr).await?;
        let used =
            self.store.use_invite(&token, &key, &chain, now()).await.map_err(|error| unable(&error))?;
        if !used {
            return Err(EnrolRefusal::Used);
        }
        tracing::info!("{site} has joined");
        self.record(Record::Enrolled { site, key_sha256: key }).await;
        Ok(Some((chain, issuing.root_pem().to_owned())))
    }

    /// The next chain of the site whose certificate the connection shows, and the root.
    async fn renew(
        &self,
        peer: Option<Peer>,
        request: &EnrolRequest,
    ) -> Result<(String, String), EnrolRefusal> {
        let (issuing, csr) = self.ready(request)?;
        let Some(Peer::Site { name, issued }) = peer else { return Err(EnrolRefusal::NotASite) };
        let _turn = self.turn.lock().await;
        if self.revoked.borrow().get(&name).is_some_and(|before| issued <= *before) {
            return Err(EnrolRefusal::NotASite);
        }
        let chain = self.certify(&issuing, &name, &csr).await?;
        tracing::info!("{name} has renewed its certificate");
        self.record(Record::Renewed { site: name, key_sha256: csr.key_sha256() }).await;
        Ok((chain, issuing.root_pem().to_owned()))
    }

    /// The issuing key, and the request, whose signature is good.
    fn ready(&self, request: &EnrolRequest) -> Result<(Arc<Issuing>, Request), EnrolRefusal> {
        let issuing = self.issuing().ok_or_else(|| unable(&"there is no issuing key"))?;
        let csr = Request::parse(&request.csr_der).map_err(|error| {
            tracing::warn!("a certificate signing request is refused: {error}");
            EnrolRefusal::Request
        })?;
        Ok((issuing, csr))
    }

    /// A certificate of now, written down; after a revocation nothing may be dated to its second.
    async fn certify(
        &self,
        issuing: &Issuing,
        site: &ClientId,
        csr: &Request,
    ) -> Result<String, EnrolRefusal> {
        let after = self.revoked.borrow().get(site).map_or(0, |before| before + 1);
        let at = now().max(after);
        let chain = issuing.certify(site, csr, UNIX_EPOCH + Duration::from_secs(at));
        let chain = chain.map_err(|error| unable(&error))?;
        let made = issued(&chain, at).ok_or_else(|| unable(&"what was made is no certificate"))?;
        self.store.add_certificate(site, &made).await.map_err(|error| unable(&error))?;
        Ok(chain)
    }

    /// The signed list of what is void now.
    pub(crate) async fn revocation_list(&self) -> Result<RevocationList, String> {
        let issuing = self.issuing().ok_or("this server has no issuing key that could sign the list")?;
        let at = now();
        let void = self.store.void(at).await.map_err(|error| error.to_string())?;
        let list = issuing.revocation_list(&void, UNIX_EPOCH + Duration::from_secs(at));
        list.map_err(|error| error.to_string())
    }

    /// For the audit log. A server that is shutting down has closed it.
    async fn record(&self, record: Record) {
        let _ = self.commands.send(Command::Record(record)).await;
    }
}

fn unable(error: &dyn std::fmt::Display) -> EnrolRefusal {
    tracing::error!("a site cannot be certified: {error}");
    EnrolRefusal::Unable
}

#[expect(clippy::disallowed_methods, reason = "invites expire by the clock on the wall")]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
