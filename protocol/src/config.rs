//! Reading TOML so that every error names its line, column and value. It reads text, never files.

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::SpecError;

/// What is wrong with a configuration, and where. Shows the line with a mark under the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}\n  |\n  | {text}\n  | {:>column$}", "^")]
pub struct ConfigError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The setting and value at fault, and what to do.
    pub message: String,
    /// The line itself.
    pub text: String,
}

impl ConfigError {
    /// An error at a byte of `source`.
    pub fn at(source: &str, offset: usize, message: impl Into<String>) -> Self {
        let mut offset = offset.min(source.len());
        while !source.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &source[..offset];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let text = source[start..].lines().next().unwrap_or_default().to_owned();
        let line = before.matches('\n').count() + 1;
        Self { line, column: source[start..offset].chars().count() + 1, message: message.into(), text }
    }

    /// An error at the setting that `error.key` names, or at the nearest table that encloses it.
    pub fn of(source: &str, error: &SpecError) -> Self {
        Self::at(source, locate(source, &error.key), error.to_string())
    }
}

/// Reads `source` into what was typed.
///
/// # Errors
/// [`ConfigError`] at the first unknown, missing or ill-typed setting.
pub fn read_toml<T: DeserializeOwned>(source: &str) -> Result<T, ConfigError> {
    toml::from_str(source).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        ConfigError::at(source, offset, error.message().trim().replace('\n', " "))
    })
}

/// The byte where the setting of a dotted path stands; where a part is not written, its nearest written parent.
fn locate(source: &str, key: &str) -> usize {
    let Ok(document) = DeTable::parse(source) else { return 0 };
    let (mut table, mut offset) = (document.get_ref(), 0);
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        offset = name.span().start;
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => {
                offset = value.span().start;
                break;
            }
        }
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "name = \"x\"\n\n[training]\nepochs = 0\noptimizer = { sgd = { learning_rate = 1 } }\n";

    fn place(key: &str) -> (usize, usize) {
        let error = ConfigError::of(SOURCE, &SpecError::new(key, "bad"));
        (error.line, error.column)
    }

    #[test]
    fn a_setting_is_found_by_its_path_and_a_missing_one_by_its_parent() {
        assert_eq!(place("training.epochs"), (4, 10));
        assert_eq!(place("training.optimizer.sgd.learning_rate"), (5, 39));
        assert_eq!(place("training.batch_size"), (3, 2));
        assert_eq!(place("cohort.quorum"), (1, 1));
    }

    #[test]
    fn the_message_shows_the_line_and_points_at_the_value() {
        let error = ConfigError::of(SOURCE, &SpecError::new("training.epochs", "0 epochs"));
        assert_eq!(
            error.to_string(),
            "line 4, column 10: training.epochs: 0 epochs\n  |\n  | epochs = 0\n  |          ^"
        );
    }
}
