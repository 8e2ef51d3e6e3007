//! Writing a log in segments: appending, and closing a segment that has become long.
//!
//! A rotation is five steps, each durable before the next: the current segment; the next one, whole, under a name of its own; the current
//! one under its closed name; the next one under the log's name. So a crash leaves the log as it was, with a file beside it that was
//! never begun, or between the two renames, and [`SegmentWriter::open`] makes the second.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::{Chain, ChainWriter, Link, WriteError};
use super::{
    ClosedSegment, Continuation, SegmentBytes, SegmentExtent, SegmentFault, Snapshot, closed_path, failed,
    folder_of, name_of, next_path, private,
};

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

/// Why no new segment was begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// Everything is as it was: the segment goes on, and it is tried again some records later.
    #[error("{}: {source}; the audit log goes on in its current file", path.display())]
    Postponed {
        /// The file that could not be made.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The segment is closed and the next one not begun. It must be tried again before anything else is written.
    #[error("{}: {source}", path.display())]
    Unfinished {
        /// The file that could not be made.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The current segment of a log, open for writing.
#[derive(Debug)]
pub struct SegmentWriter {
    path: PathBuf,
    writer: ChainWriter<Synced>,
    limit: SegmentBytes,
    number: u64,
    /// Bytes of whole lines.
    len: u64,
    /// Bytes from which on a new segment is begun.
    due: u64,
    /// The chain before a line of which only a part may have been written.
    torn: Option<Chain>,
    /// Whether the segment has its closed name, and the next one is not there.
    is_closed: bool,
    /// Steps of a rotation until one fails.
    #[cfg(test)]
    pub(super) fuse: Option<usize>,
}

impl SegmentWriter {
    /// Goes on with the log at `path`, or begins it, and shows the records of its current segment to `visit`. Half a line that a crash left is
    /// cut off, and a rotation that it cut short is finished; the extent is the one before that. A segment is closed when it has more than `limit` bytes behind its opening.
    ///
    /// # Errors
    /// [`SegmentFault`] where it cannot be read or written, or does not go on from the segment before.
    pub fn open(
        path: &Path,
        limit: SegmentBytes,
        visit: &mut dyn FnMut(&Link),
    ) -> Result<(Self, SegmentExtent), SegmentFault> {
        let mut found = Snapshot::of(path)?;
        let segment = found.newest(visit)?;
        found.settle()?;
        let next = next_path(path);
        if next.exists() {
            // Of a rotation that was not begun.
            std::fs::remove_file(&next).map_err(failed(&next))?;
        }
        let file = private().create(true).append(true).open(path).map_err(failed(path))?;
        if segment.torn > 0 {
            file.set_len(segment.whole).and_then(|()| file.sync_all()).map_err(failed(path))?;
        }
        // The name of a new file is durable only when its folder is.
        sync_folder(path).map_err(failed(path))?;
        let mut opened = Self::over(path, limit, segment.number, ChainWriter::new(segment.end, Synced(file)));
        opened.len = segment.whole;
        opened.due = segment.opening.saturating_add(u64::from(limit));
        Ok((opened, segment))
    }

    /// Goes on behind the closed segment `last`, which ends with `chain`, where the current one is gone: [`SegmentWriter::rotate`] begins it
    /// before anything else is written.
    ///
    /// # Errors
    /// [`SegmentFault::File`].
    pub fn open_behind(
        path: &Path,
        limit: SegmentBytes,
        last: &ClosedSegment,
        chain: Chain,
    ) -> Result<Self, SegmentFault> {
        // Nothing is written into it.
        let file = private().append(true).open(&last.path).map_err(failed(&last.path))?;
        let mut opened = Self::over(path, limit, last.number, ChainWriter::new(chain, Synced(file)));
        opened.is_closed = true;
        Ok(opened)
    }

    fn over(path: &Path, limit: SegmentBytes, number: u64, writer: ChainWriter<Synced>) -> Self {
        Self {
            path: path.to_owned(),
            writer,
            limit,
            number,
            len: 0,
            due: u64::from(limit),
            torn: None,
            is_closed: false,
            #[cfg(test)]
            fuse: None,
        }
    }

    /// Whether the segment is long enough to be closed before the next record.
    pub fn is_due(&self) -> bool {
        self.is_closed || (self.len >= self.due && self.torn.is_none())
    }

    /// What the first record of the next segment is to say.
    pub fn continuation(&self) -> Continuation {
        let (chain, number) = (self.writer.chain(), self.number);
        let follows = name_of(&closed_path(&self.path, number));
        Continuation { segment: number + 1, follows, records: chain.len(), head: chain.head() }
    }

    /// Closes the segment and begins the next one with the records `opening`, of which the first has the fields of
    /// [`SegmentWriter::continuation`] and the event [`super::CONTINUED`]. All of them are durable then.
    ///
    /// # Errors
    /// [`RotateError`] says whether the segment goes on.
    pub fn rotate(&mut self, opening: &[Box<RawValue>]) -> Result<(), RotateError> {
        let (closed, next) = (closed_path(&self.path, self.number), next_path(&self.path));
        let mut chain = self.writer.chain();
        let mut text = Vec::new();
        for record in opening {
            let link = chain.append(record);
            text.extend(serde_json::to_vec(&link).expect("a link has a JSON form"));
            text.push(b'\n');
        }
        let begun = self.write_next(&closed, &next, &text);
        let file = begun.map_err(|(path, source)| self.not_rotated(path, source))?;
        if !self.is_closed {
            let renamed = self.step().and_then(|()| std::fs::rename(&self.path, &closed));
            renamed.map_err(|source| self.not_rotated(closed, source))?;
            self.is_closed = true;
        }
        let renamed = self.step().and_then(|()| sync_folder(&self.path));
        let renamed = renamed.and_then(|()| self.step()).and_then(|()| std::fs::rename(&next, &self.path));
        renamed.map_err(|source| self.not_rotated(self.path.clone(), source))?;
        // From here on the next segment is the current one, whatever becomes of the folder's flush.
        self.writer = ChainWriter::new(chain, Synced(file));
        (self.number, self.len, self.is_closed) = (self.number + 1, text.len() as u64, false);
        self.due = self.len.saturating_add(u64::from(self.limit));
        // A crash that undoes the second rename leaves the same file under the name from which an open takes it up.
        let _ = self.step().and_then(|()| sync_folder(&self.path));
        Ok(())
    }

    /// Makes all durable that was written, and the next segment under a name of its own. After an error: which file it was.
    fn write_next(&mut self, closed: &Path, next: &Path, text: &[u8]) -> Result<File, (PathBuf, io::Error)> {
        let here = self.path.clone();
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| (path, source)
        };
        if !self.is_closed {
            self.step().map_err(at(&here))?;
            self.writer.sync().map_err(|fault| (here, io::Error::other(fault)))?;
            if closed.symlink_metadata().is_ok() {
                let what = format!(
                    "the file is there already, where segment {} is to be closed; move it out of the folder",
                    self.number
                );
                return Err((closed.to_owned(), io::Error::other(what)));
            }
        }
        self.step().map_err(at(next))?;
        match std::fs::remove_file(next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(next)(error)),
            _ => {}
        }
        let mut file = private().create_new(true).append(true).open(next).map_err(at(next))?;
        self.step().map_err(at(next))?;
        file.write_all(text).map_err(at(next))?;
        self.step().map_err(at(next))?;
        file.sync_all().and_then(|()| sync_folder(next)).map_err(at(next))?;
        Ok(file)
    }

    fn not_rotated(&mut self, path: PathBuf, source: io::Error) -> RotateError {
        if self.is_closed {
            return RotateError::Unfinished { path, source };
        }
        self.due = self.len.saturating_add((u64::from(self.limit) / 16).max(1));
        RotateError::Postponed { path, source }
    }

    /// A step of a rotation, which a test may let fail.
    #[cfg(test)]
    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.fuse {
            let Some(less) = left.checked_sub(1) else { return Err(io::Error::other("killed")) };
            *left = less;
        }
        Ok(())
    }

    /// A step of a rotation.
    #[cfg(not(test))]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    /// Appends `record`. It may be lost in a crash until [`SegmentWriter::sync`] returns.
    ///
    /// # Errors
    /// [`WriteError`]; nothing more is written until [`SegmentWriter::mend`] was called or the log is opened anew.
    pub fn append(&mut self, record: &impl Serialize) -> Result<Link, WriteError> {
        if self.is_closed {
            return Err(WriteError::Broken(self.writer.chain().len()));
        }
        let before = self.writer.chain();
        let link = self.writer.append(record).inspect_err(|_| {
            self.torn.get_or_insert(before);
        })?;
        let line = serde_json::to_vec(&link).expect("a link has a JSON form");
        self.len += line.len() as u64 + 1;
        Ok(link)
    }

    /// Cuts off what an append that failed has left of its line, so that the record can be appended again.
    ///
    /// # Errors
    /// When the file cannot be opened or cut.
    pub fn mend(&mut self) -> io::Result<()> {
        let Some(chain) = self.torn else { return Ok(()) };
        let file = private().append(true).open(&self.path)?;
        file.set_len(self.len)?;
        (self.writer, self.torn) = (ChainWriter::new(chain, Synced(file)), None);
        Ok(())
    }

    /// Returns when all that was appended is durable.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn sync(&mut self) -> Result<(), WriteError> {
        self.writer.sync()
    }

    /// The end of the chain.
    pub fn chain(&self) -> Chain {
        self.writer.chain()
    }

    /// The file of the current segment.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets appends go into another file, which may fail.
    #[cfg(test)]
    pub(super) fn divert(&mut self, file: File) {
        *self.writer.to_mut() = Synced(file);
    }
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}
