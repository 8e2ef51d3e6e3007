//! A chain as text: one link a line, appended to whatever keeps bytes, and read back.
//!
//! It opens no file and knows no disk: the shell gives it something to write to, whose `flush` returns only when the
//! bytes will survive a crash. What was not written wholly when the machine stopped is the beginning of a line without
//! its end; that much is cut off and said. Nothing else is ever repaired: damage is an error that names the line.

use std::fmt;
use std::io::{self, BufRead, Read as _, Write};

use serde::Serialize;

use super::{Chain, ChainError, Link};

/// Bytes of one line, its line feed included.
pub const LINE_MAX: usize = 1 << 20;

/// Appends records to a chain, a line each.
///
/// After a failed write nobody knows what stands on the disk: it refuses all further records until the chain is read anew.
pub struct ChainWriter<W> {
    chain: Chain,
    to: W,
    broken: bool,
}

/// A record that is not safely written. What it was to precede must not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The bytes could not be written or made durable.
    #[error("record {sequence} could not be written: {source}; make room on the disk and start again")]
    Io {
        /// Its place.
        sequence: u64,
        /// What the system says.
        source: io::Error,
    },
    /// An earlier write failed.
    #[error("record {0} was not written, because a write before it failed; start again")]
    Broken(u64),
}

impl<W: Write> ChainWriter<W> {
    /// Goes on behind `chain`. `to` takes bytes at the end of what is there; its `flush` makes them durable.
    pub fn new(chain: Chain, to: W) -> Self {
        Self { chain, to, broken: false }
    }

    /// Appends `record`. It may be lost in a crash until [`ChainWriter::sync`] returns.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn append(&mut self, record: &impl Serialize) -> Result<Link, WriteError> {
        let sequence = self.chain.len();
        if self.broken {
            return Err(WriteError::Broken(sequence));
        }
        let link = self.chain.append(record);
        let written = serde_json::to_vec(&link).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            if line.len() > LINE_MAX {
                let message = format!("its line has {} bytes; at most {LINE_MAX} are allowed", line.len());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            self.to.write_all(&line)
        });
        self.kept(sequence, written)?;
        Ok(link)
    }

    /// Returns when all that was appended is durable.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn sync(&mut self) -> Result<(), WriteError> {
        let sequence = self.chain.len().saturating_sub(1);
        if self.broken {
            return Err(WriteError::Broken(sequence));
        }
        let flushed = self.to.flush();
        self.kept(sequence, flushed)
    }

    /// The end of the chain.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    fn kept(&mut self, sequence: u64, written: io::Result<()>) -> Result<(), WriteError> {
        self.broken |= written.is_err();
        written.map_err(|source| WriteError::Io { sequence, source })
    }
}

impl<W> ChainWriter<W> {
    /// What it writes to.
    #[cfg(test)]
    pub(super) fn to_mut(&mut self) -> &mut W {
        &mut self.to
    }
}

impl<W> fmt::Debug for ChainWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainWriter({:?})", self.chain)
    }
}

/// The links of a text and what is left of an unfinished one.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// The end of the chain before the first of them: that of a chain without links, but for a segment that goes on from another file.
    pub start: Chain,
    /// All whole links, in order.
    pub links: Vec<Link>,
    /// Their end.
    pub chain: Chain,
    /// How many bytes they take: where the next line begins.
    pub whole: usize,
    /// The bytes of an unfinished line behind them. A crash in the middle of a write leaves one.
    pub torn: usize,
}

/// A line that is no link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct DamagedLine {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Damage,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Longer than any record is.
    #[error("it has {0} bytes; at most {LINE_MAX} are allowed: it was not written by this program")]
    TooLong(usize),
    /// Not the text of a link.
    #[error("not a record of this file: {0}; it was changed after it was written")]
    Text(String),
    /// A link that does not belong there.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Why lines could not be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line that is no link of the chain.
    #[error(transparent)]
    Damaged(#[from] DamagedLine),
}

/// Reads links line by line, each checked against the one before, and holds one line at a time.
///
/// A last line without its line feed counts as torn when it is the beginning of a record; a whole record that lacks the
/// line feed alone is torn as well, since nobody was told that it had been written.
#[derive(Debug)]
pub struct LinkReader<R> {
    from: R,
    line: Vec<u8>,
    /// The end of the chain before the first line.
    start: Chain,
    chain: Chain,
    whole: u64,
    torn: u64,
}

impl<R: BufRead> LinkReader<R> {
    /// Reads from the first line on.
    pub fn new(from: R) -> Self {
        Self::after(Chain::new(), from)
    }

    /// Reads lines that go on behind `start`.
    pub(super) fn after(start: Chain, from: R) -> Self {
        Self { from, line: Vec::new(), start, chain: start, whole: 0, torn: 0 }
    }

    /// The next whole link; `None` behind the last.
    ///
    /// # Errors
    /// [`ReadError`]; a [`DamagedLine`] is the first line that is no link, or does not follow.
    pub fn next_link(&mut self) -> Result<Option<Link>, ReadError> {
        if self.torn > 0 {
            return Ok(None);
        }
        self.line.clear();
        self.from.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut self.line)?;
        let before = self.chain.len() - self.start.len();
        let line = usize::try_from(before).unwrap_or(usize::MAX).saturating_add(1);
        let damaged = |fault| DamagedLine { line, fault };
        if self.line.len() > LINE_MAX {
            let rest = if self.line.ends_with(b"\n") { 0 } else { skip_line(&mut self.from)? };
            return Err(damaged(Damage::TooLong(self.line.len() + rest)).into());
        }
        if self.line.is_empty() {
            return Ok(None);
        }
        let read = serde_json::from_slice::<Link>(&self.line);
        if !self.line.ends_with(b"\n") && read.as_ref().err().is_none_or(serde_json::Error::is_eof) {
            self.torn = self.line.len() as u64;
            return Ok(None);
        }
        let link = read.map_err(|error| damaged(Damage::Text(error.to_string())))?;
        self.chain.follow(&link).map_err(|error| damaged(error.into()))?;
        self.whole += self.line.len() as u64;
        Ok(Some(link))
    }

    /// The end of the chain as far as it was read.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// How many bytes the whole links take that were read.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The bytes of an unfinished line behind them, once the end was reached.
    pub fn torn(&self) -> u64 {
        self.torn
    }
}

impl LinkReader<&[u8]> {
    /// [`LinkReader::next_link`] of bytes that no system has to read.
    ///
    /// # Errors
    /// [`DamagedLine`].
    pub fn next_in_memory(&mut self) -> Result<Option<Link>, DamagedLine> {
        self.next_link().map_err(|error| match error {
            ReadError::Damaged(damaged) => damaged,
            ReadError::Io(error) => unreachable!("bytes in memory can be read: {error}"),
        })
    }
}

/// Passes over the rest of a line and says how long it is.
fn skip_line(from: &mut impl BufRead) -> io::Result<usize> {
    let mut passed = 0;
    loop {
        let bytes = from.fill_buf()?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let is_over = end.is_some() || bytes.is_empty();
        from.consume(taken);
        passed += taken;
        if is_over {
            return Ok(passed);
        }
    }
}

/// All lines of a text, as [`LinkReader`] reads them.
///
/// # Errors
/// [`DamagedLine`] at the first line that is no link, or does not follow.
pub fn read_lines(text: &[u8]) -> Result<Lines, DamagedLine> {
    let (mut reader, mut links) = (LinkReader::new(text), Vec::new());
    while let Some(link) = reader.next_in_memory()? {
        links.push(link);
    }
    let of_the_text = |bytes: u64| usize::try_from(bytes).expect("a part of a text that is in memory");
    let (whole, torn) = (of_the_text(reader.whole), of_the_text(reader.torn));
    Ok(Lines { start: reader.start, links, chain: reader.chain, whole, torn })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes and fails then.
    struct Full {
        room: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            if taken == 0 { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(taken) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text() -> Vec<u8> {
        let mut writer = ChainWriter::new(Chain::new(), Vec::new());
        for record in ["one", "two", "three"] {
            writer.append(&record).unwrap();
        }
        writer.sync().unwrap();
        writer.to
    }

    #[test]
    fn what_was_appended_is_read_and_continued() {
        let read = read_lines(&text()).unwrap();
        assert_eq!((read.chain.len(), read.whole, read.torn), (3, text().len(), 0));
        let mut writer = ChainWriter::new(read.chain, text());
        writer.append(&"four").unwrap();
        let read = read_lines(&writer.to).unwrap();
        assert_eq!((read.links[3].read::<String>().unwrap().as_str(), read.chain), ("four", writer.chain()));
        assert!(read_lines(b"").unwrap().chain.is_empty());
    }

    #[test]
    fn wherever_a_write_stops_the_lines_before_it_are_kept() {
        let text = text();
        let starts: Vec<usize> = (0..=text.len()).filter(|at| *at == 0 || text[at - 1] == b'\n').collect();
        for cut in 0..=text.len() {
            let read = read_lines(&text[..cut]).unwrap();
            let start = *starts.iter().rfind(|start| **start <= cut).unwrap();
            assert_eq!((read.whole, read.torn), (start, cut - start), "cut at {cut}");
        }
    }

    #[test]
    fn a_line_has_a_limit_when_it_is_written_and_when_it_is_read() {
        let mut writer = ChainWriter::new(Chain::new(), Vec::new());
        writer.append(&"x".repeat(LINE_MAX - 300)).unwrap();
        let text = writer.to.clone();
        assert_eq!(read_lines(&text).unwrap().links.len(), 1);
        let said = writer.append(&"x".repeat(LINE_MAX)).unwrap_err().to_string();
        assert!(said.contains("record 1") && said.contains("1048576"), "{said}");
        for end in ["\n", ""] {
            let long = [&text[..], &vec![b'x'; LINE_MAX + 1], end.as_bytes()].concat();
            let fault = read_lines(&long).unwrap_err();
            assert!(fault.line == 2 && matches!(fault.fault, Damage::TooLong(_)), "{fault}");
        }
    }

    #[test]
    fn lines_that_come_in_pieces_of_any_size_are_read_as_those_of_a_text() {
        let text = [text(), b"{\"sequence\":3,".to_vec()].concat();
        let long = [&text[..], &vec![b'x'; LINE_MAX + 9], b"\n"].concat();
        for size in [1, 2, 7, 64, 1 << 16] {
            let mut reader = LinkReader::new(io::BufReader::with_capacity(size, &text[..]));
            let mut links = Vec::new();
            while let Some(link) = reader.next_link().unwrap() {
                links.push(link);
            }
            let lines = read_lines(&text).unwrap();
            assert_eq!((links, reader.chain()), (lines.links, lines.chain));
            assert_eq!((reader.whole(), reader.torn()), (lines.whole as u64, lines.torn as u64));
            assert!(reader.torn() == 14 && reader.next_link().unwrap().is_none());
            let mut reader = LinkReader::new(io::BufReader::with_capacity(size, &long[..]));
            let fault = loop {
                match reader.next_link() {
                    Ok(link) => assert!(link.is_some()),
                    Err(error) => break error.to_string(),
                }
            };
            assert_eq!(fault, read_lines(&long).unwrap_err().to_string());
        }
    }

    #[test]
    fn any_changed_byte_names_its_line() {
        let text = text();
        for at in 0..text.len() {
            for flip in [1, 0x20, 0x80] {
                let mut changed = text.clone();
                changed[at] ^= flip;
                let line = 1 + text[..at].iter().filter(|byte| **byte == b'\n').count();
                let error = read_lines(&changed).unwrap_err();
                assert_eq!(error.line, line, "byte {at}, {error}");
            }
        }
    }

    #[test]
    fn after_a_failed_write_nothing_more_is_written() {
        let mut writer = ChainWriter::new(Chain::new(), Full { room: 300 });
        writer.append(&"fits").unwrap();
        assert!(matches!(writer.append(&"does not"), Err(WriteError::Io { sequence: 1, .. })));
        writer.to.room = 1000;
        assert!(matches!(writer.append(&"neither"), Err(WriteError::Broken(_))));
        assert!(writer.sync().is_err());
    }
}
