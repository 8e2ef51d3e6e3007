//! The token of the admin port: 128 bits of chance in a file that its owner alone may read.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::net::store::private;

/// Digits of a token.
const DIGITS: usize = 32;

/// What a request to the admin port must carry. It has no `Display`, and its `Debug` says nothing.
#[derive(Clone)]
pub struct AdminToken(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{}: this is no admin token (32 hexadecimal digits); remove the file, and the next start makes a new one", .0.display())]
    Content(PathBuf),
    /// The operating system gave no entropy.
    #[error("the operating system gave no entropy for an admin token")]
    Entropy,
}

impl AdminToken {
    /// The token in the file at `path`.
    ///
    /// # Errors
    /// [`TokenError`] names the file.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::File { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let digits = text.trim();
        if digits.len() != DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Content(path.to_owned()));
        }
        warn_of_readers(path);
        Ok(Self(digits.to_owned()))
    }

    /// The token in the file at `path`, which is made when it is missing.
    ///
    /// # Errors
    /// [`TokenError`] names the file.
    pub fn read_or_make(path: &Path) -> Result<Self, TokenError> {
        if path.exists() {
            return Self::read(path);
        }
        let mut chance = [0; DIGITS / 2];
        aws_lc_rs::rand::fill(&mut chance).map_err(|_| TokenError::Entropy)?;
        let mut digits = String::with_capacity(DIGITS);
        for byte in chance {
            write!(digits, "{byte:02x}").expect("a String takes everything");
        }
        let mut options = private::options();
        options.create_new(true).write(true);
        let failed = |source| TokenError::File { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            private::folder(folder).map_err(failed)?;
        }
        let written = options.open(path).and_then(|mut file| {
            file.write_all(format!("{digits}\n").as_bytes())?;
            file.sync_all()
        });
        written.map_err(failed)?;
        Ok(Self(digits))
    }

    /// Its digits, for whoever hands it on. Whoever sees them is the operator.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `shown` is this token. The time it takes says nothing of where they differ.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        let (mine, theirs) = (Sha256::digest(self.0.as_bytes()), Sha256::digest(shown));
        mine.as_slice().ct_eq(theirs.as_slice()).into()
    }
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

#[cfg(unix)]
fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_or(0, |data| data.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!("{}: others than its owner can read this token; chmod 600 it", path.display());
    }
}

#[cfg(not(unix))]
fn warn_of_readers(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_readable_by_its_owner_alone_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator/admin.token");
        let token = AdminToken::read_or_make(&path).unwrap();
        assert!(AdminToken::read_or_make(&path).unwrap().is(token.reveal().as_bytes()));
        assert!(AdminToken::read(&path).unwrap().is(token.reveal().as_bytes()));
        assert!(!token.is(b"") && !token.is(&[b'0'; DIGITS]) && !token.is(&token.reveal().as_bytes()[1..]));
        assert!(!format!("{token:?}").contains(token.reveal()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_no_token_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        std::fs::write(&path, "secret").unwrap();
        let error = AdminToken::read(&path).unwrap_err().to_string();
        assert!(error.contains("admin.token") && !error.contains("secret"), "{error}");
    }
}
