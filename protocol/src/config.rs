//! Reading TOML so that every error names its line, column and value. It reads text, never files.

mod words;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::SpecError;
pub use words::in_plain_words;
pub(crate) use words::with_short_numbers;

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
        let SpecError { key, message } = spec_error(source, &error);
        let names_itself =
            ["unknown field", "missing field", "duplicate"].iter().any(|lead| message.starts_with(lead));
        let message = if key.is_empty() || names_itself { message } else { format!("{key}: {message}") };
        ConfigError::at(source, offset, message)
    })
}

/// Reads a table into what was typed there: the settings of something that is registered by name.
///
/// # Errors
/// [`SpecError`] at the first unknown, missing or ill-typed setting, whose key is the setting's path in the table.
pub fn read_table<T: DeserializeOwned>(table: &toml::Table) -> Result<T, SpecError> {
    // Through text, since an error of text alone says where it is.
    let text = toml::to_string(table).map_err(|error| SpecError::new("", error.to_string()))?;
    toml::from_str(&text).map_err(|error| spec_error(&text, &error))
}

/// What is wrong with a text, under the path of the setting where it is.
fn spec_error(source: &str, error: &toml::de::Error) -> SpecError {
    let key = error.span().and_then(|span| key_at(source, span.start)).unwrap_or_default();
    SpecError::new(key, in_plain_words(error.message()))
}

/// The dotted path of the setting whose name or value stands at a byte; `None` where there is none, or the text is no TOML.
fn key_at(source: &str, offset: usize) -> Option<String> {
    fn within(table: &DeTable<'_>, offset: usize) -> Option<String> {
        table.iter().find_map(|(name, value)| {
            let inner = match value.get_ref() {
                DeValue::Table(inner) => within(inner, offset),
                _ => None,
            };
            let is_here = name.span().contains(&offset) || value.span().contains(&offset);
            match inner {
                Some(inner) => Some(format!("{}.{inner}", name.get_ref())),
                None => is_here.then(|| name.get_ref().to_string()),
            }
        })
    }
    within(DeTable::parse(source).ok()?.get_ref(), offset)
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
    fn an_error_of_a_value_names_its_setting_and_where_it_stands() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct Inner {
            count: Option<u32>,
            at: Option<bool>,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct Outer {
            a: Option<Inner>,
            b: Option<crate::Positive>,
        }
        for (text, place, begins) in [
            ("[a]\ncount = -1\n", (2, 9), "a.count: `-1` is given where"),
            ("a = { count = \"x\" }\n", (1, 15), "a.count: the text \"x\" is given"),
            ("[a]\nat = [1, 2, 3]\n", (2, 6), "a.at: a list is given where true or false"),
            ("b = -1\n", (1, 5), "b: -1 is not a positive number"),
            ("[a]\ncont = 1\n", (2, 1), "unknown field `cont`"),
            ("a = 3\n", (1, 5), "a: `3` is given where a table { ... } with its settings is expected"),
        ] {
            let error = read_toml::<Outer>(text).unwrap_err();
            assert_eq!((error.line, error.column), place, "{error}");
            assert!(error.message.starts_with(begins), "{error}");
        }
        let table: toml::Table = toml::from_str("count = -1").unwrap();
        let error = read_table::<Inner>(&table).unwrap_err();
        assert_eq!(
            (error.key.as_str(), error.message.starts_with("`-1` is given")),
            ("count", true),
            "{error}"
        );
        let table: toml::Table = toml::from_str("cont = 1").unwrap();
        assert_eq!(read_table::<Inner>(&table).unwrap_err().key, "cont");
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
