//! A chain that is kept in several files: an audit log in segments.
//!
//! The current segment has the log's own name, `audit.jsonl`. One that has become long is closed, under that name with its number,
//! `audit.000001.jsonl`, and a new one begun, whose first record ([`Continuation`]) names the segment before it, its records and its head.
//! Sequence and hashes go on from file to file, so all segments together are one chain, and `cat audit.*.jsonl audit.jsonl` is its text.
//! Closed segments never change; a person may move them away, and a start needs the newest alone.
//!
//! [`SegmentWriter`] writes and rotates, [`Snapshot`] finds what a start reads, [`survey`] reads all. Nothing is repaired here but a
//! rotation that a crash cut short and half a line at the very end. This is the one module of the crate that touches files.

mod reading;
mod survey;
mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Chain, DamagedLine, Digest, Link};

pub use reading::{Segment, SegmentExtent, first_link, is_opening, read_segment, visit_segment};
use reading::{SegmentReader, buffered, first_link_of, last_link, unread};
pub use survey::{AbsentSegments, ReadSegment, Survey, survey};
pub use writer::{RotateError, SegmentWriter};

/// The event that opens a segment which goes on from another.
pub const CONTINUED: &str = "continued";
/// What names of logs end in.
const ENDING: &str = ".jsonl";
/// Digits of a number in a name, at least: names sort as numbers do up to the millionth.
const DIGITS: usize = 6;
/// How often files are listed anew that were renamed meanwhile.
const ATTEMPTS: usize = 8;

/// How many bytes a segment may have before it is closed: 4 KiB to 1 GiB, 64 MiB by default. A start reads as much, line by line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentBytes(u64);

impl SegmentBytes {
    /// The least: a page.
    pub const MIN: u64 = 4 << 10;
    /// The most: what a start can read at once.
    pub const MAX: u64 = 1 << 30;

    /// # Errors
    /// A sentence with the range.
    pub fn new(bytes: u64) -> Result<Self, String> {
        if (Self::MIN..=Self::MAX).contains(&bytes) {
            return Ok(Self(bytes));
        }
        let (least, most) = (Self::MIN, Self::MAX);
        Err(format!("a segment of an audit log has {least} (4 KiB) to {most} (1 GiB) bytes, and not {bytes}"))
    }
}

impl Default for SegmentBytes {
    fn default() -> Self {
        Self(64 << 20)
    }
}

impl From<SegmentBytes> for u64 {
    fn from(bytes: SegmentBytes) -> Self {
        bytes.0
    }
}

impl TryFrom<u64> for SegmentBytes {
    type Error = String;
    fn try_from(bytes: u64) -> Result<Self, String> {
        Self::new(bytes)
    }
}

/// What the first record of a segment says of the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// The number of the segment that it opens, 2 or more.
    pub segment: u64,
    /// The name of the file before.
    pub follows: String,
    /// Records before this one.
    pub records: u64,
    /// The hash of the last of them.
    pub head: Digest,
}

/// Why the files of a log are not one chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentFault {
    /// The disk.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line that is none of the chain.
    #[error(
        "{}: {fault}; it was changed after it was written: put the right file back from a backup or an archive, and ask who changed it",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: DamagedLine,
    },
    /// There are closed segments, and none to go on with.
    #[error(
        "{}: the file is missing or has no whole record, though {} is there, which it goes on from: put the file back", path.display(), last.display()
    )]
    NoCurrent {
        /// The file that is missing.
        path: PathBuf,
        /// The newest closed segment.
        last: PathBuf,
    },
    /// A segment ends before the next one begins.
    #[error(
        "{}, line {line}: the file ends before record {due}, from which {} goes on: lines were cut off its end; put the right file back from a \
         backup or an archive", path.display(), next.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// The first line that is missing, from 1.
        line: u64,
        /// The first record of the next segment.
        due: u64,
        /// The next segment.
        next: PathBuf,
    },
    /// A segment does not go on from the one before.
    #[error(
        "{}, line 1: it does not go on from the end of {}: one of the two is of another log or was exchanged; put the right file back from a \
         backup or an archive", path.display(), before.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The segment before.
        before: PathBuf,
    },
    /// A name that says something else than the file's first record.
    #[error(
        "{}, line 1: by its first record it is segment {found} and not {named}: files were exchanged or renamed; give it the name {right}",
        path.display()
    )]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The number in its name.
        named: u64,
        /// That of its first record.
        found: u64,
        /// The name that it should have.
        right: String,
    },
    /// A closed segment that is not older than the current one.
    #[error(
        "{}: it is named as closed segment {number}, and {} is segment {current} itself: one of the two is of another log, or an older copy; move \
         the wrong one out of the folder", path.display(), newest.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its number.
        number: u64,
        /// The current segment.
        newest: PathBuf,
        /// Its number.
        current: u64,
    },
    /// Two files of one number.
    #[error(
        "{} and {} are both segment {number} of one log; keep the one that goes on from segment {before} and move the other out of the folder",
        first.display(), second.display(), before = number.saturating_sub(1)
    )]
    Twice {
        /// The number.
        number: u64,
        /// The first by name.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SegmentFault + use<> {
    let path = path.to_owned();
    move |source| SegmentFault::File { path, source }
}

/// A closed segment, by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClosedSegment {
    /// From 1.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
}

/// The name of the log and the number of the closed segment that has this name; `None` for names of other files.
pub fn closed_by_name(name: &str) -> Option<(String, u64)> {
    let (log, digits) = name.strip_suffix(ENDING)?.rsplit_once('.')?;
    // Fewer digits may end the name of a server that has a log of its own, an address say.
    if log.is_empty() || digits.len() < DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((format!("{log}{ENDING}"), digits.parse().ok()?))
}

/// Where segment `number` of the log `current` is once it is closed.
pub fn closed_path(current: &Path, number: u64) -> PathBuf {
    let name = name_of(current);
    let log = name.strip_suffix(ENDING).unwrap_or(&name);
    current.with_file_name(format!("{log}.{number:0DIGITS$}{ENDING}"))
}

/// The closed segments of the log `current` in `folder`, by number; two may have the same.
///
/// # Errors
/// When the folder cannot be listed; one that is not there holds none.
pub fn closed_in(folder: &Path, current: &Path) -> io::Result<Vec<ClosedSegment>> {
    let mut found = Vec::new();
    let log = name_of(current);
    for (name, path) in entries(folder)? {
        if let Some((_, number)) = closed_by_name(&name).filter(|(of, _)| *of == log) {
            found.push(ClosedSegment { number, path });
        }
    }
    found.sort();
    Ok(found)
}

/// The audit logs in a folder, by the files of their current segments, which may be missing where closed ones are left: `audit.jsonl`, or
/// `audit-NAME.jsonl` of each server that takes turns on it.
///
/// # Errors
/// When the folder cannot be listed; one that is not there holds none.
pub fn logs_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (name, _) in entries(folder)? {
        let log = closed_by_name(&name).map_or(name, |(log, _)| log);
        if log == "audit.jsonl" || log.starts_with("audit-") && log.ends_with(ENDING) {
            found.push(folder.join(log));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// All files of the log `current` that are there, in the order of their records.
///
/// # Errors
/// When the folder cannot be listed.
pub fn files_of(current: &Path) -> io::Result<Vec<PathBuf>> {
    let closed = closed_in(folder_of(current), current)?.into_iter().map(|segment| segment.path);
    Ok(closed.chain(Some(current.to_owned()).filter(|path| path.exists())).collect())
}

fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Where the next segment is written before it takes the log's name.
fn next_path(current: &Path) -> PathBuf {
    current.with_file_name(format!("{}.new", name_of(current)))
}

/// The files of a log as they are at one moment. A program may be at work on it.
#[derive(Debug)]
pub struct Snapshot {
    /// The log's own name.
    pub current: PathBuf,
    /// The file of the current segment: that name, or the one of a segment that a crash kept from getting it; `None` where there is none.
    pub file: Option<PathBuf>,
    /// That file, open: a rename meanwhile does not change what is read.
    opened: Option<File>,
    /// The closed ones, by number.
    pub closed: Vec<ClosedSegment>,
}

impl Snapshot {
    /// Lists them, and opens the current one.
    ///
    /// # Errors
    /// [`SegmentFault::File`].
    pub fn of(current: &Path) -> Result<Self, SegmentFault> {
        let mut seen = Self::once(current)?;
        for _ in 1..ATTEMPTS {
            if !seen.is_between()? {
                break;
            }
            // It was renamed between two looks.
            seen = Self::once(current)?;
        }
        Ok(seen)
    }

    fn once(current: &Path) -> Result<Self, SegmentFault> {
        let mut found = None;
        let closed = || closed_in(folder_of(current), current).map_err(failed(current));
        let before = closed()?;
        for path in [current.to_owned(), next_path(current)] {
            // What stands beside the current segment, or where nothing was closed, was never begun.
            if found.is_some() || (path != current && before.is_empty()) {
                continue;
            }
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => found = Some((path.clone(), file.map_err(failed(&path))?)),
            }
        }
        let (file, opened) = found.unzip();
        Ok(Self { current: current.to_owned(), file, opened, closed: closed()? })
    }

    /// The file of the current segment, at its first byte.
    fn rewound(&self) -> Result<Option<&File>, SegmentFault> {
        let Some(mut file) = self.opened.as_ref() else { return Ok(None) };
        file.rewind().map_err(failed(self.path()))?;
        Ok(Some(file))
    }

    fn path(&self) -> &Path {
        self.file.as_ref().unwrap_or(&self.current)
    }

    /// The whole text of the current segment; nothing where there is none.
    ///
    /// # Errors
    /// [`SegmentFault::File`].
    pub fn text(&self) -> Result<Vec<u8>, SegmentFault> {
        let mut text = Vec::new();
        if let Some(mut file) = self.rewound()? {
            file.read_to_end(&mut text).map_err(failed(self.path()))?;
        }
        Ok(text)
    }

    /// Gives the segment the log's name that a crash kept from getting it.
    ///
    /// # Errors
    /// [`SegmentFault::File`].
    pub fn settle(&mut self) -> Result<(), SegmentFault> {
        let (path, next) = (&self.current, next_path(&self.current));
        if self.file.as_ref() == Some(&next) {
            std::fs::rename(&next, path).and_then(|()| writer::sync_folder(path)).map_err(failed(path))?;
            self.file = Some(path.clone());
        }
        Ok(())
    }

    /// Numbers of segments that are not here: from the first on, up to the current one if `newest` is its number.
    pub fn missing(&self, newest: Option<u64>) -> Vec<u64> {
        let end = newest.or_else(|| self.closed.last().map(|last| last.number + 1)).unwrap_or(1);
        (1..end).filter(|number| !self.closed.iter().any(|closed| closed.number == *number)).collect()
    }

    /// Whether the log was rotated while it was looked at: no segment is current, or the one that was read is closed by now.
    fn is_between(&self) -> Result<bool, SegmentFault> {
        let Some(last) = self.closed.last() else { return Ok(false) };
        if self.file.is_none() {
            return Ok(true);
        }
        let Some(file) = self.rewound()? else { return Ok(false) };
        let first = first_link_of(file).map_err(failed(self.path()))?;
        Ok(first.is_some() && first_link(&last.path).map_err(failed(&last.path))? == first)
    }

    /// Reads the current segment line by line and shows each record to `visit`, once it is known to go on from the end of the closed one
    /// before, where that is here. A log of which nothing is there has no records.
    ///
    /// # Errors
    /// [`SegmentFault`] says what does not fit.
    pub fn newest(&self, visit: &mut dyn FnMut(&Link)) -> Result<SegmentExtent, SegmentFault> {
        let path = self.path();
        let text: Box<dyn BufRead> = match self.rewound()? {
            Some(file) => Box::new(buffered(file)),
            None => Box::new(io::empty()),
        };
        let segment = SegmentReader::open(text).map_err(unread(path))?;
        if let Some(last) = self.closed.last() {
            self.check_place(last, &segment)?;
        }
        segment.read(visit).map_err(unread(path))
    }

    /// That the current segment is the one behind `last`, as far as its first record tells.
    fn check_place<R>(&self, last: &ClosedSegment, segment: &SegmentReader<R>) -> Result<(), SegmentFault> {
        let missing = || SegmentFault::NoCurrent { path: self.current.clone(), last: last.path.clone() };
        if segment.first.is_none() {
            return Err(missing());
        }
        if last.number >= segment.number {
            let ClosedSegment { number, path } = last.clone();
            let (newest, current) = (self.current.clone(), segment.number);
            return Err(SegmentFault::Newer { path, number, newest, current });
        }
        let is_next = last.number + 1 == segment.number;
        if !is_next && self.file.as_ref() != Some(&self.current) {
            // It was to follow another one, which is gone.
            return Err(missing());
        }
        if is_next { self.check_joint(&last.path, segment.start) } else { Ok(()) }
    }

    fn check_joint(&self, last: &Path, start: Chain) -> Result<(), SegmentFault> {
        let next = self.current.clone();
        match last_link(last).map_err(failed(last))? {
            Some(link) if (link.sequence + 1, link.hash) == (start.len(), start.head()) => Ok(()),
            Some(link) if link.sequence + 1 >= start.len() => {
                Err(SegmentFault::Foreign { path: next, before: last.to_owned() })
            }
            Some(_) | None => Err(short(last, start.len(), next)?),
        }
    }

    /// The hash that is sought, once the records of `newest` were shown to it: from that segment, else from the closed one that has it.
    ///
    /// # Errors
    /// [`SegmentFault`] for a closed segment that cannot be read.
    pub fn head_at(&self, newest: &SegmentExtent, sought: &HeadSought) -> Result<KnownHead, SegmentFault> {
        let records = sought.records;
        if records >= newest.start.len() {
            return Ok(sought.in_segment(newest));
        }
        for ClosedSegment { path, .. } in self.closed.iter().rev() {
            let first = first_link(path).map_err(failed(path))?;
            if first.is_none_or(|link| link.sequence >= records) {
                continue;
            }
            let mut sought = HeadSought::new(records);
            let segment = visit_segment(path, &mut |link| sought.see(link))?;
            return Ok(match sought.in_segment(&segment) {
                KnownHead::Beyond => KnownHead::Elsewhere,
                known => known,
            });
        }
        Ok(KnownHead::Elsewhere)
    }
}

/// A segment that ends too early, by the line that is due.
fn short(path: &Path, due: u64, next: PathBuf) -> Result<SegmentFault, SegmentFault> {
    let text = std::fs::read(path).map_err(failed(path))?;
    let lines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(SegmentFault::Short { path: path.to_owned(), line: lines + 1, due, next })
}

/// What is known of a place in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownHead {
    /// Its hash.
    Is(Digest),
    /// The chain is shorter.
    Beyond,
    /// It is in a segment that is not here.
    Elsewhere,
}

/// The hash of record `records - 1`, which is that of a chain of so many, while records are read one after the other.
#[derive(Clone, Copy, Debug)]
pub struct HeadSought {
    records: u64,
    found: Option<Digest>,
}

impl HeadSought {
    /// Seeks the head of a chain of `records` records.
    pub fn new(records: u64) -> Self {
        Self { records, found: None }
    }

    /// Looks at a record.
    pub fn see(&mut self, link: &Link) {
        if link.sequence.checked_add(1) == Some(self.records) {
            self.found = Some(link.hash);
        }
    }

    /// What is known once all records of `segment` were seen.
    fn in_segment(&self, segment: &SegmentExtent) -> KnownHead {
        match self.records.checked_sub(segment.start.len()) {
            None => KnownHead::Elsewhere,
            Some(0) => KnownHead::Is(segment.start.head()),
            Some(_) => self.found.map_or(KnownHead::Beyond, KnownHead::Is),
        }
    }
}

/// How files of a log are opened: one that is made is its owner's alone, whatever the umask.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests;
