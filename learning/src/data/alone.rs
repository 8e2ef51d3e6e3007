//! Rows of a table each for itself, where records are protected: none decides how another one is read.
//!
//! A quotation mark that is never closed would take in all rows behind it, and a cell that is too long would end the file. Here a line is a
//! row: one whose quotes are open at its end, or that is longer than a row or a cell may be, is read as a row of one unknown cell. The
//! header is public and comes through as it is.

use std::collections::VecDeque;
use std::io::{self, Read};

use super::cells::{Cells, ROW_MAX};

/// What a line becomes that cannot be a row.
const UNUSABLE: u8 = b'?';
/// Bytes that are asked for at a time.
const BLOCK: usize = 64 << 10;

/// Bytes that are read through it, from the header on.
pub(super) struct Alone<R> {
    from: R,
    separator: u8,
    /// The line that is coming in, and whether it is too long already.
    line: Vec<u8>,
    is_long: bool,
    /// Whether a row of names has gone through.
    is_past_header: bool,
    ready: VecDeque<u8>,
    block: Vec<u8>,
    has_ended: bool,
}

impl<R: Read> Alone<R> {
    pub(super) fn new(from: R, separator: u8) -> Self {
        Self {
            from,
            separator,
            line: Vec::new(),
            is_long: false,
            is_past_header: false,
            ready: VecDeque::new(),
            block: vec![0; BLOCK],
            has_ended: false,
        }
    }

    /// Reads on until a line is whole, or the file is.
    fn fill(&mut self) -> io::Result<()> {
        while self.ready.is_empty() && !self.has_ended {
            let count = self.from.read(&mut self.block)?;
            let block = std::mem::take(&mut self.block);
            for byte in &block[..count] {
                if matches!(byte, b'\n' | b'\r') {
                    self.end_line();
                    self.ready.push_back(*byte);
                } else if self.line.len() < ROW_MAX {
                    self.line.push(*byte);
                } else {
                    self.is_long = true;
                }
            }
            self.block = block;
            if count == 0 {
                self.end_line();
                self.has_ended = true;
            }
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let is_row = !self.line.is_empty();
        if self.is_past_header && (self.is_long || !Cells::is_one_row(&self.line, self.separator)) {
            self.ready.push_back(UNUSABLE);
        } else {
            self.ready.extend(&self.line);
        }
        self.is_past_header |= is_row;
        self.is_long = false;
        self.line.clear();
    }
}

impl<R: Read> Read for Alone<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        self.ready.read(into)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells::CELL_MAX;
    use super::*;

    fn read(text: &str) -> String {
        let mut read = String::new();
        Alone::new(text.as_bytes(), b',').read_to_string(&mut read).unwrap();
        read
    }

    #[test]
    fn a_line_that_is_no_row_is_one_unknown_cell_and_all_others_come_through() {
        let long = format!("1,{}", "x".repeat(CELL_MAX + 2));
        for end in ["\n", "\r\n", "\r"] {
            let lines =
                ["a,b", "1,2", "\"3,4", "5,\"6\"", "7,\"8\"\"", "9,5\" pipe", &long, "\"1\"\"2\",3", "4,5"];
            let expected = ["a,b", "1,2", "?", "5,\"6\"", "?", "9,5\" pipe", "?", "\"1\"\"2\",3", "4,5"];
            assert_eq!(read(&lines.join(end)), expected.join(end), "{end:?}");
        }
        assert_eq!(read("\n\na,b\n\n\"1,2\n"), "\n\na,b\n\n?\n");
        assert_eq!(read(""), "");
        // The header is public: what is wrong with it is nobody's record.
        assert_eq!(read("\"a,b\n1,2"), "\"a,b\n1,2");
    }
}
