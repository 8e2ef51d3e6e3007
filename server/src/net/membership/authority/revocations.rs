//! The list of certificates that are void (RFC 5280, section 5), for proxies and auditors: this server itself asks its database at
//! every connection and needs none.
//!
//! It names what the issuing key has certified and an operator has revoked. What the root signed itself is not in it.

use std::time::SystemTime;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, Issuing};
use crate::net::store::{Database, Issued, Store, StoreError, Void};

/// For how long a list is good.
const GOOD_DAYS: i64 = 7;

/// A signed list.
pub struct RevocationList {
    /// As text.
    pub pem: String,
    /// As bytes.
    pub der: CertificateRevocationListDer<'static>,
    /// How many certificates are in it.
    pub entries: usize,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationListError {
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] AuthorityError),
}

impl std::fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RevocationList({} entries)", self.entries)
    }
}

impl RevocationList {
    /// The list as it is in a state, also while a server works there.
    ///
    /// # Errors
    /// [`RevocationListError`].
    pub async fn read(
        state: &std::path::Path,
        database: &Database,
        issuing: &Issuing,
        now: SystemTime,
    ) -> Result<Self, RevocationListError> {
        let store = Store::look_into(state, database).await?;
        let void = store.void(seconds(now)).await;
        store.close().await;
        Ok(issuing.revocation_list(&void?, now)?)
    }
}

impl Issuing {
    /// Signs the list of these certificates, good for a week.
    pub(crate) fn revocation_list(
        &self,
        void: &[Void],
        now: SystemTime,
    ) -> Result<RevocationList, AuthorityError> {
        let moment = |at: u64| OffsetDateTime::UNIX_EPOCH + Duration::seconds(at.cast_signed());
        let revoked = |one: &Void| RevokedCertParams {
            serial_number: SerialNumber::from(bytes(&one.serial)),
            revocation_time: moment(one.revoked),
            reason_code: None,
            invalidity_date: None,
        };
        let this_update = moment(seconds(now));
        let params = CertificateRevocationListParams {
            this_update,
            next_update: this_update + Duration::days(GOOD_DAYS),
            // It must grow from list to list, which the clock's seconds do.
            crl_number: SerialNumber::from(seconds(now)),
            issuing_distribution_point: None,
            revoked_certs: void.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer)?;
        Ok(RevocationList { pem: list.pem()?, der: list.der().clone(), entries: void.len() })
    }
}

/// What is remembered of the first certificate of a chain, which was just made for this moment.
pub(crate) fn issued(chain_pem: &str, issued: u64) -> Option<Issued> {
    let der = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let serial = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let expires = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(Issued { serial, issued, expires })
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..hex.len()).step_by(2).filter_map(digit).collect()
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
