//! Evaluation on the server's own data: what it measures, and what a failing learner costs.

use protocol::{Decline, Layout, Statistic, TrainOrder};

use super::*;

/// Measures the sum of the model; fails on 1 and panics on 2.
struct Scale(Layout);

impl Learner for Scale {
    fn prepare(&mut self, _: &Arc<Spec>) -> Result<(), LearnError> {
        Ok(())
    }
    fn layout(&self) -> &Layout {
        &self.0
    }
    fn initialise(&mut self, _: Seed) -> Result<Vec<f32>, LearnError> {
        Ok(vec![10.0; self.0.len()])
    }
    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        Ok(Vec::new())
    }
    fn train(&mut self, _: &mut [f32], _: &TrainOrder, _: &Stop) -> Result<Metrics, LearnError> {
        Err(LearnError::new(Decline::Unsupported, "a server does not train"))
    }
    fn evaluate(&mut self, values: &[f32], _: &EvaluateOrder, _: &Stop) -> Result<Metrics, LearnError> {
        let loss = values.iter().map(|value| f64::from(*value)).sum();
        match values[0] {
            1.0 => Err(LearnError::new(Decline::Data, "no such file")),
            2.0 => panic!("a defect in a learner"),
            _ => Ok(Metrics { loss, ..Metrics::default() }),
        }
    }
}

fn spec() -> Arc<Spec> {
    let plan = "name = \"t\"\nrounds = 1\nmodel = \"linear\"\n\
        [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
        [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n";
    crate::Plan::parse(plan).unwrap().spec
}

/// The losses of models whose shared values are all these, one after another.
fn losses(personal: &[String], values: &[f32]) -> Vec<Option<f64>> {
    let layout = Layout::new([("a".to_owned(), vec![2]), ("b".to_owned(), vec![1])]).unwrap();
    let layout = layout.with_personal(personal).unwrap();
    let shared = layout.shared_len();
    let (engine, mut inbox) = mpsc::channel(4);
    let evaluator = Evaluator::start(RunId(1), spec(), Box::new(Scale(layout)), engine.downgrade());
    let mut losses = Vec::new();
    for (round, value) in (1u32..).zip(values) {
        let model = Arc::new(Parameters::new(vec![*value; shared]));
        assert!(evaluator.ask(Round(round), model, None));
        match inbox.blocking_recv() {
            Some(Command::Evaluated { run: RunId(1), round: answered, metrics })
                if answered == Round(round) =>
            {
                losses.push(metrics.map(|metrics| metrics.loss));
            }
            _ => panic!("something else came"),
        }
    }
    losses
}

#[test]
fn a_server_without_records_to_measure_on_says_nothing_of_a_model() {
    assert_eq!(losses(&[], &[0.0, 3.0]), [None, Some(9.0)]);
}

#[test]
fn a_learner_that_fails_or_panics_gives_no_metrics_and_goes_on() {
    let found = losses(&[], &[3.0, 1.0, 2.0, f32::INFINITY, 4.0]);
    assert_eq!(found, [Some(9.0), None, None, None, Some(12.0)]);
}

#[test]
fn layers_that_stay_at_the_sites_are_fresh_ones_here() {
    assert_eq!(losses(&["b".into()], &[3.0]), [Some(16.0)]);
}
