//! What a table holds, column by column, and which rows a plan could not use: for the people who look after a site's data.
//!
//! It reads on where reading for a training would stop, so that every bad row is counted. What it finds names lines, columns
//! and values of the site and is for the site's own eyes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, StringRecord};
use protocol::{LearnError, TableSpec, Target};

use super::super::cells::Cells;
use super::super::files::open;
use super::super::load::Unusable;
use super::super::{CsvSource, Dataset, Labels};
use super::{Columns, LISTED, Part, Query, Row, TableError, add_row, is_missing};

/// How many bad rows are described.
const FAULTS_LISTED: usize = 5;

/// What a CSV file holds in the rows that the site's settings choose.
#[derive(Clone, Debug)]
pub struct TableSurvey {
    /// The file.
    pub path: PathBuf,
    /// Rows below the header.
    pub rows: u64,
    /// Rows that `where` and `split_column` choose.
    pub chosen: u64,
    /// Its columns; with a plan, those that the plan uses.
    pub columns: Vec<ColumnSurvey>,
    /// Chosen rows that the plan's `missing` leaves out.
    pub dropped: u64,
    /// Rows that cannot be used.
    pub bad: u64,
    /// The first of them: line, and what is wrong.
    pub faults: Vec<(u64, String)>,
}

/// What a column holds in the chosen rows.
#[derive(Clone, Debug)]
pub struct ColumnSurvey {
    /// Its header.
    pub name: String,
    /// Cells that count as missing.
    pub missing: u64,
    /// Other cells that are not finite numbers.
    pub words: u64,
    /// The line of the first of those.
    pub first_word: Option<u64>,
    /// The different words, at most twelve.
    pub values: BTreeSet<String>,
    /// Whether the plan wants numbers here.
    pub wants_numbers: bool,
    /// Cells that are none of the plan's categories, where it lists some.
    pub unlisted: u64,
}

/// Looks through the files of `source`; with `spec`, as that plan would read them.
///
/// # Errors
/// [`LearnError`] when a file cannot be read at all or lacks a column.
pub fn survey(source: &CsvSource, spec: Option<&TableSpec>) -> Result<Vec<TableSurvey>, LearnError> {
    source.check()?;
    let train = survey_file(&source.train, source, source.split_column.as_deref(), spec)?;
    let test = source.test.as_ref().map(|test| survey_file(test, source, None, spec)).transpose()?;
    Ok([train].into_iter().chain(test).collect())
}

impl CsvSource {
    fn check(&self) -> Result<(), LearnError> {
        Ok(super::super::SourceSpec::Csv(self.clone()).check()?)
    }
}

fn survey_file(
    path: &Path,
    source: &CsvSource,
    split_column: Option<&str>,
    spec: Option<&TableSpec>,
) -> Result<TableSurvey, TableError> {
    let file = open(path).map_err(|source| TableError::Open { path: path.into(), source })?;
    let damaged = |source| TableError::Csv { path: path.into(), source };
    let mut csv = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(Cells::new(file));
    let headers = csv.headers().map_err(damaged)?.clone();
    let chosen = Chosen::find(path, &headers, source, split_column)?;
    let planned = match spec {
        Some(spec) => {
            let query = Query {
                spec,
                filter: &source.filter,
                split_column,
                id_column: None,
                unusable: Unusable::Refuse,
            };
            Some((spec, Columns::find(path, &headers, query)?))
        }
        None => None,
    };
    let mut survey = TableSurvey {
        path: path.into(),
        rows: 0,
        chosen: 0,
        columns: columns(&headers, spec),
        dropped: 0,
        bad: 0,
        faults: Vec::new(),
    };
    let places: Vec<usize> =
        survey.columns.iter().filter_map(|column| place(&headers, &column.name)).collect();
    let mut record = StringRecord::new();
    loop {
        match csv.read_record(&mut record) {
            Ok(false) => return Ok(survey),
            Ok(true) => survey.take(&record, &chosen, &places, planned.as_ref()),
            Err(error) => match (error.kind(), error.position().map(csv::Position::line)) {
                (ErrorKind::UnequalLengths { .. } | ErrorKind::Utf8 { .. }, Some(line)) => {
                    survey.rows += 1;
                    survey.note(line, error.to_string());
                }
                _ => return Err(damaged(error)),
            },
        }
    }
}

fn place(headers: &StringRecord, name: &str) -> Option<usize> {
    headers.iter().position(|header| header == name)
}

/// The columns to look at, without counts.
fn columns(headers: &StringRecord, spec: Option<&TableSpec>) -> Vec<ColumnSurvey> {
    let column = |name: &str, wants_numbers| ColumnSurvey {
        name: name.to_owned(),
        missing: 0,
        words: 0,
        first_word: None,
        values: BTreeSet::new(),
        wants_numbers,
        unlisted: 0,
    };
    let Some(spec) = spec else { return headers.iter().map(|name| column(name, false)).collect() };
    let numeric = spec.features.iter().map(|name| column(name, true));
    let categorical = spec.categorical.iter().map(|one| column(&one.column, false));
    numeric.chain(categorical).chain([column(&spec.label, true)]).collect()
}

/// Which rows the site's settings choose.
struct Chosen<'a> {
    filters: Vec<(usize, &'a str)>,
    split: Option<usize>,
}

impl<'a> Chosen<'a> {
    fn find(
        path: &Path,
        headers: &StringRecord,
        source: &'a CsvSource,
        split_column: Option<&str>,
    ) -> Result<Self, TableError> {
        let at = |name: &str| {
            place(headers, name).ok_or_else(|| {
                let have = headers.iter().map(|header| format!("`{header}`")).collect::<Vec<_>>().join(", ");
                TableError::NoColumn { path: path.into(), column: name.into(), have }
            })
        };
        let filters = source.filter.iter().map(|(name, value)| Ok((at(name)?, value.as_str())));
        Ok(Self { filters: filters.collect::<Result<_, _>>()?, split: split_column.map(at).transpose()? })
    }

    fn chooses(&self, record: &StringRecord) -> bool {
        self.filters.iter().all(|(place, value)| record[*place] == **value)
            && self.split.is_none_or(|place| ["train", "test"].contains(&&record[place]))
    }
}

impl TableSurvey {
    fn take(
        &mut self,
        record: &StringRecord,
        chosen: &Chosen<'_>,
        places: &[usize],
        planned: Option<&(&TableSpec, Columns)>,
    ) {
        self.rows += 1;
        if !chosen.chooses(record) {
            return;
        }
        self.chosen += 1;
        let line = record.position().map_or(0, csv::Position::line);
        for (column, place) in self.columns.iter_mut().zip(places) {
            column.take(&record[*place], line, planned.map(|(spec, _)| *spec));
        }
        let Some((spec, columns)) = planned else { return };
        match add_row(&mut one_row(spec), &self.path, spec, columns, record) {
            Ok(Row::Kept) => {}
            Ok(Row::Dropped) => self.dropped += 1,
            Err(error) => self.note(line, error.to_string()),
        }
    }

    fn note(&mut self, line: u64, fault: String) {
        self.bad += 1;
        if self.faults.len() < FAULTS_LISTED {
            self.faults.push((line, fault));
        }
    }
}

impl ColumnSurvey {
    fn take(&mut self, cell: &str, line: u64, spec: Option<&TableSpec>) {
        let listed = spec.and_then(|spec| spec.categorical.iter().find(|one| one.column == self.name));
        let is_listed = listed.is_some_and(|one| one.values.iter().any(|value| value == cell));
        if is_missing(cell) && !is_listed {
            self.missing += 1;
            return;
        }
        self.unlisted += u64::from(listed.is_some() && !is_listed);
        if !cell.parse::<f64>().is_ok_and(f64::is_finite) {
            self.words += 1;
            self.first_word.get_or_insert(line);
            if self.values.len() < LISTED {
                self.values.insert(cell.to_owned());
            }
        }
    }
}

/// Where one row goes, to be forgotten.
fn one_row(spec: &TableSpec) -> Part {
    let labels = match spec.target {
        Target::Classes(_) => Labels::Classes(Vec::new()),
        Target::Real => Labels::Real(Vec::new()),
    };
    Part { dataset: Dataset { shape: Vec::new(), features: Vec::new().into(), labels }, ids: Vec::new() }
}

#[cfg(test)]
mod tests {
    use protocol::{Categorical, Missing, Standardise};

    use super::*;

    fn spec(missing: Missing) -> TableSpec {
        TableSpec {
            label: "y".into(),
            target: Target::Classes(2),
            features: vec!["age".into()],
            categorical: vec![Categorical { column: "sex".into(), values: vec!["f".into(), "m".into()] }],
            standardise: Standardise::None,
            missing,
        }
    }

    fn source(dir: &Path) -> CsvSource {
        let text = "age,sex,y,ward,note\n51,f,0,a,x\nold,m,1,a,\n,x,1,a,1\n60,m,7,a,2\n61,m\n1,f,0,b,3\n";
        let train = dir.join("rows.csv");
        std::fs::write(&train, text).unwrap();
        let filter = [("ward".to_owned(), "a".to_owned())].into();
        CsvSource { train, test: None, filter, split_column: None }
    }

    #[test]
    fn a_survey_counts_every_bad_row_of_the_chosen_and_names_the_first_lines() {
        let dir = tempfile::tempdir().unwrap();
        let found = survey(&source(dir.path()), Some(&spec(Missing::Refuse))).unwrap().remove(0);
        assert_eq!((found.rows, found.chosen, found.bad, found.dropped), (6, 4, 4, 0));
        assert_eq!(found.faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert!(found.faults[0].1.contains("`age` holds `old`"), "{:?}", found.faults);
        let [age, sex, y] = &found.columns[..] else { panic!("{:?}", found.columns) };
        assert_eq!((age.missing, age.words, age.first_word, age.wants_numbers), (1, 1, Some(3), true));
        assert_eq!((sex.words, sex.unlisted, y.words), (4, 1, 0));
        let dropping = survey(&source(dir.path()), Some(&spec(Missing::Drop))).unwrap().remove(0);
        assert_eq!((dropping.bad, dropping.dropped), (3, 1));
    }

    #[test]
    fn without_a_plan_every_column_is_described_and_a_missing_column_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let found = survey(&source(dir.path()), None).unwrap().remove(0);
        let told = |column: &ColumnSurvey| (column.name.clone(), column.missing, column.values.len());
        let [.., ward, note] = &found.columns[..] else { panic!("{:?}", found.columns) };
        assert_eq!((told(ward), told(note)), (("ward".into(), 0, 1), ("note".into(), 1, 1)));
        assert_eq!((found.chosen, found.bad), (4, 1), "one line is too short");
        let other = TableSpec { label: "z".into(), ..spec(Missing::Drop) };
        let error = survey(&source(dir.path()), Some(&other)).unwrap_err();
        assert!(error.message.contains("no column `z`"), "{}", error.message);
    }
}
