//! How a table is written: what stands between its cells, how numbers and gaps are spelt.
//!
//! The separator is the one that the header line has most of. How decimals are written is never guessed: `1,234` is one number to
//! one hospital and another to the next.

use std::io::{self, Cursor, Read};

use protocol::flag_of;

use super::super::{Decimal, Separator};

/// Bytes of a header that are looked at for separators.
const HEAD_MAX: usize = 1 << 20;

/// What counts as missing, whatever the case of its letters.
const MISSING: [&str; 9] = ["", "?", "na", "nan", "n/a", "null", "none", "#n/a", "<na>"];

/// Whether a cell counts as missing.
pub(super) fn is_missing(cell: &str) -> bool {
    MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word))
}

/// A cell as a number, which may be infinite; true is 1 and false is 0.
pub(super) fn number(cell: &str, decimal: Decimal) -> Option<f64> {
    if let Some(flag) = flag_of(cell) {
        return Some(f64::from(u8::from(flag)));
    }
    match decimal {
        Decimal::Point => cell.parse().ok(),
        Decimal::Comma if cell.contains('.') => None,
        Decimal::Comma => cell.replacen(',', ".", 1).parse().ok(),
    }
}

/// Whether a cell that cannot be used is a number all the same: one that is too large.
pub(super) fn is_beyond(cell: &str, decimal: Decimal) -> bool {
    let is_written = cell.contains(|c: char| c.is_ascii_digit());
    number(cell, decimal).is_some_and(|value| value.is_finite() || (value.is_infinite() && is_written))
}

/// What else to say of a cell that should be a number and is none.
pub(super) fn advice(cell: &str, decimal: Decimal) -> &'static str {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let bare = cell.trim_start_matches(['+', '-']);
    match (decimal, bare.split_once([',', '.'])) {
        (Decimal::Point, Some((whole, rest))) if bare.contains(',') && digits(whole) && digits(rest) => {
            "; where a comma stands before decimals, set `decimal = \",\"` beside the file's name"
        }
        (Decimal::Comma, Some((whole, rest))) if digits(whole) && digits(rest) => {
            "; `decimal = \",\"` is set, so that a point does not stand before decimals"
        }
        _ if has_groups(bare) => "; write it without thousands separators",
        _ => "",
    }
}

/// Whether it is a number but for what stands between groups of digits.
fn has_groups(text: &str) -> bool {
    let between =
        |letter: char| matches!(letter, '.' | ',' | '\'' | '\u{2019}' | '_') || letter.is_whitespace();
    let mut parts = text.split(between);
    let first = parts.next().unwrap_or_default();
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let rest: Vec<&str> = parts.collect();
    (1..=3).contains(&first.len())
        && digits(first)
        && rest.first().is_some_and(|group| group.len() == 3)
        && rest.iter().all(|group| !group.is_empty() && digits(group))
}

/// The separator of a table, and its bytes from the first cell of its header.
///
/// # Errors
/// That of the file; [`io::ErrorKind::Unsupported`] with what it is, where it is no text.
pub(super) fn begin(mut file: impl Read, separator: Option<Separator>) -> io::Result<(Separator, impl Read)> {
    let mut head = read_line(&mut file)?;
    let is_foreign = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what);
    if head.starts_with(b"\x93NUMPY") {
        return Err(is_foreign(
            "it is a NumPy array and no table: name samples and labels under [data.numpy]",
        ));
    }
    // The header line alone: where records are protected, no row decides whether the others are read.
    if head.split(|byte| matches!(byte, b'\n' | b'\r')).next().is_some_and(|line| line.contains(&0)) {
        return Err(is_foreign("it has bytes that are in no text: save the table as CSV in UTF-8"));
    }
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3);
    }
    // Excel writes such a line above the header. An empty line in its place is skipped, and still counted.
    let named = named_separator(&head);
    if named.is_some() {
        let end = head.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(head.len());
        head.drain(..end);
        head.extend(read_line(&mut file)?);
    }
    let found = separator.or(named).unwrap_or_else(|| most_frequent(&head));
    Ok((found, Cursor::new(head).chain(file)))
}

/// Reads to the end of a line that is outside of quotation marks, and perhaps a little further.
fn read_line(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while head.len() < HEAD_MAX {
        let count = match file.read(&mut part) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        head.extend_from_slice(&part[..count]);
        if count == 0 || outside_quotes(&head).any(|byte| matches!(byte, b'\n' | b'\r')) {
            break;
        }
    }
    Ok(head)
}

/// The bytes that stand in no quotation marks. A mark opens a cell only where the cell begins.
fn outside_quotes(head: &[u8]) -> impl Iterator<Item = u8> {
    let (mut quoted, mut before) = (false, b'\n');
    head.iter().filter_map(move |byte| {
        let opens =
            *byte == b'"' && !quoted && (is_separator(before) || matches!(before, b'\n' | b'\r' | b'"'));
        let closes = *byte == b'"' && quoted;
        let outside = !quoted && !opens;
        quoted = (quoted || opens) && !closes;
        before = *byte;
        outside.then_some(*byte)
    })
}

fn is_separator(byte: u8) -> bool {
    Separator::ALL.iter().any(|separator| separator.byte() == byte)
}

/// The separator that a line `sep=;` names.
fn named_separator(head: &[u8]) -> Option<Separator> {
    let line = head.split(|byte| matches!(byte, b'\n' | b'\r')).next()?;
    let line = line.strip_prefix(b"\"").map_or(line, |line| line.strip_suffix(b"\"").unwrap_or(line));
    let [.., byte] = line else { return None };
    let named = line.len() == 5 && line[..4].eq_ignore_ascii_case(b"sep=");
    Separator::ALL.into_iter().find(|separator| named && separator.byte() == *byte)
}

/// The separator that the header has most of; of several, the first in the order of [`Separator::ALL`].
fn most_frequent(head: &[u8]) -> Separator {
    let mut counts = [0usize; Separator::ALL.len()];
    for byte in outside_quotes(head).skip_while(|byte| matches!(byte, b'\n' | b'\r')) {
        if matches!(byte, b'\n' | b'\r') {
            break;
        }
        for (count, _) in counts.iter_mut().zip(Separator::ALL).filter(|(_, one)| one.byte() == byte) {
            *count += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or_default();
    let found = counts.iter().zip(Separator::ALL).find(|(count, _)| **count == most);
    found.map_or(Separator::Comma, |(_, separator)| separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn separator(text: &str) -> Separator {
        begin(text.as_bytes(), None).unwrap().0
    }

    #[test]
    fn the_separator_is_the_one_that_the_header_has_most_of_outside_of_quotation_marks() {
        for (text, found) in [
            ("a,b,c\n1;2;3;4;5\n", Separator::Comma),
            ("a;b;c\n1,5;2,5;3\n", Separator::Semicolon),
            ("\u{feff}a;b\n", Separator::Semicolon),
            ("a\tb, in mg\tc\n", Separator::Tab),
            ("a|b\r\n", Separator::Pipe),
            ("\"a;x;y\",b\n", Separator::Comma),
            ("\"a\n,,,\";b;\"c\"\"d,,,\"\n", Separator::Semicolon),
            ("a (x; y), b\n", Separator::Comma),
            ("a\n", Separator::Comma),
            ("", Separator::Comma),
            ("\n\na;b\n", Separator::Semicolon),
            ("sep=;\r\na,b,c;d\r\n", Separator::Semicolon),
            ("\u{feff}sep=\t\na,b\n", Separator::Tab),
        ] {
            assert_eq!(separator(text), found, "{text:?}");
        }
        let far = format!("{};b\n", "a,".repeat(3000).replace(',', "x"));
        assert_eq!(separator(&far), Separator::Semicolon, "a header beyond the first read");
    }

    #[test]
    fn all_bytes_of_the_table_come_out_but_for_marks_before_it() {
        for (text, left) in [
            ("a;b\n1;2\n", "a;b\n1;2\n"),
            ("\u{feff}a;b\n1;2\n", "a;b\n1;2\n"),
            ("sep=;\na;b\n1;2\n", "\na;b\n1;2\n"),
        ] {
            let mut bytes = String::new();
            begin(text.as_bytes(), None).unwrap().1.read_to_string(&mut bytes).unwrap();
            assert_eq!(bytes, left);
        }
    }

    #[test]
    fn numbers_are_written_in_one_way_at_a_time() {
        let (point, comma) = (Decimal::Point, Decimal::Comma);
        for (cell, decimal, value) in [
            ("1.5", point, Some(1.5)),
            ("1,5", comma, Some(1.5)),
            ("-1,5e3", comma, Some(-1500.0)),
            ("7", comma, Some(7.0)),
            (",5", comma, Some(0.5)),
            ("True", point, Some(1.0)),
            ("FALSE", comma, Some(0.0)),
            ("1,5", point, None),
            ("1.5", comma, None),
            ("1.234,5", comma, None),
            ("1,234,5", comma, None),
            ("yes", point, None),
        ] {
            assert_eq!(number(cell, decimal), value, "{cell}");
        }
        assert!(number("-0", point).unwrap().is_sign_negative());
    }

    #[test]
    fn a_cell_that_is_no_number_is_told_what_it_looks_like() {
        let (point, comma) = (Decimal::Point, Decimal::Comma);
        for (cell, decimal, said) in [
            ("1,5", point, "set `decimal = \",\"`"),
            ("-1,234", point, "set `decimal = \",\"`"),
            ("1.5", comma, "`decimal = \",\"` is set"),
            ("1,234,567", point, "thousands"),
            ("1,234.5", point, "thousands"),
            ("1.234,5", comma, "thousands"),
            ("1 234", point, "thousands"),
            ("1'234", point, "thousands"),
        ] {
            assert!(advice(cell, decimal).contains(said), "{cell}: {}", advice(cell, decimal));
        }
        for other in ["12o", "a,b", "1,2,3", "2024-01-02", ""] {
            assert_eq!(advice(other, point), "", "{other}");
        }
    }
}
