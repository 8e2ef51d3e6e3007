//! Who the site is, and whether the server answers it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::client::net::{Identity, Probe, ProbeError, check_books, probe};
use privacy::counted;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use server::net::{site_of_pem, validity_of_der, validity_of_pem};

use super::super::super::failure::Failure;
use super::super::super::folder::SiteFile;
use super::super::super::members::moment;
use super::super::super::shell::quoted;
use super::super::super::watch::runtime;
use super::super::begun::are_books_lost;
use super::super::owner;
use super::Findings;

const SOFTWARE: &str = concat!("consortia ", env!("CARGO_PKG_VERSION"));
const DAY: u64 = 24 * 3600;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Looks at key and certificates; the identity, if it can be shown to a server.
pub(super) fn look_at_identity(file: &SiteFile, findings: &mut Findings) -> Option<Identity> {
    let folder = &file.identity;
    look_at_key(&folder.join("key.pem"), findings);
    let identity = match Identity::load(folder) {
        Ok(identity) => identity,
        Err(error) => {
            findings.fail_identity("certificate", error.to_string());
            return None;
        }
    };
    let path = folder.join("cert.pem");
    let (shown, pem) = (path.display(), std::fs::read(&path).unwrap_or_default());
    match site_of_pem(&pem) {
        Ok(name) => findings.ok("certificate", format!("{shown} names this site `{name}`")),
        Err(_) => findings.fail_identity(
            "certificate",
            format!("{shown} names no site; is it the server's or an operator's? take the site's own"),
        ),
    }
    let Ok((begins, ends)) = validity_of_pem(&pem) else { return Some(identity) };
    let valid = look_at_dates((begins, ends), findings);
    // Dates are a matter of their own: the chain is judged at a moment of the certificate's life.
    match chain(folder, now().clamp(begins, ends)) {
        Ok(()) => findings.ok("chain", "cert.pem was issued under ca.pem, for a client"),
        Err(reason) => findings.fail_identity(
            "chain",
            format!(
                "cert.pem does not lead to ca.pem ({reason}); take both from the same issue, or join anew"
            ),
        ),
    }
    valid.then_some(identity)
}

#[cfg(unix)]
fn look_at_key(key: &Path, findings: &mut Findings) {
    use std::os::unix::fs::PermissionsExt;
    let shown = key.display();
    match std::fs::metadata(key) {
        Ok(data) if data.permissions().mode() & 0o077 != 0 => {
            let mode = data.permissions().mode() & 0o777;
            findings.fail_identity(
                "key",
                format!(
                    "{shown} has mode {mode:04o}, so that others can read it; run `chmod 600 {}`",
                    quoted(key)
                ),
            );
        }
        Ok(_) => findings.ok("key", format!("{shown} is readable by its owner alone")),
        Err(error) => findings.fail_identity("key", format!("{shown}: {error}")),
    }
}

#[cfg(not(unix))]
fn look_at_key(key: &Path, findings: &mut Findings) {
    match std::fs::metadata(key) {
        Ok(_) => findings.ok("key", format!("{} is there", key.display())),
        Err(error) => findings.fail_identity("key", format!("{}: {error}", key.display())),
    }
}

/// Whether the certificate is good today.
fn look_at_dates((begins, ends): (u64, u64), findings: &mut Findings) -> bool {
    let now = now();
    if now < begins || now > ends {
        findings.fail_identity(
            "certificate's time",
            format!(
                "it is good from {} to {}, and this machine's clock says {}; set the clock if it is wrong, or ask the operator for \
                 a new invite",
                moment(begins),
                moment(ends),
                moment(now)
            ),
        );
        return false;
    }
    let (left, life) = (ends - now, ends - begins);
    let message = format!("good until {} ({})", moment(ends), counted(left / DAY, "day"));
    if left < life / 6 {
        findings.warn(
            "certificate's time",
            format!("{message}; `site run` should have renewed it by now: run `consortia site renew`"),
        );
    } else {
        findings.ok("certificate's time", message);
    }
    true
}

/// Whether the certificate leads to the root, as a server would judge it at `moment`.
fn chain(folder: &Path, moment: u64) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let read = |name: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = std::fs::read(folder.join(name)).map_err(|error| told(&error))?;
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| told(&error))
    };
    let mut roots = RootCertStore::empty();
    for root in read("ca.pem")? {
        roots.add(root).map_err(|error| told(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().map_err(|error| told(&error))?;
    let chain = read("cert.pem")?;
    let (own, between) = chain.split_first().ok_or("there is no certificate in it")?;
    let moment = UnixTime::since_unix_epoch(Duration::from_secs(moment));
    verifier.verify_client_cert(own, between, moment).map(|_| ()).map_err(|error| told(&error))
}

/// Calls the server, and says what came of it.
pub(super) fn call(
    file: &SiteFile,
    identity: &Identity,
    running: bool,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let servers = file.servers();
    let mut reachable = 0;
    for server in &servers {
        let name = format!("server {server}");
        match runtime()?.block_on(tokio::net::lookup_host(server.as_str())) {
            Ok(found) => {
                reachable += 1;
                let found: Vec<String> = found.map(|address| address.to_string()).collect();
                findings.ok(name, format!("the name leads to {}", found.join(", ")));
            }
            Err(error) => {
                let message = format!(
                    "the name leads nowhere ({error}): it cannot be resolved here, or is not written as host:port; ask who runs the DNS"
                );
                findings.fail_identity(name, message);
            }
        }
    }
    if reachable == 0 {
        return Ok(());
    }
    let name = format!("server {}", servers.join(", "));
    // A server keeps one connection a site: a greeting would end the one that works.
    let is_fit = owner::fault(file).is_none() && !are_books_lost(&file.state);
    let books = if is_fit { check_books(&file.state).ok() } else { None };
    let ledger = books.map(|books| books.history);
    // Without its ledger a site would be refused, and that has been said.
    let software = (!running && ledger.is_some()).then_some(SOFTWARE);
    match runtime()?.block_on(probe(&servers, file.transport, identity, software, ledger.as_ref())) {
        Ok(found) => describe(&found, &name, findings),
        Err(error @ ProbeError::Connect(_)) => findings.fail_identity("handshake", error.to_string()),
        Err(error) => findings.fail_identity("greeting", error.to_string()),
    }
    Ok(())
}

fn describe(found: &Probe, server: &str, findings: &mut Findings) {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    findings.ok(
        "handshake",
        format!(
            "{} answers over {}, and both sides took the other's certificate, in {:.0} ms; there and back in {:.1} ms",
            found.server,
            if found.over_tcp { "TCP" } else { "UDP" },
            milliseconds(found.connected_in),
            milliseconds(found.round_trip)
        ),
    );
    if let Some((begins, ends)) = found.certificate.as_deref().and_then(|der| validity_of_der(der).ok()) {
        let now = now();
        let message = format!("{server}'s certificate is good until {}", moment(ends));
        match now {
            _ if now < begins + 3600 => findings.warn(
                "clock",
                format!(
                    "{message} and began only {}: compare this machine's clock ({})",
                    moment(begins),
                    moment(now)
                ),
            ),
            _ if ends - now.min(ends) < 14 * DAY => findings.warn(
                "clock",
                format!("{message}; tell the operator, or compare this machine's clock ({})", moment(now)),
            ),
            _ => findings.ok("clock", format!("this machine's ({}) fits: {message}", moment(now))),
        }
    }
    match &found.greeting {
        Some((software, you)) => {
            findings.ok("greeting", format!("{software} knows this site as `{you}`; goodbye was said"));
        }
        None => {
            findings.ok("greeting", "left out: `site run` is at work here and has the site's one connection, or the books are not in order")
        }
    }
}
