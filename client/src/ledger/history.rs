//! The heads that a ledger has had: what a site shows of its ledger, and what other books remember of it.
//!
//! A head (number of records, hash of the last) names every record before it. Whoever has noted one can tell later whether a
//! ledger still goes on from there. A history is shared by the ledger that grows and by whoever is asked about it, and holds only what is
//! on disk: a head that a crash could take back is never shown.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use privacy::chain::{Chain, ChainWriter, Digest, Link, LinkReader, WriteError};
use privacy::counted;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::SiteLedgerError;
use super::entry::Entry;

/// How long a ledger is, and the hash of its last record; zeros without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerHead {
    /// Records.
    pub records: u64,
    /// The hash of the last of them.
    pub head: Digest,
}

impl LedgerHead {
    /// Whether it names the last record, and does not only count: older releases wrote numbers down.
    #[cfg(feature = "net")]
    pub(crate) fn is_named(&self) -> bool {
        self.records > 0 && self.head != Digest::default()
    }
}

impl std::fmt::Display for LedgerHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, head {}", counted(self.records, "record"), self.head)
    }
}

impl From<Chain> for LedgerHead {
    fn from(chain: Chain) -> Self {
        Self { records: chain.len(), head: chain.head() }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct LedgerHistory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    hashes: Vec<Digest>,
    /// Heads of ledgers whose loss this one has charged.
    replaced: Vec<Digest>,
    /// The newest records, until somebody has taken a copy of them; `None` where nobody will.
    copies: Option<Vec<Box<RawValue>>>,
}

impl LedgerHistory {
    /// Of a ledger's text; a torn last line is passed over.
    ///
    /// # Errors
    /// [`SiteLedgerError`] names the line.
    pub fn read(text: &[u8]) -> Result<Self, SiteLedgerError> {
        Self::read_uncopied(text, u64::MAX)
    }

    /// The same, which holds the texts of the records from `copied` on for whoever takes copies of them.
    pub(crate) fn read_uncopied(text: &[u8], copied: u64) -> Result<Self, SiteLedgerError> {
        let (history, mut reader) = (Self::default(), LinkReader::new(text));
        while let Some(link) = reader.next_in_memory()? {
            if link.sequence == copied {
                history.hold_copies();
            }
            history.push(&link);
        }
        Ok(history)
    }

    /// Where the ledger ends.
    pub fn head(&self) -> LedgerHead {
        let state = self.state();
        LedgerHead {
            records: state.hashes.len() as u64,
            head: state.hashes.last().copied().unwrap_or_default(),
        }
    }

    /// The head that the ledger had when it was `records` long; `None` when it never was.
    pub fn head_at(&self, records: u64) -> Option<Digest> {
        match usize::try_from(records).ok()?.checked_sub(1) {
            None => Some(Digest::default()),
            Some(last) => self.state().hashes.get(last).copied(),
        }
    }

    /// Whether the ledger goes on from `head`.
    pub fn extends(&self, head: LedgerHead) -> bool {
        self.head_at(head.records) == Some(head.head)
    }

    /// Heads of ledgers that were lost, and whose loss this ledger has charged, newest first.
    pub fn replaced(&self) -> Vec<Digest> {
        self.state().replaced.iter().rev().copied().collect()
    }

    /// Holds the texts of the records that are new from now on, for whoever takes copies of them.
    pub(crate) fn hold_copies(&self) {
        self.state().copies.get_or_insert_default();
    }

    /// The texts of the records from `from` on, in order, as far as they are still held; they are let go.
    pub(crate) fn take_copies(&self, from: u64) -> Vec<Box<RawValue>> {
        let mut state = self.state();
        let copies = state.copies.as_mut().map(std::mem::take).unwrap_or_default();
        let first = state.hashes.len() - copies.len();
        let known = usize::try_from(from).unwrap_or(usize::MAX).saturating_sub(first);
        copies.into_iter().skip(known).collect()
    }

    pub(super) fn push(&self, link: &Link) {
        let mut state = self.state();
        state.hashes.push(link.hash);
        if let Some(copies) = &mut state.copies {
            copies.push(link.record.clone());
        }
        if let Ok(Entry::Recovered(recovered)) = link.read() {
            state.replaced.extend(recovered.replaced.iter().map(|known| known.head));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chain's writer that keeps a history: what was synced is in it, and nothing else.
pub(super) struct HistoryWriter<W> {
    writer: ChainWriter<W>,
    pending: Vec<Link>,
    history: LedgerHistory,
}

impl<W: Write> HistoryWriter<W> {
    /// Goes on with the history of what `writer` has written.
    pub(super) fn new(history: LedgerHistory, writer: ChainWriter<W>) -> Self {
        Self { writer, pending: Vec::new(), history }
    }

    pub(super) fn history(&self) -> &LedgerHistory {
        &self.history
    }

    pub(super) fn append(&mut self, record: &impl Serialize) -> Result<Link, WriteError> {
        let link = self.writer.append(record)?;
        self.pending.push(link.clone());
        Ok(link)
    }

    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        self.writer.sync()?;
        self.pending.drain(..).for_each(|link| self.history.push(&link));
        Ok(())
    }
}

impl<W> std::fmt::Debug for HistoryWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.writer.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::{Paper, ledger};
    use crate::participant::tests::train;
    use protocol::Time;

    #[test]
    fn a_history_knows_every_head_that_its_ledger_has_had_and_no_other() {
        let paper = Paper::default();
        let mut book = ledger(&paper);
        let history = book.history().clone();
        let mut heads = vec![history.head()];
        for round in 1..4 {
            let _ = book.reserve(&train(round, 3), None, false, None, Time::ZERO).unwrap();
            heads.push(history.head());
        }
        assert_eq!(heads.iter().map(|head| head.records).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(heads.iter().all(|head| history.extends(*head)));
        let read = LedgerHistory::read(&paper.text()).unwrap();
        assert!(heads.iter().all(|head| read.extends(*head)));
        let longer = LedgerHead { records: 4, ..heads[3] };
        let other = LedgerHead { head: heads[1].head, ..heads[2] };
        assert!(!read.extends(longer) && !read.extends(other));
        assert_eq!(read.take_copies(0).len(), 0, "nobody asked for copies");
        let read = LedgerHistory::read_uncopied(&paper.text(), 1).unwrap();
        assert_eq!((read.take_copies(1).len(), read.take_copies(0).len()), (2, 0));
        history.hold_copies();
        let _ = book.reserve(&train(4, 3), None, false, None, Time::ZERO).unwrap();
        let _ = book.reserve(&train(5, 3), None, false, None, Time::ZERO).unwrap();
        assert_eq!((history.take_copies(4).len(), history.take_copies(0).len()), (1, 0));
    }
}
