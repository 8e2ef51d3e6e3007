//! The part of the authority that a running server may have: a key that certifies sites and nothing else, so that the root's
//! own can be kept where no network reaches.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use protocol::ClientId;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    AuthorityError, CA_CERT, ISSUER_CERT, ISSUER_KEY, LEAF_DAYS, SITE_URI, content, fingerprint, leaf, named,
    read,
};
use crate::net::transport::peer::validity_of_pem;

/// Certifies sites.
pub struct Issuing {
    pub(super) issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    root_pem: String,
    root_sha256: [u8; 32],
    /// Where it was read from.
    dir: PathBuf,
    /// When its certificate ends: nothing that it signs is good after that.
    ends: OffsetDateTime,
}

/// A signing request that is none, or asks for a key of another kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("it is no certificate signing request: {0}")]
    Malformed(String),
    #[error("its key is not ECDSA P-256")]
    Key,
    #[error("the certificate cannot be made: {0}")]
    Sign(String),
}

/// A request whose signature was checked: who sent it has the key.
pub(crate) struct Request {
    params: CertificateSigningRequestParams,
}

impl Request {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, RequestError> {
        let params = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        let params = params.map_err(|error| RequestError::Malformed(error.to_string()))?;
        if PublicKeyData::algorithm(&params.public_key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError::Key);
        }
        Ok(Self { params })
    }

    /// SHA-256 of the public key, in hexadecimal digits.
    pub(crate) fn key_sha256(&self) -> String {
        fingerprint(self.params.public_key.der_bytes())
    }
}

impl Issuing {
    /// Reads `ca.pem`, `issuer.pem` and `issuer-key.pem`, as [`super::Authority::create`] wrote them.
    ///
    /// # Errors
    /// [`AuthorityError`] names the file at fault.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let [root, cert, key] = [CA_CERT, ISSUER_CERT, ISSUER_KEY].map(|name| dir.join(name));
        let (root_pem, issuer_pem, key_pem) = (read(&root)?, read(&cert)?, read(&key)?);
        let der = |path: &Path, pem: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| content(path, &error))
        };
        let root_der = der(&root, &root_pem)?;
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| content(&key, &error))?;
        let issuer_der = der(&cert, &issuer_pem)?;
        let (_, parsed) = X509Certificate::from_der(&issuer_der).map_err(|error| content(&cert, &error))?;
        let ends = parsed.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_der(&issuer_der, pair);
        let issuer = issuer.map_err(|error| content(&cert, &error))?;
        let (root_sha256, dir) = (Sha256::digest(&root_der).into(), dir.to_owned());
        Ok(Self { issuer, issuer_pem, root_sha256, root_pem, dir, ends })
    }

    /// What stands on the disk now in the place of this one, if it is another.
    pub(crate) fn successor(&self) -> Result<Option<Self>, AuthorityError> {
        let next = Self::open(&self.dir)?;
        Ok((next.issuer_pem != self.issuer_pem).then_some(next))
    }

    /// Its certificate, as PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.issuer_pem
    }

    /// When its certificate ends, in seconds since the Unix epoch.
    pub(crate) fn ends(&self) -> u64 {
        u64::try_from(self.ends.unix_timestamp()).unwrap_or(0)
    }

    /// When the root ends, in seconds since the Unix epoch.
    pub(crate) fn root_ends(&self) -> u64 {
        validity_of_pem(self.root_pem.as_bytes()).map_or(0, |(_, ends)| ends)
    }

    /// SHA-256 of the root's DER.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// The root, as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A site's certificate for the key of a request, valid two years or as long as the one that signed it, followed by that, as PEM. Of the request
    /// nothing else is taken.
    pub(crate) fn certify(
        &self,
        site: &ClientId,
        request: &Request,
        now: SystemTime,
    ) -> Result<String, RequestError> {
        let sign = |error: String| RequestError::Sign(error);
        let mut params =
            named(SITE_URI, site.as_str(), now, LEAF_DAYS).map_err(|error| sign(error.to_string()))?;
        // Its holder renews by its own end, and must not find that the one above has ended before.
        params.not_after = params.not_after.min(self.ends);
        let cert = leaf(params, ExtendedKeyUsagePurpose::ClientAuth)
            .signed_by(&request.params.public_key, &self.issuer)
            .map_err(|error| sign(error.to_string()))?;
        Ok(cert.pem() + &self.issuer_pem)
    }
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuing(..)")
    }
}
