//! Scripted runs, then random ones.

mod abilities;
mod closing;
mod control;
mod ending;
mod finite;
mod golden;
mod private;
mod random;
mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::{Encoded, Lattice, Statistics, WideSum};
use protocol::{Answer, Outcome, Parameters, Work};

use super::*;

const DIMENSION: usize = 2;

const PLAN: &str = "name = \"t\"\nrounds = 2\nmodel = \"linear\"\n\
    [data.table]\nlabel = \"y\"\ntarget = \"real\"\nfeatures = [\"a\"]\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.1 } }\n";

/// A coordinator, its clock, and a shell that obeys: commits succeed at once, everything asked is remembered.
struct Stage {
    coordinator: Coordinator,
    now: Time,
    sent: Vec<(ClientId, Task)>,
    receipts: Vec<(ClientId, Receipt)>,
    notes: Vec<Note>,
    commits: Vec<Commit>,
    cancelled: Vec<ClientId>,
    end: Option<RunEnd>,
    commits_succeed: bool,
    /// What a disk would hold of the ledger.
    ledger: Vec<privacy::chain::Link>,
}

fn id(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn setup(extra: &str, checkpoint: Checkpoint) -> Setup {
    Setup {
        run: RunId(1),
        plan: Arc::new(Plan::parse(&format!("{PLAN}{extra}")).unwrap()),
        entropy: Seed::from_number(3),
        is_seeded: true,
        central: false,
        checkpoint,
        clients: BTreeMap::new(),
        tensors: Vec::new(),
        dp_context: None,
    }
}

impl Stage {
    fn new(extra: &str) -> Self {
        Self::resume(extra, Checkpoint::begin(Parameters::new(vec![0.0; DIMENSION])))
    }

    fn resume(extra: &str, checkpoint: Checkpoint) -> Self {
        Self::with(setup(extra, checkpoint))
    }

    fn with(setup: Setup) -> Self {
        Self {
            coordinator: Coordinator::new(setup).unwrap(),
            now: Time::ZERO,
            sent: Vec::new(),
            receipts: Vec::new(),
            notes: Vec::new(),
            commits: Vec::new(),
            cancelled: Vec::new(),
            end: None,
            commits_succeed: true,
            ledger: Vec::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        self.coordinator.handle(self.now, event);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Send { client, task } => self.sent.push((client, task)),
                Action::Cancel { client, .. } => self.cancelled.push(client),
                Action::Receipt { client, receipt, .. } => self.receipts.push((client, receipt)),
                Action::Note(note) => self.notes.push(note),
                Action::Ended(end) => self.end = Some(end),
                Action::EvaluateCentrally { .. } => panic!("this stage has no data of its own"),
                Action::Reserve(reservation) => {
                    self.ledger.extend(reservation.links);
                    if self.commits_succeed {
                        self.coordinator.handle(self.now, Event::Reserved);
                    }
                }
                Action::Commit(commit) => {
                    self.ledger
                        .extend(commit.reservation.iter().flat_map(|reservation| reservation.links.clone()));
                    self.commits.push(*commit);
                    if self.commits_succeed {
                        self.coordinator.handle(self.now, Event::Committed);
                    }
                }
            }
        }
    }

    fn join(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.handle(Event::joined(id(name))));
    }

    /// The tasks sent since the last call.
    fn take_sent(&mut self) -> Vec<(ClientId, Task)> {
        std::mem::take(&mut self.sent)
    }

    fn answer(&mut self, client: &ClientId, task: TaskId, outcome: Outcome) {
        self.handle(Event::Answered { client: client.clone(), answer: Answer { task, outcome } });
    }

    /// Answers every task sent since the last call, as an honest site would: updates of `value` everywhere.
    fn answer_all(&mut self, value: f32) {
        for (client, task) in self.take_sent() {
            self.answer(&client, task.id, honest(&task, value, 1));
        }
    }

    fn wait_for_deadline(&mut self) {
        self.now = self.coordinator.deadline().expect("something is awaited");
        self.handle(Event::Tick);
    }

    /// Of the plan's own norm.
    fn lattice(&self) -> Lattice {
        let spec = &self.coordinator.plan.spec;
        spec.lattice_within(spec.update.norm_max, &[DIMENSION]).unwrap()
    }

    fn model(&self) -> Vec<f32> {
        self.coordinator.checkpoint().model.values().to_vec()
    }

    fn refusals(&self, name: &str) -> Vec<(Rejection, u32)> {
        self.coordinator.clients()[&id(name)]
            .refused
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .collect()
    }
}

fn honest(task: &Task, value: f32, examples: u64) -> Outcome {
    let metrics = Metrics { loss: 0.5, accuracy: None, examples, seconds: 0.1 };
    match &task.work {
        Work::Statistics { names } => Outcome::counted(
            Statistics::encode(&vec![WideSum::of(value.into()).unwrap(); names.len()]).into_words(),
        ),
        Work::Evaluate { .. } => Outcome::evaluated(metrics),
        Work::Method(_) => panic!("this plan has no method"),
        Work::Train { model, norm_max, .. } => {
            let norm_max = norm_max.unwrap_or(task.spec.update.norm_max);
            let lattice = task.spec.lattice_within(norm_max, &[1; DIMENSION]).unwrap();
            let clipped = lattice.clip(vec![value; model.len()]).unwrap();
            let encoded = Encoded::encode(&clipped, lattice.weigh(examples), &lattice).unwrap();
            let weight = encoded.weight().value();
            let within = if clipped.norm_before() <= norm_max.value() { 1 } else { -1 };
            let vote = if task.spec.privacy.is_adaptive() { within } else { 0 };
            Outcome::trained(encoded.into_points(), weight, vote, metrics)
        }
    }
}
