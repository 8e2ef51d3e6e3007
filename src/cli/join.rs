//! `consortia site join`: from an invite to a site that can run, in one command. The key is made here and stays here.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::client::net::{EnrolError, Identity, enrol};
use clap::Args;
use protocol::Invite;
use serde_json::json;
use server::net::{root_sha256_of_pem, site_of_pem};

use super::failure::{Blame, Failure, Kind, OrFail};
use super::folder::SiteFile;
use super::global::Global;
use super::identity::has_left;
use super::members::moment;
use super::output::tell;
use super::presets::Preset;
use super::shell::quoted;
use super::site::{next_steps, refuse_preset, write_files};
use super::watch::runtime;

/// How often whoever waits for an operator asks.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How often somebody tries again whose connection is lost before an answer comes, and how soon: a server that many strangers
/// call at once may give their places to one another.
const LOST_MAX: u32 = 8;
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Bytes that are read from stdin for an invite.
const INVITE_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The line that the operator sent, or `-` to read it from stdin.
    invite: String,
    /// The folder to create; by default the site's name in the current folder.
    #[arg(long = "dir", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The site's records: a table with a header line, whose separator is detected; gzip is unpacked.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The initial policy. Without it the site takes part in nothing until somebody edits `policy.toml`.
    #[arg(long, value_name = "PRESET")]
    policy: Option<Preset>,
}

pub(super) fn join(args: &JoinArgs, global: &Global) -> Result<(), Failure> {
    let text = match args.invite.as_str() {
        "-" => std::io::read_to_string(std::io::stdin().take(INVITE_MAX))
            .or_fail(Kind::Configuration, "stdin")?,
        text => text.to_owned(),
    };
    let invite: Invite = text.parse().or_fail(Kind::Configuration, "")?;
    let folder = args.folder.clone().unwrap_or_else(|| PathBuf::from(invite.site.as_str()));
    let data = match &args.data {
        Some(path) => Some(std::path::absolute(path).or_fail(Kind::Configuration, path.display())?),
        None => None,
    };
    if let Some(data) = data.as_ref().filter(|data| !data.is_file()) {
        return Err(Failure::new(
            Kind::Configuration,
            format!("--data: there is no file {}", data.display()),
        ));
    }
    // Before the invite is used up: a folder whose `site.toml` names no table is of no use.
    data.as_deref().map_or(Ok(()), learning::probe).map_err(|error| {
        let advice = "give a CSV file, or leave --data out and set [data] in site.toml afterwards";
        Failure::new(Kind::Configuration, format!("--data: {}; {advice}; nothing was changed", error.message))
    })?;
    if folder.join("site.toml").exists() {
        return Err(taken(&folder));
    }
    refuse_preset(&folder, args.policy)?;
    if global.quiet == 0 {
        tell(format_args!(
            "joining as {} at {}; the invite's check phrase is \"{}\"",
            invite.site,
            invite.servers.join(", "),
            invite.phrase()
        ));
    }
    let identity = folder.join("identity");
    if !has_become(&invite, &identity)? {
        runtime()?.block_on(become_member(&invite, &identity, global))?;
    }
    let files = write_files(&folder, &invite.servers, data.as_deref(), args.policy)?;
    global.format.say(
        || format!("{} has joined: its key was made here and is in {}\n{}", invite.site, folder.join("identity").display(), next_steps(&files, data.is_some(), args.policy)),
        || json!({ "site": invite.site.as_str(), "file": files.site, "policy": files.policy, "phrase": invite.phrase() }),
    );
    Ok(())
}

/// The failure of joining in a folder that is a site's. One whose site has left keeps its books, which go on under the new identity.
fn taken(folder: &Path) -> Failure {
    let shown = folder.display();
    let left = SiteFile::read(&folder.join("site.toml")).ok().filter(has_left);
    let message = match left {
        Some(left) => {
            let state = std::path::absolute(&left.state).unwrap_or(left.state);
            let state = toml::Value::from(state.display().to_string());
            format!(
                "the site in {shown} has left, and its books stay there; nothing was changed. Take this invite in another folder, `consortia site join \
                 INVITE --dir FOLDER`, and write `state = {state}` into FOLDER/site.toml before `site run`, so that what its records have spent stays spent"
            )
        }
        None => format!(
            "{shown} holds a site already; nothing was changed. `consortia site run {}` goes on with that one; for another site, or \
             another federation, name another folder by --dir",
            quoted(folder.join("site.toml"))
        ),
    };
    Failure::new(Kind::Configuration, message)
}

/// Whether an earlier attempt has brought the certificate that this invite is for, and was cut off before the site's files were written.
fn has_become(invite: &Invite, identity: &Path) -> Result<bool, Failure> {
    let cert = identity.join("cert.pem");
    let Ok(pem) = std::fs::read(&cert) else { return Ok(false) };
    let root = std::fs::read(identity.join("ca.pem")).ok().and_then(|pem| root_sha256_of_pem(&pem).ok());
    match site_of_pem(&pem) {
        Ok(site) if site == invite.site && root == Some(invite.root_sha256) => {
            Identity::load(identity).or_fail(Kind::Configuration, "")?;
            tell(format_args!(
                "{} holds the certificate of {site} in this federation already: going on where the command before was cut off",
                identity.display()
            ));
            Ok(true)
        }
        _ => {
            let message = format!(
                "{} exists already, and is not {}'s in the federation of this invite: take another folder; nothing was changed",
                cert.display(),
                invite.site
            );
            Err(Failure::new(Kind::Configuration, message))
        }
    }
}

/// Gets the certificate; where an operator must approve, asks again until that has happened, also over a restart of the server.
async fn become_member(invite: &Invite, identity: &Path, global: &Global) -> Result<(), Failure> {
    let software = concat!("consortia ", env!("CARGO_PKG_VERSION"));
    let (mut told, mut lost) = (false, 0);
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match enrol(invite, identity, software, now).await {
            Ok(()) => return Ok(()),
            Err(EnrolError::Waiting { phrase }) if !told => {
                told = true;
                global.format.say(
                    || describe_wait(invite, &phrase),
                    || json!({ "event": "waiting", "site": invite.site.as_str(), "phrase": phrase }),
                );
            }
            Err(EnrolError::Waiting { .. }) => {}
            Err(error @ (EnrolError::Unreachable(_) | EnrolError::Lost(_))) if told => {
                tracing::warn!("{error}; still waiting");
            }
            Err(error @ EnrolError::Lost(_)) if lost < LOST_MAX => {
                lost += 1;
                tracing::info!("{error}; trying again");
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
            Err(error) => return Err(failure(error, invite)),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn describe_wait(invite: &Invite, phrase: &str) -> String {
    format!(
        "waiting until the operator approves {}. Read this to the operator by telephone:\n\n  {phrase}\n\nThis command may be ended, \
         and goes on where it was when it is given again, until {}.",
        invite.site,
        moment(invite.expires)
    )
}

fn failure(error: EnrolError, invite: &Invite) -> Failure {
    match error {
        EnrolError::Expired => {
            let message = format!("{error}; it was good until {}", moment(invite.expires));
            Failure::new(Kind::Connection, message)
        }
        error => error.blamed(),
    }
}
