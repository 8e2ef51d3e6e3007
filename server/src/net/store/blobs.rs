//! Tensors in object storage: safetensors, named by the SHA-256 of their bytes.
//!
//! An object is there, whole and durable, before anybody refers to it. Reading checks the hash: a damaged object is reported by
//! name and never used. Values are streamed from and into their vectors, some megabytes at a time.
//!
//! What must be paid for before anybody may read it is written under a name that says nothing, encrypted block by block under a key that the
//! caller puts into the transaction that pays ([`Blobs::seal`]); then it is published under its own name ([`Blobs::publish`]).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::objects::{Objects, PART, Sink};
use super::private;
use super::sealing::{SealingKey, TAG, hexadecimal as digits, random_name};

const EXTENSION: &str = ".safetensors";
/// Of what cannot be read yet.
const SEALED: &str = ".sealed";
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

/// Where the bytes of an object are that is not published yet, and the key that opens them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) name: String,
    pub(crate) key: String,
}

/// Without the key.
impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({})", self.name)
    }
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
        let (header, name, len) = self.describe(pieces, source)?;
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

    /// The same, but so that nobody can read it without the key that is returned, in memory alone: neither the bytes nor
    /// their hash are in the storage.
    pub(crate) async fn seal(
        &self,
        pieces: &[Piece<'_>],
        source: &str,
    ) -> Result<(String, Sealed), BlobError> {
        let (header, name, len) = self.describe(pieces, source)?;
        let broken = |source| BlobError::File { path: PathBuf::from(self.place()), source };
        let (key, written) = SealingKey::fresh().map_err(broken)?;
        let sealed = Sealed { name: in_epoch(self.epoch, &random_name().map_err(broken)?), key: written };
        let blocks_of = len.div_ceil(PART as u64);
        let file = sealed_object(&sealed.name);
        let failed = |source| self.failed(&name, source);
        let sink = self.objects.put(&file, len + blocks_of * TAG as u64).await.map_err(failed)?;
        let mut sealing = Sealing { sink, key, number: 0, block: Vec::new() };
        sealing.write(&header).await.map_err(failed)?;
        for block in blocks(pieces) {
            sealing.write(&little_endian(block)).await.map_err(failed)?;
        }
        sealing.finish().await.map_err(failed)?;
        Ok((name, sealed))
    }

    /// Writes what was sealed under its own name, into `to`, checking it on the way; `false` when the sealed bytes are not there.
    pub(crate) async fn publish(&self, name: &str, sealed: &Sealed, to: &Self) -> Result<bool, BlobError> {
        self.copy_from(name, Some(sealed), to).await
    }

    /// Whether there is an object of this name that anybody can read.
    pub(crate) async fn has(&self, name: &str) -> Result<bool, BlobError> {
        match self.objects.store.head(&self.objects.path(&object(name))).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.failed(name, source)),
        }
    }

    /// The header, the name and the length of the object with these tensors.
    fn describe(&self, pieces: &[Piece<'_>], source: &str) -> Result<(Vec<u8>, String, u64), BlobError> {
        let header = header(pieces, source)
            .map_err(|source| BlobError::File { path: PathBuf::from(self.place()), source })?;
        let (mut hash, mut len) = (Sha256::new_with_prefix(&header), header.len() as u64);
        for block in blocks(pieces) {
            let bytes = little_endian(block);
            hash.update(&bytes);
            len += bytes.len() as u64;
        }
        Ok((header, in_epoch(self.epoch, &hexadecimal(hash)), len))
    }

    /// What the object of this name says of where it comes from; `None` when it says nothing that is understood.
    pub(crate) async fn source(&self, name: &str) -> Result<Option<String>, BlobError> {
        let Some(mut bytes) = self.stream(name, None).await? else { return Ok(None) };
        let mut head = [0u8; 8];
        if !bytes.fill(&mut head).await? {
            return Ok(None);
        }
        let Some(length) = usize::try_from(u64::from_le_bytes(head)).ok().filter(|length| *length <= PART)
        else {
            return Ok(None);
        };
        let mut header = vec![0; length];
        if !bytes.fill(&mut header).await? {
            return Ok(None);
        }
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap_or_default();
        Ok(header["__metadata__"]["source"].as_str().map(str::to_owned))
    }

    /// Reads the values of the object of this name, all tensors in one vector.
    pub(crate) async fn read(&self, name: &str) -> Result<Vec<f32>, BlobError> {
        self.read_from(name, None).await
    }

    /// The same of an object that may not be published yet.
    pub(crate) async fn read_from(&self, name: &str, sealed: Option<&Sealed>) -> Result<Vec<f32>, BlobError> {
        let damaged = |message: String| BlobError::Damaged { place: self.show(name), message };
        let Some(mut bytes) = self.stream(name, sealed).await? else {
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
        if found == hash_in(name) { Ok(values) } else { Err(damaged(changed(&found))) }
    }

    /// Reads the object of this name, which may not be published yet, from its beginning to its end.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] where it is missing or its bytes have changed.
    pub(crate) async fn verify(&self, name: &str, sealed: Option<&Sealed>) -> Result<(), BlobError> {
        let sealed = if self.has(name).await? { None } else { sealed };
        let damaged = |message: String| BlobError::Damaged { place: self.show(name), message };
        let Some(mut bytes) = self.stream(name, sealed).await? else {
            return Err(damaged("it is missing".into()));
        };
        while bytes.next().await? {}
        let found = hexadecimal(bytes.hash);
        if found == hash_in(name) { Ok(()) } else { Err(damaged(changed(&found))) }
    }

    /// Copies the object of this name into another storage, checking it on the way; `false` when it is not there any more.
    pub(crate) async fn copy(&self, name: &str, to: &Self) -> Result<bool, BlobError> {
        self.copy_from(name, None, to).await
    }

    async fn copy_from(&self, name: &str, sealed: Option<&Sealed>, to: &Self) -> Result<bool, BlobError> {
        let Some(mut source) = self.stream(name, sealed).await? else { return Ok(false) };
        let mut sink =
            to.objects.put(&object(name), source.len).await.map_err(|error| to.failed(name, error))?;
        while source.next().await? {
            let chunk = std::mem::take(&mut source.chunk);
            sink.write(&chunk).await.map_err(|error| to.failed(name, error))?;
        }
        let found = hexadecimal(source.hash);
        if found != hash_in(name) {
            sink.abandon().await;
            return Err(BlobError::Damaged { place: self.show(name), message: changed(&found) });
        }
        sink.finish().await.map_err(|error| to.failed(name, error))?;
        Ok(true)
    }

    /// The names of all objects with tensors that anybody can read.
    pub(crate) async fn list(&self) -> Result<BTreeSet<String>, BlobError> {
        Ok(of_kind(EXTENSION, &self.names().await?).collect())
    }

    async fn names(&self) -> Result<Vec<String>, BlobError> {
        let remote = self.objects.folder.is_none();
        let failed =
            |source| BlobError::Storage { place: self.place().to_owned(), source: Box::new(source), remote };
        self.objects.list().await.map_err(failed)
    }

    /// Removes every object whose name is not among `kept`, and every sealed one that is not among `sealed`, unless a later epoch
    /// wrote it.
    pub(crate) async fn collect(
        &self,
        kept: &BTreeSet<String>,
        sealed: &BTreeSet<String>,
    ) -> Result<(), BlobError> {
        let names = self.names().await?;
        for name in of_kind(EXTENSION, &names) {
            if !kept.contains(&name) && !is_later(&name, self.epoch) {
                self.remove(&name).await?;
            }
        }
        for name in of_kind(SEALED, &names) {
            if !sealed.contains(&name) && !is_later(&name, self.epoch) {
                self.remove_sealed(&name).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn remove_sealed(&self, name: &str) -> Result<(), BlobError> {
        let removed = self.objects.remove(&sealed_object(name)).await;
        removed.map_err(|source| self.failed(name, source))
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), BlobError> {
        self.objects.remove(&object(name)).await.map_err(|source| self.failed(name, source))
    }

    /// The object's bytes from its beginning, decrypted where they are sealed; `None` when it is not there.
    async fn stream<'a>(
        &'a self,
        name: &'a str,
        sealed: Option<&Sealed>,
    ) -> Result<Option<Stream<'a>>, BlobError> {
        let unreadable =
            || BlobError::Damaged { place: self.show(name), message: "its key is invalid".into() };
        let key = sealed.map(|sealed| SealingKey::read(&sealed.key).ok_or_else(unreadable)).transpose()?;
        let file = sealed.map_or_else(|| object(name), |sealed| sealed_object(&sealed.name));
        let path = self.objects.path(&file);
        match self.objects.store.head(&path).await {
            Ok(found) => {
                let blocks = found.size.div_ceil((PART + TAG) as u64);
                let tags = key.as_ref().map_or(0, |_| blocks * TAG as u64);
                let len = found.size.saturating_sub(tags);
                let (hash, chunk) = (Sha256::new(), Bytes::new());
                let (stored, at, number) = (found.size, 0, 0);
                Ok(Some(Stream { blobs: self, name, path, key, len, stored, at, number, hash, chunk }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(name, source)),
        }
    }
}

/// An object on its way into the storage, encrypted block by block.
struct Sealing<'a> {
    sink: Sink<'a>,
    key: SealingKey,
    number: u64,
    block: Vec<u8>,
}

impl Sealing<'_> {
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), object_store::Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PART - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == PART {
                self.flush().await?;
            }
            bytes = later;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), object_store::Error> {
        let mut block = std::mem::take(&mut self.block);
        let sealed = self.key.seal(self.number, &mut block);
        sealed.map_err(|source| object_store::Error::Generic { store: "sealed", source: source.into() })?;
        self.number += 1;
        self.sink.write(&block).await
    }

    async fn finish(mut self) -> Result<(), object_store::Error> {
        if !self.block.is_empty() {
            self.flush().await?;
        }
        self.sink.finish().await
    }
}

/// An object that is read from its beginning, and the hash of what was read.
struct Stream<'a> {
    blobs: &'a Blobs,
    name: &'a str,
    path: object_store::path::Path,
    key: Option<SealingKey>,
    /// Bytes that come out.
    len: u64,
    /// Bytes in the storage.
    stored: u64,
    at: u64,
    number: u64,
    hash: Sha256,
    chunk: Bytes,
}

impl Stream<'_> {
    /// Reads the next chunk; `false` at the end.
    async fn next(&mut self) -> Result<bool, BlobError> {
        let block = if self.key.is_some() { PART + TAG } else { PART };
        let end = self.stored.min(self.at + block as u64);
        if end == self.at {
            return Ok(false);
        }
        let read = self.blobs.objects.store.get_range(&self.path, self.at..end).await;
        self.chunk = read.map_err(|source| self.blobs.failed(self.name, source))?;
        if let Some(key) = &self.key {
            let mut plain = self.chunk.to_vec();
            key.open(self.number, &mut plain).ok_or_else(|| BlobError::Damaged {
                place: self.blobs.show(self.name),
                message: "its encrypted bytes have changed since they were written".into(),
            })?;
            self.chunk = plain.into();
            self.number += 1;
        }
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

/// The names of objects of one kind, without their extension.
fn of_kind(extension: &str, names: &[String]) -> impl Iterator<Item = String> {
    names.iter().filter_map(move |name| name.strip_suffix(extension).map(str::to_owned))
}

fn changed(found: &str) -> String {
    format!("its bytes hash to {found}; they have changed since they were written")
}

/// The object's name.
fn object(name: &str) -> String {
    format!("{name}{EXTENSION}")
}

/// The name of the object while it is sealed.
fn sealed_object(name: &str) -> String {
    format!("{name}{SEALED}")
}

/// Makes the folder, and removes what a crash left half written, be it of this release or of an older one.
fn prepare(folder: &std::path::Path) -> io::Result<()> {
    private::folder(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL)
            || name.contains(&format!("{EXTENSION}#"))
            || name.contains(&format!("{SEALED}#"))
        {
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
    digits(&hash.finalize())
}

#[cfg(test)]
mod tests;
