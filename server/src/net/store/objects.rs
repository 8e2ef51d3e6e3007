//! Object storage for what is too large for rows: a folder, a bucket, whatever the crate `object_store` knows.
//!
//! Every federation has a folder of its own there, so that one which sweeps removes nothing of another. An object counts as
//! written when the storage says so; a local folder is synced first.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};

use super::paths::RealPath;

/// What an address may begin with, and the feature of this program that it takes.
const KNOWN: [(&str, &str, bool); 3] = [
    ("s3://", "s3", cfg!(feature = "s3")),
    ("gs://", "gcs", cfg!(feature = "gcs")),
    ("az://", "azure", cfg!(feature = "azure")),
];
/// Bytes that travel at a time. Storage wants parts of 5 MiB or more, all but the last of one size.
pub(super) const PART: usize = 8 << 20;

/// Where models and optimizers' states are, if not in the state folder.
#[derive(Clone)]
pub struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// The prefix for an operator's eyes.
    pub(super) shown: String,
    /// The prefix as a folder of this machine, where it is one.
    pub(super) folder: Option<PathBuf>,
}

/// Why no storage can be meant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectsError {
    /// Not an address.
    #[error(
        "`{0}` is no storage: write file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    )]
    Url(String),
    /// Left out of this program.
    #[error(
        "`{url}`: this program was built without it; build it with `cargo build --release --features {feature}`"
    )]
    Missing {
        /// The address.
        url: String,
        /// What to build with.
        feature: &'static str,
    },
    /// The storage's own settings.
    #[error("`{url}`: {source}")]
    Settings {
        /// The address.
        url: String,
        /// What is wrong.
        source: object_store::Error,
    },
}

impl Objects {
    /// The storage at `url`, in a folder of the name `federation`. Credentials, region and endpoint come from the environment
    /// (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT` and so on), as the crate `object_store` names them.
    ///
    /// # Errors
    /// [`ObjectsError`] for an address that leads nowhere. Nothing is asked of the storage yet.
    pub fn at(url: &str, federation: &str) -> Result<Self, ObjectsError> {
        if let Some(folder) = url.strip_prefix("file://") {
            let folder = PathBuf::from(folder);
            if !folder.is_absolute() {
                return Err(ObjectsError::Url(url.to_owned()));
            }
            return Self::folder(folder.join(federation))
                .map_err(|source| ObjectsError::Settings { url: url.to_owned(), source });
        }
        let known = KNOWN.iter().find(|(scheme, _, _)| url.starts_with(scheme));
        let &(_, feature, built) = known.ok_or_else(|| ObjectsError::Url(url.to_owned()))?;
        if !built {
            return Err(ObjectsError::Missing { url: url.to_owned(), feature });
        }
        let parsed = url::Url::parse(url).map_err(|_| ObjectsError::Url(url.to_owned()))?;
        // Those of the storage alone: `TIMEOUT`, for one, would be taken for a setting, too.
        let settings = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let settings =
            settings.filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|of| name.starts_with(of)));
        let found = object_store::parse_url_opts(&parsed, settings);
        let (store, prefix) =
            found.map_err(|source| ObjectsError::Settings { url: url.to_owned(), source })?;
        let shown = format!("{}/{federation}", url.trim_end_matches('/'));
        Ok(Self { store: store.into(), prefix: prefix.join(federation), shown, folder: None })
    }

    /// Any storage of the crate `object_store`, below `prefix`, which no other federation may use.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let shown = format!("{store}/{prefix}");
        Self { store, prefix: Path::from(prefix), shown, folder: None }
    }

    /// A folder of this machine, which need not be there yet.
    pub(super) fn folder(folder: PathBuf) -> Result<Self, object_store::Error> {
        let real = RealPath::of(&folder)
            .map_err(|error| object_store::Error::Generic { store: "folder", source: error.into() })?;
        // What exists may have any name; what is made must have one that an object can have.
        let names = real.missing.iter().map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let prefix = Path::parse(names.join("/"))?;
        let store = Arc::new(LocalFileSystem::new_with_prefix(&real.existing)?.with_fsync(true));
        Ok(Self { store, prefix, shown: folder.display().to_string(), folder: Some(folder) })
    }

    /// A folder in it.
    pub(super) fn below(&self, name: &str) -> Self {
        Self {
            store: Arc::clone(&self.store),
            prefix: self.prefix.clone().join(name),
            shown: format!("{}/{name}", self.shown),
            folder: self.folder.as_ref().map(|folder| folder.join(name)),
        }
    }

    /// The object of this name.
    pub(super) fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    /// It for an operator's eyes.
    pub(super) fn show(&self, name: &str) -> String {
        match &self.folder {
            Some(folder) => folder.join(name).display().to_string(),
            None => format!("{}/{name}", self.shown),
        }
    }

    /// The names of all objects here.
    pub(super) async fn list(&self) -> Result<Vec<String>, object_store::Error> {
        if let Some(folder) = self.folder.clone() {
            let read = tokio::task::spawn_blocking(move || files_in(&folder)).await;
            let names = read.map_err(std::io::Error::other).flatten();
            return names
                .map_err(|error| object_store::Error::Generic { store: "folder", source: error.into() });
        }
        let found = self.store.list_with_delimiter(Some(&self.prefix)).await?;
        let names = found.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned));
        Ok(names.collect())
    }

    /// All bytes of an object; `None` when it is not there.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, object_store::Error> {
        let path = self.path(name);
        let len = match self.store.head(&path).await {
            Ok(found) => found.size,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        for from in (0..len).step_by(PART) {
            let part = self.store.get_range(&path, from..len.min(from + PART as u64)).await?;
            bytes.extend_from_slice(&part);
        }
        Ok(Some(bytes))
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), object_store::Error> {
        match self.store.delete(&self.path(name)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Begins to write an object of `len` bytes.
    pub(super) async fn put(&self, name: &str, len: u64) -> Result<Sink<'_>, object_store::Error> {
        let path = self.path(name);
        let parts = match len > PART as u64 {
            true => Some(self.store.put_multipart(&path).await?),
            false => None,
        };
        Ok(Sink {
            objects: self,
            path,
            parts: parts.map(|upload| WriteMultipart::new_with_chunk_size(upload, PART)),
            whole: Vec::new(),
        })
    }
}

/// The names of the files in a folder, of which none need be there. Without their sizes, which the crate would ask for one by one: that
/// takes long where a hundred thousand models are kept.
fn files_in(folder: &std::path::Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Objects({})", self.shown)
    }
}

/// An object on its way: it is there once [`Sink::finish`] has returned, whole or not at all.
pub(super) struct Sink<'a> {
    objects: &'a Objects,
    path: Path,
    parts: Option<WriteMultipart>,
    whole: Vec<u8>,
}

impl Sink<'_> {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), object_store::Error> {
        match &mut self.parts {
            Some(parts) => {
                // Two parts under way at most, whatever the line does.
                parts.wait_for_capacity(2).await?;
                parts.write(bytes);
            }
            None => self.whole.extend_from_slice(bytes),
        }
        Ok(())
    }

    pub(super) async fn finish(self) -> Result<(), object_store::Error> {
        match self.parts {
            Some(parts) => parts.finish().await.map(|_| ()),
            None => self.objects.store.put(&self.path, self.whole.into()).await.map(|_| ()),
        }
    }

    /// Gives up; what was sent is thrown away as far as the storage can be reached.
    pub(super) async fn abandon(self) {
        if let Some(parts) = self.parts {
            let _ = parts.abort().await;
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests;
