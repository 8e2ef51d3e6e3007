//! Sites behind a bad line: packets lost and late, nothing at all for half a minute, and an address that changes in the middle of an
//! upload; and behind a firewall that lets no UDP out. The run finishes with the model that a good line gives.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "support/chance.rs"]
mod chance;
#[path = "support/federation.rs"]
mod federation;
#[path = "support/member.rs"]
mod member;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/stream.rs"]
mod stream;
#[path = "support/trio.rs"]
mod trio;

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use client::net::{AgentConfig, AgentEvent};
use federation::Federation;
use member::Member;
use protocol::wire::RunState;
use relay::{Line, Relay};
use server::net::Limits;

const SEED: u64 = 3;
/// This site stands beside the server; the others are far away.
const NEIGHBOUR: &str = "north";
/// Five percent.
const LOST_OF_1000: u64 = 50;
/// On the way to the server, and again on the way back.
const DELAY: Duration = Duration::from_millis(50);
const PARTITION: Duration = Duration::from_secs(30);
/// Bytes of an upload after which the sender's address changes: a third of it.
const MIDDLE: u64 = 20_000;

/// A model of 15,618 parameters: an update takes some fifty packets.
const PLAN: &str = "name = \"lossy-line\"\nrounds = 4\nmodel = { mlp = { hidden = [120, 120] } }\n\
     [data.tensor]\nshape = [6]\ntarget = { classes = 2 }\n\
     [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
     [cohort]\nclients_min = 3\nquorum = 3\ndeadline_seconds = 300\n";

/// One run through the relay while `availability` does to it what it likes; the seconds it took and the model.
async fn run(
    line: Line,
    availability: impl AsyncFnOnce(&Relay, tokio::sync::watch::Receiver<server::net::LiveRuns>),
) -> (f64, String) {
    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let relay = Relay::start(server.local_addr(), line, SEED).await;
    let mut sites = Vec::new();
    for (name, data) in trio::sites() {
        let (name, learner) = (name.as_str(), trio::learner(data));
        if name == NEIGHBOUR {
            sites.push(federation.join(&server, name, learner).await);
            continue;
        }
        let (folder, address) = (federation.issue(name), relay.address().to_string());
        sites.push(Member::join(&address, &folder, name, learner).await);
    }
    let (operator, began) = (federation.operator(&server).await, Instant::now());
    let run = operator.submit(PLAN, SEED).await;
    let (summary, ()) = tokio::join!(operator.follow(run), availability(&relay, server.watch()));
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(summary.state, RunState::Finished, "{}", summary.message);
    assert!(summary.history.iter().all(|round| round.answered == 3), "{:?}", summary.history);
    for site in sites {
        site.leave().await;
    }
    server.shutdown().await.unwrap();
    (seconds, summary.model_sha256)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_delay_partition_and_a_changed_address_cost_seconds_and_nothing_else() {
    let good = Line { lost_of_1000: 0, delay: Duration::ZERO };
    let bad = Line { lost_of_1000: LOST_OF_1000, delay: DELAY };
    let (calm, model) = run(good, async |_, _| {}).await;
    assert_eq!(model, trio::simulated_model(PLAN, SEED));

    let (lossy, through_loss) = run(bad, async |_, _| {}).await;
    println!("5 % loss and 100 ms: {lossy:.1} s where a good line takes {calm:.1} s");

    let (parted, through_partition) = run(bad, async |relay, mut live| {
        live.wait_for(|live| live.values().any(|run| run.rounds_done >= 1)).await.unwrap();
        relay.part(PARTITION).await;
    })
    .await;
    println!("with nothing at all for {PARTITION:?}: {parted:.1} s");

    let (moved, through_move) = run(bad, async |relay, mut live| {
        live.wait_for(|live| live.values().any(|run| run.rounds_done >= 1)).await.unwrap();
        let before = relay.changes();
        relay.change_address_after(MIDDLE).await;
        assert!(relay.changes() > before);
    })
    .await;
    println!("with another address in the middle of an upload: {moved:.1} s");
    assert_eq!([through_loss, through_partition, through_move], [&model, &model, &model].map(Clone::clone));
}

/// Longer than a server once let an upload pause, and shorter than it lets a connection be silent.
const CUT: Duration = Duration::from_secs(12);
/// At this rate an update of 62 kB is under way for some six seconds.
const SLOW: NonZeroU64 = NonZeroU64::new(10_000).unwrap();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_a_silence_interrupts_goes_on_as_long_as_its_connection_lives() {
    let plan = PLAN.replace("rounds = 4", "rounds = 1");
    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let line = Line { lost_of_1000: 0, delay: Duration::ZERO };
    let relay = Relay::start(server.local_addr(), line, SEED).await;
    let (mut sites, mut answering) = (Vec::new(), None);
    for (name, data) in trio::sites() {
        let (name, learner) = (name.as_str(), trio::learner(data));
        if name == NEIGHBOUR {
            let address = relay.address().to_string();
            let config = AgentConfig { upload_bytes_per_second: Some(SLOW), ..AgentConfig::new(address) };
            let (site, mut events) = Member::with(config, &federation.issue(name), name, learner);
            assert!(!connected(&mut events).await);
            answering = Some(events);
            sites.push(site);
            continue;
        }
        sites.push(federation.join(&server, name, learner).await);
    }
    let mut events = answering.unwrap();
    let operator = federation.operator(&server).await;
    let run = operator.submit(&plan, SEED).await;
    let cut = async {
        while !matches!(events.recv().await, Some(AgentEvent::Answering { .. })) {}
        tokio::time::sleep(Duration::from_secs(2)).await;
        relay.part(CUT).await;
        while events.recv().await.is_some() {}
    };
    let summary = tokio::select! {
        summary = operator.follow(run) => summary,
        () = cut => panic!("the site's agent ended"),
    };
    assert_eq!(summary.state, RunState::Finished, "{}", summary.message);
    let refused: Vec<_> = summary.clients.iter().flat_map(|client| client.refused.clone()).collect();
    assert_eq!((summary.history[0].answered, refused), (3, Vec::new()));
    assert_eq!(summary.model_sha256, trio::simulated_model(&plan, SEED));
    for site in sites {
        site.leave().await;
    }
    server.shutdown().await.unwrap();
}

/// Waits until the site is connected, and says whether it is over TCP.
async fn connected(events: &mut tokio::sync::mpsc::Receiver<AgentEvent>) -> bool {
    let heard = async {
        loop {
            let event = events.recv().await.expect("the agent is at work");
            if let AgentEvent::Connected { over_tcp, .. } = event {
                return over_tcp;
            }
        }
    };
    tokio::time::timeout(member::PATIENCE, heard).await.expect("the site is connected")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_udp_gets_out_a_site_comes_over_tcp_and_moves_to_udp_as_soon_as_it_does() {
    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let line = Line { lost_of_1000: 0, delay: Duration::ZERO };
    let firewall = Relay::start(server.local_addr(), line, SEED).await;
    firewall.shut(true);
    let _streams = stream::forward(firewall.address(), server.local_addr()).await;
    let mut sites = Vec::new();
    for (name, data) in trio::sites() {
        let (name, learner) = (name.as_str(), trio::learner(data));
        let (direct, behind) = (server.local_addr().to_string(), firewall.address().to_string());
        let address = if name == NEIGHBOUR { direct } else { behind };
        let config = AgentConfig { udp_again: Duration::from_secs(1), ..AgentConfig::new(address) };
        let (site, mut events) = Member::with(config, &federation.issue(name), name, learner);
        assert_eq!(connected(&mut events).await, name != NEIGHBOUR, "{name}");
        sites.push((site, events));
    }
    let operator = federation.operator(&server).await;
    let over_tcp = operator.follow(operator.submit(PLAN, SEED).await).await;
    assert_eq!(over_tcp.state, RunState::Finished, "{}", over_tcp.message);

    firewall.shut(false);
    for (_, events) in sites.iter_mut().skip(1) {
        while connected(events).await {}
    }
    let over_udp = operator.follow(operator.submit(PLAN, SEED).await).await;
    let expected = trio::simulated_model(PLAN, SEED);
    assert_eq!([over_tcp.model_sha256, over_udp.model_sha256], [expected.clone(), expected]);
    for (site, _) in sites {
        site.leave().await;
    }
    server.shutdown().await.unwrap();
}
