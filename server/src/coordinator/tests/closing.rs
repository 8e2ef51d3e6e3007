//! When a step closes before its deadline: enough have answered, or nobody who is missing will come back.

use super::*;

const SITES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[test]
fn an_oversampled_round_closes_when_as_many_as_it_needs_have_answered_and_the_others_are_called_off() {
    let mut stage = Stage::new("[cohort]\nclients_min = 6\ncount = 3\noversample = 1.5\n");
    stage.join(&SITES);
    let sent = stage.take_sent();
    assert_eq!(sent.len(), 5, "3 times 1.5, rounded up");
    for (client, task) in &sent[..3] {
        assert!(stage.commits.is_empty());
        stage.answer(client, task.id, honest(task, 1.0, 1));
    }
    let summary = &stage.commits[0].summary;
    assert_eq!((summary.released, summary.cohort, summary.answered), (true, 5, 3));
    assert_eq!(stage.cancelled, [sent[3].0.clone(), sent[4].0.clone()]);
    // What was under way is too late, and changes nothing. It is nobody's fault, and its round has told of it in one line.
    let before = stage.model();
    let closed = |note: &&Note| matches!(note, Note::Closed { missing: 2, surplus: 2, quorum: true, .. });
    assert_eq!(stage.notes.iter().filter(closed).count(), 1, "{:?}", stage.notes);
    stage.answer(&sent[3].0, sent[3].1.id, honest(&sent[3].1, 9.0, 1));
    let (client, task) = (sent[4].0.clone(), Some(sent[4].1.id));
    stage.handle(Event::Refused { client, task, reason: Rejection::Truncated });
    assert_eq!(stage.receipts.last(), Some(&(sent[4].0.clone(), Receipt::Refused(Rejection::Truncated))));
    for (client, _) in &sent[3..] {
        assert_eq!(stage.refusals(client.as_str()), []);
    }
    assert!(!stage.notes.iter().any(|note| matches!(note, Note::Refused { .. })), "{:?}", stage.notes);
    assert_eq!(stage.model(), before);
    // A second answer is one too many, and so is one that makes no sense.
    stage.answer(&sent[3].0, sent[3].1.id, honest(&sent[3].1, 9.0, 1));
    assert_eq!(stage.refusals(sent[3].0.as_str()), [(Rejection::Stale, 1)]);
}

#[test]
fn what_comes_after_a_deadline_is_late_where_nobody_was_asked_beyond_need() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\nquorum = 2\n");
    stage.join(&SITES[..3]);
    let sent = stage.take_sent();
    for (client, task) in &sent[..2] {
        stage.answer(client, task.id, honest(task, 1.0, 1));
    }
    stage.wait_for_deadline();
    assert!(stage.notes.iter().any(|note| matches!(note, Note::Closed { missing: 1, surplus: 0, .. })));
    stage.answer(&sent[2].0, sent[2].1.id, honest(&sent[2].1, 1.0, 1));
    assert_eq!(stage.refusals(sent[2].0.as_str()), [(Rejection::Stale, 1)]);
}

#[test]
fn an_oversampled_round_that_too_few_answer_waits_for_its_deadline() {
    let mut stage = Stage::new("[cohort]\nclients_min = 6\ncount = 3\noversample = 1.5\nquorum = 2\n");
    stage.join(&SITES);
    let sent = stage.take_sent();
    for (client, task) in &sent[..2] {
        stage.answer(client, task.id, honest(task, 1.0, 1));
    }
    assert!(stage.commits.is_empty());
    stage.wait_for_deadline();
    assert_eq!((stage.commits[0].summary.released, stage.commits[0].summary.answered), (true, 2));
}

#[test]
fn a_client_that_is_gone_is_awaited_for_its_grace_and_no_longer() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\nquorum = 2\ngrace_seconds = 20\n");
    stage.join(&["a", "b", "c"]);
    let sent = stage.take_sent();
    for (client, task) in &sent[..2] {
        stage.answer(client, task.id, honest(task, 1.0, 1));
    }
    let (client, task) = sent[2].clone();
    stage.now = stage.now + Duration::from_secs(100);
    stage.handle(Event::Left(client.clone()));
    assert_eq!(stage.coordinator.deadline(), Some(stage.now + Duration::from_secs(20)));
    // It comes back in time, and is gone again.
    stage.now = stage.now + Duration::from_secs(19);
    stage.handle(Event::joined(client.clone()));
    assert_eq!(stage.coordinator.deadline(), Some(Time::ZERO + Duration::from_secs(600)));
    stage.handle(Event::Left(client.clone()));
    stage.wait_for_deadline();
    assert_eq!(stage.now, Time::ZERO + Duration::from_secs(139));
    assert_eq!((stage.commits[0].summary.released, stage.commits[0].summary.answered), (true, 2));
    assert!(stage.notes.iter().any(|note| matches!(note, Note::Closed { missing: 1, quorum: true, .. })));
    stage.handle(Event::joined(client.clone()));
    stage.answer(&client, task.id, honest(&task, 1.0, 1));
    assert_eq!(stage.refusals(client.as_str()), [(Rejection::Stale, 1)]);
}

#[test]
fn whom_a_round_still_waits_for_holds_it_though_others_are_gone_for_good() {
    let mut stage = Stage::new("[cohort]\nclients_min = 3\nquorum = 1\ngrace_seconds = 20\n");
    stage.join(&["a", "b", "c"]);
    let sent = stage.take_sent();
    stage.handle(Event::Left(sent[0].0.clone()));
    stage.wait_for_deadline();
    assert!(stage.commits.is_empty());
    assert_eq!(stage.coordinator.owed(&sent[0].0), None);
    assert_eq!(stage.coordinator.owed(&sent[1].0), Some(sent[1].1.id));
    assert_eq!(stage.coordinator.deadline(), Some(Time::ZERO + Duration::from_secs(600)));
}

#[test]
fn without_a_grace_a_client_may_come_back_until_the_deadline() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n");
    stage.join(&["a", "b"]);
    let sent = stage.take_sent();
    stage.handle(Event::Left(sent[0].0.clone()));
    assert_eq!(stage.coordinator.deadline(), Some(Time::ZERO + Duration::from_secs(600)));
}
