//! The last lines of the logs about one run, read from their ends: what is shown of a long log costs no more, the longer it is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use privacy::chain::LINE_MAX;
use privacy::chain::segments::{files_of, logs_in};
use protocol::RunId;

use super::AuditError;

/// Bytes that are read at a time.
pub(super) const BLOCK: u64 = 256 << 10;
/// How often the files of a log are listed anew that was rotated while it was read.
const ATTEMPTS: usize = 8;

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

/// The lines of one log, from its newest segment back to where `bytes` bytes are found or the run begins.
fn lines_in(log: &Path, run: RunId, bytes: usize) -> Result<VecDeque<String>, AuditError> {
    let failed = |source| AuditError::File { path: log.to_owned(), source };
    let mut tried = 0;
    loop {
        tried += 1;
        let files = files_of(log).map_err(failed)?;
        let found = lines_in_files(&files, run, bytes);
        // A segment that is closed meanwhile gets another name.
        if tried == ATTEMPTS || files_of(log).map_err(failed)? == files {
            return found;
        }
    }
}

fn lines_in_files(files: &[PathBuf], run: RunId, bytes: usize) -> Result<VecDeque<String>, AuditError> {
    let mut found = Found { lines: VecDeque::new(), held: 0, bytes, is_over: false };
    for path in files.iter().rev() {
        found.read(path, run)?;
        if found.is_over {
            break;
        }
    }
    Ok(found.lines)
}

/// What was found of a run up to now, from behind.
struct Found {
    lines: VecDeque<String>,
    held: usize,
    bytes: usize,
    /// Whether nothing before it is wanted.
    is_over: bool,
}

impl Found {
    fn read(&mut self, path: &Path, run: RunId) -> Result<(), AuditError> {
        let failed = |source| AuditError::File { path: path.to_owned(), source };
        let named = format!("\"run\":\"{run}\"");
        let mut file = File::open(path).map_err(failed)?;
        let mut end = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut is_last = true;
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
                if is_whole && self.take(line, &named) {
                    return Ok(());
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
        Ok(())
    }

    /// Takes a line in if it is about the run; whether it was the last one that is wanted.
    fn take(&mut self, line: &[u8], named: &str) -> bool {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\n', '\r']);
        // What a segment says again of those before stands there.
        if !line.contains(named) || line.contains("\"event\":\"run_carried\"") {
            return false;
        }
        self.is_over = self.held + line.len() > self.bytes;
        if !self.is_over {
            self.held += line.len();
            self.lines.push_front(line.to_owned());
            self.is_over = line.contains("\"event\":\"submitted\"");
        }
        self.is_over
    }
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
