//! A site's ledger and audit log as files in its state folder.
//!
//! A file that a crash left with half a line is cut back to its last whole line, and that is said. Any other damage is an
//! error and nothing is changed; and so is a book that is missing or shorter than what another book knows of it. One program at a time may
//! have a folder's books open: a lock file prevents two programs from writing one chain.

mod compare;
mod recovery;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use privacy::chain::segments::{SegmentBytes, SegmentFault, SegmentWriter};
use privacy::chain::{ChainError, ChainWriter, DamagedLine, Digest, Link};
use protocol::Time;

use crate::audit::{Audit, AuditEvent, AuditRecord, LogSummary};
use crate::ledger::{LedgerHead, LedgerHistory, LedgerReading, SiteAccount, SiteLedger, SiteLedgerError};

pub use compare::{Mismatch, has_books};
pub use recovery::{Recovery, RecoveryOrder, recover_books};

use compare::{BookEnd, Found};

const LEDGER: &str = "ledger.jsonl";
const AUDIT: &str = "audit.jsonl";
const HEADS: &str = "heads.json";

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
    #[error("{path}: {fault}; or run `consortia site recover`, which restores what the audit log knows")]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: SiteLedgerError,
    },
    /// The audit log.
    #[error(
        "{path}: {fault}; ask who changed it, and put it back, or run `consortia site recover`, which keeps the damaged file under another name"
    )]
    Audit {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: DamagedLine,
    },
    /// The files of the audit log are not one chain.
    #[error("{0} (docs/operations.md, Audit logs in segments)")]
    Segments(SegmentFault),
    /// Copies that a recovery needs are in closed segments that are not here.
    #[error(
        "{}: closed segments of this audit log are not here ({missing}), and with them copies of records that the ledger lacks; put them back from \
         their archive and run this again, or give --without-segments, which charges what only they hold", path.display()
    )]
    SegmentsAway {
        /// The log.
        path: PathBuf,
        /// Their numbers.
        missing: String,
    },
    /// A record of the audit log that this program does not write.
    #[error("{path}: {fault}")]
    AuditRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: ChainError,
    },
    /// The books do not fit together.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl From<SegmentFault> for BooksError {
    fn from(fault: SegmentFault) -> Self {
        match fault {
            SegmentFault::File { path, source } => Self::Io { path, source },
            SegmentFault::Damaged { path, fault } => Self::Audit { path, fault },
            other => Self::Segments(other),
        }
    }
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
/// of the authority's certificate, `policy` that of the policy's text; a file of the audit log is closed when it has more than `segment` bytes;
/// `clock` gives the time since the Unix epoch.
///
/// # Errors
/// [`BooksError`].
pub fn open_books(
    state: &Path,
    federation: Digest,
    policy: Digest,
    software: &str,
    segment: SegmentBytes,
    clock: impl Fn() -> Time + Send + 'static,
) -> Result<Books, BooksError> {
    let lock = hold(state)?;
    let second = lock.try_clone().map_err(failed(&state.join(LOCK)))?;
    let found = Found::read(state)?;
    found.compare(true)?;
    let mut torn = Vec::new();
    let copied = found.copied();
    let Found { ledger: book, audit: log, read, .. } = found;
    cut(&book, &mut torn)?;

    let to = appended(&book.path, lock).map_err(failed(&book.path))?;
    let ledger = SiteLedger::resume(read, ChainWriter::new(book.chain, to), federation);
    let audit = continued_audit(&log.path, segment, second, clock, &mut torn)?;
    let folder = state.to_owned();
    let sealed = move |ledger, chain| compare::write_heads(&folder, ledger, chain);
    audit.watch(ledger.history().clone(), copied, Box::new(sealed));
    // The names of new files are durable only when their folder is.
    File::open(state).and_then(|folder| folder.sync_all()).map_err(failed(state))?;
    let started = AuditEvent::Started { software: software.to_owned(), policy, federation };
    audit.seal(started).map_err(|error| failed(state)(io::Error::other(error)))?;
    Ok(Books { ledger, audit, torn })
}

/// What [`check_books`] finds.
#[derive(Clone, Debug)]
pub struct BooksSummary {
    /// Where the ledger ends, and where it has ended.
    pub history: LedgerHistory,
    /// Where the audit log ends.
    pub audit: LedgerHead,
    /// What the ledger adds up to.
    pub account: SiteAccount,
}

/// Reads the books in `state` and compares them as a start would, and changes nothing. A program may be at work on them.
///
/// # Errors
/// [`BooksError`] where a start would fail.
pub fn check_books(state: &Path) -> Result<BooksSummary, BooksError> {
    let at_rest = !are_books_held(state).map_err(failed(&state.join(LOCK)))?;
    let found = Found::read(state)?;
    found.compare(at_rest)?;
    let LedgerReading { account, history } = found.read;
    Ok(BooksSummary { history, audit: found.audit.chain.into(), account })
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
    let audit = continued_audit(&state.join(AUDIT), SegmentBytes::default(), lock, clock, &mut torn)?;
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

/// The audit log, open where it ended. What was cut off its end is told.
fn continued_audit(
    path: &Path,
    segment: SegmentBytes,
    lock: File,
    clock: impl Fn() -> Time + Send + 'static,
    torn: &mut Vec<Torn>,
) -> Result<Audit, BooksError> {
    let mut said = Said::default();
    let (writer, segment) = SegmentWriter::open(path, segment, &mut |link| said.learn(link))?;
    if segment.torn > 0 {
        let bytes = usize::try_from(segment.torn).unwrap_or(usize::MAX);
        torn.push(Torn { path: path.to_owned(), bytes });
    }
    Ok(Audit::in_segments(writer, lock, said.all(path)?, clock))
}

/// What a segment says, which begins with what those before have said, while its records are read.
#[derive(Default)]
struct Said {
    summary: LogSummary,
    fault: Option<ChainError>,
}

impl Said {
    fn learn(&mut self, link: &Link) {
        if self.fault.is_some() {
            return;
        }
        match link.read() {
            Ok(record) => self.summary.learn(&record),
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// All of it, where each record of the log at `path` was understood.
    fn all(self, path: &Path) -> Result<LogSummary, BooksError> {
        match self.fault {
            None => Ok(self.summary),
            Some(fault) => Err(BooksError::AuditRecord { path: path.to_owned(), fault }),
        }
    }
}

/// The records of a segment.
fn records_in(path: &Path, links: &[Link]) -> impl Iterator<Item = Result<AuditRecord, BooksError>> {
    let wrong = |fault| BooksError::AuditRecord { path: path.to_owned(), fault };
    links.iter().map(move |link| link.read().map_err(wrong))
}

/// Cuts half a line off the end of a book's file.
fn cut(book: &BookEnd, torn: &mut Vec<Torn>) -> Result<(), BooksError> {
    let BookEnd { path, whole, .. } = book;
    if book.torn == 0 {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path).map_err(failed(path))?;
    file.set_len(*whole).and_then(|()| file.sync_all()).map_err(failed(path))?;
    torn.push(Torn { path: path.clone(), bytes: usize::try_from(book.torn).unwrap_or(usize::MAX) });
    Ok(())
}

/// How private files are opened: one that is made is its owner's alone, whatever the umask.
pub(super) fn private() -> OpenOptions {
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
mod tests;
