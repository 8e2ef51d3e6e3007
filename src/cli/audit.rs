//! `consortia audit verify`: whether what was written down is still what was written down, and whether the books agree.
//!
//! A chain shows that records were changed, removed or exchanged. It does not show that its end was cut off whole; other books do. A
//! server's database, ledgers, audit log and models are compared with one another, and a site's ledger with itself and with a
//! statement of its server. Of all of them at once an older copy can be put back: note the heads somewhere else from time to time.

mod books;

use std::path::{Path, PathBuf};

use ::client::net::{BooksError, check_books};
use clap::Args;
use privacy::chain::{Digest, Link, read_lines};
use serde_json::{Value, json};

use super::Global;
use super::failure::{Failure, Kind, OrFail};
use super::folder::{ServerFolder, SiteFile};
use super::kinds::FileKind;
use super::site::begun::with_path;
use super::site::owner::refuse_books;

/// A site's own ledger.
const LEDGER: &str = "ledger.jsonl";

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Audit logs and ledgers, or folders of sites, servers and simulations that hold them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// A `privacy_statement.json` of the server's newest model, to compare the ledgers of sites with.
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// Print every record, too.
    #[arg(long)]
    records: bool,
}

/// A chain in order.
struct Verified {
    path: PathBuf,
    links: Vec<Link>,
    head: Digest,
}

pub(super) fn verify(args: &VerifyArgs, global: &Global) -> Result<(), Failure> {
    let mut damaged = Vec::new();
    let statement = args.statement.as_deref().map(books::statement).transpose()?;
    let mut compared = false;
    for path in &args.paths {
        damaged.extend(compare_site(path)?);
        if ServerFolder(path.clone()).config().exists() {
            match books::server(&ServerFolder(path.clone()))? {
                Ok(agreed) => {
                    global.format.say(|| books::describe(path, &agreed), || books::object(path, &agreed))
                }
                Err(fault) => damaged.push(fault),
            }
        }
        for file in chains(path)? {
            // A file that was named, and is something else, is a mistake; one that stands where a book belongs is damage.
            let kind = FileKind::of(&file);
            if let Some(kind) =
                kind.filter(|kind| file == *path && !kind.is_chain() && *kind != FileKind::Empty)
            {
                return Err(kind.is_not(&file, "an audit log or a ledger"));
            }
            match read(&file)? {
                Ok(verified) => {
                    match kind {
                        Some(FileKind::SiteLedger) => {
                            compared = true;
                            damaged.extend(books::site(&file, statement.as_ref())?);
                        }
                        Some(FileKind::RunLedger) => damaged.extend(books::run(&verified)),
                        _ => {}
                    }
                    global
                        .format
                        .say(|| describe(&verified, args.records), || object(&verified, args.records));
                }
                Err(fault) => damaged.push(format!("{}: {fault}", file.display())),
            }
        }
    }
    if statement.is_some() && !compared {
        let message = "--statement is compared with a site's ledger, and none of these paths has one";
        return Err(Failure::new(Kind::Configuration, message));
    }
    if damaged.is_empty() { Ok(()) } else { Err(Failure::new(Kind::Run, damaged.join("\n"))) }
}

/// What is wrong between the books of a site, where the path is a site's folder or its state.
fn compare_site(path: &Path) -> Result<Option<String>, Failure> {
    let site = path.join("site.toml");
    let mut site_file = None;
    let state = if site.exists() {
        let file = SiteFile::read(&site)?;
        refuse_books(&file, Kind::Run)?;
        site_file.insert(file).state.clone()
    } else if ["heads.json", LEDGER].iter().any(|name| path.join(name).exists()) {
        path.to_path_buf()
    } else {
        return Ok(None);
    };
    match check_books(&state) {
        // Damage of one file is named below, line by line.
        Ok(_) | Err(BooksError::Ledger { .. } | BooksError::Audit { .. }) => Ok(None),
        Err(fault) => {
            let fault = fault.to_string();
            Ok(Some(site_file.map_or_else(|| fault.clone(), |file| with_path(&fault, &file))))
        }
    }
}

/// The files that a path stands for.
fn chains(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let site = path.join("site.toml");
    let mut folders = vec![path.to_path_buf(), path.join("state")];
    if site.exists() {
        folders.push(SiteFile::read(&site)?.state);
    }
    let ledgers = folders.iter().map(|folder| folder.join(LEDGER)).filter(|file| file.exists());
    let mut found: Vec<PathBuf> = folders.iter().flat_map(|folder| logs_in(folder)).chain(ledgers).collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = format!("{}: there is no audit.jsonl or {LEDGER} here; name the file", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    Ok(found)
}

/// The audit logs in a folder: one, or one of each server that takes turns on it.
pub(super) fn logs_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == "audit.jsonl" || name.starts_with("audit-") && name.ends_with(".jsonl")
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// The chain in a file, or what is wrong with it.
fn read(path: &Path) -> Result<Result<Verified, String>, Failure> {
    let text = std::fs::read(path).or_fail(Kind::Configuration, path.display())?;
    let lines = match read_lines(&text) {
        Ok(lines) => lines,
        Err(damage) => return Ok(Err(damage.to_string())),
    };
    if lines.torn > 0 {
        let (line, bytes) = (lines.links.len() + 1, lines.torn);
        let fault = format!(
            "line {line}: it has no end ({bytes} bytes); a crash left it or somebody cut it, and the next start removes it"
        );
        return Ok(Err(fault));
    }
    Ok(Ok(Verified { path: path.to_path_buf(), head: lines.chain.head(), links: lines.links }))
}

fn describe(verified: &Verified, records: bool) -> String {
    let Verified { path, links, head } = verified;
    let mut text = String::new();
    if records {
        for link in links {
            text.push_str(&format!("{:>6}  {}\n", link.sequence, link.record.get()));
        }
    }
    text + &format!("{}: {} records in order, head {head}", path.display(), links.len())
}

fn object(verified: &Verified, records: bool) -> Value {
    let Verified { path, links, head } = verified;
    let mut object = json!({ "file": path, "records": links.len(), "head": head });
    if records {
        let records: Vec<Value> =
            links.iter().map(|link| serde_json::from_str(link.record.get()).unwrap_or_default()).collect();
        object["entries"] = Value::Array(records);
    }
    object
}
