//! Runs from submission to the final model, with interruptions.

use std::path::Path;

use protocol::RunId;
use protocol::wire::{AdminReply, AdminRequest, Receipt, RunState, RunSummary};
use server::net::{Limits, LiveRuns, Server, Store};

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
    assert_eq!((last.rounds_done, last.history.len(), last.rehearsal), (3, 3, true));
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
        runs.iter().map(|run| (run.run, run.rehearsal)).collect::<Vec<_>>(),
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
