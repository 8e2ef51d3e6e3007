//! What operators want of runs, over the wire: pause, resume, stop, the queue, the models, the log.

use std::time::Duration;

use protocol::RunId;
use protocol::wire::{AdminReply, AdminRequest, Control, ModelChoice, Receipt, RunState, RunSummary};
use server::net::{Limits, Server};

use super::federation::{Federation, PLAN, Site, admin_reply};

async fn round(sites: &[Site]) {
    for (site, value) in sites.iter().zip([1.0, 2.0, 6.0]) {
        assert_eq!(site.train(value).await, Receipt::Accepted);
    }
}

async fn control(operator: &Site, run: RunId, control: Control) -> RunSummary {
    match operator.ask(&AdminRequest::Control { run, control }).await {
        AdminReply::Run(summary) => summary,
        other => panic!("{other:?}"),
    }
}

async fn reaches(server: &Server, run: RunId, what: impl Fn(&RunSummary) -> bool) {
    let mut live = server.watch();
    while !what(&server.run(Some(run)).await.unwrap()) {
        live.changed().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_lasts_over_a_restart_until_the_operator_ends_it() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let run = operator.submit(PLAN).await;
    let sites = federation.sites(&server).await;
    round(&sites).await;
    // Round 2 is open: it is brought to its end, and round 3 does not begin.
    let asked = sites[0].next_task().await;
    assert_eq!(control(&operator, run, Control::Pause).await.state, RunState::Paused);
    let answer = super::federation::honest(&asked.task, 1.0);
    assert_eq!(asked.answer(answer).await, Receipt::Accepted);
    round(&sites[1..]).await;
    reaches(&server, run, |summary| summary.rounds_done == 2).await;
    server.shutdown().await.unwrap();

    let server = federation.serve().await;
    let (operator, sites) = (federation.operator(&server).await, federation.sites(&server).await);
    let idle = tokio::time::timeout(Duration::from_millis(300), sites[0].next_task()).await;
    assert!(idle.is_err(), "a paused run asks nobody");
    assert_eq!(server.run(Some(run)).await.unwrap().state, RunState::Paused);
    control(&operator, run, Control::Resume).await;
    round(&sites).await;
    reaches(&server, run, |summary| summary.state == RunState::Finished).await;
    let AdminReply::Error(over) = operator.ask(&AdminRequest::Control { run, control: Control::Pause }).await
    else {
        panic!("it was over")
    };
    assert!(over.contains("finished"), "{over}");
    let AdminReply::Log(lines) = operator.ask(&AdminRequest::Log { run: Some(run) }).await else { panic!() };
    let wishes = lines.iter().filter(|line| line.contains("controlled") && line.contains("ada")).count();
    let third = |event: &str| {
        lines.iter().filter(|line| line.contains("\"round\":3") && line.contains(event)).count()
    };
    assert_eq!(
        (wishes, third("\"event\":\"released\""), third("\"event\":\"round\"")),
        (2, 1, 1),
        "{lines:#?}"
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_leaves_its_models_to_be_fetched() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let operator = federation.operator(&server).await;
    let run = operator.submit(PLAN).await;
    let sites = federation.sites(&server).await;
    round(&sites).await;
    let asked = sites[0].next_task().await;
    control(&operator, run, Control::StopNow).await;
    reaches(&server, run, |summary| summary.state == RunState::Stopped && summary.rounds_done == 1).await;
    drop(asked);
    let AdminReply::Models(models) = operator.ask(&AdminRequest::Models { run: None }).await else {
        panic!()
    };
    assert_eq!(models.iter().map(|line| line.round).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(models[1].parent_sha256.as_ref(), Some(&models[0].sha256));
    for (choice, round) in [(ModelChoice::Last, 1), (ModelChoice::Round(0), 0)] {
        let mut reply = operator.request(&AdminRequest::Model { run: Some(run), choice }).await;
        let AdminReply::Model { line, statement, model_len, tensors, .. } = admin_reply(&mut reply).await
        else {
            panic!()
        };
        assert_eq!((line.round, statement.contains(&line.sha256)), (round, true));
        let mut values = vec![0f32; model_len as usize];
        reply.read_exact(bytemuck::cast_slice_mut(&mut values)).await.unwrap();
        assert!(reply.read_to_end(1).await.unwrap().is_empty());
        assert_eq!(protocol::Parameters::new(values).sha256(), line.sha256);
        assert_eq!(tensors, [("weight".to_owned(), vec![1, 1]), ("bias".to_owned(), vec![1])]);
    }
    let missing = AdminRequest::Model { run: Some(run), choice: ModelChoice::Round(9) };
    assert!(matches!(operator.ask(&missing).await, AdminReply::Error(why) if why.contains("no such model")));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_for_a_place_and_a_paused_run_leaves_its_own() {
    let federation = Federation::new();
    let limits = Limits { runs_max: 1, ..Limits::default() };
    let server = federation.serve_with(&federation.state(), limits).await;
    let operator = federation.operator(&server).await;
    let (one, two) = (operator.submit(PLAN).await, operator.submit(PLAN).await);
    let three = operator.submit(PLAN).await;
    let sites = federation.sites(&server).await;
    round(&sites).await;
    assert_eq!(server.run(Some(two)).await.unwrap().state, RunState::Queued);
    assert_eq!(control(&operator, three, Control::Stop).await.state, RunState::Stopped);
    // A pause that came between two rounds would leave none open.
    reaches(&server, one, |summary| summary.message.starts_with("round 2, train")).await;
    control(&operator, one, Control::Pause).await;
    // The open round of the first, then all of the second; their tasks may come in any order.
    for _ in 0..4 {
        round(&sites).await;
    }
    reaches(&server, two, |summary| summary.state == RunState::Finished).await;
    assert_eq!(server.run(Some(one)).await.unwrap().state, RunState::Paused);
    control(&operator, one, Control::Resume).await;
    round(&sites).await;
    reaches(&server, one, |summary| summary.state == RunState::Finished).await;
    let (one, two) = (server.run(Some(one)).await.unwrap(), server.run(Some(two)).await.unwrap());
    assert_eq!(one.model_sha256, two.model_sha256);
    server.shutdown().await.unwrap();
}

/// A private run of the population `wards`.
fn private(rounds: u32) -> String {
    let plan = PLAN.replace("rounds = 3", &format!("rounds = {rounds}"));
    format!(
        "{plan}[update]\nnorm_max = 1.0\n[privacy.central]\npopulation = \"wards\"\ndelta = 1e-5\nepsilon_max = 8.0\n\
         noise_multiplier = 4.0\ndenominator = 3\nsampling = {{ availability = {{ participations_max = 10 }} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_spend_the_budget_of_one_population_are_worked_on_one_after_the_other() {
    let federation = Federation::new();
    let server = federation.serve().await;
    let sites = federation.sites(&server).await;
    let one = server.submit(private(2), None).await.unwrap();
    let two = server.submit(private(1), None).await.unwrap();
    let other = server.submit(PLAN.to_owned(), None).await.unwrap();
    for _ in 0..2 + 3 + 1 {
        let state = async |run| server.run(Some(run)).await.unwrap().state;
        assert!(state(two).await == RunState::Queued || state(one).await == RunState::Finished);
        round(&sites).await;
    }
    for run in [one, two, other] {
        reaches(&server, run, |summary| summary.state == RunState::Finished).await;
    }
    let epsilon = |summary: RunSummary| summary.history.last().and_then(|line| line.epsilon).unwrap();
    let (first, second) = (server.run(Some(one)).await.unwrap(), server.run(Some(two)).await.unwrap());
    assert!(epsilon(second) > epsilon(first), "both are paid from one budget");
    server.shutdown().await.unwrap();
}
