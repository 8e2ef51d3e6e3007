//! `consortia invite` and the operator's half of `consortia site`: who may join, who has, who may not any more.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::client::net::{OperatorClient, OperatorError};
use clap::Args;
use protocol::ClientId;
use protocol::wire::{AdminReply, AdminRequest, Applicant, InviteText, Member, RunSummary, Seen};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::failure::{Blame, Failure, Kind, OrFail};
use super::global::Global;
use super::output::{listed, text_table, without_empty};
use super::request::put;
use super::run::{OperatorArgs, connect};
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    /// The sites' names: 1 to 64 of a-z, 0-9, '.', '_' and '-' each.
    #[arg(required = true)]
    sites: Vec<ClientId>,
    #[command(flatten)]
    operator: OperatorArgs,
    /// The address under which sites reach the server, `host:port`, instead of `addresses` in `server.toml`; may be repeated.
    #[arg(long = "address", value_name = "HOST:PORT", value_parser = super::address::host_and_port)]
    addresses: Vec<String>,
    /// For how many hours the invites are valid.
    #[arg(long, default_value_t = 72)]
    hours: u64,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The site.
    site: ClientId,
    /// Accept the name of a site that `server issue` created and that has never connected.
    #[arg(long)]
    unseen: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    /// The site.
    site: ClientId,
    /// The reason, in one line: told to the site and written to the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    /// Accept the name of a site that `server issue` created and that has never connected.
    #[arg(long)]
    unseen: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The site.
    site: ClientId,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// The site.
    site: ClientId,
    /// The phrase that the site's staff read out by telephone; by default it is read from the terminal.
    #[arg(long, value_name = "WORDS")]
    phrase: Option<String>,
    /// Do not compare phrases.
    #[arg(long, conflicts_with = "phrase")]
    yes: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

const MINUTE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");

pub(super) fn invite(args: &InviteArgs, global: &Global) -> Result<(), Failure> {
    let servers = if args.addresses.is_empty() { args.operator.addresses()? } else { args.addresses.clone() };
    if servers.is_empty() {
        let message = "an invite names the server's address as sites reach it: give --address HOST:PORT, or `addresses` in server.toml";
        return Err(Failure::new(Kind::Configuration, message));
    }
    for server in &servers {
        let wrong = |fault| {
            format!("`addresses` in server.toml: {fault}; correct it there, or give --address HOST:PORT")
        };
        super::address::host_and_port(server).map_err(wrong).or_fail(Kind::Configuration, "")?;
    }
    let seconds = Duration::from_secs(args.hours.saturating_mul(3600)).as_secs();
    let request = AdminRequest::Invite { sites: args.sites.clone(), servers, seconds };
    let AdminReply::Invites(invites) = ask(&args.operator, &request, global)? else {
        return Err(wrong_reply());
    };
    global.format.say(|| describe(&invites), || invites.iter().map(invite_json).collect());
    Ok(())
}

fn describe(invites: &[InviteText]) -> String {
    let mut text = String::new();
    for InviteText { site, text: line, phrase, expires } in invites {
        text += &format!(
            "{site}: good once, until {}; check phrase \"{phrase}\"\n\n  consortia site join {line}\n\n",
            moment(*expires)
        );
    }
    text + "Send each site its line. Whoever has it can become that site: compare the phrase that `site join` shows by telephone."
}

fn invite_json(invite: &InviteText) -> Value {
    json!({ "site": invite.site.as_str(), "invite": invite.text, "phrase": invite.phrase, "expires": invite.expires })
}

pub(super) fn ls(args: &OperatorArgs, global: &Global) -> Result<(), Failure> {
    let (members, newest) = runtime()?.block_on(async {
        let operator = connect(args).await?;
        let members = put(&operator, &AdminRequest::Members, args.given(), global).await?;
        // Where there is no run yet, this is refused.
        let newest = operator.ask(&AdminRequest::Watch { run: None }).await.ok();
        operator.close().await;
        Ok::<_, Failure>((members, newest))
    })?;
    let AdminReply::Members(members) = members else { return Err(wrong_reply()) };
    let newest = match newest {
        Some(AdminReply::Run(newest)) => Some(newest),
        _ => None,
    };
    let heads = ["site", "state", "connected", "certificates", "invited", "joined", "declined", "remark"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    rows.extend(members.iter().map(|member| {
        let time = |at: u64| if at == 0 { "-".to_owned() } else { moment(at) };
        vec![
            member.site.to_string(),
            state(member, now).to_owned(),
            connection(member),
            member.certificates.len().to_string(),
            time(member.invited),
            time(member.joined.unwrap_or(0)),
            declined(&member.site, newest.as_ref()).unwrap_or_else(|| "-".to_owned()),
            remark(member),
        ]
    }));
    let object = |member: &Member| {
        let mut object = serde_json::to_value(member).unwrap_or_default();
        object["state"] = state(member, now).into();
        object["declined"] = declined(&member.site, newest.as_ref()).into();
        object
    };
    let none = "no site was invited yet: `consortia invite create SITE` invites one";
    let none = args.given().complete(none);
    let lines = || listed(&rows, &none, |rows| text_table(&without_empty(rows.to_vec())));
    global.format.say(lines, || members.iter().map(object).collect());
    Ok(())
}

/// What a site has declined of the newest run, or was refused: `None` where all that it was asked has counted, or where the run hides
/// who was
/// asked.
fn declined(site: &ClientId, newest: Option<&RunSummary>) -> Option<String> {
    let run = newest?;
    let client = run.clients.iter().find(|client| client.client == *site)?;
    let told = |counts: &[(String, u32)], verb: &str| -> Vec<String> {
        counts.iter().map(|(reason, count)| format!("{reason}{verb} {count}")).collect()
    };
    let reasons = [told(&client.declined, ""), told(&client.refused, " (refused)")].concat();
    (!reasons.is_empty()).then(|| format!("{} in run {}", reasons.join(", "), run.run))
}

/// Since when and from where a site is connected, or when it was last.
fn connection(member: &Member) -> String {
    match &member.seen {
        None => "-".to_owned(),
        Some(Seen { since, left: None, address, .. }) => format!("since {} from {address}", moment(*since)),
        Some(Seen { left: Some(left), .. }) => format!("until {}", moment(*left)),
    }
}

/// What the operator should know of a line: who waits, or why it gets no task.
fn remark(member: &Member) -> String {
    let waits = |applicant: &Applicant| {
        let Applicant { phrase, since, address, .. } = applicant;
        format!("\"{phrase}\" from {address} since {}", moment(*since))
    };
    match &member.quarantine {
        _ if !member.waiting.is_empty() => member.waiting.iter().map(waits).collect::<Vec<_>>().join("; "),
        Some(held) => held.reason.clone(),
        None => String::new(),
    }
}

fn state(member: &Member, now: u64) -> &'static str {
    if !member.waiting.is_empty() {
        return "waiting";
    }
    if member.invited == 0 && member.revoked.is_none() && member.quarantine.is_none() {
        return "issued";
    }
    match (member.joined, member.revoked) {
        (joined, Some(before)) if joined.is_none_or(|joined| joined <= before) => {
            if member.invited > before {
                "revoked, invited"
            } else {
                "revoked"
            }
        }
        _ if member.quarantine.is_some() => "quarantined",
        (Some(_), _) => "member",
        (None, _) if now > member.expires => "invite expired",
        (None, _) => "invited",
    }
}

pub(super) fn revoke(args: &RevokeArgs, global: &Global) -> Result<(), Failure> {
    look_for(&args.operator, &args.site, args.unseen, global)?;
    done(&args.operator, &AdminRequest::Revoke { site: args.site.clone() }, global)?;
    global.format.say(
        || {
            format!(
                "{site} is revoked: its certificates and invites are void, its connection is closed\nto let it back in: {}",
                args.operator.given().command(&format!("invite create {}", args.site)),
                site = args.site
            )
        },
        || json!({ "site": args.site.as_str(), "revoked": true }),
    );
    Ok(())
}

pub(super) fn quarantine(args: &QuarantineArgs, global: &Global) -> Result<(), Failure> {
    look_for(&args.operator, &args.site, args.unseen, global)?;
    let (site, reason) = (args.site.clone(), args.reason.clone());
    done(&args.operator, &AdminRequest::Quarantine { site, reason }, global)?;
    global.format.say(
        || {
            format!(
                "{site} is in quarantine: it gets no task, answers that it still owes are rejected, and it is told so while it is connected\nto end \
                 that: {}",
                args.operator.given().command(&format!("site release {}", args.site)),
                site = args.site
            )
        },
        || json!({ "site": args.site.as_str(), "quarantined": true }),
    );
    Ok(())
}

pub(super) fn release(args: &ReleaseArgs, global: &Global) -> Result<(), Failure> {
    done(&args.operator, &AdminRequest::Release { site: args.site.clone() }, global)?;
    global.format.say(
        || format!("{} is released from quarantine: the next round may ask it", args.site),
        || json!({ "site": args.site.as_str(), "quarantined": false }),
    );
    Ok(())
}

pub(super) fn approve(args: &DecideArgs, global: &Global) -> Result<(), Failure> {
    let phrase = match &args.phrase {
        None if args.yes => None,
        None => Some(heard(&args.site)?),
        phrase => phrase.clone(),
    };
    done(&args.operator, &AdminRequest::Approve { site: args.site.clone(), phrase }, global)?;
    global.format.say(
        || format!("{} is approved: it gets its certificate when it asks again, within seconds", args.site),
        || json!({ "site": args.site.as_str(), "approved": true }),
    );
    Ok(())
}

/// What the site's people say, typed on the terminal.
fn heard(site: &ClientId) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        let message = format!(
            "give --phrase \"WORDS\", what {site} says by telephone, or --yes to approve without comparing"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    super::output::ask(format_args!("what does {site} say by telephone? "));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).or_fail(Kind::Configuration, "stdin")?;
    Ok(line)
}

pub(super) fn refuse(args: &DecideArgs, global: &Global) -> Result<(), Failure> {
    let (site, phrase) = (args.site.clone(), args.phrase.clone());
    done(&args.operator, &AdminRequest::Refuse { site, phrase }, global)?;
    global.format.say(
        || {
            format!(
                "{site} is rejected, and its invite is void\nto let it in: {}",
                args.operator.given().command(&format!("invite create {}", args.site)),
                site = args.site
            )
        },
        || json!({ "site": args.site.as_str(), "approved": false }),
    );
    Ok(())
}

/// Refuses a name that nobody has: the site that is meant would stay as it is.
fn look_for(
    operator: &OperatorArgs,
    site: &ClientId,
    is_unseen: bool,
    global: &Global,
) -> Result<(), Failure> {
    let AdminReply::Members(members) = ask(operator, &AdminRequest::Members, global)? else {
        return Err(wrong_reply());
    };
    // One whose certificate was made by `server issue` and that has never come is in no list.
    let is_issued = operator.folder.join("sites").join(site.as_str()).exists();
    if is_unseen || is_issued || members.iter().any(|member| member.site == *site) {
        return Ok(());
    }
    let known: Vec<&str> = members.iter().map(|member| member.site.as_str()).collect();
    let known = if known.is_empty() { "nobody".to_owned() } else { known.join(", ") };
    let message = format!(
        "there is no site {site} here, nothing was changed; the server knows {known}. For a site whose bundle was made elsewhere by \
         `server issue` and that has never come, add --unseen"
    );
    Err(Failure::new(Kind::Configuration, message))
}

fn done(operator: &OperatorArgs, request: &AdminRequest, global: &Global) -> Result<(), Failure> {
    match ask(operator, request, global)? {
        AdminReply::Done => Ok(()),
        _ => Err(wrong_reply()),
    }
}

fn ask(args: &OperatorArgs, request: &AdminRequest, global: &Global) -> Result<AdminReply, Failure> {
    runtime()?.block_on(async {
        let operator: OperatorClient = connect(args).await?;
        let reply = put(&operator, request, args.given(), global).await;
        operator.close().await;
        reply
    })
}

fn wrong_reply() -> Failure {
    OperatorError::WrongReply.blamed()
}

/// Seconds since the Unix epoch for a person.
pub(super) fn moment(seconds: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds.cast_signed()).ok();
    time.and_then(|time| time.format(MINUTE).ok()).unwrap_or_else(|| format!("second {seconds}"))
}
