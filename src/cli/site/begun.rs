//! What remembers, outside of a site's state folder, that books were kept in it.
//!
//! Books that are gone altogether look like those of a new site, whose budget is untouched. The file `STATE.begun` beside the folder tells
//! the two apart. A folder of a release that wrote no such file gets it when its program starts.

use std::path::{Path, PathBuf};

use ::client::net::has_books;

use super::super::failure::{Failure, Kind};
use super::super::folder::SiteFile;
use super::super::hints::Given;
use super::super::shell::quoted;

const TEXT: &str = "The folder of this name without `.begun` holds a site's books: what its records have spent. If the books are ever missing, this \
                    file keeps the site from starting without them.\n";

/// The file beside the state folder.
fn witness(state: &Path) -> PathBuf {
    let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    let mut name = state.file_name().unwrap_or_else(|| "state".as_ref()).to_owned();
    name.push(".begun");
    state.with_file_name(name)
}

/// Whether the site's books are gone altogether: nothing is left in the state folder of what was kept there.
pub(in crate::cli) fn are_books_lost(state: &Path) -> bool {
    // `site join` and `site init` make the folder.
    if !state.is_dir() {
        return true;
    }
    witness(state).exists() && !has_books(state)
}

/// Refuses to take the budget of a site for untouched whose books are gone.
pub(in crate::cli) fn refuse_lost_books(file: &SiteFile, kind: Kind) -> Result<(), Failure> {
    if are_books_lost(&file.state) { Err(Failure::new(kind, told(file))) } else { Ok(()) }
}

/// A message that names commands on a site, with the site's file behind them, so that they work as they are typed from here.
pub(in crate::cli) fn with_path(message: &str, file: &SiteFile) -> String {
    Given::Site(&file.path).complete(message)
}

/// What is missing, and what to do.
pub(in crate::cli) fn told(file: &SiteFile) -> String {
    let (state, site) = (file.state.display(), quoted(&file.path));
    let witness = witness(&file.state);
    let (found, anew) = if witness.exists() {
        (
            format!(
                "the books of this site are gone, and {} says that they were kept here",
                witness.display()
            ),
            "To start a new site, join in another folder",
        )
    } else {
        (
            "the state folder is missing, which `site join` and `site init` make".to_owned(),
            "For a site that has never run, make the folder, writable for the site's user alone",
        )
    };
    format!(
        "{state}: {found}; without them nothing here knows what was spent. Put the newest copy of the folder back. Without a copy, run \
         `consortia site recover {site}`, which charges a loss without a bound; then start the site, and if the server refuses it because it \
         remembers more, `consortia site recover --believe-server {site}`. {anew} (docs/operations.md, Its books)"
    )
}

/// Remembers that books are kept in the state folder.
pub(super) fn note(state: &Path) {
    let witness = witness(state);
    if witness.exists() {
        return;
    }
    if let Err(error) = std::fs::write(&witness, TEXT) {
        tracing::warn!(
            "{}: {error}; if {} is ever lost, this site will not notice: let its user write there",
            witness.display(),
            state.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_lost_when_nothing_is_left_of_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(are_books_lost(&state), "there is no folder");
        std::fs::create_dir(&state).unwrap();
        assert!(!are_books_lost(&state), "a new site, or one of a release without the file");
        note(&state);
        assert!(dir.path().join("state.begun").exists());
        assert!(are_books_lost(&state));
        std::fs::write(state.join("audit.jsonl"), "").unwrap();
        std::fs::write(state.join("paused"), "{}").unwrap();
        assert!(are_books_lost(&state), "an empty file is no book");
        for name in ["ledger.jsonl", "audit.jsonl", "heads.json"] {
            std::fs::write(state.join(name), "{\"sequence\":0,\"previous\":").unwrap();
            assert!(are_books_lost(&state), "half a line of {name} is no book");
            std::fs::remove_file(state.join(name)).unwrap();
        }
        std::fs::write(state.join("ledger.jsonl"), "{}\n").unwrap();
        assert!(!are_books_lost(&state), "a whole line is compared with the other books");
        assert_eq!(witness(Path::new("/srv/north/.")), Path::new("/srv/north.begun"));
    }
}
