//! Putting a site's books in order, when a person has decided to go on without what is missing.
//!
//! The audit log holds a copy of every record of the ledger: a ledger that is gone is made again from them, byte for byte. What no
//! copy is left of is charged, by the guess that costs most; nothing is ever forgotten in the site's favour. Files that are replaced stay in the
//! folder under another name. Killed at any instant, it leaves books that are in order or that are refused as before, and can be run again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use privacy::chain::segments::{ClosedSegment, Segment, SegmentBytes, SegmentWriter, Snapshot, read_segment};
use privacy::chain::{Chain, DamagedLine, Digest, Lines, Link, read_lines};
use privacy::ledger::Unit;
use protocol::Time;
use protocol::wire::LedgerClaim;
use serde_json::value::RawValue;

use super::compare::{self, Found};
use super::{AUDIT, BooksError, LEDGER, failed, hold, records_in};
use crate::audit::{Audit, AuditEvent, LogSummary, RefusedLedger};
use crate::ledger::{LedgerHead, LedgerHistory, Losses, SiteAccount, charges_in, lost_records};

/// What a recovery is told.
#[derive(Clone, Debug)]
pub struct RecoveryOrder {
    /// Who wants it, for the audit log.
    pub by: String,
    /// Whether to believe a server that remembers another ledger of this site, and book what it knows.
    pub believes_server: bool,
    /// At which delta the cost of a guess is compared.
    pub delta: f64,
    /// Whether books were kept in the folder of which nothing is left, as something outside of it says: an unknown loss is charged then.
    pub is_all_lost: bool,
    /// How many records are lost, as a person says, where no book is left that knows; `None` charges a loss without a bound then. Where
    /// a book knows, this plays no part.
    pub lost: Option<u64>,
    /// Whether to go on where copies that are needed are in closed segments of the audit log that are not here: what only they hold is charged.
    pub without_segments: bool,
}

/// What was done to the books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records that were put back into the ledger from copies of them.
    pub restored: u64,
    /// Records of which no copy is left; they are charged by the guess that costs most.
    pub lost: u64,
    /// Whether no book was left that knows how many records there were.
    pub is_uncounted: bool,
    /// Units for which nothing bounds what the lost records cost: no budget with a limit pays for them any more.
    pub unbounded: Vec<Unit>,
    /// Where the files are that were replaced.
    pub kept: Vec<PathBuf>,
}

/// Puts the books in `state` in order, and says what that cost; `None` when they are in order already.
///
/// # Errors
/// [`BooksError`] when the folder cannot be written, another program holds the books, or a record is of a newer release.
pub fn recover_books(
    state: &Path,
    order: &RecoveryOrder,
    clock: impl Fn() -> Time + Send + 'static,
) -> Result<Option<Recovery>, BooksError> {
    let lock = hold(state)?;
    let in_order = !order.is_all_lost && Found::read(state).is_ok_and(|found| found.compare(true).is_ok());
    let now = clock();
    let remains = Remains::read(state)?;
    if in_order && !remains.is_refused(order) {
        return Ok(None);
    }
    let ledger = remains.rebuild(order, now)?;
    let mut done = Recovery {
        restored: ledger.restored,
        lost: ledger.lost,
        is_uncounted: order.is_all_lost || !remains.is_length_known(),
        unbounded: ledger.unbounded,
        kept: Vec::new(),
    };
    // The ledger first: until the log follows, the two are still refused, and nothing is charged twice.
    replace(&remains.ledger_path, &remains.ledger_text, &ledger.text, now, &mut done.kept)?;
    let whole = remains.audit_text[..remains.audit.whole].to_vec();
    replace(&remains.audit_path, &remains.audit_text, &whole, now, &mut done.kept)?;

    let history = LedgerHistory::read_uncopied(&ledger.text, ledger.copied.records)
        .map_err(|fault| BooksError::Ledger { path: remains.ledger_path.clone(), fault })?;
    let writer = remains.writer()?;
    let audit = Audit::in_segments(writer, lock, remains.said, clock);
    let folder = state.to_owned();
    let sealed = move |ledger, chain| compare::write_heads(&folder, ledger, chain);
    audit.watch(history, ledger.copied, Box::new(sealed));
    let (restored, lost) = (done.restored, done.lost);
    audit
        .seal(AuditEvent::Recovered { by: order.by.clone(), restored, lost })
        .map_err(|error| failed(&remains.audit_path)(io::Error::other(error)))?;
    Ok(Some(done))
}

/// Puts `text` into `path` where `before` is something else, which is kept beside.
fn replace(
    path: &Path,
    before: &[u8],
    text: &[u8],
    now: Time,
    kept: &mut Vec<PathBuf>,
) -> Result<(), BooksError> {
    if before == text {
        return Ok(());
    }
    if !before.is_empty() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!("{stem}.replaced-{}.jsonl", now.as_micros()));
        compare::write_whole(&beside, before).map_err(failed(&beside))?;
        kept.push(beside);
    }
    compare::write_whole(path, text).map_err(failed(path))
}

/// The text of a book, and its lines or what is wrong with them.
fn read_book(path: &Path) -> Result<(Vec<u8>, Result<Lines, DamagedLine>), BooksError> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.map_err(failed(path))?,
    };
    let lines = read_lines(&text);
    Ok((text, lines))
}

/// What can be read of the books.
struct Remains {
    ledger_path: PathBuf,
    ledger_text: Vec<u8>,
    /// The ledger's records up to the first that is damaged.
    ledger: Lines,
    audit_path: PathBuf,
    /// Of the newest segment of the log.
    audit_text: Vec<u8>,
    audit: Lines,
    /// The closed segment before it, and where that ends.
    closed: Option<(ClosedSegment, Chain)>,
    /// Numbers of closed segments that are not here.
    missing: Vec<u64>,
    /// Whether a line of the log is damaged, so that what stood behind it is not known.
    is_audit_damaged: bool,
    /// What the log says, and its copies of the ledger's records, by their places, as far as the segments are here.
    said: LogSummary,
    copies: BTreeMap<u64, Box<RawValue>>,
    remembered: Option<LedgerHead>,
}

/// The ledger as it will be.
struct Rebuilt {
    text: Vec<u8>,
    /// What the audit log has of it.
    copied: LedgerHead,
    restored: u64,
    lost: u64,
    unbounded: Vec<Unit>,
}

impl Remains {
    fn read(state: &Path) -> Result<Self, BooksError> {
        let (ledger_path, audit_path) = (state.join(LEDGER), state.join(AUDIT));
        let (ledger_text, ledger) = read_book(&ledger_path)?;
        let ledger = ledger.unwrap_or_else(|damaged| before(&ledger_text, damaged.line));
        let mut log = Snapshot::of(&audit_path)?;
        log.settle()?;
        let log_text = log.text()?;
        let (newest, is_audit_damaged) = readable(&log_text);
        let number = (!newest.lines.links.is_empty()).then_some(newest.number);
        let missing = log.missing(number);
        let (mut said, mut copies, mut closed) = (LogSummary::default(), BTreeMap::new(), None);
        for one in log.closed {
            let text = std::fs::read(&one.path).map_err(failed(&one.path))?;
            let (segment, _) = readable(&text);
            learn(&one.path, &segment.lines.links, &mut said, &mut copies)?;
            closed = Some((one, segment.lines.chain));
        }
        let (audit, audit_text) = (newest.lines, log_text);
        learn(&audit_path, &audit.links, &mut said, &mut copies)?;
        let remembered = compare::remembered(state)?;
        Ok(Self {
            ledger_path,
            ledger_text,
            ledger,
            audit_path,
            audit_text,
            audit,
            closed,
            missing,
            is_audit_damaged,
            said,
            copies,
            remembered,
        })
    }

    /// The log as it goes on, once the whole lines alone are left of its newest segment.
    fn writer(&self) -> Result<SegmentWriter, BooksError> {
        let (path, segment) = (&self.audit_path, SegmentBytes::default());
        match &self.closed {
            // Nothing is left of the newest one: another is begun in its place.
            Some((closed, end)) if self.audit.links.is_empty() => {
                Ok(SegmentWriter::open_behind(path, segment, closed, *end)?)
            }
            _ => Ok(SegmentWriter::open(path, segment, &mut |_| ())?.0),
        }
    }

    /// Whether a book is left that knows how long the ledger was. It does not know itself: its end may have been cut off. The ends do, and a
    /// log that is whole; one that lacks more of the ledger than a crash explains was cut itself.
    fn is_length_known(&self) -> bool {
        let behind = self.ledger.chain.len().saturating_sub(self.logged().records);
        let is_log_whole = !self.is_audit_damaged && !self.audit.links.is_empty();
        self.remembered.is_some() || (is_log_whole && behind <= compare::BEHIND_MAX)
    }

    /// Whether the ledger says already that nothing bounds what was lost, for anybody.
    fn is_unbounded(&self) -> bool {
        let account = SiteAccount::read(&self.ledger_text[..self.ledger.whole]);
        account
            .is_ok_and(|account| [Unit::Client, Unit::Example].iter().all(|unit| account.is_unbounded(*unit)))
    }

    /// Whether a server's refusal is to be settled.
    fn is_refused(&self, order: &RecoveryOrder) -> bool {
        order.believes_server && self.said.refused.is_some() && self.of_the_server().is_some()
    }

    /// The ledger that a server remembers and this one neither goes on from nor has charged.
    fn of_the_server(&self) -> Option<(LedgerHead, u64)> {
        let RefusedLedger { known, answered } = self.said.refused?;
        let text = &self.ledger_text[..self.ledger.whole];
        let goes_on = answered == 0 && head_of(&self.ledger.links, known.records) == Some(known.head);
        let named = named_as_lost(known, answered);
        let is_reserved = SiteAccount::read(text).is_ok_and(|account| account.replaces(named));
        (!goes_on && !is_reserved).then_some((known, answered))
    }

    /// The ledger with everything that is known put back into it, and the rest charged.
    fn rebuild(&self, order: &RecoveryOrder, now: Time) -> Result<Rebuilt, BooksError> {
        let wrong = |fault| BooksError::Ledger { path: self.ledger_path.clone(), fault };
        let record = |fault| BooksError::AuditRecord { path: self.audit_path.clone(), fault };
        let known = self.strongest();
        let is_reserved = SiteAccount::read(&self.ledger_text[..self.ledger.whole])
            .is_ok_and(|account| account.replaces(known));
        let agreed = if is_reserved { self.ledger.links.len() } else { self.agreed() };
        let set_aside: Vec<Link> = self.ledger.links[agreed..].to_vec();
        let mut links: Vec<Link> = self.ledger.links[..agreed].to_vec();
        let (mut chain, kept) = (end_of(&links), links.len() as u64);
        while let Some(copy) = self.copies.get(&chain.len()).filter(|_| !is_reserved) {
            links.push(chain.append(&copy));
        }
        let restored = chain.len() - kept;
        let is_copied = known.records > chain.len() && self.said.copied > chain.len();
        if !is_reserved && is_copied && !self.missing.is_empty() && !order.without_segments {
            let missing: Vec<String> = self.missing.iter().map(u64::to_string).collect();
            let (path, missing) = (self.audit_path.clone(), missing.join(", "));
            return Err(BooksError::SegmentsAway { path, missing });
        }
        let mut losses = Losses::default();
        // Copies behind a gap, and records that belong to another ledger, cannot stand in their own place.
        let beyond = self.copies.range(chain.len()..).map(|(place, text)| (*place, &**text));
        let beyond: Vec<(u64, &RawValue)> = if is_reserved { Vec::new() } else { beyond.collect() };
        losses.known.extend(charges_in(beyond.iter().copied()).map_err(record)?);
        let kept: BTreeSet<&str> = links.iter().map(|link| link.record.get()).collect();
        let others = set_aside.iter().filter(|link| !kept.contains(link.record.get()));
        losses.known.extend(charges_in(others.map(|link| (link.sequence, &*link.record))).map_err(record)?);
        if !is_reserved && known.records > chain.len() {
            losses.unknown = (known.records - chain.len()).saturating_sub(beyond.len() as u64);
            losses.replaced.push(known);
        } else if !is_reserved && known.is_named() && head_of(&links, known.records) != Some(known.head) {
            losses.replaced.push(known);
        }
        if let Some((known, answered)) = self.of_the_server().filter(|_| order.believes_server) {
            // Of what was there when a server last let this ledger in, it is known that both have it.
            let more = known.records.saturating_add(answered).saturating_sub(self.said.accepted);
            losses.unknown = losses.unknown.saturating_add(more.max(1));
            losses.replaced.push(named_as_lost(known, answered));
        }
        if (order.is_all_lost || !self.is_length_known()) && !self.is_unbounded() {
            match order.lost {
                Some(lost) => losses.unknown = losses.unknown.saturating_add(lost),
                None => (losses.unknown, losses.is_uncounted) = (losses.unknown.max(1), true),
            }
        }
        let copied = self.copied(&links);
        let mut rebuilt =
            Rebuilt { text: lines_of(&links), copied, restored, lost: losses.unknown, unbounded: vec![] };
        if losses.unknown > 0 || !losses.known.is_empty() || !losses.replaced.is_empty() {
            let account = SiteAccount::read(&rebuilt.text).map_err(wrong)?;
            let (entry, unbounded) = lost_records(&account, losses, order.delta, now);
            links.push(chain.append(&entry));
            (rebuilt.text, rebuilt.unbounded) = (lines_of(&links), unbounded);
        }
        Ok(rebuilt)
    }

    /// The ledger that the log knows of.
    fn logged(&self) -> LedgerHead {
        let reserved = LedgerHead { records: self.said.reserved, head: Digest::default() };
        self.said.ledger.unwrap_or(reserved)
    }

    /// The longest ledger that another book knows of.
    fn strongest(&self) -> LedgerHead {
        let logged = self.logged();
        self.remembered.filter(|remembered| remembered.records > logged.records).unwrap_or(logged)
    }

    /// How many of the ledger's records are those that the log has copied; all behind the last copy are.
    fn agreed(&self) -> usize {
        let differs = self.ledger.links.iter().position(|link| {
            let copy = self.copies.get(&link.sequence);
            copy.is_some_and(|copy| copy.get() != link.record.get())
        });
        differs.unwrap_or(self.ledger.links.len())
    }

    /// How much of these records the log has copied from the first on.
    fn copied(&self, links: &[Link]) -> LedgerHead {
        // Where the log's end of the ledger is in the ledger, all before it is the same, whichever segments are here.
        if let Some(end) = self.said.ledger.filter(|end| end.records <= self.said.copied)
            && head_of(links, end.records) == Some(end.head)
        {
            return end;
        }
        let same = links.iter().take_while(|link| {
            self.copies.get(&link.sequence).is_some_and(|copy| copy.get() == link.record.get())
        });
        let records = same.count() as u64;
        LedgerHead { records, head: head_of(links, records).unwrap_or_default() }
    }
}

/// Takes in what a segment says, and the ledger's records that it copies.
fn learn(
    path: &Path,
    links: &[Link],
    said: &mut LogSummary,
    copies: &mut BTreeMap<u64, Box<RawValue>>,
) -> Result<(), BooksError> {
    for record in records_in(path, links) {
        let record = record?;
        said.learn(&record);
        if let Some(copy) = record.ledger {
            let from = copy.records.saturating_sub(copy.new.len() as u64);
            // Where the ledger was put in order it may have become shorter.
            drop(copies.split_off(&from));
            copies.extend((from..).zip(copy.new));
        }
    }
    Ok(())
}

/// A ledger that a server remembers, by the name that it takes for the loss of it.
fn named_as_lost(known: LedgerHead, answered: u64) -> LedgerHead {
    let LedgerHead { records, head } = known;
    LedgerHead { records, head: LedgerClaim { records, head }.name_of_loss(answered) }
}

/// The lines before this one, counted from 1; those were in order.
fn before(text: &[u8], line: usize) -> Lines {
    read_lines(text_before(text, line)).unwrap_or_default()
}

fn text_before(text: &[u8], line: usize) -> &[u8] {
    let whole = text.split_inclusive(|byte| *byte == b'\n').take(line - 1).map(<[u8]>::len).sum();
    &text[..whole]
}

/// What can be read of a segment, up to the first line that is damaged, and whether one is.
fn readable(text: &[u8]) -> (Segment, bool) {
    read_segment(text).map_or_else(
        |DamagedLine { line, .. }| {
            let lines = Lines::default();
            (read_segment(text_before(text, line)).unwrap_or(Segment { number: 1, lines }), true)
        },
        |segment| (segment, false),
    )
}

fn head_of(links: &[Link], records: u64) -> Option<Digest> {
    match usize::try_from(records).ok()?.checked_sub(1) {
        None => Some(Digest::default()),
        Some(last) => links.get(last).map(|link| link.hash),
    }
}

fn end_of(links: &[Link]) -> Chain {
    Chain::of(links).unwrap_or_default()
}

fn lines_of(links: &[Link]) -> Vec<u8> {
    let mut text = Vec::new();
    for link in links {
        text.extend(serde_json::to_vec(link).expect("links have a JSON form"));
        text.push(b'\n');
    }
    text
}
