//! CSV tables: named columns become features and a label.
//!
//! Numeric columns come first, in the plan's order, then the one-hot coordinates of the categorical ones. An empty cell,
//! `?`, `na` and others (`dialect`) are missing, unless the plan lists them as a category or class. Refuses what it cannot
//! read, naming file, line, column and value; labels are never made up.

mod dialect;
mod division;
mod rows;
mod survey;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use csv::StringRecord;
use protocol::{LearnError, Missing, Standardise, TableSpec, Target};

use super::alone::Alone;
use super::cells::{Cells, Lines};
use super::classes::Classes;
use super::files::open;
use super::load::Unusable;
use super::{CsvSource, Dataset, Decimal, Labels, Separator};

use dialect::is_missing;
pub(super) use division::Division;
use division::Use;
use privacy::{counted, verb};
use rows::Rows;
pub use survey::{ColumnSurvey, TableSurvey, survey};

/// How many values of a column an error lists.
const LISTED: usize = 12;

/// What else to say of a label that is no class, where the plan only counts them.
const LIST_THEM: &str = "; other labels are listed in the plan, in one order for all sites: `target = { classes = [\"no\", \"yes\"] }`";

/// What is wanted from a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) spec: &'a TableSpec,
    /// Which rows are used, and how the file is written.
    pub(super) source: &'a CsvSource,
    /// What each row is for.
    pub(super) division: Division<'a>,
    /// Read along with each row.
    pub(super) id_column: Option<&'a str>,
    /// What becomes of a row that cannot be read.
    pub(super) unusable: Unusable,
}

/// The rows of a file by what they are for.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) train: Part,
    pub(super) validation: Part,
    pub(super) test: Part,
}

impl Parts {
    fn narrowed(self) -> Self {
        let Self { train, validation, test } = self;
        Self { train: train.narrowed(), validation: validation.narrowed(), test: test.narrowed() }
    }
}

/// Rows of one kind, and their ids if the query names a column for them.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) dataset: Dataset,
    pub(super) ids: Vec<String>,
}

impl Part {
    /// The same records, in as little memory as their numbers need.
    fn narrowed(mut self) -> Self {
        self.dataset.features = self.dataset.features.narrowed();
        self
    }
}

/// Why a table does not become records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum TableError {
    #[error("cannot open `{path}`: {source}; check the path under [data] and who may read it", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Foreign { path: PathBuf, source: io::Error },
    #[error("cannot read `{path}`: {source}; save it as CSV in UTF-8 with one header line", path = path.display())]
    Csv { path: PathBuf, source: csv::Error },
    #[error("`{path}` line {line} has bytes that are no text in UTF-8; save it as CSV in UTF-8", path = path.display())]
    NotText { path: PathBuf, line: u64 },
    #[error(
        "`{path}` line {line} has {found} cells where the header has {wanted}, separated by `{separator}`; separate them alike, \
         put a cell that contains one in quotation marks, or set `separator` beside the file's name", path = path.display()
    )]
    Width { path: PathBuf, line: u64, found: u64, wanted: u64, separator: &'static str },
    #[error("`{path}` has no column `{column}`; its columns are {have}{advice}", path = path.display())]
    NoColumn { path: PathBuf, column: String, have: String, advice: &'static str },
    #[error("`{path}` is no table: {why}", path = path.display())]
    NoTable { path: PathBuf, why: &'static str },
    #[error("`{path}` has two columns `{column}`; rename one", path = path.display())]
    TwoColumns { path: PathBuf, column: String },
    #[error(
        "`{path}` line {line}: column `{column}` holds `{value}`, which is beyond {most}; correct the cell, or give the \
         column in another unit", path = path.display()
    )]
    Beyond { path: PathBuf, line: u64, column: String, value: String, most: &'static str },
    #[error(
        "`{path}` line {line}: column `{column}` holds `{value}`, which is not a finite number; correct the cell or list \
         the column under `categorical`{advice}", path = path.display()
    )]
    Number { path: PathBuf, line: u64, column: String, value: String, advice: &'static str },
    #[error(
        "`{path}` line {line}: column `{column}` holds `{value}`, which counts as missing; fill it, or let the plan's \
         `missing` drop the row or fill it", path = path.display()
    )]
    Missing { path: PathBuf, line: u64, column: String, value: String },
    #[error(
        "`{path}` line {line}: label column `{column}` holds `{value}`, which counts as missing; fill it, or let the \
         plan's `missing` drop the row", path = path.display()
    )]
    NoLabel { path: PathBuf, line: u64, column: String, value: String },
    #[error("`{path}` line {line}: label column `{column}` holds `{value}`; the plan wants {wanted}{advice}", path = path.display())]
    Label { path: PathBuf, line: u64, column: String, value: String, wanted: String, advice: &'static str },
    #[error(
        "`{path}` line {line}: `split_column` `{column}` holds `{value}`; each row that is used says {listed}: correct the cell, or \
         leave the row out by `where`", path = path.display()
    )]
    Split { path: PathBuf, line: u64, column: String, value: String, listed: &'static str },
    #[error(
        "`{path}` line {line}: `group_column` `{column}` holds `{value}`, which counts as missing; every row needs a group to be \
         drawn with", path = path.display()
    )]
    NoGroup { path: PathBuf, line: u64, column: String, value: String },
    #[error(
        "`{path}`: `{key}` draws none of the {rows} rows that are used; give a larger share, another `split_seed`, or leave it out",
        path = path.display()
    )]
    NoneDrawn { path: PathBuf, key: &'static str, rows: usize },
    #[error("`{path}` line {line}: the id column is empty; every row needs an id", path = path.display())]
    NoId { path: PathBuf, line: u64 },
    #[error("`{path}` has no rows to use: {why}", path = path.display())]
    Empty { path: PathBuf, why: String },
    #[error("`{path}` has more than {max} rows; divide the file", path = path.display(), max = u32::MAX)]
    TooLong { path: PathBuf },
}

/// A file that is open, and how it is written.
struct Table {
    csv: csv::Reader<Box<dyn Read>>,
    separator: Separator,
    lines: Lines,
    /// Where the last row began.
    line: u64,
}

impl Table {
    fn open(path: &Path, separator: Option<Separator>, unusable: Unusable) -> Result<Self, TableError> {
        let foreign = |source: io::Error, other: fn(PathBuf, io::Error) -> TableError| match source.kind() {
            io::ErrorKind::Unsupported => TableError::Foreign { path: path.into(), source },
            _ => other(path.into(), source),
        };
        let file =
            open(path).map_err(|error| foreign(error, |path, source| TableError::Open { path, source }))?;
        let damaged = |path, error: io::Error| TableError::Csv { path, source: error.into() };
        let begun = dialect::begin(file, separator).map_err(|error| foreign(error, damaged));
        let (separator, file) = begun?;
        let file: Box<dyn Read> = match unusable {
            Unusable::Refuse => Box::new(file),
            Unusable::LeaveOut => Box::new(Alone::new(file, separator.byte())),
        };
        let cells = Cells::new(file, separator.byte());
        let lines = cells.lines();
        let bytes: Box<dyn Read> = Box::new(cells);
        let csv =
            csv::ReaderBuilder::new().delimiter(separator.byte()).trim(csv::Trim::All).from_reader(bytes);
        Ok(Self { csv, separator, lines, line: 0 })
    }

    /// The names of the columns; read before any row.
    fn headers(&mut self, path: &Path) -> Result<StringRecord, TableError> {
        let headers = self.csv.headers().cloned();
        self.line = self.lines.next_row();
        headers.map_err(|error| self.damaged(path, error))
    }

    /// The next row; `false` at the end. After an error in a row, the one behind it can be read.
    fn read(&mut self, record: &mut StringRecord) -> Result<bool, csv::Error> {
        let read = self.csv.read_record(record);
        if !matches!(read, Ok(false)) {
            self.line = self.lines.next_row();
        }
        if let Some(mut position) = record.position().cloned() {
            position.set_line(self.line);
            record.set_position(Some(position));
        }
        read
    }

    fn damaged(&self, path: &Path, source: csv::Error) -> TableError {
        let (path, line) = (path.into(), self.line);
        match source.kind() {
            csv::ErrorKind::UnequalLengths { expected_len: wanted, len: found, .. } => {
                let (found, wanted, separator) = (*found, *wanted, self.separator.name());
                TableError::Width { path, line, found, wanted, separator }
            }
            csv::ErrorKind::Utf8 { .. } => TableError::NotText { path, line },
            _ => TableError::Csv { path, source },
        }
    }
}

/// Reads the rows of a file; but for those to train on, there may be none of a kind.
pub(super) fn read(path: &Path, query: Query<'_>) -> Result<Parts, TableError> {
    let mut table = Table::open(path, query.source.separator, query.unusable)?;
    let headers = table.headers(path)?;
    let rows = Rows::find(path, &headers, query.source, query.division)?;
    let columns = Columns::find(path, &headers, query)?;
    let mut reading = Reading::start(path, query, rows, columns);
    let mut record = StringRecord::new();
    loop {
        match table.read(&mut record) {
            Ok(false) => return reading.finish().map(Parts::narrowed),
            Ok(true) => reading.take(&record)?,
            // A line with too many cells or with bytes that are no text; the next one can be read.
            Err(error) if query.unusable == Unusable::LeaveOut && !error.is_io_error() => {}
            Err(error) => return Err(table.damaged(path, error)),
        }
    }
}

/// The line where a row begins.
fn line_of(record: &StringRecord) -> u64 {
    record.position().map_or(0, csv::Position::line)
}

/// Whether the first line seems to be a row of numbers instead of names.
fn is_unnamed(headers: &StringRecord) -> bool {
    headers.iter().all(|header| header.replace(',', ".").parse::<f64>().is_ok())
}

/// The names of a table's columns, from its header line.
///
/// # Errors
/// [`LearnError`] when the file cannot be read.
pub fn header(path: &Path, separator: Option<Separator>) -> Result<Vec<String>, LearnError> {
    let headers = Table::open(path, separator, Unusable::Refuse)?.headers(path)?;
    Ok(headers.iter().map(str::to_owned).collect())
}

/// Rows that are looked at by [`probe`].
const PROBED: usize = 1000;

/// Whether a file begins as a table does: names of at least two columns, and as many cells in each of its first rows.
///
/// # Errors
/// [`LearnError`] says what it is instead.
pub fn probe(path: &Path) -> Result<(), LearnError> {
    let mut table = Table::open(path, None, Unusable::Refuse)?;
    let headers = table.headers(path)?;
    let no_table = |why| TableError::NoTable { path: path.into(), why };
    if headers.len() < 2 {
        return Err(
            no_table("its first line names no two columns, separated by `,`, `;`, `|` or a tab").into()
        );
    }
    if is_unnamed(&headers) {
        return Err(no_table("its first line holds numbers and should name the columns").into());
    }
    let mut record = StringRecord::new();
    for _ in 0..PROBED {
        match table.read(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(table.damaged(path, error).into()),
        }
    }
    Ok(())
}

/// The place of a column.
fn place_of(path: &Path, headers: &StringRecord, column: &str) -> Result<usize, TableError> {
    let mut places = headers.iter().enumerate().filter(|(_, header)| *header == column);
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => Err(TableError::TwoColumns { path: path.into(), column: column.into() }),
        (None, _) => {
            let have = headers.iter().map(|header| format!("`{header}`")).collect::<Vec<_>>().join(", ");
            let advice = match headers.len() {
                1 => "; if something else than `,`, `;`, `|` or a tab separates them, save the file as CSV",
                _ if is_unnamed(headers) => "; its first line should name the columns",
                _ => "",
            };
            Err(TableError::NoColumn { path: path.into(), column: column.into(), have, advice })
        }
    }
}

/// Where the wanted columns are, and what is in them.
struct Columns {
    numeric: Vec<usize>,
    categorical: Vec<usize>,
    label: usize,
    id: Option<usize>,
    classes: Classes,
    decimal: Decimal,
}

impl Columns {
    fn find(path: &Path, headers: &StringRecord, query: Query<'_>) -> Result<Self, TableError> {
        let at = |column: &str| place_of(path, headers, column);
        let spec = query.spec;
        Ok(Self {
            numeric: spec.features.iter().map(|name| at(name)).collect::<Result<_, _>>()?,
            categorical: spec.categorical.iter().map(|one| at(&one.column)).collect::<Result<_, _>>()?,
            label: at(&spec.label)?,
            id: query.id_column.map(at).transpose()?,
            classes: Classes::of(&spec.target),
            decimal: query.source.decimal,
        })
    }
}

impl Columns {
    /// The class that a cell of the label column names; a number may have the site's decimals.
    fn class_of(&self, cell: &str) -> Option<u32> {
        let number = || dialect::number(cell, self.decimal).and_then(|value| self.classes.of_number(value));
        self.classes.of_cell(cell).or_else(|| number().filter(|_| self.decimal == Decimal::Comma))
    }
}

/// A file on its way into memory.
struct Reading<'a> {
    path: &'a Path,
    query: Query<'a>,
    rows: Rows<'a>,
    columns: Columns,
    parts: Parts,
    /// Rows of the file, rows that are used, and rows left out for a missing cell.
    read: usize,
    used: usize,
    dropped: usize,
    /// Some values of each filter column and of the split column, for the error when nothing is left.
    seen: Vec<BTreeSet<String>>,
}

/// What became of a row.
enum Row {
    Kept,
    Dropped,
}

impl Part {
    /// Rows to come.
    fn empty(spec: &TableSpec) -> Self {
        let width = spec.features.len() + spec.categorical.iter().map(|one| one.values.len()).sum::<usize>();
        let labels = match spec.target.target() {
            Target::Classes(_) => Labels::Classes(Vec::new()),
            Target::Real => Labels::Real(Vec::new()),
        };
        Self { dataset: Dataset { shape: vec![width], features: Vec::new().into(), labels }, ids: Vec::new() }
    }
}

impl<'a> Reading<'a> {
    fn start(path: &'a Path, query: Query<'a>, rows: Rows<'a>, columns: Columns) -> Self {
        let part = || Part::empty(query.spec);
        let parts = Parts { train: part(), validation: part(), test: part() };
        let seen = vec![BTreeSet::new(); rows.watched().count()];
        Self { path, query, rows, columns, parts, read: 0, used: 0, dropped: 0, seen }
    }

    fn take(&mut self, record: &StringRecord) -> Result<(), TableError> {
        self.read += 1;
        for (seen, (place, ..)) in self.seen.iter_mut().zip(self.rows.watched()) {
            if seen.len() < LISTED && !seen.contains(&record[place]) {
                seen.insert(record[place].to_owned());
            }
        }
        let part = match (self.rows.use_of(self.path, record), self.query.unusable) {
            (Ok(None), _) | (Err(_), Unusable::LeaveOut) => return Ok(()),
            (Err(error), Unusable::Refuse) => return Err(error),
            (Ok(Some(Use::Train)), _) => &mut self.parts.train,
            (Ok(Some(Use::Validation)), _) => &mut self.parts.validation,
            (Ok(Some(Use::Test)), _) => &mut self.parts.test,
        };
        self.used += 1;
        let before = (part.dataset.features.len(), part.dataset.labels.len());
        let added = add_row(part, self.path, self.query.spec, &self.columns, record);
        let added = match self.query.unusable {
            Unusable::Refuse => added?,
            Unusable::LeaveOut => added.unwrap_or(Row::Dropped),
        };
        match added {
            Row::Kept if u32::try_from(part.dataset.len()).is_err() => {
                Err(TableError::TooLong { path: self.path.into() })
            }
            Row::Kept => Ok(()),
            Row::Dropped => {
                part.dataset.features.make_wide().truncate(before.0);
                part.dataset.labels.truncate(before.1);
                self.dropped += 1;
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Parts, TableError> {
        if self.query.unusable == Unusable::LeaveOut {
            return Ok(self.parts);
        }
        let Division { test, validation, .. } = self.query.division;
        if self.parts.train.dataset.is_empty() {
            return Err(TableError::Empty { path: self.path.into(), why: self.why_empty() });
        }
        let none_of = |share: f64, part: &Part| share > 0.0 && part.dataset.is_empty();
        let key = match &self.parts {
            parts if none_of(test, &parts.test) => "test_fraction",
            parts if none_of(validation, &parts.validation) => "validation_fraction",
            _ => return Ok(self.parts),
        };
        Err(TableError::NoneDrawn { path: self.path.into(), key, rows: self.used })
    }

    fn why_empty(&self) -> String {
        if self.read == 0 {
            return "there is only the header line".to_owned();
        }
        let kept = self.parts.test.dataset.len() + self.parts.validation.dataset.len();
        if self.dropped > 0 {
            return format!(
                "{} of {} {} a cell, and `missing` drops such rows",
                self.dropped,
                counted(self.used, "training and test row"),
                verb(self.dropped, "misses", "miss")
            );
        }
        if kept > 0 && self.query.division.column.is_none() {
            return format!(
                "all {kept} were drawn for testing or validation; give smaller shares or another `split_seed`"
            );
        }
        let tell = |((_, column, value), seen): ((usize, &str, &str), &BTreeSet<String>)| {
            let values: Vec<String> = seen.iter().map(|value| format!("`{value}`")).collect();
            let more = if values.len() == LISTED { ", ..." } else { "" };
            format!("`{column}` must be `{value}` and is one of {}{more}", values.join(", "))
        };
        self.rows.watched().zip(&self.seen).map(tell).collect::<Vec<_>>().join("; ")
    }
}

/// Adds a row; when it is dropped, some of its features may have been added.
fn add_row(
    part: &mut Part,
    path: &Path,
    spec: &TableSpec,
    columns: &Columns,
    record: &StringRecord,
) -> Result<Row, TableError> {
    let is_narrow = spec.standardise == Standardise::None;
    let (line, decimal) = (line_of(record), columns.decimal);
    let place = Place { path, line, missing: spec.missing, decimal, is_narrow };
    for (column, at) in spec.features.iter().zip(&columns.numeric) {
        let Some(value) = place.number(column, &record[*at])? else { return Ok(Row::Dropped) };
        part.dataset.features.make_wide().push(value);
    }
    for (categorical, at) in spec.categorical.iter().zip(&columns.categorical) {
        let cell = &record[*at];
        let listed = categorical.values.iter().any(|value| value == cell);
        if !listed && is_missing(cell) && place.missing_cell(&categorical.column, cell)?.is_none() {
            return Ok(Row::Dropped);
        }
        let one_hot = categorical.values.iter().map(|value| if value == cell { 1.0 } else { 0.0 });
        part.dataset.features.make_wide().extend(one_hot);
    }
    let cell = &record[columns.label];
    if is_missing(cell) && !columns.classes.lists(cell) {
        if spec.missing == Missing::Drop {
            return Ok(Row::Dropped);
        }
        let (path, line) = (path.into(), place.line);
        return Err(TableError::NoLabel { path, line, column: spec.label.clone(), value: cell.into() });
    }
    place.label(&mut part.dataset.labels, spec, columns, cell)?;
    if let Some(at) = columns.id {
        if is_missing(&record[at]) {
            return Err(TableError::NoId { path: path.into(), line: place.line });
        }
        part.ids.push(record[at].to_owned());
    }
    Ok(Row::Kept)
}

/// A line, for errors, and what to do with its missing cells.
struct Place<'a> {
    path: &'a Path,
    line: u64,
    missing: Missing,
    decimal: Decimal,
    /// Whether cells reach the model as they are, in f32.
    is_narrow: bool,
}

impl Place<'_> {
    /// A numeric cell; `None` drops the row.
    fn number(&self, column: &str, cell: &str) -> Result<Option<f64>, TableError> {
        if is_missing(cell) {
            return self.missing_cell(column, cell);
        }
        let value = self.finite(cell);
        if value.is_none() && dialect::is_beyond(cell, self.decimal) {
            let (path, column, value) = (self.path.into(), column.into(), cell.into());
            let most = match self.is_narrow {
                true => "the largest number that a model takes without standardisation, about 3.4e38 (f32)",
                false => "the largest number that can be read, about 1.8e308 (f64)",
            };
            return Err(TableError::Beyond { path, line: self.line, column, value, most });
        }
        value.map(Some).ok_or_else(|| TableError::Number {
            path: self.path.into(),
            line: self.line,
            column: column.into(),
            value: cell.into(),
            advice: dialect::advice(cell, self.decimal),
        })
    }

    fn finite(&self, cell: &str) -> Option<f64> {
        let is_usable = |value: &f64| value.is_finite() && (!self.is_narrow || (*value as f32).is_finite());
        dialect::number(cell, self.decimal).filter(is_usable)
    }

    /// What stands for a missing cell; `None` drops the row.
    fn missing_cell(&self, column: &str, cell: &str) -> Result<Option<f64>, TableError> {
        match self.missing {
            Missing::Refuse => Err(TableError::Missing {
                path: self.path.into(),
                line: self.line,
                column: column.into(),
                value: cell.into(),
            }),
            Missing::Drop => Ok(None),
            Missing::Mean => Ok(Some(f64::NAN)),
            Missing::Constant(value) => Ok(Some(value)),
        }
    }

    fn label(
        &self,
        labels: &mut Labels,
        spec: &TableSpec,
        columns: &Columns,
        cell: &str,
    ) -> Result<(), TableError> {
        let wrong = |wanted: String, advice: &'static str| TableError::Label {
            path: self.path.into(),
            line: self.line,
            column: spec.label.clone(),
            value: cell.into(),
            wanted,
            advice,
        };
        match labels {
            Labels::Classes(known) => {
                let advice = if columns.classes.are_counted() { LIST_THEM } else { "" };
                known.push(columns.class_of(cell).ok_or_else(|| wrong(columns.classes.wanted(), advice))?);
            }
            Labels::Real(known) => {
                let value = dialect::number(cell, self.decimal).map(|value| value as f32);
                let advice = dialect::advice(cell, self.decimal);
                let value = value.filter(|value| value.is_finite());
                let wanted = if dialect::is_beyond(cell, self.decimal) {
                    "a number of at most 3.4e38 (f32)"
                } else {
                    "a finite number"
                };
                known.push(value.ok_or_else(|| wrong(wanted.to_owned(), advice))?);
            }
        }
        Ok(())
    }
}
