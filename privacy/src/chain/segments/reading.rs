//! Reading one segment: line by line from a file, or a text that is in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::super::{Chain, DamagedLine, LINE_MAX, Lines, Link, LinkReader, ReadError};
use super::{CONTINUED, Continuation, SegmentFault, failed};

/// What a segment says.
#[derive(Clone, Debug)]
pub struct Segment {
    /// From 1.
    pub number: u64,
    /// Its lines, in order from its own first one on.
    pub lines: Lines,
}

/// Where a segment begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentExtent {
    /// From 1.
    pub number: u64,
    /// The end of the chain before its first record.
    pub start: Chain,
    /// The end of the chain behind its last whole line.
    pub end: Chain,
    /// Bytes of the records that opened it ([`is_opening`]); 0 for the first segment of a log.
    pub opening: u64,
    /// Bytes of its whole lines.
    pub whole: u64,
    /// Bytes of an unfinished line behind them.
    pub torn: u64,
}

impl SegmentExtent {
    /// Whether it has no whole line.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Reads one segment. It may go on from another one, by whose word it begins: compare the two.
///
/// # Errors
/// [`DamagedLine`] at the first line that does not follow.
pub fn read_segment(text: &[u8]) -> Result<Segment, DamagedLine> {
    let mut links = Vec::new();
    let extent =
        SegmentReader::open(text).and_then(|reader| reader.read(&mut |link| links.push(link.clone())));
    let SegmentExtent { number, start, end, whole, torn, .. } = extent.map_err(|error| match error {
        ReadError::Damaged(damaged) => damaged,
        ReadError::Io(error) => unreachable!("bytes in memory can be read: {error}"),
    })?;
    let of_the_text = |bytes: u64| usize::try_from(bytes).expect("a part of a text that is in memory");
    let (whole, torn) = (of_the_text(whole), of_the_text(torn));
    Ok(Segment { number, lines: Lines { start, links, chain: end, whole, torn } })
}

/// Reads the segment in the file `path` line by line and shows each record to `visit`: one line is in memory at a time.
///
/// # Errors
/// [`SegmentFault::File`] and [`SegmentFault::Damaged`]; records before a damaged line have been shown then.
pub fn visit_segment(path: &Path, visit: &mut dyn FnMut(&Link)) -> Result<SegmentExtent, SegmentFault> {
    let file = File::open(path).map_err(failed(path))?;
    SegmentReader::open(buffered(&file)).and_then(|reader| reader.read(visit)).map_err(unread(path))
}

pub(super) fn buffered(file: &File) -> BufReader<&File> {
    BufReader::with_capacity(1 << 16, file)
}

pub(super) fn unread(path: &Path) -> impl Fn(ReadError) -> SegmentFault + use<> {
    let path = path.to_owned();
    move |error| match error {
        ReadError::Io(source) => SegmentFault::File { path: path.clone(), source },
        ReadError::Damaged(fault) => SegmentFault::Damaged { path: path.clone(), fault },
    }
}

/// A segment of which the first record is read, which says what it goes on from.
pub(super) struct SegmentReader<R> {
    pub(super) number: u64,
    pub(super) start: Chain,
    pub(super) first: Option<Link>,
    rest: LinkReader<io::Chain<io::Cursor<Vec<u8>>, R>>,
}

impl<R: BufRead> SegmentReader<R> {
    pub(super) fn open(mut from: R) -> Result<Self, ReadError> {
        let mut line = Vec::new();
        from.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
        // Whatever is wrong with the line is told by the reader of all lines.
        let opening = serde_json::from_slice::<Link>(&line).ok().and_then(|link| start_of(&link));
        let (number, start) = opening.unwrap_or_else(|| (1, Chain::new()));
        let mut rest = LinkReader::after(start, io::Cursor::new(line).chain(from));
        let first = rest.next_link()?;
        Ok(Self { number, start, first, rest })
    }

    pub(super) fn read(self, visit: &mut dyn FnMut(&Link)) -> Result<SegmentExtent, ReadError> {
        let Self { number, start, first: mut next, mut rest } = self;
        let (mut opening, mut is_in_opening) = (0, !start.is_empty());
        while let Some(link) = next {
            is_in_opening = is_in_opening && is_opening(&link);
            if is_in_opening {
                opening = rest.whole();
            }
            visit(&link);
            next = rest.next_link()?;
        }
        let (end, whole, torn) = (rest.chain(), rest.whole(), rest.torn());
        Ok(SegmentExtent { number, start, end, opening, whole, torn })
    }
}

/// The number of the segment that begins with this link, and the end of the chain before it; `None` where it opens no segment.
pub(super) fn start_of(link: &Link) -> Option<(u64, Chain)> {
    #[derive(Deserialize)]
    struct Opening {
        event: String,
        #[serde(flatten)]
        of: Continuation,
    }
    if link.sequence == 0 {
        return Some((1, Chain::new()));
    }
    let Opening { event, of } = link.read().ok()?;
    let is_its = event == CONTINUED && (of.records, of.head) == (link.sequence, link.previous);
    (is_its && of.segment > 1).then_some((of.segment, Chain { next: of.records, head: of.head }))
}

/// Whether a record belongs to the opening of a segment: it says again what stands in segments before. So do those whose event ends in
/// `_carried`.
pub fn is_opening(link: &Link) -> bool {
    #[derive(Deserialize)]
    struct Named {
        event: String,
    }
    link.read::<Named>().is_ok_and(|named| named.event == CONTINUED || named.event.ends_with("_carried"))
}

/// The first link of a file, where there is a whole one.
///
/// # Errors
/// When the file cannot be read.
pub fn first_link(path: &Path) -> io::Result<Option<Link>> {
    first_link_of(&File::open(path)?)
}

pub(super) fn first_link_of(file: &File) -> io::Result<Option<Link>> {
    let mut line = Vec::new();
    BufReader::new(file).take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
    Ok(if line.ends_with(b"\n") { serde_json::from_slice(&line).ok() } else { None })
}

/// The last link of a file, where it ends with a whole one.
pub(super) fn last_link(path: &Path) -> io::Result<Option<Link>> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(end.saturating_sub(LINE_MAX as u64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let Some(line) = tail.strip_suffix(b"\n") else { return Ok(None) };
    let begin = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(serde_json::from_slice(&line[begin..]).ok())
}
