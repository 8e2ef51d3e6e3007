//! Sites: who is a member, who is connected, who may join, who may not any more.

use std::collections::BTreeMap;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use protocol::ClientId;
use protocol::wire::{Applicant, Certificate, Member};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::runs::rejected;
use super::views::Problem;
use super::{Caller, Shared};
use crate::net::membership::members::now;
use crate::net::store::Counts;
use crate::net::store::messages::Verdict;

/// For how long an invite is good unless something else is asked for.
const HOURS: u64 = 72;

/// A site, whether a member or not. Times are seconds since the Unix epoch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SiteView {
    site: String,
    /// waiting (for approval), member, quarantined, invited, invite_expired, revoked, revoked_and_invited, or issued for a site whose bundle `server issue` made.
    state: &'static str,
    invited: Option<u64>,
    /// When its newest invite expires.
    expires: Option<u64>,
    joined: Option<u64>,
    revoked: Option<u64>,
    /// Since when it gets no task, while it is in quarantine.
    quarantined: Option<u64>,
    /// Why, in the operator's words.
    quarantine_reason: Option<String>,
    /// Who waits to be approved as this site.
    waiting: Vec<ApplicantView>,
    /// Certificates of this name that the server has issued and that are good now, oldest first.
    certificates: Vec<CertificateView>,
    connected: bool,
    /// When its connection was greeted last, since the server was started.
    greeted: Option<u64>,
    /// When it was here last, since the server was started.
    last_seen: Option<u64>,
    address: Option<String>,
    software: Option<String>,
    /// Of the newest 20 runs, those it took part in; the counts are of these.
    runs: u32,
    accepted: u64,
    refused: BTreeMap<&'static str, u64>,
    declined: BTreeMap<&'static str, u64>,
}

/// Somebody who has shown an invite and waits for an operator.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApplicantView {
    /// What the site's people see, too.
    phrase: String,
    since: u64,
    /// When the invite ends.
    expires: u64,
    address: String,
}

/// A certificate that lets its holder in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CertificateView {
    /// Its serial number, in hexadecimal digits.
    serial: String,
    issued: u64,
    expires: u64,
}

/// Who is to be invited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InviteBody {
    /// Names: 1 to 64 of a-z, 0-9, '.', '_' and '-' each.
    sites: Vec<String>,
    /// Where sites reach the server, `host:port`; `addresses` of server.toml when absent.
    #[serde(default)]
    servers: Vec<String>,
    /// For how long the invites are good; 72 when absent.
    #[serde(default)]
    hours: Option<u64>,
}

/// An invite. Whoever sees the line can become that site.
#[derive(Serialize, ToSchema)]
pub(super) struct InviteView {
    site: String,
    /// What the site pastes behind `consortia site join`.
    line: String,
    /// What to compare by telephone.
    phrase: String,
    expires: u64,
}

/// The word for a membership.
fn state(member: Option<&Member>, now: u64) -> &'static str {
    let is_known =
        |member: &&Member| member.invited > 0 || member.revoked.is_some() || member.quarantine.is_some();
    let Some(member) = member.filter(is_known) else { return "issued" };
    if !member.waiting.is_empty() {
        return "waiting";
    }
    match (member.joined, member.revoked) {
        (joined, Some(before)) if joined.is_none_or(|joined| joined <= before) => {
            if member.invited > before {
                "revoked_and_invited"
            } else {
                "revoked"
            }
        }
        _ if member.quarantine.is_some() => "quarantined",
        (Some(_), _) => "member",
        (None, _) if now > member.expires => "invite_expired",
        (None, _) => "invited",
    }
}

fn view(site: &ClientId, member: Option<&Member>, counts: Counts) -> SiteView {
    let Counts { runs, accepted, refused, declined } = counts;
    let seen = member.and_then(|member| member.seen.as_ref());
    let connected = seen.is_some_and(|seen| seen.left.is_none());
    let quarantine = member.and_then(|member| member.quarantine.as_ref());
    SiteView {
        site: site.to_string(),
        state: state(member, now()),
        // A site that was revoked without ever having been invited has no dates.
        invited: member.map(|member| member.invited).filter(|at| *at > 0),
        expires: member.map(|member| member.expires).filter(|at| *at > 0),
        joined: member.and_then(|member| member.joined),
        revoked: member.and_then(|member| member.revoked),
        quarantined: quarantine.map(|held| held.since),
        quarantine_reason: quarantine.map(|held| held.reason.clone()),
        waiting: member.map(|member| member.waiting.iter().map(applicant).collect()).unwrap_or_default(),
        certificates: member
            .map(|member| member.certificates.iter().map(certificate).collect())
            .unwrap_or_default(),
        connected,
        greeted: seen.map(|seen| seen.since),
        last_seen: seen.map(|seen| seen.left.unwrap_or_else(now)),
        address: seen.map(|seen| seen.address.clone()),
        software: seen.map(|seen| seen.software.clone()),
        runs,
        accepted,
        refused,
        declined,
    }
}

fn applicant(applicant: &Applicant) -> ApplicantView {
    let Applicant { phrase, since, expires, address } = applicant.clone();
    ApplicantView { phrase, since, expires, address }
}

fn certificate(certificate: &Certificate) -> CertificateView {
    let Certificate { serial, issued, expires } = certificate.clone();
    CertificateView { serial, issued, expires }
}

/// Everybody who was invited, revoked, or seen, by name.
#[utoipa::path(get, path = "/api/v1/sites", responses((status = OK, body = [SiteView])))]
pub(super) async fn list(State(admin): State<Shared>) -> Result<Json<Vec<SiteView>>, Problem> {
    let members = admin.operators.members().await.map_err(Problem::ours)?;
    let mut members: BTreeMap<ClientId, Option<Member>> =
        members.into_iter().map(|member| (member.site.clone(), Some(member))).collect();
    let mut counts = admin.operators.store.counts().await.map_err(Problem::ours)?;
    for site in counts.keys() {
        members.entry(site.clone()).or_default();
    }
    let views = members
        .iter()
        .map(|(site, member)| view(site, member.as_ref(), counts.remove(site).unwrap_or_default()));
    Ok(Json(views.collect()))
}

/// Makes a site's certificates and invites void and closes its connection.
#[utoipa::path(
    post,
    path = "/api/v1/sites/{site}/revoke",
    params(("site" = String, Path, description = "Its name")),
    responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem))
)]
pub(super) async fn revoke(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
) -> Result<StatusCode, Problem> {
    let site = known(&admin, &site, "revoke").await?;
    admin.operators.members.revoke(site, &caller.name()).await.map_err(Problem::ours)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Why a site gets no task.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QuarantineBody {
    /// One line; the site is told so.
    #[serde(default)]
    reason: String,
}

/// Gives a site no task and takes no update of it, until it is released; it stays a member.
#[utoipa::path(
    post,
    path = "/api/v1/sites/{site}/quarantine",
    params(("site" = String, Path, description = "Its name")),
    request_body = QuarantineBody,
    responses((status = NO_CONTENT), (status = BAD_REQUEST, body = Problem), (status = NOT_FOUND, body = Problem))
)]
pub(super) async fn quarantine(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
    body: Result<Json<QuarantineBody>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(QuarantineBody { reason }) = body.map_err(rejected)?;
    let site = known(&admin, &site, "quarantine").await?;
    admin.operators.members.quarantine(site, &reason, &caller.name()).await.map_err(Problem::bad)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a site's quarantine.
#[utoipa::path(
    post,
    path = "/api/v1/sites/{site}/release",
    params(("site" = String, Path, description = "Its name")),
    responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn release(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
) -> Result<StatusCode, Problem> {
    let site = known(&admin, &site, "release").await?;
    let released = admin.operators.members.release(site, &caller.name()).await;
    released.map_err(|error| Problem::new(StatusCode::CONFLICT, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which of those who wait.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecisionBody {
    /// The phrase as the site has said it; needed to approve where several wait.
    #[serde(default)]
    phrase: Option<String>,
}

/// Lets in who waits with an invite of this site.
#[utoipa::path(
    post,
    path = "/api/v1/sites/{site}/approve",
    params(("site" = String, Path, description = "Its name")),
    request_body = DecisionBody,
    responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn approve(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
    body: Result<Json<DecisionBody>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    decide(&admin, caller, &site, body, Verdict::Approved).await
}

/// Keeps out who waits with an invite of this site, and takes the invite back.
#[utoipa::path(
    post,
    path = "/api/v1/sites/{site}/refuse",
    params(("site" = String, Path, description = "Its name")),
    request_body = DecisionBody,
    responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem))
)]
pub(super) async fn refuse(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(site): Path<String>,
    body: Result<Json<DecisionBody>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    decide(&admin, caller, &site, body, Verdict::Refused).await
}

async fn decide(
    admin: &Shared,
    caller: Caller,
    site: &str,
    body: Result<Json<DecisionBody>, JsonRejection>,
    verdict: Verdict,
) -> Result<StatusCode, Problem> {
    let Json(DecisionBody { phrase }) = body.map_err(rejected)?;
    let site = known(admin, site, "ls").await?;
    let decided = admin.operators.members.decide(site, verdict, phrase.as_deref(), &caller.name()).await;
    decided.map_err(|error| Problem::new(StatusCode::CONFLICT, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The certificates that are void, signed, in DER. It needs no token: whoever checks certificates fetches it.
pub(super) async fn revocation_list(State(admin): State<Shared>) -> Result<Response, Problem> {
    let list = admin.operators.members.revocation_list().await.map_err(Problem::ours)?;
    Ok(([(CONTENT_TYPE, "application/pkix-crl")], list.der.to_vec()).into_response())
}

/// The site of this name, which must have been invited or seen.
async fn known(admin: &Shared, site: &str, verb: &str) -> Result<ClientId, Problem> {
    let site = ClientId::new(site).map_err(Problem::bad)?;
    let members = admin.operators.members().await.map_err(Problem::ours)?;
    if members.iter().any(|member| member.site == site) {
        return Ok(site);
    }
    let message = format!(
        "there is no site {site} here; for a site whose bundle was made by `server issue` and that was never seen, use \
         `consortia site {verb} {site}`"
    );
    Err(Problem::new(StatusCode::NOT_FOUND, message))
}

/// Makes an invite for each site.
#[utoipa::path(
    post,
    path = "/api/v1/invites",
    request_body = InviteBody,
    responses((status = CREATED, body = [InviteView]), (status = BAD_REQUEST, body = Problem))
)]
pub(super) async fn invite(
    State(admin): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<InviteBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Vec<InviteView>>), Problem> {
    let Json(InviteBody { sites, servers, hours }) = body.map_err(rejected)?;
    let sites: Result<Vec<ClientId>, _> = sites.iter().map(|site| ClientId::new(site)).collect();
    let sites = sites.map_err(Problem::bad)?;
    let servers = if servers.is_empty() { admin.addresses.clone() } else { servers };
    if servers.is_empty() {
        let message = "an invite names the server's address as sites reach it: give `servers`, or `addresses` in server.toml";
        return Err(Problem::bad(message));
    }
    let seconds = hours.unwrap_or(HOURS).saturating_mul(3600);
    let made = admin
        .operators
        .members
        .invite(&sites, &servers, seconds, &caller.name())
        .await
        .map_err(Problem::bad)?;
    let views = made.into_iter().map(|invite| InviteView {
        site: invite.site.to_string(),
        line: invite.text,
        phrase: invite.phrase,
        expires: invite.expires,
    });
    Ok((StatusCode::CREATED, Json(views.collect())))
}
