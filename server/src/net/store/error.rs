//! Why a state cannot be read or written: each sentence says what it is about and what to do.

use std::io::ErrorKind;
use std::path::PathBuf;

use privacy::chain::WriteError;
use protocol::RunId;

use super::audit::AuditError;
use super::database::SqliteFault;
use super::{BlobError, BooksError, database};

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another server runs on this folder.
    #[error("{}: another server uses this folder; stop it first, or give this server a folder of its own", .0.display())]
    Locked(PathBuf),
    /// Nothing was ever stored there.
    #[error("{0}: no server has run here yet")]
    Empty(String),
    /// There are two databases that may be meant.
    #[error("{} is here, and this server is to work with {database}: move it there with `server migrate`, or take it away if it is not this \
             state; a ledger that is forgotten pays twice", path.display())]
    TwoStates {
        /// SQLite's file.
        path: PathBuf,
        /// The other database.
        database: String,
    },
    /// The state is somewhere else now.
    #[error("{} says that this state was moved to a database: name that in server.toml ([state] database), or rename the file back if nothing \
             was done there; a ledger that is forgotten pays twice", .0.display())]
    Moved(PathBuf),
    /// The state is on its way to somewhere else.
    #[error("{} says that this state is being moved to a database, and was not when the program ended: give `server migrate` again, which goes on \
             from there, or remove this file if that database has been thrown away; a ledger that is forgotten pays twice", .0.display())]
    Moving(PathBuf),
    /// Another server has taken over, and nothing more can be written by this one.
    #[error(
        "this server is deposed: `{holder}` has taken the lease (epoch {epoch}, this server had {own}); nothing was written"
    )]
    Deposed {
        /// Who leads now.
        holder: String,
        /// The lease's epoch.
        epoch: i64,
        /// This server's.
        own: i64,
    },
    /// The lease could not be renewed in time, so that another server may take it.
    #[error("the lease was not renewed for {seconds} s; this server stands back")]
    LeaseLost {
        /// How long.
        seconds: u64,
    },
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The database refuses.
    #[error("the state's database: {said}{}", remedy(.0), said = .0)]
    Database(#[from] sqlx::Error),
    /// Another program keeps SQLite's file locked.
    #[error(
        "{}: another program holds this database locked (SQLite says: {message}); nothing was started and nothing is damaged. End that program (sqlite3, \
         a copy, a scanner) and give the command again", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        message: String,
    },
    /// There is no room for the database.
    #[error(
        "{}: the disk is full (SQLite says: {message}); nothing is damaged. Make room on it", path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        message: String,
    },
    /// The server is told to stop, and the storage does not answer.
    #[error(
        "the server was told to stop while its storage did not answer; what was under way is done again after the next start"
    )]
    Stopping,
    /// The rows are a backup's.
    #[error(
        "{}: this state is a backup, which does not know what was released after it and would spend it again; nothing was started. Restore it: \
         `consortia server restore BACKUP --to NEW --lost-releases N` charges N releases (docs/operations.md, Copies)", .0.display()
    )]
    Backup(PathBuf),
    /// The state was brought into another folder, which goes on from it.
    #[error(
        "{} says that this state was brought into {to}: two servers with one history would spend one budget twice, and nothing was started. Start the server \
         there. Remove the file only where that folder was thrown away before a server had started in it", path.display()
    )]
    HandedOver {
        /// The file that says so.
        path: PathBuf,
        /// The other folder.
        to: String,
    },
    /// The state was written by an older program.
    #[error(
        "the state has schema {found}, of an earlier release, and this program has {known}; a server that starts in it, or `server restore` of \
         a backup, brings it up to date"
    )]
    Older {
        /// In the database.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// The state was written by a newer program.
    #[error("the state has schema {found} and this program knows {known}; install the newer release")]
    Newer {
        /// In the database.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// A file of tensors cannot be used.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// What a run with correlated noise keeps between releases cannot be used.
    #[error("{}: the kept noise {fault}; without it no further release of its run is private", path.display())]
    Noise {
        /// The file or object.
        path: PathBuf,
        /// What is wrong.
        fault: &'static str,
    },
    /// A row that this program did not write.
    #[error(
        "run {run}: the stored {what} is not understood ({message}); restore the state folder from a backup"
    )]
    Row {
        /// The run.
        run: String,
        /// Which value.
        what: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A record of a ledger that this program did not write.
    #[error(
        "the ledger of `{population}`: record {sequence} is not understood ({message}); restore the state folder from a backup"
    )]
    Ledger {
        /// The population.
        population: String,
        /// The record.
        sequence: i64,
        /// What is wrong.
        message: String,
    },
    /// A member's row that this program did not write.
    #[error(
        "the stored member `{name}` is not understood ({message}); restore the state folder from a backup"
    )]
    Member {
        /// The name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// The audit log beside the database.
    #[error(transparent)]
    Audit(Box<AuditError>),
    /// The books of this state contradict each other.
    #[error(transparent)]
    Books(Box<BooksError>),
    /// A round would be released a second time.
    #[error(
        "run {run}: round {round} was released before, as another model; nothing was stored. The database was turned back or damaged: \
         stop this server and restore a backup (docs/operations.md, When books disagree)"
    )]
    ReleasedTwice {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
    },
    /// The rows name objects, and none of them is where this server looks.
    #[error(
        "the database names {count} files of models, and none of them is in {place}: replicas need one place that all of them reach. Give \
             each the same `[models] store = \"s3://...\"` in server.toml, or let them share the state folder"
    )]
    Elsewhere {
        /// How many.
        count: usize,
        /// Where they were looked for.
        place: String,
    },
    /// Files that the rows name are missing or damaged.
    #[error(
        "{} that the database names: {}. A run that needs one cannot go on; restore the newest backup, or copy the files out of it (docs/operations.md, \
         When books disagree)", count(faults.len()), faults.join("; ")
    )]
    Files {
        /// One sentence a file.
        faults: Vec<String>,
    },
    /// No such run.
    #[error("there is no run {0} here")]
    NoSuchRun(RunId),
}

/// What helps against what a database says while a server works.
fn remedy(said: &sqlx::Error) -> &'static str {
    match database::sqlite_fault(said) {
        Some(SqliteFault::Locked) => {
            "; another program (sqlite3, a copy, a scanner) holds it locked: end that one"
        }
        Some(SqliteFault::Full) => "; make room on its disk",
        None => "",
    }
}

fn count(files: usize) -> String {
    if files == 1 {
        "1 file is missing or damaged".to_owned()
    } else {
        format!("{files} files are missing or damaged")
    }
}

/// Whether a disk or a share of it is full.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    })
}

impl StoreError {
    /// Whether nothing was written, and the same attempt may succeed later: another program holds a lock, a disk is full, a bucket does
    /// not answer.
    pub(crate) fn may_be_tried_again(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Full { .. } => true,
            Self::File { source, .. } => is_full(source),
            Self::Audit(audit) => match &**audit {
                AuditError::File { source, .. } | AuditError::Write(WriteError::Io { source, .. }) => {
                    is_full(source)
                }
                AuditError::Damaged { .. }
                | AuditError::Segments(_)
                | AuditError::Write(_)
                | AuditError::Sync { .. } => false,
            },
            Self::Blob(BlobError::File { source, .. }) => is_full(source),
            Self::Blob(BlobError::Storage { source, remote, .. }) => *remote || is_full(&**source),
            Self::Database(sqlx::Error::PoolTimedOut) => true,
            Self::Database(said) => database::sqlite_fault(said).is_some(),
            _ => false,
        }
    }

    /// Whether it is the storage of models that refuses: other runs may need nothing of it now.
    pub(crate) fn is_of_models(&self) -> bool {
        matches!(self, Self::Blob(BlobError::Storage { remote: true, .. }))
    }

    /// Whether what one run needs is missing or damaged: that run cannot go on, however long one waits, and all others can.
    pub(crate) fn is_of_one_run(&self) -> bool {
        matches!(
            self,
            Self::Row { .. }
                | Self::Ledger { .. }
                | Self::Noise { .. }
                | Self::Blob(BlobError::Damaged { .. })
        )
    }
}
