//! The audit log from its end: a page of records at a time, read backwards, however long the file is.
//!
//! Nothing is verified here: `consortia audit verify` does that, over the whole chain.
#![expect(unused_qualifications, reason = "the macro of utoipa writes them")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use privacy::chain::{LINE_MAX, Link};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::views::Problem;

/// Bytes that are read at a time.
const BLOCK: u64 = 64 << 10;
/// Records of a page.
const LIMIT_MAX: usize = 500;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageOf {
    /// Where the page before ended: its `next`. The newest records when absent.
    before: Option<u64>,
    /// Records of the page, 1 to 500; 100 when absent.
    limit: Option<usize>,
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    records: Vec<AuditRecord>,
    /// `before` of the next page; null at the beginning of the log.
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
    let path = admin.state.join("audit.jsonl");
    let read = tokio::task::spawn_blocking(move || tail(&path, before, limit)).await;
    read.map_err(Problem::ours)?.map(Json).map_err(|error| Problem::ours(format!("audit.jsonl: {error}")))
}

/// The last `limit` whole lines before the byte `before`.
fn tail(path: &Path, before: Option<u64>, limit: usize) -> io::Result<AuditPage> {
    let mut file = File::open(path)?;
    let end = before.unwrap_or(u64::MAX).min(file.metadata()?.len());
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
    let first = start + skipped as u64;
    let records: Result<Vec<AuditRecord>, serde_json::Error> = lines.iter().rev().map(record).collect();
    Ok(AuditPage { records: records?, next: (first > 0).then_some(first) })
}

fn record(line: &&[u8]) -> Result<AuditRecord, serde_json::Error> {
    let Link { sequence, record, hash, .. } = serde_json::from_slice(line)?;
    Ok(AuditRecord { sequence, hash: hash.to_string(), record })
}

#[cfg(test)]
mod tests {
    use privacy::chain::Chain;

    use super::*;

    #[test]
    fn pages_from_the_end_hold_every_record_once_whatever_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut chain = Chain::new();
        let text: Vec<String> = (0..500)
            .map(|index| {
                let record = serde_json::json!({ "index": index, "text": "x".repeat(index) });
                serde_json::to_string(&chain.append(&record)).unwrap() + "\n"
            })
            .collect();
        std::fs::write(&path, text.concat() + "{\"sequence\": 50").unwrap();
        for limit in [1, 7, 100, 500] {
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let page = tail(&path, before, limit).unwrap();
                assert!(page.records.len() <= limit);
                seen.extend(page.records.iter().map(|record| record.sequence));
                before = page.next;
                if before.is_none() {
                    break;
                }
                assert!(!page.records.is_empty());
            }
            assert_eq!(seen, (0..500).rev().collect::<Vec<_>>(), "{limit}");
        }
    }
}
