//! The audit log's one writer, on a thread of its own: what runs and operators do is written in the order in which it is handed in.
//!
//! Notes are told to whoever listens once they are written. A note that ends a round or a run, a release and what happens to the
//! membership are durable before whoever handed them in goes on.

use std::thread::JoinHandle;

use protocol::{RunId, Time};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::Note;
use crate::net::store::StoreError;
use crate::net::store::audit::{AuditError, AuditLog};
use crate::net::store::messages::Record;
use crate::net::store::outage::Patience;

/// Entries that may wait for the writer.
const ENTRIES: usize = 1024;

/// Hands entries to the writer.
pub(super) struct Journal(mpsc::Sender<Entry>);

type Write = Box<dyn FnMut(&mut AuditLog) -> Result<(), AuditError> + Send>;

/// What is to be written.
enum Entry {
    Note { now: Time, run: RunId, note: Note, written: Option<oneshot::Sender<()>> },
    Other { write: Write, written: Option<oneshot::Sender<()>> },
}

impl Journal {
    /// Starts the writer. It ends when all that could hand something in is gone, or with a fault, and cancels `halt` then.
    pub(super) fn start(
        log: AuditLog,
        storage: Patience,
        notes: broadcast::Sender<(RunId, Note)>,
        halt: CancellationToken,
    ) -> std::io::Result<(Self, JoinHandle<Result<(), StoreError>>)> {
        let (entries, inbox) = mpsc::channel(ENTRIES);
        let writer = std::thread::Builder::new().name("audit".into()).spawn(move || {
            let _halt = halt.drop_guard();
            keep(log, inbox, &storage, &notes)
        })?;
        Ok((Self(entries), writer))
    }

    /// Hands in a note. One that ends a round or a run is durable when this returns.
    pub(super) async fn note(&self, now: Time, run: RunId, note: Note) -> Result<(), StoreError> {
        let (told, durable) = oneshot::channel();
        let is_end = matches!(note, Note::Round(_) | Note::Ended(_));
        let written = is_end.then_some(told);
        self.0.send(Entry::Note { now, run, note, written }).await.map_err(|_| StoreError::Stopping)?;
        if is_end { durable.await.map_err(|_| StoreError::Stopping) } else { Ok(()) }
    }

    /// The same, from a blocking thread.
    pub(super) fn note_blocking(&self, now: Time, run: RunId, note: Note) -> Result<(), StoreError> {
        let (told, written) = oneshot::channel();
        let entry = Entry::Note { now, run, note, written: Some(told) };
        self.0.blocking_send(entry).map_err(|_| StoreError::Stopping)?;
        written.blocking_recv().map_err(|_| StoreError::Stopping)
    }

    /// Writes something from a blocking thread, and returns when that is done.
    pub(super) fn write_blocking(
        &self,
        write: impl FnMut(&mut AuditLog) -> Result<(), AuditError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (told, written) = oneshot::channel();
        let entry = Entry::Other { write: Box::new(write), written: Some(told) };
        self.0.blocking_send(entry).map_err(|_| StoreError::Stopping)?;
        written.blocking_recv().map_err(|_| StoreError::Stopping)
    }

    /// Hands in what happened to the membership.
    pub(super) async fn record(&self, now: Time, record: Record) -> Result<(), StoreError> {
        let write = Box::new(move |log: &mut AuditLog| log.member(now, &record));
        self.0.send(Entry::Other { write, written: None }).await.map_err(|_| StoreError::Stopping)
    }
}

fn keep(
    mut log: AuditLog,
    mut inbox: mpsc::Receiver<Entry>,
    storage: &Patience,
    notes: &broadcast::Sender<(RunId, Note)>,
) -> Result<(), StoreError> {
    while let Some(entry) = inbox.blocking_recv() {
        let written = match entry {
            Entry::Note { now, run, note, written } => {
                storage.wait_for(async || Ok(log.note(now, run, &note)?))?;
                // Nobody may be listening.
                let _ = notes.send((run, note));
                written
            }
            Entry::Other { mut write, written } => {
                storage.wait_for(async || Ok(write(&mut log)?))?;
                written
            }
        };
        // Whoever handed it in may be gone.
        let _ = written.map(|written| written.send(()));
    }
    Ok(())
}
