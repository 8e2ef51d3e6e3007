//! Who on this machine may read what a command writes: its owner alone, whatever the umask.
//!
//! Commands that make or keep keys, books, models or personal layers set the process's umask before they do anything else, so
//! that no file or folder of theirs, the database's side files included, is ever made wider. What an older release made wider is
//! narrowed when a server or site starts. Links are not followed.

use std::path::{Path, PathBuf};

use command::results::{Existing, write_whole};

use super::failure::{Failure, Kind, OrFail};
use super::shell::quoted;

/// Makes whatever this process writes from now on readable by its owner alone.
#[cfg(unix)]
pub(super) fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

#[cfg(not(unix))]
pub(super) fn keep_private() {}

/// A file or folder that others on this machine may enter, read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wide {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    is_folder: bool,
}

impl std::fmt::Display for Wide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (shown, mode) = (self.path.display(), self.mode);
        let wanted = if self.is_folder { "700" } else { "600" };
        write!(
            f,
            "{shown} has mode {mode:03o}, so that others on this machine may use it; run `chmod {wanted} {}`",
            quoted(&self.path)
        )
    }
}

/// Everything in these files and folders that is wider than its owner, the paths themselves included. What is not there, or
/// cannot be looked at, is left out: whoever needs it says so.
#[cfg(unix)]
pub(super) fn wide<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<Wide> {
    use std::os::unix::fs::PermissionsExt;
    let (mut found, mut open) = (Vec::new(), paths.into_iter().map(Path::to_owned).collect::<Vec<_>>());
    while let Some(path) = open.pop() {
        let Ok(data) = std::fs::symlink_metadata(&path) else { continue };
        if data.is_symlink() {
            continue;
        }
        if data.is_dir()
            && let Ok(entries) = std::fs::read_dir(&path)
        {
            open.extend(entries.flatten().map(|entry| entry.path()));
        }
        let mode = data.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push(Wide { path, mode, is_folder: data.is_dir() });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[cfg(not(unix))]
pub(super) fn wide<'a>(_: impl IntoIterator<Item = &'a Path>) -> Vec<Wide> {
    Vec::new()
}

/// Takes everybody else's rights away below these paths, and warns of what cannot be changed.
pub(super) fn tighten<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for one in wide(paths) {
        match set_mode(&one.path, one.mode & 0o700) {
            Ok(()) => {
                tracing::info!("{}: others on this machine had rights there; taken away", one.path.display())
            }
            Err(error) => tracing::warn!("{one} ({error})"),
        }
    }
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> std::io::Result<()> {
    Ok(())
}

/// Lets others read a file that is made to be shown: a revocation list, a health file.
pub(super) fn show(path: &Path) -> std::io::Result<()> {
    set_mode(path, 0o644)
}

/// Writes a file that must not be there yet, whole or not at all; whatever is there is left as it is.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    match write_whole(path, Existing::Kept, |part| std::fs::write(part, bytes)) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message = format!("{} exists; it was not changed: move it away first", path.display());
            Err(Failure::new(Kind::Configuration, message))
        }
        written => written.or_fail(Kind::Configuration, path.display()),
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wider_than_its_owner_is_found_named_with_its_chmod_and_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, blobs) = (dir.path().join("state"), dir.path().join("state/blobs"));
        std::fs::create_dir_all(&blobs).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        for (path, mode) in [
            (blobs.join("a"), 0o644),
            (state.join("b"), 0o600),
            (state.join("c"), 0o640),
            (elsewhere.clone(), 0o644),
        ] {
            std::fs::write(&path, "x").unwrap();
            set_mode(&path, mode).unwrap();
        }
        set_mode(&blobs, 0o755).unwrap();
        set_mode(&state, 0o700).unwrap();
        std::os::unix::fs::symlink(&elsewhere, state.join("link")).unwrap();
        let found = wide([state.as_path()]);
        let paths: Vec<&Path> = found.iter().map(|one| one.path.as_path()).collect();
        assert_eq!(paths, [blobs.as_path(), &blobs.join("a"), &state.join("c")]);
        let said = found[1].to_string();
        assert!(
            said.contains("mode 644")
                && said.ends_with(&format!("`chmod 600 {}`", blobs.join("a").display()))
        );
        tighten([state.as_path()]);
        assert_eq!(wide([state.as_path()]), []);
        assert_eq!(wide([elsewhere.as_path()]).len(), 1, "links are not followed");
        assert_eq!(std::fs::read(blobs.join("a")).unwrap(), b"x");
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        write_new(&path, b"first").unwrap();
        let said = write_new(&path, b"second").unwrap_err();
        assert!(said.message().contains("policy.toml exists"), "{}", said.message());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }
}
