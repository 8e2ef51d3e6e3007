//! Reading a whole log: every segment by itself, and that each goes on from the one before.
//!
//! It goes on behind a fault, so that all are named at once. A segment that is not here is no fault: a person may have moved it, and
//! [`Survey::absent`] says which records are not known for it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::super::{Chain, Damage, DamagedLine};
use super::{
    ClosedSegment, Segment, SegmentFault, Snapshot, closed_in, closed_path, failed, name_of, read_segment,
    short,
};

/// A segment that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSegment {
    /// From 1.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// The end of the chain before it.
    pub start: Chain,
    /// Its own end.
    pub end: Chain,
}

/// Segments, one behind the other, that are not where they were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentSegments {
    /// The number of the first of them.
    pub first: u64,
    /// That of the last.
    pub last: u64,
    /// The first record in them, from 0.
    pub from: u64,
    /// The last record in them.
    pub to: u64,
    /// The names of the first and of the last.
    pub names: (String, String),
}

impl std::fmt::Display for AbsentSegments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, last, from, to, names } = self;
        match last - first {
            0 => write!(f, "records {from} to {to} ({})", names.0),
            _ => write!(f, "records {from} to {to} ({} to {})", names.0, names.1),
        }
    }
}

/// What the files of a log say together.
#[derive(Debug)]
pub struct Survey {
    /// Those that were read, in order; one in which a line is damaged is not among them.
    pub segments: Vec<ReadSegment>,
    /// Those that are nowhere.
    pub absent: Vec<AbsentSegments>,
    /// Bytes of an unfinished line at the very end, which a program that is writing it, or a crash, leaves.
    pub torn: usize,
    /// What is wrong.
    pub faults: Vec<SegmentFault>,
}

impl Survey {
    /// Where the log ends.
    pub fn end(&self) -> Chain {
        self.segments.last().map_or_else(Chain::new, |segment| segment.end)
    }

    /// Records that were read.
    pub fn records(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end.len() - segment.start.len()).sum()
    }
}

/// Reads all segments of the log `current`, in its folder and in the folders `archives`, and shows each to `visit`, in order. One at a time
/// is in memory. A program may be at work on the log.
///
/// # Errors
/// [`SegmentFault::File`] where a file or folder cannot be read. All else is in [`Survey::faults`].
pub fn survey(
    current: &Path,
    archives: &[PathBuf],
    visit: &mut dyn FnMut(&Path, &Segment),
) -> Result<Survey, SegmentFault> {
    let found = Snapshot::of(current)?;
    let mut seen = Survey { segments: Vec::new(), absent: Vec::new(), torn: 0, faults: Vec::new() };
    let mut closed = of_one_folder(found.closed.clone(), &mut seen.faults);
    for archive in archives {
        let here = closed_in(archive, current).map_err(failed(archive))?;
        for (number, path) in of_one_folder(here, &mut seen.faults) {
            match closed.get(&number) {
                None => {
                    closed.insert(number, path);
                }
                Some(first) if is_same(first, &path).map_err(failed(&path))? => {}
                Some(first) => {
                    let (first, second) = (first.clone(), path);
                    seen.faults.push(SegmentFault::Twice { number, first, second });
                }
            }
        }
    }
    let mut reading = Reading { seen, before: None, visit };
    for (number, path) in &closed {
        let text = std::fs::read(path).map_err(failed(path))?;
        reading.closed(*number, path, &text, current)?;
    }
    reading.current(&found)?;
    Ok(reading.seen)
}

/// The first of each number. Two of one number in a folder are a fault, even where they are alike.
fn of_one_folder(closed: Vec<ClosedSegment>, faults: &mut Vec<SegmentFault>) -> BTreeMap<u64, PathBuf> {
    let mut found: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for ClosedSegment { number, path } in closed {
        if let Some(first) = found.get(&number) {
            faults.push(SegmentFault::Twice { number, first: first.clone(), second: path });
        } else {
            found.insert(number, path);
        }
    }
    found
}

/// A segment that was copied into an archive and is still here is the same twice.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let length = |path: &Path| std::fs::metadata(path).map(|file| file.len());
    Ok(length(one)? == length(other)? && std::fs::read(one)? == std::fs::read(other)?)
}

struct Reading<'a> {
    seen: Survey,
    /// The segment before: its number, its file, and its end where all of its lines are in order.
    before: Option<(u64, PathBuf, Option<Chain>)>,
    visit: &'a mut dyn FnMut(&Path, &Segment),
}

impl Reading<'_> {
    fn closed(&mut self, named: u64, path: &Path, text: &[u8], current: &Path) -> Result<(), SegmentFault> {
        let segment = match read_segment(text) {
            Ok(segment) if segment.lines.links.is_empty() => {
                let fault = Damage::Text("the file is empty".to_owned());
                self.damaged(named, path, DamagedLine { line: 1, fault });
                return Ok(());
            }
            Ok(segment) => segment,
            Err(fault) => {
                self.damaged(named, path, fault);
                return Ok(());
            }
        };
        if segment.lines.torn > 0 {
            let (line, bytes) = (segment.lines.links.len() + 1, segment.lines.torn);
            let what = format!("it has no end ({bytes} bytes), and the segment is closed");
            self.damaged(named, path, DamagedLine { line, fault: Damage::Text(what) });
            return Ok(());
        }
        if segment.number != named {
            let right = name_of(&closed_path(current, segment.number));
            let (path, found) = (path.to_owned(), segment.number);
            self.seen.faults.push(SegmentFault::Misnamed { path: path.clone(), named, found, right });
            // Where it belongs is not known for sure: what follows is not compared with it.
            self.before = Some((named, path, None));
            return Ok(());
        }
        self.take(path, &segment, current)
    }

    fn damaged(&mut self, named: u64, path: &Path, fault: DamagedLine) {
        self.seen.faults.push(SegmentFault::Damaged { path: path.to_owned(), fault });
        self.before = Some((named, path.to_owned(), None));
    }

    fn current(&mut self, found: &Snapshot) -> Result<(), SegmentFault> {
        let path = found.file.as_ref().unwrap_or(&found.current);
        let segment = match read_segment(&found.text()?) {
            Ok(segment) => segment,
            Err(fault) => {
                self.seen.faults.push(SegmentFault::Damaged { path: path.clone(), fault });
                return Ok(());
            }
        };
        self.seen.torn = segment.lines.torn;
        let last = self.before.as_ref().map(|(number, path, _)| (*number, path.clone()));
        match last {
            Some((_, last)) if segment.lines.links.is_empty() => {
                self.seen.faults.push(SegmentFault::NoCurrent { path: found.current.clone(), last });
                Ok(())
            }
            Some((number, path)) if number >= segment.number => {
                let (newest, current) = (found.current.clone(), segment.number);
                self.seen.faults.push(SegmentFault::Newer { path, number, newest, current });
                self.before = None;
                self.keep(&found.current, &segment);
                Ok(())
            }
            _ => self.take(path, &segment, &found.current),
        }
    }

    /// Compares a segment with the one before, and takes it in.
    fn take(&mut self, path: &Path, segment: &Segment, current: &Path) -> Result<(), SegmentFault> {
        let start = segment.lines.start;
        let (last, before, end) = match self.before.take() {
            None => (0, None, Some(Chain::new())),
            Some((number, path, end)) => (number, Some(path), end),
        };
        if segment.number > last + 1 {
            let (first, last) = (last + 1, segment.number - 1);
            let names = (first, last);
            let name = |number| name_of(&closed_path(current, number));
            let (from, to) = (end.map_or(0, |end| end.len()), start.len().saturating_sub(1));
            let names = (name(names.0), name(names.1));
            // Behind a damaged one nobody knows where they begin.
            let from = from.min(to);
            self.seen.absent.push(AbsentSegments { first, last, from, to, names });
        }
        if let (Some(before), Some(end)) = (before, end) {
            let is_next = segment.number == last + 1;
            if end.len() < start.len() && is_next {
                self.seen.faults.push(short(&before, start.len(), path.to_owned())?);
            } else if (is_next && end != start) || end.len() > start.len() {
                self.seen.faults.push(SegmentFault::Foreign { path: path.to_owned(), before });
            }
        }
        self.keep(path, segment);
        Ok(())
    }

    fn keep(&mut self, path: &Path, segment: &Segment) {
        let Segment { number, lines } = segment;
        let (number, start, end) = (*number, lines.start, lines.chain);
        if !lines.links.is_empty() {
            self.seen.segments.push(ReadSegment { number, path: path.to_owned(), start, end });
        }
        self.before = Some((number, path.to_owned(), Some(end)));
        (self.visit)(path, segment);
    }
}
