//! CSV tables: named columns become features and a label.
//!
//! Numeric columns come first, in the plan's order, then the one-hot coordinates of the categorical ones. An empty cell,
//! `?`, `na` or `nan` is missing, unless the plan lists it as a category. Refuses what it cannot read, naming file, line,
//! column and value; labels are never made up.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use protocol::{Missing, Standardise, TableSpec, Target};

use super::array::to_class;
use super::cells::Cells;
use super::files::open;
use super::load::Unusable;
use super::{Dataset, Labels};

pub use survey::{ColumnSurvey, TableSurvey, survey};

/// How many values of a column an error lists.
const LISTED: usize = 12;

/// What is wanted from a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) spec: &'a TableSpec,
    /// Rows count only if each of these columns holds this value.
    pub(super) filter: &'a BTreeMap<String, String>,
    /// Divides rows by `train` and `test`; without it all are training rows.
    pub(super) split_column: Option<&'a str>,
    /// Read along with each row.
    pub(super) id_column: Option<&'a str>,
    /// What becomes of a row that cannot be read.
    pub(super) unusable: Unusable,
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
    #[error("cannot read `{path}`: {source}; save it as CSV in UTF-8 with one header line", path = path.display())]
    Csv { path: PathBuf, source: csv::Error },
    #[error("`{path}` has no column `{column}`; its columns are {have}", path = path.display())]
    NoColumn { path: PathBuf, column: String, have: String },
    #[error("`{path}` has two columns `{column}`; rename one", path = path.display())]
    TwoColumns { path: PathBuf, column: String },
    #[error(
        "`{path}` line {line}: column `{column}` holds `{value}`, which is not a finite number; correct the cell or list \
         the column under `categorical`", path = path.display()
    )]
    Number { path: PathBuf, line: u64, column: String, value: String },
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
    #[error("`{path}` line {line}: label column `{column}` holds `{value}`; the plan wants {wanted}", path = path.display())]
    Label { path: PathBuf, line: u64, column: String, value: String, wanted: String },
    #[error("`{path}` line {line}: the id column is empty; every row needs an id", path = path.display())]
    NoId { path: PathBuf, line: u64 },
    #[error("`{path}` has no rows to use: {why}", path = path.display())]
    Empty { path: PathBuf, why: String },
    #[error("`{path}` has more than {max} rows; divide the file", path = path.display(), max = u32::MAX)]
    TooLong { path: PathBuf },
}

/// Reads the training rows and the test rows of a file; the latter may be none.
pub(super) fn read(path: &Path, query: Query<'_>) -> Result<(Part, Part), TableError> {
    let file = open(path).map_err(|source| TableError::Open { path: path.into(), source })?;
    let damaged = |source| TableError::Csv { path: path.into(), source };
    let mut csv = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(Cells::new(file));
    let columns = Columns::find(path, csv.headers().map_err(damaged)?, query)?;
    let mut reading = Reading::start(path, query, columns);
    let mut record = StringRecord::new();
    loop {
        match csv.read_record(&mut record) {
            Ok(false) => return reading.finish().map(|(train, test)| (train.narrowed(), test.narrowed())),
            Ok(true) => reading.take(&record)?,
            // A line with too many cells or with bytes that are no text; the next one can be read.
            Err(error) if query.unusable == Unusable::LeaveOut && !error.is_io_error() => {}
            Err(error) => return Err(damaged(error)),
        }
    }
}

/// Where the wanted columns are.
struct Columns {
    numeric: Vec<usize>,
    categorical: Vec<usize>,
    label: usize,
    filters: Vec<usize>,
    split: Option<usize>,
    id: Option<usize>,
}

impl Columns {
    fn find(path: &Path, headers: &StringRecord, query: Query<'_>) -> Result<Self, TableError> {
        let at = |column: &str| {
            let mut places = headers.iter().enumerate().filter(|(_, header)| *header == column);
            match (places.next(), places.next()) {
                (Some((place, _)), None) => Ok(place),
                (Some(_), Some(_)) => {
                    Err(TableError::TwoColumns { path: path.into(), column: column.into() })
                }
                (None, _) => {
                    let have =
                        headers.iter().map(|header| format!("`{header}`")).collect::<Vec<_>>().join(", ");
                    Err(TableError::NoColumn { path: path.into(), column: column.into(), have })
                }
            }
        };
        Ok(Self {
            numeric: query.spec.features.iter().map(|name| at(name)).collect::<Result<_, _>>()?,
            categorical: query
                .spec
                .categorical
                .iter()
                .map(|one| at(&one.column))
                .collect::<Result<_, _>>()?,
            label: at(&query.spec.label)?,
            filters: query.filter.keys().map(|name| at(name)).collect::<Result<_, _>>()?,
            split: query.split_column.map(at).transpose()?,
            id: query.id_column.map(at).transpose()?,
        })
    }
}

/// A file on its way into memory.
struct Reading<'a> {
    path: &'a Path,
    query: Query<'a>,
    columns: Columns,
    train: Part,
    test: Part,
    /// Rows of the file, rows that pass the filters, and rows left out for a missing cell.
    rows: usize,
    passed: usize,
    dropped: usize,
    /// Some values of each filter column and of the split column, for the error when nothing is left.
    seen: Vec<BTreeSet<String>>,
}

/// What became of a row.
enum Row {
    Kept,
    Dropped,
}

impl<'a> Reading<'a> {
    fn start(path: &'a Path, query: Query<'a>, columns: Columns) -> Self {
        let spec = query.spec;
        let width = spec.features.len() + spec.categorical.iter().map(|one| one.values.len()).sum::<usize>();
        let part = || {
            let labels = match spec.target {
                Target::Classes(_) => Labels::Classes(Vec::new()),
                Target::Real => Labels::Real(Vec::new()),
            };
            Part {
                dataset: Dataset { shape: vec![width], features: Vec::new().into(), labels },
                ids: Vec::new(),
            }
        };
        let seen = vec![BTreeSet::new(); columns.filters.len() + 1];
        Self { path, query, columns, train: part(), test: part(), rows: 0, passed: 0, dropped: 0, seen }
    }

    fn take(&mut self, record: &StringRecord) -> Result<(), TableError> {
        self.rows += 1;
        let watched = self.columns.filters.iter().copied().chain(self.columns.split);
        for (seen, place) in self.seen.iter_mut().zip(watched) {
            if seen.len() < LISTED && !seen.contains(&record[place]) {
                seen.insert(record[place].to_owned());
            }
        }
        let wanted = self.query.filter.values();
        if self.columns.filters.iter().zip(wanted).any(|(place, value)| record[*place] != **value) {
            return Ok(());
        }
        let part = match self.columns.split.map(|place| &record[place]) {
            None | Some("train") => &mut self.train,
            Some("test") => &mut self.test,
            Some(_) => return Ok(()),
        };
        self.passed += 1;
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

    fn finish(self) -> Result<(Part, Part), TableError> {
        if !self.train.dataset.is_empty() || self.query.unusable == Unusable::LeaveOut {
            return Ok((self.train, self.test));
        }
        let why = if self.rows == 0 {
            "there is only the header line".to_owned()
        } else if self.dropped > 0 {
            format!(
                "{} of {} training and test rows miss a cell and `missing` drops them",
                self.dropped, self.passed
            )
        } else {
            let split = self.query.split_column.map(|column| (column, "train"));
            let filters = self.query.filter.iter().map(|(column, value)| (column.as_str(), value.as_str()));
            let tell = |((column, value), seen): ((&str, &str), &BTreeSet<String>)| {
                let values: Vec<String> = seen.iter().map(|value| format!("`{value}`")).collect();
                let more = if values.len() == LISTED { ", ..." } else { "" };
                format!("`{column}` must be `{value}` and is one of {}{more}", values.join(", "))
            };
            filters.chain(split).zip(&self.seen).map(tell).collect::<Vec<_>>().join("; ")
        };
        Err(TableError::Empty { path: self.path.into(), why })
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
    let line = record.position().map_or(0, csv::Position::line);
    let place = Place { path, line, missing: spec.missing, is_narrow };
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
    if is_missing(cell) {
        if spec.missing == Missing::Drop {
            return Ok(Row::Dropped);
        }
        let (path, line) = (path.into(), place.line);
        return Err(TableError::NoLabel { path, line, column: spec.label.clone(), value: cell.into() });
    }
    place.label(&mut part.dataset.labels, spec, cell)?;
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
    /// Whether cells reach the model as they are, in f32.
    is_narrow: bool,
}

impl Place<'_> {
    /// A numeric cell; `None` drops the row.
    fn number(&self, column: &str, cell: &str) -> Result<Option<f64>, TableError> {
        if is_missing(cell) {
            return self.missing_cell(column, cell);
        }
        let is_usable = |value: f64| value.is_finite() && (!self.is_narrow || (value as f32).is_finite());
        let value = cell.parse::<f64>().ok().filter(|value| is_usable(*value));
        value.map(Some).ok_or_else(|| TableError::Number {
            path: self.path.into(),
            line: self.line,
            column: column.into(),
            value: cell.into(),
        })
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

    fn label(&self, labels: &mut Labels, spec: &TableSpec, cell: &str) -> Result<(), TableError> {
        let wrong = |wanted: String| TableError::Label {
            path: self.path.into(),
            line: self.line,
            column: spec.label.clone(),
            value: cell.into(),
            wanted,
        };
        let value = cell.parse::<f64>().ok();
        match (labels, spec.target) {
            (Labels::Classes(known), Target::Classes(classes)) => {
                let class = value.and_then(|value| to_class(value, classes));
                known.push(class.ok_or_else(|| wrong(format!("a class from 0 to {}", classes - 1)))?);
            }
            (Labels::Real(known), Target::Real) => {
                let value = value.map(|value| value as f32).filter(|value| value.is_finite());
                known.push(value.ok_or_else(|| wrong("a finite number".to_owned()))?);
            }
            (Labels::Classes(_), Target::Real) | (Labels::Real(_), Target::Classes(_)) => {
                unreachable!("labels are made for the plan's target when the reading starts")
            }
        }
        Ok(())
    }
}

fn is_missing(cell: &str) -> bool {
    ["", "?", "na", "nan"].iter().any(|word| cell.eq_ignore_ascii_case(word))
}
