//! A limit on what one cell and one row of a CSV file may take, found while the bytes come in: a quotation mark that is never closed
//! makes one cell of the rest of a file, and a file without line ends one row.
//!
//! It also notes at which line each row begins: the csv crate's own number is that of the line before where lines end with CRLF, and of
//! the first of the empty lines before a row. It follows the csv crate's reading of quotes and changes no byte.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;

/// Bytes of one cell.
pub(super) const CELL_MAX: usize = 1 << 20;
/// Bytes of one row.
pub(super) const ROW_MAX: usize = 64 << 20;

/// Where in a row the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// The beginning of a cell.
    Start,
    Plain,
    Quoted,
    /// Behind a quotation mark in a quoted cell: its end, or the first of two.
    Mark,
}

/// Bytes that are read through it; reading fails where a cell or a row is too long.
pub(super) struct Cells<R> {
    from: R,
    separator: u8,
    at: At,
    /// The line of the next byte, and the one where its cell began.
    line: u64,
    began: u64,
    cell: usize,
    row: usize,
    /// Whether the byte before was a carriage return, which ends a line together with a line feed.
    returned: bool,
    lines: Lines,
}

/// The lines where the rows begin that have been read and not yet asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Rc<RefCell<VecDeque<u64>>>);

impl Lines {
    /// The line where the next row begins; 0 when there is none.
    pub(super) fn next_row(&self) -> u64 {
        self.0.borrow_mut().pop_front().unwrap_or_default()
    }
}

impl<R: Read> Cells<R> {
    pub(super) fn new(from: R, separator: u8) -> Self {
        let lines = Lines::default();
        Self { from, separator, at: At::Start, line: 1, began: 1, cell: 0, row: 0, returned: false, lines }
    }

    /// Where its rows begin, as they are read.
    pub(super) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    fn take(&mut self, byte: u8) -> io::Result<()> {
        let quoted = matches!((self.at, byte), (At::Quoted, _) | (At::Mark, b'"') | (At::Start, b'"'));
        let ends_row = !quoted && matches!(byte, b'\n' | b'\r');
        if self.row == 0 && !ends_row {
            self.lines.0.borrow_mut().push_back(self.line);
        }
        let ends_cell = ends_row || (!quoted && byte == self.separator);
        self.at = match (self.at, byte) {
            _ if ends_cell => At::Start,
            (At::Quoted, b'"') => At::Mark,
            (At::Quoted, _) | (At::Start | At::Mark, b'"') => At::Quoted,
            // The csv crate is told to trim: blanks before a quotation mark belong to the cell.
            (At::Start | At::Plain | At::Mark, _) => At::Plain,
        };
        self.line += u64::from(byte == b'\r' || (byte == b'\n' && !self.returned));
        self.returned = byte == b'\r';
        self.row = if ends_row { 0 } else { self.row + 1 };
        if ends_cell {
            (self.cell, self.began) = (0, self.line);
        } else {
            self.cell += 1;
        }
        let line = self.began;
        let wrong = |what: &str, most: usize| {
            let message = format!(
                "line {line}: a {what} that begins here has more than {most} bytes; is a quotation mark never closed, or a line \
                 end missing?"
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        };
        match (self.cell > CELL_MAX, self.row > ROW_MAX) {
            (true, _) => wrong("cell", CELL_MAX),
            (_, true) => wrong("row", ROW_MAX),
            (false, false) => Ok(()),
        }
    }
}

impl Cells<io::Empty> {
    /// Whether a line without its end is a row by itself: short enough, and with every quotation mark closed.
    pub(super) fn is_one_row(line: &[u8], separator: u8) -> bool {
        let mut cells = Self::new(io::empty(), separator);
        line.iter().all(|byte| Self::take(&mut cells, *byte).is_ok()) && cells.at != At::Quoted
    }
}

impl<R: Read> Read for Cells<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        into[..count].iter().try_for_each(|byte| self.take(*byte))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all of it; what is wrong, if anything.
    fn fault(bytes: impl Read) -> Option<String> {
        io::copy(&mut Cells::new(bytes, b','), &mut io::sink()).err().map(|error| error.to_string())
    }

    fn of(text: &str, rest: u64, byte: u8) -> impl Read {
        io::Cursor::new(text.to_owned()).chain(io::repeat(byte).take(rest))
    }

    #[test]
    fn a_cell_has_a_limit_and_the_error_names_the_line_where_it_begins() {
        let most = CELL_MAX as u64;
        assert_eq!(fault(of("a,b\n1,", most, b'x')), None);
        let said = fault(of("a,b\n1,2\n3,", most + 1, b'x')).unwrap();
        assert!(said.starts_with("line 3: a cell") && said.contains("1048576"), "{said}");
        // Commas and line ends do not end a quoted cell.
        for byte in [b',', b'\n', b' '] {
            let said = fault(of("a,b\n1,\"2", 2 * most, byte)).unwrap();
            assert!(said.starts_with("line 2: a cell"), "{said}");
        }
    }

    #[test]
    fn rows_begin_where_people_see_them_begin() {
        for (text, lines) in [
            ("a,b\n1,2\n3,4", vec![1, 2, 3]),
            ("a,b\r\n1,2\r\n3,4\r\n", vec![1, 2, 3]),
            ("a,b\r1,2\r3,4\r", vec![1, 2, 3]),
            ("\n\na,b\n\n\n1,2\n", vec![3, 6]),
            ("a,\"b\r\nc\n\"\n1,2\n", vec![1, 4]),
            ("a,b\n,\n\"\",1\n", vec![1, 2, 3]),
            ("", vec![]),
        ] {
            let mut cells = Cells::new(text.as_bytes(), b',');
            io::copy(&mut cells, &mut io::sink()).unwrap();
            let found: Vec<u64> = cells.lines().0.borrow().iter().copied().collect();
            assert_eq!(found, lines, "{text:?}");
        }
    }

    #[test]
    fn a_file_without_line_ends_is_no_row_without_end() {
        assert!(fault(of("a\n", ROW_MAX as u64 + 1, b',')).unwrap().starts_with("line 2: a row"));
    }

    #[test]
    fn quotes_are_read_as_the_csv_crate_reads_them() {
        let many = 3 * CELL_MAX;
        for (cell, name) in [
            ("5\" pipe,", "a mark inside of a cell is a letter"),
            ("\"a\"\"b\",", "two marks are one"),
            ("\"a,b\",", "a comma in quotes"),
            ("\"a\nb\"\n", "a line end in quotes"),
            ("\"\",", "an empty cell in quotes"),
        ] {
            let text = cell.repeat(many / cell.len());
            let rows: String =
                text.as_bytes().chunks(1000 * cell.len()).fold(String::new(), |mut rows, chunk| {
                    rows.push_str(std::str::from_utf8(chunk).unwrap());
                    rows.push('\n');
                    rows
                });
            assert_eq!(fault(io::Cursor::new(rows)), None, "{name}");
        }
    }
}
