//! The part of the authority that a running server may have: a key that certifies sites and nothing else, so that the root's
//! own can be kept where no network reaches.

use std::path::Path;
use std::time::SystemTime;

use protocol::ClientId;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};

use super::{
    AuthorityError, CA_CERT, ISSUER_CERT, ISSUER_KEY, LEAF_DAYS, SITE_URI, content, fingerprint, leaf, named,
    read,
};

/// Certifies sites.
pub struct Issuing {
    pub(super) issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    root_pem: String,
    root_sha256: [u8; 32],
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
        let issuer = Issuer::from_ca_cert_der(&der(&cert, &issuer_pem)?, pair);
        let issuer = issuer.map_err(|error| content(&cert, &error))?;
        Ok(Self { issuer, issuer_pem, root_sha256: Sha256::digest(&root_der).into(), root_pem })
    }

    /// SHA-256 of the root's DER.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// The root, as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A site's certificate for the key of a request, valid two years, followed by the one that signed it, as PEM. Of the request
    /// nothing else is taken.
    pub(crate) fn certify(
        &self,
        site: &ClientId,
        request: &Request,
        now: SystemTime,
    ) -> Result<String, RequestError> {
        let sign = |error: String| RequestError::Sign(error);
        let params =
            named(SITE_URI, site.as_str(), now, LEAF_DAYS).map_err(|error| sign(error.to_string()))?;
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
