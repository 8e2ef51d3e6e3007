//! Which rows of a table are to train on, to choose a model by, and to measure on.
//!
//! A draw looks at nothing but the seed and the row: its group where there is a column for that, else all its cells. So rows that
//! are added or taken away move no other row from one part to another, rows that are equal are in one part, and where records are
//! protected none decides over another.

use std::path::Path;

use csv::StringRecord;
use sha2::{Digest, Sha256};

use super::super::CsvSource;
use super::dialect::is_missing;
use super::{TableError, line_of};

/// What a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Train,
    Validation,
    Test,
}

/// How the rows of a file are divided. By default all are to train on.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Division<'a> {
    /// A column that says it.
    pub(in super::super) column: Option<&'a str>,
    /// Shares of rows that are drawn.
    pub(in super::super) test: f64,
    pub(in super::super) validation: f64,
    /// Rows with the same value in this column are drawn together.
    pub(in super::super) group: Option<&'a str>,
    pub(in super::super) seed: u64,
}

impl<'a> Division<'a> {
    /// That of a site's training file.
    pub(in super::super) fn of(source: &'a CsvSource) -> Self {
        let share =
            |fraction: Option<super::super::Fraction>| fraction.map_or(0.0, |fraction| fraction.value());
        Self {
            column: source.split_column.as_deref(),
            test: share(source.test_fraction),
            validation: share(source.validation_fraction),
            group: source.group_column.as_deref(),
            seed: source.split_seed.unwrap_or_default(),
        }
    }

    /// Whether all rows are to train on.
    pub(super) fn is_whole(&self) -> bool {
        self.column.is_none() && self.test == 0.0 && self.validation == 0.0
    }
}

/// The places of a division's columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) column: Option<usize>,
    pub(super) group: Option<usize>,
}

impl Division<'_> {
    /// What a row is for.
    ///
    /// # Errors
    /// [`TableError`] when its column says none of the uses, or its group is missing.
    pub(super) fn use_of(
        &self,
        path: &Path,
        places: Places,
        record: &StringRecord,
    ) -> Result<Use, TableError> {
        if let Some(at) = places.column {
            let listed =
                if self.validation > 0.0 { "`train` or `test`" } else { "`train`, `validation` or `test`" };
            match &record[at] {
                "train" => {}
                "test" => return Ok(Use::Test),
                "validation" if self.validation == 0.0 => return Ok(Use::Validation),
                value => {
                    return Err(TableError::Split {
                        path: path.into(),
                        line: line_of(record),
                        column: self.column.unwrap_or_default().into(),
                        value: value.into(),
                        listed,
                    });
                }
            }
        }
        if self.test == 0.0 && self.validation == 0.0 {
            return Ok(Use::Train);
        }
        let drawn = match places.group {
            Some(at) if is_missing(&record[at]) => {
                return Err(TableError::NoGroup {
                    path: path.into(),
                    line: line_of(record),
                    column: self.group.unwrap_or_default().into(),
                    value: record[at].into(),
                });
            }
            Some(at) => draw(self.seed, [&record[at]].into_iter()),
            None => draw(self.seed, record.iter()),
        };
        Ok(match drawn {
            _ if drawn < self.test => Use::Test,
            _ if drawn < self.test + self.validation => Use::Validation,
            _ => Use::Train,
        })
    }
}

/// A number from 0 to below 1 that follows from the seed and the cells: the first 53 bits of a SHA-256.
fn draw<'a>(seed: u64, cells: impl Iterator<Item = &'a str>) -> f64 {
    let mut hash = Sha256::new_with_prefix(b"consortia split");
    hash.update(seed.to_le_bytes());
    for cell in cells {
        hash.update((cell.len() as u64).to_le_bytes());
        hash.update(cell);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(division: &Division<'_>, places: Places, rows: &[Vec<String>]) -> Vec<Use> {
        let of = |row: &Vec<String>| {
            division.use_of(Path::new("rows.csv"), places, &StringRecord::from(row.clone())).unwrap()
        };
        rows.iter().map(of).collect()
    }

    fn rows(count: usize) -> Vec<Vec<String>> {
        (0..count).map(|row| vec![format!("p{}", row / 4), row.to_string()]).collect()
    }

    const NONE: Places = Places { column: None, group: None };

    #[test]
    fn the_shares_are_about_those_asked_for_and_the_seed_draws_others() {
        let rows = rows(20_000);
        let division = Division { test: 0.2, validation: 0.1, seed: 3, ..Division::default() };
        let drawn = uses(&division, NONE, &rows);
        let share = |wanted| drawn.iter().filter(|one| **one == wanted).count() as f64 / 20_000.0;
        assert!((share(Use::Test) - 0.2).abs() < 0.01 && (share(Use::Validation) - 0.1).abs() < 0.01);
        assert_eq!(drawn, uses(&division, NONE, &rows), "the same rows are drawn again");
        assert_ne!(drawn, uses(&Division { seed: 4, ..division }, NONE, &rows));
    }

    #[test]
    fn rows_that_come_and_go_move_no_other() {
        let rows = rows(1000);
        let division = Division { test: 0.3, ..Division::default() };
        let drawn = uses(&division, NONE, &rows);
        let reversed: Vec<Vec<String>> = rows.iter().rev().cloned().collect();
        let back: Vec<Use> = uses(&division, NONE, &reversed).into_iter().rev().collect();
        assert_eq!((&drawn[..], &drawn[500..]), (&back[..], &uses(&division, NONE, &rows[500..])[..]));
    }

    #[test]
    fn a_larger_share_for_testing_keeps_what_was_for_testing() {
        let rows = rows(1000);
        let small = uses(&Division { test: 0.1, ..Division::default() }, NONE, &rows);
        let large = uses(&Division { test: 0.4, ..Division::default() }, NONE, &rows);
        assert!(small.iter().zip(&large).all(|(small, large)| *small != Use::Test || *large == Use::Test));
    }

    #[test]
    fn a_group_is_on_one_side() {
        let rows = rows(4000);
        let division = Division { test: 0.3, validation: 0.3, group: Some("who"), ..Division::default() };
        let drawn = uses(&division, Places { group: Some(0), ..NONE }, &rows);
        assert!(drawn.chunks(4).all(|patient| patient.iter().all(|one| *one == patient[0])));
        assert!([Use::Train, Use::Validation, Use::Test].iter().all(|wanted| drawn.contains(wanted)));
    }

    #[test]
    fn cells_are_told_apart_from_their_neighbours() {
        assert_ne!(draw(0, ["ab", "c"].into_iter()).to_bits(), draw(0, ["a", "bc"].into_iter()).to_bits());
        // Golden: a release that draws otherwise moves people's test rows into training.
        assert_eq!(draw(7, ["a", "1"].into_iter()), 0.671_178_652_418_707_4);
    }
}
