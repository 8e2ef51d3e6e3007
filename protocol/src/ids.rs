//! Names for who takes part and for what is being done.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    /// A name of something else with other characters, or too long, or empty, or with a dot or dash in front.
    #[error("`{}` is not a name; use 1 to 64 letters, digits, '.', '_' and '-', neither '.' nor '-' in front", .0.escape_debug())]
    Name(String),
    /// A name that no step of a workflow has.
    #[error(
        "`{0}` is not a step; it is `statistics`, `train`, `evaluate`, or `step-` and a number from 16 to 65535"
    )]
    Step(String),
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

/// A step of a run's workflow. The first three are those of training; methods number theirs from [`StepId::METHOD_MIN`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(u16);

impl StepId {
    /// Named sums over the site's training data.
    pub const STATISTICS: Self = Self(0);
    /// Local training; the answer is an update.
    pub const TRAIN: Self = Self(1);
    /// Metrics of the given model on the site's test data.
    pub const EVALUATE: Self = Self(2);
    /// The least number of a method's own step.
    pub const METHOD_MIN: u16 = 16;

    /// The `number`th step of a method, from 0; at most `u16::MAX - 16`.
    ///
    /// # Panics
    /// When there are not as many numbers.
    pub const fn method(number: u16) -> Self {
        Self(Self::METHOD_MIN + number)
    }

    /// The step in one word, as in logs and files: a method's own steps are called by their number.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::STATISTICS | Self::TRAIN | Self::EVALUATE => self.family().into(),
            Self(number) => format!("step-{number}").into(),
        }
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Which of few words stands for it where there may not be many, as in the labels of metrics: `method` for all steps of methods.
    pub fn family(self) -> &'static str {
        match self {
            Self::STATISTICS => "statistics",
            Self::TRAIN => "train",
            Self::EVALUATE => "evaluate",
            Self(_) => "method",
        }
    }

    /// Whether what answers it is a contribution to a round: training's step, and every step of a method.
    pub fn is_of_round(self) -> bool {
        self == Self::TRAIN || self.0 >= Self::METHOD_MIN
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "statistics" => Some(Self::STATISTICS),
            "train" => Some(Self::TRAIN),
            "evaluate" => Some(Self::EVALUATE),
            other => {
                let number = other.strip_prefix("step-")?.parse().ok()?;
                (number >= Self::METHOD_MIN && other == format!("step-{number}")).then_some(Self(number))
            }
        }
    }
}

impl FromStr for StepId {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::named(name).ok_or_else(|| IdError::Step(name.chars().take(80).collect()))
    }
}

/// By its name: steps stand in ledgers, policies and files, and nowhere on the wire but in a [`TaskId`].
impl Serialize for StepId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for StepId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// Which task: a site is asked at most once per run, round, step and attempt, and may answer once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(RunId, Round, u32)", into = "(RunId, Round, u32)")]
pub struct TaskId {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// The step of the round.
    pub step: StepId,
    /// How often this step of this round was opened before: 0 the first time. An answer to an earlier attempt is stale.
    pub attempt: u16,
    /// What people call the step. It does not travel.
    pub label: StepLabel,
}

/// What people call a method's step: the method, and the method's own word for the step. It tells no two tasks apart: all labels are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepLabel(Option<(&'static str, &'static str)>);

impl StepLabel {
    /// The label of a method's step.
    pub const fn new(method: &'static str, step: &'static str) -> Self {
        Self(Some((method, step)))
    }
}

impl PartialEq for StepLabel {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for StepLabel {}

impl PartialOrd for StepLabel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for StepLabel {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl Hash for StepLabel {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl TaskId {
    /// The first attempt.
    pub fn new(run: RunId, round: Round, step: StepId) -> Self {
        Self { run, round, step, attempt: 0, label: StepLabel::default() }
    }

    /// The same task, whose step people call so.
    #[must_use]
    pub fn labelled(self, label: StepLabel) -> Self {
        Self { label, ..self }
    }

    /// The label of a method's step, such as `kmeans: assign`, where it is known.
    pub fn title(&self) -> Option<String> {
        self.label.0.map(|(method, step)| format!("{method}: {step}"))
    }

    /// The step as people know it: by its label, or by its name.
    pub fn step_title(&self) -> Cow<'static, str> {
        self.title().map_or_else(|| self.step.name(), Cow::from)
    }

    /// The same step of the same round, put anew.
    #[must_use]
    pub fn next_attempt(self) -> Self {
        Self { attempt: self.attempt.wrapping_add(1), ..self }
    }
}

/// As it travels: step and attempt share a word, the step in its low half. So the first attempts at the steps of training look as they
/// did before there were others.
impl From<TaskId> for (RunId, Round, u32) {
    fn from(id: TaskId) -> Self {
        (id.run, id.round, u32::from(id.attempt) << 16 | u32::from(id.step.0))
    }
}

impl From<(RunId, Round, u32)> for TaskId {
    fn from((run, round, word): (RunId, Round, u32)) -> Self {
        let halves = [word & 0xffff, word >> 16].map(|half| half as u16);
        let (step, label) = (StepId(halves[0]), StepLabel::default());
        Self { run, round, step, attempt: halves[1], label }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As a noun, where the name in files is a verb.
        let work = match self.step {
            StepId::TRAIN => Cow::from("training"),
            StepId::EVALUATE => Cow::from("evaluation"),
            _ => self.step_title(),
        };
        write!(f, "{work} of round {}", self.round)?;
        // A simulation is one run, without a number.
        if self.run != RunId(0) {
            write!(f, " in run {}", self.run)?;
        }
        match self.attempt {
            0 => Ok(()),
            attempt => write!(f, ", attempt {}", u32::from(attempt) + 1),
        }
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

    #[test]
    fn a_step_reads_as_it_is_written_and_only_so() {
        for step in [StepId::STATISTICS, StepId::TRAIN, StepId::EVALUATE, StepId::method(0), StepId(u16::MAX)]
        {
            assert_eq!(step.name().parse(), Ok(step));
            assert_eq!(serde_json::from_str::<StepId>(&format!("\"{}\"", step.name())).unwrap(), step);
        }
        for bad in ["", "Train", "step-3", "step-016", "step-65536", "step-+16", "step-"] {
            assert!(bad.parse::<StepId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_keeps_step_and_attempt_on_the_wire_and_the_first_of_training_look_as_before() {
        let id = TaskId { attempt: 3, ..TaskId::new(RunId(1), Round(2), StepId::method(5)) };
        let wire = crate::wire::encode(crate::wire::FrameKind::Answer, &id);
        let body = &wire[crate::wire::FRAME_HEAD..];
        assert_eq!(crate::wire::decode::<TaskId>(body).unwrap(), id);
        assert_eq!(body[12..], [21, 0, 3, 0]);
        let train = crate::wire::encode(
            crate::wire::FrameKind::Answer,
            &TaskId::new(RunId(1), Round(2), StepId::TRAIN),
        );
        assert_eq!(train[crate::wire::FRAME_HEAD..], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(id.to_string(), "step-21 of round 2 in run 0000000000000001, attempt 4");
        let labelled = id.labelled(StepLabel::new("kmeans", "assign"));
        assert_eq!(labelled.to_string(), "kmeans: assign of round 2 in run 0000000000000001, attempt 4");
        assert_eq!(labelled, id, "it is the same task");
    }
}
