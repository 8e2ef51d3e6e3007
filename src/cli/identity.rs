//! The identity of a site, its key and certificates, and whether the site has left the federation with it.

use std::path::{Path, PathBuf};

use ::client::{AuditEvent, AuditRecord};
use privacy::chain::segments::visit_segment;

use super::failure::{Failure, Kind};
use super::folder::SiteFile;

/// The files of an identity: the key goes first, since it is what must go.
pub(super) const FILES: [&str; 3] = ["key.pem", "cert.pem", "ca.pem"];

/// Refuses to go on with a site that has left, or has never joined: there is no identity.
pub(super) fn refuse_left(file: &SiteFile) -> Result<(), Failure> {
    if has_identity(file) {
        return Ok(());
    }
    let (identity, state) = (file.identity.display(), file.state.display());
    let message = if has_left(file) {
        format!(
            "this site has left: its key and certificates were removed from {identity}. To come back, ask the operator for a new invite and take it in another \
             folder, `consortia site join INVITE --dir FOLDER`. What these records have spent stays in {state}: set `state` of the new site.toml to that \
             folder, so that it stays spent"
        )
    } else {
        format!(
            "{identity}: there is no key and no certificate. Set `identity` in {}, or take an invite, `consortia site join INVITE --dir FOLDER`",
            file.path.display()
        )
    };
    Err(Failure::new(Kind::Connection, message))
}

/// Whether this site has left: its log says so, and no identity came back.
pub(super) fn has_left(file: &SiteFile) -> bool {
    let mut is_left = false;
    // A log that cannot be read says nothing; whoever starts the site hears of it.
    let _ = visit_segment(&file.state.join("audit.jsonl"), &mut |link| {
        is_left |=
            link.read::<AuditRecord>().is_ok_and(|record| matches!(record.event, AuditEvent::Left { .. }));
    });
    is_left && !has_identity(file)
}

fn has_identity(file: &SiteFile) -> bool {
    folders(&file.identity).iter().any(|folder| FILES.iter().any(|name| folder.join(name).exists()))
}

/// The identity, and what a renewal may have left beside it.
pub(super) fn folders(identity: &Path) -> Vec<PathBuf> {
    let beside = |ending: &str| {
        let mut name = identity.file_name().unwrap_or_default().to_owned();
        name.push(ending);
        identity.with_file_name(name)
    };
    vec![beside(".new"), beside(".old"), identity.to_owned()]
}
