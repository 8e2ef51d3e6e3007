//! What a path means, whether or not there is anything at it yet.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// A path with every `.`, `..` and symbolic link followed: the part of it that exists, and the names below that do not exist yet.
#[derive(Debug, PartialEq)]
pub(crate) struct RealPath {
    pub(crate) existing: PathBuf,
    pub(crate) missing: Vec<OsString>,
}

impl RealPath {
    /// # Errors
    /// That of the system when a part of the path cannot be looked at.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut real = Self { existing: PathBuf::new(), missing: Vec::new() };
        for component in std::path::absolute(path)?.components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => {
                    if real.missing.pop().is_none() {
                        real.existing.pop();
                    }
                }
                Component::Normal(name) if !real.missing.is_empty() => real.missing.push(name.to_owned()),
                other => match real.existing.join(other).canonicalize() {
                    Ok(found) => real.existing = found,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        real.missing.push(other.as_os_str().to_owned());
                    }
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(real)
    }

    pub(crate) fn whole(&self) -> PathBuf {
        self.missing.iter().fold(self.existing.clone(), |path, name| path.join(name))
    }
}

/// The absolute path that `path` means, with every `.`, `..` and symbolic link followed. Nothing need exist there.
///
/// # Errors
/// That of the system when a part of the path cannot be looked at.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    Ok(RealPath::of(path)?.whole())
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_the_same_by_dots_by_links_and_before_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("fed")).unwrap();
        std::os::unix::fs::symlink(base.join("fed"), base.join("link")).unwrap();
        for (path, wanted) in [
            ("fed", "fed"),
            ("fed/../fed/.", "fed"),
            ("link", "fed"),
            ("link/x/y", "fed/x/y"),
            ("link/../z", "z"),
            ("no/such/../../new", "new"),
            ("no/../new/b", "new/b"),
        ] {
            assert_eq!(real_path(&base.join(path)).unwrap(), base.join(wanted), "{path}");
        }
    }
}
