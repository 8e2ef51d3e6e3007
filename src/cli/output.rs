//! Writing to stdout and stderr. A closed pipe ends the talk quietly; what else keeps a result from stdout is a failure of the command.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::OnceLock;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Why the first line that did not get out did not. The work goes on: what is done is not undone by a full disk behind stdout.
static UNWRITTEN: OnceLock<std::io::Error> = OnceLock::new();

/// The format of stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One object, or one per line while something runs.
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
        print(&format!("{line}\n"));
    }
}

/// Writes `text` to stdout as it is.
pub(super) fn print(text: &str) {
    let mut out = stdout().lock();
    note_unwritten(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Remembers that a line did not get out. Whoever closed the pipe does not want to hear more, and that is no failure.
pub(super) fn note_unwritten(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error);
    }
}

/// Why the first line that did not get out did not.
pub(super) fn unwritten() -> Option<&'static std::io::Error> {
    UNWRITTEN.get()
}

/// Writes a line to stderr. Nothing can be done about one that is closed or full, and it changes no outcome.
pub(super) fn tell(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}

/// Now, in UTC, for lines that are read later.
pub(super) fn timestamp() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    now.format(&Rfc3339).unwrap_or_default()
}

/// A value as a field of a line for people shows it: words with spaces and the like within quotes, so that one sees where it ends.
pub(super) fn field(value: &Value) -> String {
    let is_plain =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !['"', '=', '\\'].contains(&letter);
    match value {
        Value::String(text) if !text.is_empty() && text.chars().all(is_plain) => text.clone(),
        // A string's JSON is its text within quotes, and what could be misread escaped.
        other => other.to_string(),
    }
}

/// `name=value` for each field of an object that is not among those left out, and not null.
pub(super) fn fields(object: &Value, left_out: &[&str]) -> String {
    let shown = object.as_object().into_iter().flatten();
    let shown = shown.filter(|(name, value)| !left_out.contains(&name.as_str()) && !value.is_null());
    shown.map(|(name, value)| format!("{name}={}", field(value))).collect::<Vec<_>>().join(" ")
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

/// A table of words: every column to the left.
pub(super) fn text_table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `lines`, or where `rows` has its heads alone, that there is `none`: heads over nothing leave open whether anything went wrong.
pub(super) fn listed(
    rows: &[Vec<String>],
    none: &str,
    lines: impl FnOnce(&[Vec<String>]) -> String,
) -> String {
    if rows.len() > 1 { lines(rows) } else { none.to_owned() }
}

/// `rows` without the columns in which no row below the heads says anything.
pub(super) fn without_empty(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let columns = rows.first().map_or(0, Vec::len);
    let says = |column: usize| {
        let mut cells = rows.iter().skip(1).filter_map(|row| row.get(column));
        column == 0 || rows.len() < 2 || cells.any(|cell| !["", "-"].contains(&cell.as_str()))
    };
    let kept: Vec<bool> = (0..columns).map(says).collect();
    for row in &mut rows {
        let mut keep = kept.iter();
        row.retain(|_| keep.next().copied().unwrap_or(true));
    }
    rows
}

/// Names in a sentence.
const NAMES_MAX: usize = 8;

/// The first names of a list, and how many are left out.
pub(super) fn some_names(names: &[impl AsRef<str>]) -> String {
    let shown = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
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
        assert_eq!(text_table(&rows), "a     10\nlong  9");
    }

    #[test]
    fn a_field_of_several_words_stands_within_quotes() {
        let event = serde_json::json!({
            "event": "ended", "message": "stopped by the operator", "state": "stopped", "round": 3, "said": "a='b'", "why": "", "left": null,
        });
        let line = fields(&event, &["event"]);
        for (name, value) in [
            ("message", "\"stopped by the operator\""),
            ("state", "stopped"),
            ("round", "3"),
            ("said", "\"a='b'\""),
            ("why", "\"\""),
        ] {
            assert!(line.contains(&format!("{name}={value}")), "{name}: {line}");
        }
        assert!(!line.contains("left") && !line.contains("event"), "{line}");
    }

    #[test]
    fn a_column_of_dashes_is_left_out() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = vec![row(["site", "refused", "test"]), row(["a", "-", "1"]), row(["b", "-", "-"])];
        assert_eq!(table(&without_empty(rows)), "site  test\na        1\nb        -");
        let heads = vec![row(["site", "refused", "test"])];
        assert_eq!(without_empty(heads.clone()), heads);
    }
}
