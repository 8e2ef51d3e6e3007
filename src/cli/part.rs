//! Folders and pairs of files that are there whole or not at all, whenever the program dies.
//!
//! A folder is made beside its place, as `NAME.part`, and gets its name when all of it is on disk. Until then a file in it says that it
//! is not finished, and no server starts in it. Whoever gives the same command again makes it anew.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use command::results::{Existing, write_model, write_whole};
use protocol::{Layout, Parameters, Standardiser};
use server::net::real_path;

use super::failure::{Failure, Kind, OrFail};

/// The file that an unfinished folder holds.
pub(super) const MARK: &str = "UNFINISHED";
const ENDING: &str = ".part";
/// Within a folder that is there already.
const WITHIN: &str = "init.part";
/// The file that says that everything is made, and only to be moved or named.
pub(super) const MADE: &str = "MADE";
const MADE_TEXT: &str = "Everything in this folder is made. This file may be removed.\n";

/// Who may enter a folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner.
    Owner,
    /// Whoever the user lets in by its umask.
    Umask,
}

/// A folder that is being made.
pub(super) struct Part {
    part: PathBuf,
    to: PathBuf,
    /// What is made is moved into a folder that is there, this file last.
    last: Option<&'static str>,
    /// Held while the command works; the system lets it go with the program.
    _mark: File,
}

impl Part {
    /// Begins to make the folder `to`, which must not be there, by `command`. What an earlier attempt left is removed.
    pub(super) fn begin(to: &Path, command: &str) -> Result<Self, Failure> {
        Self::begin_for(to, command, Access::Owner)
    }

    /// The same for whom `access` lets in.
    pub(super) fn begin_for(to: &Path, command: &str, access: Access) -> Result<Self, Failure> {
        if to.symlink_metadata().is_ok() {
            let message = format!("{} exists; nothing was changed: name a folder to make", to.display());
            return Err(Failure::new(Kind::Configuration, message));
        }
        Self::begin_at(with_ending(to)?, to, None, command, access)
    }

    /// Begins to make the folder `to` as a copy of `from`, in which it must not lie: the copy would copy itself.
    pub(super) fn begin_copy(from: &Path, to: &Path, command: &str) -> Result<Self, Failure> {
        let source = real_path(from).or_fail(Kind::Configuration, from.display())?;
        let target = real_path(to).or_fail(Kind::Configuration, to.display())?;
        if target.starts_with(&source) {
            let message = format!(
                "{} lies within {}, which is to be copied; nothing was changed: name a folder outside of it",
                to.display(),
                from.display()
            );
            return Err(Failure::new(Kind::Configuration, message));
        }
        Self::begin(to, command)
    }

    /// Begins to fill the folder `to`, which may be there and hold other things; `last` is the file without which it counts as empty.
    pub(super) fn begin_within(to: &Path, last: &'static str, command: &str) -> Result<Self, Failure> {
        if to.symlink_metadata().is_err() {
            return Self::begin(to, command);
        }
        Self::begin_at(to.join(WITHIN), to, Some(last), command, Access::Owner)
    }

    /// Goes on where an earlier attempt was killed that had made everything and only had to move it; `false` where there is none.
    pub(super) fn resume_within(to: &Path, last: &'static str) -> Result<bool, Failure> {
        let part = to.join(WITHIN);
        if !part.join(MADE).exists() {
            return Ok(false);
        }
        move_all(&part, to, last).or_fail(Kind::Run, to.display())?;
        Ok(true)
    }

    fn begin_at(
        part: PathBuf,
        to: &Path,
        last: Option<&'static str>,
        command: &str,
        access: Access,
    ) -> Result<Self, Failure> {
        refuse_ending(to)?;
        if part.symlink_metadata().is_ok() {
            clear(&part)?;
        }
        if let Some(parent) = part.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).or_fail(Kind::Configuration, parent.display())?;
        }
        make_folder(&part, access).or_fail(Kind::Configuration, part.display())?;
        let path = part.join(MARK);
        let text = format!(
            "{} was being made by `{command}`, and is not finished. Do not use it and start no server in it:\ngive the same command again, or remove \
             this folder.\n",
            to.display()
        );
        let marked = File::options().create_new(true).write(true).open(&path).and_then(|mut mark| {
            mark.write_all(text.as_bytes())?;
            mark.sync_all()?;
            Ok(mark)
        });
        let mark = marked.or_fail(Kind::Configuration, path.display())?;
        // Nobody else has this file yet.
        mark.try_lock().or_fail(Kind::Configuration, path.display())?;
        Ok(Self { part, to: to.to_owned(), last, _mark: mark })
    }

    /// The folder as long as it is not finished.
    pub(super) fn path(&self) -> &Path {
        &self.part
    }

    /// Makes everything in it durable and gives it its name.
    pub(super) fn finish(self) -> Result<(), Failure> {
        sync_all(&self.part).or_fail(Kind::Run, self.part.display())?;
        if let Some(last) = self.last {
            let made = fs::write(self.part.join(MADE), "").and_then(|()| sync(&self.part));
            let moved = made.and_then(|()| move_all(&self.part, &self.to, last));
            return moved.or_fail(Kind::Run, self.to.display());
        }
        self.name().or_fail(Kind::Run, self.to.display())
    }

    /// Gives the folder its name. At every instant before that one of the two files says whose it is.
    fn name(&self) -> io::Result<()> {
        let made = File::options().create_new(true).write(true).open(self.part.join(MADE));
        let mut made = made?;
        made.try_lock().map_err(io::Error::other)?;
        made.write_all(MADE_TEXT.as_bytes())?;
        made.sync_all()?;
        sync(&self.part)?;
        fs::remove_file(self.part.join(MARK))?;
        sync(&self.part)?;
        fs::rename(&self.part, &self.to)?;
        sync_parent(&self.to)?;
        fs::remove_file(self.to.join(MADE))?;
        sync(&self.to)
    }
}

/// Removes what an earlier attempt left, and nothing else.
fn clear(part: &Path) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::new(Kind::Configuration, message));
    let open = |name| File::options().write(true).open(part.join(name));
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let mark = match open(MARK).or_else(|error| if missing(&error) { open(MADE) } else { Err(error) }) {
        Ok(mark) => mark,
        Err(error) if missing(&error) => {
            // A kill may come between the making of the folder and the mark in it, or after the end of everything else in it.
            if fs::remove_dir(part).is_ok() {
                return Ok(());
            }
            return refuse(format!(
                "{} is in the way, and nothing in it says that this command began it: move it away, or remove it if nobody needs it, and give \
                 the command again",
                part.display()
            ));
        }
        Err(error) => return Err(error).or_fail(Kind::Configuration, part.display()),
    };
    match mark.try_lock() {
        Ok(()) => remove_marked(part).or_fail(Kind::Configuration, part.display()),
        Err(TryLockError::WouldBlock) => {
            refuse(format!("{}: another command is making this folder", part.display()))
        }
        Err(TryLockError::Error(error)) => Err(error).or_fail(Kind::Configuration, part.display()),
    }
}

/// Removes an unfinished folder, what says whose it is last: a kill leaves nothing that is nobody's.
fn remove_marked(part: &Path) -> io::Result<()> {
    for entry in fs::read_dir(part)? {
        let entry = entry?;
        if entry.file_name() == MARK || entry.file_name() == MADE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    // Of a folder whose content was moved away only the end of this is missing, and not the content.
    for name in [MARK, MADE] {
        match fs::remove_file(part.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(part)
}

/// Refuses a folder that a command has not finished.
pub(super) fn refuse_unfinished(folder: &Path) -> Result<(), Failure> {
    let mark = folder.join(MARK);
    let ends_so = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ENDING));
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let within = folder.join(WITHIN).join(MARK);
    let mark = if within.exists() { within } else { mark };
    if !mark.exists() && !ends_so(&whole) {
        return Ok(());
    }
    let said = fs::read_to_string(&mark).unwrap_or_default();
    let said = said.lines().next().unwrap_or("it has the name of a folder that is being made").to_owned();
    let message = format!(
        "{}: this folder is not finished ({said}). What it remembers of budgets may be too little: give the command that makes it again, or \
         remove it",
        folder.display()
    );
    Err(Failure::new(Kind::Configuration, message))
}

/// Writes `model.safetensors` and `privacy_statement.json` into a folder. A model that lies there has its own statement beside it at every
/// instant: an older model goes before the statement does.
pub(super) fn write_released(
    folder: &Path,
    statement: &str,
    layout: &Layout,
    model: &Parameters,
    standardiser: Option<&Standardiser>,
) -> Result<(PathBuf, PathBuf), Failure> {
    fs::create_dir_all(folder).or_fail(Kind::Configuration, folder.display())?;
    let (to, beside) = (folder.join("model.safetensors"), folder.join("privacy_statement.json"));
    let written = || -> io::Result<()> {
        let (part, beside_part) = (with_part(&to), with_part(&beside));
        write_model(&part, layout, model, standardiser)?;
        write_whole(&beside_part, Existing::Replaced, |path| fs::write(path, statement))?;
        match fs::remove_file(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_parent(&to)?,
        }
        fs::rename(&beside_part, &beside)?;
        sync_parent(&to)?;
        fs::rename(&part, &to)?;
        sync_parent(&to)
    };
    written().or_fail(Kind::Run, to.display())?;
    Ok((to, beside))
}

fn with_part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ENDING);
    path.with_file_name(name)
}

/// The name of a folder while it is made.
fn with_ending(to: &Path) -> Result<PathBuf, Failure> {
    if to.file_name().is_none() {
        return Err(Failure::new(Kind::Configuration, format!("{}: name a folder to make", to.display())));
    }
    Ok(with_part(to))
}

/// Refuses a name that folders have only while they are made.
fn refuse_ending(to: &Path) -> Result<(), Failure> {
    let named = to.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().ends_with(ENDING));
    if !named {
        return Ok(());
    }
    let message = format!(
        "{}: a name that ends in `{ENDING}` is that of a folder which is being made; nothing was changed: take another name",
        to.display()
    );
    Err(Failure::new(Kind::Configuration, message))
}

/// Makes a new folder.
fn make_folder(folder: &Path, access: Access) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    if access == Access::Owner {
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    }
    builder.create(folder)
}

/// Moves what was made in `part` into `to`, `last` last, and removes `part`.
fn move_all(part: &Path, to: &Path, last: &str) -> io::Result<()> {
    let mut names: Vec<_> =
        fs::read_dir(part)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    names.retain(|name| ![MARK, MADE].iter().any(|own| name == own));
    names.sort_by_key(|name| name == last);
    for name in names {
        sync(to)?;
        move_into(&part.join(&name), &to.join(&name))?;
    }
    sync(to)?;
    remove_marked(part)
}

/// Moves a file or a folder; into a folder that is there, its entries one by one. Nothing is replaced.
fn move_into(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() && to.is_dir() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            move_into(&entry.path(), &to.join(entry.file_name()))?;
        }
        sync(to)?;
        return fs::remove_dir(from);
    }
    if to.symlink_metadata().is_ok() {
        let message = format!("{} is there already; move it away and give the command again", to.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    fs::rename(from, to)
}

/// Makes all files and folders below durable.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync(folder)
}

/// Makes the names in a folder durable, where the system can.
fn sync(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync(parent.unwrap_or_else(|| Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_its_name_when_it_is_whole_and_what_is_not_finished_says_so_and_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("fed");
        let part = Part::begin(&to, "server restore").unwrap();
        fs::write(part.path().join("server.toml"), "half").unwrap();
        assert!(!to.exists());
        let half = dir.path().join("fed.part");
        let said = refuse_unfinished(&half).unwrap_err();
        assert!(said.message().contains("`server restore`") && said.message().contains("again"), "{said:?}");
        let busy = Part::begin(&to, "server restore").map(|_| ()).unwrap_err();
        assert!(busy.message().contains("another command"), "{busy:?}");
        drop(part);
        // It stays unfinished under any name.
        fs::rename(&half, &to).unwrap();
        assert!(refuse_unfinished(&to).is_err());
        fs::rename(&to, &half).unwrap();
        let part = Part::begin(&to, "server restore").unwrap();
        assert!(!part.path().join("server.toml").exists(), "what an earlier attempt left is used");
        fs::write(part.path().join("server.toml"), "whole").unwrap();
        part.finish().unwrap();
        assert!(refuse_unfinished(&to).is_ok() && !half.exists());
        assert!(Part::begin(&to, "server restore").is_err(), "a folder that is there is replaced");
        // Into a folder that is there: nothing counts before the last file, and a kill between two moves is made up for.
        let fill = |command| Part::begin_within(&to, "last.toml", command);
        fs::create_dir_all(to.join("state")).unwrap();
        let part = fill("server init").unwrap();
        fs::create_dir_all(part.path().join("state")).unwrap();
        fs::write(part.path().join("state/a"), "a").unwrap();
        fs::write(part.path().join("last.toml"), "last").unwrap();
        assert!(refuse_unfinished(&to).is_err());
        assert!(!Part::resume_within(&to, "last.toml").unwrap(), "half of it is taken for whole");
        fs::write(part.path().join(MADE), "").unwrap();
        drop(part);
        assert!(Part::resume_within(&to, "last.toml").unwrap() && refuse_unfinished(&to).is_ok());
        assert!(to.join("state/a").exists() && to.join("last.toml").exists() && !to.join(WITHIN).exists());
        // What a kill leaves between the end of the mark and the name, or in the middle of removing, is made anew.
        let late = dir.path().join("late");
        for left in
            [&["MADE", "state"][..], &["UNFINISHED", "MADE", "state"], &["UNFINISHED"], &["MADE"], &[]]
        {
            let half = dir.path().join("late.part");
            fs::create_dir(&half).unwrap();
            left.iter().for_each(|name| fs::write(half.join(name), "").unwrap());
            Part::begin(&late, "server backup").unwrap().finish().unwrap();
            assert!(!half.exists() && fs::read_dir(&late).unwrap().count() == 0, "{left:?}");
            fs::remove_dir(&late).unwrap();
        }
        // A folder of that name which no command made is left alone, and nobody is told to use it.
        let other = dir.path().join("mine");
        fs::create_dir_all(dir.path().join("mine.part/letters")).unwrap();
        let said = Part::begin(&other, "server restore").map(|_| ()).unwrap_err();
        assert!(said.message().contains("move it away") && !said.message().contains("rename"), "{said:?}");
        assert!(dir.path().join("mine.part/letters").exists());
    }

    #[test]
    fn no_folder_is_made_that_has_the_name_of_an_unfinished_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.part", "a.PART", ".part", "b/a.part"] {
            let to = dir.path().join(name);
            let said = Part::begin(&to, "server init").map(|_| ()).unwrap_err();
            assert!(said.message().contains("take another name"), "{said:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let there = dir.path().join("there.part");
        fs::create_dir(&there).unwrap();
        assert!(Part::begin_within(&there, "last.toml", "server init").is_err());
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_is_not_made_within_what_it_copies() {
        let dir = tempfile::tempdir().unwrap();
        let fed = dir.path().join("fed");
        fs::create_dir_all(fed.join("state")).unwrap();
        for to in ["fed/x", "fed/x/y/z", "fed/../fed/x", "new/../fed/x", "fed/state/x"] {
            let said = Part::begin_copy(&fed, &dir.path().join(to), "server backup").map(|_| ()).unwrap_err();
            assert!(said.message().contains(to) && said.message().contains("lies within"), "{said:?}");
        }
        assert_eq!(fs::read_dir(&fed).unwrap().count(), 1);
        for to in ["fed2", "fed/../copy"] {
            assert!(Part::begin_copy(&fed, &dir.path().join(to), "server backup").is_ok(), "{to}");
        }
    }
}
