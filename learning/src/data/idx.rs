//! IDX, the format of the MNIST files (LeCun, Cortes, Burges): two zero bytes, a type byte, the number of dimensions,
//! each side as a big-endian u32, then the values, big-endian.
//!
//! Unsigned bytes, 32-bit integers and 32-bit floats; other types are refused.

use std::io::Read;
use std::path::Path;

use super::array::{Array, ArrayError, ShapeCheck, Values, open_array, read_body};

/// Reads a whole file, once its shape has passed `check`.
pub(super) fn read(path: &Path, check: &ShapeCheck<'_>) -> Result<Array, ArrayError> {
    let mut reader = open_array(path, "IDX")?;
    let damaged = |source| ArrayError::Read { path: path.into(), source };
    let mut head = [0u8; 4];
    reader.read_exact(&mut head).map_err(damaged)?;
    let [0, 0, kind, rank @ 1..=8] = head else {
        let why = format!("it begins with {head:02x?} instead of 00 00, a type, and 1 to 8 dimensions");
        return Err(ArrayError::Format { path: path.into(), format: "IDX", why });
    };
    let size = match kind {
        0x08 => 1,
        0x0c | 0x0d => 4,
        other => {
            let accepted = "08 (bytes), 0c (32-bit integers), 0d (32-bit floats)";
            return Err(ArrayError::Type { path: path.into(), found: format!("{other:02x}"), accepted });
        }
    };
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut side = [0u8; 4];
        reader.read_exact(&mut side).map_err(damaged)?;
        dims.push(u32::from_be_bytes(side) as usize);
    }
    check(&dims)?;
    let bytes = read_body(reader, path, &dims, size)?;
    let words = || bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
    let values = match kind {
        0x0c => Values::I32(words().map(i32::from_be_bytes).collect()),
        0x0d => Values::F32(words().map(f32::from_be_bytes).collect()),
        _ => Values::U8(bytes),
    };
    Ok(Array { dims, values })
}
