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

/// The folder of such files; each is named by the SHA-256 of its bytes.
pub(super) struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    pub(super) fn open(folder: PathBuf) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        Ok(Self { folder })
    }

    /// The folder as it is, while a server may be writing into it.
    pub(super) fn look(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Writes and syncs the vectors: their number and length as u64, then their values as i64, all little endian.
    pub(super) fn write(&self, memory: &NoiseMemory) -> Result<String, StoreError> {
        let vectors = memory.vectors();
        let length = vectors.first().map_or(0, Vec::len);
        let mut bytes: Vec<u8> =
            [vectors.len(), length].iter().flat_map(|n| (*n as u64).to_le_bytes()).collect();
        vectors.iter().flatten().for_each(|value| bytes.extend(value.to_le_bytes()));
        let name = name_of(&bytes);
        let path = self.folder.join(&name);
        let mut options = std::fs::File::options();
        options.create(true).truncate(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(|source| failed(&path, source))?;
        Ok(name)
    }

    pub(super) fn read(&self, name: &str) -> Result<NoiseMemory, StoreError> {
        let path = self.folder.join(name);
        let bytes = std::fs::read(&path).map_err(|source| failed(&path, source))?;
        let damaged = || {
            let what = "the kept noise is damaged; without it no further release is private: end the run";
            failed(&path, std::io::Error::other(what))
        };
        if name_of(&bytes) != name {
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
        to.write(&self.read(name)?)?;
        Ok(true)
    }

    /// Removes every file that is not kept.
    pub(super) fn collect(&self, kept: &BTreeSet<String>) -> Result<(), StoreError> {
        let entries = std::fs::read_dir(&self.folder).map_err(|source| failed(&self.folder, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| failed(&self.folder, source))?;
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                std::fs::remove_file(entry.path()).map_err(|source| failed(&entry.path(), source))?;
            }
        }
        Ok(())
    }
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
