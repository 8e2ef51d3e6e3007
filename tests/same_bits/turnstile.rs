//! Sites in this process whose answers arrive in an order that the test chooses, another one each round.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};

use learning::device::Device;
use learning::{FileSource, SourceSpec, Trainer};
use protocol::wire::RunState;
use protocol::{
    EvaluateOrder, Layout, LearnError, Learner, Metrics, Seed, Spec, Statistic, StepId, Stop, TrainOrder,
};
use server::Note;
use server::net::Limits;

use crate::federation::Federation;
use crate::member::PATIENCE;
use crate::{COMPRESSED, ROUNDS, SEED, SITES, plan, records, simulated};

/// Lets a site's answer go once the one before it counts.
#[derive(Default)]
struct Turnstile {
    counted: Mutex<BTreeSet<(u32, usize)>>,
    changed: Condvar,
}

/// The place of a site's answer in a round: never the order of their names, and no two rounds in a row alike.
fn place(site: usize, round: u32) -> usize {
    (3 * site + round as usize) % SITES.len()
}

impl Turnstile {
    fn count(&self, round: u32, site: usize) {
        self.counted.lock().unwrap().insert((round, place(site, round)));
        self.changed.notify_all();
    }

    /// Waits until as many answers count as come before this site's.
    fn pass(&self, round: u32, site: usize) {
        let before = place(site, round);
        let counted = self.counted.lock().unwrap();
        let is_due = |counted: &mut BTreeSet<(u32, usize)>| {
            (0..before).any(|place| !counted.contains(&(round, place)))
        };
        let waited = self.changed.wait_timeout_while(counted, PATIENCE, is_due).unwrap();
        assert!(!waited.1.timed_out(), "the answers before {} in round {round} did not come", SITES[site]);
    }
}

/// An honest learner that holds its update back until its turn.
struct Queueing {
    trainer: Trainer,
    site: usize,
    turnstile: Arc<Turnstile>,
}

impl Learner for Queueing {
    fn prepare(&mut self, spec: &Arc<Spec>) -> Result<(), LearnError> {
        self.trainer.prepare(spec)
    }

    fn layout(&self) -> &Layout {
        self.trainer.layout()
    }

    fn initialise(&mut self, seed: Seed) -> Result<Vec<f32>, LearnError> {
        self.trainer.initialise(seed)
    }

    fn statistics(&mut self) -> Result<Vec<Statistic>, LearnError> {
        self.trainer.statistics()
    }

    fn train(
        &mut self,
        parameters: &mut [f32],
        order: &TrainOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        let trained = self.trainer.train(parameters, order, stop);
        self.turnstile.pass(order.round.0, self.site);
        trained
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        order: &EvaluateOrder,
        stop: &Stop,
    ) -> Result<Metrics, LearnError> {
        self.trainer.evaluate(parameters, order, stop)
    }
}

/// The records of one hospital.
fn source(site: &str) -> SourceSpec {
    let text = format!(
        "csv = {{ train = {:?}, split_column = \"split\", where = {{ site = \"{site}\" }} }}",
        records()
    );
    toml::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_any_order_make_the_simulated_model() {
    let federation = Federation::new();
    let server = federation.serve(Limits::default()).await;
    let (turnstile, mut notes) = (Arc::new(Turnstile::default()), server.notes());
    let counting = Arc::clone(&turnstile);
    let arrivals = tokio::spawn(async move {
        let mut arrivals = Vec::new();
        while let Ok((_, note)) = notes.recv().await {
            if let Note::Accepted { client, task, .. } = note
                && task.step == StepId::TRAIN
            {
                let site = SITES.iter().position(|name| *name == client.as_str()).unwrap();
                counting.count(task.round.0, site);
                arrivals.push((task.round.0, site));
            }
        }
        arrivals
    });
    let mut members = Vec::new();
    for (site, name) in SITES.iter().enumerate() {
        let trainer = Trainer::new(Box::new(FileSource::new(source(name))), Device::Cpu);
        let learner = Box::new(Queueing { trainer, site, turnstile: Arc::clone(&turnstile) });
        members.push(federation.join(&server, name, learner).await);
    }
    let operator = federation.operator(&server).await;
    let run = operator.submit(&plan(ROUNDS, COMPRESSED), SEED).await;
    let summary = operator.follow(run).await;
    assert_eq!(summary.state, RunState::Finished, "{}", summary.message);
    assert_eq!(summary.model_sha256, simulated(1, ROUNDS, COMPRESSED).model.sha256());

    for member in members {
        member.leave().await;
    }
    server.shutdown().await.unwrap();
    let mut expected: Vec<(u32, usize)> =
        (1..=ROUNDS).flat_map(|round| (0..SITES.len()).map(move |site| (round, site))).collect();
    expected.sort_by_key(|(round, site)| (*round, place(*site, *round)));
    assert_eq!(arrivals.await.unwrap(), expected, "the answers did not arrive in the chosen order");
}
