//! What sites say that they know, over real QUIC: hellos of both releases, streams that break off, frames and tasks that somebody does not know.

use std::time::{Duration, Instant};

use privacy::chain::Digest;
use protocol::wire::{
    ALPN_CAPABLE, AnswerHeader, CapableHello, ConnectError, FrameKind, Greeting, LedgerClaim, Receipt,
    Resent, Unsupported, encode,
};
use protocol::{Answer, CAPABILITIES_MAX, Capabilities, Capability, Rejection};
use server::net::Server;

use super::federation::{Federation, PLAN, Site, honest};

/// `PLAN`, of which each round needs two of three and would wait ten minutes for the third.
fn plan() -> String {
    PLAN.replace("clients_min = 3", "clients_min = 3\nquorum = 2\ndeadline_seconds = 600")
}

/// Far below the deadline: how soon whatever broke off is dealt with.
const SOON: Duration = Duration::from_secs(1);

/// The page's hello of `consortia/1`, byte for byte: what a program of the first release says.
const EARLIER_HELLO: &[u8] =
    b"CSRT\x01\x00\x01\x01\x13\x00\x00\x00\x0b\x00\x00\x00\x00\x00\x00\x00example 1.0";

async fn connect(federation: &Federation, server: &Server, name: &str) -> Site {
    let (identity, ca) = (federation.site_identity(name), federation.authority.ca_pem());
    Site::connect_to(server.local_addr(), Some(&identity), ca, ALPN_CAPABLE).await.unwrap()
}

fn hello(capabilities: Capabilities) -> Vec<u8> {
    encode(FrameKind::Hello, &CapableHello { software: "a test".into(), capabilities })
}

/// A greeted site that says what it knows.
async fn capable(federation: &Federation, server: &Server, name: &str) -> Site {
    let site = connect(federation, server, name).await;
    let greeting = site.greet_with(&hello(Capabilities::of_this_release())).await;
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    site
}

/// A greeted site of the first release.
async fn earlier(federation: &Federation, server: &Server, name: &str) -> Site {
    let (identity, ca) = (federation.site_identity(name), federation.authority.ca_pem());
    let site = Site::connect(server.local_addr(), Some(&identity), ca).await.unwrap();
    let greeting = site.greet_with(EARLIER_HELLO).await;
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    site
}

/// An answer as it travels.
fn bytes(answer: Answer) -> Vec<u8> {
    let (header, payload) = AnswerHeader::split(answer);
    let mut bytes = encode(FrameKind::Answer, &header);
    payload.iter().for_each(|values| bytes.extend(values.to_le_bytes()));
    bytes
}

/// A frame of a kind that nobody knows.
fn unknown(kind: u8, len: usize) -> Vec<u8> {
    let mut frame = encode(FrameKind::Resent, &Resent);
    frame[7] = kind;
    frame[8..].copy_from_slice(&(len as u32).to_le_bytes());
    frame.resize(frame.len() + len, 7);
    frame
}

async fn rounds(server: &Server, least: u32) {
    let mut live = server.watch();
    let done = live.wait_for(|live| live.values().any(|live| live.rounds_done >= least));
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("the round goes on").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_of_both_releases_take_part_in_one_run() {
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let north = earlier(&federation, &server, "north").await;
    let south = capable(&federation, &server, "south").await;
    let odd = Capability { name: "telepathy/9".into(), version: 4 };
    let west = connect(&federation, &server, "west").await;
    let known = Capabilities::of_this_release().with(odd).unwrap();
    assert!(matches!(west.greet_with(&hello(known)).await, Greeting::Welcome { .. }));
    for _ in 0..3 {
        for site in [&north, &south, &west] {
            assert_eq!(site.train(2.0).await, Receipt::Accepted);
        }
    }
    rounds(&server, 3).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_names_something_twice_or_too_much_or_nothing_is_none() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let list = |list: Vec<(String, u16)>| encode(FrameKind::Hello, &("a test".to_owned(), list));
    let many = (0..=CAPABILITIES_MAX).map(|at| (format!("c{at}"), 1)).collect();
    let twice = vec![("training".to_owned(), 1), ("training".to_owned(), 1)];
    let unnamed = vec![(String::new(), 1)];
    let broken = vec![("a b".to_owned(), 1)];
    let whole = hello(Capabilities::of_this_release());
    let cases =
        [list(many), list(twice), list(unnamed), list(broken), EARLIER_HELLO.to_vec(), unknown(99, 5)];
    for said in cases {
        let site = connect(&federation, &server, "north").await;
        assert_eq!(site.greet_with(&said).await, Greeting::Rejected(ConnectError::NotAHello));
    }
    // A hello of the later release over the earlier one has bytes left over.
    let (identity, ca) = (federation.site_identity("north"), federation.authority.ca_pem());
    let site = Site::connect(server.local_addr(), Some(&identity), ca).await.unwrap();
    assert_eq!(site.greet_with(&whole).await, Greeting::Rejected(ConnectError::NotAHello));
    // What comes behind a hello and is not known is passed over.
    let site = connect(&federation, &server, "north").await;
    let claimed = [whole, unknown(99, 50)].concat();
    assert!(matches!(site.greet_with(&claimed).await, Greeting::Welcome { .. }));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_does_not_train_is_not_asked_to_and_holds_nobody_up() {
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(plan(), Some(7)).await.unwrap();
    let statistics = Capabilities::try_from(vec![Capability::statistics()]).unwrap();
    let north = connect(&federation, &server, "north").await;
    assert!(matches!(north.greet_with(&hello(statistics)).await, Greeting::Welcome { .. }));
    let (south, west) =
        (capable(&federation, &server, "south").await, capable(&federation, &server, "west").await);
    let began = Instant::now();
    for site in [&south, &west] {
        assert_eq!(site.train(2.0).await, Receipt::Accepted);
    }
    rounds(&server, 1).await;
    assert!(began.elapsed() < Duration::from_secs(30));
    let asked = tokio::time::timeout(Duration::from_millis(200), north.connection.accept_bi()).await;
    assert!(asked.is_err(), "it is asked for nothing");
    server.shutdown().await.unwrap();
}

/// How a site gives a task up.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    /// Resets its side before it has said anything.
    Resets,
    /// Resets it in the middle of its answer.
    ResetsLate,
    /// Finishes it and has said nothing.
    Finishes,
    /// Listens no more and says nothing.
    Stops,
}

const BREAKS: [Breaks; 4] = [Breaks::Resets, Breaks::ResetsLate, Breaks::Finishes, Breaks::Stops];

/// Gives the next task up, and keeps its stream.
async fn break_off(site: &Site, how: Breaks) -> super::federation::Asked {
    let mut asked = site.next_task().await;
    match how {
        Breaks::Resets => asked.send.reset(1u32.into()).unwrap(),
        Breaks::ResetsLate => {
            let answer = bytes(honest(&asked.task, 2.0));
            asked.send.write_all(&answer[..answer.len() - 1]).await.unwrap();
            // What was written must have come before the reset overtakes it.
            tokio::time::sleep(Duration::from_millis(100)).await;
            asked.send.reset(1u32.into()).unwrap();
        }
        Breaks::Finishes => asked.send.finish().unwrap(),
        Breaks::Stops => asked.recv.stop(1u32.into()).unwrap(),
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_renewed_once_within_a_second() {
    for how in BREAKS {
        let federation = Federation::new();
        let server = federation.serve().await;
        server.submit(plan(), Some(7)).await.unwrap();
        let mut sites = Vec::new();
        for name in ["north", "south", "west"] {
            sites.push(capable(&federation, &server, name).await);
        }
        let first = break_off(&sites[0], how).await;
        let began = Instant::now();
        let again = sites[0].next_task().await;
        assert!(began.elapsed() < SOON, "{how:?}: {:?}", began.elapsed());
        assert_eq!((first.task.id.attempt, again.task.id), (0, first.task.id.next_attempt()));
        let answer = honest(&again.task, 2.0);
        assert_eq!(again.answer(answer).await, Receipt::Accepted, "{how:?}");
        for site in &sites[1..] {
            assert_eq!(site.train(2.0).await, Receipt::Accepted);
        }
        rounds(&server, 1).await;
        // In the next round both attempts break off: the round is that of the others.
        for site in &sites[1..] {
            assert_eq!(site.train(2.0).await, Receipt::Accepted);
        }
        let _first = break_off(&sites[0], how).await;
        let _second = break_off(&sites[0], how).await;
        let began = Instant::now();
        rounds(&server, 2).await;
        assert!(began.elapsed() < SOON, "{how:?}: {:?}", began.elapsed());
        let live = server.watch().borrow().values().next().unwrap().clone();
        assert_eq!(live.clients[0].refused, [(Rejection::Truncated.name().to_owned(), 3)], "{how:?}");
        assert_eq!(live.clients[0].accepted, 1);
        server.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_of_the_first_release_whose_stream_breaks_off_is_not_awaited_a_second_later() {
    for how in BREAKS {
        let federation = Federation::new();
        let server = federation.serve().await;
        server.submit(plan(), Some(7)).await.unwrap();
        let north = earlier(&federation, &server, "north").await;
        let (south, west) =
            (capable(&federation, &server, "south").await, capable(&federation, &server, "west").await);
        for site in [&south, &west] {
            assert_eq!(site.train(2.0).await, Receipt::Accepted);
        }
        let _asked = break_off(&north, how).await;
        let began = Instant::now();
        rounds(&server, 1).await;
        assert!(began.elapsed() < SOON, "{how:?}: {:?}", began.elapsed());
        // It is asked in the next round, whose first attempt it is told of.
        assert_eq!(north.train(2.0).await, Receipt::Accepted);
        server.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_whose_connection_ends_with_its_streams_may_come_back_for_its_task() {
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(plan(), Some(7)).await.unwrap();
    let north = earlier(&federation, &server, "north").await;
    let (south, west) =
        (capable(&federation, &server, "south").await, capable(&federation, &server, "west").await);
    let asked = break_off(&north, Breaks::Finishes).await;
    // It was leaving.
    north.connection.close(0u32.into(), b"leaving");
    drop((asked, north));
    let north = earlier(&federation, &server, "north").await;
    for site in [&north, &south, &west] {
        assert_eq!(site.train(2.0).await, Receipt::Accepted);
    }
    rounds(&server, 1).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_does_not_know_a_frame_has_declined_and_unknown_frames_before_an_answer_are_passed_over()
{
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(plan(), Some(7)).await.unwrap();
    let mut sites = Vec::new();
    for name in ["north", "south", "west"] {
        sites.push(capable(&federation, &server, name).await);
    }
    let mut asked = sites[0].next_task().await;
    asked.say(&encode(FrameKind::Unsupported, &Unsupported { kind: 77 })).await;
    assert_eq!(asked.receipt().await, Receipt::Accepted, "a decline is accepted, too");
    let mut asked = sites[1].next_task().await;
    let answer = bytes(honest(&asked.task, 2.0));
    asked.say(&[unknown(99, 4000), unknown(17, 0), answer.clone()].concat()).await;
    assert_eq!(asked.receipt().await, Receipt::Accepted);
    assert_eq!(sites[2].train(2.0).await, Receipt::Accepted);
    rounds(&server, 1).await;
    let live = server.watch().borrow().values().next().unwrap().clone();
    assert_eq!(live.clients[0].declined, [("unsupported".to_owned(), 1)]);
    // Without an end, or too long, they are no answer: the connection is over, and the round goes on at once.
    let floods = [unknown(99, 10).repeat(9), unknown(99, 5000)];
    for (site, flood) in sites.iter().zip(floods) {
        let mut asked = site.next_task().await;
        asked.send.write_all(&flood).await.unwrap();
        let Receipt::Refused(reason) = asked.receipt().await else { panic!("it was accepted") };
        assert!(matches!(reason, Rejection::Malformed | Rejection::Oversize), "{reason:?}");
    }
    assert_eq!(sites[2].train(2.0).await, Receipt::Accepted);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_sent_again_asks_for_no_further_record_of_its_site_s_ledger() {
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let claim = encode(FrameKind::LedgerClaim, &LedgerClaim { records: 1, head: Digest::of(b"the charge") });
    let opening = [hello(Capabilities::of_this_release()), claim].concat();
    let north = connect(&federation, &server, "north").await;
    assert!(matches!(north.greet_with(&opening).await, Greeting::Welcome { .. }));
    let (south, west) =
        (capable(&federation, &server, "south").await, capable(&federation, &server, "west").await);
    // What it cost was reserved before this ledger was shown.
    let mut asked = north.next_task().await;
    let answer = bytes(honest(&asked.task, 2.0));
    asked.say(&[encode(FrameKind::Resent, &Resent), answer].concat()).await;
    assert_eq!(asked.receipt().await, Receipt::Accepted);
    for site in [&south, &west] {
        assert_eq!(site.train(2.0).await, Receipt::Accepted);
    }
    rounds(&server, 1).await;
    // The same ledger is let in again, though an update has come and none of its records is new.
    drop(north);
    let north = connect(&federation, &server, "north").await;
    let greeting = north.greet_with(&opening).await;
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    server.shutdown().await.unwrap();
}
