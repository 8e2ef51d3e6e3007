//! Who a connection is: what the URI in its certificate says, and nothing else.
//!
//! The certificate has been verified against the federation's root before this is asked. It refuses a certificate that
//! carries no name of this federation, or more than one.

use protocol::ClientId;
use protocol::wire::{ALPN_CAPABLE, ENROL_ALPN};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a site's name follows in its certificate.
pub(crate) const SITE_URI: &str = "consortia:site:";
/// What an operator's name follows in its certificate.
pub(crate) const OPERATOR_URI: &str = "consortia:operator:";

/// Seconds by which a certificate begins before it is issued: clocks at the sites may be behind.
pub(crate) const BACKDATED: u64 = 3600;

/// The party behind a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A site, by the name in its certificate.
    Site {
        /// The name.
        name: ClientId,
        /// When the certificate was issued, in seconds since the Unix epoch.
        issued: u64,
    },
    /// An operator, by the name in the certificate.
    Operator(String),
}

impl Peer {
    /// The party that a verified certificate names; `None` when it names none or several.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
        if let Some(name) = uri.strip_prefix(SITE_URI) {
            let begins = u64::try_from(certificate.validity().not_before.timestamp()).ok()?;
            Some(Self::Site { name: ClientId::new(name).ok()?, issued: begins + BACKDATED })
        } else {
            let name = ClientId::new(uri.strip_prefix(OPERATOR_URI)?).ok()?;
            Some(Self::Operator(name.into()))
        }
    }

    /// The party at the other end of a connection.
    pub(crate) fn of_connection(connection: &quinn::Connection) -> Option<Self> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        Self::of(chain.first()?)
    }
}

/// Whether the other end came to enrol.
pub(crate) fn is_enrolment(connection: &quinn::Connection) -> bool {
    speaks(connection, ENROL_ALPN)
}

/// Whether the other end says what it knows.
pub(crate) fn is_capable(connection: &quinn::Connection) -> bool {
    speaks(connection, ALPN_CAPABLE)
}

fn speaks(connection: &quinn::Connection, alpn: &[u8]) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == alpn)
}

/// A certificate file that names no site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file holds no certificate that names a site; ask the operator for an invite")]
pub struct NotASite;

/// The name in a site's certificate, in PEM: the one by which the server will know it. Nothing is verified.
///
/// # Errors
/// [`NotASite`] when there is no certificate, or it is an operator's or a server's.
pub fn site_of_pem(pem: &[u8]) -> Result<ClientId, NotASite> {
    let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| NotASite)?;
    match Peer::of(&certificate) {
        Some(Peer::Site { name, .. }) => Ok(name),
        Some(Peer::Operator(_)) | None => Err(NotASite),
    }
}

/// The SHA-256 of a certificate in PEM, as an invite names the federation's root.
///
/// # Errors
/// [`NotASite`] when there is no certificate.
pub fn root_sha256_of_pem(pem: &[u8]) -> Result<[u8; 32], NotASite> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|_| NotASite)?;
    Ok(Sha256::digest(&der).into())
}

/// From when to when a certificate in PEM is good, in seconds since the Unix epoch. Nothing is verified.
///
/// # Errors
/// [`NotASite`] when there is no certificate.
pub fn validity_of_pem(pem: &[u8]) -> Result<(u64, u64), NotASite> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|_| NotASite)?;
    validity_of_der(&der)
}

/// [`validity_of_pem`], of a certificate as it comes over the wire.
///
/// # Errors
/// [`NotASite`] when it is no certificate.
pub fn validity_of_der(der: &[u8]) -> Result<(u64, u64), NotASite> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotASite)?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Ok((seconds(validity.not_before), seconds(validity.not_after)))
}
