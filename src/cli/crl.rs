//! `consortia server crl`: the certificates that are void, signed, for those who check them without asking this server.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use privacy::counted;
use serde_json::json;
use server::net::{Issuing, RevocationList};

use super::failure::{Failure, Kind, OrBlame, OrFail};
use super::folder::ServerFolder;
use super::global::Global;
use super::modes;
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct CrlArgs {
    /// The server's folder; the server may be running.
    #[arg(long = "dir", value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The file to write, replaced atomically; by default the list goes to stdout.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn crl(args: &CrlArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let database = folder.read_to_work()?.database(&folder, None)?;
    let issuing = Issuing::open(&folder.authority()).or_fail(Kind::Configuration, "")?;
    let list =
        runtime()?.block_on(RevocationList::read(&folder.state(), &database, &issuing, SystemTime::now()));
    let RevocationList { pem, entries, .. } = list.or_blame()?;
    if let Some(path) = &args.output {
        let mut beside = path.clone().into_os_string();
        beside.push(".new");
        let written = std::fs::write(&beside, &pem)
            // A proxy reads it under another name.
            .and_then(|()| modes::show(beside.as_ref()))
            .and_then(|()| std::fs::rename(&beside, path));
        written.or_fail(Kind::Run, path.display())?;
    }
    global.format.say(
        || match &args.output {
            Some(path) => {
                format!("{} in {}; good for 7 days", counted(entries, "revoked certificate"), path.display())
            }
            None => pem.trim_end().to_owned(),
        },
        || match &args.output {
            Some(path) => json!({ "file": path, "revoked": entries }),
            None => json!({ "crl": pem, "revoked": entries }),
        },
    );
    Ok(())
}
