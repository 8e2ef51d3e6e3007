//! The agent before a server of this file's own, over loopback.

mod limits;
mod outbox;
mod stage;
mod unknown;

use std::sync::Arc;
use std::time::Duration;

use protocol::wire::{
    AdminReply, AdminRequest, ConnectError, FrameKind, Greeting, HEADER_MAX, Receipt, RunState, RunSummary,
    TaskHeader, WorkHeader, encode,
};
use protocol::{Decline, Layout, Outcome, Parameters, Rejection, RunId, Stop, Work};
use quinn::ConnectionError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::stage::{Authority, Stage, acknowledge, read_answer, send_task};
use super::frames::{read_frame, write_frame};
use super::*;
use crate::participant::tests::{Mood, Toy, entropy, participant, spec, task, train};
use crate::{LocalState, Participant};

/// An agent at work, and what it tells.
struct Running {
    events: mpsc::Receiver<AgentEvent>,
    shutdown: CancellationToken,
    done: JoinHandle<Result<(), AgentError>>,
}

impl Running {
    fn start(participant: Participant, identity: Identity, server: &Stage) -> Self {
        Self::start_with(participant, identity, server, Outbox::default())
    }

    fn start_with(participant: Participant, identity: Identity, server: &Stage, outbox: Outbox) -> Self {
        let (sender, events) = mpsc::channel(64);
        let agent = Agent::new(participant, identity, AgentConfig::new(server.address()));
        let agent = agent.with_events(sender).with_outbox(outbox);
        let shutdown = CancellationToken::new();
        let done = tokio::spawn(agent.run(shutdown.clone()));
        Self { events, shutdown, done }
    }

    /// The first event of a kind; those before it are let go.
    async fn until<T>(&mut self, wanted: impl Fn(&AgentEvent) -> Option<T>) -> T {
        loop {
            let event = self.events.recv().await.expect("the agent ended before the event came");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    async fn error(&mut self) -> String {
        let waiting = |event: &AgentEvent| match event {
            AgentEvent::Waiting { error, .. } => Some(error.clone()),
            _ => None,
        };
        self.until(waiting).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap().unwrap();
    }
}

/// Runs a scene; one that hangs has failed.
fn play(scene: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), scene).await }).unwrap();
}

fn well() -> Participant {
    participant(&[], Mood::Well)
}

#[test]
fn an_update_over_quic_has_the_bits_of_the_same_task_done_at_home() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        for round in 1..3 {
            let asked = train(round, 3);
            let (mut send, mut recv) = send_task(&connection, &asked).await;
            let answer = read_answer(&mut recv).await;
            assert_eq!(answer, well().perform(&asked, entropy(), &Stop::default()));
            assert!(answer.outcome.points().is_some());
            acknowledge(&mut send, Receipt::Accepted).await;
            agent.until(|event| matches!(event, AgentEvent::Accepted { .. }).then_some(())).await;
        }
        let count = task(0, Work::Statistics { names: spec().statistics() });
        let (mut send, mut recv) = send_task(&connection, &count).await;
        assert_eq!(read_answer(&mut recv).await.outcome.words().map(<[i64]>::len), Some(12));
        acknowledge(&mut send, Receipt::Refused(Rejection::Stale)).await;
        let refused = |event: &AgentEvent| match event {
            AgentEvent::Refused { refusal: Rejection::Stale, meaning, .. } => Some(*meaning),
            _ => None,
        };
        assert!(agent.until(refused).await.contains("the round ended without this answer"));
        agent.stop().await;
        let closed = connection.closed().await;
        let left = matches!(&closed, ConnectionError::ApplicationClosed(close)
            if close.error_code == 0u32.into() && &close.reason[..] == b"leaving");
        assert!(left, "{closed}");
    });
}

#[test]
fn a_model_of_many_pieces_arrives_whole_and_so_does_its_update() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let large = || {
            let layout = Layout::new([("body".to_owned(), vec![700_001])]).unwrap();
            Participant::new(well().id().clone(), Box::new(Toy { layout, ..Toy::new(&[], Mood::Well) }))
        };
        let _agent = Running::start(large(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let model = Arc::new(Parameters::new((0u32..700_001).map(|at| (at as f32).sin()).collect()));
        let asked = task(1, Work::Train { model, learning_rate_scale: 1e-4, norm_max: None });
        let (_send, mut recv) = send_task(&connection, &asked).await;
        let answer = read_answer(&mut recv).await;
        assert_eq!(answer.outcome.points().map(<[i32]>::len), Some(700_001));
        assert!(answer == large().perform(&asked, entropy(), &Stop::default()));
    });
}

#[test]
fn a_dropped_agent_comes_back_and_works_on() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        for _ in 0..2 {
            let connection = server.welcome().await;
            agent.until(|event| matches!(event, AgentEvent::Connected { .. }).then_some(())).await;
            connection.close(9u32.into(), ConnectError::ShuttingDown.to_string().as_bytes());
            assert_eq!(agent.error().await, "the server is shutting down");
        }
        let connection = server.welcome().await;
        let model = Arc::new(Parameters::new(vec![0.25; 3]));
        let (_send, mut recv) = send_task(&connection, &task(4, Work::Evaluate { model })).await;
        let metrics = read_answer(&mut recv).await.outcome.metrics().unwrap();
        assert_eq!(metrics.loss, 0.25);
        agent.stop().await;
    });
}

#[test]
fn a_server_of_another_authority_is_not_talked_to_and_the_event_says_what_to_compare() {
    play(async {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let server = theirs.server();
        let mut agent = Running::start(well(), ours.identity("north"), &server);
        for _ in 0..2 {
            let refused = server.accept().await;
            assert!(refused.is_err());
            let error = agent.error().await;
            assert!(error.contains("ca.pem"), "{error}");
        }
        agent.stop().await;
    });
}

#[test]
fn a_certificate_that_the_server_does_not_accept_is_waited_out_and_named() {
    play(async {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let server = theirs.server();
        let stranger = Identity::load(ours.folder("north", &theirs).path()).unwrap();
        let mut agent = Running::start(well(), stranger, &server);
        for _ in 0..2 {
            assert!(server.accept().await.is_err());
            let error = agent.error().await;
            assert!(error.contains("ask the operator for a new one"), "{error}");
        }
        agent.stop().await;
    });
}

#[test]
fn a_client_that_is_no_site_gives_up_and_one_that_was_superseded_does_not() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let (_first, mut send) = server.hear().await;
        let superseded = Greeting::Rejected(ConnectError::Superseded);
        write_frame(&mut send, FrameKind::Greeting, &superseded).await.unwrap();
        assert!(agent.error().await.contains("connected again"));
        let (second, _send) = server.hear().await;
        second.close(1u32.into(), ConnectError::NotASite.to_string().as_bytes());
        let error = agent.done.await.unwrap().unwrap_err();
        assert!(matches!(error, AgentError::Rejected(ConnectError::NotASite)), "{error}");
    });
}

#[test]
fn a_server_of_another_version_ends_the_agent_with_both_versions_named() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let agent = Running::start(well(), authority.identity("north"), &server);
        let (_connection, mut send) = server.hear().await;
        let mut frame = encode(FrameKind::Greeting, &Greeting::Rejected(ConnectError::Busy));
        frame[4] = 9;
        send.write_all(&frame).await.unwrap();
        let error = agent.done.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("version 9") && error.contains("version 1"), "{error}");
    });
}

/// An agent whose training never ends by itself, and the signal that it has begun.
fn endless(authority: &Authority, server: &Stage) -> (Running, std::sync::mpsc::Receiver<()>) {
    let (begun, begins) = std::sync::mpsc::channel();
    let toy = Toy { trained: begun, ..Toy::new(&[], Mood::Endless) };
    let site = Participant::new(well().id().clone(), Box::new(toy));
    (Running::start(site, authority.identity("north"), server), begins)
}

#[test]
fn a_newer_task_stops_the_older_one() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let (agent, begins) = endless(&authority, &server);
        let connection = server.welcome().await;
        let (_send, mut older) = send_task(&connection, &train(1, 3)).await;
        tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
        let model = Arc::new(Parameters::new(vec![0.25; 3]));
        let (_send, mut newer) = send_task(&connection, &task(1, Work::Evaluate { model })).await;
        assert!(read_answer(&mut newer).await.outcome.metrics().is_some());
        let older = read_answer(&mut older).await.outcome;
        assert!(matches!(older, Outcome::Declined { reason: Decline::Stopped, .. }), "{older:?}");
        agent.stop().await;
    });
}

#[test]
fn a_task_that_the_server_gives_up_is_stopped() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let (mut agent, begins) = endless(&authority, &server);
        let connection = server.welcome().await;
        let (mut send, recv) = send_task(&connection, &train(1, 3)).await;
        let begins = tokio::task::spawn_blocking(move || (begins.recv().unwrap(), begins).1).await.unwrap();
        send.reset(1u32.into()).unwrap();
        drop(recv);
        let error = |event: &AgentEvent| match event {
            AgentEvent::Abandoned { task: Some(_), error } => Some(error.clone()),
            _ => None,
        };
        assert_eq!(agent.until(error).await, "the server no longer wants it");
        // The learner is free again, so the next training begins.
        let _streams = send_task(&connection, &train(2, 3)).await;
        tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
        agent.stop().await;
    });
}

#[test]
fn a_model_above_the_sites_limit_is_declined_before_its_bytes_come() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        for model_len in [(1 << 30) + 1, u64::MAX] {
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            let header = TaskHeader { model_len, ..TaskHeader::of(&train(1, 3), "{}") };
            write_frame(&mut send, FrameKind::Task, &header).await.unwrap();
            let Outcome::Declined { detail, .. } = read_answer(&mut recv).await.outcome else { panic!() };
            assert!(detail.contains("model_bytes_max"), "{detail}");
            let declined = |event: &AgentEvent| matches!(event, AgentEvent::Declined { .. }).then_some(());
            agent.until(declined).await;
        }
    });
}

#[test]
fn a_model_with_more_than_was_announced_is_given_up() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let task = train(1, 3);
        let mut bytes = encode(FrameKind::Task, &TaskHeader::of(&task, &task.spec.to_json()));
        bytes.extend([0; 3 * 4 + 1]);
        send.write_all(&bytes).await.unwrap();
        let error = |event: &AgentEvent| match event {
            AgentEvent::Abandoned { task: Some(_), error } => Some(error.clone()),
            _ => None,
        };
        assert_eq!(agent.until(error).await, "the server sent more than it had announced");
        agent.stop().await;
    });
}

#[test]
fn models_follow_each_other_in_one_memory_and_none_is_mixed_with_the_last() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        for round in 1..=3 {
            let mut task = train(round, 3);
            if let Work::Train { model, .. } = &mut task.work {
                *model = Arc::new(Parameters::new(vec![0.5 * round as f32, -1.0, 0.25]));
            }
            let (mut send, mut recv) = send_task(&connection, &task).await;
            let came = read_answer(&mut recv).await;
            assert_eq!(came, well().perform(&task, entropy(), &Stop::default()), "round {round}");
            acknowledge(&mut send, Receipt::Accepted).await;
        }
        agent.stop().await;
    });
}

#[test]
fn nonsense_on_a_stream_ends_the_stream_and_not_the_agent() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[0x55; 64]).await.unwrap();
        let error = |event: &AgentEvent| match event {
            AgentEvent::Abandoned { task: None, error } => Some(error.clone()),
            _ => None,
        };
        assert!(agent.until(error).await.contains("do not begin with a frame"));
        assert!(recv.read_to_end(64).await.is_err());
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let header =
            TaskHeader { work: WorkHeader::Evaluate, model_len: 0, ..TaskHeader::of(&train(1, 0), "{}") };
        assert!(encode(FrameKind::Task, &header).len() < HEADER_MAX);
        write_frame(&mut send, FrameKind::Task, &header).await.unwrap();
        let Outcome::Declined { detail, .. } = read_answer(&mut recv).await.outcome else { panic!() };
        assert!(detail.contains("the plan in the task is not understood"), "{detail}");
    });
}

#[test]
fn what_stays_at_the_site_is_given_to_the_keeper() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let (keep, mut kept) = mpsc::channel::<LocalState>(4);
        let site = participant(&["head"], Mood::Well);
        let config = AgentConfig::new(server.address());
        let agent = Agent::new(site, authority.identity("north"), config);
        let agent = agent.with_keeper(move |personal| keep.try_send(personal.clone()).unwrap());
        tokio::spawn(agent.run(CancellationToken::new()));
        let connection = server.welcome().await;
        let _streams = send_task(&connection, &train(1, 2)).await;
        let kept = kept.recv().await.unwrap();
        assert_eq!(kept.values(RunId(1)).map(<[f32]>::len), Some(1));
    });
}

fn summary(state: RunState) -> RunSummary {
    RunSummary {
        run: RunId(5),
        name: "heart".into(),
        state,
        message: String::new(),
        rounds_done: 1,
        rounds: 2,
        is_seeded: false,
        model_sha256: String::new(),
        history: vec![],
        clients: vec![],
    }
}

#[test]
fn an_operator_asks_watches_and_hears_the_servers_own_words() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let address = server.address();
        let serving = tokio::spawn(async move {
            let connection = server.accept().await.unwrap();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let request = read_frame(&mut recv, FrameKind::AdminRequest, 4096).await.unwrap().unwrap();
                let replies = match request {
                    AdminRequest::Submit { .. } => vec![AdminReply::Error("line 3: no rounds".into())],
                    AdminRequest::List => vec![AdminReply::Runs(vec![summary(RunState::Queued)])],
                    AdminRequest::Watch { .. } => vec![RunState::Running, RunState::Finished]
                        .into_iter()
                        .map(|state| AdminReply::Run(summary(state)))
                        .collect(),
                    other => panic!("nobody asks for {other:?} here"),
                };
                for reply in replies {
                    write_frame(&mut send, FrameKind::AdminReply, &reply).await.unwrap();
                }
                send.finish().unwrap();
            }
        });
        let identity = authority.identity("operator");
        let operator = OperatorClient::connect(&address, SERVER_NAME, &identity).await.unwrap();
        let listed = operator.ask(&AdminRequest::List).await.unwrap();
        assert_eq!(listed, AdminReply::Runs(vec![summary(RunState::Queued)]));
        let submit = AdminRequest::Submit { plan_toml: String::new(), seed: None };
        let error = operator.ask(&submit).await.unwrap_err();
        assert!(matches!(&error, OperatorError::Server(text) if text == "line 3: no rounds"), "{error}");
        let mut seen = vec![];
        let last = operator.watch(None, |run| seen.push(run.state)).await.unwrap();
        assert_eq!((seen, last.state), (vec![RunState::Running, RunState::Finished], RunState::Finished));
        operator.close().await;
        serving.await.unwrap();
    });
}

#[test]
fn a_sites_certificate_is_not_an_operators() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let address = server.address();
        let serving = tokio::spawn(async move {
            let first = server.accept().await.unwrap();
            let (mut send, _recv) = first.accept_bi().await.unwrap();
            let rejected = Greeting::Rejected(ConnectError::NotAHello);
            write_frame(&mut send, FrameKind::Greeting, &rejected).await.unwrap();
            let second = server.accept().await.unwrap();
            let _streams = second.accept_bi().await.unwrap();
            second.close(1u32.into(), ConnectError::NotAHello.to_string().as_bytes());
            first.closed().await;
        });
        let identity = authority.identity("north");
        for _ in 0..2 {
            let site = OperatorClient::connect(&address, SERVER_NAME, &identity).await.unwrap();
            let error = site.ask(&AdminRequest::List).await.unwrap_err();
            assert!(matches!(error, OperatorError::NotAnOperator), "{error}");
            drop(site);
        }
        serving.await.unwrap();
    });
}

#[test]
fn a_task_that_is_cancelled_before_its_receipt_is_told_as_unwanted() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let (mut send, mut recv) = send_task(&connection, &train(1, 3)).await;
        read_answer(&mut recv).await;
        send.reset(1u32.into()).unwrap();
        let error = |event: &AgentEvent| match event {
            AgentEvent::Abandoned { error, .. } => Some(error.clone()),
            _ => None,
        };
        assert_eq!(agent.until(error).await, "the server no longer wants it");
    });
}

#[test]
fn a_server_that_goes_is_not_said_to_have_given_its_tasks_up() {
    play(async {
        let told = |event: &AgentEvent| match event {
            AgentEvent::Abandoned { error, .. } | AgentEvent::Waiting { error, .. } => Some(error.clone()),
            _ => None,
        };
        let goodbye = ConnectError::ShuttingDown.to_string();
        let authority = Authority::new();
        // While the site works, and when its answer has left.
        for is_at_work in [true, false] {
            let server = authority.server();
            let (mut agent, begins) = match is_at_work {
                true => {
                    let (agent, begins) = endless(&authority, &server);
                    (agent, Some(begins))
                }
                false => (Running::start(well(), authority.identity("north"), &server), None),
            };
            let connection = server.welcome().await;
            let (mut send, mut recv) = send_task(&connection, &train(1, 3)).await;
            match begins {
                Some(begins) => {
                    tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
                }
                None => drop(read_answer(&mut recv).await),
            }
            send.reset(1u32.into()).unwrap();
            connection.close(0u32.into(), goodbye.as_bytes());
            let said = agent.until(told).await;
            assert!(said.contains(&goodbye) && !said.contains("no longer wants"), "{said}");
        }
    });
}

#[tokio::test]
async fn an_address_that_leads_nowhere_is_named() {
    let authority = Authority::new();
    let lost = OperatorClient::connect("no port", SERVER_NAME, &authority.identity("operator")).await;
    let error = lost.unwrap_err().to_string();
    assert!(error.contains("`no port`") && error.contains("host:port"), "{error}");
}

#[test]
fn an_identity_names_the_file_at_fault() {
    let authority = Authority::new();
    let fault = |name: &str, text: Option<&str>| {
        let folder = authority.folder("north", &authority);
        match text {
            Some(text) => stage::write(folder.path(), name, text),
            None => std::fs::remove_file(folder.path().join(name)).unwrap(),
        }
        Identity::load(folder.path()).unwrap_err()
    };
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        let (gone, empty) = (fault(name, None), fault(name, Some("hello")));
        assert!(matches!(gone, IdentityError::File { .. }) && gone.to_string().contains(name), "{gone}");
        assert!(matches!(empty, IdentityError::Pem { .. }) && empty.to_string().contains(name), "{empty}");
    }
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let pair = fault("key.pem", Some(&other));
    assert!(matches!(pair, IdentityError::Pair { .. }), "{pair}");
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(fault("ca.pem", Some(nonsense)), IdentityError::Certificate { .. }));
}
