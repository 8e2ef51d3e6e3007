//! What a server did and was told, in `audit.jsonl` (of each replica, in a file that bears its name): a hash chain of records that nobody changes unseen.
//!
//! It holds who, what and when; no update, no norm, no metric of a site. What was refused for want of budget stands in the ledger. A
//! release stands in both: in the ledger, in the transaction that pays, and then here, durably, before anybody can read it. Every record
//! names the version of the state that was committed before it. So the database is never behind this log, and whoever turns
//! it back is found ([`witness`]). The story around it is made durable at the end of every round.

pub(crate) mod witness;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use privacy::chain::{Chain, ChainWriter, DamagedLine, LINE_MAX, WriteError, read_lines};
use protocol::wire::{Control, RunState};
use protocol::{Decline, Refusal, RunId, TaskId, Time};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::engine::Record;
use super::members::Verdict;
use super::private;
use super::store::{AuditHead, CrossCheck, StoreError, Unlogged};
use crate::{Note, RunEnd};

/// Bytes of a record whose texts are written whole.
const RECORD_MAX: usize = 1 << 16;
/// Bytes that are kept of each text in a longer record. One byte takes up to six in JSON, and no event has more than eight texts.
const TEXT_MAX: usize = 1 << 12;

/// Bytes that are read at a time, from the end of a log.
const BLOCK: u64 = 256 << 10;

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
        rehearsal: bool,
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
        reason: Refusal,
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
}

/// A file whose flush is durable.
struct Synced(File);

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// The log of one server, open for writing.
pub(crate) struct AuditLog {
    writer: ChainWriter<Synced>,
    path: PathBuf,
    /// Bytes of whole lines.
    len: u64,
    /// The chain before a line of which only a part may have been written.
    torn: Option<Chain>,
    name: String,
    cross: Arc<CrossCheck>,
}

impl AuditLog {
    /// Goes on with the log at `path`, or begins it. Half a line that a crash left is cut off.
    pub(crate) fn open(path: &Path, cross: Arc<CrossCheck>, now: Time) -> Result<Self, AuditError> {
        let path = path.to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |source| AuditError::File { path: path.clone(), source };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let lines = read_lines(&text).map_err(|fault| AuditError::Damaged { path: path.clone(), fault })?;
        let file = private::options().create(true).append(true).open(&path).map_err(failed)?;
        if lines.torn > 0 {
            tracing::warn!("{}: a crash left half a line; it is cut off", path.display());
            file.set_len((text.len() - lines.torn) as u64).map_err(failed)?;
        }
        let (writer, len) = (ChainWriter::new(lines.chain, Synced(file)), lines.whole as u64);
        let mut log = Self { writer, path, len, torn: None, name, cross };
        let software = concat!("consortia ", env!("CARGO_PKG_VERSION"));
        log.write(now, None, &Event::Started { software })?;
        log.sync()?;
        Ok(log)
    }

    /// Makes everything durable, and lets the database know how far that is.
    fn sync(&mut self) -> Result<(), AuditError> {
        self.writer.sync().map_err(|fault| AuditError::Sync { path: self.path.clone(), fault })?;
        let chain = self.writer.chain();
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
        self.mend()?;
        let (run, database) = (run.map(|run| run.to_string()), self.cross.version());
        let record = record_of(&Entry { time: now.as_micros(), run, database, event });
        let before = self.writer.chain();
        let link = self.writer.append(&record).inspect_err(|_| self.torn = Some(before))?;
        let line = serde_json::to_vec(&link).map_err(|error| self.failed(error.into()))?;
        self.len += line.len() as u64 + 1;
        Ok(())
    }

    /// Cuts off what a write that failed has left of its line.
    fn mend(&mut self) -> Result<(), AuditError> {
        let Some(chain) = self.torn else { return Ok(()) };
        let file = private::options().append(true).open(&self.path).map_err(|error| self.failed(error))?;
        file.set_len(self.len).map_err(|error| self.failed(error))?;
        (self.writer, self.torn) = (ChainWriter::new(chain, Synced(file)), None);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> AuditError {
        AuditError::File { path: self.path.clone(), source }
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
        let named = |task: &TaskId| format!("{} {}", task.step.name(), task.round);
        let event = match note {
            Note::Waiting { .. } => return Ok(()),
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
            Note::Closed { task, answered, missing, quorum } => {
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

/// The record as it is written. Texts come from outside, and a line beyond [`LINE_MAX`] would be refused by the writer and by every
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

/// The last lines of the logs in `state` that are about `run`, oldest first, of at most `bytes` bytes together. Servers that took
/// turns have a log each.
pub(crate) fn lines_of(state: &Path, run: RunId, bytes: usize) -> Result<Vec<String>, AuditError> {
    let failed = |source| AuditError::File { path: state.to_owned(), source };
    let mut lines = Vec::new();
    for path in logs_in(state).map_err(failed)? {
        lines.extend(lines_in(&path, run, bytes)?);
    }
    lines.sort_by_key(|line| time_of(line));
    let mut held = 0;
    let fit = lines.iter().rev().take_while(|line| {
        held += line.len();
        held <= bytes
    });
    Ok(lines[lines.len() - fit.count()..].to_vec())
}

/// The audit logs in a state folder, by name: one, or one of each server that has taken turns on it.
pub(crate) fn logs_in(state: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "audit.jsonl" || name.starts_with("audit-") && name.ends_with(".jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// From the end of the file back to where `bytes` bytes are found or the run begins: what is shown of a long log does not cost more, the
/// longer it is.
fn lines_in(path: &Path, run: RunId, bytes: usize) -> Result<VecDeque<String>, AuditError> {
    let failed = |source| AuditError::File { path: path.to_owned(), source };
    let (named, begun) = (format!("\"run\":\"{run}\""), "\"event\":\"submitted\"");
    let mut file = File::open(path).map_err(failed)?;
    let mut end = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let (mut lines, mut held, mut is_last) = (VecDeque::new(), 0, true);
    // The beginning of what was read, up to its first line feed: the end of a line that begins earlier.
    let mut tail: Vec<u8> = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).expect("a block fits into memory")];
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut block)).map_err(failed)?;
        block.append(&mut tail);
        end = start;
        let first = match block.iter().position(|byte| *byte == b'\n') {
            _ if start == 0 => 0,
            Some(at) => at + 1,
            None => block.len(),
        };
        for line in block[first..].split_inclusive(|byte| *byte == b'\n').rev() {
            // A line without its end is being written, or was cut off by a crash.
            let is_whole = line.ends_with(b"\n");
            if !std::mem::take(&mut is_last) && !is_whole {
                return Err(failed(io::Error::other("a line has no end")));
            }
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end_matches(['\n', '\r']);
            if !is_whole || !line.contains(&named) {
                continue;
            }
            if held + line.len() > bytes {
                return Ok(lines);
            }
            held += line.len();
            lines.push_front(line.to_owned());
            if line.contains(begun) {
                return Ok(lines);
            }
        }
        block.truncate(first);
        // A line that is longer would be taken into memory before anybody sees what it is.
        if block.len() > LINE_MAX {
            let what = format!("a line near byte {end} has more than {LINE_MAX} bytes");
            return Err(failed(io::Error::other(what)));
        }
        tail = block;
    }
    Ok(lines)
}

/// When a line was written.
fn time_of(line: &str) -> Option<u64> {
    let link: privacy::chain::Link = serde_json::from_str(line).ok()?;
    #[derive(serde::Deserialize)]
    struct Moment {
        time: u64,
    }
    Some(serde_json::from_str::<Moment>(link.record.get()).ok()?.time)
}

impl From<AuditError> for StoreError {
    fn from(error: AuditError) -> Self {
        Self::Audit(Box::new(error))
    }
}

#[cfg(test)]
mod tests;
