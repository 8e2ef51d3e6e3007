//! Opens data files, plain or gzip by the name's ending.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// Opens `path`; what comes out is unpacked when the name ends in `.gz`.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let packed = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    Ok(if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}
