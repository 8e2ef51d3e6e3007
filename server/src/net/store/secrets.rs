//! Noise that later releases take back, in files that only the server's user may read.
//!
//! Whoever has such a file can take part of the noise off what was released since: it is as secret as a raw sum. It exists only
//! for runs with correlated noise and only while they go on, and is written anew with every release.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use privacy::correlation::NoiseMemory;
use sha2::{Digest as _, Sha256};

use super::StoreError;
use super::blobs::{hash_in, in_epoch, is_later};

/// The folder of such files; each is named by the SHA-256 of its bytes, after the epoch where there are several.
pub(super) struct Secrets {
    folder: PathBuf,
    epoch: Option<i64>,
}

impl Secrets {
    pub(super) fn open(folder: PathBuf, epoch: Option<i64>) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        Ok(Self { folder, epoch })
    }

    /// The folder as it is, while a server may be writing into it.
    pub(super) fn look(folder: PathBuf) -> Self {
        Self { folder, epoch: None }
    }

    /// Writes and syncs the vectors.
    pub(super) fn write(&self, memory: &NoiseMemory) -> Result<String, StoreError> {
        let bytes = bytes_of(memory);
        let name = in_epoch(self.epoch, &name_of(&bytes));
        self.put(&name, &bytes)?;
        Ok(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        let mut options = std::fs::File::options();
        options.create(true).truncate(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|source| failed(&path, source))
    }

    pub(super) fn read(&self, name: &str) -> Result<NoiseMemory, StoreError> {
        let path = self.folder.join(name);
        let bytes = std::fs::read(&path).map_err(|source| failed(&path, source))?;
        let damaged = || {
            let what = "the kept noise is damaged; without it no further release is private: end the run";
            failed(&path, std::io::Error::other(what))
        };
        if name_of(&bytes) != hash_in(name) {
            return Err(damaged());
        }
        let (words, _) = bytes.as_chunks::<8>();
        let values: Vec<i64> = words.iter().map(|word| i64::from_le_bytes(*word)).collect();
        let [_, length, values @ ..] = values.as_slice() else { return Err(damaged()) };
        let length = usize::try_from(*length).map_err(|_| damaged())?.max(1);
        Ok(NoiseMemory::new(values.chunks(length).map(<[i64]>::to_vec).collect()))
    }

    /// Copies the file of this name into another store; `false` when it is not there any more.
    pub(super) fn copy(&self, name: &str, to: &Self) -> Result<bool, StoreError> {
        if !self.folder.join(name).exists() {
            return Ok(false);
        }
        to.put(name, &bytes_of(&self.read(name)?))?;
        Ok(true)
    }

    /// Removes every file that is not kept and that no later epoch wrote.
    pub(super) fn collect(&self, kept: &BTreeSet<String>) -> Result<(), StoreError> {
        let entries = std::fs::read_dir(&self.folder).map_err(|source| failed(&self.folder, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| failed(&self.folder, source))?;
            let spared = |name: &str| kept.contains(name) || is_later(name, self.epoch);
            if !entry.file_name().to_str().is_some_and(spared) {
                std::fs::remove_file(entry.path()).map_err(|source| failed(&entry.path(), source))?;
            }
        }
        Ok(())
    }
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
    Sha256::digest(bytes).iter().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

fn failed(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source }
}
