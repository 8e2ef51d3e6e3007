//! Which rows of a table are used, and what for.

use std::path::Path;

use csv::StringRecord;

use super::super::CsvSource;
use super::division::{Division, Places, Use};
use super::{TableError, place_of};

/// The rows that a site's settings choose.
pub(super) struct Rows<'a> {
    filters: Vec<(usize, &'a str, &'a str)>,
    division: Division<'a>,
    places: Places,
}

impl<'a> Rows<'a> {
    /// Finds the columns that decide.
    ///
    /// # Errors
    /// [`TableError`] when the file lacks one, or has it twice.
    pub(super) fn find(
        path: &Path,
        headers: &StringRecord,
        source: &'a CsvSource,
        division: Division<'a>,
    ) -> Result<Self, TableError> {
        let at = |name: &str| place_of(path, headers, name);
        let filters =
            source.filter.iter().map(|(name, value)| Ok((at(name)?, name.as_str(), value.as_str())));
        let filters = filters.collect::<Result<_, _>>()?;
        let (column, group) = (division.column.map(at).transpose()?, division.group.map(at).transpose()?);
        Ok(Self { filters, division, places: Places { column, group } })
    }

    /// What a row is for; `None` when `where` leaves it out.
    ///
    /// # Errors
    /// [`TableError`] when it is used and does not say what for.
    pub(super) fn use_of(&self, path: &Path, record: &StringRecord) -> Result<Option<Use>, TableError> {
        if self.filters.iter().any(|(place, _, value)| record[*place] != **value) {
            return Ok(None);
        }
        self.division.use_of(path, self.places, record).map(Some)
    }

    /// The columns that decide by what is in them: place, name and wanted value.
    pub(super) fn watched(&self) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
        let split = self.places.column.zip(self.division.column).map(|(place, name)| (place, name, "train"));
        self.filters.iter().copied().chain(split)
    }

    /// Whether some rows may not be to train on.
    pub(super) fn are_divided(&self) -> bool {
        !self.division.is_whole()
    }
}
