//! The door through which somebody without a certificate may come: one small request, a few at a time, and nobody else's room.

use std::time::Duration;

use protocol::Token;
use protocol::wire::{
    ConnectError, ENROL_ALPN, ENROL_MAX, EnrolRejection, EnrolReply, EnrolRequest, FrameKind, Greeting,
    Hello, encode,
};
use server::net::Server;
use tokio::time::timeout;

use super::federation::{Federation, Site, read};

/// How many may stand on the doorstep at a time, and more than that.
const PLACES: usize = 64;
const CROWD: usize = 80;

async fn visitor(federation: &Federation, server: &Server) -> Site {
    let ca_pem = federation.authority.ca_pem();
    Site::connect_to(server.local_addr(), None, ca_pem, ENROL_ALPN).await.unwrap()
}

fn request() -> EnrolRequest {
    EnrolRequest { token: Some(Token::new([7; 16])), csr_der: vec![0x30, 1, 0], software: String::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_may_say_one_small_request() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let mut oversize = encode(FrameKind::EnrolRequest, &request());
    oversize[8..12].copy_from_slice(&(ENROL_MAX as u32 + 1).to_le_bytes());
    let hello = encode(FrameKind::Hello, &Hello { software: String::new() });
    for nonsense in [hello, oversize, b"GET / HTTP/1.1".to_vec()] {
        let visitor = visitor(&federation, &server).await;
        let (mut send, _recv) = visitor.connection.open_bi().await.unwrap();
        send.write_all(&nonsense).await.unwrap();
        send.finish().unwrap();
        assert_eq!(visitor.farewell().await, ConnectError::NotAHello.to_string());
    }
    // This server has no issuing key.
    let visitor = visitor(&federation, &server).await;
    let (mut send, mut recv) = visitor.connection.open_bi().await.unwrap();
    send.write_all(&encode(FrameKind::EnrolRequest, &request())).await.unwrap();
    send.finish().unwrap();
    let reply: EnrolReply = read(&mut recv, FrameKind::EnrolReply, ENROL_MAX).await;
    assert_eq!(reply, EnrolReply::Refused(EnrolRejection::Unable));
    timeout(Duration::from_secs(5), visitor.connection.closed()).await.expect("there is no second request");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_on_the_doorstep_keeps_no_site_out() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let mut waiting = Vec::new();
    for _ in 0..CROWD {
        waiting.push(visitor(&federation, &server).await);
    }
    // Whoever came last stays: it is the one that may be about to go on.
    for visitor in &waiting[..CROWD - PLACES] {
        let why =
            timeout(Duration::from_secs(5), visitor.farewell()).await.expect("the oldest are sent away");
        assert_eq!(why, ConnectError::Busy.to_string());
    }
    assert!(waiting[CROWD - PLACES..].iter().all(|visitor| visitor.connection.close_reason().is_none()));
    let identity = federation.site_identity("north");
    let ca_pem = federation.authority.ca_pem();
    let north = Site::connect(server.local_addr(), Some(&identity), ca_pem).await.unwrap();
    assert!(matches!(north.greet().await, Greeting::Welcome { .. }));
    server.shutdown().await.unwrap();
}
