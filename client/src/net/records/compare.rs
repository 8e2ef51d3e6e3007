//! A site's books beside each other: the ledger, the audit log that copies it, and the remembered ends of both.
//!
//! The order of writing is ledger, log, ends, each durable before the next. So an honest folder, whatever instant its program was killed
//! at, has a ledger that goes on from what the log knows, both go on from what the ends say, and the log lacks the newest records of the
//! ledger at most. Whatever is missing, shorter, or another file is found here, and named with what to do. Nothing is repaired.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use privacy::chain::segments::{KnownHead, Segment, SegmentFault, Snapshot, files_of};
use privacy::chain::{Chain, ChainError, DamagedLine, Digest, Lines, Link, read_lines};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{AUDIT, BooksError, HEADS, LEDGER, failed};
use crate::audit::{AuditRecord, LogSummary};
use crate::ledger::{LedgerHead, LedgerHistory, SiteAccount};

/// Records by which the log may be behind the ledger: a booking, and a booking back.
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

/// A file of lines.
pub(super) struct Book {
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
    pub(super) lines: Lines,
}

impl Book {
    /// The file, and its lines or what is wrong with them.
    pub(super) fn read(path: PathBuf) -> Result<(Vec<u8>, Result<Lines, DamagedLine>), BooksError> {
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(failed(&path))?,
        };
        let lines = read_lines(&text);
        Ok((text, lines))
    }

    fn head(&self) -> LedgerHead {
        self.lines.chain.into()
    }
}

/// The books as they stand in a folder.
pub(super) struct Found {
    pub(super) ledger: Book,
    /// The files of the log.
    log: Snapshot,
    /// Its newest segment.
    pub(super) audit: Book,
    pub(super) account: SiteAccount,
    pub(super) history: LedgerHistory,
    pub(super) knowledge: Knowledge,
    heads: Result<Option<Heads>, String>,
}

impl Found {
    /// Reads them. The one that is written last is read first, so that a program that works on them meanwhile does no harm.
    ///
    /// # Errors
    /// [`BooksError`] for one that cannot be read or is damaged.
    pub(super) fn read(state: &Path) -> Result<Self, BooksError> {
        let heads = read_heads(state)?;
        let path = state.join(AUDIT);
        let mut log = Snapshot::of(&path)?;
        let lines = match log.newest() {
            Ok(Segment { lines, .. }) => lines,
            // That the end of the log is missing, the other books tell.
            Err(SegmentFault::NoCurrent { .. }) => Lines::default(),
            Err(fault) => return Err(fault.into()),
        };
        let known = Knowledge::of([&lines.links[..]]);
        let knowledge = known.map_err(|fault| BooksError::AuditRecord { path: path.clone(), fault })?;
        let audit = Book { path, text: std::mem::take(&mut log.text), lines };

        let path = state.join(LEDGER);
        let wrong = |fault| BooksError::Ledger { path: path.clone(), fault };
        let (text, lines) = Book::read(path.clone())?;
        let lines = lines.map_err(|fault| wrong(fault.into()))?;
        let account = SiteAccount::read(&text).map_err(wrong)?;
        let history = LedgerHistory::read(&text).map_err(wrong)?;
        Ok(Self { ledger: Book { path, text, lines }, log, audit, account, history, knowledge, heads })
    }

    /// Compares each with each. `at_rest` says that no program writes meanwhile.
    pub(super) fn compare(&self, at_rest: bool) -> Result<(), BooksError> {
        self.compare_heads()?;
        let (found, known) = (self.ledger.head(), &self.knowledge.said);
        if let Some(head) = known.ledger {
            goes_on(&self.ledger, head, AUDIT, |records| self.history.head_at(records))?;
        } else if found.records < known.booked {
            return Err(short(&self.ledger, AUDIT, known.booked).into());
        }
        let behind = match known.ledger {
            // A log that says nothing of the ledger's head was written by an older release, or nothing is left of it.
            None if self.audit.lines.links.is_empty() => found.records,
            None => self.account.open_from(known.booked).saturating_sub(1),
            Some(head) => (found.records - head.records).saturating_sub(BEHIND_MAX),
        };
        if at_rest && behind > 0 {
            let records = self.audit.lines.chain.len();
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

    fn compare_heads(&self) -> Result<(), BooksError> {
        let book = self.audit.path.with_file_name(HEADS);
        let heads = self.heads.clone().map_err(|fault| Mismatch::Heads { book: book.clone(), fault })?;
        let Some(heads) = heads else {
            // They are written before the first booking.
            let is_due = self.knowledge.said.ledger.is_some_and(|head| head.records > 0);
            let fault = "the file is missing, though the audit log tells of bookings".to_owned();
            return if is_due { Err(Mismatch::Heads { book, fault }.into()) } else { Ok(()) };
        };
        goes_on(&self.ledger, heads.ledger, HEADS, |records| self.history.head_at(records))?;
        let known = match self.log.head_at(&self.audit.lines, heads.audit.records)? {
            KnownHead::Is(head) => Some(head),
            KnownHead::Beyond => None,
            // In a segment that was moved away: the newest one goes on from it.
            KnownHead::Elsewhere => Some(heads.audit.head),
        };
        Ok(goes_on(&self.audit, heads.audit, HEADS, |_| known)?)
    }
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
    book: &Book,
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

fn short(book: &Book, witness: &'static str, known: u64) -> Mismatch {
    Mismatch::Short { book: book.path.clone(), found: book.lines.chain.len(), witness, known }
}

/// What the audit log knows of the ledger.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    pub(super) said: LogSummary,
    /// Copies of its records, by their places, as far as the segments have them that were read.
    pub(super) copies: BTreeMap<u64, Box<RawValue>>,
}

impl Knowledge {
    /// What these segments say together.
    ///
    /// # Errors
    /// [`ChainError::Record`] for a record that is not of this program.
    pub(super) fn of<'a>(segments: impl IntoIterator<Item = &'a [Link]>) -> Result<Self, ChainError> {
        let mut known = Self::default();
        for link in segments.into_iter().flatten() {
            known.learn(link.read()?);
        }
        Ok(known)
    }

    fn learn(&mut self, record: AuditRecord) {
        self.said.learn(&record);
        if let Some(copy) = record.ledger {
            let from = copy.records.saturating_sub(copy.new.len() as u64);
            // Where the ledger was put in order it may have become shorter.
            drop(self.copies.split_off(&from));
            self.copies.extend((from..).zip(copy.new));
        }
    }

    /// How many records it knows of.
    pub(super) fn records(&self) -> u64 {
        self.said.ledger.map_or(self.said.booked, |head| head.records)
    }

    /// The ledger's head as far as the log has copied it, where the ledger goes on from there.
    pub(super) fn copied_of(&self, history: &LedgerHistory) -> LedgerHead {
        let records = self.said.copied.min(history.head().records);
        LedgerHead { records, head: history.head_at(records).unwrap_or_default() }
    }
}
