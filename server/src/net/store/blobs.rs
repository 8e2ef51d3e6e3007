//! Tensors in object storage: safetensors, named by the SHA-256 of their bytes.
//!
//! An object is there, whole and durable, before anybody refers to it. Reading checks the hash: a damaged object is reported by
//! name and never used. Values are streamed from and into their vectors, some megabytes at a time.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::objects::{Objects, PART};
use crate::net::private;

const EXTENSION: &str = ".safetensors";
/// What older releases called a file that was being written.
const PARTIAL: &str = ".partial";
/// Values converted at a time.
const BLOCK: usize = 64 << 10;

/// Why an object with tensors cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The storage refuses, or does not answer.
    #[error("{place}: {}", whole(source))]
    Storage {
        /// The object.
        place: String,
        /// What the storage says.
        source: Box<object_store::Error>,
        /// Whether it is somewhere else than on this machine.
        remote: bool,
    },
    /// The bytes are not those that were written.
    #[error("{place}: {message}; restore it from a backup")]
    Damaged {
        /// The object.
        place: String,
        /// What is wrong.
        message: String,
    },
}

/// An error with all that led to it.
fn whole(error: &object_store::Error) -> String {
    let first: &dyn std::error::Error = error;
    let mut told = first.to_string();
    for cause in std::iter::successors(first.source(), |cause| cause.source()) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Where the objects are.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    objects: Objects,
    epoch: Option<i64>,
}

/// One tensor to be written: name, shape, values.
pub(crate) struct Piece<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) values: &'a [f32],
}

impl Blobs {
    /// Makes the folder if need be and removes what a crash left half written. Where servers take turns on it, each
    /// puts the epoch of its turn into the names of its objects: one that was deposed cannot remove what its successor wrote.
    pub(crate) fn open(objects: Objects, epoch: Option<i64>) -> Result<Self, BlobError> {
        if let Some(folder) = &objects.folder {
            prepare(folder).map_err(|source| BlobError::File { path: folder.clone(), source })?;
        }
        Ok(Self { objects, epoch })
    }

    /// What is there, while a server may be writing into it.
    pub(crate) fn look(objects: Objects) -> Self {
        Self { objects, epoch: None }
    }

    /// Where it is, for an operator's eyes.
    pub(crate) fn place(&self) -> &str {
        &self.objects.shown
    }

    /// The object of this name, for an operator's eyes.
    pub(crate) fn show(&self, name: &str) -> String {
        self.objects.show(&object(name))
    }

    fn failed(&self, name: &str, source: object_store::Error) -> BlobError {
        let remote = self.objects.folder.is_none();
        BlobError::Storage { place: self.show(name), source: Box::new(source), remote }
    }

    /// Writes tensors, one after another, and returns the object's name, which ends with its hash, once it is durable. `source` says where
    /// they come from, for whoever opens it.
    pub(crate) async fn write(&self, pieces: &[Piece<'_>], source: &str) -> Result<String, BlobError> {
        let header = header(pieces, source)
            .map_err(|source| BlobError::File { path: PathBuf::from(self.place()), source })?;
        let (mut hash, mut len) = (Sha256::new_with_prefix(&header), header.len() as u64);
        for block in blocks(pieces) {
            let bytes = little_endian(block);
            hash.update(&bytes);
            len += bytes.len() as u64;
        }
        let name = in_epoch(self.epoch, &hexadecimal(hash));
        let written = async {
            let mut sink = self.objects.put(&object(&name), len).await?;
            sink.write(&header).await?;
            for block in blocks(pieces) {
                sink.write(&little_endian(block)).await?;
            }
            sink.finish().await
        };
        written.await.map_err(|source| self.failed(&name, source))?;
        Ok(name)
    }

    /// Reads the values of the object of this name, all tensors in one vector.
    pub(crate) async fn read(&self, name: &str) -> Result<Vec<f32>, BlobError> {
        let damaged = |message: String| BlobError::Damaged { place: self.show(name), message };
        let Some(mut bytes) = self.stream(name).await? else {
            return Err(damaged("it is missing".into()));
        };
        let too_short = || damaged("it is too short".into());
        let mut head = [0u8; 8];
        if !bytes.fill(&mut head).await? {
            return Err(too_short());
        }
        let body = bytes.len.checked_sub(8).and_then(|rest| rest.checked_sub(u64::from_le_bytes(head)));
        let body = body
            .filter(|body| body.is_multiple_of(4))
            .ok_or_else(|| damaged("its header does not fit it".into()))?;
        let count = usize::try_from(body / 4).map_err(|_| damaged("it is larger than memory".into()))?;
        let description = usize::try_from(u64::from_le_bytes(head)).map_err(|_| too_short())?;
        if !bytes.fill(&mut vec![0; description]).await? {
            return Err(too_short());
        }
        let mut values = vec![0f32; count];
        if !bytes.fill(bytemuck::cast_slice_mut(&mut values)).await? {
            return Err(too_short());
        }
        if cfg!(target_endian = "big") {
            values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
        let found = hexadecimal(bytes.hash);
        if found == hash_in(name) {
            Ok(values)
        } else {
            Err(damaged(format!("its bytes hash to {found}; they have changed since they were written")))
        }
    }

    /// Copies the object of this name into another storage, checking it on the way; `false` when it is not there any more.
    pub(crate) async fn copy(&self, name: &str, to: &Self) -> Result<bool, BlobError> {
        let Some(mut source) = self.stream(name).await? else { return Ok(false) };
        let mut sink =
            to.objects.put(&object(name), source.len).await.map_err(|error| to.failed(name, error))?;
        while source.next().await? {
            let chunk = std::mem::take(&mut source.chunk);
            sink.write(&chunk).await.map_err(|error| to.failed(name, error))?;
        }
        let found = hexadecimal(source.hash);
        if found != hash_in(name) {
            sink.abandon().await;
            let message = format!("its bytes hash to {found}; they have changed since they were written");
            return Err(BlobError::Damaged { place: self.show(name), message });
        }
        sink.finish().await.map_err(|error| to.failed(name, error))?;
        Ok(true)
    }

    /// The names of all objects with tensors.
    pub(crate) async fn list(&self) -> Result<BTreeSet<String>, BlobError> {
        let remote = self.objects.folder.is_none();
        let failed =
            |source| BlobError::Storage { place: self.place().to_owned(), source: Box::new(source), remote };
        let names = self.objects.list().await.map_err(failed)?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(EXTENSION).map(str::to_owned)).collect())
    }

    /// Removes every object whose name is not among `kept`, unless a later epoch wrote it.
    pub(crate) async fn collect(&self, kept: &BTreeSet<String>) -> Result<(), BlobError> {
        for name in self.list().await? {
            if !kept.contains(&name) && !is_later(&name, self.epoch) {
                self.remove(&name).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), BlobError> {
        self.objects.remove(&object(name)).await.map_err(|source| self.failed(name, source))
    }

    /// The object's bytes from its beginning; `None` when it is not there.
    async fn stream<'a>(&'a self, name: &'a str) -> Result<Option<Stream<'a>>, BlobError> {
        match self.objects.store.head(&self.objects.path(&object(name))).await {
            Ok(found) => {
                let (hash, chunk) = (Sha256::new(), Bytes::new());
                Ok(Some(Stream { blobs: self, name, len: found.size, at: 0, hash, chunk }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(name, source)),
        }
    }
}

/// An object that is read from its beginning, and the hash of what was read.
struct Stream<'a> {
    blobs: &'a Blobs,
    name: &'a str,
    len: u64,
    at: u64,
    hash: Sha256,
    chunk: Bytes,
}

impl Stream<'_> {
    /// Reads the next chunk; `false` at the end.
    async fn next(&mut self) -> Result<bool, BlobError> {
        let end = self.len.min(self.at + PART as u64);
        if end == self.at {
            return Ok(false);
        }
        let objects = &self.blobs.objects;
        let read = objects.store.get_range(&objects.path(&object(self.name)), self.at..end).await;
        self.chunk = read.map_err(|source| self.blobs.failed(self.name, source))?;
        self.hash.update(&self.chunk);
        self.at = end;
        Ok(true)
    }

    /// Fills all of `into`; `false` when the object ends before.
    async fn fill(&mut self, mut into: &mut [u8]) -> Result<bool, BlobError> {
        while !into.is_empty() {
            if self.chunk.is_empty() && !self.next().await? {
                return Ok(false);
            }
            let (now, later) = into.split_at_mut(into.len().min(self.chunk.len()));
            now.copy_from_slice(&self.chunk.split_to(now.len()));
            into = later;
        }
        Ok(true)
    }
}

/// The object's name.
fn object(name: &str) -> String {
    format!("{name}{EXTENSION}")
}

/// Makes the folder, and removes what a crash left half written, be it of this release or of an older one.
fn prepare(folder: &std::path::Path) -> io::Result<()> {
    private::folder(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL) || name.contains(&format!("{EXTENSION}#")) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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

/// The length and the description of the tensors, as the file begins.
fn header(pieces: &[Piece<'_>], source: &str) -> io::Result<Vec<u8>> {
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
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    Ok(bytes)
}

fn blocks<'a>(pieces: &'a [Piece<'_>]) -> impl Iterator<Item = &'a [f32]> {
    pieces.iter().flat_map(|piece| piece.values.chunks(BLOCK))
}

fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn at(dir: &Path) -> Objects {
        Objects::folder(dir.to_owned()).unwrap()
    }

    #[tokio::test]
    async fn a_file_is_safetensors_and_reads_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(at(&dir.path().join("blobs")), None).unwrap();
        let values = [1.0, -0.0, f32::MIN_POSITIVE, 3.5, 7.25];
        let pieces = [
            Piece { name: "weight", shape: &[2, 2], values: &values[..4] },
            Piece { name: "bias", shape: &[1], values: &values[4..] },
        ];
        let hash = blobs.write(&pieces, "a test").await.unwrap();
        let read = blobs.read(&hash).await.unwrap();
        assert_eq!(read.map_bits(), values.to_vec().map_bits());
        let bytes = fs::read(blobs.show(&hash)).unwrap();
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

    #[tokio::test]
    async fn a_damaged_or_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(at(dir.path()), None).unwrap();
        let hash =
            blobs.write(&[Piece { name: "w", shape: &[2], values: &[1.0, 2.0] }], "a test").await.unwrap();
        let path = blobs.show(&hash);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(blobs.read(&hash).await.unwrap_err().to_string().contains(&hash));
        fs::write(&path, [255; 12]).unwrap();
        assert!(matches!(blobs.read(&hash).await, Err(BlobError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        assert!(blobs.read(&hash).await.unwrap_err().to_string().contains("missing"));
    }

    #[tokio::test]
    async fn only_files_that_nobody_keeps_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(at(dir.path()), None).unwrap();
        let write = async |value| {
            blobs.write(&[Piece { name: "w", shape: &[1], values: &[value] }], "a test").await.unwrap()
        };
        let (old, new) = (write(1.0).await, write(2.0).await);
        blobs.collect(&[new.clone()].into()).await.unwrap();
        assert!(blobs.read(&new).await.is_ok() && blobs.read(&old).await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_was_deposed_removes_nothing_of_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let of = |epoch| Blobs::open(at(dir.path()), epoch).unwrap();
        let write = async |blobs: &Blobs| {
            blobs.write(&[Piece { name: "w", shape: &[1], values: &[1.0] }], "a test").await.unwrap()
        };
        let (before, deposed, leads) = (of(None), of(Some(9)), of(Some(10)));
        let (first, second, third) = (write(&before).await, write(&deposed).await, write(&leads).await);
        assert_eq!((second.as_str(), third.as_str()), (&*format!("9-{first}"), &*format!("10-{first}")));
        deposed.collect(&BTreeSet::new()).await.unwrap();
        assert!(
            leads.read(&third).await.is_ok()
                && before.read(&first).await.is_err()
                && deposed.read(&second).await.is_err()
        );
        leads.collect(&BTreeSet::new()).await.unwrap();
        assert!(leads.read(&third).await.is_err());
    }
}
