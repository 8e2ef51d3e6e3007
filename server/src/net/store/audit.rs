//! What a server did and was told, in `audit.jsonl` (of each replica, in a file that bears its name): a hash chain of records that nobody changes unseen.
//!
//! It holds who, what and when; no update, no norm, no metric of a site. What was refused for want of budget stands in the ledger. A
//! release stands in both: in the ledger, in the transaction that pays, and then here, durably, before anybody can read it. Every record
//! names the version of the state that was committed before it. So the database is never behind this log, and whoever turns
//! it back is found ([`witness`]). The story around it is made durable at the end of every round.
//!
//! A file that has become long is closed, and the next one begins with what a start must know of those before ([`carried`]).

mod carried;
mod tail;
pub(crate) mod witness;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use privacy::chain::segments::{Continuation, RotateError, SegmentBytes, SegmentFault, SegmentWriter};
use privacy::chain::{DamagedLine, WriteError};
use protocol::wire::{Control, RunState};
use protocol::{Decline, Rejection, RunId, TaskId, Time};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::messages::{Record, Verdict};
use super::{AuditHead, CrossCheck, StoreError, Unlogged};
use crate::{Note, RunEnd};

use carried::Carried;
pub(crate) use tail::lines_of;

/// Bytes of a record whose texts are written whole.
const RECORD_MAX: usize = 1 << 16;
/// Bytes that are kept of each text in a longer record. One byte takes up to six in JSON, and no event has more than eight texts.
const TEXT_MAX: usize = 1 << 12;

/// Why an audit log cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody was at it.
    #[error("{}: {fault}; it was changed after it was written. Put the right file back, or restore the newest backup (docs/operations.md, When books disagree), and ask who changed it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: DamagedLine,
    },
    /// The files of the log are not one chain.
    #[error("{0} (docs/operations.md, Audit logs in segments)")]
    Segments(SegmentFault),
    /// A record could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Whether what was written is on the disk is not known any more.
    #[error("{}: what was written could not be made durable ({fault}); the next start reads what the disk has", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system says.
        fault: WriteError,
    },
}

impl From<SegmentFault> for AuditError {
    fn from(fault: SegmentFault) -> Self {
        match fault {
            SegmentFault::File { path, source } => Self::File { path, source },
            SegmentFault::Damaged { path, fault } => Self::Damaged { path, fault },
            other => Self::Segments(other),
        }
    }
}

/// One line.
#[derive(Serialize)]
struct Entry<'a> {
    /// Microseconds since the Unix epoch.
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// The version of the database that was committed before.
    database: i64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// What happened. A field has one type, whatever the event.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    Started {
        software: &'a str,
    },
    Submitted {
        name: &'a str,
        plan_sha256: String,
        #[serde(rename = "rehearsal")]
        is_seeded: bool,
        by: &'a str,
    },
    Opened {
        task: String,
        cohort: usize,
    },
    Accepted {
        client: &'a str,
        task: String,
    },
    Refused {
        client: &'a str,
        task: Option<String>,
        reason: Rejection,
    },
    Declined {
        client: &'a str,
        task: String,
        reason: Decline,
    },
    Closed {
        task: String,
        answered: usize,
        missing: usize,
        quorum: bool,
    },
    Withheld {
        task: String,
        reason: &'a str,
    },
    /// A model was paid for, and may be read from now on. `recovered`: written at a later start, from the database.
    Released {
        round: u32,
        model_sha256: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        recovered: bool,
    },
    Round {
        round: u32,
        released: bool,
        epsilon: Option<f64>,
    },
    Ended {
        state: RunState,
        reason: &'a str,
    },
    Controlled {
        control: Control,
        by: &'a str,
    },
    Invited {
        client: &'a str,
        expires: u64,
        by: &'a str,
    },
    Enrolled {
        client: &'a str,
        key_sha256: &'a str,
    },
    Renewed {
        client: &'a str,
        key_sha256: &'a str,
    },
    InviteReused {
        token_sha256: &'a str,
    },
    EnrolmentsRefused {
        count: u64,
    },
    Revoked {
        client: &'a str,
        before: u64,
        by: &'a str,
    },
    LedgerRefused {
        client: &'a str,
        address: &'a str,
        reason: &'a str,
    },
    LedgerReplaced {
        client: &'a str,
        address: &'a str,
    },
    Alternating {
        client: &'a str,
        address: &'a str,
        replaced_address: &'a str,
        times: u64,
    },
    Quarantined {
        client: &'a str,
        reason: &'a str,
        by: &'a str,
    },
    QuarantineEnded {
        client: &'a str,
        by: &'a str,
    },
    ApprovalAsked {
        client: &'a str,
        key_sha256: &'a str,
        address: &'a str,
    },
    ApprovalGiven {
        client: &'a str,
        key_sha256: &'a str,
        by: &'a str,
    },
    ApprovalRefused {
        client: &'a str,
        key_sha256: &'a str,
        by: &'a str,
    },
    /// The first record of a segment that goes on from another.
    Continued {
        #[serde(flatten)]
        of: Continuation,
    },
    /// Behind it: what the segments before say of a run.
    RunCarried {
        #[serde(skip_serializing_if = "Option::is_none")]
        plan_sha256: Option<&'a str>,
        /// The last that was released; 0 where none was.
        round: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        model_sha256: Option<&'a str>,
    },
    /// And of a site whose certificates are void.
    RevocationCarried {
        client: &'a str,
        before: u64,
    },
}

/// The log of one server, open for writing.
pub(crate) struct AuditLog {
    segments: SegmentWriter,
    name: String,
    cross: Arc<CrossCheck>,
    carried: Carried,
}

impl AuditLog {
    /// Goes on with the log at `path`, or begins it. Half a line that a crash left is cut off. A file is closed when it has more than
    /// `segment` bytes.
    pub(crate) fn open(
        path: &Path,
        segment: SegmentBytes,
        cross: Arc<CrossCheck>,
        now: Time,
    ) -> Result<Self, AuditError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut carried = Carried::default();
        let (segments, found) = SegmentWriter::open(path, segment, &mut |link| carried.learn(link))?;
        if found.torn > 0 {
            tracing::warn!("{}: a crash left half a line; it is cut off", path.display());
        }
        let mut log = Self { segments, name, cross, carried };
        let software = concat!("consortia ", env!("CARGO_PKG_VERSION"));
        log.write(now, None, &Event::Started { software })?;
        log.sync()?;
        Ok(log)
    }

    /// Makes everything durable, and lets the database know how far that is.
    fn sync(&mut self) -> Result<(), AuditError> {
        let synced = self.segments.sync();
        synced.map_err(|fault| AuditError::Sync { path: self.segments.path().to_owned(), fault })?;
        let chain = self.segments.chain();
        let (log, records, head) = (self.name.clone(), chain.len(), chain.head());
        self.cross.note(AuditHead { log, records, head });
        Ok(())
    }

    /// Adds a release that the database has just paid for, durably.
    pub(crate) fn released(
        &mut self,
        now: Time,
        run: RunId,
        round: u32,
        model_sha256: &str,
    ) -> Result<(), AuditError> {
        self.write(now, Some(run), &Event::Released { round, model_sha256, recovered: false })?;
        self.sync()
    }

    /// Adds the releases of which the database knows and this log does not: a crash came between the two, or another server made them.
    pub(crate) fn recover(&mut self, now: Time, releases: &[Unlogged]) -> Result<(), AuditError> {
        for Unlogged { run, round, model_sha256 } in releases {
            let round = *round;
            self.write(now, Some(*run), &Event::Released { round, model_sha256, recovered: true })?;
        }
        self.sync()
    }

    /// Adds a record. After an error nothing of it stands in the log, and it may be added again.
    pub(crate) fn write(
        &mut self,
        now: Time,
        run: Option<RunId>,
        event: &Event<'_>,
    ) -> Result<(), AuditError> {
        let mended = self.segments.mend();
        mended.map_err(|source| AuditError::File { path: self.segments.path().to_owned(), source })?;
        if self.segments.is_due() {
            self.rotate(now)?;
        }
        let record = self.record(now, run, event);
        let link = self.segments.append(&record)?;
        self.carried.learn(&link);
        Ok(())
    }

    /// Closes the current file and begins the next one. Where that is not possible the log goes on in the one that it has.
    fn rotate(&mut self, now: Time) -> Result<(), AuditError> {
        let mut opening =
            vec![self.record(now, None, &Event::Continued { of: self.segments.continuation() })];
        opening.extend(self.carried.events().map(|(run, event)| self.record(now, run, &event)));
        match self.segments.rotate(&opening) {
            Ok(()) => self.sync(),
            Err(error @ RotateError::Postponed { .. }) => {
                tracing::warn!("{error}");
                Ok(())
            }
            Err(RotateError::Unfinished { path, source }) => Err(AuditError::File { path, source }),
            Err(error) => {
                let path = self.segments.path().to_owned();
                Err(AuditError::File { path, source: io::Error::other(error) })
            }
        }
    }

    fn record(&self, now: Time, run: Option<RunId>, event: &Event<'_>) -> Box<RawValue> {
        let (run, database) = (run.map(|run| run.to_string()), self.cross.version());
        record_of(&Entry { time: now.as_micros(), run, database, event })
    }

    /// Adds what happened to the membership, durably.
    pub(crate) fn member(&mut self, now: Time, record: &Record) -> Result<(), AuditError> {
        let event = match record {
            Record::Invited { site, expires, by } => {
                Event::Invited { client: site.as_str(), expires: *expires, by }
            }
            Record::Enrolled { site, key_sha256 } => Event::Enrolled { client: site.as_str(), key_sha256 },
            Record::Renewed { site, key_sha256 } => Event::Renewed { client: site.as_str(), key_sha256 },
            Record::InviteReused { token_sha256 } => Event::InviteReused { token_sha256 },
            Record::EnrolmentsRefused { count } => Event::EnrolmentsRefused { count: *count },
            Record::Revoked { site, before, by } => {
                Event::Revoked { client: site.as_str(), before: *before, by }
            }
            Record::LedgerRefused { site, address, reason } => {
                Event::LedgerRefused { client: site.as_str(), address, reason }
            }
            Record::LedgerReplaced { site, address } => {
                Event::LedgerReplaced { client: site.as_str(), address }
            }
            Record::Alternating { site, address, replaced_address, times } => {
                Event::Alternating { client: site.as_str(), address, replaced_address, times: *times }
            }
            Record::Quarantined { site, reason, by } => {
                Event::Quarantined { client: site.as_str(), reason, by }
            }
            Record::QuarantineEnded { site, by } => Event::QuarantineEnded { client: site.as_str(), by },
            Record::Asked { site, key_sha256, address } => {
                Event::ApprovalAsked { client: site.as_str(), key_sha256, address }
            }
            Record::Decided { site, key_sha256, verdict: Verdict::Approved, by } => {
                Event::ApprovalGiven { client: site.as_str(), key_sha256, by }
            }
            Record::Decided { site, key_sha256, verdict: Verdict::Refused, by } => {
                Event::ApprovalRefused { client: site.as_str(), key_sha256, by }
            }
        };
        self.write(now, None, &event)?;
        self.sync()
    }

    /// Adds what a note says; at the end of a round and of a run everything is made durable.
    pub(crate) fn note(&mut self, now: Time, run: RunId, note: &Note) -> Result<(), AuditError> {
        let named = |task: &TaskId| format!("{} {}", task.step_title(), task.round);
        let event = match note {
            Note::Waiting { .. } | Note::Warned { .. } => return Ok(()),
            Note::Opened { task, cohort } => Event::Opened { task: named(task), cohort: *cohort },
            Note::Accepted { client, task, .. } => {
                Event::Accepted { client: client.as_str(), task: named(task) }
            }
            Note::Refused { client, task, reason, .. } => {
                Event::Refused { client: client.as_str(), task: task.as_ref().map(named), reason: *reason }
            }
            Note::Declined { client, task, reason, .. } => {
                Event::Declined { client: client.as_str(), task: named(task), reason: *reason }
            }
            Note::Closed { task, answered, missing, quorum, .. } => {
                let (answered, missing, quorum) = (*answered, *missing, *quorum);
                Event::Closed { task: named(task), answered, missing, quorum }
            }
            Note::Withheld { task, reason } => Event::Withheld { task: named(task), reason },
            Note::Round(summary) => Event::Round {
                round: summary.round,
                released: summary.released,
                epsilon: summary.epsilon.filter(|epsilon| epsilon.is_finite()),
            },
            Note::Ended(end) => {
                let reason = match end {
                    RunEnd::Failed(reason) | RunEnd::BudgetExhausted(reason) => reason,
                    RunEnd::Finished | RunEnd::Stopped => "",
                };
                Event::Ended { state: end.state(), reason }
            }
        };
        self.write(now, Some(run), &event)?;
        if matches!(note, Note::Round(_) | Note::Ended(_)) {
            self.sync()?;
        }
        Ok(())
    }
}

/// The record as it is written. Texts come from outside, and a line beyond [`privacy::chain::LINE_MAX`] would be refused by the writer and by every
/// reader: of a record that is long, each text is cut.
fn record_of(entry: &Entry<'_>) -> Box<RawValue> {
    let written = "an audit record has a JSON form";
    let record = serde_json::value::to_raw_value(entry).expect(written);
    if record.get().len() <= RECORD_MAX {
        return record;
    }
    let mut fields = serde_json::to_value(entry).expect(written);
    for field in fields.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Value::String(text) = field
            && text.len() > TEXT_MAX
        {
            let (all, kept) = (text.len(), text.floor_char_boundary(TEXT_MAX));
            text.truncate(kept);
            text.push_str(&format!(" [{} bytes more]", all - kept));
        }
    }
    serde_json::value::to_raw_value(&fields).expect(written)
}

impl From<AuditError> for StoreError {
    fn from(error: AuditError) -> Self {
        Self::Audit(Box::new(error))
    }
}

#[cfg(test)]
mod tests;
