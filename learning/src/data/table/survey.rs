//! What a table holds, column by column, and which rows a plan could not use: for the people who look after a site's data.
//!
//! It reads on where reading for a training would stop, so that every bad row is counted. What it finds names lines, columns
//! and values of the site and is for the site's own eyes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, StringRecord};
use protocol::{LearnError, TableSpec};

use super::super::load::Unusable;
use super::super::{CsvSource, Decimal, Separator, SourceSpec};
use super::division::{Division, Use};
use super::rows::Rows;
use super::{Columns, LISTED, Part, Query, Row, Table, TableError, add_row, dialect, is_missing, line_of};

/// How many bad rows are described.
const FAULTS_LISTED: usize = 5;

/// What a CSV file holds in the rows that the site's settings choose.
#[derive(Clone, Debug)]
pub struct TableSurvey {
    /// The file.
    pub path: PathBuf,
    /// Rows below the header.
    pub rows: u64,
    /// What stands between its cells.
    pub separator: Separator,
    /// Rows that `where` chooses.
    pub chosen: u64,
    /// How many of them are to train on, for validation and for testing, where its rows are divided.
    pub divided: Option<[u64; 3]>,
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
    /// Other cells that are not finite numbers; of the label, those that are no class of the plan.
    pub words: u64,
    /// The line of the first of those.
    pub first_word: Option<u64>,
    /// The different words, at most twelve.
    pub values: BTreeSet<String>,
    /// Whether the plan wants numbers here.
    pub wants_numbers: bool,
    /// Cells that are none of the plan's categories, where it lists some.
    pub unlisted: u64,
    /// Of the label, where it is a class: each class of the plan, and how many rows have it.
    pub classes: Vec<(String, u64)>,
}

/// Looks through the files of `source`; with `spec`, as that plan would read them.
///
/// # Errors
/// [`LearnError`] when a file cannot be read at all or lacks a column.
pub fn survey(source: &CsvSource, spec: Option<&TableSpec>) -> Result<Vec<TableSurvey>, LearnError> {
    SourceSpec::Csv(source.clone()).check()?;
    let train = survey_file(&source.train, source, Division::of(source), spec)?;
    let whole = source.files().skip(1).map(|path| survey_file(path, source, Division::default(), spec));
    Ok([Ok(train)].into_iter().chain(whole).collect::<Result<_, _>>()?)
}

fn survey_file(
    path: &Path,
    source: &CsvSource,
    division: Division<'_>,
    spec: Option<&TableSpec>,
) -> Result<TableSurvey, TableError> {
    let mut table = Table::open(path, source.separator, Unusable::Refuse)?;
    let headers = table.headers(path)?;
    let rows = Rows::find(path, &headers, source, division)?;
    let planned = match spec {
        Some(spec) => {
            let query = Query { spec, source, division, id_column: None, unusable: Unusable::Refuse };
            Some((spec, Columns::find(path, &headers, query)?))
        }
        None => None,
    };
    let mut survey = TableSurvey {
        path: path.into(),
        rows: 0,
        separator: table.separator,
        chosen: 0,
        divided: rows.are_divided().then_some([0; 3]),
        columns: columns(&headers, spec),
        dropped: 0,
        bad: 0,
        faults: Vec::new(),
    };
    let place = |column: &ColumnSurvey| headers.iter().position(|header| header == column.name);
    let places: Vec<usize> = survey.columns.iter().filter_map(place).collect();
    let look = Look { rows: &rows, places: &places, decimal: source.decimal, planned: planned.as_ref() };
    let mut record = StringRecord::new();
    loop {
        match table.read(&mut record) {
            Ok(false) => return Ok(survey),
            Ok(true) => survey.take(&record, &look),
            Err(error)
                if matches!(error.kind(), ErrorKind::UnequalLengths { .. } | ErrorKind::Utf8 { .. }) =>
            {
                survey.rows += 1;
                survey.note(table.line, table.damaged(path, error).to_string());
            }
            Err(error) => return Err(table.damaged(path, error)),
        }
    }
}

/// What is looked for in a row.
struct Look<'a> {
    rows: &'a Rows<'a>,
    places: &'a [usize],
    decimal: Decimal,
    planned: Option<&'a (&'a TableSpec, Columns)>,
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
        classes: Vec::new(),
    };
    let Some(spec) = spec else { return headers.iter().map(|name| column(name, false)).collect() };
    let numeric = spec.features.iter().map(|name| column(name, true));
    let categorical = spec.categorical.iter().map(|one| column(&one.column, false));
    let classes = spec.target.names().into_iter().map(|name| (name, 0)).collect();
    numeric.chain(categorical).chain([ColumnSurvey { classes, ..column(&spec.label, true) }]).collect()
}

impl TableSurvey {
    fn take(&mut self, record: &StringRecord, look: &Look<'_>) {
        self.rows += 1;
        let line = line_of(record);
        let purpose = match look.rows.use_of(&self.path, record) {
            Ok(None) => return,
            Ok(Some(purpose)) => Some(purpose),
            Err(error) => {
                self.note(line, error.to_string());
                None
            }
        };
        self.chosen += 1;
        if let (Some(divided), Some(purpose)) = (&mut self.divided, purpose) {
            divided[match purpose {
                Use::Train => 0,
                Use::Validation => 1,
                Use::Test => 2,
            }] += 1;
        }
        for (column, place) in self.columns.iter_mut().zip(look.places) {
            column.take(&record[*place], line, look);
        }
        let (Some((spec, columns)), Some(_)) = (look.planned, purpose) else { return };
        match add_row(&mut Part::empty(spec), &self.path, spec, columns, record) {
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
    fn take(&mut self, cell: &str, line: u64, look: &Look<'_>) {
        let spec = look.planned.map(|(spec, _)| *spec);
        let listed = spec.and_then(|spec| spec.categorical.iter().find(|one| one.column == self.name));
        let is_listed = listed.is_some_and(|one| one.values.iter().any(|value| value == cell));
        let labels = look.planned.map(|(_, columns)| columns).filter(|_| !self.classes.is_empty());
        if is_missing(cell) && !is_listed && !labels.is_some_and(|columns| columns.classes.lists(cell)) {
            self.missing += 1;
            return;
        }
        self.unlisted += u64::from(listed.is_some() && !is_listed);
        let is_understood = match labels {
            Some(columns) => self.count(columns, cell),
            None => dialect::number(cell, look.decimal).is_some_and(f64::is_finite),
        };
        if !is_understood {
            self.words += 1;
            self.first_word.get_or_insert(line);
            if self.values.len() < LISTED {
                self.values.insert(cell.to_owned());
            }
        }
    }

    /// Counts a label; whether it is a class.
    fn count(&mut self, columns: &Columns, cell: &str) -> bool {
        let class = columns.class_of(cell).and_then(|class| self.classes.get_mut(class as usize));
        class.map(|(_, rows)| *rows += 1).is_some()
    }
}

#[cfg(test)]
mod tests {
    use protocol::{Categorical, Missing, Standardise, Target};

    use super::*;

    fn spec(missing: Missing) -> TableSpec {
        TableSpec {
            label: "y".into(),
            target: Target::Classes(2).into(),
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
        CsvSource { filter, ..CsvSource::new(train) }
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
        assert_eq!((sex.words, sex.unlisted, y.words), (4, 1, 1), "7 is no class");
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
