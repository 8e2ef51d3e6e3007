//! A chain as text: one link a line, appended to whatever keeps bytes, and read back.
//!
//! It opens no file and knows no disk: the shell gives it something to write to, whose `flush` returns only when the
//! bytes will survive a crash. What was not written wholly when the machine stopped is the beginning of a line without
//! its end; that much is cut off and said. Nothing else is ever repaired: damage is an error that names the line.

use std::fmt;
use std::io::{self, Write};

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

/// Reads lines and checks that they follow one another from the first on.
///
/// A last line without its line feed counts as torn when it is the beginning of a record; a whole record that lacks the
/// line feed alone is torn as well, since nobody was told that it had been written.
///
/// # Errors
/// [`DamagedLine`] at the first line that is no link, or does not follow.
pub fn read_lines(text: &[u8]) -> Result<Lines, DamagedLine> {
    read_lines_after(Chain::new(), text)
}

/// The same of lines that go on behind `start`.
pub(super) fn read_lines_after(start: Chain, text: &[u8]) -> Result<Lines, DamagedLine> {
    let mut lines = Lines { start, links: Vec::new(), chain: start, whole: 0, torn: 0 };
    for (line, bytes) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let damaged = |fault| DamagedLine { line, fault };
        if bytes.len() > LINE_MAX {
            return Err(damaged(Damage::TooLong(bytes.len())));
        }
        let read = serde_json::from_slice::<Link>(bytes);
        if !bytes.ends_with(b"\n") && read.as_ref().err().is_none_or(serde_json::Error::is_eof) {
            lines.torn = bytes.len();
            break;
        }
        let link = read.map_err(|error| damaged(Damage::Text(error.to_string())))?;
        lines.chain.follow(&link).map_err(|error| damaged(error.into()))?;
        lines.links.push(link);
        lines.whole += bytes.len();
    }
    Ok(lines)
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
