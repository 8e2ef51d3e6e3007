//! A list of records that cannot be changed unseen: each is hashed together with the hash of the one before.
//!
//! Ledgers and audit logs are chains. The hash is `SHA-256(previous || sequence || record)`: 32 bytes, 8 bytes little
//! endian, and the record's JSON text byte for byte as it was written. Whoever has noted the hash of any link knows all
//! records up to it. What a chain cannot show is that its last links were cut off; compare its head with one noted
//! elsewhere for that.

mod lines;
pub mod segments;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub use lines::{
    ChainWriter, Damage, DamagedLine, LINE_MAX, Lines, LinkReader, ReadError, WriteError, read_lines,
};

/// 32 bytes of SHA-256; in text 64 digits of 0-9 a-f.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a SHA-256 of 64 digits 0-9 a-f");
        let mut bytes = [0; 32];
        // One text a digest: capitals would be another byte with the same meaning.
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// One record and its place in the chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its place, from 0.
    pub sequence: u64,
    /// The hash of the link before; zeros for the first.
    pub previous: Digest,
    /// What is recorded, as JSON.
    pub record: Box<RawValue>,
    /// The hash over all of the above.
    pub hash: Digest,
}

impl Link {
    /// What is recorded.
    ///
    /// # Errors
    /// [`ChainError::Record`] when it is not what was expected.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ChainError> {
        let wrong = |error: serde_json::Error| ChainError::Record {
            sequence: self.sequence,
            message: error.to_string(),
        };
        serde_json::from_str(self.record.get()).map_err(wrong)
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        let of = |link: &Self| (link.sequence, link.previous, link.hash);
        of(self) == of(other) && self.record.get() == other.record.get()
    }
}

/// Why links do not make a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A link is missing, doubled or out of order.
    #[error("record {found} stands where record {expected} is due: records were removed, added or exchanged")]
    Sequence {
        /// The place.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// A link does not name the one before.
    #[error("record {0} does not follow the record before it: one of them was changed")]
    Previous(u64),
    /// A link's hash is not the hash of what it says.
    #[error("record {0} was changed after it was written")]
    Hash(u64),
    /// A record that says something else than expected.
    #[error("record {sequence} is not understood: {message}; was it written by a newer release?")]
    Record {
        /// The place.
        sequence: u64,
        /// What is wrong.
        message: String,
    },
}

/// The end of a chain: where the next link goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    next: u64,
    head: Digest,
}

impl Chain {
    /// A chain without links.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks that all `links` follow one another from the first on.
    ///
    /// # Errors
    /// [`ChainError`] at the first that does not.
    pub fn of<'a>(links: impl IntoIterator<Item = &'a Link>) -> Result<Self, ChainError> {
        let mut chain = Self::new();
        links.into_iter().try_for_each(|link| chain.follow(link))?;
        Ok(chain)
    }

    /// Appends `record`.
    ///
    /// # Panics
    /// When the record has no JSON form (a map with keys that are no strings).
    pub fn append(&mut self, record: &impl Serialize) -> Link {
        let record = serde_json::value::to_raw_value(record).expect("records have a JSON form");
        let hash = self.hash_of(&record);
        let link = Link { sequence: self.next, previous: self.head, record, hash };
        (self.next, self.head) = (self.next + 1, hash);
        link
    }

    /// Checks that `link` is the next one and moves on to it.
    ///
    /// # Errors
    /// [`ChainError`]; the chain is where it was then.
    pub fn follow(&mut self, link: &Link) -> Result<(), ChainError> {
        if link.sequence != self.next {
            return Err(ChainError::Sequence { expected: self.next, found: link.sequence });
        }
        if link.previous != self.head {
            return Err(ChainError::Previous(link.sequence));
        }
        if link.hash != self.hash_of(&link.record) {
            return Err(ChainError::Hash(link.sequence));
        }
        (self.next, self.head) = (self.next + 1, link.hash);
        Ok(())
    }

    /// How many links there are.
    pub fn len(&self) -> u64 {
        self.next
    }

    /// Whether there is no link.
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// The hash of the last link; zeros without one.
    pub fn head(&self) -> Digest {
        self.head
    }

    fn hash_of(&self, record: &RawValue) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(self.head.0);
        hasher.update(self.next.to_le_bytes());
        hasher.update(record.get().as_bytes());
        Digest(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        let mut chain = Chain::new();
        ["one", "two", "three"].iter().map(|record| chain.append(record)).collect()
    }

    /// The links as lines of a file, after `change` has been at the text.
    fn reread(change: impl Fn(&str) -> String) -> Result<Chain, String> {
        let lines: Vec<String> = links().iter().map(|link| serde_json::to_string(link).unwrap()).collect();
        let read = |line: &str| serde_json::from_str(line).map_err(|error| error.to_string());
        let links: Vec<Link> = change(&lines.join("\n")).lines().map(read).collect::<Result<_, _>>()?;
        Chain::of(&links).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_written_follows_when_it_is_read() {
        let chain = reread(str::to_owned).unwrap();
        assert_eq!((chain.len(), chain.head()), (3, links()[2].hash));
        assert_eq!(links()[1].read::<String>().unwrap(), "two");
    }

    #[test]
    fn any_changed_byte_is_found() {
        let text =
            links().iter().map(|link| serde_json::to_string(link).unwrap()).collect::<Vec<_>>().join("\n");
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(reread(|_| changed.clone()).is_err(), "byte {at} of {changed}");
        }
    }

    #[test]
    fn a_link_that_is_removed_doubled_or_exchanged_is_found() {
        let good = links();
        let wrong = [vec![0, 2], vec![1, 2], vec![0, 0, 1], vec![1, 0, 2]];
        for order in wrong {
            assert!(Chain::of(order.iter().map(|at| &good[*at])).is_err(), "{order:?}");
        }
        assert_eq!(Chain::of(&good[..2]).unwrap().len(), 2);
    }
}
