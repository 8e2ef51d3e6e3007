//! Becoming a member: a key is made here, its public half goes to the server with the invite's token, a certificate comes back.
//!
//! The private key never leaves the folder it is made in. The server must prove that it belongs to the federation whose root
//! the invite names by its hash; that root is then kept as `ca.pem`. A try that broke off can be repeated: the key is kept,
//! and the server gives the same key the same certificate again. It refuses to touch a folder that holds an identity already.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::wire::{
    CodecError, ENROL_ALPN, ENROL_MAX, EnrolRejection, EnrolReply, EnrolRequest, FrameKind,
};
use protocol::{Invite, Token, spoken};
use quinn::{ConnectionError, TransportErrorCode};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::connection::{DialError, Link, SERVER_NAME, Transport, explain};
use super::dial::Tls;
use super::frames::{FrameError, read_frame, write_frame};
use super::identity::{Identity, IdentityError};

/// Why somebody with an invite is no member yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// There is an identity already.
    #[error("{} exists already: this folder has joined a federation; take another folder", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The key cannot be made or used.
    #[error("{}: the key cannot be used: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// The invite's time is over.
    #[error(
        "the invite has expired; ask the operator for a new one, or set this machine's clock if it is wrong"
    )]
    Expired,
    /// None of the invite's servers can be reached.
    #[error("{0}")]
    Unreachable(DialError),
    /// The connection was lost before the answer came.
    #[error("{0}; try again with the same invite: it is not used up by this")]
    Lost(String),
    /// The server's answer is not understood.
    #[error("{0}; install the same release on both sides")]
    Frame(#[from] FrameError),
    /// The server refuses.
    #[error("{0}")]
    Refused(EnrolRejection),
    /// An operator must approve first.
    #[error(
        "the operator has not approved this site yet: tell the operator by telephone that its key's phrase is \"{phrase}\", and \
         try again with the same invite"
    )]
    Waiting {
        /// What the operator sees of this request, too: three words made from the public key.
        phrase: String,
    },
    /// The server's answer does not fit the invite.
    #[error("the server's answer is not the invite's: {0}; tell the operator")]
    Answer(&'static str),
    /// What was written is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Joins the federation of `invite` (at `now`, in seconds since the Unix epoch): makes `folder` with `key.pem` (readable by its
/// owner alone), `cert.pem` and `ca.pem`. Its servers are tried in turn.
///
/// # Errors
/// [`EnrolError`]. Until the certificate has come, it may be called again, and must be after [`EnrolError::Waiting`].
pub async fn enrol(invite: &Invite, folder: &Path, software: &str, now: u64) -> Result<(), EnrolError> {
    let [cert_path, root_path] = ["cert.pem", "ca.pem"].map(|name| folder.join(name));
    if cert_path.exists() {
        return Err(EnrolError::Exists(cert_path));
    }
    if now > invite.expires {
        return Err(EnrolError::Expired);
    }
    let request = request(folder, Some(invite.token.clone()), software)?;
    let Some((chain, root)) = ask(invite, &request).await? else {
        return Err(EnrolError::Waiting { phrase: phrase(folder)? });
    };
    if root_sha256(&root)? != invite.root_sha256 {
        return Err(EnrolError::Answer("its root certificate is another one"));
    }
    match std::fs::read(&root_path) {
        Ok(kept) if kept == root.as_bytes() => {}
        Ok(_) => return Err(EnrolError::Exists(root_path)),
        Err(_) => write_new(&root_path, root.as_bytes(), 0o644)?,
    }
    write_new(&cert_path, chain.as_bytes(), 0o644)?;
    Identity::load(folder)?;
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<String, EnrolError> {
    std::fs::read_to_string(path).map_err(|source| EnrolError::File { path: path.to_owned(), source })
}

pub(super) fn root_sha256(pem: &str) -> Result<[u8; 32], EnrolError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|_| EnrolError::Answer("it has no root certificate"))?;
    Ok(Sha256::digest(&der).into())
}

/// A request for the key in `folder`, which is made if there is none.
pub(super) fn request(
    folder: &Path,
    token: Option<Token>,
    software: &str,
) -> Result<EnrolRequest, EnrolError> {
    let path = folder.join("key.pem");
    let key = own_key(folder, &path)?;
    let signed = CertificateParams::default().serialize_request(&key);
    let signed = signed.map_err(|error| EnrolError::Key { path, reason: error.to_string() })?;
    Ok(EnrolRequest { token, csr_der: signed.der().to_vec(), software: software.to_owned() })
}

/// The words for the key in `folder`.
fn phrase(folder: &Path) -> Result<String, EnrolError> {
    let key = own_key(folder, &folder.join("key.pem"))?;
    let digest = Sha256::digest(key.public_key_raw());
    Ok(spoken(digest[..8].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))))
}

/// The key of an earlier try, or a new one.
fn own_key(folder: &Path, path: &Path) -> Result<KeyPair, EnrolError> {
    let bad = |error: rcgen::Error| EnrolError::Key { path: path.to_owned(), reason: error.to_string() };
    if path.exists() {
        return KeyPair::from_pem(&read(path)?).map_err(bad);
    }
    let mut maker = DirBuilder::new();
    maker.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
    maker.create(folder).map_err(|source| EnrolError::File { path: folder.to_owned(), source })?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
    write_new(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// What the first server says that can be reached.
async fn ask(invite: &Invite, request: &EnrolRequest) -> Result<Option<(String, String)>, EnrolError> {
    let tls = tls(invite.root_sha256).map_err(|error| EnrolError::Lost(error.to_string()))?;
    let link = Link::open_any(&invite.servers, SERVER_NAME, Transport::Auto, &tls).await;
    let link = link.map_err(|error| match error {
        DialError::Nobody => EnrolError::Answer("it names no server"),
        other => unreachable(other),
    })?;
    let answer = exchange(&link, request).await;
    link.leave().await;
    answer
}

/// Why there is no connection. One that the server gave up, for others who waited for its place, is lost as one that was given up
/// later: it is worth another try.
pub(super) fn unreachable(error: DialError) -> EnrolError {
    match &error {
        DialError::Connection(lost @ ConnectionError::ApplicationClosed(_)) => {
            EnrolError::Lost(explain(lost))
        }
        DialError::Connection(ConnectionError::ConnectionClosed(close))
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            EnrolError::Lost("the server gave the connection up before it was open".to_owned())
        }
        _ => EnrolError::Unreachable(error),
    }
}

/// The chain and the root; none while an operator has to approve.
pub(super) async fn exchange(
    link: &Link,
    request: &EnrolRequest,
) -> Result<Option<(String, String)>, EnrolError> {
    let lost = |error: FrameError| match link.connection.close_reason() {
        Some(reason) => EnrolError::Lost(explain(&reason)),
        None => EnrolError::Frame(error),
    };
    let opened = link.connection.open_bi().await;
    let (mut send, mut recv) = opened.map_err(|error| EnrolError::Lost(explain(&error)))?;
    write_frame(&mut send, FrameKind::EnrolRequest, request).await.map_err(lost)?;
    let _ = send.finish();
    match read_frame(&mut recv, FrameKind::EnrolReply, ENROL_MAX).await.map_err(lost)? {
        Some(EnrolReply::Issued { chain_pem, root_pem }) => Ok(Some((chain_pem, root_pem))),
        Some(EnrolReply::Refused(refusal)) => Err(EnrolError::Refused(refusal)),
        Some(EnrolReply::Waiting) => Ok(None),
        None => Err(lost(FrameError::Codec(CodecError::Body("nothing came".to_owned())))),
    }
}

/// TLS to a server of the federation whose root has this hash, without a certificate of our own.
fn tls(root_sha256: [u8; 32]) -> Result<Tls, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Pinned { root_sha256, provider: Arc::clone(&provider) });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Tls::of(config)
}

/// Takes as root whatever certificate the server sends along that has the right hash, and leaves everything else to the usual
/// verifier.
#[derive(Debug)]
struct Pinned {
    root_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let is_root = |certificate: &&CertificateDer<'_>| Sha256::digest(certificate)[..] == self.root_sha256;
        let root = intermediates.iter().find(is_root).ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        let usual = usual.build().map_err(|error| TlsError::General(error.to_string()))?;
        usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Writes a file that was not there, through to the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), EnrolError> {
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
    written.map_err(|source| EnrolError::File { path: path.to_owned(), source })
}
