//! Peers that may not come in, and sites that do not keep to the protocol.

use std::time::{Duration, SystemTime};

use protocol::wire::{
    AnswerBody, AnswerHeader, ConnectError, FrameKind, Greeting, Hello, Receipt, VERSION, encode,
};
use protocol::{Answer, ClientId, Metrics, Rejection, Round, Values};
use server::net::{Authority, Limits};

use super::federation::{Asked, Federation, PLAN, Site, honest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_in_without_a_certificate_of_this_federation() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let other = Authority::create(&federation.dir.path().join("other"), SystemTime::now()).unwrap();
    let stranger = other.issue_site(&ClientId::new("north").unwrap(), SystemTime::now()).unwrap();
    for identity in [None, Some(&stranger)] {
        // With TLS 1.3 the client may believe it is connected until the server has seen its certificate.
        if let Ok(site) = Site::connect(server.local_addr(), identity, federation.authority.ca_pem()).await {
            match (site.connection.closed().await, identity) {
                (quinn::ConnectionError::ConnectionClosed(_), Some(_)) => {}
                (quinn::ConnectionError::ApplicationClosed(close), None) => {
                    assert_eq!(close.reason, ConnectError::NotASite.to_string());
                }
                (end, _) => panic!("{end}"),
            }
        }
    }
    federation.site(&server, "north").await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_and_another_first_word_are_told_why() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let identity = federation.site_identity("north");
    let hello = encode(FrameKind::Hello, &Hello { software: String::new() });
    let mut newer = hello.clone();
    newer[4] = 9;
    let version = ConnectError::Version { server: VERSION, client: 9 };
    for (bytes, why) in [(newer, version), (vec![b'x'; 20], ConnectError::NotAHello)] {
        let site =
            Site::connect(server.local_addr(), Some(&identity), federation.authority.ca_pem()).await.unwrap();
        assert_eq!(site.greet_with(&bytes).await, Greeting::Rejected(why.clone()));
        assert_eq!(site.farewell().await, why.to_string());
    }
    let operator = federation.operator(&server).await;
    assert_eq!(operator.greet().await, Greeting::Rejected(ConnectError::NotASite));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_all_its_connections_says_so() {
    let federation = Federation::new();
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let server = federation.serve_with(&federation.state(), limits).await;
    let _north = federation.site(&server, "north").await;
    let identity = federation.site_identity("south");
    let south =
        Site::connect(server.local_addr(), Some(&identity), federation.authority.ca_pem()).await.unwrap();
    assert_eq!(south.greet().await, Greeting::Rejected(ConnectError::Busy));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_many_handshakes_lets_in_whoever_proves_its_address() {
    let federation = Federation::new();
    let limits = Limits { handshakes_max: 1, ..Limits::default() };
    let server = federation.serve_with(&federation.state(), limits).await;
    federation.site(&server, "north").await;
    server.shutdown().await.unwrap();
}

/// Bytes of an honest answer, to be spoilt.
fn bytes(answer: Answer) -> (Vec<u8>, Vec<u8>) {
    let (header, payload) = AnswerHeader::split(answer);
    let [points @ Values::I32(_)] = &payload[..] else { panic!("only training was expected") };
    (encode(FrameKind::Answer, &header), points.to_le_bytes())
}

/// Lets one of three sites answer with what `spoil` makes of its answer; returns its receipt and whether the server
/// closed its connection.
async fn spoilt(spoil: impl FnOnce(&Asked) -> Vec<u8>, limits: Limits) -> (Receipt, bool) {
    spoilt_in(PLAN, spoil, limits).await
}

/// The same in a plan of its own.
async fn spoilt_in(plan: &str, spoil: impl FnOnce(&Asked) -> Vec<u8>, limits: Limits) -> (Receipt, bool) {
    let federation = Federation::new();
    let server = federation.serve_with(&federation.state(), limits).await;
    let plan = plan.replace("clients_min = 3", "clients_min = 3\nquorum = 2");
    server.submit(plan, Some(7)).await.unwrap();
    let sites = federation.sites(&server).await;
    let mut asked = sites[0].next_task().await;
    let wrong = spoil(&asked);
    asked.send.write_all(&wrong).await.unwrap();
    // An upload that stalls does not finish either.
    if limits == Limits::default() {
        asked.send.finish().unwrap();
    }
    let receipt = asked.receipt().await;
    let Receipt::Refused(reason) = receipt else { panic!("it was accepted") };
    let closes = matches!(reason, Rejection::Malformed | Rejection::Oversize | Rejection::TooSlow);
    if closes {
        let farewell = sites[0].farewell().await;
        assert!(farewell.starts_with(&format!("an answer was refused: {}", reason.name())), "{farewell}");
    } else if reason == Rejection::Truncated {
        // What broke off may be tried again by a site that comes back.
        let north = federation.site(&server, "north").await;
        assert_eq!(north.train(2.0).await, Receipt::Accepted);
    }
    for site in &sites[1..] {
        assert_eq!(site.train(2.0).await, Receipt::Accepted);
    }
    let mut live = server.watch();
    let moved = live.wait_for(|live| live.values().any(|live| live.rounds_done >= 1)).await;
    let refused = moved.unwrap().values().next().unwrap().clients[0].refused.clone();
    assert_eq!(refused, [(reason.name().to_owned(), 1)]);
    server.shutdown().await.unwrap();
    (receipt, closes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_early_or_goes_on_is_refused_and_the_round_is_not() {
    let short = |asked: &Asked| {
        let (mut header, payload) = bytes(honest(&asked.task, 2.0));
        header.extend(&payload[1..]);
        header
    };
    let (receipt, _) = spoilt(short, Limits::default()).await;
    assert_eq!(receipt, Receipt::Refused(Rejection::Truncated));
    let twice = |asked: &Asked| {
        let (header, payload) = bytes(honest(&asked.task, 2.0));
        [header.clone(), payload.clone(), header, payload].concat()
    };
    let (receipt, _) = spoilt(twice, Limits::default()).await;
    assert_eq!(receipt, Receipt::Refused(Rejection::Duplicate));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_another_task_is_stale() {
    let stale = |asked: &Asked| {
        let mut answer = honest(&asked.task, 2.0);
        answer.task.round = Round(2);
        let (header, payload) = bytes(answer);
        [header, payload].concat()
    };
    let (receipt, closed) = spoilt(stale, Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::Stale), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_lengths_beyond_the_plan_cost_the_connection() {
    let (receipt, closed) = spoilt(|_| vec![7; 64], Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::Malformed), true));
    let oversize = |asked: &Asked| {
        let metrics = Metrics::default();
        let body = AnswerBody::Trained { len: u64::MAX / 8, weight: 1, vote: 0, metrics };
        encode(FrameKind::Answer, &AnswerHeader { task: asked.task.id, body })
    };
    let (receipt, closed) = spoilt(oversize, Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::Oversize), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_form_that_is_none_or_longer_than_any_costs_the_connection() {
    let packed = format!("{PLAN}[update]\ncodec = \"packed\"\n");
    let claims = |bytes: u64, payload: &'static [u8]| {
        move |asked: &Asked| {
            let len = asked.task.work.model().unwrap().len() as u64;
            let metrics = Metrics::default();
            let body = AnswerBody::Compressed { bytes, len, weight: 1, vote: 0, metrics };
            let header = encode(FrameKind::Answer, &AnswerHeader { task: asked.task.id, body });
            [&header, payload].concat()
        }
    };
    let (receipt, closed) = spoilt_in(&packed, claims(2, &[200, 0]), Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::Malformed), true));
    let (receipt, closed) = spoilt_in(&packed, claims(u64::MAX / 2, &[]), Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::Oversize), true));
    let (receipt, closed) = spoilt(claims(2, &[1, 0]), Limits::default()).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::WrongKind), false), "the plan has no codec");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_stalls_is_given_up() {
    let limits = Limits { upload_idle: Duration::from_millis(50), ..Limits::default() };
    let stalls = |asked: &Asked| bytes(honest(&asked.task, 2.0)).0;
    let (receipt, closed) = spoilt(stalls, limits).await;
    assert_eq!((receipt, closed), (Receipt::Refused(Rejection::TooSlow), true));
}

/// A pause within an upload that none may be longer than.
const IDLE: Duration = Duration::from_millis(300);

/// Sends an honest answer with pauses that are short each and long together.
async fn drip(asked: &mut Asked, pauses: u32) {
    let (header, payload) = bytes(honest(&asked.task, 2.0));
    asked.send.write_all(&header).await.unwrap();
    let (last, first) = payload.split_last().unwrap();
    let mut first = first.iter();
    for _ in 0..pauses {
        if let Some(byte) = first.next() {
            let _ = asked.send.write_all(&[*byte]).await;
        }
        tokio::time::sleep(IDLE / 3).await;
    }
    let _ = asked.send.write_all(first.as_slice()).await;
    let _ = asked.send.write_all(&[*last]).await;
    let _ = asked.send.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_may_take_as_long_as_its_round_while_nobody_waits_for_its_memory() {
    let federation = Federation::new();
    // Any upload is slower than this rate, and one has all of the memory.
    let limits =
        Limits { upload_idle: IDLE, upload_rate_min: u64::MAX, upload_bytes_max: 1, ..Limits::default() };
    let server = federation.serve_with(&federation.state(), limits).await;
    server.submit(PLAN.replace("clients_min = 3", "clients_min = 3\nquorum = 2"), Some(7)).await.unwrap();
    let sites = federation.sites(&server).await;
    let mut slow = sites[0].next_task().await;
    drip(&mut slow, 6).await;
    assert_eq!(slow.receipt().await, Receipt::Accepted);
    for site in &sites[1..] {
        assert_eq!(site.train(2.0).await, Receipt::Accepted);
    }
    // In the next round somebody waits.
    let mut slow = sites[0].next_task().await;
    let dripping = async {
        drip(&mut slow, 6).await;
        slow.receipt().await
    };
    let other = async {
        tokio::time::sleep(IDLE / 3).await;
        sites[1].train(2.0).await
    };
    let (refused, accepted) = tokio::join!(dripping, other);
    assert_eq!((refused, accepted), (Receipt::Refused(Rejection::TooSlow), Receipt::Accepted));
    let farewell = sites[0].farewell().await;
    assert!(farewell.contains("bytes a second while others waited"), "{farewell}");
    server.shutdown().await.unwrap();
}
