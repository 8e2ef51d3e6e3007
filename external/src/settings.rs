//! What a site or a simulation says of its learner: the table `[learner]`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The table `[learner]` of a site's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnerSettings {
    /// The program and its arguments. Empty where the learner attaches itself.
    pub command: Vec<String>,
    /// Whether the learner is started by somebody else and attaches itself.
    pub attach: bool,
    /// What the learner finds in its environment beside `PATH`, `HOME`, `LANG`, `PYTHONUNBUFFERED` and `CONSORTIA_LEARNER`.
    pub environment: BTreeMap<String, String>,
    /// From the start of a learner, or from the wait for one that attaches, to its first frame: 1 to 86,400 s.
    pub start_seconds: u64,
    /// Without any frame, before it is ended: 2 to 86,400 s.
    pub silent_seconds: u64,
    /// One task, at most: 1 s to a year. None without a limit but that of the round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_seconds: Option<u64>,
    /// For a learner to answer after it was told to stop, and to exit after it was told to end: 1 to 3,600 s.
    pub end_seconds: u64,
}

impl Default for LearnerSettings {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            attach: false,
            environment: BTreeMap::new(),
            start_seconds: 120,
            silent_seconds: 60,
            task_seconds: None,
            end_seconds: 10,
        }
    }
}

/// Settings that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("learner.{setting}: {message}")]
pub struct SettingsError {
    /// The key.
    pub setting: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The longest task that can be asked for: a year.
const TASK_MAX: u64 = 365 * 86_400;

impl LearnerSettings {
    /// Checks what single values cannot show.
    ///
    /// # Errors
    /// [`SettingsError`] names the key.
    pub fn checked(self) -> Result<Self, SettingsError> {
        let wrong = |setting: &str, message: String| SettingsError { setting: setting.to_owned(), message };
        match (self.command.first(), self.attach) {
            (None, false) => {
                let message = "say how the learner is started, `command = [\"python\", \"train.py\"]`, or `attach = true` for one that \
                               you start yourself";
                return Err(wrong("command", message.to_owned()));
            }
            (Some(_), true) => {
                let message = "`command` starts a learner and `attach` waits for one; keep one of the two";
                return Err(wrong("attach", message.to_owned()));
            }
            (Some(program), false) if program.is_empty() => {
                return Err(wrong("command", "the program has no name".to_owned()));
            }
            _ => {}
        }
        if let Some(text) = self.command.iter().find(|text| text.contains('\0')) {
            return Err(wrong("command", format!("{text:?} has a zero byte, which no argument may have")));
        }
        for (name, value) in &self.environment {
            let key = format!("environment.{name}");
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(wrong(&key, "a name without `=`, and no zero bytes".to_owned()));
            }
            if name.starts_with("CONSORTIA_") {
                return Err(wrong(&key, "names that begin with CONSORTIA_ are the agent's own".to_owned()));
            }
        }
        let ranges = [
            ("start_seconds", self.start_seconds, 1, 86_400),
            ("silent_seconds", self.silent_seconds, 2, 86_400),
            ("task_seconds", self.task_seconds.unwrap_or(1), 1, TASK_MAX),
            ("end_seconds", self.end_seconds, 1, 3600),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(wrong(name, format!("{value} is not within {least} to {most} seconds")));
            }
        }
        Ok(self)
    }

    /// What trains, for people.
    pub fn told(&self) -> String {
        match self.attach {
            true => "a program that attaches itself".to_owned(),
            false => self.command.join(" "),
        }
    }

    pub(crate) fn start(&self) -> Duration {
        Duration::from_secs(self.start_seconds)
    }

    pub(crate) fn silent(&self) -> Duration {
        Duration::from_secs(self.silent_seconds)
    }

    pub(crate) fn end(&self) -> Duration {
        Duration::from_secs(self.end_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let of = |text: &str| {
            let settings: LearnerSettings = serde_json::from_str(text).unwrap();
            settings.checked().map_err(|error| error.to_string())
        };
        assert!(of(r#"{"command": ["python", "train.py"]}"#).is_ok());
        assert!(of(r#"{"attach": true, "environment": {"OMP_NUM_THREADS": "2"}}"#).is_ok());
        for (text, told) in [
            ("{}", "learner.command: say how"),
            (r#"{"command": ["x"], "attach": true}"#, "learner.attach: `command` starts"),
            (r#"{"command": [""]}"#, "learner.command: the program has no name"),
            (r#"{"command": ["x", "a\u0000b"]}"#, "zero byte"),
            (r#"{"command": ["x"], "environment": {"A=B": "1"}}"#, "learner.environment.A=B"),
            (r#"{"command": ["x"], "environment": {"CONSORTIA_LEARNER": "1"}}"#, "the agent's own"),
            (r#"{"command": ["x"], "silent_seconds": 1}"#, "learner.silent_seconds: 1 is not within 2"),
            (r#"{"command": ["x"], "task_seconds": 0}"#, "learner.task_seconds: 0 is not"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
