//! The coordinator in told stories: one thing goes wrong in each.

use protocol::Decline;

use super::*;

const TWO: &str = "[cohort]\nclients_min = 2\n";

fn near(found: &[f32], expected: f32) {
    assert!(found.iter().all(|value| (value - expected).abs() < 1e-5), "{found:?} is not {expected}");
}

#[test]
fn a_run_gathers_trains_evaluates_and_finishes() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a"]);
    assert!(stage.sent.is_empty());
    stage.join(&["b"]);
    stage.answer_all(1.0);
    near(&stage.model(), 1.0);
    assert!(stage.sent.iter().all(|(_, task)| task.id.step == StepId::EVALUATE));
    stage.answer_all(0.0);
    stage.answer_all(3.0);
    stage.answer_all(0.0);
    near(&stage.model(), 4.0);
    assert_eq!(stage.end, Some(RunEnd::Finished));
    let rounds: Vec<u32> = stage.commits.iter().map(|commit| commit.summary.round).collect();
    assert_eq!(rounds, [1, 1, 2, 2]);
    assert!(stage.commits[1].summary.sites.is_some() && stage.commits[1].summary.train.is_some());
}

#[test]
fn without_quorum_the_model_stands_still() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    let (client, task) = stage.take_sent().remove(0);
    stage.answer(&client, task.id, honest(&task, 5.0, 1));
    stage.wait_for_deadline();
    near(&stage.model(), 0.0);
    assert!(!stage.commits[0].summary.released);
    assert_eq!(stage.cancelled, [id("b")]);
    assert_eq!(stage.sent[0].1.id.round, Round(2));
}

#[test]
fn with_a_quorum_the_round_closes_at_its_deadline_without_stragglers() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n");
    stage.join(&["a", "b"]);
    let sent = stage.take_sent();
    stage.answer(&sent[0].0, sent[0].1.id, honest(&sent[0].1, 5.0, 1));
    assert!(stage.commits.is_empty());
    stage.wait_for_deadline();
    near(&stage.model(), 5.0);
    stage.answer(&sent[1].0, sent[1].1.id, honest(&sent[1].1, 9.0, 1));
    near(&stage.model(), 5.0);
    assert_eq!(stage.refusals("b"), [(Rejection::Stale, 1)]);
}

#[test]
fn a_client_counts_once_and_only_if_asked() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\ncount = 2\nquorum = 2\n");
    stage.join(&["a", "b", "c"]);
    let sent = stage.take_sent();
    let task = &sent[0].1;
    stage.answer(&sent[0].0, task.id, honest(task, 1.0, 1));
    stage.answer(&sent[0].0, task.id, honest(task, 50.0, 1));
    let outsider =
        [id("a"), id("b"), id("c")].into_iter().find(|one| sent.iter().all(|(asked, _)| asked != one));
    let outsider = outsider.unwrap();
    stage.answer(&outsider, task.id, honest(task, 50.0, 1));
    assert_eq!(stage.refusals(sent[0].0.as_str()), [(Rejection::Duplicate, 1)]);
    assert_eq!(stage.refusals(outsider.as_str()), [(Rejection::Unsolicited, 1)]);
    stage.answer(&sent[1].0, task.id, honest(task, 3.0, 1));
    near(&stage.model(), 2.0);
}

#[test]
fn every_bad_answer_is_refused_by_name_and_the_round_goes_on() {
    let metrics = Metrics::default();
    let trained = |points: Vec<i32>, weight| Outcome::trained(points, weight, 0, metrics);
    let nan = Metrics { loss: f64::NAN, ..metrics };
    // The largest norm that the plan's lattice has; one point more is too long.
    let reach = Stage::new(TWO).lattice().range();
    let bad = [
        (trained(vec![0], 1), Rejection::WrongShape),
        (trained(vec![0, i32::MAX], 1), Rejection::OutOfRange),
        (trained(vec![f32::NAN.to_bits() as i32, 0], 1), Rejection::OutOfRange),
        (trained(vec![reach, 1], 1), Rejection::NormExceeded),
        (trained(vec![0, 0], 0), Rejection::WrongWeight),
        (trained(vec![0, 0], 131_073), Rejection::WrongWeight),
        (Outcome::trained(vec![0, 0], 1, 0, nan), Rejection::BadMetrics),
        (Outcome::evaluated(metrics), Rejection::WrongKind),
        (Outcome::counted(vec![]), Rejection::WrongKind),
    ];
    for (outcome, reason) in bad {
        let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n");
        stage.join(&["bad", "good"]);
        let task = stage.take_sent().remove(0).1;
        stage.answer(&id("bad"), task.id, outcome);
        assert_eq!(stage.refusals("bad"), [(reason, 1)]);
        assert_eq!(stage.receipts, [(id("bad"), Receipt::Refused(reason))]);
        stage.answer(&id("good"), task.id, honest(&task, 2.0, 1));
        near(&stage.model(), 2.0);
        let changed: Vec<&str> = stage.commits[0].clients.iter().map(|(client, _)| client.as_str()).collect();
        assert_eq!(changed, ["bad", "good"]);
    }
}

#[test]
fn an_answer_that_was_checked_elsewhere_counts_as_if_it_had_been_checked_here() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\nquorum = 1\n");
    stage.join(&["bad", "good", "late"]);
    let task = stage.take_sent().remove(0).1;
    let checker = stage.coordinator.checker();
    let check = |outcome: Outcome| checker.check(Answer { task: task.id, outcome });
    let reach = stage.lattice().range();
    let longer = Outcome::trained(vec![reach, 1], 1, 0, Metrics::default());
    stage.handle(Event::Checked { client: id("bad"), checked: check(longer) });
    assert_eq!(stage.refusals("bad"), [(Rejection::NormExceeded, 1)]);
    stage.handle(Event::Checked { client: id("nobody"), checked: check(honest(&task, 9.0, 1)) });
    assert_eq!(stage.refusals("nobody"), [(Rejection::Unsolicited, 1)]);
    for _ in 0..2 {
        stage.handle(Event::Checked { client: id("good"), checked: check(honest(&task, 2.0, 1)) });
    }
    assert_eq!(stage.refusals("good"), [(Rejection::Duplicate, 1)]);
    stage.wait_for_deadline();
    near(&stage.model(), 2.0);
    stage.handle(Event::Checked { client: id("late"), checked: check(honest(&task, 9.0, 1)) });
    assert_eq!(stage.refusals("late"), [(Rejection::Stale, 1)]);
}

#[test]
fn a_client_that_comes_back_gets_its_task_again() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    let first = stage.take_sent();
    stage.handle(Event::Left(id("a")));
    stage.handle(Event::Refused { client: id("a"), task: Some(first[0].1.id), reason: Rejection::Truncated });
    stage.join(&["a"]);
    assert_eq!(stage.sent, [first[0].clone()]);
    stage.sent.push(first[1].clone());
    stage.answer_all(1.0);
    near(&stage.model(), 1.0);
    stage.handle(Event::Left(id("a")));
    stage.join(&["a", "a"]);
    assert_eq!(stage.coordinator.connected, 2);
}

#[test]
fn declining_clients_are_counted_and_not_awaited() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n");
    stage.join(&["a", "b"]);
    let sent = stage.take_sent();
    let declined = Outcome::Declined { reason: Decline::Data, detail: "no such column".into() };
    stage.answer(&id("a"), sent[0].1.id, declined);
    stage.answer(&id("b"), sent[1].1.id, honest(&sent[1].1, 1.0, 1));
    near(&stage.model(), 1.0);
    assert_eq!(stage.coordinator.clients()[&id("a")].declined[&Decline::Data], 1);
}

#[test]
fn nothing_is_asked_while_a_round_is_not_on_disk() {
    let mut stage = Stage::new(TWO);
    stage.commits_succeed = false;
    stage.join(&["a", "b"]);
    stage.answer_all(1.0);
    assert!(stage.commits.len() == 1 && stage.sent.is_empty() && stage.coordinator.deadline().is_none());
    stage.handle(Event::Committed);
    assert_eq!(stage.sent.len(), 2);
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let momentum = "[cohort]\nclients_min = 2\n[strategy.fedavgm]\n[simulation]\n";
    let mut whole = Stage::new(momentum);
    whole.join(&["a", "b"]);
    for value in [1.0, 0.0, 0.3, 0.0] {
        whole.answer_all(value);
    }
    for stop in 0..whole.commits.len() {
        let mut resumed = Stage::resume(momentum, whole.commits[stop].checkpoint.clone());
        resumed.join(&["b", "a"]);
        for value in &[1.0, 0.0, 0.3, 0.0][stop + 1..] {
            resumed.answer_all(*value);
        }
        assert_eq!(resumed.model(), whole.model(), "stopped after commit {stop}");
        assert_eq!(resumed.coordinator.checkpoint().end, Some(RunEnd::Finished));
        assert_eq!(resumed.coordinator.checkpoint().summary, whole.coordinator.checkpoint().summary);
    }
}

#[test]
fn statistics_come_first_and_reach_every_later_task() {
    let federated = PLAN.replace("features = [\"a\"]", "features = [\"a\"]\nstandardise = \"federated\"");
    let plan = Arc::new(Plan::parse(&format!("{federated}{TWO}")).unwrap());
    let mut stage = Stage::new(TWO);
    let checkpoint = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    stage.coordinator = Coordinator::new(Setup { plan, ..setup("", checkpoint) }).unwrap();
    stage.join(&["a", "b"]);
    assert_eq!(stage.sent[0].1.id, TaskId::new(RunId(1), Round(0), StepId::STATISTICS));
    stage.answer_all(2.0);
    let standardiser = stage.sent[0].1.standardiser.clone().unwrap();
    assert_eq!(stage.receipts.len(), 2);
    assert_eq!((standardiser.mean.as_slice(), standardiser.std.as_slice()), (&[1.0][..], &[1.0][..]));
    assert_eq!(stage.commits[0].checkpoint.standardiser, Some(standardiser));
}

#[test]
fn statistics_that_do_not_fit_are_refused_by_name() {
    let federated = PLAN.replace("features = [\"a\"]", "features = [\"a\"]\nstandardise = \"federated\"");
    let plan = Arc::new(Plan::parse(&format!("{federated}[cohort]\nclients_min = 2\nquorum = 1\n")).unwrap());
    let count_of_half =
        Statistics::encode(&[0.5, 1.0, 1.0].map(|value| WideSum::of(value).unwrap())).into_words();
    for (words, reason) in [
        (vec![0; 9], Rejection::WrongShape),
        (vec![1 << 41; 12], Rejection::OutOfRange),
        (count_of_half, Rejection::OutOfRange),
    ] {
        let mut stage = Stage::new(TWO);
        let checkpoint = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
        stage.coordinator =
            Coordinator::new(Setup { plan: Arc::clone(&plan), ..setup("", checkpoint) }).unwrap();
        stage.join(&["bad", "good"]);
        let task = stage.take_sent().remove(0).1;
        stage.answer(&id("bad"), task.id, Outcome::counted(words));
        assert_eq!(stage.refusals("bad"), [(reason, 1)]);
        stage.answer(&id("good"), task.id, honest(&task, 2.0, 1));
        assert!(stage.coordinator.checkpoint().standardiser.is_some());
    }
}

#[test]
fn a_federation_that_never_finds_a_quorum_fails_and_says_so() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nfailures_max = 1\n");
    stage.join(&["a", "b"]);
    stage.wait_for_deadline();
    assert!(matches!(&stage.end, Some(RunEnd::Failed(why)) if why.contains("quorum of 2")));
}

fn decline(stage: &mut Stage, reason: Decline, detail: &str) {
    for (client, task) in stage.take_sent() {
        stage.answer(&client, task.id, Outcome::Declined { reason, detail: detail.to_owned() });
    }
}

#[test]
fn a_run_that_released_nothing_has_failed_with_the_reasons_of_its_sites_however_many_failures_are_allowed() {
    for failures_max in [1, 2, 3, 1_000_000] {
        let mut stage = Stage::new(&format!("[cohort]\nclients_min = 2\nfailures_max = {failures_max}\n"));
        stage.join(&["north", "south"]);
        while stage.end.is_none() {
            decline(&mut stage, Decline::Data, "the site's log\n says \u{1b}[31mwhere");
        }
        let Some(RunEnd::Failed(why)) = &stage.end else { panic!("{:?}", stage.end) };
        assert!(why.contains("north, south declined (data, "), "{why}");
        assert!(why.contains("the site's log says [31mwhere") && !why.contains('\u{1b}'), "{why}");
        assert_eq!(stage.coordinator.checkpoint().end, stage.end);
    }
}

#[test]
fn where_budgets_alone_kept_answers_away_the_budget_is_exhausted() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    while stage.end.is_none() {
        decline(&mut stage, Decline::Budget, "the site's privacy budget cannot pay for this");
    }
    assert!(
        matches!(&stage.end, Some(RunEnd::BudgetExhausted(why)) if why.contains("a, b declined (budget")),
        "{:?}",
        stage.end
    );
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    while stage.end.is_none() {
        let (client, task) = stage.take_sent().remove(0);
        let detail = "the site's privacy budget cannot pay for this".to_owned();
        stage.answer(&client, task.id, Outcome::Declined { reason: Decline::Budget, detail });
        stage.sent.clear();
        if stage.end.is_none() {
            stage.wait_for_deadline();
        }
    }
    assert!(matches!(&stage.end, Some(RunEnd::Failed(why)) if why.contains("deadline")), "{:?}", stage.end);
}

#[test]
fn one_release_makes_a_run_whose_last_round_failed_a_finished_one() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    stage.answer_all(1.0);
    while stage.end.is_none() {
        stage.answer_all(1.0);
        decline(&mut stage, Decline::Data, "x");
    }
    assert_eq!(stage.end, Some(RunEnd::Finished));
    near(&stage.model(), 1.0);
}

#[test]
fn statistics_that_nobody_counts_end_the_run_whatever_failures_are_allowed() {
    let federated = PLAN.replace("features = [\"a\"]", "features = [\"a\"]\nstandardise = \"federated\"");
    let extra = "[cohort]\nclients_min = 2\nfailures_max = 4000000000\n";
    let plan = Arc::new(Plan::parse(&format!("{federated}{extra}")).unwrap());
    let checkpoint = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let mut stage = Stage::new(TWO);
    stage.coordinator = Coordinator::new(Setup { plan, ..setup("", checkpoint) }).unwrap();
    stage.join(&["a", "b"]);
    for tries in 0.. {
        assert!(tries < 100, "asks for ever");
        decline(&mut stage, Decline::Data, "column a");
        if stage.end.is_some() {
            break;
        }
        assert!(stage.coordinator.status().contains("a, b declined (data"), "{}", stage.coordinator.status());
        stage.wait_for_deadline();
    }
    assert!(matches!(&stage.end, Some(RunEnd::Failed(why)) if why.contains("column a")), "{:?}", stage.end);
}

#[test]
fn what_is_awaited_and_who_declined_is_told_while_it_happens() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n");
    stage.join(&["a", "b"]);
    let (client, task) = stage.take_sent().remove(0);
    let detail = "the site's policy does not allow this".to_owned();
    stage.answer(&client, task.id, Outcome::Declined { reason: Decline::Policy, detail });
    let status = stage.coordinator.status();
    assert!(status.contains("0 of 2 clients have answered; waits for b; a declined (policy)"), "{status}");
}

#[test]
fn a_run_of_an_earlier_release_that_goes_on_has_released_what_its_rounds_say() {
    let begin = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let went_on = |checkpoint: Checkpoint| {
        let mut stage = Stage::resume(TWO, checkpoint);
        stage.join(&["a", "b"]);
        while stage.end.is_none() {
            decline(&mut stage, Decline::Data, "x");
        }
        stage.end
    };
    let one = Checkpoint { round: Round(1), ..begin.clone() };
    let failed = |end: Option<RunEnd>| match end {
        Some(RunEnd::Failed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(went_on(one), Some(RunEnd::Finished));
    let none = Checkpoint { round: Round(1), failures: 1, ..begin };
    assert!(failed(went_on(none)).contains("none of the 2 rounds released anything"));
}

#[test]
fn weights_follow_the_examples_of_each_site() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    let sent = stage.take_sent();
    stage.answer(&sent[0].0, sent[0].1.id, honest(&sent[0].1, 1.0, 100));
    stage.answer(&sent[1].0, sent[1].1.id, honest(&sent[1].1, 4.0, 200));
    near(&stage.model(), 3.0);
}
