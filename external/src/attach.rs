//! A learner that somebody else starts: how it finds the agent, and how the agent knows it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use rand::rngs::OsRng;

use crate::channel::Stream;

/// Bytes of a socket's path, at most: what every Unix takes.
const PATH_MAX: usize = 100;
/// What a learner reads.
const FILE: &str = "attach.json";

/// Why no learner can attach.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; a learner that attaches needs a folder that the agent can write to")]
pub struct AttachError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Where a learner attaches.
#[derive(Debug)]
pub(crate) struct Attachment {
    file: PathBuf,
    address: String,
    listener: Listener,
    token: String,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AttachError + use<> {
    let path = path.to_owned();
    move |source| AttachError { path, source }
}

impl Attachment {
    /// Listens in `folder`, which is made if it is not there, and writes the file that says where.
    pub(crate) fn open(folder: &Path) -> Result<Self, AttachError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        let folder = folder.canonicalize().map_err(failed(folder))?;
        let socket = folder.join("socket");
        let (listener, address) = if socket.as_os_str().len() <= PATH_MAX {
            // Of an agent that was killed.
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&socket)(error)),
                _ => {}
            }
            let listener = UnixListener::bind(&socket).map_err(failed(&socket))?;
            // The folder may have been made by somebody else, who lets others look into it.
            fs::set_permissions(&socket, Permissions::from_mode(0o600)).map_err(failed(&socket))?;
            listener.set_nonblocking(true).map_err(failed(&socket))?;
            let address = format!("unix:{}", socket.display());
            (Listener::Unix(listener, socket), address)
        } else {
            // No socket has so long a name; the token keeps others out.
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed(&folder))?;
            listener.set_nonblocking(true).map_err(failed(&folder))?;
            let address = format!("tcp:{}", listener.local_addr().map_err(failed(&folder))?);
            (Listener::Tcp(listener), address)
        };
        let mut opened = Self { file: folder.join(FILE), address, listener, token: String::new() };
        opened.renew()?;
        Ok(opened)
    }

    /// The file that a learner reads.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Makes a new token and writes the file: a token is good for one learner.
    pub(crate) fn renew(&mut self) -> Result<(), AttachError> {
        let mut random = [0; 16];
        OsRng.try_fill_bytes(&mut random).map_err(|error| failed(&self.file)(io::Error::other(error)))?;
        self.token = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = serde_json::json!({ "address": self.address, "token": self.token }).to_string();
        let beside = self.file.with_extension("new");
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&beside, &self.file)
        };
        write().map_err(failed(&self.file))
    }

    /// Whether a learner that attaches has read the file.
    pub(crate) fn admits(&self, token: Option<&str>) -> bool {
        // The longer it takes to compare, the more of it was right: every byte is looked at.
        let given = token.unwrap_or_default().as_bytes();
        let differing =
            given.iter().zip(self.token.as_bytes()).fold(0, |all, (one, other)| all | (one ^ other));
        given.len() == self.token.len() && differing == 0
    }

    /// A learner that waits to be let in; `None` where there is none now.
    pub(crate) fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = match &self.listener {
            Listener::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
        if let Listener::Unix(_, socket) = &self.listener {
            let _ = fs::remove_file(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_in(file: &Path) -> String {
        let read: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        read["token"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_file_is_its_owners_alone_and_a_token_is_good_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut attachment = Attachment::open(&folder.path().join("learner")).unwrap();
        let file = attachment.file().to_owned();
        let first = token_in(&file);
        let socket = file.with_file_name("socket");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(first.len() == 32 && attachment.admits(Some(&first)));
        assert!(
            ![None, Some(""), Some(&first[1..]), Some(&first.replace(&first[..1], "x"))]
                .iter()
                .any(|wrong| attachment.admits(*wrong))
        );
        attachment.renew().unwrap();
        assert!(!attachment.admits(Some(&first)) && attachment.admits(Some(&token_in(&file))));
        drop(attachment);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_whose_name_no_socket_can_have_is_reached_by_loopback() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        let attachment = Attachment::open(&deep).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(attachment.file()).unwrap()).unwrap();
        let address = read["address"].as_str().unwrap().strip_prefix("tcp:").unwrap().to_owned();
        assert!(attachment.accept().unwrap().is_none());
        let _learner = std::net::TcpStream::connect(address).unwrap();
        while attachment.accept().unwrap().is_none() {}
    }
}
