//! Failures and their exit codes.

use std::any::Any;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use ::client::net::{BooksError, EnrolError, OperatorError};
use serde_json::json;
use server::net::{ArchiveError, BackupError, RevocationListError, StoreError, TransferError};

use super::output::{Format, tell, unwritten};

/// What kind of failure it was: the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The run failed.
    Run = 1,
    /// The command line or a file is wrong.
    Configuration = 2,
    /// No connection, or an identity that is not accepted.
    Connection = 3,
    /// No answer in time.
    Timeout = 4,
    /// A defect in this program.
    Defect = 5,
    /// A policy does not allow it, or a privacy budget cannot pay.
    Refused = 6,
    /// What was there is in order, and not all of it was there.
    Incomplete = 7,
}

/// A failure for the user's eyes.
#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// What kind it is.
    #[cfg(test)]
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user reads.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Prints it to stderr, as the format asks, and gives the exit code.
    pub(super) fn report(&self, format: Format) -> ExitCode {
        let code = self.kind as u8;
        match format {
            Format::Text | Format::Silent => tell(format_args!("error: {}", self.message)),
            Format::Json => tell(json!({ "error": self.message, "exit_code": code })),
        }
        ExitCode::from(code)
    }
}

/// Errors that say by themselves what kind of failure they are.
///
/// The rule is that of README's table: [`Kind::Configuration`] is for what only a person can change, at the command line or in a file. What
/// passes by itself, or when another program ends, is [`Kind::Run`], so that a supervisor or a script may try again.
pub(super) trait Blame: Display {
    /// What kind of failure it is.
    fn kind(&self) -> Kind;

    /// The failure.
    fn blamed(self) -> Failure
    where
        Self: Sized,
    {
        Failure::new(self.kind(), self)
    }
}

/// Whether a disk, or a share of it, is full: there may be room at the next start, and no file is wrong.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Blame for EnrolError {
    fn kind(&self) -> Kind {
        match self {
            Self::File { source, .. } if is_full(source) => Kind::Run,
            Self::Exists(_) | Self::File { .. } => Kind::Configuration,
            _ => Kind::Connection,
        }
    }
}

impl Blame for BooksError {
    fn kind(&self) -> Kind {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        match self {
            Self::Held(_) => Kind::Run,
            Self::Io { source, .. } if !matches!(source.kind(), NotFound | PermissionDenied) => Kind::Run,
            _ => Kind::Configuration,
        }
    }
}

impl Blame for StoreError {
    fn kind(&self) -> Kind {
        // The other server may be one that is still ending.
        if self.passes() || matches!(self, Self::Locked(_)) { Kind::Run } else { Kind::Configuration }
    }
}

impl Blame for ArchiveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Refused(_) => Kind::Refused,
            Self::Statement(_) | Self::Unreadable { .. } => Kind::Run,
            _ => Kind::Configuration,
        }
    }
}

impl Blame for TransferError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Held(_) | Self::Rename { .. } => Kind::Run,
            _ => Kind::Configuration,
        }
    }
}

impl Blame for RevocationListError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => error.kind(),
            _ => Kind::Configuration,
        }
    }
}

impl Blame for BackupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => error.kind(),
            Self::LostUnknown | Self::TooFew { .. } => Kind::Refused,
            _ => Kind::Run,
        }
    }
}

impl Blame for OperatorError {
    fn kind(&self) -> Kind {
        match self {
            // Files and arguments were checked before they were sent: what the server refuses is its state, which may be another one later.
            Self::Server(_) | Self::Damaged { .. } => Kind::Run,
            Self::WrongReply => Kind::Defect,
            _ => Kind::Connection,
        }
    }
}

/// The failure of a command that did its work and could not say so.
pub(super) fn written() -> Result<(), Failure> {
    unwritten().map_or(Ok(()), |error| {
        let message =
            format!("stdout: {error}; the command has done its work, and what it printed is not all there");
        Err(Failure::new(Kind::Run, message))
    })
}

/// Turns errors that know their kind into failures.
pub(super) trait OrBlame<T> {
    fn or_blame(self) -> Result<T, Failure>;
}

impl<T, E: Blame> OrBlame<T> for Result<T, E> {
    fn or_blame(self) -> Result<T, Failure> {
        self.map_err(Blame::blamed)
    }
}

/// Turns errors into failures of a kind, with what was being done.
pub(super) trait OrFail<T> {
    fn or_fail(self, kind: Kind, doing: impl Display) -> Result<T, Failure>;
}

impl<T, E: Display + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, kind: Kind, doing: impl Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let doing = doing.to_string();
            let message = if doing.is_empty() { error.to_string() } else { format!("{doing}: {error}") };
            // What the system says names no remedy. It is told here, once for every file that a command touches.
            match (&error as &dyn Any).downcast_ref::<io::Error>() {
                Some(error) => of_system(kind, message, Path::new(&doing), error),
                None => Failure { kind, message },
            }
        })
    }
}

/// The failure of something that the system has refused to do with the file or folder at `path`.
fn of_system(kind: Kind, message: String, path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind::{
        AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    let above = || path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    let advice = match error.kind() {
        // Words of our own say what to do already.
        _ if error.raw_os_error().is_none() => None,
        NotFound => above().find(|folder| !folder.exists()).map(|_| {
            let missing = above().take_while(|folder| !folder.exists()).last().unwrap_or(path);
            format!("there is no folder {}: make it, or name another", missing.display())
        }),
        NotADirectory | AlreadyExists => path
            .ancestors()
            .find(|place| place.is_file())
            .map(|file| format!("{} is a file and no folder: name another, or move it away", file.display())),
        IsADirectory => Some("it is a folder: name a file in it".to_owned()),
        PermissionDenied => {
            Some("the user of this command may not; see who owns it, and its permissions".to_owned())
        }
        StorageFull | QuotaExceeded => Some("make room".to_owned()),
        ReadOnlyFilesystem => Some("this place cannot be written: name another".to_owned()),
        _ => None,
    };
    let kind = if is_full(error) { Kind::Run } else { kind };
    Failure { kind, message: advice.map_or_else(|| message.clone(), |advice| format!("{message}; {advice}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &Path, done: io::Result<()>) -> String {
        done.or_fail(Kind::Run, path.display()).unwrap_err().message
    }

    #[test]
    fn what_the_system_refuses_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (file, deep) = (dir.path().join("file"), dir.path().join("a/b/c"));
        std::fs::write(&file, "").unwrap();
        let said = told(&deep, std::fs::write(&deep, ""));
        assert!(
            said.contains(&format!("there is no folder {}: make it", dir.path().join("a").display())),
            "{said}"
        );
        let below = file.join("x");
        for said in
            [told(&file, std::fs::create_dir_all(&file)), told(&below, std::fs::create_dir_all(&below))]
        {
            assert!(said.contains(&format!("{} is a file and no folder", file.display())), "{said}");
        }
        let said = told(dir.path(), std::fs::read_to_string(dir.path()).map(drop));
        assert!(said.contains("name a file in it"), "{said}");
        let gone = told(&dir.path().join("gone"), std::fs::read(dir.path().join("gone")).map(drop));
        assert!(gone.ends_with("(os error 2)"), "nothing but the file is missing: {gone}");
        let own = io::Error::new(io::ErrorKind::AlreadyExists, "it exists; take another");
        assert!(told(&file, Err(own)).ends_with("take another"));
    }

    #[test]
    fn two_is_for_the_command_line_and_files_alone() {
        let held = BooksError::Held("books.lock".into());
        let full = || io::Error::from_raw_os_error(28);
        let kinds = [
            held.kind(),
            BooksError::Io { path: "l".into(), source: full() }.kind(),
            StoreError::Locked("state".into()).kind(),
            ArchiveError::Store(StoreError::InUse { path: "s".into(), message: "busy".into() }).kind(),
            BackupError::Busy(3).kind(),
            TransferError::Held("db".into()).kind(),
            OperatorError::Server("the database is locked".into()).kind(),
            Err::<(), _>(full()).or_fail(Kind::Configuration, "x").unwrap_err().kind,
        ];
        assert!(kinds.iter().all(|kind| *kind == Kind::Run), "{kinds:?}");
        let file = StoreError::Empty("state".into());
        assert_eq!((file.kind(), ArchiveError::NoRun.kind()), (Kind::Configuration, Kind::Configuration));
        assert_eq!(OperatorError::WrongReply.kind(), Kind::Defect);
    }
}
