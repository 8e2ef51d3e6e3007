//! A federation's authority and a server that does what a test tells it, on loopback.

use std::path::Path;
use std::sync::Arc;

use protocol::wire::{
    ALPN, ALPNS, AnswerHeader, CapableHello, FrameKind, Greeting, HELLO_MAX, Hello, Receipt, SMALL_MAX,
    TaskHeader,
};
use protocol::{Capability, Task, UpdateCodec, Values};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;

use crate::net::frames::{read_frame, write_frame};
use crate::net::greeting::is_capable;
use crate::net::{Identity, SERVER_NAME};

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A folder with an identity for `name`, issued by this authority, that trusts `trusted`.
    pub(super) fn folder(&self, name: &str, trusted: &Self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        write(folder.path(), "ca.pem", &trusted.0.pem());
        write(folder.path(), "cert.pem", &certificate.pem());
        write(folder.path(), "key.pem", &key.serialize_pem());
        folder
    }

    pub(super) fn identity(&self, name: &str) -> Identity {
        Identity::load(self.folder(name, self).path()).unwrap()
    }

    /// A server that this authority has issued, and that asks clients for certificates of this authority.
    pub(super) fn capable_server(&self) -> Stage {
        self.server_of(&ALPNS)
    }

    /// The same, of the release before.
    pub(super) fn server(&self) -> Stage {
        self.server_of(&[ALPN])
    }

    fn server_of(&self, alpns: &[&[u8]]) -> Stage {
        let folder = self.folder(SERVER_NAME, self);
        let certificate = CertificateDer::from_pem_file(folder.path().join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.path().join("key.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap();
        tls.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
        let quic = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(quic));
        Stage(Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap())
    }
}

pub(super) fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

pub(super) struct Stage(Endpoint);

impl Stage {
    pub(super) fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    pub(super) async fn accept(&self) -> Result<Connection, quinn::ConnectionError> {
        self.0.accept().await.unwrap().await
    }

    /// Accepts a connection, hears its hello and returns the stream on which the greeting is due.
    pub(super) async fn hear(&self) -> (Connection, SendStream) {
        let connection = self.accept().await.unwrap();
        let (send, mut recv) = connection.accept_bi().await.unwrap();
        let hello = if is_capable(&connection) {
            read_frame::<CapableHello>(&mut recv, FrameKind::Hello, HELLO_MAX).await.unwrap().unwrap()
        } else {
            read_frame::<Hello>(&mut recv, FrameKind::Hello, SMALL_MAX).await.unwrap().unwrap().into()
        };
        assert_eq!(hello.capabilities.has(&Capability::attempts()), is_capable(&connection));
        assert!(hello.software.starts_with("consortia"), "{hello:?}");
        (connection, send)
    }

    /// Accepts a connection and greets it.
    pub(super) async fn welcome(&self) -> Connection {
        let (connection, mut send) = self.hear().await;
        let welcome = Greeting::Welcome { software: "stage".into(), you: "north".into() };
        write_frame(&mut send, FrameKind::Greeting, &welcome).await.unwrap();
        send.finish().unwrap();
        connection
    }
}

/// Sends a task as a server does.
pub(super) async fn send_task(connection: &Connection, task: &Task) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    let header = TaskHeader::of(task, &task.spec.to_json());
    write_frame(&mut send, FrameKind::Task, &header).await.unwrap();
    let model = task.work.model().map_or(&[][..], |model| model.values());
    let bytes: Vec<u8> = model.iter().flat_map(|value| value.to_le_bytes()).collect();
    send.write_all(&bytes).await.unwrap();
    (send, recv)
}

/// Reads an answer to its end as a server does.
pub(super) async fn read_answer(recv: &mut RecvStream) -> protocol::Answer {
    read_compressed(recv, UpdateCodec::Exact).await
}

/// The same, of an update that may have come in short form.
pub(super) async fn read_compressed(recv: &mut RecvStream, codec: UpdateCodec) -> protocol::Answer {
    let header: AnswerHeader = read_frame(recv, FrameKind::Answer, SMALL_MAX).await.unwrap().unwrap();
    let bytes = recv.read_to_end(1 << 23).await.unwrap();
    assert_eq!(header.payload_bytes(), Some(bytes.len() as u64));
    let types = header.values();
    assert!(types.len() < 2, "what training answers has one block at most");
    let payload = types.iter().map(|(dtype, _)| Values::from_le_bytes(*dtype, &bytes).unwrap()).collect();
    header.join(payload, codec).unwrap()
}

pub(super) async fn acknowledge(send: &mut SendStream, receipt: Receipt) {
    write_frame(send, FrameKind::Receipt, &receipt).await.unwrap();
    send.finish().unwrap();
}
