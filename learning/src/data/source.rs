//! Where records are, as typed by a user: `[data]` of a site's file, `[dataset]` of a simulation's.
//!
//! Reads no file and no environment: variables come through an argument.

mod table;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use table::{CsvSource, Decimal, Fraction, Separator};

/// The files that hold the records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSpec {
    /// A table with a header line, plain or packed by gzip.
    Csv(CsvSource),
    /// Arrays in the format of the MNIST files, plain or `.gz`.
    Idx(IdxSource),
    /// Arrays as NumPy saves them, `.npy` or `.npy.gz`.
    Numpy(NumpySource),
}

/// IDX files: unsigned bytes, 32-bit integers or 32-bit floats, big-endian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdxSource {
    /// Training samples, the first dimension counting them.
    pub train_images: PathBuf,
    /// One label a training sample.
    pub train_labels: PathBuf,
    /// Test samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_images: Option<PathBuf>,
    /// One label a test sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_labels: Option<PathBuf>,
}

/// NumPy files: u8, i32, i64, f32 or f64 in C order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumpySource {
    /// Training samples, the first dimension counting them.
    pub train_x: PathBuf,
    /// One label a training sample.
    pub train_y: PathBuf,
    /// Test samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_x: Option<PathBuf>,
    /// One label a test sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_y: Option<PathBuf>,
}

/// What says whose each record is: a hospital, a writer, a patient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IdSource {
    /// A column of the CSV files.
    Column(String),
    /// Array files (IDX, or NumPy when the name ends in `.npy`) with one integer a sample.
    Files(IdFiles),
}

/// Array files of ids beside array files of samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdFiles {
    /// One integer a training sample.
    pub train: PathBuf,
    /// One integer a test sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
}

/// Why what was typed names no files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A variable without value.
    #[error(
        "`{path}` needs the environment variable {name}, which is not set; set it, or write the path in full"
    )]
    Unset {
        /// The path as typed.
        path: String,
        /// The variable.
        name: String,
    },
    /// `${` without `}`.
    #[error("`{0}` has `${{` without `}}`; write `${{NAME}}`")]
    Unclosed(String),
    /// Two ways to say what a row is for.
    #[error("`{one}` and `{other}` both say which rows are for {purpose}; remove one")]
    TwoWays {
        /// A setting with its value.
        one: String,
        /// Another.
        other: String,
        /// What for.
        purpose: &'static str,
    },
    /// Not a separator.
    #[error("`{0}` separates no cells that are read; give `,`, `;`, `tab` or `|`")]
    Separator(String),
    /// Not a mark of decimals.
    #[error("`{0}` stands before no decimals; give `.` or `,`")]
    Decimal(String),
    /// Not a share.
    #[error("{0} is no share of rows; give a number above 0 and below 1, or leave it out")]
    Fraction(String),
    /// No rows would be left to train on.
    #[error(
        "`test_fraction = {test}` and `validation_fraction = {validation}` leave nothing to train on; together they must be below 1"
    )]
    NothingLeft {
        /// The share for testing.
        test: String,
        /// The share for validation.
        validation: String,
    },
    /// A setting of a draw where nothing is drawn.
    #[error(
        "`{0}` says how rows are drawn, and none are; give `test_fraction` or `validation_fraction`, or remove it"
    )]
    NothingDrawn(&'static str),
    /// Samples without labels or labels without samples.
    #[error("`{given}` is given without `{absent}`; give both or neither")]
    Half {
        /// The key that is there.
        given: &'static str,
        /// The key that is not.
        absent: &'static str,
    },
}

impl SourceSpec {
    /// The same source with every `${NAME}` replaced by what `lookup` knows and relative paths taken from `base`, the
    /// folder of the file in which they were typed.
    ///
    /// # Errors
    /// [`SourceError`] names the path and the variable, or the settings that contradict each other.
    pub fn resolved(self, base: &Path, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        self.check()?;
        let at = |path: PathBuf| resolve(&path, base, lookup);
        let maybe = |path: Option<PathBuf>| path.map(at).transpose();
        Ok(match self {
            Self::Csv(csv) => Self::Csv(CsvSource {
                train: at(csv.train)?,
                test: maybe(csv.test)?,
                validation: maybe(csv.validation)?,
                ..csv
            }),
            Self::Idx(idx) => Self::Idx(IdxSource {
                train_images: at(idx.train_images)?,
                train_labels: at(idx.train_labels)?,
                test_images: maybe(idx.test_images)?,
                test_labels: maybe(idx.test_labels)?,
            }),
            Self::Numpy(numpy) => Self::Numpy(NumpySource {
                train_x: at(numpy.train_x)?,
                train_y: at(numpy.train_y)?,
                test_x: maybe(numpy.test_x)?,
                test_y: maybe(numpy.test_y)?,
            }),
        })
    }

    /// The table that it names, if it is one.
    pub fn table(&self) -> Option<&CsvSource> {
        match self {
            Self::Csv(csv) => Some(csv),
            Self::Idx(_) | Self::Numpy(_) => None,
        }
    }

    /// Whether the settings agree with each other.
    ///
    /// # Errors
    /// [`SourceError`] names the two that do not.
    pub fn check(&self) -> Result<(), SourceError> {
        match self {
            Self::Csv(csv) => csv.check(),
            Self::Idx(idx) => {
                both(("test_images", idx.test_images.is_some()), ("test_labels", idx.test_labels.is_some()))
            }
            Self::Numpy(numpy) => {
                both(("test_x", numpy.test_x.is_some()), ("test_y", numpy.test_y.is_some()))
            }
        }
    }
}

impl IdSource {
    /// The same ids with paths resolved as in [`SourceSpec::resolved`].
    ///
    /// # Errors
    /// [`SourceError`] names the path and the variable.
    pub fn resolved(self, base: &Path, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SourceError> {
        match self {
            Self::Column(column) => Ok(Self::Column(column)),
            Self::Files(IdFiles { train, test }) => Ok(Self::Files(IdFiles {
                train: resolve(&train, base, lookup)?,
                test: test.map(|test| resolve(&test, base, lookup)).transpose()?,
            })),
        }
    }
}

fn both(one: (&'static str, bool), other: (&'static str, bool)) -> Result<(), SourceError> {
    match (one, other) {
        ((given, true), (absent, false)) | ((absent, false), (given, true)) => {
            Err(SourceError::Half { given, absent })
        }
        ((_, true), (_, true)) | ((_, false), (_, false)) => Ok(()),
    }
}

fn resolve(
    path: &Path,
    base: &Path,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, SourceError> {
    expand(&path.to_string_lossy(), lookup).map(|whole| base.join(whole))
}

/// The text with every `${NAME}` replaced by what `lookup` knows.
///
/// # Errors
/// [`SourceError::Unset`] for a variable without value, [`SourceError::Unclosed`] for a `${` without `}`.
pub fn expand(typed: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, SourceError> {
    let (mut whole, mut rest) = (String::new(), typed);
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after.split_once('}').ok_or_else(|| SourceError::Unclosed(typed.to_owned()))?;
        let value = lookup(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| SourceError::Unset { path: typed.to_owned(), name: name.to_owned() })?;
        whole.push_str(before);
        whole.push_str(&value);
        rest = behind;
    }
    whole.push_str(rest);
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(train: &str) -> SourceSpec {
        SourceSpec::Csv(CsvSource::new(train))
    }

    fn resolved(train: &str) -> Result<SourceSpec, SourceError> {
        let lookup = |name: &str| (name == "DATA").then(|| "/big/data".to_owned());
        csv(train).resolved(Path::new("/etc/site"), &lookup)
    }

    #[test]
    fn paths_start_at_the_folder_of_the_file_they_were_typed_in() {
        assert_eq!(resolved("rows.csv"), Ok(csv("/etc/site/rows.csv")));
        assert_eq!(resolved("/rows.csv"), Ok(csv("/rows.csv")));
        assert_eq!(resolved("${DATA}/rows.csv"), Ok(csv("/big/data/rows.csv")));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let message =
            "`${X}/a` needs the environment variable X, which is not set; set it, or write the path in full";
        assert_eq!(resolved("${X}/a").unwrap_err().to_string(), message);
        assert_eq!(
            resolved("${X/a").unwrap_err().to_string(),
            "`${X/a` has `${` without `}`; write `${NAME}`"
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let SourceSpec::Csv(mut two) = csv("a.csv") else { unreachable!() };
        two.test = Some("b.csv".into());
        two.split_column = Some("split".into());
        let message = "`split_column = \"split\"` and `test = \"b.csv\"` both say which rows are for testing; remove one";
        assert_eq!(SourceSpec::Csv(two).check().unwrap_err().to_string(), message);
        let half =
            NumpySource { train_x: "x".into(), train_y: "y".into(), test_x: None, test_y: Some("z".into()) };
        let message = "`test_y` is given without `test_x`; give both or neither";
        assert_eq!(SourceSpec::Numpy(half).check().unwrap_err().to_string(), message);
    }

    #[test]
    fn ids_resolve_like_the_files_they_belong_to() {
        let files = IdSource::Files(IdFiles { train: "w".into(), test: Some("/v".into()) });
        let at = files.resolved(Path::new("/etc"), &|_| None).unwrap();
        assert_eq!(at, IdSource::Files(IdFiles { train: "/etc/w".into(), test: Some("/v".into()) }));
        let column = IdSource::Column("${site}".into());
        assert_eq!(column.clone().resolved(Path::new("/etc"), &|_| None), Ok(column));
    }
}
