//! The server's own certificates: taken up without a restart when they are renewed, and watched so that none ends unnoticed.
//!
//! It renews nothing itself: that takes the root's key, which no running server has.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::Endpoint;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::members::{Members, now};
use crate::net::transport::endpoint::{EndpointError, Shown};
use crate::net::transport::peer::validity_of_pem;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long before its end a certificate is warned of, and how often.
const WARNED_BEFORE: u64 = 90 * DAY;
const DAY: u64 = 24 * 3600;

/// See the module.
pub(crate) struct ServerCredentials {
    identity: PathBuf,
    endpoint: Endpoint,
    shown: watch::Sender<TlsAcceptor>,
    members: Arc<Members>,
    /// The certificate that is shown, PEM.
    cert: Mutex<Vec<u8>>,
}

impl ServerCredentials {
    pub(crate) fn new(
        identity: PathBuf,
        endpoint: Endpoint,
        shown: watch::Sender<TlsAcceptor>,
        members: Arc<Members>,
    ) -> Self {
        let cert = Mutex::new(std::fs::read(identity.join("cert.pem")).unwrap_or_default());
        Self { identity, endpoint, shown, members, cert }
    }

    /// What certificates there are and when they end, in seconds since the Unix epoch.
    pub(crate) fn ends(&self) -> Vec<(&'static str, u64)> {
        let own = validity_of_pem(&self.cert.lock().unwrap_or_else(PoisonError::into_inner));
        let own = own.map(|(_, ends)| ("server", ends)).ok();
        let issuing = self.members.issuing();
        let above = issuing.iter().flat_map(|one| [("issuing", one.ends()), ("root", one.root_ends())]);
        own.into_iter().chain(above).collect()
    }

    /// What certificates there are and when they begin, in seconds since the Unix epoch.
    fn begins(&self) -> Vec<(&'static str, u64)> {
        let own = self.cert.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let issuing = self.members.issuing();
        let above = issuing.iter().flat_map(|one| [("issuing", one.pem()), ("root", one.root_pem())]);
        let all = [("server", own)].into_iter().chain(above.map(|(name, pem)| (name, pem.into())));
        all.filter_map(|(name, pem)| Some((name, validity_of_pem(&pem).ok()?.0))).collect()
    }

    /// Takes up what is new on the disk and warns of what ends, until `stop`.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut warned = 0;
        loop {
            if now() >= warned + DAY {
                warned = now();
                self.warn();
            }
            if stop.run_until_cancelled(sleep(LOOK)).await.is_none() {
                return;
            }
            let credentials = Arc::clone(&self);
            // A disk may take its time.
            let looked = tokio::task::spawn_blocking(move || credentials.look()).await;
            if let Ok(Err(error)) = looked {
                tracing::warn!("a renewed certificate is not taken up: {error}; the one before is shown on");
            }
        }
    }

    fn look(&self) -> Result<(), EndpointError> {
        let cert = std::fs::read(self.identity.join("cert.pem")).unwrap_or_default();
        let is_new = *self.cert.lock().unwrap_or_else(PoisonError::into_inner) != cert;
        // An empty file is one that is being written, or moved.
        if is_new && !cert.is_empty() {
            let Shown { quic, stream } = Shown::read(&self.identity)?;
            self.endpoint.set_server_config(Some(quic));
            self.shown.send_replace(stream);
            *self.cert.lock().unwrap_or_else(PoisonError::into_inner) = cert;
            tracing::info!("a renewed certificate is shown from now on");
        }
        if let Some(issuing) = self.members.issuing() {
            let next = issuing.successor().map_err(|error| EndpointError::Tls(error.to_string()))?;
            if let Some(next) = next {
                self.members.issue_with(next);
                tracing::info!("sites are certified with the renewed issuing certificate from now on");
            }
        }
        Ok(())
    }

    fn warn(&self) {
        if let Some(error) = clock_fault(&self.begins(), now()) {
            tracing::error!("{error}");
        }
        for (name, ends) in self.ends().into_iter().filter(|(_, ends)| *ends < now() + WARNED_BEFORE) {
            let days = ends.saturating_sub(now()) / DAY;
            let then = match name {
                "root" => "all sites must then join a new federation",
                _ => "`consortia server renew` renews it, and sites stay",
            };
            tracing::warn!("the {name} certificate ends in {days} days: {then}");
        }
    }
}

/// What certificates say of a clock that is before the beginning of one of them.
fn clock_fault(begins: &[(&'static str, u64)], now: u64) -> Option<String> {
    let (name, latest) =
        begins.iter().filter(|(_, begins)| now < *begins).max_by_key(|(_, begins)| *begins)?;
    let shown = |seconds: u64| {
        let moment =
            i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
    };
    Some(format!(
        "this machine's clock says {}, and the {name} certificate begins {}: no site with a right clock has a certificate that is good here, and \
         invites and leases are reckoned by a wrong time. Set the clock and start the server again",
        shown(now),
        shown(*latest)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_the_certificates_is_told_with_both_moments() {
        let begins = [("server", 1_700_000_000), ("issuing", 1_600_000_000)];
        assert_eq!(clock_fault(&begins, 1_700_000_000), None);
        let error = clock_fault(&begins, 1_500_000_000).unwrap();
        for said in ["2017-07-14T02:40:00Z", "server certificate", "2023-11-14T22:13:20Z"] {
            assert!(error.contains(said), "{error}");
        }
    }
}
