//! `consortia server migrate`: the state of a stopped server from SQLite into PostgreSQL.

use std::path::PathBuf;

use clap::Args;
use privacy::counted;
use serde_json::json;
use server::net::Store;

use super::failure::{Failure, Kind, OrBlame, OrFail};
use super::folder::ServerFolder;
use super::global::Global;
use super::state::{machine, password_in, postgres};
use super::watch::runtime;

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// The server's folder; the server must be stopped.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The empty database, postgres://USER@HOST/NAME; `${NAME}` stands for an environment variable.
    #[arg(long, value_name = "URL")]
    to: String,
    /// A file whose first line is the password; by default it is taken from PGPASSWORD or the address.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(super) fn migrate(args: &MigrateArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    folder.refuse_backup()?;
    let password = args.password_file.as_deref().map(password_in).transpose();
    let password = password.or_fail(Kind::Configuration, "--password-file")?;
    let target = postgres(&args.to, password.as_deref(), &machine()).or_fail(Kind::Configuration, "--to")?;
    let done = runtime()?.block_on(Store::transfer(&folder.state(), &target));
    let done = done.or_blame()?;
    let rows: i64 = done.rows.iter().map(|(_, rows)| rows).sum();
    global.format.say(
        || {
            format!(
                "{} of {} are in {target}, {} replayed; the old file is {}\n\nnext: write into {}\n  \
                 [state]\n  database = \"{target}\"",
                counted(rows, "row"),
                counted(done.rows.len(), "table"),
                counted(done.ledgers.len(), "ledger"),
                done.kept.display(),
                folder.config().display()
            )
        },
        || {
            let tables: serde_json::Map<_, _> =
                done.rows.iter().map(|(table, rows)| (table.clone(), json!(rows))).collect();
            json!({ "database": target.to_string(), "rows": tables, "ledgers": done.ledgers, "kept": done.kept })
        },
    );
    Ok(())
}
