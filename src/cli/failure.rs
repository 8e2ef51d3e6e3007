//! Failures and their exit codes.

use std::fmt::Display;
use std::process::ExitCode;

use serde_json::json;

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
