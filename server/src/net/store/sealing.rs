//! Bytes that are encrypted until a row of the database gives their key: AES-256-GCM, with a fresh key for each file.

use std::fmt::Write as _;
use std::io;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const KEY: usize = 32;
/// Bytes by which a sealed block is longer.
pub(super) const TAG: usize = 16;

/// The key of one file. It seals each of its blocks once, so that their numbers are nonces.
pub(super) struct SealingKey(LessSafeKey);

impl SealingKey {
    /// A fresh key, and how it is written down.
    pub(super) fn fresh() -> io::Result<(Self, String)> {
        let mut key = [0; KEY];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("the system has no entropy"))?;
        let sealing = UnboundKey::new(&AES_256_GCM, &key);
        let sealing = sealing.map_err(|_| io::Error::other("the system refuses AES-256-GCM"))?;
        Ok((Self(LessSafeKey::new(sealing)), hexadecimal(&key)))
    }

    /// The key that was written down so.
    pub(super) fn read(key: &str) -> Option<Self> {
        let (pairs, rest) = key.as_bytes().as_chunks::<2>();
        let digit = |digit: u8| (digit as char).to_digit(16);
        let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
        let key: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty())?;
        UnboundKey::new(&AES_256_GCM, &key).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// Encrypts block `number` in place.
    pub(super) fn seal(&self, number: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        let sealed = self.0.seal_in_place_append_tag(nonce(number), Aad::empty(), bytes);
        sealed.map_err(|_| io::Error::other("the bytes cannot be encrypted"))
    }

    /// Decrypts block `number` in place; `None` with another key or number than it was sealed with, or when it was changed.
    pub(super) fn open(&self, number: u64, bytes: &mut Vec<u8>) -> Option<()> {
        let plain = self.0.open_in_place(nonce(number), Aad::empty(), bytes).ok()?.len();
        bytes.truncate(plain);
        Some(())
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A name that nobody can guess and that says nothing of what bears it.
pub(super) fn random_name() -> io::Result<String> {
    let mut name = [0; 16];
    aws_lc_rs::rand::fill(&mut name).map_err(|_| io::Error::other("the system has no entropy"))?;
    Ok(hexadecimal(&name))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
