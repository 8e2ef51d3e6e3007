//! From files to a site's records, and again only when the plan's columns change.

use std::path::Path;
use std::sync::Arc;

use protocol::{DataSpec, Decline, EvaluationRecords, LearnError, Spec, TensorSpec};

use super::array::{ArrayError, ReadArray, read_dataset};
use super::source::{CsvSource, IdxSource, NumpySource, SourceError, SourceSpec};
use super::table::{Division, Query, TableError};
use super::{DataSource, Dataset, SiteData, View, idx, numpy, table};

/// A site's files. They are read when the first plan comes, and again when a plan wants other columns, or promises that
/// each record stands alone.
#[derive(Clone, Debug)]
pub struct FileSource {
    source: SourceSpec,
    cached: Option<(Wanted, SiteData)>,
}

/// What a plan wants of files; while that stays, what was read serves again.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    data: DataSpec,
    measured: EvaluationRecords,
    unusable: Unusable,
}

/// What becomes of a record that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Reading ends with its place.
    Refuse,
    /// It is left out, or marked by a value that no plan takes ([`SiteData::prepared`] leaves it out then): where single
    /// records are protected, none may decide over the others.
    LeaveOut,
}

impl FileSource {
    /// Files with resolved paths; nothing is read yet.
    pub fn new(source: SourceSpec) -> Self {
        Self { source, cached: None }
    }
}

impl DataSource for FileSource {
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError> {
        let unusable = if spec.privacy.examples.is_some() { Unusable::LeaveOut } else { Unusable::Refuse };
        let wanted = Wanted { data: spec.data.clone(), measured: spec.evaluation_records, unusable };
        if let Some((_, data)) = self.cached.as_ref().filter(|(known, _)| *known == wanted) {
            return Ok(data.clone());
        }
        let data = load_with(&self.source, &spec.data, spec.evaluation_records, unusable)?;
        self.cached = Some((wanted, data.clone()));
        Ok(data)
    }
}

/// Reads all records of a source in the form that `spec` describes; those to measure on are the ones for testing.
///
/// # Errors
/// [`LearnError`] with the file, line, column and value at fault and what to do about it.
pub fn load(source: &SourceSpec, spec: &DataSpec) -> Result<SiteData, LearnError> {
    load_measured(source, spec, EvaluationRecords::Test)
}

/// Reads all records of a source in the form that `spec` describes, with those to measure on that `measured` says.
///
/// # Errors
/// As [`load`].
pub fn load_measured(
    source: &SourceSpec,
    spec: &DataSpec,
    measured: EvaluationRecords,
) -> Result<SiteData, LearnError> {
    load_with(source, spec, measured, Unusable::Refuse)
}

fn load_with(
    source: &SourceSpec,
    spec: &DataSpec,
    measured: EvaluationRecords,
    unusable: Unusable,
) -> Result<SiteData, LearnError> {
    let (train, test) = read_parts(source, spec, measured, None, unusable)?;
    let whole = |part: Records| View::whole(Arc::new(part.dataset));
    Ok(SiteData { train: whole(train), test: test.map(whole) })
}

/// Records and, if a column was named for them, their ids.
pub(super) struct Records {
    pub(super) dataset: Dataset,
    pub(super) ids: Vec<String>,
}

/// Training records of any source, and those to measure on. Only tables have an id column and records for validation.
pub(super) fn read_parts(
    source: &SourceSpec,
    spec: &DataSpec,
    measured: EvaluationRecords,
    id_column: Option<&str>,
    unusable: Unusable,
) -> Result<(Records, Option<Records>), LearnError> {
    source.check()?;
    match (source, spec) {
        (SourceSpec::Csv(csv), DataSpec::Table(spec)) => {
            let query = |division| Query { spec, source: csv, division, id_column, unusable };
            read_tables(csv, measured, query(Division::of(csv)), query(Division::default()))
        }
        (SourceSpec::Idx(_) | SourceSpec::Numpy(_), DataSpec::Tensor(spec)) => {
            let (read, files) = array_files(source).expect("idx and numpy sources are array files");
            let (train, test) = read_arrays(read, &files, spec, unusable)?;
            let plain = |dataset| Records { dataset, ids: Vec::new() };
            let test = test.filter(|_| measured == EvaluationRecords::Test);
            Ok((plain(train), test.map(plain)))
        }
        (_, DataSpec::Own) => {
            let message = "the plan's records are read by an external learner, and not from the files of this site's `[data]`";
            Err(LearnError::new(Decline::Unsupported, message))
        }
        (SourceSpec::Csv(_), DataSpec::Tensor(_)) => {
            let message = "the plan describes arrays (`data.tensor`) but this site's data is csv; give idx or numpy files";
            Err(LearnError::new(Decline::Data, message))
        }
        (SourceSpec::Idx(_) | SourceSpec::Numpy(_), DataSpec::Table(_)) => {
            let message =
                "the plan describes a table (`data.table`) but this site's data are arrays; give csv files";
            Err(LearnError::new(Decline::Data, message))
        }
    }
}

/// Samples and labels to train on, and to test on.
pub(super) struct ArrayFiles<'a> {
    pub(super) train: (&'a Path, &'a Path),
    pub(super) test: Option<(&'a Path, &'a Path)>,
}

/// The files of an array source and what reads them; `None` for a table.
pub(super) fn array_files(source: &SourceSpec) -> Option<(ReadArray, ArrayFiles<'_>)> {
    match source {
        SourceSpec::Csv(_) => None,
        SourceSpec::Idx(IdxSource { train_images, train_labels, test_images, test_labels }) => {
            let test = test_images.as_deref().zip(test_labels.as_deref());
            Some((idx::read, ArrayFiles { train: (train_images, train_labels), test }))
        }
        SourceSpec::Numpy(NumpySource { train_x, train_y, test_x, test_y }) => {
            let test = test_x.as_deref().zip(test_y.as_deref());
            Some((numpy::read, ArrayFiles { train: (train_x, train_y), test }))
        }
    }
}

fn read_arrays(
    read: ReadArray,
    files: &ArrayFiles<'_>,
    spec: &TensorSpec,
    unusable: Unusable,
) -> Result<(Dataset, Option<Dataset>), ArrayError> {
    let one = |(samples, labels): (&Path, &Path)| read_dataset(read, samples, labels, spec, unusable);
    Ok((one(files.train)?, files.test.map(one).transpose()?))
}

fn read_tables(
    csv: &CsvSource,
    measured: EvaluationRecords,
    query: Query<'_>,
    whole: Query<'_>,
) -> Result<(Records, Option<Records>), LearnError> {
    let records = |part: table::Part| Records { dataset: part.dataset, ids: part.ids };
    let parts = table::read(&csv.train, query)?;
    let (file, divided) = match measured {
        EvaluationRecords::Test => (&csv.test, parts.test),
        EvaluationRecords::Validation => (&csv.validation, parts.validation),
    };
    let apart = match file {
        Some(file) => Some(table::read(file, whole)?.train),
        None => (!divided.dataset.is_empty()).then_some(divided),
    };
    Ok((records(parts.train), apart.map(records)))
}

impl From<TableError> for LearnError {
    fn from(error: TableError) -> Self {
        Self::new(Decline::Data, error.to_string())
    }
}

impl From<ArrayError> for LearnError {
    fn from(error: ArrayError) -> Self {
        Self::new(Decline::Data, error.to_string())
    }
}

impl From<SourceError> for LearnError {
    fn from(error: SourceError) -> Self {
        Self::new(Decline::Data, error.to_string())
    }
}
