//! A line that lets TCP through to a server, byte by byte.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Carries every stream that comes to `address` to `server`, until the returned handle is dropped.
pub(crate) async fn forward(address: SocketAddr, server: SocketAddr) -> JoinSet<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut work = JoinSet::new();
    work.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            streams.spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                // A broken stream is the end of it.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    work
}
