//! A site's certificate before it ends: renewed by `site run` itself once two thirds of its life are over, and by `site renew`
//! at any time. Each renewal makes a new key.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::client::net::{Identity, renew, settle_renewal};
use clap::Args;
use serde_json::json;
use tokio::sync::watch;

use super::failure::{Failure, Kind, OrFail};
use super::folder::SiteFile;
use super::global::Global;
use super::members::moment;
use super::watch::runtime;

/// How long a certificate is kept at least, whatever the clock says.
const KEPT: Duration = Duration::from_secs(3600);
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
    super::identity::refuse_left(&file)?;
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

/// Renews the certificate in `folder` when it is time, for as long as it is polled, and at most once an hour, whatever the clock says; new
/// connections show what is put into `slot`.
pub(super) async fn keep_fresh(folder: &Path, servers: &[String], slot: watch::Sender<Identity>) {
    loop {
        let wait = validity(folder).map_or(LOOK, due_in).max(kept_for(folder)).min(LOOK);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            continue;
        }
        let pause = match renew(folder, servers, SOFTWARE).await {
            Ok(identity) => {
                tracing::info!("the certificate was renewed");
                slot.send_replace(identity);
                if let Some(error) = validity(folder).ok().and_then(|new| clock_fault(new, now())) {
                    tracing::warn!("{error}");
                }
                KEPT
            }
            Err(error) => {
                tracing::warn!("the certificate is not renewed: {error}; trying again in 6 hours");
                LOOK
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How long the certificate in `folder` is not old enough to be renewed, by when its file was written: a start shortly after a renewal
/// makes no other one.
fn kept_for(folder: &Path) -> Duration {
    let written = std::fs::metadata(folder.join("cert.pem")).and_then(|file| file.modified());
    let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
    age.map_or(Duration::ZERO, |age| KEPT.saturating_sub(age))
}

/// What a new certificate says of this machine's clock, by which it is due again or has not begun.
fn clock_fault((begins, ends): (u64, u64), now: u64) -> Option<String> {
    let what = if now < begins {
        "it has not begun"
    } else if now > ends {
        "it has ended"
    } else if now >= due_at((begins, ends)) {
        "it is to be renewed again"
    } else {
        return None;
    };
    Some(format!(
        "this machine's clock says {}: the certificate that was just given is good from {} to {}, and by this clock {what}. Set the clock (and let NTP \
         keep it); until then the certificate is renewed once an hour at most",
        moment(now),
        moment(begins),
        moment(ends)
    ))
}

/// How long until two thirds of a certificate's life are over.
fn due_in(validity: (u64, u64)) -> Duration {
    Duration::from_secs(due_at(validity).saturating_sub(now()))
}

/// The moment when two thirds of a certificate's life are over.
fn due_at((begins, ends): (u64, u64)) -> u64 {
    begins + ends.saturating_sub(begins) / 3 * 2
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
    fn a_new_certificate_by_which_the_clock_is_wrong_is_told_with_all_three_moments() {
        let (begins, day) = (1_700_000_000, 86_400);
        let new = (begins, begins + 90 * day);
        for (clock, said) in [
            (begins - day, Some("it has not begun")),
            (begins + 700 * day, Some("it has ended")),
            (begins + 70 * day, Some("it is to be renewed again")),
            (begins + day, None),
        ] {
            let error = clock_fault(new, clock);
            assert_eq!(error.is_some(), said.is_some(), "{error:?}");
            if let (Some(error), Some(said)) = (error, said) {
                let all = [said.to_owned(), moment(clock), moment(new.0), moment(new.1)];
                assert!(all.iter().all(|part| error.contains(part)), "{error}");
            }
        }
    }

    #[test]
    fn a_certificate_that_was_just_written_is_kept_for_an_hour_whatever_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("cert.pem")).unwrap();
        assert!(kept_for(dir.path()) > KEPT - Duration::from_secs(60));
        let now = SystemTime::now();
        file.set_modified(now - KEPT / 2).unwrap();
        assert!((KEPT / 3..=KEPT / 2).contains(&kept_for(dir.path())));
        // Old, or from a clock that was ahead and was set back.
        for written in [now - 2 * KEPT, now + 9 * KEPT] {
            file.set_modified(written).unwrap();
            assert_eq!(kept_for(dir.path()), Duration::ZERO);
        }
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let day = 86_400;
        assert_eq!(due_in((now() - 70 * day, now() + 30 * day)), Duration::ZERO);
        let wait = due_in((now() - 10 * day, now() + 80 * day));
        assert!((49 * day..=50 * day).contains(&wait.as_secs()), "{wait:?}");
    }
}
