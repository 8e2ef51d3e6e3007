//! Writing to stdout and stderr. A closed pipe ends the talk quietly.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

use serde_json::Value;

/// What stdout carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One object, or one a line while something runs.
    Json,
    /// Nothing: a command that is part of another.
    Silent,
}

impl Format {
    /// Writes `text` or `json`, whichever is asked for, as one line or paragraph.
    pub(super) fn say(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        let line = match self {
            Self::Text => text(),
            Self::Json => json().to_string(),
            Self::Silent => return,
        };
        let mut out = stdout().lock();
        // Whoever closed the pipe does not want to hear more.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Writes a line to stderr. Nothing can be done about one that is closed or full, and it changes no outcome.
pub(super) fn tell(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}

/// Writes a question to stderr; the answer is typed behind it.
pub(super) fn ask(question: impl Display) {
    let mut err = stderr().lock();
    let _ = write!(err, "{question}").and_then(|()| err.flush());
}

/// A table for people: columns as wide as their widest cell, numbers to the right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cell = |(column, cell): (usize, &String)| match column {
            0 => format!("{cell:<width$}", width = widths[0]),
            _ => format!("{cell:>width$}", width = widths[column]),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A share as people read it.
pub(super) fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "9".to_owned()]];
        assert_eq!(table(&rows), "a     10\nlong   9");
    }
}
