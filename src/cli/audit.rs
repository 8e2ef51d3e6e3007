//! `consortia audit verify`: whether what was written down is still what was written down, and whether the books agree.
//!
//! A chain shows that records were changed, removed or exchanged. It does not show that its end was cut off whole; other books do. A
//! server's database, ledgers, audit log and models are compared with one another, and a site's ledger with itself and with a
//! statement of its server. Of all of them at once an older copy can be put back: note the heads somewhere else from time to time.
//!
//! Closed segments of an audit log may have been moved away. What is not here was not verified: that is no damage, and no success either.

mod books;
mod log;

use std::path::{Path, PathBuf};

use ::client::net::{BooksError, check_books};
use clap::Args;
use privacy::chain::segments::logs_in;
use privacy::chain::{Digest, Link, read_lines};
use privacy::counted;
use serde_json::{Value, json};
use server::PrivacyStatement;

use super::failure::{Failure, Kind, OrFail};
use super::folder::{ServerFolder, SiteFile};
use super::global::Global;
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
    /// A folder to which closed segments of the audit log were moved; may be repeated. If several logs have the same name, give
    /// only one of them.
    #[arg(long = "archive", value_name = "DIR")]
    archives: Vec<PathBuf>,
    /// Also print every record.
    #[arg(long)]
    records: bool,
}

/// A chain in order.
struct Verified {
    path: PathBuf,
    links: Vec<Link>,
    head: Digest,
}

/// What was found, over all paths.
#[derive(Default)]
struct Findings {
    damaged: Vec<String>,
    /// What was not there to be looked at.
    absent: Vec<String>,
    /// Names of the logs that were read.
    logs: Vec<std::ffi::OsString>,
    /// Whether a site's ledger was compared with a statement.
    compared: bool,
}

pub(super) fn verify(args: &VerifyArgs, global: &Global) -> Result<(), Failure> {
    if let Some(path) = args.archives.iter().find(|path| !path.is_dir()) {
        let message = format!("--archive {}: there is no such folder", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    let mut found = Findings::default();
    let statement = args.statement.as_deref().map(books::statement).transpose()?;
    for path in &args.paths {
        found.damaged.extend(compare_site(path)?);
        if ServerFolder(path.clone()).config().exists() {
            match books::server(&ServerFolder(path.clone()), &args.archives)? {
                Ok(agreed) => {
                    global.format.say(|| books::describe(path, &agreed), || books::object(path, &agreed))
                }
                Err(fault) => found.damaged.push(fault),
            }
        }
        for file in chains(path)? {
            verify_file(&file, path, statement.as_ref(), args, global, &mut found)?;
        }
    }
    if statement.is_some() && !found.compared {
        let message = "--statement is compared with a site's ledger, and none of these paths has one";
        return Err(Failure::new(Kind::Configuration, message));
    }
    if found.damaged.is_empty() && found.absent.is_empty() {
        return Ok(());
    }
    let kind = if found.damaged.is_empty() { Kind::Incomplete } else { Kind::Run };
    found.damaged.dedup();
    found.damaged.extend(found.absent);
    Err(Failure::new(kind, found.damaged.join("\n")))
}

/// Verifies one file, and of an audit log all of its segments.
fn verify_file(
    file: &Path,
    path: &Path,
    statement: Option<&PrivacyStatement>,
    args: &VerifyArgs,
    global: &Global,
    found: &mut Findings,
) -> Result<(), Failure> {
    let kind = FileKind::of(file);
    if log::is_closed(file, kind) {
        return log::verify_alone(file, args, global, found);
    }
    if log::is_log(file, kind) {
        return log::verify(file, args, global, found);
    }
    // A file that was named, and is something else, is a mistake; one that stands where a book belongs is damage.
    if let Some(kind) = kind.filter(|kind| file == path && !kind.is_chain() && *kind != FileKind::Empty) {
        return Err(kind.is_not(file, "an audit log or a ledger"));
    }
    match read(file)? {
        Ok(verified) => {
            match kind {
                Some(FileKind::SiteLedger) => {
                    found.compared = true;
                    found.damaged.extend(books::site(file, statement)?);
                }
                Some(FileKind::RunLedger) => found.damaged.extend(books::run(&verified)),
                _ => {}
            }
            global.format.say(|| describe(&verified, args.records), || object(&verified, args.records));
        }
        Err(fault) => found.damaged.push(format!("{}: {fault}", file.display())),
    }
    Ok(())
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
        // Damage of one book is named below, line by line.
        Ok(_) | Err(BooksError::Ledger { .. } | BooksError::Audit { .. } | BooksError::Segments(_)) => {
            Ok(None)
        }
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
    let mut found: Vec<PathBuf> = ledgers.collect();
    for folder in &folders {
        found.extend(logs_in(folder).or_fail(Kind::Configuration, folder.display())?);
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = format!("{}: there is no audit.jsonl or {LEDGER} here; name the file", path.display());
        return Err(Failure::new(Kind::Configuration, message));
    }
    Ok(found)
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
            "line {line}: it has no end ({}); a crash left it or somebody cut it, and the next start removes it",
            counted(bytes, "byte")
        );
        return Ok(Err(fault));
    }
    Ok(Ok(Verified { path: path.to_path_buf(), head: lines.chain.head(), links: lines.links }))
}

/// Every record, a line each, where they are wanted.
fn told(links: &[Link], records: bool) -> String {
    let links = if records { links } else { &[] };
    links.iter().map(|link| format!("{:>6}  {}\n", link.sequence, link.record.get())).collect()
}

/// The records, as JSON.
fn entries(links: &[Link]) -> impl Iterator<Item = Value> {
    links.iter().map(|link| serde_json::from_str(link.record.get()).unwrap_or_default())
}

fn describe(verified: &Verified, records: bool) -> String {
    let Verified { path, links, head } = verified;
    told(links, records)
        + &format!("{}: {} in order, head {head}", path.display(), counted(links.len(), "record"))
}

fn object(verified: &Verified, records: bool) -> Value {
    let Verified { path, links, head } = verified;
    let mut object = json!({ "file": path, "records": links.len(), "head": head });
    if records {
        object["entries"] = entries(links).collect();
    }
    object
}
