//! What an operator wants of a run: when it takes effect, and what is kept.

use privacy::ledger::Record;
use protocol::wire::Control;

use super::private::{EVERY, plan, private, records};
use super::*;

const TWO: &str = "[cohort]\nclients_min = 2\n[evaluation]\nsites = \"none\"\n";

fn gathered() -> Stage {
    let mut stage = Stage::new(TWO);
    stage.join(&["a", "b"]);
    stage
}

#[test]
fn a_paused_run_brings_its_round_to_an_end_and_opens_no_other_until_it_may_go_on() {
    let mut stage = gathered();
    stage.handle(Event::Control(Control::Pause));
    stage.answer_all(1.0);
    assert_eq!((stage.commits.len(), stage.sent.len()), (1, 0));
    assert_eq!(stage.coordinator.status(), "paused by the operator");
    stage.join(&["c"]);
    assert!(stage.sent.is_empty());
    stage.handle(Event::Control(Control::Resume));
    assert_eq!(stage.sent[0].1.id.round, Round(2));
    stage.answer_all(1.0);
    assert_eq!(stage.end, Some(RunEnd::Finished));
}

#[test]
fn a_stopped_run_ends_with_its_round_and_keeps_that_model() {
    let mut stage = gathered();
    stage.handle(Event::Control(Control::Stop));
    assert_eq!(stage.end, None);
    stage.answer_all(1.0);
    assert_eq!(stage.end, Some(RunEnd::Stopped));
    assert!(stage.model()[0] > 0.9);
    assert_eq!(stage.commits.last().unwrap().checkpoint.end, Some(RunEnd::Stopped));
    let told = stage.notes.iter().filter(|note| matches!(note, Note::Round(_))).count();
    assert_eq!(told, 1, "the round is told once");
}

#[test]
fn a_run_that_is_stopped_at_once_throws_its_round_away_and_tells_whoever_still_works() {
    let mut stage = gathered();
    let task = stage.sent[0].1.clone();
    stage.answer(&id("a"), task.id, honest(&task, 5.0, 1));
    stage.handle(Event::Control(Control::StopNow));
    assert_eq!(stage.end, Some(RunEnd::Stopped));
    assert_eq!(stage.model(), [0.0, 0.0]);
    assert_eq!(stage.cancelled, [id("b")]);
    stage.answer(&id("b"), task.id, honest(&task, 5.0, 1));
    assert_eq!(stage.refusals("b"), [(Rejection::Stale, 1)]);
}

#[test]
fn what_is_being_stored_is_stored_before_a_run_stops() {
    let mut stage = gathered();
    stage.commits_succeed = false;
    stage.answer_all(2.0);
    stage.handle(Event::Control(Control::StopNow));
    assert_eq!(stage.end, None);
    stage.commits_succeed = true;
    stage.handle(Event::Committed);
    assert_eq!(stage.end, Some(RunEnd::Stopped));
    assert!(stage.model()[0] > 1.9);
}

#[test]
fn an_evaluation_that_is_stopped_keeps_what_it_has_heard() {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\n");
    stage.join(&["a", "b"]);
    stage.answer_all(1.0);
    let task = stage.take_sent().remove(0).1;
    assert_eq!(task.id.step, StepId::EVALUATE);
    stage.answer(&id("a"), task.id, honest(&task, 0.0, 1));
    stage.handle(Event::Control(Control::StopNow));
    assert_eq!(stage.end, Some(RunEnd::Stopped));
    assert!(stage.commits.last().unwrap().summary.sites.is_some());
}

#[test]
fn a_run_that_waits_stops_without_waiting_longer() {
    let mut stage = Stage::new(TWO);
    stage.join(&["a"]);
    stage.handle(Event::Control(Control::Stop));
    assert_eq!(stage.end, Some(RunEnd::Stopped));
}

#[test]
fn a_wish_that_is_taken_back_in_time_changes_nothing() {
    let mut stage = gathered();
    stage.handle(Event::Control(Control::Stop));
    stage.handle(Event::Control(Control::Resume));
    stage.answer_all(1.0);
    stage.answer_all(1.0);
    assert_eq!(stage.end, Some(RunEnd::Finished));
}

#[test]
fn a_private_round_that_is_thrown_away_costs_nothing() {
    let plan = plan(3, 8.0, EVERY, "");
    for (control, before_reserved) in
        [(Control::StopNow, false), (Control::StopNow, true), (Control::Stop, true)]
    {
        let mut stage = private(&plan);
        stage.commits_succeed = !before_reserved;
        stage.join(&["a", "b"]);
        stage.commits_succeed = true;
        stage.handle(Event::Control(control));
        if before_reserved {
            stage.handle(Event::Reserved);
        }
        assert_eq!(stage.end, Some(RunEnd::Stopped), "{control:?}");
        let found = records(&stage);
        assert!(matches!(found[1..], [Record::Reserved { .. }, Record::Cancelled { .. }]), "{found:?}");
    }
}
