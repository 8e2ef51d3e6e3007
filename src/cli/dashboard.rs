//! `consortia server dashboard`: where the page is, with the token that opens it.
//!
//! It opens no browser: what it prints is for whoever asked. The token stands behind `#`, which browsers send to nobody.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use server::net::AdminToken;

use super::failure::{Failure, Kind, OrFail};
use super::folder::ServerFolder;
use super::global::Global;

#[derive(Debug, Args)]
pub(super) struct DashboardArgs {
    /// The server's folder.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The address of the admin port, if the server was started with another one than in `server.toml`.
    #[arg(long = "address", value_name = "HOST:PORT")]
    address: Option<SocketAddr>,
}

pub(super) fn dashboard(args: &DashboardArgs, global: &Global) -> Result<(), Failure> {
    let folder = ServerFolder(args.folder.clone());
    let file = folder.read_to_work()?;
    let shown = folder.config().display().to_string();
    let wrong = |message: &str| Failure::new(Kind::Configuration, format!("{shown}: {message}"));
    let admin = file.admin.ok_or_else(|| {
        wrong("there is no [admin] table, so the server has no admin port; add one with listen = \"127.0.0.1:4434\"")
    })?;
    let address = args.address.unwrap_or(admin.listen);
    if address.port() == 0 {
        return Err(wrong(
            "the admin port is a free one; `server run` says which: give it as --address HOST:PORT",
        ));
    }
    let token = AdminToken::read_or_make(&folder.admin_token()).or_fail(Kind::Configuration, "")?;
    let url = format!("http://{}/#token={}", reachable(address), token.reveal());
    global.format.say(|| url.clone(), || json!({ "url": url }));
    Ok(())
}

/// An address that a browser on this machine can open.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    if address.ip().is_unspecified() { SocketAddr::new(loopback, address.port()) } else { address }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_everywhere_is_opened_on_loopback() {
        let open = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(open("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(open("[::]:1"), "[::1]:1");
        assert_eq!(open("10.0.0.7:1"), "10.0.0.7:1");
    }
}
