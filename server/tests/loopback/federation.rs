//! A federation for tests: its authority, a server on a free port, and sites that say exactly what they are told to.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use privacy::{Encoded, clip};
use protocol::wire::{
    ALPN, AdminReply, AdminRequest, AnswerHeader, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX,
    Hello, Receipt, SMALL_MAX, TaskHeader, decode, encode,
};
use protocol::{
    Answer, ClientId, Layout, Learner, Metrics, Outcome, Parameters, RunId, Seed, Spec, Task, Work,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use server::net::{Authority, Identity, InitialModel, Limits, ModelRoom, SERVER_NAME, Server, ServerConfig};
use tempfile::TempDir;

/// Three rounds of a model of two values; sites do not evaluate.
pub(crate) const PLAN: &str = "name = \"toy\"\nrounds = 3\nmodel = \"linear\"\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
    [strategy.fedavgm]\nmomentum = 0.5\n\
    [cohort]\nclients_min = 3\n\
    [evaluation]\nsites = \"none\"\n";

/// A room whose every model is two zeros.
#[derive(Debug)]
pub(crate) struct ToyRoom;

impl ModelRoom for ToyRoom {
    fn begin(&self, _: &Spec, _: Seed) -> Result<InitialModel, String> {
        let layout = Layout::new([("weight".to_owned(), vec![1, 1]), ("bias".to_owned(), vec![1])]);
        let layout = layout.map_err(|error| error.to_string())?;
        Ok(InitialModel { layout, shared: Parameters::new(vec![0.0; 2]) })
    }

    fn central(&self, _: &Spec) -> Option<Box<dyn Learner>> {
        None
    }
}

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
        Self { dir, authority }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(&self.state(), Limits::default()).await
    }

    pub(crate) async fn serve_with(&self, state: &Path, limits: Limits) -> Server {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let identity = self.dir.path().join("identity");
        let config = ServerConfig { limits, ..ServerConfig::new(state.to_owned(), listen, identity) };
        Server::start(config, Arc::new(ToyRoom)).await.unwrap()
    }

    pub(crate) fn site_identity(&self, name: &str) -> Identity {
        self.authority.issue_site(&ClientId::new(name).unwrap(), SystemTime::now()).unwrap()
    }

    /// A greeted site.
    pub(crate) async fn site(&self, server: &Server, name: &str) -> Site {
        let identity = self.site_identity(name);
        let site =
            Site::connect(server.local_addr(), Some(&identity), self.authority.ca_pem()).await.unwrap();
        match site.greet().await {
            Greeting::Welcome { you, .. } => assert_eq!(you, name),
            other => panic!("{name} is not welcome: {other:?}"),
        }
        site
    }

    pub(crate) async fn sites(&self, server: &Server) -> Vec<Site> {
        let mut sites = Vec::new();
        for name in ["north", "south", "west"] {
            sites.push(self.site(server, name).await);
        }
        sites
    }

    pub(crate) async fn operator(&self, server: &Server) -> Site {
        let identity = self.authority.issue_operator("ada", SystemTime::now()).unwrap();
        Site::connect(server.local_addr(), Some(&identity), self.authority.ca_pem()).await.unwrap()
    }
}

/// A client's end of a connection.
pub(crate) struct Site {
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
}

/// A task's stream at the site.
pub(crate) struct Asked {
    pub(crate) task: Task,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Site {
    pub(crate) async fn connect(
        server: SocketAddr,
        identity: Option<&Identity>,
        ca_pem: &str,
    ) -> Result<Self, quinn::ConnectionError> {
        Self::connect_to(server, identity, ca_pem, ALPN).await
    }

    /// Through the door of another protocol.
    pub(crate) async fn connect_to(
        server: SocketAddr,
        identity: Option<&Identity>,
        ca_pem: &str,
        alpn: &[u8],
    ) -> Result<Self, quinn::ConnectionError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let cert = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let mut endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        endpoint
            .set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
        let connection = endpoint.connect(server, SERVER_NAME).unwrap().await?;
        Ok(Self { _endpoint: endpoint, connection })
    }

    pub(crate) async fn greet(&self) -> Greeting {
        self.greet_with(&encode(FrameKind::Hello, &Hello { software: "a test".into() })).await
    }

    pub(crate) async fn greet_with(&self, hello: &[u8]) -> Greeting {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(hello).await.unwrap();
        send.finish().unwrap();
        read(&mut recv, FrameKind::Greeting, SMALL_MAX).await
    }

    pub(crate) async fn next_task(&self) -> Asked {
        let (send, mut recv) = self.connection.accept_bi().await.unwrap();
        let header: TaskHeader = read(&mut recv, FrameKind::Task, HEADER_MAX).await;
        let mut model = vec![0f32; header.model_len as usize];
        recv.read_exact(bytemuck::cast_slice_mut(&mut model)).await.unwrap();
        Asked { task: header.into_task(model, Vec::new()).unwrap(), send, recv }
    }

    /// Answers the next task as an honest site whose every delta is `value`.
    pub(crate) async fn train(&self, value: f32) -> Receipt {
        let asked = self.next_task().await;
        let answer = honest(&asked.task, value);
        asked.answer(answer).await
    }

    /// The text of the close.
    pub(crate) async fn farewell(&self) -> String {
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            other => panic!("the connection ended otherwise: {other}"),
        }
    }

    pub(crate) async fn request(&self, request: &AdminRequest) -> RecvStream {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&encode(FrameKind::AdminRequest, request)).await.unwrap();
        send.finish().unwrap();
        recv
    }

    pub(crate) async fn ask(&self, request: &AdminRequest) -> AdminReply {
        admin_reply(&mut self.request(request).await).await
    }

    pub(crate) async fn submit(&self, plan: &str) -> RunId {
        let request = AdminRequest::Submit { plan_toml: plan.to_owned(), seed: Some(7) };
        match self.ask(&request).await {
            AdminReply::Submitted { run } => run,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn admin_reply(recv: &mut RecvStream) -> AdminReply {
    read(recv, FrameKind::AdminReply, protocol::wire::ADMIN_MAX).await
}

pub(crate) fn honest(task: &Task, value: f32) -> Answer {
    let Work::Train { model, .. } = &task.work else { panic!("only training was expected") };
    let lattice = task.spec.lattice(model.len()).unwrap();
    let clipped = clip(vec![value; model.len()], lattice.bound()).unwrap();
    let encoded = Encoded::encode(&clipped, lattice.weigh(1), &lattice).unwrap();
    let weight = encoded.weight().value();
    let metrics = Metrics { loss: 0.5, accuracy: None, examples: 1, seconds: 0.0 };
    Answer { task: task.id, outcome: Outcome::trained(encoded.into_points(), weight, 0, metrics) }
}

impl Asked {
    /// Sends an answer and reads its receipt.
    pub(crate) async fn answer(mut self, answer: Answer) -> Receipt {
        let (header, payload) = AnswerHeader::split(answer);
        let mut bytes = encode(FrameKind::Answer, &header);
        payload.iter().for_each(|values| bytes.extend(values.to_le_bytes()));
        self.say(&bytes).await;
        self.receipt().await
    }

    /// Sends these bytes and finishes.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
        self.send.finish().unwrap();
    }

    pub(crate) async fn receipt(&mut self) -> Receipt {
        read(&mut self.recv, FrameKind::Receipt, SMALL_MAX).await
    }
}

pub(crate) async fn read<T: DeserializeOwned>(recv: &mut RecvStream, kind: FrameKind, limit: usize) -> T {
    let mut head = [0u8; FRAME_HEAD];
    recv.read_exact(&mut head).await.unwrap();
    let mut body = vec![0u8; FrameHead::parse(head, kind, limit).unwrap().len];
    recv.read_exact(&mut body).await.unwrap();
    decode(&body).unwrap()
}
