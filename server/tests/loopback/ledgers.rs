//! What the server remembers of its sites' ledgers, and whom it does not let in: two machines with one folder, and an older copy of one.

use std::time::Duration;

use privacy::chain::Digest;
use protocol::wire::{
    ConnectError, FrameKind, Greeting, Hello, LedgerClaim, LedgerProof, PROBE, SMALL_MAX, encode,
};
use server::net::Server;

use super::federation::{Federation, PLAN, Site, read};

/// A ledger of as many records, of which each bears its own name on every machine.
pub(crate) fn ledger(machine: &str, records: u64, common: u64) -> Vec<Digest> {
    let name = |at: u64| if at < common { format!("both {at}") } else { format!("{machine} {at}") };
    (0..records).map(|at| Digest::of(name(at).as_bytes())).collect()
}

fn claim(ledger: &[Digest]) -> LedgerClaim {
    LedgerClaim { records: ledger.len() as u64, head: ledger.last().copied().unwrap_or_default() }
}

/// What a site with this ledger says first.
pub(crate) fn opening(ledger: &[Digest]) -> Vec<u8> {
    opening_as("a test", ledger)
}

/// The same of a program with this name.
fn opening_as(software: &str, ledger: &[Digest]) -> Vec<u8> {
    let hello = encode(FrameKind::Hello, &Hello { software: software.into() });
    [hello, encode(FrameKind::LedgerClaim, &claim(ledger))].concat()
}

/// Greets as a site with this ledger does, which has charged the loss of `replaced`.
pub(crate) async fn greet(site: &Site, ledger: &[Digest], replaced: &[Digest]) -> Greeting {
    greet_as(site, "a test", ledger, replaced).await
}

/// The same of a program with this name.
async fn greet_as(site: &Site, software: &str, ledger: &[Digest], replaced: &[Digest]) -> Greeting {
    let (mut send, mut recv) = site.connection.open_bi().await.unwrap();
    send.write_all(&opening_as(software, ledger)).await.unwrap();
    let greeting = read(&mut recv, FrameKind::Greeting, SMALL_MAX).await;
    let Greeting::Prove { records } = greeting else { return greeting };
    let head = match records {
        0 => Some(Digest::default()),
        _ => ledger.get(records as usize - 1).copied(),
    };
    let proof = LedgerProof { head, replaced: replaced.to_vec() };
    send.write_all(&encode(FrameKind::LedgerProof, &proof)).await.unwrap();
    send.finish().unwrap();
    read(&mut recv, FrameKind::Greeting, SMALL_MAX).await
}

struct Stage {
    federation: Federation,
    server: Server,
}

impl Stage {
    async fn north(&self) -> Site {
        let identity = self.federation.site_identity("north");
        let (address, ca) = (self.server.local_addr(), self.federation.authority.ca_pem());
        Site::connect(address, Some(&identity), ca).await.unwrap()
    }

    /// A machine with north's key and this ledger.
    async fn comes(&self, ledger: &[Digest]) -> (Site, Greeting) {
        let site = self.north().await;
        let greeting = greet(&site, ledger, &[]).await;
        (site, greeting)
    }

    async fn is_welcome(&self, ledger: &[Digest]) -> Site {
        match self.comes(ledger).await {
            (site, Greeting::Welcome { .. }) => site,
            (_, other) => panic!("{other:?}"),
        }
    }

    async fn is_refused(&self, ledger: &[Digest], known: &[Digest], answered: u64) {
        let (site, greeting) = self.comes(ledger).await;
        let forked = ConnectError::LedgerForked { known: claim(known), answered };
        assert_eq!(greeting, Greeting::Rejected(forked.clone()));
        assert!(!forked.to_string().contains(|letter: char| letter.is_ascii_digit()), "{forked}");
        assert_eq!(site.farewell().await, forked.to_string());
    }

    /// Waits until the audit log tells of `event` so many times.
    async fn has_told(&self, event: &str, times: usize) {
        let (path, event) = (self.federation.state().join("audit.jsonl"), format!("\"event\":\"{event}\""));
        let told = || std::fs::read_to_string(&path).unwrap().matches(&event).count();
        let waiting = async {
            while told() != times {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(waited.is_ok(), "{event} {} times, and not {times}", told());
    }

    async fn end(self) {
        self.server.shutdown().await.unwrap();
    }
}

async fn stage() -> Stage {
    let federation = Federation::new();
    let server = federation.serve().await;
    Stage { federation, server }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_sites_folder_is_refused_as_soon_as_the_two_differ_and_after_a_restart() {
    let stage = stage().await;
    stage.is_welcome(&ledger("a", 3, 3)).await;
    // The same folder on another machine: nothing tells them apart yet.
    stage.is_welcome(&ledger("b", 3, 3)).await;
    let grown = ledger("a", 5, 3);
    stage.is_welcome(&grown).await;
    for other in [ledger("b", 3, 3), ledger("b", 5, 3), ledger("b", 9, 3), ledger("b", 9, 0), vec![]] {
        stage.is_refused(&other, &grown, 0).await;
    }
    stage.has_told("ledger_refused", 5).await;
    let Stage { federation, server } = stage;
    server.shutdown().await.unwrap();
    let stage = Stage { server: federation.serve().await, federation };
    stage.is_refused(&ledger("b", 6, 4), &grown, 0).await;
    stage.is_welcome(&ledger("a", 6, 3)).await;
    stage.has_told("ledger_refused", 6).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_came_makes_a_copy_with_the_ledger_before_it_another_one() {
    let stage = stage().await;
    let before = ledger("a", 2, 2);
    let north = stage.is_welcome(&before).await;
    let mut others = Vec::new();
    for name in ["south", "west"] {
        others.push(stage.federation.site(&stage.server, name).await);
    }
    stage.federation.operator(&stage.server).await.submit(PLAN).await;
    north.train(0.1).await;
    // The copy shows what was shown last, but an update has come since then.
    stage.is_refused(&before, &before, 1).await;
    drop(north);
    stage.is_welcome(&ledger("a", 3, 2)).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_without_a_ledger_is_welcome_until_it_has_claimed_one() {
    let stage = stage().await;
    assert!(matches!(stage.north().await.greet().await, Greeting::Welcome { .. }));
    stage.is_welcome(&ledger("a", 1, 1)).await;
    let silent = stage.north().await;
    assert_eq!(silent.greet().await, Greeting::Rejected(ConnectError::LedgerMissing));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_has_reserved_the_loss_of_the_remembered_one_goes_on_and_is_written_down() {
    let stage = stage().await;
    let lost = ledger("a", 4, 0);
    stage.is_welcome(&lost).await;
    let recovered = ledger("b", 2, 0);
    let site = stage.north().await;
    let head = *lost.last().unwrap();
    let greeting = greet(&site, &recovered, &[Digest::of(b"another"), head]).await;
    assert!(matches!(greeting, Greeting::Welcome { .. }), "{greeting:?}");
    stage.is_refused(&lost, &recovered, 0).await;
    stage.has_told("ledger_replaced", 1).await;
    let log = std::fs::read_to_string(stage.federation.state().join("audit.jsonl")).unwrap();
    let told = log.lines().find(|line| line.contains("ledger_replaced")).unwrap();
    assert!(!told.contains("\"records\""), "it shows how long the site's ledger was: {told}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_probe_claims_is_judged_and_not_remembered_and_it_ends_no_connection() {
    let stage = stage().await;
    let looks = async |ledger: &[Digest]| {
        let site = stage.north().await;
        let greeting = greet_as(&site, &format!("a test{PROBE}"), ledger, &[]).await;
        site.connection.close(0u32.into(), b"");
        greeting
    };
    // Of a site that is not known, and of one whose ledger is empty: any other ledger goes on from that.
    let (own, empty) = (ledger("a", 3, 0), vec![]);
    let foreign = ledger("b", 7, 0);
    assert!(matches!(looks(&foreign).await, Greeting::Welcome { .. }));
    let north = stage.is_welcome(&empty).await;
    assert!(matches!(looks(&foreign).await, Greeting::Welcome { .. }));
    assert!(north.connection.close_reason().is_none(), "a probe takes nobody's place");
    drop(north);
    stage.is_welcome(&own).await;
    let forked = Greeting::Rejected(ConnectError::LedgerForked { known: claim(&own), answered: 0 });
    assert_eq!(looks(&foreign).await, forked);
    stage.is_welcome(&own).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_let_in_empty_is_replaced_by_one_that_has_reserved_its_updates() {
    let stage = stage().await;
    let north = stage.is_welcome(&[]).await;
    let mut others = Vec::new();
    for name in ["south", "west"] {
        others.push(stage.federation.site(&stage.server, name).await);
    }
    stage.federation.operator(&stage.server).await.submit(PLAN).await;
    north.train(0.1).await;
    let nothing = claim(&[]);
    for (records, updates, is_let_in) in [(0, 0, false), (0, 2, false), (0, 1, true)] {
        let site = stage.north().await;
        let names = [nothing.name_of_loss(updates), nothing.head];
        let greeting = greet(&site, &ledger("b", records, 0), &names).await;
        assert_eq!(matches!(greeting, Greeting::Welcome { .. }), is_let_in, "{updates}: {greeting:?}");
    }
    stage.has_told("ledger_replaced", 1).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_take_turns_with_one_key_are_counted_and_written_down() {
    let stage = stage().await;
    let (ledger, mut machines) = (ledger("a", 1, 1), Vec::new());
    for _ in 0..4 {
        machines.push(stage.is_welcome(&ledger).await);
    }
    let last = machines.pop();
    for displaced in machines {
        assert_eq!(displaced.farewell().await, ConnectError::Superseded.to_string());
    }
    drop(last);
    stage.has_told("alternating", 1).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_claim_and_no_proof_is_rejected_and_takes_nobody_s_place() {
    let stage = stage().await;
    let ledger = ledger("a", 2, 2);
    let north = stage.is_welcome(&ledger).await;
    let hello = encode(FrameKind::Hello, &Hello { software: String::new() });
    let liar = stage.north().await;
    let rejected = liar.greet_with(&[&hello[..], &hello[..]].concat()).await;
    assert_eq!(rejected, Greeting::Rejected(ConnectError::NotAHello));
    let huge = LedgerClaim { records: u64::MAX, head: Digest::of(b"huge") };
    let claimed = [hello, encode(FrameKind::LedgerClaim, &huge)].concat();
    let greeting = stage.north().await.greet_with(&claimed).await;
    assert_eq!(greeting, Greeting::Prove { records: 2 });
    assert!(north.connection.close_reason().is_none());
    stage.end().await;
}
