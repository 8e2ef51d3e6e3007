//! Random operation sequences: whatever happens, the invariants hold.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Join(usize),
    Leave(usize),
    Honest(usize),
    Wild { client: usize, round: u32, kind: usize, points: Vec<i32>, weight: u32 },
    Broken { client: usize, reason: usize },
    Jump(u64),
    Deadline,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0usize..5;
    let step = prop_oneof![
        3 => client.clone().prop_map(Step::Join),
        1 => client.clone().prop_map(Step::Leave),
        8 => (0usize..8).prop_map(Step::Honest),
        2 => (client.clone(), 0u32..4, 0usize..3, prop::collection::vec(any::<i32>(), 0..4), 0u32..1500)
            .prop_map(|(client, round, kind, points, weight)| Step::Wild { client, round, kind, points, weight }),
        1 => (client, 0usize..13).prop_map(|(client, reason)| Step::Broken { client, reason }),
        1 => (0u64..1_000_000_000).prop_map(Step::Jump),
        1 => Just(Step::Deadline),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 0..120)
}

const EXTRA: &str = "[cohort]\nclients_min = 2\nquorum = 1\nfraction = 0.6\nfailures_max = 1000\n";

fn name(client: usize) -> ClientId {
    id(&format!("c{client}"))
}

fn play(stage: &mut Stage, step: Step) {
    let kinds = [StepId::STATISTICS, StepId::TRAIN, StepId::EVALUATE];
    match step {
        Step::Join(client) => stage.handle(Event::joined(name(client))),
        Step::Leave(client) => stage.handle(Event::Left(name(client))),
        Step::Honest(which) if !stage.sent.is_empty() => {
            let (client, task) = stage.sent[which % stage.sent.len()].clone();
            stage.answer(&client, task.id, honest(&task, 0.5, 3));
        }
        Step::Honest(_) => {}
        Step::Wild { client, round, kind, points, weight } => {
            let task = TaskId::new(RunId(1), Round(round), kinds[kind]);
            let outcome = Outcome::trained(points, weight, 0, Metrics::default());
            stage.answer(&name(client), task, outcome);
        }
        Step::Broken { client, reason } => {
            let task = stage.sent.last().map(|(_, task)| task.id);
            stage.handle(Event::Refused { client: name(client), task, reason: Rejection::ALL[reason] });
        }
        Step::Jump(micros) => {
            stage.now = Time::from_micros(stage.now.as_micros() + micros);
            stage.handle(Event::Tick);
        }
        Step::Deadline => {
            if let Some(deadline) = stage.coordinator.deadline() {
                stage.now = stage.now.max(deadline);
                stage.handle(Event::Tick);
            }
        }
        Step::Crash => {
            let last = stage.commits.last().map(|commit| commit.checkpoint.clone());
            let checkpoint = last.unwrap_or_else(|| Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION])));
            stage.coordinator = Coordinator::new(setup(EXTRA, checkpoint)).unwrap();
            stage.sent.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_sequence_of_events_breaks_the_invariants(steps in steps()) {
        let mut stage = Stage::new(EXTRA);
        for step in steps {
            play(&mut stage, step);
            let state = stage.coordinator.checkpoint();
            // The model is always finite, as long as it was, and what the last commit says.
            prop_assert!(state.model.len() == DIMENSION && state.model.values().iter().all(|value| value.is_finite()));
            if let Some(commit) = stage.commits.last() {
                prop_assert_eq!(&commit.checkpoint.model, &state.model);
            }
            prop_assert!(state.round.0 <= 2);
            let connected = stage.coordinator.clients().values().filter(|record| record.connected).count();
            prop_assert_eq!(connected, stage.coordinator.connected);
        }
        check_history(&stage)?;
    }
}

fn check_history(stage: &Stage) -> Result<(), TestCaseError> {
    let (mut released, mut last) = (BTreeSet::new(), 0);
    for commit in &stage.commits {
        let summary = &commit.summary;
        prop_assert!(summary.round >= last, "rounds never go backwards");
        last = summary.round;
        prop_assert!(summary.answered <= summary.cohort);
        prop_assert!(!summary.released || summary.answered >= 1, "no release without a quorum");
        if summary.released && summary.sites.is_none() && !commit.checkpoint.evaluated {
            prop_assert!(released.insert(summary.round), "round {} was released twice", summary.round);
        }
        let clients: BTreeSet<_> = commit.reports.iter().map(|(client, task, _)| (client, task)).collect();
        prop_assert_eq!(clients.len(), commit.reports.len(), "a client counts once");
    }
    Ok(())
}
