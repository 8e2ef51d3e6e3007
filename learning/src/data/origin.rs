//! Whose each record is: the natural clients of a data set, for simulations.
//!
//! A client is whoever has training records; its test records are those of the same id. Ids that occur only among test
//! records make no client.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use protocol::{DataSpec, Decline, EvaluationRecords, LearnError};

use super::array::{ReadArray, read_ids};
use super::load::{Unusable, array_files, read_parts};
use super::source::{IdFiles, IdSource, SourceSpec};
use super::{Dataset, SiteData, View, idx, numpy};

/// Records with the id of each.
#[derive(Clone, Debug)]
pub struct Identified {
    /// Training records.
    pub train: Arc<Dataset>,
    /// One id a training record.
    pub train_ids: Vec<String>,
    /// Test records, if the source has such.
    pub test: Option<Arc<Dataset>>,
    /// One id a test record; empty when test records have none.
    pub test_ids: Vec<String>,
}

/// A client as it occurs in the data.
#[derive(Clone, Debug)]
pub struct NaturalClient {
    /// Its id, as the data spells it.
    pub id: String,
    /// Its records, as rows of the shared data set.
    pub data: SiteData,
}

impl Identified {
    /// The clients by id: integers by size first, then words by alphabet.
    pub fn clients(&self) -> Vec<NaturalClient> {
        let test = rows_by_id(&self.test_ids);
        let view =
            |dataset: &Arc<Dataset>, rows: &[u32]| View { dataset: Arc::clone(dataset), rows: rows.into() };
        let client = |(key, rows): (&Key<'_>, &Vec<u32>)| {
            let test = self.test.as_ref().zip(test.get(key)).map(|(dataset, rows)| view(dataset, rows));
            NaturalClient { id: key.1.to_owned(), data: SiteData { train: view(&self.train, rows), test } }
        };
        rows_by_id(&self.train_ids).iter().map(client).collect()
    }
}

/// An id in its order: the integer it is, if any, then the word.
type Key<'a> = (IntegerFirst, &'a str);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum IntegerFirst {
    Integer(i64),
    Word,
}

fn rows_by_id(ids: &[String]) -> BTreeMap<Key<'_>, Vec<u32>> {
    let mut rows: BTreeMap<Key<'_>, Vec<u32>> = BTreeMap::new();
    for (row, id) in (0u32..).zip(ids) {
        let order = id.parse().map_or(IntegerFirst::Word, IntegerFirst::Integer);
        rows.entry((order, id)).or_default().push(row);
    }
    rows
}

/// Reads all records of a source with the id of each; those to measure on are the ones for testing.
///
/// # Errors
/// [`LearnError`] as from [`super::load()`], or when ids and records are not of one kind or number.
pub fn load_with_ids(source: &SourceSpec, spec: &DataSpec, ids: &IdSource) -> Result<Identified, LearnError> {
    load_measured_with_ids(source, spec, EvaluationRecords::Test, ids)
}

/// Reads all records of a source with the id of each, with those to measure on that `measured` says.
///
/// # Errors
/// As [`load_with_ids`].
pub fn load_measured_with_ids(
    source: &SourceSpec,
    spec: &DataSpec,
    measured: EvaluationRecords,
    ids: &IdSource,
) -> Result<Identified, LearnError> {
    let refuse = |message: &str| Err(LearnError::new(Decline::Data, message));
    match (array_files(source), ids) {
        (None, IdSource::Column(column)) => {
            let (train, test) = read_parts(source, spec, measured, Some(column), Unusable::Refuse)?;
            let (test, test_ids) = test.map(|test| (Arc::new(test.dataset), test.ids)).unzip();
            Ok(Identified {
                train: Arc::new(train.dataset),
                train_ids: train.ids,
                test,
                test_ids: test_ids.unwrap_or_default(),
            })
        }
        (Some((_, files)), IdSource::Files(IdFiles { train: train_file, test: test_file })) => {
            let (train, test) = read_parts(source, spec, measured, None, Unusable::Refuse)?;
            let train_ids = read_ids(reader(train_file), train_file, (files.train.0, train.dataset.len()))?;
            let test_ids = match (test_file, &test, files.test) {
                (Some(file), Some(test), Some((samples, _))) => {
                    read_ids(reader(file), file, (samples, test.dataset.len()))?
                }
                (Some(_), _, _) => {
                    return refuse("there are ids of test records but no test records; remove them");
                }
                (None, _, _) => Vec::new(),
            };
            let test = test.map(|test| Arc::new(test.dataset));
            Ok(Identified { train: Arc::new(train.dataset), train_ids, test, test_ids })
        }
        (None, IdSource::Files(_)) => {
            refuse("csv data takes its ids from a column; write `column = \"...\"`")
        }
        (Some(_), IdSource::Column(_)) => {
            refuse("arrays have no columns; take their ids from files, `files = { train = \"...\" }`")
        }
    }
}

fn reader(path: &Path) -> ReadArray {
    let name = path.to_string_lossy();
    if name.ends_with(".npy") || name.ends_with(".npy.gz") { numpy::read } else { idx::read }
}
