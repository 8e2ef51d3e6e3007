//! NumPy's `.npy` files, read by `ndarray-npy` once header and length have been checked.
//!
//! u8, i32, i64, f32 and f64 in C order; other types and Fortran order are refused.

use std::path::Path;

use ndarray_npy::npy::header::{Header, Layout};
use ndarray_npy::{ReadDataError, ReadableElement};

use super::array::{Array, ArrayError, ShapeCheck, Values, open_array, read_body};

/// Reads a whole file, once its shape has passed `check`.
pub(super) fn read(path: &Path, check: &ShapeCheck<'_>) -> Result<Array, ArrayError> {
    let mut reader = open_array(path, ".npy")?;
    let wrong = |why: String| ArrayError::Format { path: path.into(), format: ".npy", why };
    let header = Header::from_reader(&mut reader).map_err(|error| wrong(error.to_string()))?;
    check(&header.shape)?;
    let dims = header.shape.clone();
    if header.layout == Layout::Fortran && dims.len() > 1 {
        return Err(wrong("it is in Fortran order; save it with `numpy.ascontiguousarray`".to_owned()));
    }
    let described = header.type_descriptor.to_string();
    let kind = described.trim_matches('\'').trim_start_matches(['|', '<', '>']);
    let size = match kind {
        "u1" => 1,
        "i4" | "f4" => 4,
        "i8" | "f8" => 8,
        _ => {
            let accepted = "uint8, int32, int64, float32, float64";
            return Err(ArrayError::Type { path: path.into(), found: described, accepted });
        }
    };
    let bytes = read_body(reader, path, &dims, size)?;
    let values = match kind {
        "u1" => parse(&bytes, &header, size).map(Values::U8),
        "i4" => parse(&bytes, &header, size).map(Values::I32),
        "i8" => parse(&bytes, &header, size).map(Values::I64),
        "f4" => parse(&bytes, &header, size).map(Values::F32),
        _ => parse(&bytes, &header, size).map(Values::F64),
    };
    Ok(Array { dims, values: values.map_err(|error| wrong(error.to_string()))? })
}

fn parse<T: ReadableElement>(bytes: &[u8], header: &Header, size: usize) -> Result<Vec<T>, ReadDataError> {
    T::read_to_end_exact_vec(bytes, &header.type_descriptor, bytes.len() / size)
}
