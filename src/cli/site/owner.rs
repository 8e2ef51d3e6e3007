//! Whose books a site's state folder holds: the site's name, and the root of its federation.
//!
//! A server knows a site's ledger by the site's name. Books under another site's identity would charge the wrong budget, and lock the other
//! site out, so that no command opens them. The file is written when books are first opened with an identity; a folder of a release before
//! gets it then.

use std::path::{Path, PathBuf};

use command::results::{Existing, write_whole};
use privacy::chain::Digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use server::net::site_of_pem;

use super::super::failure::{Failure, Kind, OrFail};
use super::super::folder::SiteFile;
use super::begun;

/// The version of the file.
const VERSION: u32 = 1;

/// The file's name in the state folder.
pub(super) const NAME: &str = "owner.json";

/// Whose books they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    version: u32,
    /// The name in the site's certificate.
    site: String,
    /// SHA-256 of the federation's root certificate (DER).
    federation: Digest,
}

impl Owner {
    /// Of the identity in this folder; `None` where there is none that can be read, as after `site leave`: who uses it says so.
    fn of_identity(folder: &Path) -> Option<Self> {
        let site = site_of_pem(&std::fs::read(folder.join("cert.pem")).ok()?).ok()?.to_string();
        let root = CertificateDer::from_pem_file(folder.join("ca.pem")).ok()?;
        Some(Self { version: VERSION, site, federation: Digest::of(&root) })
    }

    fn read(path: &Path) -> Result<Option<Self>, String> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| error.to_string())?,
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(owner) if owner.version == VERSION => Ok(Some(owner)),
            Ok(owner) => Err(format!("version {} is unknown, this code reads {VERSION}", owner.version)),
            Err(error) => Err(format!("it was changed or cut ({error})")),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "site `{}` of the federation with root {}", self.site, self.federation)
    }
}

fn path_of(file: &SiteFile) -> PathBuf {
    file.state.join(NAME)
}

/// Why the books are not those of the site's identity, and what to do; `None` where they are, or where nobody has used them yet.
pub(in crate::cli) fn fault(file: &SiteFile) -> Option<String> {
    let (path, own) = (path_of(file), Owner::of_identity(&file.identity)?);
    let shown = path.display();
    match Owner::read(&path) {
        Ok(None) => None,
        Ok(Some(owner)) if owner == own => None,
        Ok(Some(owner)) => Some(format!(
            "{} holds the books of {owner}, and {} is the identity of {own}: under it they would charge the wrong budget, and lock the other site out \
             at its server. Set `identity` and `state` in {} so that both are of one site. Where the same records go on under this identity, what they \
             have spent stays spent: remove {shown}, and it is written anew (docs/operations.md, Its books)",
            file.state.display(),
            file.identity.display(),
            file.path.display()
        )),
        Err(fault) => Some(format!(
            "{shown}: {fault}; it says whose books these are. Remove it if {} and {} belong to one site, and it is written anew",
            file.identity.display(),
            file.state.display()
        )),
    }
}

/// Refuses books that are another site's, or lost.
pub(in crate::cli) fn refuse_books(file: &SiteFile, kind: Kind) -> Result<(), Failure> {
    match fault(file) {
        Some(fault) => Err(Failure::new(kind, fault)),
        None => begun::refuse_lost_books(file, kind),
    }
}

/// Remembers whose books they are.
pub(super) fn note(file: &SiteFile) -> Result<(), Failure> {
    let path = path_of(file);
    let Some(own) = Owner::of_identity(&file.identity).filter(|_| !path.exists()) else { return Ok(()) };
    let text = format!("{}\n", serde_json::to_string(&own).or_fail(Kind::Defect, NAME)?);
    write_whole(&path, Existing::Replaced, |path| std::fs::write(path, text))
        .or_fail(Kind::Configuration, path.display())
}
