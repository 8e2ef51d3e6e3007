//! A federation for tests, in one process over real QUIC: its authority, a server on a free port, honest sites.
//!
//! Every wait has an end and says what it waited for. Nothing here knows of attackers or of processes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use client::net::OperatorClient;
use consortia::Room;
use methods::Registry;
use protocol::wire::{AdminReply, AdminRequest, RunSummary};
use protocol::{ClientId, Learner, RunId};
use server::net::{Authority, Limits, SERVER_NAME, Server, ServerConfig};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::member::{Member, PATIENCE};

/// Certificates and folders, removed at the end of a test.
pub(crate) struct Federation {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
}

impl Federation {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("authority"), SystemTime::now()).unwrap();
        let server = authority.issue_server(&[], SystemTime::now()).unwrap();
        server.write_identity(&dir.path().join("identity")).unwrap();
        let operator = authority.issue_operator("ada", SystemTime::now()).unwrap();
        operator.write_identity(&dir.path().join("operator")).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn serve(&self, limits: Limits) -> Server {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (state, identity) = (self.folder("state"), self.folder("identity"));
        let config = ServerConfig { limits, ..ServerConfig::new(state, listen, identity) };
        Server::start(config, Arc::new(Room::new().with_methods(Registry::standard().server().clone())))
            .await
            .unwrap()
    }

    /// A folder with a fresh certificate for `site`.
    pub(crate) fn issue(&self, site: &str) -> PathBuf {
        let folder = self.folder("sites").join(site);
        let identity = self.authority.issue_site(&ClientId::new(site).unwrap(), SystemTime::now()).unwrap();
        identity.write_identity(&folder).unwrap();
        folder
    }

    /// An honest site that the server has greeted.
    pub(crate) async fn join(&self, server: &Server, site: &str, learner: Box<dyn Learner>) -> Member {
        Member::join(&server.local_addr().to_string(), &self.issue(site), site, learner).await
    }

    pub(crate) async fn operator(&self, server: &Server) -> Operator {
        let identity = client::net::Identity::load(&self.folder("operator")).unwrap();
        let address = server.local_addr().to_string();
        Operator(OperatorClient::connect(&address, SERVER_NAME, &identity).await.unwrap())
    }
}

/// An operator.
pub(crate) struct Operator(OperatorClient);

impl Operator {
    #[allow(dead_code, reason = "not every test asks for other things")]
    pub(crate) async fn ask(&self, request: &AdminRequest) -> AdminReply {
        self.0.ask(request).await.unwrap()
    }

    pub(crate) async fn submit(&self, plan: &str, seed: u64) -> RunId {
        let request = AdminRequest::Submit { plan_toml: plan.to_owned(), seed: Some(seed) };
        match self.0.ask(&request).await.unwrap() {
            AdminReply::Submitted { run } => run,
            other => panic!("the plan was not taken: {other:?}"),
        }
    }

    /// The run's last summary, once it has ended.
    pub(crate) async fn follow(&self, run: RunId) -> RunSummary {
        let mut last = String::new();
        let ended = timeout(PATIENCE, self.0.watch(Some(run), |seen| last.clone_from(&seen.message))).await;
        ended.unwrap_or_else(|_| panic!("run {run} did not end: {last}")).unwrap()
    }
}
