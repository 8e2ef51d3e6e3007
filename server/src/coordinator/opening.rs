//! How a round begins: enough clients, a reservation where the plan promises privacy, a cohort, a task for each of it.

use std::sync::Arc;

use privacy::Sum;
use protocol::wire::{Control, RoundSummary};
use protocol::{COHORT_MAX, ClientId, Round, Sampling, StepId, TaskId, Time};

use super::{Action, Central, ClientRecord, Coordinator, Gate, Note, Phase, RunEnd};
use crate::plan::Evaluators;
use crate::selection::{draw, select, toss};

impl Coordinator {
    /// Opens what comes next, once enough clients are there and as long as the operator wants it.
    pub(super) fn gather(&mut self, now: Time) {
        match self.control {
            Control::Pause => return,
            Control::Stop | Control::StopNow => return self.end_early(RunEnd::Stopped),
            Control::Resume => {}
        }
        let needed = self.plan.cohort.clients_min;
        if self.connected < needed {
            return self.note(Note::Waiting { connected: self.connected, needed });
        }
        if !self.state.evaluated
            && let Some(summary) = self.state.summary.clone()
        {
            return self.open_evaluation(now, summary);
        }
        if !self.statistics.is_empty() && self.state.standardiser.is_none() {
            let connected = self.roster.connected(&self.clients);
            let sum = Sum::of_tallies(self.statistics.len(), self.lattice.clients_max());
            return self.open_collection(now, Round(0), StepId::STATISTICS, &connected, sum);
        }
        if let Some(sampling) = self.protection.as_ref().map(|protection| protection.central().sampling) {
            self.reserve(sampling);
        } else {
            let round = self.state.round.next();
            let connected = self.roster.connected(&self.clients);
            let cohort = select(&connected, &self.plan.cohort, &self.entropy, round, &mut self.roster.urn);
            self.open_collection(now, round, StepId::TRAIN, &cohort, Sum::new(&self.lattice));
        }
    }

    /// Reserves the release of the next round, or ends the run when the budget cannot pay or nobody may take part.
    fn reserve(&mut self, sampling: Sampling) {
        let round = self.state.round.next();
        // Before anything is drawn, and by numbers that everybody may know: afterwards nothing may depend on the cohort.
        if let Some((connected, population)) = self.missing_from_population() {
            return self.note(Note::Waiting { connected, needed: population as usize });
        }
        if sampling.is_secret() && self.clients.len() as u64 > COHORT_MAX {
            let enrolled = self.clients.len();
            let why = format!(
                "{enrolled} clients are enrolled, and poisson or fixed sampling draws from at most {COHORT_MAX}; split the federation"
            );
            return self.end_early(RunEnd::Failed(why));
        }
        if let Sampling::Availability { participations_max, .. } = sampling
            && self.clients.values().all(|record| record.releases >= participations_max)
        {
            let why = format!(
                "every client has taken part in {participations_max} releases, as many as the plan allows"
            );
            return self.end_early(RunEnd::BudgetExhausted(why));
        }
        let Some(protection) = &mut self.protection else { return };
        match protection.reserve(self.run, round) {
            Ok(()) => {
                self.actions.push_back(Action::Book(protection.take_booking()));
                self.phase = Phase::Booking { round };
            }
            Err(refused) => self.end_early(RunEnd::BudgetExhausted(refused.to_string())),
        }
    }

    /// The reservation is on disk: draws the cohort and puts the round to it.
    pub(super) fn booked(&mut self, now: Time) {
        let Phase::Booking { round } = self.phase else { return };
        if matches!(self.control, Control::Stop | Control::StopNow) {
            return self.end_early(RunEnd::Stopped);
        }
        let Some(protection) = &mut self.protection else { return };
        protection.draw();
        let (sampling, norm_max) = (protection.central().sampling, protection.norm_max());
        if let Some(norm_max) = norm_max {
            // The plan had a lattice for this model, and its number of points does not depend on the norm.
            if let Ok(lattice) = self.plan.spec.lattice_within(norm_max, &self.tensors) {
                self.lattice = lattice;
            }
        }
        let cohort = match sampling {
            Sampling::Poisson { rate } => self.present(toss(self.clients.keys(), rate, &self.entropy, round)),
            Sampling::Fixed { sample, .. } => {
                let enrolled = self.roster.enrolled(&self.clients);
                let drawn = draw(&enrolled, sample, &self.entropy, round, &mut self.roster.urn);
                self.present(drawn)
            }
            Sampling::Availability { participations_max, separation_min } => {
                let next = self.state.releases + 1;
                let may = |record: &ClientRecord| {
                    let rested = next - record.released_last >= separation_min;
                    record.releases < participations_max && (record.released_last == 0 || rested)
                };
                let records = self.clients.iter().filter(|(_, record)| record.connected && may(record));
                let eligible: Vec<ClientId> = records.map(|(client, _)| client.clone()).collect();
                select(&eligible, &self.plan.cohort, &self.entropy, round, &mut self.roster.urn)
            }
        };
        self.open_collection(now, round, StepId::TRAIN, &cohort, Sum::new(&self.lattice));
        self.advance(now);
    }

    /// How many clients are enrolled, and how many the plan says that there are, while there are fewer.
    pub(super) fn missing_from_population(&self) -> Option<(usize, u64)> {
        let Sampling::Fixed { population, .. } = self.protection.as_ref()?.central().sampling else {
            return None;
        };
        let enrolled = self.clients.len();
        ((enrolled as u64) < population).then_some((enrolled, population))
    }

    /// Of these, those that are connected. The others count as zeros.
    fn present(&self, mut drawn: Vec<ClientId>) -> Vec<ClientId> {
        drawn.retain(|client| self.clients.get(client).is_some_and(|record| record.connected));
        drawn
    }

    fn open_collection(&mut self, now: Time, round: Round, kind: StepId, cohort: &[ClientId], sum: Sum) {
        let quorum = self.plan.cohort.quorum;
        let gate = self.open_gate(now, TaskId::new(self.run, round, kind), cohort, quorum);
        self.phase = Phase::Collecting { gate, sum, reports: Vec::new() };
    }

    pub(super) fn open_evaluation(&mut self, now: Time, summary: RoundSummary) {
        let round = self.state.round;
        let cohort = match self.plan.evaluation.sites {
            Evaluators::All => self.roster.connected(&self.clients),
            Evaluators::None => Arc::default(),
        };
        let task = TaskId::new(self.run, round, StepId::EVALUATE);
        let gate = self.open_gate(now, task, &cohort, 0);
        let mut central = Central::Done(None);
        if self.central {
            central = Central::Awaited;
            let (model, standardiser) = (Arc::clone(&self.state.model), self.state.standardiser.clone());
            self.actions.push_back(Action::EvaluateCentrally { round, model, standardiser });
        }
        self.phase = Phase::Evaluating { gate, reports: Vec::new(), central, summary };
        self.advance(now);
    }

    fn open_gate(&mut self, now: Time, task: TaskId, cohort: &[ClientId], quorum: usize) -> Gate {
        if !cohort.is_empty() {
            self.note(Note::Opened { task, cohort: cohort.len() });
        }
        let work = self.task(task);
        for client in cohort {
            self.actions.push_back(Action::Send { client: client.clone(), task: work.clone() });
        }
        Gate::new(task, cohort, quorum, now, now + self.plan.cohort.deadline)
    }
}
