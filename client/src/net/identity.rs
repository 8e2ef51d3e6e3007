//! Who this program is: the three PEM files of a site's (or an operator's) folder.
//!
//! `ca.pem` holds the certificate of the federation's authority, `cert.pem` this party's certificate (with any
//! intermediate ones after it), `key.pem` its private key. Nothing here makes keys or certificates, and the key is never
//! printed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::wire::ALPNS;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::dial::Tls;

/// A party of the federation, ready to prove itself.
#[derive(Clone)]
pub struct Identity(Tls);

/// Why a folder holds no identity. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file is not there or cannot be read.
    #[error("{path}: {source}; the folder needs ca.pem, cert.pem and key.pem as the operator issued them")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file has no PEM section of the right kind.
    #[error("{path}: no {wanted} in it ({reason}); copy the file anew from what the operator issued")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A certificate that is no certificate.
    #[error(
        "{path}: the certificate is not usable ({source}); copy the file anew from what the operator issued"
    )]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// Certificate and key do not belong together.
    #[error("{path}: key.pem and cert.pem do not make a pair ({source}); take both from the same issue")]
    Pair {
        /// The folder.
        path: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` from `folder`. Warns in the log when others on this machine can read
    /// the key.
    ///
    /// # Errors
    /// [`IdentityError`] names the file at fault.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        Self::load_for(folder, &ALPNS)
    }

    /// The same, to speak one of these protocols, the preferred one first.
    pub(super) fn load_for(folder: &Path, alpns: &[&[u8]]) -> Result<Self, IdentityError> {
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&ca)? {
            let unusable = |source| IdentityError::Certificate { path: ca.clone(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        let chain = read_certificates(&cert)?;
        warn_if_readable(&key);
        let no_key = |error| pem_error(&key, "private key", error);
        let key = PrivateKeyDer::from_pem_slice(&read(&key)?).map_err(no_key)?;
        let pair = |source| IdentityError::Pair { path: folder.to_owned(), source };
        Self::of(roots, chain, key, alpns).map_err(pair)
    }

    fn of(
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        alpns: &[&[u8]],
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
        // Every connection is a full handshake: a certificate is checked each time, and nothing can be replayed.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Tls::of(config).map(Self)
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.0
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

fn pem_error(path: &Path, wanted: &'static str, error: PemError) -> IdentityError {
    // The library's message may quote the line at fault, and a line of key.pem is not to be quoted.
    let reason = match error {
        PemError::NoItemsFound => "no such section",
        PemError::MissingSectionEnd { .. } => "a section has no end",
        _ => "not PEM",
    };
    IdentityError::Pem { path: path.to_owned(), wanted, reason: reason.to_owned() }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = read(path)?;
    let certificates: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates =
        certificates.and_then(|found| if found.is_empty() { Err(PemError::NoItemsFound) } else { Ok(found) });
    certificates.map_err(|error| pem_error(path, "certificate", error))
}

#[cfg(unix)]
fn warn_if_readable(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(key).map_or(0, |data| data.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %key.display(),
            "other users of this machine can read the private key; run `chmod 600` on it"
        );
    }
}

#[cfg(not(unix))]
fn warn_if_readable(_: &Path) {}
