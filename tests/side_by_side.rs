//! Runs that are worked on side by side: what one of them waits for holds up no other run, no site that joins and no operator.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may panic, and measure time")]

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/federation.rs"]
mod federation;
#[path = "support/member.rs"]
mod member;
#[path = "support/trio.rs"]
mod trio;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bucket::SlowBucket;
use consortia::Room;
use federation::Federation;
use member::PATIENCE;
use protocol::RunId;
use protocol::wire::{Control, RunState};
use server::net::{Limits, Objects, ServeError, Server, ServerConfig};

const SEED: u64 = 11;
/// How long the bucket takes for a model of the slow run.
const WRITE: Duration = Duration::from_secs(5);
/// Bytes of an object from which on the bucket is slow: more than the small model has, and fewer than the large one.
const LARGE: u64 = 16 << 10;
const WINDOW: Duration = Duration::from_secs(1);
const WARM_MAX: Duration = Duration::from_secs(20);

/// A model of 22,502 values; a logistic one has 14.
const MLP: &str = "{ mlp = { hidden = [2500] } }";

fn plan(name: &str, model: &str, rounds: u32) -> String {
    format!(
        "name = \"{name}\"\nrounds = {rounds}\nmodel = {model}\n\
         [data.tensor]\nshape = [6]\ntarget = {{ classes = 2 }}\n\
         [training]\nbatch_size = 8\noptimizer = {{ sgd = {{ learning_rate = 0.05 }} }}\n\
         [evaluation]\nsites = \"none\"\n[cohort]\nclients_min = 3\n"
    )
}

/// A server whose models are in this bucket.
async fn serve(federation: &Federation, bucket: &Arc<SlowBucket>) -> Server {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (state, identity) = (federation.folder("state"), federation.folder("identity"));
    let objects = Some(Objects::new(Arc::clone(bucket) as Arc<_>, "ours"));
    let config = ServerConfig { objects, ..ServerConfig::new(state, listen, identity) };
    Server::start(config, Arc::new(Room::new())).await.unwrap()
}

fn rounds_done(server: &Server, run: RunId) -> u32 {
    server.watch().borrow().get(&run).map_or(0, |live| live.rounds_done)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The median number of a run's rounds in windows of a second.
async fn pace(server: &Server, run: RunId, windows: usize) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..windows {
        let (began, before) = (Instant::now(), rounds_done(server, run));
        tokio::time::sleep(WINDOW).await;
        rates.push(f64::from(rounds_done(server, run) - before) / began.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_models_take_seconds_to_store_holds_up_no_other_run_no_site_and_no_operator() {
    let federation = Federation::new();
    let bucket = Arc::new(SlowBucket::new(LARGE, WRITE));
    let server = serve(&federation, &bucket).await;
    let mut members = Vec::new();
    for (name, data) in trio::sites() {
        members.push(federation.join(&server, name.as_str(), trio::learner(data)).await);
    }
    let small = server.submit(plan("small", "\"logistic\"", 1_000_000), Some(SEED)).await.unwrap();
    until("the small run begins", || rounds_done(&server, small) > 5).await;
    // What watchers are shown grows up to 1,000 rounds, and with it what a round costs.
    let began = Instant::now();
    while rounds_done(&server, small) < 1100 && began.elapsed() < WARM_MAX {
        tokio::time::sleep(WINDOW / 10).await;
    }

    let large = server.submit(plan("large", MLP, 1_000_000), Some(SEED)).await.unwrap();
    let mut told = String::new();
    // Measured again where the machine did something else meanwhile: a run that waited would have no round at all in most windows.
    for attempt in 0..6 {
        until("the large run stores a model", || bucket.slow_begun() > bucket.slow_ended()).await;
        let beside = pace(&server, small, 7).await;
        server.control(large, Control::Pause, "ada").await.unwrap();
        until("the large run stores nothing", || bucket.slow_begun() == bucket.slow_ended()).await;
        let alone = pace(&server, small, 7).await;
        server.control(large, Control::Resume, "ada").await.unwrap();
        told += &format!("{beside:.1} rounds a second beside, {alone:.1} alone; ");
        if 1.2 * beside >= alone {
            break;
        }
        assert!(attempt < 5, "{told}");
    }
    println!("{told}");

    // A site joins both runs while one model is being stored, and an operator is answered.
    let ended = bucket.slow_ended();
    until("the next model is stored", || {
        bucket.slow_ended() > ended && bucket.slow_begun() > bucket.slow_ended()
    })
    .await;
    let ended = bucket.slow_ended();
    let (_, data) = trio::sites().swap_remove(0);
    members.push(federation.join(&server, "east", trio::learner(data)).await);
    for run in [small, large] {
        until("the site is known to every run", || {
            let live = server.watch().borrow().get(&run).cloned();
            live.is_some_and(|live| {
                live.clients.iter().any(|client| client.client.as_str() == "east" && client.connected)
            })
        })
        .await;
    }
    assert_eq!(bucket.slow_ended(), ended, "the site waited for the bucket");
    until("the next model is stored", || {
        bucket.slow_ended() > ended && bucket.slow_begun() > bucket.slow_ended()
    })
    .await;
    let ended = bucket.slow_ended();
    let stopped = server.control(small, Control::StopNow, "ada").await.unwrap();
    assert_eq!(stopped.state, RunState::Stopped);
    assert_eq!(bucket.slow_ended(), ended, "the operator waited for the bucket");
    for member in members {
        member.leave().await;
    }
    // What the bucket has not stored after two seconds is given up, and made anew at the next start.
    let ended = server.shutdown().await;
    assert!(ended.is_ok() || ended.as_ref().is_err_and(ServeError::passes), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_checked_and_folded_on_other_threads_make_the_simulated_model() {
    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let mut members = Vec::new();
    for (name, data) in trio::sites() {
        members.push(federation.join(&server, name.as_str(), trio::learner(data)).await);
    }
    let operator = federation.operator(&server).await;
    // Side by side, so that their answers cross.
    let plans = ["one", "two"].map(|name| plan(name, MLP, 6));
    let runs = [operator.submit(&plans[0], SEED).await, operator.submit(&plans[1], SEED + 1).await];
    for ((run, plan), seed) in runs.into_iter().zip(&plans).zip(SEED..) {
        let end = operator.follow(run).await;
        assert_eq!((end.state, end.rounds_done), (RunState::Finished, 6), "{}", end.message);
        assert_eq!(end.model_sha256, trio::simulated_model(plan, seed));
    }
    for member in members {
        member.leave().await;
    }
    server.shutdown().await.unwrap();
}
