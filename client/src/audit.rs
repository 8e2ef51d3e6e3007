//! What a site was asked and what it did, for whoever must answer for it: JSON lines, each hashed with the one before.
//!
//! It never holds a value of an update, a norm that was measured, a metric or a record of the site. It opens no file; what
//! it is given to write to makes bytes durable when it is flushed, which happens before an answer leaves and after a
//! denial. A log that cannot be written stops the site's work.
//!
//! It is the ledger's second copy: the first record after the ledger has grown holds the ledger's new records and its head, and is
//! durable at once. So the ledger is never behind the log, the log is behind the ledger by what is being written at most, and either can
//! be told from one that was cut, exchanged or replaced by an older copy.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use privacy::chain::segments::{Continuation, RotateError, SegmentWriter};
use privacy::chain::{Chain, ChainWriter, Digest, Link, WriteError};
use protocol::{Decline, Rejection, TaskId, Time};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ledger::{LedgerHead, LedgerHistory};

/// The version of the records written by this code.
pub const AUDIT_VERSION: u32 = 1;

/// Bytes of the ledger's records that one record copies, so that its line stays well below [`privacy::chain::LINE_MAX`]. A longer
/// record is copied alone, and the ledger's own line holds more than it.
const COPIES_BYTES_MAX: usize = privacy::chain::LINE_MAX / 2;

/// One line: when, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// [`AUDIT_VERSION`].
    pub version: u32,
    /// Microseconds since the Unix epoch.
    pub at_micros: u64,
    /// What the ledger has grown by since the record before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerCopy>,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// The ledger's head, and a copy of the records that are new.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerCopy {
    /// Records of the ledger.
    pub records: u64,
    /// The hash of the last of them.
    pub head: Digest,
    /// The last of them, as they stand there.
    pub new: Vec<Box<RawValue>>,
}

impl LedgerCopy {
    /// Where the ledger ends.
    pub fn head(&self) -> LedgerHead {
        LedgerHead { records: self.records, head: self.head }
    }
}

impl PartialEq for LedgerCopy {
    fn eq(&self, other: &Self) -> bool {
        let texts = |copy: &Self| copy.new.iter().map(|record| record.get().to_owned()).collect::<Vec<_>>();
        self.head() == other.head() && texts(self) == texts(other)
    }
}

/// A task, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskName {
    /// 16 hexadecimal digits.
    pub run: String,
    /// The round.
    pub round: u32,
    /// The kind of work: `statistics`, `train`, `evaluate`, or the number of a method's step.
    pub kind: String,
    /// What people call a method's step: the method, and its own word for the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

impl From<TaskId> for TaskName {
    fn from(id: TaskId) -> Self {
        let (run, kind) = (id.run.to_string(), id.step.name().into_owned());
        Self { run, round: id.round.0, kind, title: id.title() }
    }
}

/// What happened at a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// The site's program began.
    Started {
        /// Name and version of the program.
        software: String,
        /// SHA-256 of the policy's text.
        policy: Digest,
        /// SHA-256 of the certificate of the federation's authority.
        federation: Digest,
    },
    /// A server greeted the site.
    Connected {
        /// Its address.
        server: String,
        /// The name it knows the site by.
        you: String,
    },
    /// A task came.
    Received {
        /// Which.
        task: TaskName,
        /// How its plan protects what it learns: `none`, `central`, `local`, `examples`.
        promises: Vec<String>,
        /// Shared parameters of its model.
        parameters: u64,
        /// Whether it carries a seed.
        #[serde(rename = "rehearsal")]
        is_seeded: bool,
    },
    /// The policy allows it, and the ledger has reserved it where it costs anything.
    Allowed {
        /// Which.
        task: TaskName,
        /// The ledger's record, if any.
        #[serde(rename = "booking")]
        reservation: Option<u64>,
    },
    /// The site will not do it.
    Denied {
        /// Which.
        task: TaskName,
        /// The rule of the policy, `budget`, or `pause`.
        rule: String,
        /// What was asked and what is allowed.
        message: String,
    },
    /// It was allowed and came to nothing.
    Failed {
        /// Which.
        task: TaskName,
        /// Why, in one word.
        reason: Decline,
    },
    /// It is done.
    Done {
        /// Which.
        task: TaskName,
    },
    /// An answer is about to leave.
    Answered {
        /// To which task.
        task: TaskName,
        /// `trained`, `evaluated`, `counted`, `contributed`, `declined`, or `resent` where it was computed for an earlier stream.
        outcome: String,
        /// Bytes of values behind the header; 0 for a declined task.
        bytes: u64,
    },
    /// The server said what became of the answer.
    Receipt {
        /// To which task.
        task: TaskName,
        /// Its reason where it did not take it.
        refused: Option<Rejection>,
    },
    /// The server remembers another ledger of this site than the one here, and did not let it in.
    LedgerRefused {
        /// Its address.
        server: String,
        /// The ledger that it remembers.
        known: LedgerHead,
        /// Updates that it has had since then, each of which that ledger has reserved.
        answered: u64,
    },
    /// The site's people had the books put in order.
    Recovered {
        /// Who did it, as far as the system knows.
        by: String,
        /// Records that were put back into the ledger from copies of them.
        restored: u64,
        /// Records that are lost, and charged by what is known of them.
        lost: u64,
    },
    /// The log was behind the ledger by more than one record holds, and takes copies of a part of it.
    Copied,
    /// The site's program ended in order.
    Stopped,
    /// The site takes part in nothing from now on.
    Paused {
        /// Who wished it, as far as the system knows.
        by: String,
    },
    /// The site takes part again.
    Resumed,
    /// The operator holds the site in quarantine: no task comes.
    Quarantined {
        /// Why, in the operator's words.
        reason: String,
    },
    /// The operator has ended the quarantine.
    Released,
    /// The site has left: its key and certificates are gone.
    Left {
        /// Who did it, as far as the system knows.
        by: String,
        /// SHA-256 of the certificate that was removed.
        certificate: Digest,
    },
    /// A file of the log begins that goes on from another: what a start must know of those before. The ledger's end stands beside it.
    Continued {
        /// From which.
        #[serde(flatten)]
        of: Continuation,
        /// Records of the ledger that reservations name.
        #[serde(rename = "booked")]
        reserved: u64,
        /// From the ledger's first on, of how many records there are copies.
        copied: u64,
        /// Records of the ledger when a server last let it in.
        accepted: u64,
        /// The refusal that no server has taken back since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<RefusedLedger>,
    },
}

/// The ledger that a server remembered when it refused this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedLedger {
    /// Where it ends.
    pub known: LedgerHead,
    /// Updates that the server has had since then.
    pub answered: u64,
}

impl AuditEvent {
    /// What each kind of event is called in a log, in the order of the variants.
    pub const NAMES: [&'static str; 19] = [
        "started",
        "connected",
        "received",
        "allowed",
        "denied",
        "failed",
        "done",
        "answered",
        "receipt",
        "ledger_refused",
        "recovered",
        "copied",
        "stopped",
        "paused",
        "resumed",
        "quarantined",
        "released",
        "left",
        "continued",
    ];
}

/// A site's audit log, shared by all who have something to write.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Mutex<Log>>);

/// Where a log is written to.
enum Sink {
    Plain(ChainWriter<Box<dyn Write + Send>>),
    /// Files, closed when they are long; the lock is held as long as they are open.
    Segments {
        writer: SegmentWriter,
        _lock: File,
    },
}

impl Sink {
    fn append(&mut self, record: &AuditRecord) -> Result<Link, WriteError> {
        match self {
            Self::Plain(writer) => writer.append(record),
            Self::Segments { writer, .. } => writer.append(record),
        }
    }
    fn sync(&mut self) -> Result<(), WriteError> {
        match self {
            Self::Plain(writer) => writer.sync(),
            Self::Segments { writer, .. } => writer.sync(),
        }
    }
    fn chain(&self) -> Chain {
        match self {
            Self::Plain(writer) => writer.chain(),
            Self::Segments { writer, .. } => writer.chain(),
        }
    }
}

/// What a log has said up to now that a start must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSummary {
    /// The ledger's end; `None` in a log of a release that did not write it down.
    pub(crate) ledger: Option<LedgerHead>,
    /// Records that reservations name.
    pub(crate) reserved: u64,
    /// From the ledger's first on, of how many records there are copies.
    pub(crate) copied: u64,
    /// How long the ledger was when a server last let it in.
    pub(crate) accepted: u64,
    /// The ledger that a server remembered when it refused this one.
    pub(crate) refused: Option<RefusedLedger>,
}

impl LogSummary {
    /// Takes a record in.
    pub(crate) fn learn(&mut self, record: &AuditRecord) {
        if let Some(copy) = &record.ledger {
            self.ledger = Some(copy.head());
            // Behind a gap nothing counts. Where the ledger was put in order it may have become shorter.
            if copy.records.saturating_sub(copy.new.len() as u64) <= self.copied {
                self.copied = copy.records;
            }
        }
        match &record.event {
            AuditEvent::Allowed { reservation: Some(reservation), .. } => {
                self.reserved = self.reserved.max(reservation.saturating_add(1));
            }
            AuditEvent::Connected { .. } => {
                self.accepted = self.ledger.map_or(0, |head| head.records);
                self.refused = None;
            }
            AuditEvent::LedgerRefused { known, answered, .. } => {
                self.refused = Some(RefusedLedger { known: *known, answered: *answered });
            }
            AuditEvent::Continued { reserved, copied, accepted, refused, .. } => {
                (self.reserved, self.copied) = (*reserved, *copied);
                (self.accepted, self.refused) = (*accepted, *refused);
            }
            _ => {}
        }
    }

    /// What a segment begins with.
    fn opening(&self, of: Continuation, at_micros: u64) -> AuditRecord {
        let Self { ledger, reserved, copied, accepted, refused } = *self;
        let ledger = ledger.map(|LedgerHead { records, head }| LedgerCopy { records, head, new: Vec::new() });
        let event = AuditEvent::Continued { of, reserved, copied, accepted, refused };
        AuditRecord { version: AUDIT_VERSION, at_micros, ledger, event }
    }
}

struct Log {
    to: Sink,
    said: LogSummary,
    clock: Box<dyn Fn() -> Time + Send>,
    witness: Option<Witness>,
    /// Why the site's books can be kept no longer.
    error: Option<String>,
}

/// What is told once both books are durable: their ends.
pub(crate) type Sealed = Box<dyn Fn(LedgerHead, Chain) -> io::Result<()> + Send>;

/// The ledger that the log copies.
struct Witness {
    ledger: LedgerHistory,
    /// How much of it the log has.
    copied: LedgerHead,
    sealed: Sealed,
}

impl Witness {
    /// What the ledger has grown by, in parts that a line can hold. There is more than one only where the log has lost what it knew.
    fn growth(&mut self) -> Vec<LedgerCopy> {
        let head = self.ledger.head();
        if head == self.copied {
            return Vec::new();
        }
        let new = self.ledger.take_copies(self.copied.records);
        let mut parts: Vec<Vec<Box<RawValue>>> = Vec::new();
        let mut bytes = usize::MAX;
        for record in new {
            bytes = bytes.saturating_add(record.get().len() + 1);
            if bytes > COPIES_BYTES_MAX {
                parts.push(Vec::new());
                bytes = record.get().len() + 1;
            }
            parts.last_mut().expect("the first record begins a part").push(record);
        }
        let last = parts.pop().unwrap_or_default();
        let mut copies = Vec::new();
        let mut records = head.records - last.len() as u64;
        for new in parts.into_iter().rev() {
            let head = self.ledger.head_at(records).unwrap_or_default();
            let before = records - new.len() as u64;
            copies.push(LedgerCopy { records, head, new });
            records = before;
        }
        copies.reverse();
        copies.push(LedgerCopy { records: head.records, head: head.head, new: last });
        self.copied = head;
        copies
    }
}

impl Audit {
    /// A log that goes on with `writer`. `clock` says when something happens, since the Unix epoch.
    pub fn new(
        writer: ChainWriter<Box<dyn Write + Send>>,
        clock: impl Fn() -> Time + Send + 'static,
    ) -> Self {
        Self::over(Sink::Plain(writer), LogSummary::default(), clock)
    }

    /// A log in files, which has said as much as `said` up to now and holds `lock` while it lives.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "books are opened with `net`"))]
    pub(crate) fn in_segments(
        writer: SegmentWriter,
        lock: File,
        said: LogSummary,
        clock: impl Fn() -> Time + Send + 'static,
    ) -> Self {
        Self::over(Sink::Segments { writer, _lock: lock }, said, clock)
    }

    fn over(to: Sink, said: LogSummary, clock: impl Fn() -> Time + Send + 'static) -> Self {
        let (clock, witness, error) = (Box::new(clock), None, None);
        Self(Arc::new(Mutex::new(Log { to, said, clock, witness, error })))
    }

    /// Copies the records of `ledger` from now on, of which the log has those up to `copied` and `ledger` holds the others, and tells
    /// `sealed` where both end whenever they are durable.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "books are opened with `net`"))]
    pub(crate) fn watch(&self, ledger: LedgerHistory, copied: LedgerHead, sealed: Sealed) {
        ledger.hold_copies();
        self.log().witness = Some(Witness { ledger, copied, sealed });
    }

    /// Writes down what happened. It may be lost in a crash until the next [`Audit::seal`].
    ///
    /// # Errors
    /// [`WriteError`]; nothing more can be written then.
    pub fn note(&self, event: AuditEvent) -> Result<(), WriteError> {
        self.write(event, false)
    }

    /// Writes down what happened, and returns when all that was written is durable.
    ///
    /// # Errors
    /// [`WriteError`]; what was to follow must not happen then.
    pub fn seal(&self, event: AuditEvent) -> Result<(), WriteError> {
        self.write(event, true)
    }

    /// Why the site's books, this log or the ledger, can be kept no longer: a write has failed, and only a new start reads what the disk
    /// has. Until then no answer leaves.
    pub fn error(&self) -> Option<String> {
        self.log().error.clone()
    }

    /// Remembers that a book of the site could not be written.
    pub(crate) fn note_error(&self, error: &WriteError) {
        self.log().error.get_or_insert_with(|| error.to_string());
    }

    /// Writes a record, durably if it must be or if the ledger has grown.
    fn write(&self, event: AuditEvent, durable: bool) -> Result<(), WriteError> {
        self.try_write(event, durable).inspect_err(|error| self.note_error(error))
    }

    fn try_write(&self, event: AuditEvent, durable: bool) -> Result<(), WriteError> {
        let mut log = self.log();
        let at_micros = (log.clock)().as_micros();
        // First, since a rotation that fails may be tried again and the copies are taken once. The ends are to be those of the newest file.
        let is_begun = log.rotate(at_micros)?;
        let mut copies = log.witness.as_mut().map(Witness::growth).unwrap_or_default();
        let last = copies.pop();
        let durable = durable || is_begun || last.is_some();
        let parts = copies.into_iter().map(|copy| (Some(copy), AuditEvent::Copied));
        for (ledger, event) in parts.chain([(last, event)]) {
            let record = AuditRecord { version: AUDIT_VERSION, at_micros, ledger, event };
            log.to.append(&record)?;
            log.said.learn(&record);
        }
        if !durable {
            return Ok(());
        }
        log.to.sync()?;
        let chain = log.to.chain();
        let told = log.witness.as_ref().map_or(Ok(()), |witness| (witness.sealed)(witness.copied, chain));
        told.map_err(|source| WriteError::Io { sequence: chain.len().saturating_sub(1), source })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Closes a file that is long and begins the next one; whether it did. Where that is not possible the log goes on in the one that it has.
    fn rotate(&mut self, at_micros: u64) -> Result<bool, WriteError> {
        let Sink::Segments { writer, .. } = &mut self.to else { return Ok(false) };
        if !writer.is_due() {
            return Ok(false);
        }
        let sequence = writer.chain().len();
        let opening = self.said.opening(writer.continuation(), at_micros);
        let opening = serde_json::value::to_raw_value(&opening).expect("records have a JSON form");
        match writer.rotate(&[opening]) {
            Ok(()) => Ok(true),
            Err(error @ RotateError::Postponed { .. }) => {
                warn_of(&error);
                Ok(false)
            }
            Err(error) => Err(WriteError::Io { sequence, source: io::Error::other(error) }),
        }
    }
}

#[cfg(feature = "net")]
fn warn_of(error: &RotateError) {
    tracing::warn!("{error}");
}

/// Without `net` no book is a file.
#[cfg(not(feature = "net"))]
fn warn_of(_: &RotateError) {}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Log({:?})", self.to.chain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::Paper;
    use privacy::chain::{Chain, read_lines};
    use protocol::{Round, RunId, StepId, StepLabel};

    #[test]
    fn what_is_noted_is_a_chain_of_records_with_their_moments() {
        let paper = Paper::default();
        let writer = ChainWriter::new(Chain::new(), Box::new(paper.clone()) as Box<dyn Write + Send>);
        let audit = Audit::new(writer, || Time::from_micros(7));
        let task = TaskId::new(RunId(0xab), Round(3), StepId::TRAIN);
        let denied =
            AuditEvent::Denied { task: task.into(), rule: "hours".into(), message: "it is late".into() };
        audit.note(denied.clone()).unwrap();
        audit.seal(AuditEvent::Stopped).unwrap();
        let read = read_lines(&paper.text()).unwrap();
        let records: Vec<AuditRecord> = read.links.iter().map(|link| link.read().unwrap()).collect();
        assert_eq!(records[0], AuditRecord { version: 1, at_micros: 7, ledger: None, event: denied });
        assert_eq!((records.len(), &records[1].event), (2, &AuditEvent::Stopped));
        assert!(read.links[0].record.get().contains(r#""run":"00000000000000ab","round":3,"kind":"train""#));
    }

    #[test]
    fn a_methods_step_is_named_and_what_has_no_label_is_written_as_it_was() {
        let task = TaskId::new(RunId(0xab), Round(3), StepId::method(0));
        let text = |task: TaskId| serde_json::to_string(&TaskName::from(task)).unwrap();
        let before = r#"{"run":"00000000000000ab","round":3,"kind":"step-16"}"#;
        assert_eq!(text(task), before);
        assert_eq!(serde_json::from_str::<TaskName>(before).unwrap(), task.into());
        let labelled = task.labelled(StepLabel::new("kmeans", "assign"));
        let named = r#"{"run":"00000000000000ab","round":3,"kind":"step-16","title":"kmeans: assign"}"#;
        assert_eq!(text(labelled), named);
        assert_eq!(serde_json::from_str::<TaskName>(named).unwrap(), labelled.into());
    }

    #[test]
    fn a_log_that_cannot_be_written_says_so() {
        let writer = ChainWriter::new(Chain::new(), Box::new(Paper::full()) as Box<dyn Write + Send>);
        let audit = Audit::new(writer, || Time::ZERO);
        assert!(audit.note(AuditEvent::Stopped).is_err());
        assert!(audit.seal(AuditEvent::Stopped).is_err());
    }

    #[test]
    fn every_event_is_named_as_it_is_written() {
        let unknown = serde_json::from_str::<AuditEvent>(r#"{"event": "?"}"#).unwrap_err().to_string();
        let written: Vec<&str> = unknown.split('`').skip(1).step_by(2).skip(1).collect();
        assert_eq!(written, AuditEvent::NAMES, "{unknown}");
    }
}
