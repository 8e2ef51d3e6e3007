//! Noise that later releases take back: in files that only the server's user may read, or sealed in object storage.
//!
//! Whoever has it can take part of the noise off what was released since: it is as secret as a raw sum. It exists only
//! for runs with correlated noise and only while they go on, and is written anew with every release. In object storage each is
//! encrypted with a key of its own, which stands in the database's row alone: a bucket that is read tells nothing, and what a bucket
//! keeps of old versions is void when the row changes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use privacy::correlation::NoiseMemory;
use sha2::{Digest as _, Sha256};

use super::StoreError;
use super::blobs::{BlobError, hash_in, in_epoch, is_later};
use super::objects::Objects;
use super::private;
use super::sealing::{SealingKey, hexadecimal};

/// The folder of such files; each is named by the SHA-256 of its bytes, after the epoch where there are several. What was sealed
/// is known by its name, a full stop and its key.
pub(super) struct Secrets {
    folder: PathBuf,
    objects: Option<Objects>,
    epoch: Option<i64>,
}

impl Secrets {
    /// Makes the folder. With `objects` new noise goes there.
    pub(super) fn open(
        folder: PathBuf,
        objects: Option<Objects>,
        epoch: Option<i64>,
    ) -> Result<Self, StoreError> {
        private::folder(&folder).map_err(|source| failed(&folder, source))?;
        Ok(Self { folder, objects, epoch })
    }

    /// What is there, while a server may be writing into it.
    pub(super) fn look(folder: PathBuf, objects: Option<Objects>) -> Self {
        Self { folder, objects, epoch: None }
    }

    /// Writes the vectors and returns by what they are known, once they are durable.
    pub(super) async fn write(&self, memory: &NoiseMemory) -> Result<String, StoreError> {
        let mut bytes = bytes_of(memory);
        let Some(objects) = &self.objects else {
            let name = in_epoch(self.epoch, &name_of(&bytes));
            self.put(&name, &bytes)?;
            return Ok(name);
        };
        let sealed = SealingKey::fresh().and_then(|(sealing, key)| {
            sealing.seal(0, &mut bytes)?;
            Ok(key)
        });
        let key = sealed.map_err(|source| failed(&self.folder, source))?;
        let name = in_epoch(self.epoch, &name_of(&bytes));
        let sent = async {
            let mut sink = objects.put(&name, bytes.len() as u64).await?;
            sink.write(&bytes).await?;
            sink.finish().await
        };
        sent.await.map_err(|source| refused(objects, &name, source))?;
        Ok(format!("{name}.{key}"))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        let mut options = private::options();
        options.create(true).truncate(true).write(true);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|source| failed(&path, source))
    }

    pub(super) async fn read(&self, known: &str) -> Result<NoiseMemory, StoreError> {
        let (name, key) = parts(known);
        let path = self.folder.join(name);
        let fault = |fault| StoreError::Noise { path: path.clone(), fault };
        let damaged = || fault("is damaged");
        let Some(mut bytes) = self.bytes(name, key.is_some()).await? else {
            return Err(fault("is missing"));
        };
        if name_of(&bytes) != hash_in(name) {
            return Err(damaged());
        }
        if let Some(key) = key {
            SealingKey::read(key).and_then(|key| key.open(0, &mut bytes)).ok_or_else(damaged)?;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let values: Vec<i64> = words.iter().map(|word| i64::from_le_bytes(*word)).collect();
        let [_, length, values @ ..] = values.as_slice() else { return Err(damaged()) };
        let length = usize::try_from(*length).map_err(|_| damaged())?.max(1);
        Ok(NoiseMemory::new(values.chunks(length).map(<[i64]>::to_vec).collect()))
    }

    /// The bytes as they are kept: what was sealed is in object storage, or in the folder of a state that came from a backup.
    async fn bytes(&self, name: &str, sealed: bool) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(objects) = self.objects.as_ref().filter(|_| sealed) {
            let found = objects.read(name).await.map_err(|source| refused(objects, name, source))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let path = self.folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(&path, source)),
        }
    }

    /// The file of what is known so, for an operator's eyes.
    pub(super) fn show(&self, known: &str) -> String {
        format!("{} (kept noise)", self.folder.join(parts(known).0).display())
    }

    /// Copies what is known so into another folder, sealed if it is; `false` when it is not there any more.
    pub(super) async fn copy(&self, known: &str, to: &Self) -> Result<bool, StoreError> {
        let (name, key) = parts(known);
        let Some(bytes) = self.bytes(name, key.is_some()).await? else { return Ok(false) };
        if name_of(&bytes) != hash_in(name) {
            let what = "the kept noise is damaged; end its run, and copy again";
            return Err(failed(&self.folder.join(name), std::io::Error::other(what)));
        }
        to.put(name, &bytes)?;
        Ok(true)
    }

    /// Removes what is known so.
    pub(super) async fn remove(&self, known: &str) -> Result<(), StoreError> {
        let (name, key) = parts(known);
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&path, source));
            }
            _ => {}
        }
        match self.objects.as_ref().filter(|_| key.is_some()) {
            Some(objects) => objects.remove(name).await.map_err(|source| refused(objects, name, source)),
            None => Ok(()),
        }
    }

    /// Removes all that is not kept and that no later epoch wrote.
    pub(super) async fn collect(&self, kept: &BTreeSet<String>) -> Result<(), StoreError> {
        let kept: BTreeSet<&str> = kept.iter().map(|known| parts(known).0).collect();
        let spared = |name: &str| kept.contains(name) || is_later(name, self.epoch);
        let entries = std::fs::read_dir(&self.folder).map_err(|source| failed(&self.folder, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| failed(&self.folder, source))?;
            if !entry.file_name().to_str().is_some_and(spared) {
                std::fs::remove_file(entry.path()).map_err(|source| failed(&entry.path(), source))?;
            }
        }
        let Some(objects) = &self.objects else { return Ok(()) };
        for name in objects.list().await.map_err(|source| refused(objects, "", source))? {
            if !spared(&name) {
                objects.remove(&name).await.map_err(|source| refused(objects, &name, source))?;
            }
        }
        Ok(())
    }
}

/// The name, and the key of what was sealed.
fn parts(known: &str) -> (&str, Option<&str>) {
    known.split_once('.').map_or((known, None), |(name, key)| (name, Some(key)))
}

/// The number of vectors and their length as u64, then their values as i64, all little endian.
fn bytes_of(memory: &NoiseMemory) -> Vec<u8> {
    let vectors = memory.vectors();
    let length = vectors.first().map_or(0, Vec::len);
    let mut bytes: Vec<u8> = [vectors.len(), length].iter().flat_map(|n| (*n as u64).to_le_bytes()).collect();
    vectors.iter().flatten().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

fn name_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn failed(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source }
}

fn refused(objects: &Objects, name: &str, source: object_store::Error) -> StoreError {
    let (place, remote) = (objects.show(name), objects.folder.is_none());
    BlobError::Storage { place, source: Box::new(source), remote }.into()
}
