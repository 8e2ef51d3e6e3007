//! The next certificate of an identity, put into the folder of the one before. Whatever else lies in that folder stays as it is.
//!
//! What is new is made in `renewed.part` within the folder, which is called `renewed` once it is whole; then its key and its certificate
//! take the places of the old ones. A crash leaves one of these steps to be done, and [`settle_renewal`] does it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::connection::{Link, SERVER_NAME, Transport};
use super::enrol::{EnrolError, exchange, read, request, root_sha256, unreachable, write_new};
use super::identity::Identity;
use protocol::wire::ENROL_ALPN;

const PART: &str = "renewed.part";
const WHOLE: &str = "renewed";
/// What is exchanged, in this order: a program that looks meanwhile sees the certificate change last.
const EXCHANGED: [&str; 2] = ["key.pem", "cert.pem"];
/// What such a folder may hold.
const FILES: [&str; 3] = ["key.pem", "cert.pem", "ca.pem"];

/// Gets the next certificate for the site whose identity is in `folder`, with a new key, from the first of `servers` (`host:port`)
/// that can be reached.
///
/// # Errors
/// [`EnrolError`]; the old identity stands then.
pub async fn renew(folder: &Path, servers: &[String], software: &str) -> Result<Identity, EnrolError> {
    settle_renewal(folder)?;
    let old = Identity::load_for(folder, &[ENROL_ALPN])?;
    let kept = read(&folder.join("ca.pem"))?;
    let next = begin_renewal(folder)?;
    let request = request(&next, None, software)?;
    let link = Link::open_any(servers, SERVER_NAME, Transport::Auto, old.tls()).await;
    let link = link.map_err(unreachable)?;
    let answer = exchange(&link, &request).await;
    link.leave().await;
    let (chain, root) = answer?.ok_or(EnrolError::Answer("a renewal needs nobody's approval"))?;
    if root_sha256(&root)? != root_sha256(&kept)? {
        return Err(EnrolError::Answer("its root certificate is another one"));
    }
    write_new(&next.join("ca.pem"), kept.as_bytes(), 0o644)?;
    write_new(&next.join("cert.pem"), chain.as_bytes(), 0o644)?;
    Identity::load(&next)?;
    finish_renewal(folder)?;
    Ok(Identity::load(folder)?)
}

/// Where the next identity of `folder` is to be made: a folder that is not there yet. What a try before has left is removed; what it
/// asked for may have been given, and is worth nothing without its answer.
///
/// # Errors
/// [`EnrolError::File`].
pub fn begin_renewal(folder: &Path) -> Result<PathBuf, EnrolError> {
    let part = folder.join(PART);
    remove(&part).map_err(failed(&part))?;
    Ok(part)
}

/// Puts the identity that was made in the folder of [`begin_renewal`] into the place of the one before.
///
/// # Errors
/// [`EnrolError::File`].
pub fn finish_renewal(folder: &Path) -> Result<(), EnrolError> {
    let (part, whole) = (folder.join(PART), folder.join(WHOLE));
    sync(&part)
        .and_then(|()| fs::rename(&part, &whole))
        .and_then(|()| sync(folder))
        .map_err(failed(&part))?;
    settle_renewal(folder)
}

/// Ends a renewal that a crash broke off. To be called before an identity is loaded; does nothing where nothing is to be done.
///
/// # Errors
/// [`EnrolError::File`].
pub fn settle_renewal(folder: &Path) -> Result<(), EnrolError> {
    settle_earlier(folder).map_err(failed(folder))?;
    let whole = folder.join(WHOLE);
    if !whole.is_dir() {
        return Ok(());
    }
    let exchanged =
        EXCHANGED.into_iter().try_for_each(|name| match fs::rename(whole.join(name), folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync(folder),
        });
    exchanged.and_then(|()| remove(&whole)).map_err(failed(&whole))
}

/// Releases before this one exchanged the whole folder, and a crash between their two last steps left none. What lay in it beside the
/// identity comes back from the old one.
fn settle_earlier(folder: &Path) -> io::Result<()> {
    let (next, old) = (beside(folder, "new"), beside(folder, "old"));
    if folder.exists() || !old.is_dir() || !next.join("cert.pem").exists() {
        return Ok(());
    }
    fs::rename(&next, folder)?;
    for entry in fs::read_dir(&old)? {
        let entry = entry?;
        let to = folder.join(entry.file_name());
        if !to.exists() {
            fs::rename(entry.path(), to)?;
        }
    }
    remove(&old)
}

/// Removes a folder that was made for an identity, and nothing that somebody else has put there.
fn remove(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for name in FILES {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(folder)
}

/// The folder's name with an ending.
fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{ending}"));
    folder.with_file_name(name)
}

/// Makes the names in a folder durable, where the system can.
fn sync(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(folder)?.sync_all() } else { Ok(()) }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> EnrolError {
    let path = path.to_owned();
    move |source| EnrolError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with an identity and other things, and what it holds.
    fn folder(dir: &Path) -> PathBuf {
        let folder = dir.join("north");
        fs::create_dir_all(folder.join("state")).unwrap();
        for name in ["key.pem", "cert.pem", "ca.pem", "admin.token", "state/ledger.jsonl"] {
            fs::write(folder.join(name), format!("old {name}")).unwrap();
        }
        folder
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    fn make(part: &Path) {
        fs::create_dir(part).unwrap();
        FILES.iter().for_each(|name| fs::write(part.join(name), format!("new {name}")).unwrap());
    }

    #[test]
    fn a_renewal_exchanges_key_and_certificate_and_nothing_else_whenever_it_is_cut_off() {
        // How many of its steps a crash lets it do: none, the name, the key, all but the last.
        for steps in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let folder = folder(dir.path());
            let part = begin_renewal(&folder).unwrap();
            make(&part);
            if steps > 0 {
                fs::rename(&part, folder.join(WHOLE)).unwrap();
            }
            for name in EXCHANGED.iter().take(steps.max(1) - 1) {
                fs::rename(folder.join(WHOLE).join(name), folder.join(name)).unwrap();
            }
            settle_renewal(&folder).unwrap();
            let kind = if steps > 0 { "new" } else { "old" };
            assert_eq!(read(&folder, "key.pem"), format!("{kind} key.pem"), "{steps}");
            assert_eq!(read(&folder, "cert.pem"), format!("{kind} cert.pem"), "{steps}");
            make(&begin_renewal(&folder).unwrap());
            finish_renewal(&folder).unwrap();
            assert_eq!(read(&folder, "cert.pem"), "new cert.pem");
            for name in ["ca.pem", "admin.token", "state/ledger.jsonl"] {
                assert_eq!(read(&folder, name), format!("old {name}"), "{steps}");
            }
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 5, "something is left behind");
        }
    }

    #[test]
    fn what_an_earlier_release_left_between_two_steps_is_put_together_and_other_folders_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        // Somebody's own copy.
        fs::create_dir(dir.path().join("north.old")).unwrap();
        fs::write(dir.path().join("north.old/mine"), "mine").unwrap();
        settle_renewal(&folder).unwrap();
        assert_eq!(read(dir.path(), "north.old/mine"), "mine");
        fs::remove_dir_all(dir.path().join("north.old")).unwrap();
        fs::rename(&folder, dir.path().join("north.old")).unwrap();
        make(&dir.path().join("north.new"));
        settle_renewal(&folder).unwrap();
        assert_eq!(read(&folder, "key.pem"), "new key.pem");
        assert_eq!(read(&folder, "admin.token"), "old admin.token");
        assert_eq!(read(&folder, "state/ledger.jsonl"), "old state/ledger.jsonl");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
