//! The audit log from its end: a page of records at a time, read backwards from segment to segment, however long it is.
//!
//! Nothing is verified here: `consortia audit verify` does that, over the whole chain.
#![expect(unused_qualifications, reason = "the macro of utoipa writes them")]

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use privacy::chain::segments::{files_of, first_link};
use privacy::chain::{LINE_MAX, Link};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::views::Problem;

/// Bytes that are read at a time.
const BLOCK: u64 = 64 << 10;
/// How often files are listed anew that were renamed meanwhile.
const ATTEMPTS: usize = 8;
/// Records of a page.
const LIMIT_MAX: usize = 500;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageOf {
    /// Only records whose `sequence` is smaller: the `next` of the page before. The newest records when absent.
    before: Option<u64>,
    /// Records of the page, 1 to 500; 100 when absent.
    limit: Option<usize>,
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    records: Vec<AuditRecord>,
    /// `before` of the next page; null at the beginning of the log, or of what is left of it here.
    next: Option<u64>,
}

/// A record.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditRecord {
    sequence: u64,
    hash: String,
    /// `time` in microseconds since the Unix epoch, `event`, `run` where there is one, and what belongs to the event.
    #[schema(value_type = Object)]
    record: Box<RawValue>,
}

/// The audit log, newest records first.
#[utoipa::path(get, path = "/api/v1/audit", params(PageOf), responses((status = OK, body = AuditPage), (status = BAD_REQUEST, body = Problem)))]
pub(super) async fn audit(
    State(admin): State<Shared>,
    page: Result<Query<PageOf>, QueryRejection>,
) -> Result<Json<AuditPage>, Problem> {
    let Query(PageOf { before, limit }) = page.map_err(Problem::bad)?;
    let limit = limit.unwrap_or(100);
    if limit == 0 || limit > LIMIT_MAX {
        return Err(Problem::bad(format!("a page has 1 to {LIMIT_MAX} records, not {limit}")));
    }
    let log = admin.places.audit.clone();
    let shown = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let read = tokio::task::spawn_blocking(move || page_of(&log, before, limit)).await;
    read.map_err(Problem::ours)?.map(Json).map_err(|error| Problem::ours(format!("{shown}: {error}")))
}

/// The last `limit` records of a log before record `before`.
fn page_of(log: &Path, before: Option<u64>, limit: usize) -> io::Result<AuditPage> {
    let mut tried = 0;
    loop {
        tried += 1;
        let files = files_of(log)?;
        let page = page_of_files(&files, before, limit);
        // A segment that is closed meanwhile gets another name.
        if tried == ATTEMPTS || files_of(log)? == files {
            return page;
        }
    }
}

fn page_of_files(files: &[PathBuf], before: Option<u64>, limit: usize) -> io::Result<AuditPage> {
    let mut records: Vec<AuditRecord> = Vec::new();
    for (older, path) in files.iter().enumerate().rev() {
        let end = match before {
            None => u64::MAX,
            Some(before) => start_of(path, before)?,
        };
        let (found, is_whole) = tail(path, end, limit - records.len())?;
        records.extend(found);
        if records.len() == limit {
            let is_last = is_whole && older == 0;
            let next = records.last().filter(|_| !is_last).map(|record| record.sequence);
            return Ok(AuditPage { records, next });
        }
    }
    Ok(AuditPage { records, next: None })
}

/// The byte at which record `sequence` begins in a segment; its end where it is in a later one. Halved again and again: lines are in order.
fn start_of(path: &Path, sequence: u64) -> io::Result<u64> {
    if first_link(path)?.is_none_or(|first| first.sequence >= sequence) {
        return Ok(0);
    }
    let mut file = BufReader::new(File::open(path)?);
    // The line at `low` is an earlier one, and none that begins between `high` and the end is.
    let (mut low, mut high) = (0, file.seek(SeekFrom::End(0))?);
    while high - low > BLOCK {
        let middle = low + (high - low) / 2;
        file.seek(SeekFrom::Start(middle))?;
        let (start, line) = (middle + read_line(&mut file)?.len() as u64, read_line(&mut file)?);
        match sequence_of(&line) {
            Some(found) if start < high && found < sequence => low = start,
            _ => high = middle,
        }
    }
    file.seek(SeekFrom::Start(low))?;
    loop {
        let line = read_line(&mut file)?;
        if sequence_of(&line).is_none_or(|found| found >= sequence) {
            return Ok(low);
        }
        low += line.len() as u64;
    }
}

fn read_line(file: &mut BufReader<File>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    file.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// The place of a record; `None` for half a line, which is being written.
fn sequence_of(line: &[u8]) -> Option<u64> {
    if !line.ends_with(b"\n") {
        return None;
    }
    serde_json::from_slice::<Link>(line).ok().map(|link| link.sequence)
}

/// The last `limit` whole lines before byte `end`, newest first, and whether they are all.
fn tail(path: &Path, end: u64, limit: usize) -> io::Result<(Vec<AuditRecord>, bool)> {
    let mut file = File::open(path)?;
    let end = end.min(file.metadata()?.len());
    let (mut start, mut bytes) = (end, Vec::new());
    // One line end more than lines: the one before the first of them.
    while start > 0 {
        let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
        if ends > limit {
            break;
        }
        if bytes.len() > (ends + 1) * LINE_MAX + BLOCK as usize {
            let message = format!("a line before byte {end} has more than {LINE_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let from = start.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(start - from).unwrap_or(0)];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut block)?;
        block.append(&mut bytes);
        (bytes, start) = (block, from);
    }
    // Half a line that is being written is not told.
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    // The first may have begun before what was read.
    let surplus = lines.len().saturating_sub(limit).max(usize::from(start > 0 && !lines.is_empty()));
    let skipped: usize = lines.drain(..surplus).map(<[u8]>::len).sum();
    let is_whole = start + skipped as u64 == 0;
    let records: Result<Vec<AuditRecord>, serde_json::Error> = lines.iter().rev().map(record).collect();
    Ok((records?, is_whole))
}

fn record(line: &&[u8]) -> Result<AuditRecord, serde_json::Error> {
    let Link { sequence, record, hash, .. } = serde_json::from_slice(line)?;
    Ok(AuditRecord { sequence, hash: hash.to_string(), record })
}

#[cfg(test)]
mod tests {
    use privacy::chain::Chain;
    use privacy::chain::segments::closed_path;

    use super::*;

    /// Five hundred records in files of these lengths, and half a line.
    fn log_of(lengths: &[usize]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut chain = Chain::new();
        let mut text = (0..500).map(|index| {
            let record = serde_json::json!({ "index": index, "text": "x".repeat(index) });
            serde_json::to_string(&chain.append(&record)).unwrap() + "\n"
        });
        for (number, length) in (1..).zip(lengths) {
            let part: String = text.by_ref().take(*length).collect();
            std::fs::write(closed_path(&path, number), part).unwrap();
        }
        let rest: String = text.collect();
        std::fs::write(&path, rest + "{\"sequence\": 50").unwrap();
        (dir, path)
    }

    #[test]
    fn pages_from_the_end_hold_every_record_once_whatever_their_size_and_the_segments() {
        for lengths in [&[][..], &[1], &[100, 250], &[499], &[7, 8, 300, 1]] {
            let (_dir, path) = log_of(lengths);
            for limit in [1, 7, 100, 500] {
                let (mut seen, mut before) = (Vec::new(), None);
                loop {
                    let page = page_of(&path, before, limit).unwrap();
                    assert!(page.records.len() <= limit);
                    seen.extend(page.records.iter().map(|record| record.sequence));
                    before = page.next;
                    if before.is_none() {
                        break;
                    }
                    assert!(!page.records.is_empty());
                }
                assert_eq!(seen, (0..500).rev().collect::<Vec<_>>(), "{limit} of {lengths:?}");
            }
        }
    }

    #[test]
    fn a_page_begins_before_the_record_that_is_named() {
        let (_dir, path) = log_of(&[100, 250]);
        for before in 0..=501 {
            let page = page_of(&path, Some(before), 3).unwrap();
            let seen: Vec<u64> = page.records.iter().map(|record| record.sequence).collect();
            let end = before.min(500);
            assert_eq!(seen, (end.saturating_sub(3)..end).rev().collect::<Vec<_>>(), "{before}");
        }
        // What was moved into an archive is not shown, and not missed.
        std::fs::remove_file(closed_path(&path, 1)).unwrap();
        let page = page_of(&path, Some(120), 100).unwrap();
        assert_eq!((page.records.len(), page.next), (20, None));
    }
}
