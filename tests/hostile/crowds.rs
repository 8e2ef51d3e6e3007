//! Many connections at a time.

use std::sync::Arc;

use protocol::ClientId;
use protocol::wire::{ConnectError, Greeting};
use server::net::Limits;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::intruder::{Credentials, Intruder, socket};
use crate::member::PATIENCE;
use crate::stage::{Stage, plan};

/// Idle connections.
const CROWD: usize = 1000;
/// Sockets that they share.
const SOCKETS: usize = 4;
/// Handshakes under way at a time.
const AT_A_TIME: usize = 16;
/// What the crowd may cost in memory, both ends together and with the tests beside it: twice what was measured.
const BYTES_MAX: u64 = 240 << 20;

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Greeted sites of as many names that will never answer.
async fn crowd(stage: &Stage) -> Vec<Intruder> {
    let ca_pem = stage.federation.authority.ca_pem().to_owned();
    let (address, gate) = (stage.server.local_addr(), Arc::new(Semaphore::new(AT_A_TIME)));
    let sockets: Vec<_> = (0..SOCKETS).map(|_| socket()).collect();
    let mut arrivals = tokio::task::JoinSet::new();
    for number in 0..CROWD {
        let name = ClientId::new(&format!("idle-{number}")).unwrap();
        let identity = stage.federation.authority.issue_site(&name, std::time::SystemTime::now()).unwrap();
        let proof = Some((identity.cert_pem, identity.key_pem));
        let credentials = Credentials { ca_pem: ca_pem.clone(), proof, alpn: protocol::wire::ALPN.to_vec() };
        let (endpoint, gate) = (sockets[number % SOCKETS].clone(), Arc::clone(&gate));
        arrivals.spawn(async move {
            let _turn = gate.acquire().await.unwrap();
            let intruder = Intruder::connect(&endpoint, address, credentials.config()).await.unwrap();
            assert!(matches!(intruder.greet().await, Greeting::Welcome { .. }));
            intruder
        });
    }
    arrivals.join_all().await
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_take_their_seats_and_nothing_else() {
    // The operator and the three honest sites have come first.
    let limits = Limits { connections_max: CROWD + 4, ..Limits::default() };
    let stage = Stage::open(limits).await;
    let before = resident();
    let idle = crowd(&stage).await;
    let credentials = Credentials::of(&stage.federation.issue("late"));
    let late = Intruder::connect(&socket(), stage.server.local_addr(), credentials.config()).await.unwrap();
    assert_eq!(late.greet().await, Greeting::Rejected(ConnectError::Busy));
    assert_eq!(late.farewell().await, ConnectError::Busy.to_string());

    // All are asked, and the deadline goes on without those that never answer.
    let hasty = plan(CROWD + 3).replace("deadline_seconds = 60", "deadline_seconds = 3");
    let summary = stage.finish(&hasty).await;
    assert!(summary.history.iter().all(|round| round.cohort as usize == CROWD + 3));
    let lost = idle.iter().filter(|one| one.connection.close_reason().is_some()).count();
    assert_eq!(lost, 0, "idle connections were lost");
    let grown = resident().saturating_sub(before);
    println!("{CROWD} idle connections took {} KiB", grown >> 10);
    assert!(grown < BYTES_MAX, "{CROWD} idle connections took {grown} bytes");
    drop(idle);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_connects_and_connects_takes_nobodys_seat() {
    // Room for the operator, the three honest sites, what one site may keep waiting, and a few more.
    let limits = Limits { connections_max: 12, ..Limits::default() };
    let stage = Stage::open(limits).await;
    let mallory = Credentials::of(&stage.federation.issue("mallory"));
    let (endpoint, address) = (socket(), stage.server.local_addr());
    let mut silent = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let intruder = Intruder::connect(&endpoint, address, mallory.config()).await.unwrap();
        silent.spawn(async move { intruder.farewell().await });
    }
    for _ in 0..20 {
        let farewell = timeout(PATIENCE, silent.join_next()).await.expect("all but four are turned away");
        assert_eq!(farewell.unwrap().unwrap(), ConnectError::Busy.to_string());
    }
    stage.finish(&plan(3)).await;
    let credentials = Credentials::of(&stage.federation.issue("late"));
    let late = Intruder::connect(&socket(), address, credentials.config()).await.unwrap();
    assert!(matches!(late.greet().await, Greeting::Welcome { .. }));
    drop(silent);
    stage.close().await;
}
