//! The root's key at rest under a passphrase: PKCS#8 as RFC 5958 has it, PBES2 with scrypt and AES-256 in CBC mode, which OpenSSL
//! reads, too. What is decrypted is overwritten when it is dropped, and neither it nor a passphrase is ever printed.

use std::path::Path;

use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef};
use rcgen::KeyPair;
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use super::{AuthorityError, content};

/// What an encrypted key's PEM is called.
const LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// The fewest characters of a passphrase: whoever has the file may try as many as they can afford.
const CHARACTERS_MIN: usize = 12;

/// What a root's key is encrypted under.
#[derive(PartialEq, Eq)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// A passphrase without the line break behind it.
    pub fn new(text: String) -> Self {
        let text = Zeroizing::new(text);
        Self(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// The PEM of a key, encrypted where there is a passphrase.
pub(super) fn seal(
    key: &KeyPair,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, AuthorityError> {
    let Some(Passphrase(words)) = passphrase else { return Ok(Zeroizing::new(key.serialize_pem())) };
    if words.chars().count() < CHARACTERS_MIN {
        return Err(AuthorityError::Short(CHARACTERS_MIN));
    }
    let der = Zeroizing::new(key.serialize_der());
    let failed = |error: &dyn std::fmt::Display| AuthorityError::Encrypt(error.to_string());
    let plain = PrivateKeyInfoRef::try_from(&der[..]).map_err(|error| failed(&error))?;
    let sealed = plain.encrypt(words.as_bytes()).map_err(|error| failed(&error))?;
    sealed.to_pem(LABEL, LineEnding::LF).map_err(|error| failed(&error))
}

/// The key in a PEM file, which a passphrase opens where it is encrypted.
pub(super) fn unseal(
    path: &Path,
    pem: &str,
    passphrase: Option<&Passphrase>,
) -> Result<KeyPair, AuthorityError> {
    if !is_sealed(pem) {
        return KeyPair::from_pem(pem).map_err(|error| content(path, &error));
    }
    let Passphrase(words) = passphrase.ok_or_else(|| AuthorityError::Sealed(path.to_owned()))?;
    let (_, document) = pkcs8::SecretDocument::from_pem(pem).map_err(|error| content(path, &error))?;
    let sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes());
    let sealed = sealed.map_err(|error| content(path, &error))?;
    let opened = sealed.decrypt(words.as_bytes());
    let opened = opened.map_err(|_| AuthorityError::Passphrase(path.to_owned()))?;
    let der = PrivatePkcs8KeyDer::from(opened.as_bytes());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| content(path, &error))
}

pub(super) fn is_sealed(pem: &str) -> bool {
    pem.contains(LABEL)
}
