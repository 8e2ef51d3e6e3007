//! Runs from submission to the final model, with interruptions.

use std::path::Path;

use protocol::wire::{AdminReply, AdminRequest, Receipt, RunState, RunSummary};
use protocol::{Layout, Parameters, RunId};
use server::Checkpoint;
use server::net::{Limits, LiveRuns, Server, Store, Submission};

use super::federation::{Federation, PLAN, Site, admin_reply};

/// Every site answers one round.
async fn round(sites: &[Site]) {
    for (site, value) in sites.iter().zip([1.0, 2.0, 6.0]) {
        assert_eq!(site.train(value).await, Receipt::Accepted);
    }
}

/// Waits until so many rounds of the active run are stored.
async fn stored(server: &Server, rounds: u32) -> RunSummary {
    let mut live = server.watch();
    let there = live.wait_for(|live| live.values().any(|live| live.rounds_done >= rounds));
    (**there.await.unwrap().values().next().unwrap()).clone()
}

async fn values(state: &Path, run: RunId) -> Vec<f32> {
    let store = Store::open(state).await.unwrap();
    let model = store.load(run).await.unwrap().checkpoint.model.values().to_vec();
    store.close().await;
    model
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_sites_train_three_rounds_and_the_model_is_what_their_means_make_it() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let run = operator.submit(PLAN).await;
    let sites = federation.sites(&server).await;
    let mut watched = operator.request(&AdminRequest::Watch { run: Some(run) }).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    let last = loop {
        match admin_reply(&mut watched).await {
            AdminReply::Run(summary) if summary.state == RunState::Finished => break summary,
            AdminReply::Run(summary) => assert_eq!((summary.run, summary.rounds), (run, 3)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((last.rounds_done, last.history.len(), last.is_seeded), (3, 3, true));
    assert!(last.history.iter().all(|line| line.released && line.answered == 3));
    assert!(last.clients.iter().all(|client| client.accepted == 3 && client.refused.is_empty()));
    let AdminReply::Runs(runs) = operator.ask(&AdminRequest::List).await else { panic!("no list") };
    assert_eq!(runs.iter().map(|one| (one.run, one.state)).collect::<Vec<_>>(), [(run, RunState::Finished)]);
    assert!(Path::new(&server.model_place(run).await.unwrap()).exists());
    server.shutdown().await.unwrap();
    assert_eq!(sites[0].farewell().await, "the server is shutting down");
    // The mean is 3 in every round; with momentum 0.5 the steps are 3, 4.5 and 5.25.
    for value in values(&federation.state(), run).await {
        assert!((value - 12.75).abs() < 1e-3, "{value}");
    }
}

/// A copy of a state folder, as a loss of power would leave it.
fn copy_state(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_state(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_power_between_rounds_ends_with_the_same_model() {
    let federation = Federation::new();
    let first = federation.serve().await;
    let run = first.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let sites = federation.sites(&first).await;
    round(&sites).await;
    stored(&first, 1).await;
    let copied = federation.dir.path().join("copied");
    copy_state(&federation.state(), &copied);

    let second = federation.serve_with(&copied, Limits::default()).await;
    let others = federation.sites(&second).await;
    for _ in 0..2 {
        round(&sites).await;
        round(&others).await;
    }
    let (whole, resumed) = (stored(&first, 3).await, stored(&second, 3).await);
    assert_eq!(whole.model_sha256, resumed.model_sha256);
    assert_eq!((whole.run, resumed.run, resumed.history.len()), (run, run, 3));
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_are_worked_on_side_by_side_over_the_same_connections() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let sites = federation.sites(&server).await;
    let one = server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let two = server.submit(PLAN.to_owned(), None).await.unwrap();
    for _ in 0..6 {
        round(&sites).await;
    }
    let mut live = server.watch();
    let over =
        |run: &RunId, live: &LiveRuns| live.get(run).is_some_and(|run| run.state == RunState::Finished);
    live.wait_for(|live| over(&one, live) && over(&two, live)).await.unwrap();
    let runs = server.runs().await.unwrap();
    assert_eq!(
        runs.iter().map(|run| (run.run, run.is_seeded)).collect::<Vec<_>>(),
        [(two, false), (one, true)]
    );
    assert_eq!(runs[0].model_sha256, runs[1].model_sha256);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_comes_back_is_asked_again_and_the_round_goes_on() {
    let federation = Federation::new();
    let server = federation.serve().await;
    server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let mut sites = federation.sites(&server).await;
    let before = sites.remove(0);
    let asked = before.next_task().await;
    let again = federation.site(&server, "north").await;
    assert!(before.farewell().await.contains("connected again"));
    drop(asked);
    sites.insert(0, again);
    for _ in 0..3 {
        round(&sites).await;
    }
    assert_eq!(stored(&server, 3).await.clients[0].accepted, 3);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_model_ends_its_run_and_is_named_and_the_server_goes_on() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let run = server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let file = server.model_place(run).await.unwrap();
    server.shutdown().await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let server = federation.serve().await;
    let ended = async {
        loop {
            let summary = server.run(Some(run)).await.unwrap();
            if summary.state == RunState::Failed {
                return summary;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.unwrap();
    assert!(ended.message.contains(&file), "{}", ended.message);
    let operator = federation.operator(&server).await;
    assert_ne!(operator.submit(PLAN).await, run);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_makes_no_sense_is_answered_with_its_line() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let request = AdminRequest::Submit { plan_toml: PLAN.replace("rounds = 3", "rounds = 0"), seed: None };
    let AdminReply::Error(message) = operator.ask(&request).await else { panic!("it was accepted") };
    assert!(message.starts_with("line 2"), "{message}");
    assert!(server.runs().await.unwrap().is_empty());
    server.shutdown().await.unwrap();
}

/// A plan whose noise takes a while to be found.
const HARD: &str = "name = \"hard\"\nrounds = 1000000\nmodel = \"linear\"\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n\
    [privacy.central]\ndelta = 1e-6\nepsilon_max = 8.0\nepsilon = 4.0\ndenominator = 10.0\nsampling = { poisson = { rate = 0.001 } }\n";

/// The noise that is kept beside a run's plan.
async fn kept_noise(state: &Path, run: RunId) -> Option<String> {
    use sqlx::{AnyConnection, Connection as _, Row as _};
    sqlx::any::install_default_drivers();
    let url = format!("sqlite:{}?mode=ro", state.join("state.sqlite").display());
    let mut look = AnyConnection::connect(&url).await.unwrap();
    let found = sqlx::query("SELECT calibrated FROM runs WHERE run = $1").bind(run.to_string());
    let found = found.fetch_one(&mut look).await.unwrap().try_get(0).unwrap();
    look.close().await.unwrap();
    found
}

/// Puts a run into a state as releases did that kept no noise.
async fn submitted_before(state: &Path, run: RunId, plan_toml: &str) {
    let layout = Layout::new([("weight".to_owned(), vec![1, 1]), ("bias".to_owned(), vec![1])]).unwrap();
    let checkpoint = Checkpoint::begin(Parameters::new(vec![0.0; 2]));
    let (name, rounds, seed, calibrated) = ("hard", 1_000_000, None, None);
    let (layout, checkpoint) = (&layout, &checkpoint);
    let new = Submission { run, name, rounds, plan_toml, seed, calibrated, layout, checkpoint };
    let store = Store::open(state).await.unwrap();
    store.submit(&new).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_noise_must_still_be_found_holds_up_no_other_run() {
    let federation = Federation::new();
    submitted_before(&federation.state(), RunId(1), HARD).await;
    let server = federation.serve().await;
    let run = server.submit(PLAN.to_owned(), Some(7)).await.unwrap();
    let sites = federation.sites(&server).await;
    for _ in 0..3 {
        round(&sites).await;
    }
    let mut live = server.watch();
    let ended = live.wait_for(|live| live.get(&run).is_some_and(|run| run.state == RunState::Finished));
    drop(ended.await.unwrap());
    let waits = server.run(Some(RunId(1))).await.unwrap();
    assert_eq!(waits.state, RunState::Queued, "the older run has begun before its noise was found");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_kept_with_an_accepted_plan_and_found_once_for_one_that_came_without_it() {
    let plan = HARD.replace("1000000", "5");
    let federation = Federation::new();
    submitted_before(&federation.state(), RunId(1), &plan).await;
    let server = federation.serve().await;
    let fresh = server.submit(plan.replace("hard", "fresh"), None).await.unwrap();
    let typed = plan.replace("hard", "typed").replace("epsilon = 4.0", "noise_multiplier = 1.0");
    let typed = server.submit(typed, None).await.unwrap();
    let mut live = server.watch();
    drop(live.wait_for(|live| live.contains_key(&RunId(1)) && live.contains_key(&fresh)).await.unwrap());
    server.shutdown().await.unwrap();
    let state = federation.state();
    let noise = async |run| Some(kept_noise(&state, run).await?.split_once(' ')?.0.to_owned());
    assert!(noise(fresh).await.is_some());
    assert_eq!(noise(RunId(1)).await, noise(fresh).await, "the same promise takes the same noise");
    assert_eq!(noise(typed).await, None);
}
