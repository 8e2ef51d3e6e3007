//! Names for who takes part and for what is being done.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A site's name: 1 to 64 of `a-z 0-9 . _ -`, the first of them a letter, a digit or `_`. In a deployment it comes from the
/// site's certificate and from nowhere else. Names become folders and arguments of commands: one that begins with a dot would
/// be hidden or lead out of its folder (`..`), one that begins with a dash would be read as an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientId(Arc<str>);

/// A name or number that is not a valid id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// A site name with other characters, or too long, or empty, or with a dot or dash in front.
    #[error(
        "`{}` is not a site name; use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter, a digit or '_'",
        .0.escape_debug()
    )]
    Client(String),
    /// A run id that is not 16 hexadecimal digits.
    #[error("`{0}` is not a run id; it has 16 hexadecimal digits")]
    Run(String),
}

impl ClientId {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`IdError::Client`] when the name is empty, too long, has other characters, or begins with a dot or a dash.
    pub fn new(name: &str) -> Result<Self, IdError> {
        let lower = name.bytes().all(|byte| !byte.is_ascii_uppercase());
        if lower && is_plain_name(name) {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Client(name.chars().take(80).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `name` may stand in a path and on a command line as it is: 1 to 64 ASCII letters, digits, `.`, `_` and `-`, the first
/// of them neither `.` nor `-`. Sites, operators, runs, populations and models are named so; sites without capitals.
pub fn is_plain_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

/// What a program calls itself, as it is shown and written down: at most 64 characters of printable ASCII, whatever came. A
/// name with control characters could rewrite an operator's terminal.
pub fn software_name(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(64).map(shown).collect()
}

impl TryFrom<String> for ClientId {
    type Error = IdError;
    fn try_from(name: String) -> Result<Self, IdError> {
        Self::new(&name)
    }
}

impl FromStr for ClientId {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::new(name)
    }
}

impl From<ClientId> for String {
    fn from(id: ClientId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One training of one model, from its first round to its last. Printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let parsed = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
        parsed.map(Self).ok_or_else(|| IdError::Run(text.chars().take(80).collect()))
    }
}

/// A round's number. Training rounds count from 1; round 0 is what comes before: statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u32);

impl Round {
    /// The round after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Named sums over the site's training data.
    Statistics,
    /// Local training; the answer is an update.
    Train,
    /// Metrics of the given model on the site's test data.
    Evaluate,
}

impl TaskKind {
    /// The kind in one word, as in logs and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Statistics => "statistics",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
        }
    }
}

/// Which task: a site is asked at most once per run, round and kind, and may answer once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// The kind of work.
    pub kind: TaskKind,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of round {} in run {}", self.kind.name(), self.round, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_name_is_short_and_plain() {
        assert!(ClientId::new("st.mary-2_east").is_ok());
        for bad in ["", "Cleveland", "a b", "ä", "a/b", "a\\b", "a\0", &"x".repeat(65)] {
            assert!(ClientId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_leads_out_of_its_folder_or_reads_as_an_option_is_refused() {
        for bad in [".", "..", "...", ".hidden", "-", "--", "-rf", "-x.y", ".-a"] {
            assert!(ClientId::new(bad).is_err() && !is_plain_name(bad), "{bad}");
            let wire = body_of(bad);
            assert!(crate::wire::decode::<ClientId>(&wire).is_err(), "{bad} came over the wire");
            assert!(serde_json::from_str::<ClientId>(&format!("\"{bad}\"")).is_err(), "{bad}");
        }
        for good in ["a..b", "a.", "a-", "_a", "0", "st-1.example"] {
            assert!(ClientId::new(good).is_ok(), "{good}");
        }
        let said = ClientId::new("a\u{1b}[31m").unwrap_err().to_string();
        assert!(said.bytes().all(|byte| (32..127).contains(&byte)), "{said}");
    }

    /// The text as a name travels.
    fn body_of(text: &str) -> Vec<u8> {
        let frame = crate::wire::encode(crate::wire::FrameKind::Hello, &text.to_owned());
        frame[crate::wire::FRAME_HEAD..].to_vec()
    }

    #[test]
    fn a_programs_name_is_shown_in_printable_ascii_and_is_short() {
        assert_eq!(software_name("consortia 0.9.0"), "consortia 0.9.0");
        assert_eq!(software_name("a\u{1b}[2J\u{202e}b\n"), "a?[2J?b?");
        assert_eq!(software_name(&"x".repeat(4000)).len(), 64);
    }

    #[test]
    fn a_run_id_reads_as_it_is_written() {
        let run = RunId(0xab);
        assert_eq!(run.to_string().parse(), Ok(run));
        assert!("ab".parse::<RunId>().is_err());
    }
}
