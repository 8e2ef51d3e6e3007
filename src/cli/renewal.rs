//! A site's certificate before it ends: renewed by `site run` itself once two thirds of its life are over, and by `site renew`
//! at any time. Each renewal makes a new key.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::client::net::{Identity, renew, settle_renewal};
use clap::Args;
use serde_json::json;
use tokio::sync::watch;

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::folder::SiteFile;
use super::members::moment;
use super::watch::runtime;

/// How long a certificate is not looked at, at most, and after a renewal that failed.
const LOOK: Duration = Duration::from_secs(6 * 3600);
const SOFTWARE: &str = concat!("consortia ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
}

pub(super) fn renew_now(args: &RenewArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    super::site::leave::refuse_left(&file)?;
    settle_renewal(&file.identity).or_fail(Kind::Configuration, "")?;
    let renewed = runtime()?.block_on(renew(&file.identity, &file.servers(), SOFTWARE));
    renewed.or_fail(Kind::Connection, "")?;
    let (_, ends) = validity(&file.identity)?;
    global.format.say(
        || {
            let ends = moment(ends);
            format!("renewed with a new key; good until {ends}\na site that is running shows it after its next start")
        },
        || json!({ "good_until": ends }),
    );
    Ok(())
}

/// Loads a site's identity, and refuses one whose time is over or has not come.
pub(super) fn load(folder: &Path) -> Result<Identity, Failure> {
    settle_renewal(folder).or_fail(Kind::Configuration, "")?;
    let identity = Identity::load(folder).or_fail(Kind::Connection, "")?;
    let (begins, ends) = validity(folder)?;
    let shown = folder.join("cert.pem");
    match now() {
        now if now > ends => {
            let message = format!(
                "{}: the certificate ended {}; ask the operator for a new invite, or set this machine's clock if it is wrong",
                shown.display(),
                moment(ends)
            );
            Err(Failure::new(Kind::Connection, message))
        }
        now if now < begins => {
            let message = format!(
                "{}: the certificate begins {}, and this machine's clock says {}; set the clock",
                shown.display(),
                moment(begins),
                moment(now)
            );
            Err(Failure::new(Kind::Connection, message))
        }
        _ => Ok(identity),
    }
}

/// Renews the certificate in `folder` when it is time, for as long as it is polled; new connections show what is put into `slot`.
pub(super) async fn keep_fresh(folder: &Path, servers: &[String], slot: watch::Sender<Identity>) {
    loop {
        let wait = validity(folder).map_or(LOOK, due_in);
        if wait.is_zero() {
            match renew(folder, servers, SOFTWARE).await {
                Ok(identity) => {
                    tracing::info!("the certificate was renewed");
                    slot.send_replace(identity);
                    continue;
                }
                Err(error) => {
                    tracing::warn!("the certificate is not renewed: {error}; trying again in 6 hours")
                }
            }
        }
        tokio::time::sleep(if wait.is_zero() { LOOK } else { wait.min(LOOK) }).await;
    }
}

/// How long until two thirds of a certificate's life are over.
fn due_in((begins, ends): (u64, u64)) -> Duration {
    let due = begins + ends.saturating_sub(begins) / 3 * 2;
    Duration::from_secs(due.saturating_sub(now()))
}

fn validity(folder: &Path) -> Result<(u64, u64), Failure> {
    let path = folder.join("cert.pem");
    let pem = std::fs::read(&path).or_fail(Kind::Connection, path.display())?;
    server::net::validity_of_pem(&pem).or_fail(Kind::Connection, path.display())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let day = 86_400;
        assert_eq!(due_in((now() - 70 * day, now() + 30 * day)), Duration::ZERO);
        let wait = due_in((now() - 10 * day, now() + 80 * day));
        assert!((49 * day..=50 * day).contains(&wait.as_secs()), "{wait:?}");
    }
}
