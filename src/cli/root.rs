//! The root's key: where it is kept, and what opens it. Few commands need it, and a server that runs never does.
//!
//! A passphrase comes from a file, from `CONSORTIA_ROOT_PASSPHRASE`, or from a terminal, where it is not shown. It is no argument:
//! arguments can be read by everybody on the machine.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use server::net::{Authority, AuthorityError, Passphrase};

use super::failure::{Failure, Kind, OrFail};
use super::folder::ServerFolder;

/// The environment variable that may hold the passphrase.
const VARIABLE: &str = "CONSORTIA_ROOT_PASSPHRASE";

/// Of a command that makes the root's key.
#[derive(Debug, Default, Args)]
pub(super) struct SealArgs {
    /// Encrypt the root's key with a passphrase, read from the terminal or from CONSORTIA_ROOT_PASSPHRASE.
    #[arg(long)]
    passphrase: bool,
    /// Encrypt the root's key with the passphrase in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
    passphrase_file: Option<PathBuf>,
}

/// Of a command that needs the root's key.
#[derive(Debug, Default, Args)]
pub(super) struct RootArgs {
    /// The root's key, where it is no longer `authority/ca-key.pem` in the server's folder.
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// A file with the passphrase of the encrypted root key; by default it is read from CONSORTIA_ROOT_PASSPHRASE or the terminal.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl SealArgs {
    /// What the new key is to be encrypted under, if it is.
    pub(super) fn passphrase(&self) -> Result<Option<Passphrase>, Failure> {
        if let Some(known) = told(self.passphrase_file.as_deref())? {
            return Ok(Some(known));
        }
        if !self.passphrase {
            return Ok(None);
        }
        let first = typed("a passphrase for the root's key: ")?;
        if first != typed("the same once more: ")? {
            return Err(Failure::new(Kind::Configuration, "the two passphrases differ; nothing was made"));
        }
        Ok(Some(first))
    }
}

impl RootArgs {
    /// The federation's root, with its key.
    pub(super) fn open(&self, folder: &ServerFolder) -> Result<Authority, Failure> {
        let authority = folder.authority();
        let key = self.root_key.clone().unwrap_or_else(|| authority.join("ca-key.pem"));
        if !key.exists() {
            let message = format!(
                "{}: this command needs the root's key and it is not there; give --root-key FILE from where it is kept",
                key.display()
            );
            return Err(Failure::new(Kind::Configuration, message));
        }
        let passphrase = match Authority::is_sealed(&key).or_fail(Kind::Configuration, "")? {
            false => None,
            true => match told(self.passphrase_file.as_deref())? {
                None if std::io::stdin().is_terminal() => Some(typed("the passphrase of the root's key: ")?),
                known => known,
            },
        };
        Authority::open_sealed(&authority, &key, passphrase.as_ref()).map_err(|error| match error {
            AuthorityError::Sealed(_) => Failure::new(
                Kind::Configuration,
                format!("{error}: --passphrase-file FILE, or {VARIABLE}, or a terminal"),
            ),
            error => Failure::new(Kind::Configuration, error),
        })
    }
}

/// The passphrase in a file or in the environment.
fn told(file: Option<&Path>) -> Result<Option<Passphrase>, Failure> {
    match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).or_fail(Kind::Configuration, path.display())?;
            Ok(Some(Passphrase::new(text)))
        }
        None => Ok(std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()).map(Passphrase::new)),
    }
}

fn typed(question: &str) -> Result<Passphrase, Failure> {
    if !std::io::stdin().is_terminal() {
        let message = format!(
            "there is no terminal to ask for a passphrase; give --passphrase-file FILE, or {VARIABLE}"
        );
        return Err(Failure::new(Kind::Configuration, message));
    }
    rpassword::prompt_password(question).map(Passphrase::new).or_fail(Kind::Configuration, "the terminal")
}
