//! `consortia site leave`: the key and the certificates go, the books stay.
//!
//! It removes nothing but the three files of an identity, those that a renewal left beside it, and answers that have not left. The key is written over
//! first; on a disk that keeps old blocks (flash, snapshots, backups) that is no promise, and only a revocation by the operator
//! makes the identity void.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use ::client::AuditEvent;
use ::client::net::{BooksError, open_audit};
use clap::Args;
use privacy::chain::Digest;
use privacy::chain::segments::files_of;
use serde_json::json;

use super::super::failure::{Blame, Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::super::global::Global;
use super::super::identity::{FILES, folders};
use super::begun::with_path;
use super::now;
use super::owner::{self, refuse_books};
use super::pause::who;

#[derive(Debug, Args)]
pub(in crate::cli) struct LeaveArgs {
    /// The site's file.
    #[arg(default_value = "site.toml")]
    file: PathBuf,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(in crate::cli) fn leave(args: &LeaveArgs, global: &Global) -> Result<(), Failure> {
    let file = SiteFile::read(&args.file)?;
    let found = identity_files(&file.identity)?;
    if found.is_empty() {
        let message =
            format!("{}: there is no key and no certificate; this site has left", file.identity.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    refuse_books(&file, Kind::Configuration)?;
    // Held to the end, so that no `site run` begins in between.
    let (audit, _) = open_audit(&file.state, now).map_err(|error| match error {
        BooksError::Held(_) => Failure::new(
            error.kind(),
            "`site run` is at work on this site; end it first, nothing was changed",
        ),
        _ => Failure::new(error.kind(), with_path(&error.to_string(), &file)),
    })?;
    if !args.yes {
        confirm(&file.identity)?;
    }
    let certificate = Digest::of(&std::fs::read(file.identity.join("cert.pem")).unwrap_or_default());
    for path in &found {
        remove(path).or_fail(Kind::Run, path.display())?;
    }
    for folder in folders(&file.identity) {
        // What else is in there is not ours to remove.
        let _ = std::fs::remove_dir(folder);
    }
    // They are of no use without the key, and nothing of these records is to leave any more.
    remove_answers(&file.state.join(super::OUTBOX))?;
    let left = audit.seal(AuditEvent::Left { by: who(), certificate });
    left.or_fail(Kind::Run, "the key is gone, but the audit log cannot be written")?;
    let logs = files_of(&file.state.join("audit.jsonl")).unwrap_or_default();
    let kept: Vec<PathBuf> = ["ledger.jsonl", "heads.json", owner::NAME, "personal.json"]
        .iter()
        .map(|name| file.state.join(name))
        .chain(logs)
        .chain([file.policy.clone()])
        .filter(|path| path.exists())
        .collect();
    global.format.say(
        || {
            let list = |paths: &[PathBuf]| {
                paths.iter().map(|path| format!("\n  {}", path.display())).collect::<String>()
            };
            format!(
                "this site has left. removed, the key overwritten first:{}\nkept, since you may have to answer for them:{}\n\nask the \
                 operator to revoke this site: until then a copy of the key, in a backup say, is still good",
                list(&found),
                list(&kept)
            )
        },
        || json!({ "left": true, "removed": found, "kept": kept }),
    );
    Ok(())
}

/// The files to remove, keys first. A link is refused: what it leads to may be somebody else's.
fn identity_files(identity: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for name in FILES {
        for path in folders(identity).iter().map(|folder| folder.join(name)) {
            match std::fs::symlink_metadata(&path) {
                Err(_) => {}
                Ok(data) if data.is_file() => found.push(path),
                Ok(_) => {
                    let message = format!(
                        "{}: this is no plain file, and is not touched; remove it yourself",
                        path.display()
                    );
                    return Err(Failure::new(Kind::Configuration, message));
                }
            }
        }
    }
    Ok(found)
}

fn confirm(identity: &Path) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        let message = "leaving destroys this site's key: give --yes, or answer on a terminal";
        return Err(Failure::new(Kind::Configuration, message));
    }
    super::super::output::ask(format_args!(
        "this destroys the key and the certificates in {}, and cannot be undone: a new invite is needed to come back.\n\
         type `leave` to go on: ",
        identity.display()
    ));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).or_fail(Kind::Configuration, "stdin")?;
    if answer.trim() == "leave" {
        return Ok(());
    }
    Err(Failure::new(Kind::Configuration, "nothing was changed"))
}

/// Removes the answers that the server has not acknowledged; what else is in their folder is not touched.
fn remove_answers(outbox: &Path) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(outbox) else { return Ok(()) };
    let answers = entries.filter_map(|entry| Some(entry.ok()?.path()));
    for path in answers.filter(|path| path.extension().is_some_and(|extension| extension == "answer")) {
        std::fs::remove_file(&path).or_fail(Kind::Run, path.display())?;
    }
    // What else is in there is not ours to remove.
    let _ = std::fs::remove_dir(outbox);
    Ok(())
}

/// Writes zeros over a key, then removes the file.
fn remove(path: &Path) -> std::io::Result<()> {
    if path.ends_with("key.pem") {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_overwritten_before_its_name_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (dir.path().join("key.pem"), dir.path().join("other"));
        std::fs::write(&key, "secret").unwrap();
        // A second name for the same bytes shows what became of them.
        std::fs::hard_link(&key, &other).unwrap();
        remove(&key).unwrap();
        assert!(!key.exists());
        assert_eq!(std::fs::read(&other).unwrap(), [0; 6]);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_refused_and_nothing_else_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        std::fs::create_dir_all(&identity).unwrap();
        for name in ["key.pem", "ca.pem", "notes.txt"] {
            std::fs::write(identity.join(name), "x").unwrap();
        }
        let found = identity_files(&identity).unwrap();
        assert_eq!(found, [identity.join("key.pem"), identity.join("ca.pem")]);
        std::os::unix::fs::symlink(identity.join("notes.txt"), identity.join("cert.pem")).unwrap();
        assert!(identity_files(&identity).unwrap_err().message().contains("cert.pem"));
    }
}
