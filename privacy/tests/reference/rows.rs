//! The rows of `dp_reference.csv`, by column name.

/// One row; every column is text until it is asked for.
pub(crate) struct Row {
    headers: csv::StringRecord,
    record: csv::StringRecord,
}

/// All rows, in the file's order.
pub(crate) fn rows() -> Vec<Row> {
    let mut reader = csv::Reader::from_reader(include_str!("dp_reference.csv").as_bytes());
    let headers = reader.headers().unwrap().clone();
    reader.records().map(|record| Row { headers: headers.clone(), record: record.unwrap() }).collect()
}

/// The rows of one kind; at least one.
pub(crate) fn rows_of(kind: &str) -> Vec<Row> {
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.text("kind") == kind).collect();
    assert!(!rows.is_empty(), "the reference file has no rows of kind {kind}");
    rows
}

impl Row {
    /// A column, as it stands.
    pub(crate) fn text(&self, column: &str) -> &str {
        let index = self.headers.iter().position(|header| header == column);
        &self.record[index.unwrap_or_else(|| panic!("the reference file has no column {column}"))]
    }

    /// A column that is a number.
    pub(crate) fn number(&self, column: &str) -> f64 {
        let text = self.text(column);
        text.parse().unwrap_or_else(|_| panic!("{}: {column} is `{text}`, not a number", self.text("id")))
    }

    /// A column that is a whole number.
    pub(crate) fn whole(&self, column: &str) -> u64 {
        let text = self.text(column);
        text.parse()
            .unwrap_or_else(|_| panic!("{}: {column} is `{text}`, not a whole number", self.text("id")))
    }

    /// The number that follows `label` in the note.
    pub(crate) fn noted(&self, label: &str) -> f64 {
        let note = self.text("note");
        let (_, rest) = note.split_once(label).unwrap_or_else(|| panic!("{}: no {label}", self.text("id")));
        let end = rest.find([' ', ';']).unwrap_or(rest.len());
        rest[..end].parse().unwrap_or_else(|_| panic!("{}: no number after {label}", self.text("id")))
    }
}

/// Fails when `found` is not within `tolerance` of `wanted`, relatively.
pub(crate) fn near(id: &str, found: f64, wanted: f64, tolerance: f64) {
    let off = (found - wanted).abs();
    assert!(off <= tolerance * wanted.abs(), "{id}: {found} and not {wanted}");
}
