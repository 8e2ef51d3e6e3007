//! Who is asked for what, by what sites say that they know; and what becomes of a stream that breaks off.

use std::time::Duration;

use protocol::{Capabilities, Capability, MethodWork, Name};

use super::*;
use crate::workflow::{Aggregate, ClosePolicy, CohortRule, Conclusion, Effect, ExactSum, Workflow};

const METHOD: Name = Name::literal("count");

/// Two rounds that ask the sites for a sum of one number by a method in version 2.
struct Count {
    quorum: usize,
}

impl Workflow for Count {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        let work = MethodWork { method: METHOD, version: 2, numbers: Vec::new(), blocks: Vec::new() };
        Some(StepPlan {
            step: StepId::method(0),
            round: state.checkpoint.round.next(),
            cohort: CohortRule::Drawn,
            work: Work::Method(Arc::new(work)),
            collector: Box::new(ExactSum::of_totals(1, Arc::new(|_| Ok(())))),
            quorum: self.quorum,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        })
    }

    fn concluded(&mut self, _: StepId, _: Aggregate, _: &RunState<'_>) -> Conclusion {
        Conclusion { effect: Effect::Nothing, is_round_over: true }
    }

    fn is_finished(&self, state: &RunState<'_>) -> bool {
        state.checkpoint.round.0 >= 2
    }
}

fn counting(extra: &str) -> Stage {
    let mut stage = Stage::new(extra);
    let setup = setup(extra, Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION])));
    let optimizer = setup.plan.strategy.optimizer();
    let count = Count { quorum: setup.plan.cohort.quorum };
    stage.coordinator = Coordinator::with_workflow(setup, optimizer, Box::new(count)).unwrap();
    stage
}

fn knowing(versions: &[u16]) -> Arc<Capabilities> {
    let method = |known: Capabilities, version| known.with(Capability::method(&METHOD, version)).unwrap();
    Arc::new(versions.iter().copied().fold(Capabilities::of_this_release(), method))
}

fn comes(stage: &mut Stage, name: &str, capabilities: &Arc<Capabilities>) {
    stage.handle(Event::Joined { client: id(name), capabilities: Arc::clone(capabilities) });
}

fn asked(stage: &mut Stage) -> Vec<(String, TaskId)> {
    stage.take_sent().into_iter().map(|(client, task)| (client.to_string(), task.id)).collect()
}

#[test]
fn a_method_is_asked_of_the_sites_that_know_it_in_its_version_and_of_nobody_else() {
    let mut stage = counting("[cohort]\nclients_min = 4\nquorum = 2\n");
    comes(&mut stage, "earlier", &Arc::new(Capabilities::of_earlier_release()));
    comes(&mut stage, "older", &knowing(&[1]));
    comes(&mut stage, "north", &knowing(&[2]));
    comes(&mut stage, "south", &knowing(&[1, 2, 3]));
    let sent = stage.take_sent();
    assert_eq!(sent.iter().map(|(client, _)| client.as_str()).collect::<Vec<_>>(), ["north", "south"]);
    for (client, task) in sent {
        let one = Statistics::encode(&[WideSum::of(1.0).unwrap()]).into_words();
        stage.answer(&client, task.id, Outcome::counted(one));
    }
    // Nobody waited for those that were not asked.
    let closed = stage.notes.iter().find(|note| matches!(note, Note::Closed { .. }));
    let Some(Note::Closed { answered: 2, missing: 0, quorum: true, .. }) = closed else {
        panic!("{closed:?}")
    };
    assert_eq!(stage.now, Time::ZERO);
}

#[test]
fn a_step_that_nobody_can_do_fails_by_the_name_and_version_of_its_method() {
    let mut stage = counting("[cohort]\nclients_min = 2\nfailures_max = 2\n");
    comes(&mut stage, "north", &knowing(&[1]));
    comes(&mut stage, "south", &Arc::new(Capabilities::of_earlier_release()));
    let why = "none of the 2 connected sites knows the method `count` in version 2 (north knows version 1)";
    assert!(stage.take_sent().is_empty() && stage.coordinator.status().contains(why));
    let noted = |note: &Note| matches!(note, Note::Withheld { reason, .. } if reason.starts_with(why));
    assert!(stage.notes.iter().any(noted), "{:?}", stage.notes);
    stage.wait_for_deadline();
    assert!(stage.now - Time::ZERO < Duration::from_secs(60), "nobody waits for the deadline of a step");
    let Some(RunEnd::Failed(message)) = &stage.end else { panic!("{:?}", stage.end) };
    assert!(message.contains(why) && message.contains("install a release"), "{message}");
}

#[test]
fn a_step_for_which_too_few_know_the_method_is_not_begun_again_and_again() {
    let mut stage = counting("[cohort]\nclients_min = 3\nquorum = 2\nfailures_max = 2\n");
    comes(&mut stage, "north", &knowing(&[2]));
    comes(&mut stage, "south", &knowing(&[1, 3]));
    comes(&mut stage, "west", &knowing(&[]));
    stage.wait_for_deadline();
    assert!(stage.take_sent().is_empty(), "nobody works for nothing");
    let Some(RunEnd::Failed(message)) = &stage.end else { panic!("{:?}", stage.end) };
    let why = "2 sites are needed, and 1 of the 3 connected knows the method `count` in version 2 (south knows version 3)";
    assert!(message.contains(why), "{message}");
}

#[test]
fn a_site_that_knows_a_method_and_was_away_for_a_moment_is_asked_when_it_is_back() {
    let mut stage = counting("[cohort]\nclients_min = 1\n");
    comes(&mut stage, "south", &Arc::new(Capabilities::of_earlier_release()));
    assert!(asked(&mut stage).is_empty());
    comes(&mut stage, "north", &knowing(&[2]));
    stage.wait_for_deadline();
    let asked = asked(&mut stage);
    assert_eq!(asked.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["north"]);
}

#[test]
fn an_evaluation_that_nobody_can_do_holds_nothing_up() {
    let mut stage = Stage::new("[cohort]\nclients_min = 1\nquorum = 1\n");
    let training = vec![Capability::training(), Capability::statistics()];
    comes(&mut stage, "north", &Arc::new(Capabilities::try_from(training).unwrap()));
    let mut trained = 0;
    while stage.end.is_none() {
        let sent = stage.sent.len();
        assert!(sent == 1 && matches!(stage.sent[0].1.work, Work::Train { .. } | Work::Statistics { .. }));
        trained += usize::from(matches!(stage.sent[0].1.work, Work::Train { .. }));
        stage.answer_all(1.0);
    }
    assert_eq!((trained, &stage.end), (2, &Some(RunEnd::Finished)));
    assert_eq!(stage.now, Time::ZERO);
}

/// A stage in which two clients were asked to train, the second of an earlier release.
fn training() -> (Stage, TaskId) {
    let mut stage = Stage::new("[cohort]\nclients_min = 2\nquorum = 1\n[evaluation]\nsites = \"none\"\n");
    comes(&mut stage, "north", &knowing(&[]));
    comes(&mut stage, "south", &Arc::new(Capabilities::of_earlier_release()));
    let task = stage.sent[0].1.id;
    assert_eq!((task.step, task.attempt, stage.sent.len()), (StepId::TRAIN, 0, 2));
    (stage, task)
}

fn breaks_off(stage: &mut Stage, name: &str, task: TaskId) {
    let reason = Rejection::Truncated;
    stage.handle(Event::Refused { client: id(name), task: Some(task), reason });
}

#[test]
fn a_stream_that_breaks_off_is_renewed_once_and_then_its_client_is_out() {
    let (mut stage, task) = training();
    let update = honest(&stage.take_sent()[0].1, 1.0, 1);
    breaks_off(&mut stage, "north", task);
    let again = task.next_attempt();
    assert_eq!(asked(&mut stage), [("north".to_owned(), again)]);
    assert_eq!(stage.coordinator.owed(&id("north")), Some(again));
    // What still comes for the first attempt is stale; a client that comes back has the second.
    stage.answer(&id("north"), task, update.clone());
    assert_eq!(stage.receipts.last(), Some(&(id("north"), Receipt::Refused(Rejection::Stale))));
    stage.handle(Event::Left(id("north")));
    comes(&mut stage, "north", &knowing(&[]));
    assert_eq!(asked(&mut stage), [("north".to_owned(), again)]);
    breaks_off(&mut stage, "north", again);
    assert_eq!((asked(&mut stage), stage.coordinator.owed(&id("north"))), (Vec::new(), None));
    stage.answer(&id("south"), task, update);
    assert_eq!(stage.coordinator.checkpoint().round, Round(1), "nobody is awaited any more");
    assert_eq!(stage.now, Time::ZERO);
}

#[test]
fn an_answer_to_the_renewed_attempt_counts_once() {
    let (mut stage, task) = training();
    let update = honest(&stage.take_sent()[0].1, 1.0, 1);
    breaks_off(&mut stage, "north", task);
    for _ in 0..2 {
        stage.answer(&id("north"), task.next_attempt(), update.clone());
    }
    stage.answer(&id("south"), task, update);
    let accepted = stage.coordinator.clients()[&id("north")].accepted;
    let duplicate = stage.refusals("north").contains(&(Rejection::Duplicate, 1));
    assert_eq!((accepted, duplicate, stage.coordinator.checkpoint().round), (1, true, Round(1)));
}

#[test]
fn a_client_of_an_earlier_release_whose_stream_breaks_off_is_not_awaited_a_moment_later() {
    let (mut stage, task) = training();
    let update = honest(&stage.take_sent()[0].1, 1.0, 1);
    breaks_off(&mut stage, "south", task);
    assert!(asked(&mut stage).is_empty());
    stage.answer(&id("north"), task, update);
    stage.wait_for_deadline();
    assert!(stage.now - Time::ZERO < Duration::from_millis(500));
    assert_eq!(stage.coordinator.checkpoint().round, Round(1));
}

#[test]
fn a_client_of_an_earlier_release_that_comes_back_after_its_stream_broke_off_has_its_task_again() {
    for leaves in [true, false] {
        let (mut stage, task) = training();
        let update = honest(&stage.take_sent()[0].1, 1.0, 1);
        breaks_off(&mut stage, "south", task);
        if leaves {
            stage.handle(Event::Left(id("south")));
        } else {
            stage.wait_for_deadline();
            assert_eq!(stage.coordinator.owed(&id("south")), None);
        }
        comes(&mut stage, "south", &Arc::new(Capabilities::of_earlier_release()));
        assert_eq!(asked(&mut stage), [("south".to_owned(), task)]);
        stage.answer(&id("south"), task, update.clone());
        stage.answer(&id("north"), task, update);
        assert_eq!(stage.coordinator.checkpoint().round, Round(1));
        assert_eq!(stage.coordinator.clients()[&id("south")].accepted, 1, "left: {leaves}");
    }
}

#[test]
fn a_step_that_is_put_anew_has_another_number_than_every_attempt_before() {
    let plan = PLAN.replace("features = [\"a\"]", "features = [\"a\"]\nstandardise = \"federated\"");
    let mut setup = setup("", Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION])));
    setup.plan = Arc::new(Plan::parse(&format!("{plan}[cohort]\nclients_min = 1\nquorum = 1\n")).unwrap());
    let mut stage = Stage::with(setup);
    comes(&mut stage, "north", &knowing(&[]));
    let task = asked(&mut stage)[0].1;
    assert_eq!(task.step, StepId::STATISTICS);
    for attempt in [task, task.next_attempt()] {
        breaks_off(&mut stage, "north", attempt);
    }
    assert_eq!(asked(&mut stage).len(), 1);
    stage.wait_for_deadline();
    assert_eq!(asked(&mut stage)[0].1, task.next_attempt().next_attempt());
}

#[test]
fn what_everybody_knows_changes_no_draw() {
    let plan = "[cohort]\nclients_min = 6\ncount = 3\nquorum = 1\n[evaluation]\nsites = \"none\"\n";
    let names = ["a", "b", "c", "d", "e", "f"];
    let draw = |known: &dyn Fn(usize) -> Arc<Capabilities>| {
        let mut stage = Stage::new(plan);
        names.iter().enumerate().for_each(|(at, name)| comes(&mut stage, name, &known(at)));
        stage.answer_all(1.0);
        asked(&mut stage)
    };
    let alike = draw(&|_| Arc::new(Capabilities::of_this_release()));
    assert_eq!(draw(&|at| knowing(&[at as u16])), alike);
    assert_eq!(alike.len(), 3);
}
