//! The federation's certificate authority: one root that signs the server, the operators and an issuing key, which certifies
//! sites while a server runs.
//!
//! A site's name is the URI `consortia:site:<name>` in its certificate, an operator's `consortia:operator:<name>`; the
//! subject is for human eyes only. Keys are ECDSA P-256. It never signs what somebody else filled in, never makes
//! another authority, and never writes over a key.

mod issuing;
mod renewing;
mod revocations;
mod sealed;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use protocol::ClientId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::net::store::private;
use crate::net::transport::peer::{BACKDATED, OPERATOR_URI, SITE_URI};

pub use issuing::Issuing;
pub(crate) use issuing::Request;
pub(crate) use revocations::issued;
pub use revocations::{RevocationList, RevocationListError};
pub use sealed::Passphrase;

/// The name every server certificate carries, whatever host it runs on; clients ask for it.
pub const SERVER_NAME: &str = "server.consortia";
const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const ISSUER_CERT: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer-key.pem";
const ROOT_DAYS: i64 = 3652;
const ISSUER_DAYS: i64 = 1826;
const LEAF_DAYS: i64 = 730;
/// The federation's root, with its key. Whoever has it decides who is in the federation.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    fingerprint: String,
}

/// A certificate of the federation with its key and the root that signed it, all PEM.
pub struct Identity {
    /// The federation's root.
    pub ca_pem: String,
    /// The certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

/// Why a certificate cannot be made or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something is there already.
    #[error("{} exists already; move it away if it is really to be replaced", .0.display())]
    Exists(PathBuf),
    /// A file is not what it should be.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("`{0}` cannot stand in a certificate; use letters, digits, '.', '_' and '-'")]
    Name(String),
    /// A passphrase that can be guessed.
    #[error("a passphrase has at least {0} characters; four words that belong to nothing are better")]
    Short(usize),
    /// The key is encrypted.
    #[error("{}: the root's key is encrypted; give its passphrase", .0.display())]
    Sealed(PathBuf),
    /// Another passphrase.
    #[error("{}: the passphrase does not open the root's key", .0.display())]
    Passphrase(PathBuf),
    /// The key cannot be encrypted.
    #[error("the root's key cannot be encrypted: {0}")]
    Encrypt(String),
    /// The root's key is of another root.
    #[error("{}: this key did not sign {}", key.display(), root.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The root's certificate.
        root: PathBuf,
    },
    /// The cryptographic library refuses.
    #[error("the certificate cannot be made: {0}")]
    Sign(#[from] rcgen::Error),
}

impl Authority {
    /// Makes a root and an issuing key, and writes `ca.pem`, `ca-key.pem`, `issuer.pem` and `issuer-key.pem` into `dir`; keys are
    /// readable by the owner alone. Once the server and the operators have their certificates, `ca-key.pem` can be kept elsewhere.
    ///
    /// # Errors
    /// [`AuthorityError`] when one of the files exists or cannot be written.
    pub fn create(dir: &Path, now: SystemTime) -> Result<Self, AuthorityError> {
        Self::create_sealed(dir, None, now)
    }

    /// [`Authority::create`], with the root's key encrypted under a passphrase where there is one.
    ///
    /// # Errors
    /// [`AuthorityError`], also for a passphrase that is too short.
    pub fn create_sealed(
        dir: &Path,
        passphrase: Option<&Passphrase>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        make_dir(dir)?;
        for name in [CA_CERT, CA_KEY, ISSUER_CERT, ISSUER_KEY] {
            refuse_existing(&dir.join(name))?;
        }
        let mut params = params("consortia federation", now, ROOT_DAYS);
        make_ca(&mut params, 1);
        params.use_authority_key_identifier_extension = false;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let cert = params.self_signed(&key)?;
        write_new(&dir.join(CA_KEY), sealed::seal(&key, passphrase)?.as_bytes(), 0o600)?;
        write_new(&dir.join(CA_CERT), cert.pem().as_bytes(), 0o644)?;
        let fingerprint = fingerprint(cert.der());
        let authority = Self { issuer: Issuer::new(params, key), ca_pem: cert.pem(), fingerprint };
        authority.make_issuing(dir, now)?;
        Ok(authority)
    }

    fn make_issuing(&self, dir: &Path, now: SystemTime) -> Result<(), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let cert_pem = self.certify_issuing(&key, now)?;
        write_new(&dir.join(ISSUER_KEY), sealed::seal(&key, None)?.as_bytes(), 0o600)?;
        write_new(&dir.join(ISSUER_CERT), cert_pem.as_bytes(), 0o644)
    }

    fn certify_issuing(&self, key: &KeyPair, now: SystemTime) -> Result<String, AuthorityError> {
        let mut params = params("consortia federation, issuing", now, ISSUER_DAYS);
        make_ca(&mut params, 0);
        params.use_authority_key_identifier_extension = true;
        params.serial_number = serial_number();
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Reads the root that [`Authority::create`] wrote.
    ///
    /// # Errors
    /// [`AuthorityError`] names the file at fault.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        Self::open_sealed(dir, &dir.join(CA_KEY), None)
    }

    /// [`Authority::open`], with the root's key in a file of its own, which a passphrase opens where it is encrypted.
    ///
    /// # Errors
    /// [`AuthorityError`], also for the key of another root.
    pub fn open_sealed(
        dir: &Path,
        key_path: &Path,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, AuthorityError> {
        let cert_path = dir.join(CA_CERT);
        let (ca_pem, key_pem) = (read(&cert_path)?, Zeroizing::new(read(key_path)?));
        let key = sealed::unseal(key_path, &key_pem, passphrase)?;
        let der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| content(&cert_path, &error))?;
        let (_, root) = X509Certificate::from_der(&der).map_err(|error| content(&cert_path, &error))?;
        if root.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(AuthorityError::Mismatch { key: key_path.to_owned(), root: cert_path });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| content(&cert_path, &error))?;
        Ok(Self { issuer, fingerprint: fingerprint(&der), ca_pem })
    }

    /// Whether a file holds a key that is encrypted.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn is_sealed(key_path: &Path) -> Result<bool, AuthorityError> {
        read(key_path).map(Zeroizing::new).map(|pem| sealed::is_sealed(&pem))
    }

    /// SHA-256 of the root certificate's DER, in hexadecimal: read it over the telephone.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The root certificate as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A certificate for the server, valid two years, for [`SERVER_NAME`], the loopback and these host names or
    /// addresses.
    ///
    /// # Errors
    /// [`AuthorityError::Name`] for a name that is neither.
    pub fn issue_server(&self, names: &[String], now: SystemTime) -> Result<Identity, AuthorityError> {
        let mut params = params(SERVER_NAME, now, LEAF_DAYS);
        let own = [SERVER_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for name in own.iter().chain(names) {
            let entry = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host(name)?),
            };
            if !params.subject_alt_names.contains(&entry) {
                params.subject_alt_names.push(entry);
            }
        }
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a site, valid two years.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`] when the library refuses.
    pub fn issue_site(&self, site: &ClientId, now: SystemTime) -> Result<Identity, AuthorityError> {
        self.issue_named(SITE_URI, site.as_str(), now)
    }

    /// A certificate for an operator, valid two years. Names follow the rules of site names.
    ///
    /// # Errors
    /// [`AuthorityError::Name`] for any other name.
    pub fn issue_operator(&self, name: &str, now: SystemTime) -> Result<Identity, AuthorityError> {
        let name = ClientId::new(name).map_err(|_| AuthorityError::Name(name.into()))?;
        self.issue_named(OPERATOR_URI, name.as_str(), now)
    }

    fn issue_named(&self, prefix: &str, name: &str, now: SystemTime) -> Result<Identity, AuthorityError> {
        self.sign(named(prefix, name, now, LEAF_DAYS)?, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let cert = leaf(params, usage).signed_by(&key, &self.issuer)?;
        Ok(Identity { ca_pem: self.ca_pem.clone(), cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint)
    }
}

impl Identity {
    /// Writes `ca.pem`, `cert.pem` and `key.pem` (readable by the owner alone) into `dir`, making it if need be.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] when one of them is there already: nothing is written then.
    pub fn write_identity(&self, dir: &Path) -> Result<(), AuthorityError> {
        make_dir(dir)?;
        let files = [
            ("key.pem", &self.key_pem, 0o600),
            ("cert.pem", &self.cert_pem, 0o644),
            (CA_CERT, &self.ca_pem, 0o644),
        ];
        for (name, ..) in files {
            refuse_existing(&dir.join(name))?;
        }
        files.into_iter().try_for_each(|(name, text, mode)| write_new(&dir.join(name), text.as_bytes(), mode))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

fn params(name: &str, now: SystemTime, days: i64) -> CertificateParams {
    let now = OffsetDateTime::from(now);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - Duration::seconds(BACKDATED as i64);
    params.not_after = now + Duration::days(days);
    params
}

fn make_ca(params: &mut CertificateParams, below: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

/// A certificate with a name of the federation.
fn named(prefix: &str, name: &str, now: SystemTime, days: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(name, now, days);
    let uri = format!("{prefix}{name}");
    let uri = uri.as_str().try_into().map_err(|_| AuthorityError::Name(uri.clone()))?;
    params.subject_alt_names.push(SanType::URI(uri));
    Ok(params)
}

/// A certificate that makes no others.
fn leaf(mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    params.serial_number = serial_number();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A number that no other certificate has. By default it follows from the key, and a key that is certified twice would have two
/// certificates of one number.
fn serial_number() -> Option<SerialNumber> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).ok()?;
    // A positive number without leading zeros is the same in every spelling.
    serial[0] = serial[0] & 0x7f | 0x40;
    Some(SerialNumber::from(serial.to_vec()))
}

fn content(path: &Path, error: &dyn std::fmt::Display) -> AuthorityError {
    AuthorityError::Content { path: path.to_owned(), message: error.to_string() }
}

/// A DNS name as a certificate holds it.
fn host(name: &str) -> Result<rcgen::string::Ia5String, AuthorityError> {
    let bad = || AuthorityError::Name(name.chars().take(80).collect());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let label = |label: &str| {
        let hyphen = label.starts_with('-') || label.ends_with('-');
        !label.is_empty() && label.len() <= 63 && !hyphen && label.bytes().all(allowed)
    };
    // A dot at the end says that the name is complete.
    if name.len() > 253 || !name.strip_suffix('.').unwrap_or(name).split('.').all(label) {
        return Err(bad());
    }
    name.try_into().map_err(|_| bad())
}

fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

fn make_dir(dir: &Path) -> Result<(), AuthorityError> {
    let made = private::folder(dir);
    made.map_err(|source| AuthorityError::File { path: dir.to_owned(), source })
}

fn refuse_existing(path: &Path) -> Result<(), AuthorityError> {
    if path.exists() { Err(AuthorityError::Exists(path.to_owned())) } else { Ok(()) }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => AuthorityError::Exists(path.to_owned()),
        _ => AuthorityError::File { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests;
