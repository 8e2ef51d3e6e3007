//! Tensors in files: safetensors, named by the SHA-256 of their bytes.
//!
//! A file is written under another name, synced, renamed, and its folder synced, before anybody refers to it. Reading
//! checks the hash: a damaged file is reported by name and never used. Values are streamed from and into their vectors,
//! without a second copy in memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

const EXTENSION: &str = "safetensors";
const PARTIAL: &str = ".partial";
/// Values converted at a time.
const BLOCK: usize = 64 << 10;

/// Why a file of tensors cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes are not those that were written.
    #[error("{}: {message}; restore this file from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    epoch: Option<i64>,
}

/// One tensor to be written: name, shape, values.
pub(crate) struct Piece<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) values: &'a [f32],
}

impl Blobs {
    /// Makes the folder if need be and removes what a crash left half written. Where servers take turns on the folder, each
    /// puts the epoch of its turn into the names of its files: one that was deposed cannot remove what its successor wrote.
    pub(crate) fn open(dir: PathBuf, epoch: Option<i64>) -> Result<Self, BlobError> {
        let blobs = Self { dir, epoch };
        blobs.prepare().map_err(|source| BlobError::File { path: blobs.dir.clone(), source })?;
        Ok(blobs)
    }

    /// The folder as it is, while a server may be writing into it.
    pub(crate) fn look(dir: PathBuf) -> Self {
        Self { dir, epoch: None }
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The file of this name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(EXTENSION)
    }

    /// Writes tensors, one after another, and returns the file's name, which ends with its hash, once it is on disk. `source` says where they come
    /// from, for whoever opens the file.
    pub(crate) fn write(&self, pieces: &[Piece<'_>], source: &str) -> Result<String, BlobError> {
        let writer = in_epoch(self.epoch, &std::process::id().to_string());
        let partial = self.dir.join(format!("{PARTIAL}-{writer}"));
        let written = (|| {
            let file = File::create(&partial)?;
            let mut sink = Hashing { sink: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new() };
            write_tensors(&mut sink, pieces, source)?;
            sink.sink.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            let name = in_epoch(self.epoch, &hexadecimal(sink.hash));
            fs::rename(&partial, self.path(&name))?;
            sync_dir(&self.dir)?;
            Ok(name)
        })();
        written.map_err(|source| BlobError::File { path: partial, source })
    }

    /// Reads the values of the file of this name, all tensors in one vector.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>, BlobError> {
        let path = self.path(name);
        let damaged = |message: String| BlobError::Damaged { path: path.clone(), message };
        let (values, found) = match read_tensors(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("the file is missing".into()));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(error.to_string()));
            }
            Err(source) => return Err(BlobError::File { path, source }),
        };
        if found == hash_in(name) {
            Ok(values)
        } else {
            Err(damaged(format!("its bytes hash to {found}; they have changed since they were written")))
        }
    }

    /// Copies the file of this name into another store, checking it on the way; `false` when it is not there any more.
    pub(crate) fn copy(&self, name: &str, to: &Self) -> Result<bool, BlobError> {
        let (from, copy) = (self.path(name), to.path(name));
        let mut source = match File::open(&from) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(BlobError::File { path: from, source }),
        };
        let copied = (|| {
            let mut sink = Hashing { sink: File::create(&copy)?, hash: Sha256::new() };
            io::copy(&mut source, &mut sink)?;
            sink.sink.sync_all()?;
            Ok(hexadecimal(sink.hash))
        })();
        let found = copied.map_err(|source| BlobError::File { path: copy, source })?;
        if found == hash_in(name) {
            return Ok(true);
        }
        let message = format!("its bytes hash to {found}; they have changed since they were written");
        Err(BlobError::Damaged { path: from, message })
    }

    /// Removes every file whose name is not among `kept`, unless a later epoch wrote it.
    pub(crate) fn collect(&self, kept: &BTreeSet<String>) -> Result<(), BlobError> {
        let collected = (|| {
            for entry in fs::read_dir(&self.dir)? {
                let path = entry?.path();
                let ours = path.extension().is_some_and(|extension| extension == EXTENSION);
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                let gone = |stem: &String| !kept.contains(stem) && !is_later(stem, self.epoch);
                if ours && stem.as_ref().is_some_and(gone) {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        })();
        collected.map_err(|source| BlobError::File { path: self.dir.clone(), source })
    }
}

/// The name of what one epoch wrote.
pub(super) fn in_epoch(epoch: Option<i64>, name: &str) -> String {
    epoch.map_or_else(|| name.to_owned(), |epoch| format!("{epoch}-{name}"))
}

/// The hash in a file's name.
pub(super) fn hash_in(name: &str) -> &str {
    name.split_once('-').map_or(name, |(_, hash)| hash)
}

/// Whether a later epoch than this one wrote the file. Without epochs there is one server, and nothing is later.
pub(super) fn is_later(name: &str, epoch: Option<i64>) -> bool {
    let of = name.split_once('-').and_then(|(epoch, _)| epoch.parse().ok());
    of.zip(epoch).is_some_and(|(of, epoch): (i64, i64)| of > epoch)
}

/// Makes a rename survive a loss of power.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// A sink that hashes what passes.
struct Hashing<W> {
    sink: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn write_tensors(sink: &mut impl Write, pieces: &[Piece<'_>], source: &str) -> io::Result<()> {
    let mut end = 0;
    let tensors = pieces.iter().map(|piece| {
        let begin = end;
        end += size_of_val(piece.values);
        let info = TensorInfo { dtype: Dtype::F32, shape: piece.shape.to_vec(), data_offsets: (begin, end) };
        (piece.name.to_owned(), info)
    });
    let source = [("source".to_owned(), source.to_owned())].into_iter().collect();
    let header = Metadata::new(Some(source), tensors.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    sink.write_all(&(header.len() as u64).to_le_bytes())?;
    sink.write_all(&header)?;
    for values in pieces.iter().flat_map(|piece| piece.values.chunks(BLOCK)) {
        if cfg!(target_endian = "little") {
            sink.write_all(bytemuck::cast_slice(values))?;
        } else {
            values.iter().try_for_each(|value| sink.write_all(&value.to_le_bytes()))?;
        }
    }
    Ok(())
}

/// The values of a file and the hash of its bytes.
fn read_tensors(path: &Path) -> io::Result<(Vec<f32>, String)> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message.to_owned());
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut hash = Sha256::new();
    let mut head = [0u8; 8];
    file.read_exact(&mut head).map_err(|_| invalid("the file is too short"))?;
    hash.update(head);
    let header = u64::from_le_bytes(head);
    let body = len.checked_sub(8).and_then(|rest| rest.checked_sub(header));
    let body = body
        .filter(|body| body.is_multiple_of(4))
        .ok_or_else(|| invalid("the header does not fit the file"))?;
    let mut description = Vec::new();
    file.by_ref().take(header).read_to_end(&mut description)?;
    hash.update(&description);
    let count = usize::try_from(body / 4).map_err(|_| invalid("the file is larger than memory"))?;
    let mut values = vec![0f32; count];
    for block in values.chunks_mut(BLOCK) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(block);
        file.read_exact(bytes)?;
        hash.update(&bytes);
        if cfg!(target_endian = "big") {
            block.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
    }
    Ok((values, hexadecimal(hash)))
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_safetensors_and_reads_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs"), None).unwrap();
        let values = [1.0, -0.0, f32::MIN_POSITIVE, 3.5, 7.25];
        let pieces = [
            Piece { name: "weight", shape: &[2, 2], values: &values[..4] },
            Piece { name: "bias", shape: &[1], values: &values[4..] },
        ];
        let hash = blobs.write(&pieces, "a test").unwrap();
        let read = blobs.read(&hash).unwrap();
        assert_eq!(read.map_bits(), values.to_vec().map_bits());
        let bytes = fs::read(blobs.path(&hash)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("weight").unwrap().shape(), [2, 2]);
        assert_eq!(file.tensor("bias").unwrap().data(), 7.25f32.to_le_bytes());
        assert_eq!(hexadecimal(Sha256::new().chain_update(&bytes)), hash);
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u32>;
    }
    impl Bits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|value| value.to_bits()).collect()
        }
    }

    #[test]
    fn a_damaged_or_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().to_owned(), None).unwrap();
        let hash = blobs.write(&[Piece { name: "w", shape: &[2], values: &[1.0, 2.0] }], "a test").unwrap();
        let path = blobs.path(&hash);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(blobs.read(&hash).unwrap_err().to_string().contains(&hash));
        fs::write(&path, [255; 12]).unwrap();
        assert!(matches!(blobs.read(&hash), Err(BlobError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        assert!(blobs.read(&hash).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn only_files_that_nobody_keeps_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().to_owned(), None).unwrap();
        let write =
            |value| blobs.write(&[Piece { name: "w", shape: &[1], values: &[value] }], "a test").unwrap();
        let (old, new) = (write(1.0), write(2.0));
        blobs.collect(&[new.clone()].into()).unwrap();
        assert!(blobs.read(&new).is_ok() && blobs.read(&old).is_err());
    }

    #[test]
    fn a_server_that_was_deposed_removes_nothing_of_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let of = |epoch| Blobs::open(dir.path().to_owned(), epoch).unwrap();
        let write = |blobs: &Blobs| {
            blobs.write(&[Piece { name: "w", shape: &[1], values: &[1.0] }], "a test").unwrap()
        };
        let (before, deposed, leads) = (of(None), of(Some(9)), of(Some(10)));
        let (first, second, third) = (write(&before), write(&deposed), write(&leads));
        assert_eq!((second.as_str(), third.as_str()), (&*format!("9-{first}"), &*format!("10-{first}")));
        deposed.collect(&BTreeSet::new()).unwrap();
        assert!(leads.read(&third).is_ok() && before.read(&first).is_err() && deposed.read(&second).is_err());
        leads.collect(&BTreeSet::new()).unwrap();
        assert!(leads.read(&third).is_err());
    }
}
