//! `consortia server renew`: the certificates that the root signs, before they end. Sites renew theirs by themselves.
//!
//! The server's and the operator's get new keys. The issuing key stays, with a new certificate: what it signed stands.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ::client::net::{begin_renewal, finish_renewal, settle_renewal};
use clap::Args;
use serde_json::json;
use server::net::{Identity, validity_of_pem};

use super::failure::{Failure, Kind, OrFail};
use super::folder::ServerFolder;
use super::global::Global;
use super::members::moment;
use super::root::RootArgs;

#[derive(Debug, Args)]
pub(super) struct ServerRenewArgs {
    /// The server's folder; the server may be running.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// A further DNS name or IP address under which sites reach the server; may be repeated. Existing names stay.
    #[arg(long = "name", value_name = "HOST", value_parser = super::address::host)]
    names: Vec<String>,
    /// Renew an operator's identity in another folder, and nothing else.
    #[arg(long, value_name = "DIR", conflicts_with = "names")]
    operator: Option<PathBuf>,
    #[command(flatten)]
    root: RootArgs,
}

pub(super) fn renew(args: &ServerRenewArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.refuse_backup()?;
    if args.operator.is_none() {
        folder.refuse_other()?;
    }
    let root = args.root.open(&folder)?;
    let now = SystemTime::now();
    let mut renewed = Vec::new();
    let operator = args.operator.clone().unwrap_or_else(|| folder.operator());
    settle_renewal(&operator).or_fail(Kind::Configuration, "")?;
    if args.operator.is_some() || operator.exists() {
        let next = root.renew_operator(&operator.join("cert.pem"), now).or_fail(Kind::Configuration, "")?;
        renewed.push(("operator", replace(&operator, &next)?));
    }
    if args.operator.is_none() {
        let identity = folder.identity();
        settle_renewal(&identity).or_fail(Kind::Configuration, "")?;
        let next = root.renew_server(&identity.join("cert.pem"), &args.names, now);
        renewed.push(("server", replace(&identity, &next.or_fail(Kind::Configuration, "")?)?));
        let authority = folder.authority();
        if authority.join("issuer-key.pem").exists() {
            root.renew_issuing(&authority, now).or_fail(Kind::Configuration, "")?;
            renewed.push(("issuing", end_of(&authority.join("issuer.pem"))?));
        }
    }
    let own = args.operator.is_none();
    global.format.say(
        || {
            let lines = renewed.iter().map(|(name, ends)| format!("{name}: good until {}", moment(*ends)));
            let lines = lines.collect::<Vec<_>>().join("\n");
            if own { format!("{lines}\na server that is running shows them within seconds") } else { lines }
        },
        || {
            json!(
                renewed
                    .iter()
                    .map(|(name, ends)| json!({ "certificate": name, "good_until": ends }))
                    .collect::<Vec<_>>()
            )
        },
    );
    Ok(())
}

/// Puts an identity in the place of the one in `folder`, and says when it ends.
fn replace(folder: &Path, next: &Identity) -> Result<u64, Failure> {
    let made = begin_renewal(folder).or_fail(Kind::Configuration, "")?;
    next.write_identity(&made).or_fail(Kind::Configuration, "")?;
    finish_renewal(folder).or_fail(Kind::Configuration, "")?;
    end_of(&folder.join("cert.pem"))
}

fn end_of(cert: &Path) -> Result<u64, Failure> {
    let pem = std::fs::read(cert).or_fail(Kind::Configuration, cert.display())?;
    let (_, ends) = validity_of_pem(&pem).or_fail(Kind::Configuration, cert.display())?;
    Ok(ends)
}
