//! A peer that says exactly the bytes it is told to, whatever the protocol says.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use protocol::Task;
use protocol::wire::{
    ALPN, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX, Hello, Receipt, SMALL_MAX, TaskHeader,
    decode, encode,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use server::net::SERVER_NAME;

/// What a peer shows of itself.
pub(crate) struct Credentials {
    pub(crate) ca_pem: String,
    /// Certificate and key.
    pub(crate) proof: Option<(String, String)>,
    pub(crate) alpn: Vec<u8>,
}

impl Credentials {
    /// The identity in a folder.
    pub(crate) fn of(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        Self { ca_pem: read("ca.pem"), proof: Some((read("cert.pem"), read("key.pem"))), alpn: ALPN.to_vec() }
    }

    pub(crate) fn tls(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match &self.proof {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        tls.alpn_protocols = vec![self.alpn.clone()];
        tls
    }

    pub(crate) fn config(&self) -> ClientConfig {
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(self.tls()).unwrap()))
    }
}

/// A socket to attack from; one carries any number of connections.
pub(crate) fn socket() -> Endpoint {
    Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

/// A connection whose peer does as it likes.
pub(crate) struct Intruder {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
}

/// A task's stream at the intruder.
pub(crate) struct Asked {
    pub(crate) task: Task,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Intruder {
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        server: SocketAddr,
        config: ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let connection = endpoint.connect_with(config, server, SERVER_NAME).unwrap().await?;
        Ok(Self { connection, _endpoint: endpoint.clone() })
    }

    /// Says these bytes first and hears the greeting.
    pub(crate) async fn greet_with(&self, hello: &[u8]) -> Greeting {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(hello).await.unwrap();
        send.finish().unwrap();
        read(&mut recv, FrameKind::Greeting, SMALL_MAX).await.expect("a hello is answered")
    }

    pub(crate) async fn greet(&self) -> Greeting {
        self.greet_with(&hello()).await
    }

    /// The next task; `None` when the connection is over.
    pub(crate) async fn next_task(&self) -> Option<Asked> {
        let (send, mut recv) = self.connection.accept_bi().await.ok()?;
        let header: TaskHeader = read(&mut recv, FrameKind::Task, HEADER_MAX).await?;
        let mut model = vec![0f32; header.model_len as usize];
        recv.read_exact(bytemuck::cast_slice_mut(&mut model)).await.ok()?;
        Some(Asked { task: header.into_task(model, Vec::new()).unwrap(), send, recv })
    }

    /// Why the server closed the connection.
    pub(crate) async fn farewell(&self) -> String {
        text_of(&self.connection.closed().await)
    }
}

impl Asked {
    /// The server's last words; `None` when the connection was over before.
    pub(crate) async fn receipt(&mut self) -> Option<Receipt> {
        read(&mut self.recv, FrameKind::Receipt, SMALL_MAX).await
    }
}

/// An honest hello.
pub(crate) fn hello() -> Vec<u8> {
    encode(FrameKind::Hello, &Hello { software: "an intruder".into() })
}

/// The text of a close by the server's program, or what the transport says.
pub(crate) fn text_of(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => other.to_string(),
    }
}

async fn read<T: DeserializeOwned>(recv: &mut RecvStream, kind: FrameKind, limit: usize) -> Option<T> {
    let mut head = [0u8; FRAME_HEAD];
    recv.read_exact(&mut head).await.ok()?;
    let mut body = vec![0u8; FrameHead::parse(head, kind, limit).expect("the server keeps to frames").len];
    recv.read_exact(&mut body).await.ok()?;
    Some(decode(&body).expect("the server's words decode"))
}
