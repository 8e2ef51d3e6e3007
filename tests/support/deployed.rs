//! The federation of the three sites of `trio.rs`, made by the commands and joined by agents in this process.

use std::path::Path;

use crate::member::Member;
use crate::processes::command;
use crate::trio;

/// Makes a federation in `folder`, with the bundle of each site. It is reached as `localhost`, at whatever port its server says.
pub(crate) fn federation(folder: &Path) {
    let shown = folder.to_str().unwrap();
    command(&["server", "init", shown, "--name", "localhost", "--listen", "127.0.0.1:0"]);
    for (site, _) in trio::sites() {
        command(&["server", "issue", site.as_str(), "--dir", shown]);
    }
}

/// The three sites, with the bundles in `folder`, greeted by a server at one of these addresses, with commas between them.
pub(crate) async fn members(folder: &Path, addresses: &str) -> Vec<Member> {
    let mut members = Vec::new();
    for (name, data) in trio::sites() {
        let identity = folder.join("sites").join(name.as_str());
        members.push(Member::join(addresses, &identity, name.as_str(), trio::learner(data)).await);
    }
    members
}
