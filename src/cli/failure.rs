//! Failures and their exit codes.

use std::fmt::Display;
use std::process::ExitCode;

use ::client::net::{BooksError, OperatorError};
use serde_json::json;
use server::net::{BackupError, RevocationListError, ShelfError, StoreError, TransferError};

use super::output::{Format, tell};

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

impl Blame for BooksError {
    fn kind(&self) -> Kind {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        match self {
            Self::Held(_) => Kind::Run,
            // A disk that is full may have room at the next start.
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

impl Blame for ShelfError {
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

impl<T, E: Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, kind: Kind, doing: impl Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let doing = doing.to_string();
            let message = if doing.is_empty() { error.to_string() } else { format!("{doing}: {error}") };
            Failure { kind, message }
        })
    }
}
