//! Opens data files, plain or packed by gzip: their first bytes tell, whatever their names end in.
//!
//! What its first bytes show to be another format is refused by that format's name, with the way to one that is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// First bytes that are looked at.
const HEAD: usize = 8;

const ZIP: &str = "a ZIP archive, as .npz, .xlsx, .ods and .zip files are: save the one table in it as CSV in UTF-8, or each \
                   array by itself with `numpy.save` as .npy";
const UTF_16: &str = "text in UTF-16: save it as CSV in UTF-8";

/// First bytes of formats that are not read, and what to do about each.
const FOREIGN: [(&[u8], &str); 9] = [
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"PAR1\x15", "a Parquet file: save its table as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file: save its table as CSV in UTF-8"),
    (b"\x89HDF", "an HDF5 file: save its table as CSV in UTF-8, or its arrays with `numpy.save` as .npy"),
    (b"SQLite f", "an SQLite database: save its table as CSV in UTF-8"),
    (b"%PDF", "a PDF document: save its table as CSV in UTF-8"),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
];

/// The bytes of a file, unpacked.
pub(super) type Opened = Box<dyn Read>;

/// Opens `path`; what comes out is unpacked.
///
/// # Errors
/// That of the system; [`io::ErrorKind::Unsupported`] with what the file is and what to do, where it is none that is read.
pub(super) fn open(path: &Path) -> io::Result<Opened> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    // A first read of a local file brings its first bytes at once; a pipe that brings fewer is read as it is.
    let packed = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    if !packed {
        return known(file).map(|file| Box::new(file) as Opened);
    }
    known(MultiGzDecoder::new(file)).map(|file| Box::new(file) as Opened)
}

/// The same bytes, unless they begin as a format that is not read.
fn known<R: Read>(mut file: R) -> io::Result<Chain<Cursor<Vec<u8>>, R>> {
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    if head.starts_with(b"\x1f\x8b") {
        let message = "it is packed by gzip twice: unpack it once";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    match FOREIGN.iter().find(|(first, _)| head.starts_with(first)) {
        Some((_, what)) => Err(io::Error::new(io::ErrorKind::Unsupported, format!("it is {what}"))),
        None => Ok(Cursor::new(head).chain(file)),
    }
}
