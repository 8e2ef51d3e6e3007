//! Answers that are sent again: over a new line, by a new life of the program, to servers of either release.

use std::path::Path;

use privacy::chain::Digest;
use privacy::chain::segments::SegmentBytes;
use protocol::wire::Resent;
use protocol::{ClientId, Task, Time};
use tempfile::TempDir;

use super::*;
use crate::ledger::tests::{local, private};
use crate::policy::PLAIN_POLICY;
use crate::{Guard, Pause, Policy};

/// A site with books and an outbox in a folder, and how often it has trained.
struct Site {
    state: TempDir,
    trained: std::sync::mpsc::Sender<()>,
    trainings: std::sync::mpsc::Receiver<()>,
}

impl Site {
    fn new() -> Self {
        let (trained, trainings) = std::sync::mpsc::channel();
        Self { state: tempfile::tempdir().unwrap(), trained, trainings }
    }

    /// The participant in a new life of the site's program.
    async fn participant(&self, policy: &str) -> Participant {
        let books = loop {
            let clock = || Time::ZERO;
            let (federation, segment) = (Digest::of(b"federation"), SegmentBytes::default());
            match open_books(self.state.path(), federation, Digest::of(b""), "a test", segment, clock) {
                Ok(books) => break books,
                // The life before lets go of them in a moment.
                Err(BooksError::Held(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        };
        let guard = Guard::new(Policy::parse(policy).unwrap(), books.ledger, books.audit, || Time::ZERO);
        let toy = Toy { trained: self.trained.clone(), ..Toy::new(&[], Mood::Well) };
        Participant::new(ClientId::new("north").unwrap(), Box::new(toy)).with_guard(guard)
    }

    async fn start(&self, authority: &Authority, server: &Stage) -> Running {
        self.start_as(self.participant(PLAIN_POLICY).await, authority, server)
    }

    fn start_as(&self, site: Participant, authority: &Authority, server: &Stage) -> Running {
        let outbox = Outbox::open(&self.outbox()).unwrap();
        Running::start_with(site, authority.identity("north"), server, outbox)
    }

    fn outbox(&self) -> std::path::PathBuf {
        self.state.path().join("outbox")
    }

    fn kept(&self) -> usize {
        std::fs::read_dir(self.outbox()).unwrap().count()
    }

    /// How often it has trained, and how many records its ledger has.
    fn counts(&self) -> (usize, usize) {
        let ledger = std::fs::read_to_string(self.state.path().join("ledger.jsonl")).unwrap();
        (self.trainings.try_iter().count(), ledger.lines().count())
    }
}

/// A task of a real run: without a seed no two trainings end alike.
fn question() -> Task {
    Task { seed: None, ..train(1, 3) }
}

/// All bytes of the answer to a task; its receipt is still due.
async fn ask(connection: &quinn::Connection, asked: &Task) -> (Vec<u8>, quinn::SendStream) {
    let (send, mut recv) = send_task(connection, asked).await;
    (recv.read_to_end(1 << 20).await.unwrap(), send)
}

fn cut(connection: &quinn::Connection) {
    connection.close(9u32.into(), b"the line is cut");
}

fn resent(first: &[u8]) -> Vec<u8> {
    [&encode(FrameKind::Resent, &Resent), first].concat()
}

async fn accepted(agent: &mut Running) {
    agent.until(|event| matches!(event, AgentEvent::Accepted { .. }).then_some(())).await;
}

async fn why_discarded(agent: &mut Running) -> String {
    let why = |event: &AgentEvent| match event {
        AgentEvent::Discarded { .. } => Some(event.to_string()),
        _ => None,
    };
    agent.until(why).await
}

#[test]
fn a_line_cut_after_training_costs_one_training_and_one_charge_and_the_same_bytes_go_out() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        let (first, _send) = ask(&connection, &asked).await;
        cut(&connection);
        for cuts in 0..2 {
            let connection = server.welcome().await;
            let (again, mut send) = ask(&connection, &asked).await;
            assert_eq!(again, resent(&first));
            if cuts == 0 {
                cut(&connection);
                continue;
            }
            assert_eq!((site.counts(), site.kept()), ((1, 1), 1));
            acknowledge(&mut send, Receipt::Accepted).await;
            accepted(&mut agent).await;
            assert_eq!(site.kept(), 1);
            cut(&connection);
        }
        // The server has fallen over before it had committed the round of the answer that it has acknowledged.
        let connection = server.welcome().await;
        let (again, mut send) = ask(&connection, &asked).await;
        assert_eq!((again, site.counts()), (resent(&first), (0, 1)));
        acknowledge(&mut send, Receipt::Accepted).await;
        accepted(&mut agent).await;
        let (next, _send) = ask(&connection, &Task { seed: None, ..train(2, 3) }).await;
        assert_ne!(next, first);
        assert_eq!(
            (site.counts(), site.kept()),
            ((1, 2), 1),
            "what the run has gone on from is kept no longer"
        );
        agent.stop().await;
        let audit = std::fs::read_to_string(site.state.path().join("audit.jsonl")).unwrap();
        assert_eq!((audit.matches("resent").count(), audit.matches("trained").count()), (3, 2), "{audit}");
    });
}

#[test]
fn an_answer_outlives_the_program_and_is_sent_by_its_next_life() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let agent = site.start(&authority, &server).await;
        let (first, _send) = ask(&server.welcome().await, &asked).await;
        agent.stop().await;
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        // The server has fallen over, too, and puts the step as another attempt.
        let renewed = Task { id: asked.id.next_attempt(), ..asked.clone() };
        let (again, mut send) = ask(&connection, &renewed).await;
        let marked = resent(&first);
        assert_eq!(again.len(), marked.len());
        let other: Vec<usize> = (0..again.len()).filter(|at| again[*at] != marked[*at]).collect();
        assert_eq!(other, [12 + 12 + 14], "they differ in the attempt alone");
        acknowledge(&mut send, Receipt::Accepted).await;
        accepted(&mut agent).await;
        assert_eq!(site.counts(), (1, 1));
        agent.stop().await;
    });
}

#[test]
fn a_damaged_or_stale_file_is_said_and_the_task_is_done_and_charged_anew() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let agent = site.start(&authority, &server).await;
        let (first, _send) = ask(&server.welcome().await, &asked).await;
        agent.stop().await;
        let file = site.outbox().join(format!("{}.answer", asked.id.run));
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() - 40;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        let (second, _send) = ask(&connection, &asked).await;
        assert_ne!(second, first);
        let why = why_discarded(&mut agent).await;
        assert!(
            why.contains("checksum") && why.contains(".answer") && why.ends_with("charged again"),
            "{why}"
        );
        assert_eq!(site.counts(), (2, 2));
        cut(&connection);
        // Another task of the same name gets nothing of it.
        let model = Arc::new(Parameters::new(vec![0.75; 3]));
        let work = Work::Train { model, learning_rate_scale: 1.0, norm_max: None };
        let other = Task { work, ..asked.clone() };
        let (third, _send) = ask(&server.welcome().await, &other).await;
        assert!(third != second && !third.starts_with(&encode(FrameKind::Resent, &Resent)[..8]));
        assert!(why_discarded(&mut agent).await.contains("another task of the same name"));
        assert_eq!(site.counts(), (1, 3));
        agent.stop().await;
    });
}

#[test]
fn a_ledger_that_lacks_the_charge_sends_nothing_for_free() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let agent = site.start(&authority, &server).await;
        let (first, _send) = ask(&server.welcome().await, &asked).await;
        agent.stop().await;
        // The books of another beginning, with the outbox of this one.
        let other = Site::new();
        std::fs::create_dir_all(other.outbox()).unwrap();
        let name = format!("{}.answer", asked.id.run);
        std::fs::copy(site.outbox().join(&name), other.outbox().join(&name)).unwrap();
        let mut agent = other.start(&authority, &server).await;
        let (second, _send) = ask(&server.welcome().await, &asked).await;
        assert_ne!(second, first);
        assert!(why_discarded(&mut agent).await.contains("ledger"));
        assert_eq!(other.counts(), (1, 1));
        agent.stop().await;
    });
}

#[test]
fn a_server_of_the_release_before_gets_updates_anew_from_a_site_that_shows_a_ledger() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.server();
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        let (first, _send) = ask(&connection, &asked).await;
        cut(&connection);
        let (second, _send) = ask(&server.welcome().await, &asked).await;
        assert_ne!(second, first);
        assert!(why_discarded(&mut agent).await.contains("earlier release"));
        assert_eq!(site.counts(), (2, 2));
        agent.stop().await;
        // Without a ledger nobody counts, and there is no frame that such a server does not know.
        let agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let (first, _send) = ask(&connection, &asked).await;
        cut(&connection);
        assert_eq!(ask(&server.welcome().await, &asked).await.0, first);
        agent.stop().await;
    });
}

#[test]
fn what_was_computed_does_not_leave_a_site_that_pauses_or_has_changed_its_policy() {
    play(async {
        let (authority, asked) = (Authority::new(), question());
        let server = authority.capable_server();
        for reason in [Decline::Policy, Decline::Paused] {
            let site = Site::new();
            let agent = site.start(&authority, &server).await;
            ask(&server.welcome().await, &asked).await;
            agent.stop().await;
            let policy = if reason == Decline::Policy { "" } else { PLAIN_POLICY };
            let participant = site.participant(policy).await;
            let participant = match reason {
                Decline::Paused => participant.with_pause(Pause::new(|| true)),
                _ => participant,
            };
            let agent = site.start_as(participant, &authority, &server);
            let (_send, mut recv) = send_task(&server.welcome().await, &asked).await;
            let Outcome::Declined { reason: told, .. } = read_answer(&mut recv).await.outcome else {
                panic!()
            };
            assert_eq!((told, site.counts()), (reason, (1, 1)));
            agent.stop().await;
        }
    });
}

#[test]
fn noise_of_the_sites_own_is_drawn_once_and_nobody_can_average_two_draws_of_it() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), private(1, local(1e6)));
        let server = authority.capable_server();
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        let (first, _send) = ask(&connection, &asked).await;
        cut(&connection);
        let connection = server.welcome().await;
        let (again, mut send) = ask(&connection, &asked).await;
        assert_eq!((again, site.counts()), (resent(&first), (1, 1)));
        acknowledge(&mut send, Receipt::Accepted).await;
        accepted(&mut agent).await;
        agent.stop().await;
    });
}

/// A policy that allows one training a day.
fn once_a_day() -> String {
    let rare = PLAIN_POLICY.replace("rounds_per_day = \"any\"", "rounds_per_day = 1");
    assert_ne!(rare, PLAIN_POLICY);
    rare
}

#[test]
fn how_often_a_site_trains_is_no_matter_of_an_answer_that_is_sent_again() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let participant = site.participant(&once_a_day()).await;
        let agent = site.start_as(participant, &authority, &server);
        let connection = server.welcome().await;
        let (first, _send) = ask(&connection, &asked).await;
        cut(&connection);
        assert_eq!(ask(&server.welcome().await, &asked).await.0, resent(&first));
        assert_eq!(site.counts(), (1, 1));
        agent.stop().await;
    });
}

#[test]
fn an_answer_that_the_server_gave_up_is_kept_no_longer_and_one_that_broke_off_is() {
    play(async {
        let (authority, site, asked) = (Authority::new(), Site::new(), question());
        let server = authority.capable_server();
        let mut agent = site.start(&authority, &server).await;
        let connection = server.welcome().await;
        let (first, mut send) = ask(&connection, &asked).await;
        acknowledge(&mut send, Receipt::Refused(Rejection::Truncated)).await;
        agent.until(|event| matches!(event, AgentEvent::Refused { .. }).then_some(())).await;
        let (again, mut send) = ask(&connection, &asked).await;
        assert_eq!(again, resent(&first));
        send.reset(1u32.into()).unwrap();
        agent.until(|event| matches!(event, AgentEvent::Abandoned { .. }).then_some(())).await;
        assert_eq!((site.counts(), is_empty(&site.outbox())), ((1, 1), true));
        agent.stop().await;
    });
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}
