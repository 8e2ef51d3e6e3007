//! How often a client is really in a released round: a coordinator of the plan is played, with clients that send zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::Encoded;
use privacy::ledger::Ledger;
use protocol::wire::Receipt;
use protocol::{
    Answer, ClientId, Metrics, Outcome, Parameters, Positive, RunId, Sampling, Seed, Task, Time, Work,
};
use server::{Action, Checkpoint, Coordinator, DpContext, Event, NoiseRng, Plan, Setup};

use super::{AuditError, central};
use crate::aggregator::AggregatorError;

/// Rounds that are played.
const ROUNDS: u32 = 400;
/// The most clients of a federation in which coins are tossed; more of them change no client's chance.
const CLIENTS_MAX: u64 = 1000;
/// A delta that the slower accountant does not answer: the book has nothing to decide here.
const DELTA: f64 = 1e-13;

/// In how many of how many released rounds of `plan` one client is. `lengths` are those of its tensors.
pub(super) fn drawn(plan: &Plan, lengths: Vec<usize>, seed: Seed) -> Result<(u64, u64), AuditError> {
    let mut plan = plan.clone();
    let mut spec = (*plan.spec).clone();
    let clients = match central(&spec)?.sampling {
        Sampling::Fixed { population, .. } => population,
        Sampling::Poisson { rate } => {
            ((central(&spec)?.denominator.value() / rate).ceil() as u64).clamp(1, CLIENTS_MAX)
        }
        Sampling::Availability { .. } => 1,
    };
    let clients = clients.max(plan.cohort.clients_min as u64);
    if let Some(central) = spec.privacy.central.as_mut() {
        central.delta = DELTA;
        // A book that never runs out.
        central.epsilon_max = Positive::new(f64::MAX)?;
    }
    (plan.rounds, plan.cohort.failures_max) = (ROUNDS, u32::MAX);
    plan.spec = Arc::new(spec);
    let (ledger, _) = Ledger::found(central(&plan.spec)?.terms()).map_err(AggregatorError::from)?;
    let dp_context = DpContext { ledger, chance: NoiseRng::system(), threads: 1 };
    let setup = Setup {
        run: RunId(1),
        plan: Arc::new(plan),
        entropy: seed,
        is_seeded: false,
        central: false,
        checkpoint: Checkpoint::begin(Parameters::new(vec![0.0; lengths.iter().sum()])),
        clients: BTreeMap::new(),
        tensors: lengths.clone(),
        dp_context: Some(dp_context),
    };
    let coordinator = Coordinator::new(setup)
        .map_err(|error| protocol::SpecError::new("privacy.central", error.to_string()))?;
    let names: Result<Vec<ClientId>, _> =
        (0..clients).map(|place| ClientId::new(&format!("c{place}"))).collect();
    let mut play =
        Play { coordinator, lengths, asked: Vec::new(), is_in: false, counts: (0, 0), over: false };
    play.run(names?);
    Ok(play.counts)
}

struct Play {
    coordinator: Coordinator,
    lengths: Vec<usize>,
    asked: Vec<(ClientId, Task)>,
    /// Whether the canary counts in the open round.
    is_in: bool,
    counts: (u64, u64),
    over: bool,
}

impl Play {
    fn run(&mut self, clients: Vec<ClientId>) {
        let canary = clients[0].clone();
        self.handle(Event::joined_together(clients), &canary);
        while !self.over {
            let asked = std::mem::take(&mut self.asked);
            if asked.is_empty() {
                return;
            }
            for (client, task) in asked {
                let answer = Answer { task: task.id, outcome: self.zeros(&task) };
                self.handle(Event::Answered { client, answer }, &canary);
            }
        }
    }

    /// An update of zeros, within the norm.
    fn zeros(&self, task: &Task) -> Outcome {
        let norm_max = match &task.work {
            Work::Train { norm_max, .. } => norm_max.unwrap_or(task.spec.update.norm_max),
            Work::Statistics { .. } | Work::Evaluate { .. } | Work::Method(_) => task.spec.update.norm_max,
        };
        let lattice = task.spec.lattice_within(norm_max, &self.lengths).expect("the plan had a lattice");
        let clipped = lattice.clip(vec![0.0; lattice.dimension()]).expect("zeros are finite");
        let encoded = Encoded::encode(&clipped, lattice.weigh(1), &lattice).expect("zeros lie on a lattice");
        let (weight, vote) = (encoded.weight().value(), i8::from(task.spec.privacy.is_adaptive()));
        Outcome::trained(encoded.into_points(), weight, vote, Metrics::default())
    }

    fn handle(&mut self, event: Event, canary: &ClientId) {
        // Nothing waits for time: every client that is asked answers at once.
        let now = Time::ZERO;
        self.coordinator.handle(now, event);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => self.asked.push((client, task)),
                Action::Receipt { client, receipt: Receipt::Accepted, .. } if client == *canary => {
                    self.is_in = true;
                }
                Action::Reserve(_) => self.coordinator.handle(now, Event::Reserved),
                Action::Commit(commit) => {
                    if commit.summary.released && commit.checkpoint.end.is_none() {
                        self.counts = (self.counts.0 + u64::from(self.is_in), self.counts.1 + 1);
                    }
                    self.is_in = false;
                    self.over = commit.checkpoint.end.is_some();
                    if self.over {
                        return;
                    }
                    self.coordinator.handle(now, Event::Committed);
                }
                _ => {}
            }
        }
    }
}
