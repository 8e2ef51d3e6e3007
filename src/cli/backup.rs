//! `consortia server backup` and `restore`: a server's folder, copied while it works, and brought back elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use privacy::chain::Digest;
use serde_json::json;
use server::net::{Lost, Store};

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::folder::ServerFolder;
use super::output::table;
use super::watch::runtime;

/// The list of a backup's files with their SHA-256, as `sha256sum --check` reads it.
const SUMS: &str = "SHA256SUMS";
/// Never part of a backup: with it any identity can be made, and no server needs it.
const ROOT_KEY: &str = "ca-key.pem";

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The server's folder; the server may be running.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The folder to make. It holds the server's keys: keep it as safe as the server.
    #[arg(long)]
    to: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// A folder that `server backup` made.
    backup: PathBuf,
    /// The server's folder to make.
    #[arg(long)]
    to: PathBuf,
    /// How many releases may have been made after the backup, at most: each is charged to every privacy budget, since the
    /// backup does not know of it. 0 only if no server has worked since. Needed where a budget is kept.
    #[arg(long, value_name = "N")]
    lost_releases: Option<u64>,
}

pub(super) fn backup(args: &BackupArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.read()?;
    make_private(&args.to)?;
    runtime()?.block_on(async {
        let store = folder.look().await?;
        let copied = store.back_up(&args.to.join("state")).await;
        store.close().await;
        copied.or_fail(Kind::Run, "")
    })?;
    for log in super::audit::logs_in(&folder.state()) {
        let name = log.file_name().unwrap_or_default();
        copy_file(&log, &args.to.join("state").join(name))?;
    }
    copy_file(&folder.config(), &args.to.join("server.toml"))?;
    for (from, name) in
        [(folder.identity(), "identity"), (folder.operator(), "operator"), (folder.authority(), "authority")]
    {
        copy_tree(&from, &args.to.join(name))?;
    }
    let sums = sums_of(&args.to)?;
    let text: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    fs::write(args.to.join(SUMS), text).or_fail(Kind::Run, SUMS)?;
    let shown = args.to.display();
    global.format.say(
        || {
            format!(
                "{} files in {shown}, checked; {shown}/{SUMS} names them\nthe root's key ({ROOT_KEY}) is not among them: keep it elsewhere",
                sums.len()
            )
        },
        || json!({ "backup": args.to, "files": sums.len() }),
    );
    Ok(())
}

pub(super) fn restore(args: &RestoreArgs, global: &Global) -> Result<(), Failure> {
    check_sums(&args.backup)?;
    let state = args.backup.join("state");
    let populations = runtime()?.block_on(async {
        let store = Store::look(&state).await.or_fail(Kind::Configuration, "")?;
        let populations = store.populations().await.or_fail(Kind::Run, "");
        store.close().await;
        populations
    })?;
    if let (None, [first, ..]) = (args.lost_releases, populations.as_slice()) {
        let message = format!(
            "the backup keeps the privacy budget of `{first}` and does not know of releases that were made after it; say how many there \
             may have been, at most, with --lost-releases N, and they are charged. The old server's audit.jsonl and the sites' ledgers \
             tell; 0 only if no server has worked since the backup"
        );
        return Err(Failure::new(Kind::Refused, message));
    }
    make_private(&args.to)?;
    copy_tree(&args.backup, &args.to)?;
    fs::remove_file(args.to.join(SUMS)).or_fail(Kind::Run, SUMS)?;
    let lost = runtime()?.block_on(async {
        let store = Store::open(&args.to.join("state")).await.or_fail(Kind::Configuration, "")?;
        let lost = store.charge_lost(args.lost_releases.unwrap_or(0)).await;
        store.close().await;
        lost.or_fail(Kind::Run, "")
    })?;
    let shown = args.to.display();
    global.format.say(
        || format!("{shown} is as the backup was{}\nnext:\n  consortia server run {shown}", describe(&lost)),
        || {
            let charged = |one: &Lost| {
                json!({ "population": one.population, "charged": one.charged, "epsilon": one.epsilon, "epsilon_max": one.epsilon_max })
            };
            json!({ "folder": args.to, "charged": lost.iter().map(charged).collect::<Vec<_>>() })
        },
    );
    Ok(())
}

fn describe(lost: &[Lost]) -> String {
    if lost.is_empty() {
        return String::new();
    }
    let mut rows = vec![["population", "charged", "epsilon", "budget"].map(str::to_owned).to_vec()];
    rows.extend(lost.iter().map(|one| {
        let (epsilon, budget) = (format!("{:.4}", one.epsilon), one.epsilon_max.to_string());
        vec![one.population.clone(), one.charged.to_string(), epsilon, budget]
    }));
    format!(", and its budgets are charged for what it does not know of\n{}", table(&rows))
}

/// A new folder that only its owner may enter.
fn make_private(folder: &Path) -> Result<(), Failure> {
    if folder.exists() {
        let message = format!("{} exists; nothing was changed: name a folder to make", folder.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    fs::create_dir_all(folder).or_fail(Kind::Configuration, folder.display())?;
    #[cfg(unix)]
    {
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(folder, owner_only).or_fail(Kind::Configuration, folder.display())?;
    }
    Ok(())
}

/// Copies a folder with the permissions of its files. Links are left out, and so is the root's key.
fn copy_tree(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).or_fail(Kind::Run, to.display())?;
    for entry in fs::read_dir(from).or_fail(Kind::Run, from.display())? {
        let entry = entry.or_fail(Kind::Run, from.display())?;
        let (path, kind) = (entry.path(), entry.file_type().or_fail(Kind::Run, from.display())?);
        if kind.is_dir() {
            copy_tree(&path, &to.join(entry.file_name()))?;
        } else if kind.is_file() && entry.file_name() != ROOT_KEY {
            copy_file(&path, &to.join(entry.file_name()))?;
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
            } else if name != Path::new(SUMS) {
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
    let found = sums_of(backup)?;
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
