//! Where the time of a workload goes, in seconds of a core a client update.
//!
//! Training is timed in the run itself. What surrounds it is timed by running the very same rounds with a learner that hardly
//! works: once all of it, and once the client's part alone. What is left of the run's time is waiting, for the last client of a
//! round or for other programs.

use std::sync::Arc;
use std::time::Instant;

use client::Participant;
use measure::Adder;
use protocol::{
    ClientId, Contribution, Layout, Learner, Outcome, Round, RunId, Seed, StepId, Stop, Task, TaskId, Work,
};
use serde_json::{Value, json};
use server::Plan;
use server::net::InitialModel;
use simulations::{Population, Worker, Workforce};

use super::samples::Samples;
use super::simulated::run;
use crate::cli::failure::{Failure, Kind, OrFail};
use crate::cli::output::table;

/// Turns of the client's part that are timed.
const TURNS: usize = 15;
/// Rounds with the idle learner: enough for a clock, few enough to wait for.
const ROUNDS: u32 = 20;

/// What is around a workload's training.
pub(super) struct Around<'a> {
    pub(super) plan: &'a Plan,
    pub(super) first: &'a InitialModel,
    pub(super) population: &'a Population,
    pub(super) threads: usize,
}

/// Seconds of a core a client update, by what they went into.
#[derive(Debug)]
pub(super) struct Profile {
    phases: [(&'static str, f64); 4],
}

impl Around<'_> {
    /// Divides the `whole` of a run, of which `training` is training.
    pub(super) fn measure(
        &self,
        seed: u64,
        records: u64,
        whole: f64,
        training: f64,
    ) -> Result<Profile, Failure> {
        let client = self.client(records)?;
        let idle = Idle { population: self.population, layout: &self.first.layout, records };
        let mut plan = self.plan.clone();
        plan.rounds = plan.rounds.min(ROUNDS);
        let ran = run(&plan, &self.first.shared, &idle, seed, self.threads)?;
        let around = self.threads as f64 / ran.updates_per_s - ran.training_seconds;
        let server = (around - client).max(0.0);
        let phases = [
            ("training", training),
            ("client: copy, difference, clip, encode", client),
            ("server and simulator: admit, add, step, plan", server),
            ("waiting", whole - training - client - server),
        ];
        Ok(Profile { phases })
    }

    /// Seconds of the client's part of an update, but for training.
    fn client(&self, records: u64) -> Result<f64, Failure> {
        let layout = self.first.layout.clone();
        let id = ClientId::new("client").or_fail(Kind::Defect, "a name")?;
        let mut participant = Participant::new(id, Box::new(Adder::new(layout, records)));
        let id = TaskId::new(RunId(0), Round(1), StepId::TRAIN);
        let (model, norm_max) = (Arc::new(self.first.shared.clone()), None);
        let work = Work::Train { model, learning_rate_scale: 1.0, norm_max };
        let (spec, seed) = (Arc::clone(&self.plan.spec), Seed::from_number(1));
        let task = Task { id, spec, seed: Some(seed), standardiser: None, work };
        let mut seconds = Vec::new();
        for turn in 0..=TURNS {
            let began = Instant::now();
            let outcome = participant.attempt(&task, seed, &Stop::default());
            let taken = began.elapsed().as_secs_f64();
            match outcome.or_fail(Kind::Defect, "an idle client")? {
                Outcome::Done(Contribution { metrics: Some(metrics), .. }) if turn > 0 => {
                    seconds.push(taken - metrics.seconds);
                }
                _ => {}
            }
        }
        let seconds = Samples::new(seconds);
        Ok(seconds.ok_or_else(|| Failure::new(Kind::Defect, "an idle client did not train"))?.median())
    }
}

impl Profile {
    pub(super) fn object(&self) -> Value {
        let whole: f64 = self.phases.iter().map(|(_, seconds)| seconds).sum();
        let phase = |(name, seconds): &(&str, f64)| json!({ "phase": name, "core_seconds_per_update": seconds, "share": seconds / whole });
        json!({ "phases": self.phases.iter().map(phase).collect::<Vec<_>>() })
    }

    /// The phases of an object as people read them.
    pub(super) fn describe(phases: &[Value]) -> String {
        let mut rows = vec![["", "core us an update", "share"].map(str::to_owned).to_vec()];
        for phase in phases {
            let number = |key: &str| phase[key].as_f64().unwrap_or(f64::NAN);
            rows.push(vec![
                phase["phase"].as_str().unwrap_or_default().to_owned(),
                format!("{:.1}", 1e6 * number("core_seconds_per_update")),
                format!("{:.1} %", 100.0 * number("share")),
            ]);
        }
        table(&rows)
    }
}

/// The clients of a population, whose learners hardly work.
struct Idle<'a> {
    population: &'a Population,
    layout: &'a Layout,
    records: u64,
}

impl Workforce for Idle<'_> {
    fn clients(&self) -> &[ClientId] {
        self.population.clients()
    }

    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(Idler(Adder::new(self.layout.clone(), self.records)))
    }

    fn central(&self) -> Option<Box<dyn Learner>> {
        None
    }
}

/// One learner for all clients.
struct Idler(Adder);

impl Worker for Idler {
    fn visit(&mut self, _: usize) -> &mut dyn Learner {
        &mut self.0
    }
}
