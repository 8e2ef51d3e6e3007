//! A site's ledger and audit log as files in its state folder.
//!
//! A file that a crash left with half a line is cut back to its last whole line, and that is said. Any other damage is an
//! error and nothing is changed. One program at a time may have a folder's books open: a lock file sees to it that no two
//! write one chain.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use privacy::chain::{ChainWriter, DamagedLine, Digest, read_lines};
use protocol::Time;

use crate::audit::{Audit, AuditEvent};
use crate::ledger::{SiteLedger, SiteLedgerError};

/// What a guard needs from the disk.
#[derive(Debug)]
pub struct Books {
    /// `ledger.jsonl`.
    pub ledger: SiteLedger,
    /// `audit.jsonl`.
    pub audit: Audit,
    /// The files that were repaired.
    pub torn: Vec<Torn>,
}

/// Half a line that a crash left, and that was cut off: what it was to record had not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// Bytes that were cut off.
    pub bytes: usize,
}

/// Why a site's books cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BooksError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another program has them.
    #[error("{0}: another program has this site's books open; end it first")]
    Held(PathBuf),
    /// The ledger.
    #[error("{path}: {fault}")]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: SiteLedgerError,
    },
    /// The audit log.
    #[error("{path}: {fault}; move the file to a safe place and ask who changed it")]
    Audit {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: DamagedLine,
    },
}

/// A file whose flush is durable.
struct Synced {
    file: File,
    /// Held as long as the file is open.
    _lock: File,
}

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Opens the books in `state`, or begins them, and notes that the site's program has started. `federation` is the SHA-256
/// of the authority's certificate, `policy` that of the policy's text; `clock` gives the time since the Unix epoch.
///
/// # Errors
/// [`BooksError`].
pub fn open_books(
    state: &Path,
    federation: Digest,
    policy: Digest,
    software: &str,
    clock: impl Fn() -> Time + Send + 'static,
) -> Result<Books, BooksError> {
    let lock = hold(state)?;
    let second = lock.try_clone().map_err(failed(&state.join(LOCK)))?;
    let mut torn = Vec::new();

    let path = state.join("ledger.jsonl");
    let (text, lines) = whole_lines(&path, SiteLedgerError::from, &mut torn)
        .map_err(|error| error.into_error(&path, |path, fault| BooksError::Ledger { path, fault }))?;
    let to = appended(&path, lock).map_err(failed(&path))?;
    let ledger = SiteLedger::open(&text[..lines], to, federation)
        .map_err(|fault| BooksError::Ledger { path: path.clone(), fault })?;

    let audit = continued_audit(state, second, clock, &mut torn)?;
    let started = AuditEvent::Started { software: software.to_owned(), policy, federation };
    audit.seal(started).map_err(|error| failed(state)(io::Error::other(error)))?;
    // The names of new files are durable only when their folder is.
    File::open(state).and_then(|folder| folder.sync_all()).map_err(failed(state))?;
    Ok(Books { ledger, audit, torn })
}

/// Opens the audit log alone, for what a site's people do while its program rests.
///
/// # Errors
/// [`BooksError`]; [`BooksError::Held`] while the program runs.
pub fn open_audit(
    state: &Path,
    clock: impl Fn() -> Time + Send + 'static,
) -> Result<(Audit, Vec<Torn>), BooksError> {
    let (lock, mut torn) = (hold(state)?, Vec::new());
    let audit = continued_audit(state, lock, clock, &mut torn)?;
    Ok((audit, torn))
}

/// Whether a program has the books in `state` open.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn are_books_held(state: &Path) -> io::Result<bool> {
    match File::open(state.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
    }
}

/// The file that is locked while a program has the books open.
const LOCK: &str = "books.lock";

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BooksError + use<> {
    let path = path.to_owned();
    move |source| BooksError::Io { path, source }
}

fn hold(state: &Path) -> Result<File, BooksError> {
    let held = state.join(LOCK);
    let lock = private().create(true).truncate(false).write(true).open(&held).map_err(failed(&held))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BooksError::Held(held)),
        Err(TryLockError::Error(source)) => Err(BooksError::Io { path: held, source }),
    }
}

fn continued_audit(
    state: &Path,
    lock: File,
    clock: impl Fn() -> Time + Send + 'static,
    torn: &mut Vec<Torn>,
) -> Result<Audit, BooksError> {
    let path = state.join("audit.jsonl");
    let (text, lines) = whole_lines(&path, |fault| fault, torn)
        .map_err(|error| error.into_error(&path, |path, fault| BooksError::Audit { path, fault }))?;
    let chain =
        read_lines(&text[..lines]).map_err(|fault| BooksError::Audit { path: path.clone(), fault })?.chain;
    let to = appended(&path, lock).map_err(failed(&path))?;
    Ok(Audit::new(ChainWriter::new(chain, to), clock))
}

/// A file that could not be read, or its content.
enum Unread<T> {
    Io(io::Error),
    Fault(T),
}

impl<T> Unread<T> {
    fn into_error(self, path: &Path, fault: impl FnOnce(PathBuf, T) -> BooksError) -> BooksError {
        match self {
            Self::Io(source) => BooksError::Io { path: path.to_owned(), source },
            Self::Fault(found) => fault(path.to_owned(), found),
        }
    }
}

/// The text of a chain's file and how much of it is whole lines; the file is cut there.
fn whole_lines<T>(
    path: &Path,
    fault: impl FnOnce(DamagedLine) -> T,
    torn: &mut Vec<Torn>,
) -> Result<(Vec<u8>, usize), Unread<T>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.map_err(Unread::Io)?,
    };
    let lines = read_lines(&text).map_err(|damaged| Unread::Fault(fault(damaged)))?;
    if lines.torn > 0 {
        let file = OpenOptions::new().write(true).open(path).map_err(Unread::Io)?;
        file.set_len(lines.whole as u64).and_then(|()| file.sync_all()).map_err(Unread::Io)?;
        torn.push(Torn { path: path.to_owned(), bytes: lines.torn });
    }
    Ok((text, lines.whole))
}

/// How books are opened: one that is made is its owner's alone, whatever the umask.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn appended(path: &Path, lock: File) -> io::Result<Box<dyn Write + Send>> {
    let file = private().create(true).append(true).open(path)?;
    Ok(Box::new(Synced { file, _lock: lock }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::participant::tests::train;

    fn open(state: &Path) -> Result<Books, BooksError> {
        let digest = Digest::of(b"federation");
        open_books(state, digest, digest, "test", || Time::from_micros(5))
    }

    fn book(state: &Path) {
        let mut books = open(state).unwrap();
        let booking = books.ledger.reserve(&train(1, 3), None, false, None, Time::from_micros(9)).unwrap();
        assert!(booking.is_some());
    }

    #[test]
    fn books_go_on_after_a_restart_and_are_held_by_one_program() {
        let state = tempfile::tempdir().unwrap();
        book(state.path());
        let books = open(state.path()).unwrap();
        assert_eq!((books.ledger.account().history().0.len(), books.torn.len()), (1, 0));
        assert!(matches!(open(state.path()), Err(BooksError::Held(_))));
        assert!(are_books_held(state.path()).unwrap());
        assert!(matches!(open_audit(state.path(), || Time::ZERO), Err(BooksError::Held(_))));
        drop(books);
        assert!(!are_books_held(state.path()).unwrap());
        let audit = std::fs::read(state.path().join("audit.jsonl")).unwrap();
        assert_eq!(read_lines(&audit).unwrap().links.len(), 2);
    }

    #[test]
    fn half_a_line_is_cut_off_and_said_and_any_other_damage_is_an_error() {
        for name in ["ledger.jsonl", "audit.jsonl"] {
            let state = tempfile::tempdir().unwrap();
            book(state.path());
            book(state.path());
            let path = state.path().join(name);
            let text = std::fs::read(&path).unwrap();
            std::fs::write(&path, [&text[..], &text[..40]].concat()).unwrap();
            let books = open(state.path()).unwrap();
            assert_eq!(books.torn, [Torn { path: path.clone(), bytes: 40 }]);
            drop(books);
            assert!(std::fs::read(&path).unwrap().starts_with(&text));
            let mut damaged = text.clone();
            damaged[200] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let said = open(state.path()).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("line 1"), "{said}");
            assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing was changed");
        }
    }
}
