//! Certificates that follow others: the same names, and a new key or, for the issuing key, the same one, so that what it signed
//! before still stands.

use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::{
    Authority, AuthorityError, ISSUER_CERT, ISSUER_KEY, Identity, OPERATOR_URI, content, read, sealed,
    write_new,
};

/// The names in a certificate in PEM.
struct Names {
    /// Of hosts.
    hosts: Vec<String>,
    /// Of a party of the federation.
    uris: Vec<String>,
}

impl Names {
    fn of(path: &Path) -> Result<Self, AuthorityError> {
        let pem = read(path)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| content(path, &error))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| content(path, &error))?;
        let names = certificate.subject_alternative_name().map_err(|error| content(path, &error))?;
        let mut found = Self { hosts: Vec::new(), uris: Vec::new() };
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(host) => found.hosts.push((*host).to_owned()),
                GeneralName::URI(uri) => found.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let address = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                    let address =
                        address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from));
                    found.hosts.extend(address.map(|address| address.to_string()));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

impl Authority {
    /// The certificate that follows the server's in the file `cert`, with its names and these, and a new key.
    ///
    /// # Errors
    /// [`AuthorityError`], also for a name that cannot stand in a certificate.
    pub fn renew_server(
        &self,
        cert: &Path,
        names: &[String],
        now: SystemTime,
    ) -> Result<Identity, AuthorityError> {
        let mut all = Names::of(cert)?.hosts;
        all.extend(names.iter().cloned());
        self.issue_server(&all, now)
    }

    /// The certificate that follows an operator's in the file `cert`, with a new key.
    ///
    /// # Errors
    /// [`AuthorityError`], also for a certificate that is no operator's.
    pub fn renew_operator(&self, cert: &Path, now: SystemTime) -> Result<Identity, AuthorityError> {
        let names = Names::of(cert)?.uris;
        let name = names.iter().find_map(|uri| uri.strip_prefix(OPERATOR_URI));
        let name = name.ok_or_else(|| content(cert, &"it names no operator"))?;
        self.issue_operator(name, now)
    }

    /// A certificate that begins now for the issuing key in `dir`, in the place of the one before.
    ///
    /// # Errors
    /// [`AuthorityError`]; the one before stands then.
    pub fn renew_issuing(&self, dir: &Path, now: SystemTime) -> Result<(), AuthorityError> {
        let (path, cert) = (dir.join(ISSUER_KEY), dir.join(ISSUER_CERT));
        let key = sealed::unseal(&path, &Zeroizing::new(read(&path)?), None)?;
        let next = dir.join(format!("{ISSUER_CERT}.new"));
        // Of a renewal that broke off.
        let _ = std::fs::remove_file(&next);
        write_new(&next, self.certify_issuing(&key, now)?.as_bytes(), 0o644)?;
        std::fs::rename(&next, &cert).map_err(|source| AuthorityError::File { path: cert, source })
    }
}
