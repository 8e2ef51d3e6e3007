//! Whatever makes a release: one with a number that is not finite is not made.

use privacy::ledger::Record;
use protocol::Standardiser;

use super::private::{EVERY, plan, private_setup, records, seeded};
use super::*;
use crate::optimizer::{Adaptive, AdaptiveKind, ModelUpdate, ServerOptimizer, StateError};
use crate::workflow::{Aggregate, ClosePolicy, CohortRule, Conclusion, Effect, ExactSum, StepPlan, Workflow};

/// Adds the update, and in a round breaks a value of the model or of what it remembers.
struct Breaks {
    at: u32,
    round: u32,
    model: Option<f32>,
    memory: f32,
}

impl ServerOptimizer for Breaks {
    fn step(&mut self, model: &mut [f32], update: &ModelUpdate) {
        self.round += 1;
        model.iter_mut().zip(update.values()).for_each(|(value, moved)| *value += moved as f32);
        if let Some(broken) = self.model.filter(|_| self.round == self.at) {
            model[1] = broken;
        }
    }

    fn state(&self) -> Vec<Arc<Vec<f32>>> {
        let broken = if self.round == self.at { self.memory } else { 0.0 };
        vec![Arc::new(vec![0.0, broken])]
    }

    fn restore(&mut self, _: Vec<Arc<Vec<f32>>>) -> Result<(), StateError> {
        Ok(())
    }
}

fn breaking(extra: &str, optimizer: Breaks) -> Stage {
    let mut stage = Stage::new(extra);
    let begin = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let setup = Setup { tensors: vec![1, 1], ..setup(extra, begin) };
    let names = vec!["weight".to_owned(), "bias".to_owned()];
    stage.coordinator =
        Coordinator::with_optimizer(setup, Box::new(optimizer)).unwrap().with_tensor_names(names);
    stage
}

/// Answers until the run has ended, and gives why it failed.
fn failure(stage: &mut Stage, values: &[f32]) -> String {
    stage.join(&["a", "b"]);
    for value in values.iter().cycle() {
        if stage.end.is_some() {
            break;
        }
        stage.answer_all(*value);
    }
    match &stage.end {
        Some(RunEnd::Failed(why)) => why.clone(),
        other => panic!("{other:?}: {:?}", stage.model()),
    }
}

#[test]
fn a_model_that_an_optimizer_breaks_is_not_released_and_the_last_good_one_stays() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let optimizer = Breaks { at: 2, round: 0, model: Some(broken), memory: 0.0 };
        let mut stage = breaking("[cohort]\nclients_min = 2\n", optimizer);
        let why = failure(&mut stage, &[0.25]);
        for told in [
            "round 2",
            "the model of the last release stands",
            "value 0 of `bias`",
            &broken.to_string(),
            "learning_rate",
            "norm_max",
        ] {
            assert!(why.contains(told), "{told}: {why}");
        }
        let stood: Vec<f32> = stage.model();
        assert!(stood.iter().all(|value| (value - 0.25).abs() < 1e-3), "{stood:?}");
        let last = stage.commits.last().unwrap();
        assert_eq!((last.checkpoint.releases, last.summary.released, last.summary.round), (1, false, 2));
        assert_eq!(*last.checkpoint.model, Parameters::new(stood));
        let told = |note: &Note| matches!(note, Note::Withheld { reason, .. } if why == format!("round 2 released nothing: {reason}"));
        assert!(stage.notes.iter().any(told), "{:?}", stage.notes);
    }
}

#[test]
fn what_an_optimizer_remembers_is_held_to_the_same_rule() {
    let optimizer = Breaks { at: 1, round: 0, model: None, memory: f32::INFINITY };
    let mut stage = breaking("[cohort]\nclients_min = 2\n", optimizer);
    let why = failure(&mut stage, &[0.25]);
    assert!(why.starts_with("round 1 released nothing: value "), "{why}");
    assert!(
        why.contains("no model is released") && !why.contains("last release"),
        "there is none before: {why}"
    );
    assert_eq!(stage.model(), [0.0; DIMENSION]);
    // The square of such a tau is beyond f32.
    let mut stage = Stage::new("[cohort]\nclients_min = 2\n");
    let begin = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let adam = Adaptive::new(AdaptiveKind::Adam, 0.1, 0.9, 0.99, 1e200);
    stage.coordinator =
        Coordinator::with_optimizer(setup("[cohort]\nclients_min = 2\n", begin), Box::new(adam)).unwrap();
    assert!(failure(&mut stage, &[0.25]).contains("not finite"));
}

#[test]
fn a_private_release_that_is_refused_stays_paid() {
    let plan = plan(3, 1e4, EVERY, "");
    let begin = Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION]));
    let setup = private_setup(&plan, begin, &[], seeded(0));
    let mut stage = Stage::new("");
    let optimizer = Breaks { at: 2, round: 0, model: Some(f32::NAN), memory: 0.0 };
    stage.coordinator = Coordinator::with_optimizer(setup, Box::new(optimizer)).unwrap();
    let why = failure(&mut stage, &[0.1]);
    assert!(why.contains("update.norm_max (the noise is scaled to it)"), "{why}");
    let spent = records(&stage).iter().filter(|record| matches!(record, Record::Spent { .. })).count();
    assert_eq!(spent, 2, "the noise was drawn over the sum of round 2");
}

/// Sets the model or the standardiser to what it is told.
struct Sets(Made);

type Made = fn() -> Effect;

impl Workflow for Sets {
    fn next(&mut self, state: &RunState<'_>) -> Option<StepPlan> {
        Some(StepPlan {
            step: StepId::STATISTICS,
            round: state.checkpoint.round.next(),
            cohort: CohortRule::Drawn,
            work: Work::Statistics { names: vec!["a".into()] },
            collector: Box::new(ExactSum::of_totals(1, Arc::new(|_| Ok(())))),
            quorum: 1,
            close: ClosePolicy::All,
            central: false,
            is_round: true,
        })
    }

    fn concluded(&mut self, _: StepId, _: Aggregate, _: &RunState<'_>) -> Conclusion {
        Conclusion { effect: (self.0)(), is_round_over: true }
    }

    fn is_finished(&self, state: &RunState<'_>) -> bool {
        state.checkpoint.round.0 >= 1
    }
}

#[test]
fn no_effect_of_any_workflow_releases_what_is_not_finite_or_of_another_length() {
    let effects: [(Made, &str); 6] = [
        (|| Effect::SetModel(Parameters::new(vec![1.0, f32::NAN])), "value 1 of"),
        (|| Effect::SetModel(Parameters::new(vec![1.0; 3])), "number 3 and the model's 2"),
        (|| Effect::StepModel(ModelUpdate::Unprotected(vec![0.0, f64::INFINITY])), "value 1 of"),
        // Finite as f64, and not as a model has it.
        (|| Effect::StepModel(ModelUpdate::Unprotected(vec![1e300, 0.0])), "[aggregation]"),
        (|| Effect::StepModel(ModelUpdate::Unprotected(vec![1.0])), "number 1 and the model's 2"),
        (
            || Effect::Standardise(Standardiser { mean: vec![0.0], std: vec![f64::INFINITY] }),
            "data.standardise",
        ),
    ];
    for (effect, expected) in effects {
        let mut stage = Stage::new("");
        let setup = setup("", Checkpoint::begin(Parameters::new(vec![0.5; DIMENSION])));
        let optimizer = setup.plan.strategy.optimizer();
        stage.coordinator = Coordinator::with_workflow(setup, optimizer, Box::new(Sets(effect))).unwrap();
        let why = failure(&mut stage, &[1.0]);
        assert!(why.contains(expected), "{expected}: {why}");
        assert_eq!(stage.model(), [0.5; DIMENSION]);
        assert_eq!(stage.coordinator.checkpoint().standardiser, None);
    }
}
