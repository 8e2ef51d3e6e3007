//! A site's books beside each other: the ledger, the audit log that copies it, and the remembered ends of both.
//!
//! The order of writing is ledger, log, ends, each durable before the next. So an honest folder, whatever instant its program was killed
//! at, has a ledger that goes on from what the log knows, both go on from what the ends say, and the log lacks the newest records of the
//! ledger at most. Whatever is missing, shorter, or another file is found here, and named with what to do. Nothing is repaired.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use privacy::chain::{Chain, ChainError, DamagedLine, Digest, Link, LinkReader, ReadError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{AUDIT, BooksError, HEADS, LEDGER, failed};
use crate::audit::{AuditEvent, AuditRecord};
use crate::ledger::{LedgerHead, LedgerHistory, LedgerReading};

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

impl BookEnd {
    /// Reads a book line by line, gives each link to `each` and keeps none: a book has several kilobytes for each round that a site has
    /// taken part in.
    ///
    /// # Errors
    /// What `damaged` makes of a line that is no link, what `each` says, and [`BooksError::Io`].
    pub(super) fn read(
        path: PathBuf,
        damaged: impl FnOnce(DamagedLine) -> BooksError,
        mut each: impl FnMut(Link) -> Result<(), BooksError>,
    ) -> Result<Self, BooksError> {
        let file: Box<dyn Read> = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(io::empty()),
            opened => Box::new(opened.map_err(failed(&path))?),
        };
        let mut reader = LinkReader::new(io::BufReader::with_capacity(1 << 16, file));
        loop {
            match reader.next_link() {
                Ok(Some(link)) => each(link)?,
                Ok(None) => break,
                Err(ReadError::Damaged(line)) => return Err(damaged(line)),
                Err(ReadError::Io(source)) => return Err(BooksError::Io { path, source }),
                Err(other) => return Err(BooksError::Io { path, source: io::Error::other(other) }),
            }
        }
        Ok(Self { chain: reader.chain(), whole: reader.whole(), torn: reader.torn(), path })
    }

    fn head(&self) -> LedgerHead {
        self.chain.into()
    }
}

/// The books as they stand in a folder.
pub(super) struct Found {
    pub(super) ledger: BookEnd,
    pub(super) audit: BookEnd,
    /// What follows from the ledger. Its history holds the texts of the records that the log has not copied.
    pub(super) read: LedgerReading,
    pub(super) knowledge: Knowledge,
    heads: Result<Option<Heads>, String>,
    /// The head that the log had when it was as long as the remembered ends say.
    audit_head: Option<Digest>,
}

impl Found {
    /// Reads them. The one that is written last is read first, so that a program that works on them meanwhile does no harm.
    ///
    /// # Errors
    /// [`BooksError`] for one that cannot be read or is damaged.
    pub(super) fn read(state: &Path) -> Result<Self, BooksError> {
        let heads = read_heads(state)?;
        let remembered = heads.as_ref().ok().and_then(Option::as_ref).map_or(0, |heads| heads.audit.records);
        let mut audit_head = (remembered == 0).then(Digest::default);
        let (path, mut knowledge) = (state.join(AUDIT), Knowledge::default());
        let damaged = |fault| BooksError::Audit { path: path.clone(), fault };
        let audit = BookEnd::read(path.clone(), damaged, |link| {
            if link.sequence + 1 == remembered {
                audit_head = Some(link.hash);
            }
            let wrong = |fault| BooksError::AuditRecord { path: path.clone(), fault };
            knowledge.learn(&link).map(|_| ()).map_err(wrong)
        })?;

        let (path, mut read) = (state.join(LEDGER), LedgerReading::default());
        let wrong = |fault| BooksError::Ledger { path: path.clone(), fault };
        let ledger = BookEnd::read(
            path.clone(),
            |fault| wrong(fault.into()),
            |link| {
                if link.sequence == knowledge.covered {
                    read.history.hold_copies();
                }
                read.read_on(&link).map_err(wrong)
            },
        )?;
        Ok(Self { ledger, audit, read, knowledge, heads, audit_head })
    }

    /// Compares each with each. `at_rest` says that no program writes meanwhile.
    pub(super) fn compare(&self, at_rest: bool) -> Result<(), Mismatch> {
        self.compare_heads()?;
        let (found, known) = (self.ledger.head(), &self.knowledge);
        if let Some(head) = known.ledger {
            goes_on(&self.ledger, head, AUDIT, |records| self.read.history.head_at(records))?;
        } else if found.records < known.booked {
            return Err(short(&self.ledger, AUDIT, known.booked));
        }
        let behind = match known.ledger {
            // A log that says nothing of the ledger's head was written by an older release, or nothing is left of it.
            None if self.audit.chain.is_empty() => found.records,
            None => self.read.account.open_from(known.booked).saturating_sub(1),
            Some(head) => (found.records - head.records).saturating_sub(BEHIND_MAX),
        };
        if at_rest && behind > 0 {
            let records = self.audit.chain.len();
            return Err(Mismatch::Short {
                book: self.audit.path.clone(),
                found: records,
                witness: LEDGER,
                known: records + behind,
            });
        }
        Ok(())
    }

    fn compare_heads(&self) -> Result<(), Mismatch> {
        let book = self.audit.path.with_file_name(HEADS);
        let heads = self.heads.clone().map_err(|fault| Mismatch::Heads { book: book.clone(), fault })?;
        let Some(heads) = heads else {
            // They are written before the first booking.
            let is_due = self.knowledge.ledger.is_some_and(|head| head.records > 0);
            let fault = "the file is missing, though the audit log tells of bookings".to_owned();
            return if is_due { Err(Mismatch::Heads { book, fault }) } else { Ok(()) };
        };
        goes_on(&self.ledger, heads.ledger, HEADS, |records| self.read.history.head_at(records))?;
        goes_on(&self.audit, heads.audit, HEADS, |_| self.audit_head)
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
    has_line(LEDGER) || has_line(AUDIT) || !matches!(remembered(state), Ok(None))
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

/// Records of the ledger that a record of the log copies.
pub(super) struct Copies {
    /// The place of the first.
    pub(super) from: u64,
    pub(super) texts: Vec<Box<RawValue>>,
}

/// What the audit log knows of the ledger.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    /// Its head; `None` in a log of a release that did not write it down.
    pub(super) ledger: Option<LedgerHead>,
    /// Records that bookings name.
    booked: u64,
    /// Up to which place the log has a copy of every record.
    covered: u64,
    /// The ledger that a server remembered when it refused this one, and the updates that it has had since then.
    pub(super) refused: Option<(LedgerHead, u64)>,
    /// How long the ledger was when a server last let it in.
    pub(super) accepted: u64,
}

impl Knowledge {
    /// Takes the log's next record into account. Gives the records of the ledger that it copies: those that were copied before from the
    /// same place on are no longer the ledger's.
    ///
    /// # Errors
    /// [`ChainError::Record`] for a record that is not of this program.
    pub(super) fn learn(&mut self, link: &Link) -> Result<Option<Copies>, ChainError> {
        let record: AuditRecord = link.read()?;
        let copied = record.ledger.map(|copy| {
            let from = copy.records.saturating_sub(copy.new.len() as u64);
            self.ledger = Some(copy.head());
            if from <= self.covered {
                self.covered = from + copy.new.len() as u64;
            }
            Copies { from, texts: copy.new }
        });
        match record.event {
            AuditEvent::Allowed { booking: Some(booking), .. } => {
                self.booked = self.booked.max(booking.saturating_add(1));
            }
            AuditEvent::Connected { .. } => {
                self.accepted = self.ledger.map_or(0, |head| head.records);
                self.refused = None;
            }
            AuditEvent::LedgerRefused { known, answered, .. } => self.refused = Some((known, answered)),
            _ => {}
        }
        Ok(copied)
    }

    /// How many records it knows of.
    pub(super) fn records(&self) -> u64 {
        self.ledger.map_or(self.booked, |head| head.records)
    }

    /// The ledger's head as far as the log has copied it, where the ledger goes on from there.
    pub(super) fn copied_of(&self, history: &LedgerHistory) -> LedgerHead {
        let records = self.covered.min(history.head().records);
        LedgerHead { records, head: history.head_at(records).unwrap_or_default() }
    }
}
