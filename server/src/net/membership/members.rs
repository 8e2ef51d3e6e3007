//! Who belongs to the federation: invites are made, redeemed and taken back, members are told from those whose certificates are
//! void.
//!
//! Of a request to enrol only the public key is used; name, usage and lifetime are the server's. Tokens are kept as hashes and are good
//! once. How many may ask, and how long, sessions see to.

mod approval;
mod quarantine;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::wire::{Applicant, EnrolRejection, EnrolRequest, InviteText, Member, Seen};
use protocol::{ClientId, Invite, Token};
use tokio::sync::{Mutex, watch};

use super::authority::{Issuing, Request, RevocationList, issued};
use super::messages::{Listener, ToEngine};
use crate::net::store::messages::Record;
use crate::net::store::{Asking, Shown, Store, StoreError, nobody};
pub use approval::Approval;
use quarantine::Quarantines;

/// How long an invite may be good: a season.
const VALID_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// Names and servers of a request for invites.
const INVITES_MAX: usize = 1000;
const SERVERS_MAX: usize = 16;

/// Whether it has a host and a port, and nothing that a line could be broken with.
fn is_address(server: &str) -> bool {
    let parts = server.rsplit_once(':');
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    server.len() <= 300
        && server.bytes().all(|byte| byte.is_ascii_graphic())
        && parts.is_some_and(|(host, port)| !host.is_empty() && is_port(port))
}

/// Up to when each revoked site's certificates are void, in seconds since the Unix epoch.
pub(crate) type Revocations = Arc<BTreeMap<ClientId, u64>>;

/// See the module.
pub(crate) struct Members {
    store: Arc<Store>,
    issuing: RwLock<Option<Arc<Issuing>>>,
    approval: Approval,
    engine: Arc<dyn Listener>,
    revoked: watch::Sender<Revocations>,
    quarantined: watch::Sender<Quarantines>,
    /// One invite is looked at after the other.
    turn: Mutex<()>,
}

impl Members {
    pub(crate) async fn new(
        store: Arc<Store>,
        (issuing, approval): (Option<Arc<Issuing>>, Approval),
        engine: Arc<dyn Listener>,
    ) -> Result<Self, StoreError> {
        for name in store.names_refused().await? {
            tracing::warn!(
                "the database holds the site `{name}`, a name that older releases allowed: names begin with a letter, a digit or '_' now. \
                 Its certificate lets nobody in; invite the site under another name"
            );
        }
        let revoked = watch::Sender::new(Arc::new(store.revocations().await?));
        let quarantined = watch::Sender::new(Arc::new(store.quarantines().await?));
        Ok(Self {
            store,
            issuing: RwLock::new(issuing),
            approval,
            engine,
            revoked,
            quarantined,
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
        if sites.len() > INVITES_MAX {
            return Err(format!(
                "{} invites at a time are too many: ask for at most {INVITES_MAX}",
                sites.len()
            ));
        }
        if servers.is_empty() || servers.len() > SERVERS_MAX {
            return Err(format!("an invite names 1 to {SERVERS_MAX} servers, host:port each"));
        }
        if let Some(wrong) = servers.iter().find(|server| !is_address(server)) {
            return Err(format!("invalid server {wrong:?}: an invite names servers as host:port"));
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

    /// Everybody who was ever invited, certified, revoked, held in quarantine or, since the server was started, seen; by name.
    pub(crate) async fn list(
        &self,
        all_seen: impl IntoIterator<Item = (ClientId, Seen)>,
    ) -> Result<Vec<Member>, String> {
        let wrong = |error: StoreError| error.to_string();
        let now = now();
        let mut members = self.store.members(now).await.map_err(wrong)?;
        for (site, seen) in all_seen {
            let place = members.binary_search_by(|member| member.site.cmp(&site));
            let place = place.unwrap_or_else(|place| {
                members.insert(place, nobody(site));
                place
            });
            members[place].seen = Some(seen);
        }
        for asking in self.store.asking().await.map_err(wrong)? {
            let Asking { site, key_sha256, asked: since, expires, address, .. } = asking;
            let member = members.iter_mut().find(|member| member.site == site).filter(|_| expires >= now);
            let applicant = Applicant { phrase: approval::phrase(&key_sha256), since, expires, address };
            member.into_iter().for_each(|member| member.waiting.push(applicant.clone()));
        }
        Ok(members)
    }

    /// What an invite is good for now.
    pub(crate) async fn redeem(
        &self,
        token: &Token,
        request: &EnrolRequest,
        address: &str,
    ) -> Result<Redeemed, EnrolRejection> {
        let (issuing, csr) = self.ready(request)?;
        let (token, key) = (token.sha256(), csr.key_sha256());
        let _turn = self.turn.lock().await;
        let site = match self.store.show(&token, &key, now()).await.map_err(|error| unable(&error))? {
            Shown::Good(site) if self.approval == Approval::ByOperator => {
                let asked = self.store.ask(&token, &key, address, now()).await;
                if !asked.map_err(|error| unable(&error))? {
                    return Err(EnrolRejection::Used);
                }
                tracing::warn!(
                    "somebody at {address} waits to become {site}: compare \"{}\" by telephone, then `consortia site approve {site}`",
                    approval::phrase(&key)
                );
                let address = address.to_owned();
                self.record(Record::Asked { site, key_sha256: key, address }).await;
                return Ok(Redeemed::Asked);
            }
            Shown::Waiting => return Ok(Redeemed::Waiting),
            Shown::Good(site) | Shown::Approved(site) => site,
            Shown::Again { chain_pem } => {
                return Ok(Redeemed::Issued(chain_pem, issuing.root_pem().to_owned()));
            }
            Shown::Refused(refused) => return Err(refused),
        };
        let chain = self.certify(&issuing, &site, &csr).await?;
        let used =
            self.store.use_invite(&token, &key, &chain, now()).await.map_err(|error| unable(&error))?;
        if !used {
            return Err(EnrolRejection::Used);
        }
        tracing::info!("{site} has joined");
        self.record(Record::Enrolled { site, key_sha256: key }).await;
        Ok(Redeemed::Issued(chain, issuing.root_pem().to_owned()))
    }

    /// The next chain of the site whose certificate the connection shows, and the root.
    pub(crate) async fn renew(
        &self,
        name: ClientId,
        issued: u64,
        request: &EnrolRequest,
    ) -> Result<(String, String), EnrolRejection> {
        let (issuing, csr) = self.ready(request)?;
        let _turn = self.turn.lock().await;
        if self.revoked.borrow().get(&name).is_some_and(|before| issued <= *before) {
            return Err(EnrolRejection::NotASite);
        }
        let chain = self.certify(&issuing, &name, &csr).await?;
        tracing::info!("{name} has renewed its certificate");
        self.record(Record::Renewed { site: name, key_sha256: csr.key_sha256() }).await;
        Ok((chain, issuing.root_pem().to_owned()))
    }

    /// The issuing key, and the request, whose signature is good.
    fn ready(&self, request: &EnrolRequest) -> Result<(Arc<Issuing>, Request), EnrolRejection> {
        let issuing = self.issuing().ok_or_else(|| unable(&"there is no issuing key"))?;
        let csr = Request::parse(&request.csr_der).map_err(|error| {
            tracing::debug!("a certificate signing request is refused: {error}");
            EnrolRejection::Request
        })?;
        Ok((issuing, csr))
    }

    /// A certificate of now, written down; after a revocation nothing may be dated to its second.
    async fn certify(
        &self,
        issuing: &Issuing,
        site: &ClientId,
        csr: &Request,
    ) -> Result<String, EnrolRejection> {
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
    pub(crate) async fn record(&self, record: Record) {
        self.engine.hear(ToEngine::Record(record)).await;
    }
}

/// What an invite was good for.
pub(crate) enum Redeemed {
    /// The chain of its site, and the root.
    Issued(String, String),
    /// Its site waits from now on until an operator approves it.
    Asked,
    /// It waits still.
    Waiting,
}

fn unable(error: &dyn std::fmt::Display) -> EnrolRejection {
    tracing::error!("a site cannot be certified: {error}");
    EnrolRejection::Unable
}

#[expect(clippy::disallowed_methods, reason = "invites expire by the clock on the wall")]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
