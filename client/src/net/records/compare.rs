//! A site's books beside each other: the ledger, the audit log that copies it, and the remembered ends of both.
//!
//! The order of writing is ledger, log, ends, each durable before the next. So an honest folder, whatever instant its program was killed
//! at, has a ledger that goes on from what the log knows, both go on from what the ends say, and the log lacks the newest records of the
//! ledger at most. Whatever is missing, shorter, or another file is found here, and named with what to do. Nothing is repaired.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use privacy::chain::segments::{HeadSought, KnownHead, SegmentExtent, SegmentFault, Snapshot, files_of};
use privacy::chain::{Chain, Digest, LinkReader, ReadError};
use serde::{Deserialize, Serialize};

use super::{AUDIT, BooksError, HEADS, LEDGER, Said, failed};
use crate::audit::LogSummary;
use crate::ledger::{LedgerHead, LedgerReading};

/// Records by which the log may be behind the ledger: a reservation, and a cancellation.
pub(super) const BEHIND_MAX: u64 = 2;
/// The version of the remembered ends.
const HEADS_VERSION: u32 = 1;

/// Two books that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Records are missing at a book's end.
    #[error(
        "{} has {found} records where {witness} knows of {known}: the file is missing, its end was cut off, or it is an older copy; \
         put the newest copy back, or run `consortia site recover`, which restores what the other books know and charges what is lost",
        book.display()
    )]
    Short {
        /// The book.
        book: PathBuf,
        /// Its records.
        found: u64,
        /// Which book knows of more.
        witness: &'static str,
        /// Of how many.
        known: u64,
    },
    /// A book that does not go on from what another one knows.
    #[error(
        "record {record} of {} is not the one that {witness} knows: the file was exchanged for another one; put the right one back, or run \
         `consortia site recover`, which restores what the other books know and charges what is lost",
        book.display()
    )]
    Other {
        /// The book.
        book: PathBuf,
        /// The place of the record, from 1.
        record: u64,
        /// Which book knows another one.
        witness: &'static str,
    },
    /// The remembered ends are gone.
    #[error(
        "{}: {fault}; put the file back, or run `consortia site recover`, which makes it anew from the other books",
        book.display()
    )]
    Heads {
        /// The file.
        book: PathBuf,
        /// What is wrong.
        fault: String,
    },
}

/// Where both books ended when they were last known to be durable.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heads {
    version: u32,
    ledger: LedgerHead,
    /// The same of the audit log.
    audit: LedgerHead,
}

/// Writes the ends, beside and renamed, so that a crash leaves the old or the new ones.
pub(super) fn write_heads(state: &Path, ledger: LedgerHead, audit: Chain) -> io::Result<()> {
    let heads = Heads { version: HEADS_VERSION, ledger, audit: audit.into() };
    let mut text = serde_json::to_vec(&heads)?;
    text.push(b'\n');
    write_whole(&state.join(HEADS), &text)
}

/// Puts a file with `text` in the place of `path`: a crash leaves the old one or the new one.
pub(super) fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Where a book's file ends.
#[derive(Clone, Debug)]
pub(super) struct BookEnd {
    pub(super) path: PathBuf,
    pub(super) chain: Chain,
    /// How many bytes its whole lines take.
    pub(super) whole: u64,
    /// The bytes of half a line behind them.
    pub(super) torn: u64,
}

/// The books as they stand in a folder.
pub(super) struct Found {
    pub(super) ledger: BookEnd,
    /// The newest segment of the log.
    pub(super) audit: BookEnd,
    /// What follows from the ledger. Its history holds the texts of the records that the log has not copied.
    pub(super) read: LedgerReading,
    /// What the log says.
    said: LogSummary,
    heads: Result<Option<Heads>, String>,
    /// The head that the log had when it was as long as the remembered ends say; `None` where it is shorter.
    audit_head: Option<Digest>,
}

impl Found {
    /// Reads them. The one that is written last is read first, so that a program that works on them meanwhile does no harm.
    ///
    /// # Errors
    /// [`BooksError`] for one that cannot be read or is damaged.
    pub(super) fn read(state: &Path) -> Result<Self, BooksError> {
        let heads = read_heads(state)?;
        let (audit, said, audit_head) =
            read_log(state.join(AUDIT), heads.as_ref().ok().and_then(Option::as_ref))?;

        let (ledger, read) = read_ledger(state.join(LEDGER), said.copied)?;
        Ok(Self { ledger, audit, read, said, heads, audit_head })
    }

    /// How much of the ledger the log has copied.
    pub(super) fn copied(&self) -> LedgerHead {
        let history = &self.read.history;
        let records = self.said.copied.min(history.head().records);
        LedgerHead { records, head: history.head_at(records).unwrap_or_default() }
    }

    /// Compares each with each. `at_rest` says that no program writes meanwhile.
    pub(super) fn compare(&self, at_rest: bool) -> Result<(), BooksError> {
        self.compare_heads()?;
        let (found, known) = (LedgerHead::from(self.ledger.chain), &self.said);
        if let Some(head) = known.ledger {
            goes_on(&self.ledger, head, AUDIT, |records| self.read.history.head_at(records))?;
        } else if found.records < known.reserved {
            return Err(short(&self.ledger, AUDIT, known.reserved).into());
        }
        let behind = match known.ledger {
            // A log that says nothing of the ledger's head was written by an older release, or nothing is left of it.
            None if self.audit.chain.is_empty() => found.records,
            None => self.read.account.open_from(known.reserved).saturating_sub(1),
            Some(head) => (found.records - head.records).saturating_sub(BEHIND_MAX),
        };
        if at_rest && behind > 0 {
            let records = self.audit.chain.len();
            return Err(Mismatch::Short {
                book: self.audit.path.clone(),
                found: records,
                witness: LEDGER,
                known: records + behind,
            }
            .into());
        }
        Ok(())
    }

    fn compare_heads(&self) -> Result<(), Mismatch> {
        let book = self.audit.path.with_file_name(HEADS);
        let heads = self.heads.clone().map_err(|fault| Mismatch::Heads { book: book.clone(), fault })?;
        let Some(heads) = heads else {
            // They are written before the first reservation.
            let is_due = self.said.ledger.is_some_and(|head| head.records > 0);
            let fault = "the file is missing, though the audit log tells of reservations".to_owned();
            return if is_due { Err(Mismatch::Heads { book, fault }) } else { Ok(()) };
        };
        goes_on(&self.ledger, heads.ledger, HEADS, |records| self.read.history.head_at(records))?;
        goes_on(&self.audit, heads.audit, HEADS, |_| self.audit_head)
    }
}

/// Reads the newest segment of the log at `path` and what it says. Of the log, the hash of the record at which it ended by `heads` is told,
/// as well; that may be in a segment before.
fn read_log(
    path: PathBuf,
    heads: Option<&Heads>,
) -> Result<(BookEnd, LogSummary, Option<Digest>), BooksError> {
    let log = Snapshot::of(&path)?;
    let mut sought = HeadSought::new(heads.map_or(0, |heads| heads.audit.records));
    let mut said = Said::default();
    let read = log.newest(&mut |link| {
        sought.see(link);
        said.learn(link);
    });
    let segment = match read {
        Ok(segment) => segment,
        // That the end of the log is missing, the other books tell.
        Err(SegmentFault::NoCurrent { .. }) => SegmentExtent::default(),
        Err(fault) => return Err(fault.into()),
    };
    let known = match heads.map(|_| log.head_at(&segment, &sought)).transpose()? {
        Some(KnownHead::Is(head)) => Some(head),
        // In a segment that was moved away: the newest one goes on from it.
        Some(KnownHead::Elsewhere) => heads.map(|heads| heads.audit.head),
        Some(KnownHead::Beyond) | None => None,
    };
    let said = said.all(&path)?;
    let SegmentExtent { end, whole, torn, .. } = segment;
    Ok((BookEnd { path, chain: end, whole, torn }, said, known))
}

/// Reads the ledger at `path` line by line and keeps no line: it has a record for each round that the site has taken part in, and is never
/// divided. The texts of the records from `copied` on are held for whoever copies them.
fn read_ledger(path: PathBuf, copied: u64) -> Result<(BookEnd, LedgerReading), BooksError> {
    let file: Box<dyn Read> = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(io::empty()),
        opened => Box::new(opened.map_err(failed(&path))?),
    };
    let (mut reader, mut read) =
        (LinkReader::new(io::BufReader::with_capacity(1 << 16, file)), LedgerReading::default());
    let wrong = |fault| BooksError::Ledger { path: path.clone(), fault };
    loop {
        match reader.next_link() {
            Ok(Some(link)) => {
                if link.sequence == copied {
                    read.history.hold_copies();
                }
                read.read_on(&link).map_err(wrong)?;
            }
            Ok(None) => break,
            Err(ReadError::Damaged(line)) => return Err(wrong(line.into())),
            Err(ReadError::Io(source)) => return Err(BooksError::Io { path, source }),
            Err(other) => return Err(BooksError::Io { path, source: io::Error::other(other) }),
        }
    }
    let (chain, whole, torn) = (reader.chain(), reader.whole(), reader.torn());
    Ok((BookEnd { path, chain, whole, torn }, read))
}

fn read_heads(state: &Path) -> Result<Result<Option<Heads>, String>, BooksError> {
    let path = state.join(HEADS);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        read => read.map_err(failed(&path))?,
    };
    Ok(match serde_json::from_slice::<Heads>(&text) {
        Ok(heads) if heads.version == HEADS_VERSION => Ok(Some(heads)),
        Ok(heads) => Err(format!("version {} is unknown, this code reads {HEADS_VERSION}", heads.version)),
        Err(error) => Err(format!("it was changed or cut ({error})")),
    })
}

/// Where the folder's ledger ended by what is remembered; `None` where that cannot be read, or names no record of the log, which has one
/// from the first start on.
pub(super) fn remembered(state: &Path) -> Result<Option<LedgerHead>, BooksError> {
    let heads = read_heads(state)?.ok().flatten();
    Ok(heads.filter(|heads| heads.audit.records > 0).map(|heads| heads.ledger))
}

/// Whether a book in `state` holds anything: a whole line of the ledger or of the audit log, or ends that name a record. Half a line is
/// what a crash leaves, or what is left of a file; it shows nothing of what was spent. A file that cannot be read counts, for whoever
/// opens it to say so.
pub fn has_books(state: &Path) -> bool {
    let has_line = |name: &str| match first_line(&state.join(name)) {
        Ok(line) => line.ends_with(b"\n"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    let log = state.join(AUDIT);
    let has_closed = files_of(&log).is_ok_and(|files| files.iter().any(|file| *file != log));
    has_line(LEDGER) || has_line(AUDIT) || has_closed || !matches!(remembered(state), Ok(None))
}

/// The first line of a file; without its end where it is torn.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    io::BufReader::new(File::open(path)?).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn goes_on(
    book: &BookEnd,
    known: LedgerHead,
    witness: &'static str,
    head_at: impl FnOnce(u64) -> Option<Digest>,
) -> Result<(), Mismatch> {
    match head_at(known.records) {
        None => Err(short(book, witness, known.records)),
        Some(head) if head != known.head => {
            Err(Mismatch::Other { book: book.path.clone(), record: known.records, witness })
        }
        Some(_) => Ok(()),
    }
}

fn short(book: &BookEnd, witness: &'static str, known: u64) -> Mismatch {
    Mismatch::Short { book: book.path.clone(), found: book.chain.len(), witness, known }
}
