//! Invites: one line of text that makes a site of somebody who has none of a federation's certificates yet.
//!
//! An invite names the servers, the federation's root by its SHA-256, and a token that is good once. Whoever holds it can become
//! the site it names, until that has happened or the invite expires; it cannot be read off any of the servers' disks, which
//! know its token's hash alone. An invite that was exchanged on its way shows in its [`Invite::phrase`].

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::ClientId;
use crate::wire::{CodecError, FRAME_HEAD, FrameHead, FrameKind, SMALL_MAX, decode, encode};

/// What every invite begins with, so that people know what they are looking at.
const PREFIX: &str = "consortia-invite-";
/// Bytes of the checksum at the end: letters that were lost in pasting are found before anybody is asked.
const CHECK: usize = 4;
/// Servers that an invite names at most.
const SERVERS_MAX: usize = 16;

/// 128 bits of chance that are good once. Never printed; wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token([u8; 16]);

impl Token {
    /// Wraps bytes of the operating system's.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// What a server remembers of it, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// See the module. Its text is written by [`Invite::to_text`] alone, since whoever sees it can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Who its holder becomes.
    pub site: ClientId,
    /// The federation's servers, `host:port`, to be tried in this order.
    pub servers: Vec<String>,
    /// SHA-256 of the DER of the federation's root certificate.
    pub root_sha256: [u8; 32],
    /// What makes it an invite.
    pub token: Token,
    /// Seconds since the Unix epoch after which it is worth nothing.
    pub expires: u64,
}

/// Text that is no invite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// It begins otherwise.
    #[error(
        "this is no invite: invites begin with `consortia-invite-`; paste the whole line that the operator sent"
    )]
    Prefix,
    /// Letters are missing, exchanged or added.
    #[error("the invite was damaged on its way; paste the whole line that the operator sent")]
    Damaged,
    /// It was made by another release.
    #[error("the invite was made by another release: {0}")]
    Foreign(#[from] CodecError),
    /// It names no server, or too many.
    #[error("the invite names {0} servers; it must be 1 to {SERVERS_MAX}")]
    Servers(usize),
}

impl Invite {
    /// The line to be handed over.
    pub fn to_text(&self) -> String {
        let mut bytes = encode(FrameKind::Invite, self);
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check[..CHECK]);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Three made-up words that can be spoken, to be compared by telephone: 54 bits of the invite's hash. Who puts another
    /// federation's invite in the place of this one cannot choose them.
    pub fn phrase(&self) -> String {
        let digest = Sha256::digest(encode(FrameKind::Invite, self));
        spoken(digest[..8].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    /// Reads the line; spaces and line breaks that a mail program has put into it are ignored.
    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text: String = text.split_whitespace().collect();
        let body = text.strip_prefix(PREFIX).ok_or(InviteError::Prefix)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| InviteError::Damaged)?;
        let (frame, check) = bytes.split_last_chunk::<CHECK>().ok_or(InviteError::Damaged)?;
        if Sha256::digest(frame)[..CHECK] != check[..] {
            return Err(InviteError::Damaged);
        }
        let (head, body) = frame.split_first_chunk::<FRAME_HEAD>().ok_or(InviteError::Damaged)?;
        let head = FrameHead::parse(*head, FrameKind::Invite, SMALL_MAX)?;
        if head.len != body.len() {
            return Err(InviteError::Damaged);
        }
        let invite: Self = decode(body)?;
        match invite.servers.len() {
            1..=SERVERS_MAX => Ok(invite),
            count => Err(InviteError::Servers(count)),
        }
    }
}

/// Three made-up words that can be spoken, for the lowest 54 of these bits of a hash.
pub fn spoken(bits: u64) -> String {
    let word = |word: u32| -> String {
        (0..3).flat_map(|place| syllable(bits >> (6 * (3 * word + place)))).collect()
    };
    [word(0), word(1), word(2)].join(" ")
}

/// A consonant and a vowel for six bits.
fn syllable(bits: u64) -> [char; 2] {
    let letter = |letters: &str, bits: u64| letters.as_bytes()[bits as usize % letters.len()].into();
    [letter("bdfghjklmnprstvz", bits >> 2), letter("aiou", bits)]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            site: ClientId::new("north").unwrap(),
            servers: vec!["fed.example:4433".into(), "192.0.2.7:4433".into()],
            root_sha256: [7; 32],
            token: Token::new([1; 16]),
            expires: 1_800_000_000,
        }
    }

    #[test]
    fn an_invite_is_read_as_it_was_written_even_with_line_breaks_in_it() {
        let text = invite().to_text();
        assert!(text.starts_with("consortia-invite-") && text.len() < 250, "{text}");
        assert_eq!(text.parse(), Ok(invite()));
        let broken =
            text.as_bytes().chunks(40).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>();
        assert_eq!(broken.join("\r\n  ").parse(), Ok(invite()));
    }

    #[test]
    fn a_lost_or_exchanged_letter_is_noticed() {
        let text = invite().to_text();
        for at in PREFIX.len()..text.len() {
            let (before, after) = text.split_at(at);
            let exchanged = if after.starts_with('A') { "B" } else { "A" };
            assert_eq!(
                format!("{before}{exchanged}{}", &after[1..]).parse::<Invite>(),
                Err(InviteError::Damaged),
                "{at}"
            );
            assert_eq!(
                format!("{before}{}", &after[1..]).parse::<Invite>(),
                Err(InviteError::Damaged),
                "{at}"
            );
        }
        assert_eq!("hello".parse::<Invite>(), Err(InviteError::Prefix));
        assert_eq!(PREFIX.parse::<Invite>(), Err(InviteError::Damaged));
        let nobody = Invite { servers: vec![], ..invite() };
        assert_eq!(nobody.to_text().parse::<Invite>(), Err(InviteError::Servers(0)));
    }

    #[test]
    fn the_phrase_can_be_spoken_and_is_another_for_every_invite() {
        let phrase = invite().phrase();
        assert_eq!(phrase.split(' ').map(str::len).collect::<Vec<_>>(), [6, 6, 6], "{phrase}");
        let others = [
            Invite { root_sha256: [8; 32], ..invite() },
            Invite { token: Token::new([2; 16]), ..invite() },
            Invite { servers: vec!["evil.example:4433".into()], ..invite() },
        ];
        assert!(others.iter().all(|other| other.phrase() != phrase));
    }

    #[test]
    fn nothing_that_is_printed_holds_the_token() {
        assert!(format!("{:?}", invite()).contains("Token(..)"));
        assert_eq!(invite().token.sha256().len(), 64);
    }
}
