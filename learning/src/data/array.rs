//! Arrays from files: what the IDX and NumPy readers give, and how samples and labels become records.
//!
//! Refuses a file whose length is not what its header says, before taking the memory that the header asks for.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use protocol::{Target, TargetSpec, TensorSpec};

use super::classes::Classes;
use super::files::{Opened, open};
use super::load::Unusable;
use super::{Dataset, Features, Labels};

/// The numbers of a file, as they were stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    U8(Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// A file's numbers and their shape, the first side counting records.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) dims: Vec<usize>,
    pub(super) values: Values,
}

/// Reads a file whose shape, known from its header, passes the check.
pub(super) type ReadArray = fn(&Path, &ShapeCheck<'_>) -> Result<Array, ArrayError>;
/// Looks at a shape before its values are read.
pub(super) type ShapeCheck<'a> = dyn Fn(&[usize]) -> Result<(), ArrayError> + 'a;

/// Why array files do not become records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ArrayError {
    #[error("cannot open `{path}`: {source}; check the path under [data] and who may read it", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read `{path}`: {source}; the file is damaged or cut short, copy it again", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{path}` is not in {format} format: {why}", path = path.display())]
    Format { path: PathBuf, format: &'static str, why: String },
    #[error("`{path}` holds values of type {found}; save it as one of {accepted}", path = path.display())]
    Type { path: PathBuf, found: String, accepted: &'static str },
    #[error(
        "`{path}` ends after {found} of the {expected} bytes that its shape {dims:?} needs; copy it again",
        path = path.display()
    )]
    Truncated { path: PathBuf, dims: Vec<usize>, expected: u64, found: u64 },
    #[error(
        "`{path}` goes on after the {expected} bytes of its shape {dims:?}; it is not the file its header describes",
        path = path.display()
    )]
    Oversize { path: PathBuf, dims: Vec<usize>, expected: u64 },
    #[error("`{path}` claims the shape {dims:?}, which no machine can hold; the file is damaged", path = path.display())]
    Impossible { path: PathBuf, dims: Vec<usize> },
    #[error(
        "`{path}` holds samples of shape {found:?} where the plan's `data.tensor.shape` is {expected:?}",
        path = path.display()
    )]
    Shape { path: PathBuf, found: Vec<usize>, expected: Vec<usize> },
    #[error("`{path}` has shape {found:?} where one {what} a sample is needed", path = path.display())]
    NotAList { path: PathBuf, what: &'static str, found: Vec<usize> },
    #[error(
        "`{samples}` holds {count} samples but `{other}` {other_count} {what}s; they must be of the same records",
        samples = samples.display(), other = other.display()
    )]
    Count { samples: PathBuf, count: usize, other: PathBuf, other_count: usize, what: &'static str },
    #[error("`{path}` record {record}: label {value} is not one of {expected}", path = path.display())]
    Label { path: PathBuf, record: usize, value: f64, expected: String },
    #[error(
        "`{path}` record {record}: value {place} is {value} after division by {divide_by}; arrays cannot have missing \
         values, clean the file", path = path.display()
    )]
    NotFinite { path: PathBuf, record: usize, place: usize, value: f32, divide_by: f64 },
    #[error("`{path}` holds {value} where ids are integers", path = path.display())]
    Id { path: PathBuf, value: f64 },
    #[error("`{path}` holds {count} records; at most {max} and at least 1 can be used", path = path.display())]
    Rows { path: PathBuf, count: usize, max: u32 },
}

impl Values {
    fn divided(self, by: f64) -> Features {
        let real: Vec<f32> = match self {
            Self::U8(values) => return Features::of_bytes(values, by),
            Self::F32(values) if by == 1.0 => values,
            Self::F32(values) => values.into_iter().map(|value| (f64::from(value) / by) as f32).collect(),
            Self::I32(values) => values.into_iter().map(|value| (f64::from(value) / by) as f32).collect(),
            Self::I64(values) => values.into_iter().map(|value| (value as f64 / by) as f32).collect(),
            Self::F64(values) => values.into_iter().map(|value| (value / by) as f32).collect(),
        };
        real.into()
    }

    /// The numbers of a short list, such as labels.
    fn numbers(&self) -> Vec<f64> {
        match self {
            Self::U8(values) => values.iter().map(|value| f64::from(*value)).collect(),
            Self::I32(values) => values.iter().map(|value| f64::from(*value)).collect(),
            Self::I64(values) => values.iter().map(|value| *value as f64).collect(),
            Self::F32(values) => values.iter().map(|value| f64::from(*value)).collect(),
            Self::F64(values) => values.clone(),
        }
    }
}

/// Opens a file of arrays that should be in `format`.
pub(super) fn open_array(path: &Path, format: &'static str) -> Result<Opened, ArrayError> {
    open(path).map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => {
            ArrayError::Format { path: path.into(), format, why: source.to_string() }
        }
        _ => ArrayError::Open { path: path.into(), source },
    })
}

/// Bytes that are reserved, though not written to, because a header says so.
const RESERVED_MAX: u64 = 1 << 28;

/// Reads exactly the bytes of `dims` elements of `size` bytes, and sees that nothing follows. Memory grows with what
/// arrives, not with what the header says.
pub(super) fn read_body(
    reader: impl Read,
    path: &Path,
    dims: &[usize],
    size: usize,
) -> Result<Vec<u8>, ArrayError> {
    let count = dims.iter().try_fold(size, |product, side| product.checked_mul(*side));
    let expected =
        count.filter(|bytes| *bytes < isize::MAX as usize).and_then(|bytes| u64::try_from(bytes).ok());
    let Some(expected) = expected else {
        return Err(ArrayError::Impossible { path: path.into(), dims: dims.into() });
    };
    let mut bytes = Vec::new();
    // Memory that is not written to costs nothing, and a vector that grows costs three times what it holds.
    let claimed = expected.saturating_add(1).min(RESERVED_MAX);
    if bytes.try_reserve_exact(claimed as usize).is_err() {
        return Err(ArrayError::Impossible { path: path.into(), dims: dims.into() });
    }
    let read = reader.take(expected + 1).read_to_end(&mut bytes);
    read.map_err(|source| ArrayError::Read { path: path.into(), source })?;
    let found = bytes.len() as u64;
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(bytes),
        std::cmp::Ordering::Less => {
            Err(ArrayError::Truncated { path: path.into(), dims: dims.into(), expected, found })
        }
        std::cmp::Ordering::Greater => {
            Err(ArrayError::Oversize { path: path.into(), dims: dims.into(), expected })
        }
    }
}

/// Records from a file of samples and a file of labels.
pub(super) fn read_dataset(
    read: ReadArray,
    samples: &Path,
    labels: &Path,
    spec: &TensorSpec,
    unusable: Unusable,
) -> Result<Dataset, ArrayError> {
    let array = read(samples, &|dims| check_samples(samples, dims, &spec.shape))?;
    let count = array.dims[0];
    let divide_by = spec.divide_by.value();
    let features = array.values.divided(divide_by);
    if unusable == Unusable::Refuse
        && let Some((at, value)) = features.find_unfinished()
    {
        let width = spec.shape.iter().product::<usize>();
        let (record, place) = (at / width, at % width);
        return Err(ArrayError::NotFinite { path: samples.into(), record, place, value, divide_by });
    }
    let numbers = read_list(read, labels, "label", (samples, count))?;
    let labels = to_labels(labels, &numbers, &spec.target, unusable)?;
    Ok(Dataset { shape: spec.shape.clone(), features, labels })
}

/// One integer a sample, in words.
pub(super) fn read_ids(
    read: ReadArray,
    path: &Path,
    samples: (&Path, usize),
) -> Result<Vec<String>, ArrayError> {
    let word = |value: f64| {
        let whole = value.fract() == 0.0 && value.abs() < 9e15;
        if whole { Ok((value as i64).to_string()) } else { Err(ArrayError::Id { path: path.into(), value }) }
    };
    read_list(read, path, "id", samples)?.into_iter().map(word).collect()
}

fn read_list(
    read: ReadArray,
    path: &Path,
    what: &'static str,
    (samples, count): (&Path, usize),
) -> Result<Vec<f64>, ArrayError> {
    let check = |dims: &[usize]| {
        let Some(&other_count) = dims.first().filter(|_| dims[1..].iter().all(|side| *side == 1)) else {
            return Err(ArrayError::NotAList { path: path.into(), what, found: dims.into() });
        };
        if other_count == count {
            return Ok(());
        }
        Err(ArrayError::Count { samples: samples.into(), count, other: path.into(), other_count, what })
    };
    Ok(read(path, &check)?.values.numbers())
}

/// Samples fit when their sides are the plan's, but for sides of 1, or when the plan takes them flat.
fn check_samples(path: &Path, dims: &[usize], shape: &[usize]) -> Result<(), ArrayError> {
    let sides = |shape: &[usize]| shape.iter().copied().filter(|side| *side != 1).collect::<Vec<_>>();
    let Some((&count, sample)) = dims.split_first() else {
        return Err(ArrayError::Shape { path: path.into(), found: Vec::new(), expected: shape.into() });
    };
    let volume = sample.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    let flat = shape.len() == 1 && volume == Some(shape[0]);
    if !flat && sides(sample) != sides(shape) {
        return Err(ArrayError::Shape { path: path.into(), found: sample.into(), expected: shape.into() });
    }
    if count == 0 || u32::try_from(count).is_err() {
        return Err(ArrayError::Rows { path: path.into(), count, max: u32::MAX });
    }
    Ok(())
}

/// A label that cannot be used is refused, or becomes one that no plan takes: a class beyond all, or a number that is not finite.
fn to_labels(
    path: &Path,
    numbers: &[f64],
    target: &TargetSpec,
    unusable: Unusable,
) -> Result<Labels, ArrayError> {
    let refuse = unusable == Unusable::Refuse;
    let wrong = |record: usize, expected: String| ArrayError::Label {
        path: path.into(),
        record,
        value: numbers[record],
        expected,
    };
    match target.target() {
        Target::Classes(_) => {
            let classes = Classes::of(target);
            let class = |(record, value): (usize, &f64)| {
                let class = classes.of_number(*value).or_else(|| (!refuse).then_some(u32::MAX));
                class.ok_or_else(|| wrong(record, format!("the plan's classes {}", classes.listed())))
            };
            Ok(Labels::Classes(numbers.iter().enumerate().map(class).collect::<Result<_, _>>()?))
        }
        Target::Real => match numbers.iter().position(|value| !(*value as f32).is_finite()) {
            Some(record) if refuse => Err(wrong(record, "the real numbers up to 3.4e38 (f32)".to_owned())),
            _ => Ok(Labels::Real(numbers.iter().map(|value| *value as f32).collect())),
        },
    }
}
