//! How a round begins: enough clients, a reservation where the plan promises privacy, a cohort, a task for each of it.

use std::sync::Arc;

use privacy::counted;
use protocol::wire::Control;
use protocol::{COHORT_MAX, Capability, ClientId, Round, Sampling, StepId, Task, TaskId, Time, Work};

use super::further::FurtherReports;
use super::{
    Action, Central, ClientRecord, CohortTracker, Coordinator, Note, OpenStep, Phase, Protection, RunEnd,
    RunState, StepPlan, Workflow,
};
use crate::selection::{draw, poisson_sample, select};
use crate::workflow::{Answers, CohortRule};

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
        self.open_next(now);
    }

    /// Opens what the workflow says, or reserves its release first.
    pub(super) fn open_next(&mut self, now: Time) {
        let step = self.with_state(|workflow, state| workflow.next(state));
        let Some(step) = step else { return self.end_early(RunEnd::Finished) };
        // Before anything is reserved for it. What the connected sites know is no secret, and who is drawn does not matter here.
        if let Some(why) = self.inability(&step) {
            return self.fail_unable(&step, why);
        }
        self.setbacks.unable(None);
        let sampling = self.protection.as_ref().map(|protection| protection.central().sampling);
        match sampling.filter(|_| step.collector.takes_permit()) {
            Some(sampling) => self.reserve(step, sampling),
            None => self.open(now, step),
        }
    }

    /// Asks the workflow about where the run stands.
    pub(super) fn with_state<T>(&mut self, ask: impl FnOnce(&mut dyn Workflow, &RunState<'_>) -> T) -> T {
        self.with_answers(Answers::default(), ask)
    }

    /// The same, of a step to which these have answered.
    pub(super) fn with_answers<T>(
        &mut self,
        answers: Answers<'_>,
        ask: impl FnOnce(&mut dyn Workflow, &RunState<'_>) -> T,
    ) -> T {
        let sent_model = self.sent_model();
        let norm_max = self.protection.as_ref().and_then(Protection::norm_max);
        let connected = self.connected;
        let (checkpoint, seed) = (&self.state, &self.entropy);
        let state = RunState { checkpoint, sent_model: &sent_model, norm_max, connected, seed, answers };
        ask(&mut *self.workflow, &state)
    }

    /// Reserves the release of a step, or ends the run when the budget cannot pay or nobody may take part.
    fn reserve(&mut self, step: StepPlan, sampling: Sampling) {
        let round = step.round;
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
                "every client has taken part in {}, as many as the plan allows",
                counted(participations_max, "release")
            );
            return self.end_early(RunEnd::BudgetExhausted(why));
        }
        let Some(protection) = &mut self.protection else { return };
        match protection.reserve(self.run, round) {
            Ok(()) => {
                self.actions.push_back(Action::Reserve(protection.take_reservation()));
                self.phase = Phase::Reserving(Box::new(step));
            }
            Err(refused) => self.end_early(RunEnd::BudgetExhausted(refused.to_string())),
        }
    }

    /// The reservation is on disk: draws the cohort and puts the step to it.
    pub(super) fn reserved(&mut self, now: Time) {
        if !matches!(self.phase, Phase::Reserving(_)) {
            return;
        }
        if matches!(self.control, Control::Stop | Control::StopNow) {
            return self.end_early(RunEnd::Stopped);
        }
        let Phase::Reserving(step) = std::mem::replace(&mut self.phase, Phase::Gathering) else { return };
        if let Some(protection) = &mut self.protection {
            protection.draw();
        }
        self.open(now, *step);
        self.advance(now);
    }

    /// Whom the plan's rule draws for a round, of those that know what is needed.
    fn drawn(&mut self, round: Round, needed: &Capability) -> Vec<ClientId> {
        let sampling = self.protection.as_ref().map(|protection| protection.central().sampling);
        match sampling {
            None => {
                let connected = self.roster.connected(&self.clients);
                let connected = self.able(connected, needed);
                select(&connected, &self.plan.cohort, &self.entropy, round, &mut self.roster.sampler)
            }
            Some(Sampling::Poisson { rate }) => {
                let drawn = self.present(poisson_sample(self.clients.keys(), rate, &self.entropy, round));
                self.able(drawn.into(), needed).to_vec()
            }
            Some(Sampling::Fixed { sample, .. }) => {
                let enrolled = self.roster.enrolled(&self.clients);
                let drawn = draw(&enrolled, sample, &self.entropy, round, &mut self.roster.sampler);
                let drawn = self.present(drawn);
                self.able(drawn.into(), needed).to_vec()
            }
            Some(Sampling::Availability { participations_max, separation_min }) => {
                let next = self.state.releases + 1;
                let may = |record: &ClientRecord| {
                    let rested = next - record.released_last >= separation_min;
                    record.releases < participations_max && (record.released_last == 0 || rested)
                };
                let records = self.clients.iter().filter(|(_, record)| record.connected && may(record));
                let eligible = records.map(|(client, _)| client.clone()).collect();
                let eligible = self.able(eligible, needed);
                select(&eligible, &self.plan.cohort, &self.entropy, round, &mut self.roster.sampler)
            }
        }
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
    pub(super) fn present(&self, mut drawn: Vec<ClientId>) -> Vec<ClientId> {
        drawn.retain(|client| self.clients.get(client).is_some_and(|record| record.connected));
        drawn
    }

    /// Puts a step to its cohort.
    pub(super) fn open(&mut self, now: Time, step: StepPlan) {
        let StepPlan { step, round, cohort, work, collector, quorum, close, central, is_round } = step;
        let needed = work.needs(&self.plan.spec);
        let cohort: Arc<[ClientId]> = match cohort {
            CohortRule::Drawn => self.drawn(round, &needed).into(),
            CohortRule::Connected => self.roster.connected(&self.clients),
            CohortRule::Nobody => Arc::default(),
            CohortRule::These(clients) => self.present(clients).into(),
        };
        let cohort = self.able(cohort, &needed);
        let id = TaskId::new(self.run, round, step).labelled(self.plan.label_of(step));
        let task = self.task(id, work);
        let id = task.id;
        if !cohort.is_empty() {
            self.note(Note::Opened { task: id, cohort: cohort.len() });
        }
        // Once, before anybody has trained in vain.
        let is_first = (id.step, id.round, id.attempt) == (StepId::TRAIN, Round(1), 0);
        if let Some(warning) = self.plan.coarse_step(&self.tensors).filter(|_| is_first) {
            self.note(Note::Warned { task: id, warning });
        }
        for client in &*cohort {
            self.actions.push_back(Action::Send { client: client.clone(), task: task.clone() });
        }
        let central = if central {
            let (model, standardiser) = (Arc::clone(&self.state.model), self.state.standardiser.clone());
            self.actions.push_back(Action::EvaluateCentrally { round, model, standardiser });
            Central::Awaited
        } else {
            Central::Done(None)
        };
        let tracker = CohortTracker::new(
            id,
            &cohort,
            (quorum, close),
            now,
            (self.plan.cohort.deadline, self.plan.cohort.grace),
        );
        let (verifier, expects) = (collector.verifier(), Arc::new(collector.expects()));
        let reports = Vec::new();
        let further = FurtherReports::default();
        let open =
            OpenStep { tracker, task, collector, verifier, expects, reports, further, central, is_round };
        self.phase = Phase::Open(Box::new(open));
        self.advance(now);
    }

    fn task(&mut self, first: TaskId, work: Work) -> Task {
        // A step that is put again in its round asks anew: what still comes for the earlier attempt is stale.
        let again = |last: &TaskId| (last.run, last.round, last.step) == (first.run, first.round, first.step);
        let id = self.opened_last.filter(again).map_or(first, TaskId::next_attempt);
        self.opened_last = Some(id);
        let seed = self.is_seeded.then_some(self.entropy);
        let standardiser = self.state.standardiser.clone();
        Task { id, spec: Arc::clone(&self.plan.spec), seed, standardiser, work }
    }
}
