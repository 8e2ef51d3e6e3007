//! `consortia server backup` and `restore`: a server's folder, copied while it works, and brought back elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use privacy::accounting::Figure;
use privacy::chain::Digest;
use privacy::counted;
use serde_json::json;
use server::net::{BroughtBack, HANDED_OVER, Lost, Store};

use super::failure::{Blame, Failure, Kind, OrFail};
use super::folder::{SUMS, ServerFolder};
use super::global::Global;
use super::output::table;
use super::part::{MADE, MARK, Part, refuse_unfinished};
use super::shell::quoted;
use super::watch::runtime;

/// More releases than any server makes.
const LOST_MAX: u64 = 1_000_000_000;
/// Never part of a backup: with it any identity can be made, and no server needs it.
const ROOT_KEY: &str = "ca-key.pem";

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The server's folder; the server may be running.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The folder to create. It contains the server's keys: protect it like the server.
    #[arg(long)]
    to: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// A folder that `server backup` created, or the folder of a stopped server that does not start because its books disagree.
    /// No server starts in that folder afterwards.
    backup: PathBuf,
    /// The server's folder to create.
    #[arg(long)]
    to: PathBuf,
    /// An upper bound on the releases made after the backup, which does not know of them: each is charged to every privacy
    /// budget. A budget that the backup does not know is charged before its first run. Give 0 only if no server has run since.
    /// Required.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=LOST_MAX))]
    lost_releases: Option<u64>,
}

pub(super) fn backup(args: &BackupArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.read_to_work()?;
    let part = Part::begin_copy(&args.folder, &args.to, "server backup")?;
    let to = part.path();
    let agreed = runtime()?.block_on(async {
        let store = folder.look().await?;
        let copied = store.back_up(&folder.state(), &to.join("state")).await;
        store.close().await;
        copied.or_fail(Kind::Run, "no backup was made")
    })?;
    copy_file(&folder.config(), &to.join("server.toml"))?;
    for (from, name) in
        [(folder.identity(), "identity"), (folder.operator(), "operator"), (folder.authority(), "authority")]
    {
        copy_tree(&from, &to.join(name))?;
    }
    let sums = sums_of(to)?;
    let text: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    fs::write(to.join(SUMS), text).or_fail(Kind::Run, SUMS)?;
    part.finish()?;
    let shown = args.to.display();
    global.format.say(
        || {
            format!(
                "{} in {shown}, checked: {} replayed, {} compared with models and audit log; {shown}/{SUMS} names \
                 them\nthe root's key ({ROOT_KEY}) is not among them: keep it elsewhere",
                counted(sums.len(), "file"),
                counted(agreed.populations, "ledger"),
                counted(agreed.released, "release")
            )
        },
        || {
            json!({
                "backup": args.to, "files": sums.len(), "ledgers": agreed.populations, "releases": agreed.released,
                "paid": agreed.paid, "logged": agreed.logged,
            })
        },
    );
    Ok(())
}

pub(super) fn restore(args: &RestoreArgs, global: &Global) -> Result<(), Failure> {
    refuse_unfinished(&args.backup)?;
    let is_backup = args.backup.join(SUMS).exists();
    // A server's own folder is taken as it is: its database may have been turned back, and there may be no backup.
    let _stopped = if is_backup { None } else { Some(hold(&args.backup)?) };
    if is_backup {
        check_sums(&args.backup)?;
    }
    let part = Part::begin_copy(&args.backup, &args.to, "server restore")?;
    copy_tree(&args.backup, part.path())?;
    let sums = part.path().join(SUMS);
    if is_backup {
        fs::remove_file(&sums).or_fail(Kind::Run, SUMS)?;
    }
    // All that is owed is reserved before the folder has a name by which a server could be started.
    let brought = runtime()?.block_on(Store::bring_back(&part.path().join("state"), args.lost_releases));
    let brought = brought.map_err(|error| match error.kind() {
        Kind::Refused => error.blamed(),
        _ => Failure::new(Kind::Run, format!("nothing was restored: {error}")),
    })?;
    if !is_backup {
        // Before the new folder has its name: at no instant may a server start in both.
        let handed = Store::hand_over(&ServerFolder(args.backup.clone()).state(), &args.to);
        handed.or_fail(Kind::Configuration, format!("{}: nothing was restored", args.backup.display()))?;
    }
    part.finish()?;
    let shown = args.to.display();
    global.format.say(
        || format!("{shown} is as the backup was{}\nnext:\n  consortia server run {}", describe(&brought), quoted(&args.to)),
        || {
            let charged = |one: &Lost| {
                json!({ "population": one.population, "charged": one.charged, "epsilon": one.epsilon, "epsilon_max": one.epsilon_max })
            };
            let lost: Vec<_> = brought.charged.iter().map(charged).collect();
            json!({ "folder": args.to, "charged": lost, "owed_by_new_populations": brought.owed })
        },
    );
    Ok(())
}

/// Sees to it that no server works in the folder while it is copied.
fn hold(folder: &Path) -> Result<fs::File, Failure> {
    let state = folder.join("state");
    if !folder.join("server.toml").exists() || !state.join("state.sqlite").exists() {
        let message = format!(
            "{}: there is no {SUMS}, so it is no backup, and no server's folder with a database either; nothing was restored",
            folder.display()
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    let path = state.join("server.lock");
    let opened = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let lock = opened.or_fail(Kind::Configuration, path.display())?;
    let running = format!("{}: a server works here; stop it first", folder.display());
    lock.try_lock().map_err(|_| Failure::new(Kind::Run, running))?;
    Ok(lock)
}

fn describe(brought: &BroughtBack) -> String {
    let BroughtBack { charged, owed, .. } = brought;
    let mut said = String::new();
    if !charged.is_empty() {
        let mut rows = vec![["population", "charged", "epsilon", "budget"].map(str::to_owned).to_vec()];
        rows.extend(charged.iter().map(|one| {
            let (epsilon, budget) =
                (format!("{:.4}", Figure(one.epsilon)), Figure(one.epsilon_max).to_string());
            vec![one.population.clone(), one.charged.to_string(), epsilon, budget]
        }));
        said = format!(", and its budgets are charged for what it does not know of\n{}", table(&rows));
    }
    if *owed > 0 {
        let owed = format!(
            "a population of which it knows no charge is charged {} before its first run, by that run's noise",
            counted(*owed, "release")
        );
        said = format!("{}\n{owed}", said.trim_end());
    }
    said
}

/// Copies a folder with the permissions of its files. The file that a link leads to is copied in its place; the root's key is left out.
fn copy_tree(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).or_fail(Kind::Run, to.display())?;
    let refuse = |path: &Path, why: &str| {
        let message = format!("{}: {why}; nothing was copied: move it out of the folder", path.display());
        Err(Failure::new(Kind::Configuration, message))
    };
    for entry in fs::read_dir(from).or_fail(Kind::Run, from.display())? {
        let entry = entry.or_fail(Kind::Run, from.display())?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if [ROOT_KEY, MARK, MADE, HANDED_OVER].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let is_link = entry.file_type().or_fail(Kind::Run, path.display())?.is_symlink();
        // What a link leads to; one that leads nowhere is an error.
        let kind = fs::metadata(&path).or_fail(Kind::Run, path.display())?.file_type();
        match (kind.is_dir(), kind.is_file()) {
            (true, _) if is_link => return refuse(&path, "a link to a folder, which may lead anywhere"),
            (true, _) => copy_tree(&path, &target)?,
            (false, true) => copy_file(&path, &target)?,
            (false, false) => return refuse(&path, "neither a file nor a folder"),
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to).or_fail(Kind::Run, from.display())?;
    fs::File::open(to).and_then(|file| file.sync_all()).or_fail(Kind::Run, to.display())
}

/// The SHA-256 of every file below, by its path.
fn sums_of(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let (mut sums, mut folders) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(below) = folders.pop() {
        let here = folder.join(&below);
        for entry in fs::read_dir(&here).or_fail(Kind::Run, here.display())? {
            let entry = entry.or_fail(Kind::Run, here.display())?;
            let name = below.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(name);
            } else if ![SUMS, MARK].iter().any(|own| name == Path::new(own)) {
                let bytes = fs::read(entry.path()).or_fail(Kind::Run, entry.path().display())?;
                sums.insert(name.display().to_string(), Digest::of(&bytes).to_string());
            }
        }
    }
    Ok(sums)
}

/// Refuses a backup of which a file is missing, changed or added.
fn check_sums(backup: &Path) -> Result<(), Failure> {
    let path = backup.join(SUMS);
    let text = fs::read_to_string(&path).or_fail(Kind::Configuration, path.display())?;
    let line = |line: &str| line.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned()));
    let listed: BTreeMap<String, String> = text.lines().filter_map(line).collect();
    let mut found = sums_of(backup)?;
    // What a kill at the very end of `server backup` leaves.
    found.remove(MADE);
    let names: std::collections::BTreeSet<&String> = listed.keys().chain(found.keys()).collect();
    let fault = names.into_iter().find_map(|name| match (listed.get(name), found.get(name)) {
        (Some(listed), Some(found)) if listed == found => None,
        (Some(_), Some(_)) => Some(format!("{name} has changed since the backup was made")),
        (Some(_), None) => Some(format!("{name} is missing")),
        (None, _) => Some(format!("{name} was added after the backup was made")),
    });
    match fault {
        None => Ok(()),
        Some(fault) => {
            let message = format!("{}: {fault}; nothing was restored", backup.display());
            Err(Failure::new(Kind::Configuration, message))
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use clap::Parser;

    use super::*;

    #[test]
    fn a_link_is_copied_as_the_file_it_leads_to_and_what_cannot_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(dir.path().join("real"), "key").unwrap();
        symlink("../real", from.join("key.pem")).unwrap();
        copy_tree(&from, &to).unwrap();
        assert!(to.join("key.pem").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(to.join("key.pem")).unwrap(), b"key");
        let refused = |name: &str| {
            let said = copy_tree(&from, &to).unwrap_err();
            assert!(said.message().contains(name), "{said:?}");
            fs::remove_file(from.join(name)).unwrap();
        };
        symlink("nowhere", from.join("dangling")).unwrap();
        refused("dangling");
        symlink(dir.path(), from.join("folder")).unwrap();
        refused("folder");
        let _socket = UnixListener::bind(from.join("socket")).unwrap();
        refused("socket");
        copy_tree(&from, &to).unwrap();
    }

    #[test]
    fn more_lost_releases_than_any_server_makes_are_refused() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: RestoreArgs,
        }
        let parse = |count: &str| Line::try_parse_from(["x", "a", "--to", "b", "--lost-releases", count]);
        assert_eq!(parse("1000000000").unwrap().args.lost_releases, Some(LOST_MAX));
        for count in ["1000000001", "18446744073709551615", "-1"] {
            assert!(parse(count).is_err(), "{count}");
        }
    }
}
