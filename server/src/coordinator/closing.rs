//! How a round ends: the sum is released or not, the model moves or stands still, and everything is committed at once.

use std::sync::Arc;

use privacy::{ReleaseError, Released, Sum};
use protocol::wire::RoundSummary;
use protocol::{ClientId, Metrics, Standardiser, StepId, TaskId, Time, Weighting};

use super::gate::Standing;
use super::protection::Protection;
use crate::statement::{PrivacyStatement, Subject};

use super::{Action, Central, Commit, Coordinator, Gate, Note, Phase, RunEnd, empty_summary};

/// Failures in a row that a short run may have, too, before it ends: as many as a plan allows by default.
const FAILURES_USUAL: u32 = 10;

impl Coordinator {
    /// The most that one site's metrics count in a mean of several, in examples: as much as its update may.
    fn weight_max(&self) -> u64 {
        match self.plan.spec.update.weights {
            Weighting::Examples => self.plan.spec.update.weight_max.into(),
            Weighting::Uniform => 1,
        }
    }

    /// The round's gate is open: release and step, or let the model stand still. Either way it is committed.
    pub(super) fn close_collection(&mut self, now: Time) {
        let Phase::Collecting { gate, sum, reports } = std::mem::replace(&mut self.phase, Phase::Gathering)
        else {
            return;
        };
        self.cancel_missing(&gate);
        // The release needs memory of its own, and nobody will receive before it is done.
        self.spent = None;
        let round = gate.task.round;
        let released = if gate.has_quorum() { self.release(gate.task, sum) } else { None };
        let mut summary = RoundSummary {
            released: released.is_some(),
            cohort: gate.asked() as u32,
            answered: gate.answered() as u32,
            train: Metrics::pooled(reports.iter().map(|(_, _, metrics)| metrics), self.weight_max()),
            seconds: (now - gate.opened).as_secs_f64(),
            ..empty_summary(round)
        };
        if self.hides_participation(Some(gate.task)) {
            summary = RoundSummary { released: summary.released, ..empty_summary(round) };
        }
        // A round for which too few may be asked is over as planned; one that too few answer has failed.
        let failed = released.is_none() && gate.could_have_quorum();
        self.state.failures = if released.is_some() { 0 } else { self.state.failures + u32::from(failed) };
        if released.is_some() {
            self.setbacks.clear();
        } else if self.explains(Some(gate.task)) {
            self.setbacks.missing(gate.waiting());
        }
        match (gate.task.step, released) {
            (StepId::STATISTICS, Some(released)) => {
                self.state.standardiser = Standardiser::from_totals(released.totals()).map(Arc::new);
            }
            (StepId::STATISTICS, None) => {}
            (_, released) => {
                let moved = released.is_some();
                if let Some(mean) = released {
                    self.state.releases += 1;
                    self.step(&mean);
                    summary.epsilon = self.spend(&gate, &mean);
                } else if let Some(protection) = &mut self.protection {
                    protection.cancel();
                }
                self.state.round = round;
                self.state.evaluated = !(moved && self.is_evaluation_due(round));
            }
        }
        // What sites keep to themselves is not stored, whatever they sent.
        let reports = if self.plan.spec.privacy.hides_metrics() { Vec::new() } else { reports };
        self.commit(summary, reports);
    }

    /// Lets the sum out as the plan promises.
    fn release(&mut self, task: TaskId, sum: Sum) -> Option<Released> {
        let Some(protection) = self.protection.as_mut().filter(|_| task.step == StepId::TRAIN) else {
            return Released::unprotected(sum);
        };
        let released = protection.release(sum);
        let withheld = |error: ReleaseError| Note::Withheld { task, reason: error.to_string() };
        released.map_err(|error| self.note(withheld(error))).ok()
    }

    /// Books the release that has just moved the model, and who was part of it. Gives epsilon of everything so far.
    fn spend(&mut self, gate: &Gate, released: &Released) -> Option<f64> {
        let sha256 = self.protection.is_some().then(|| self.model_sha256())?;
        let protection = self.protection.as_mut()?;
        protection.follow(released);
        self.state.norm_max = protection.norm_max();
        self.state.noise = protection.noise();
        // Where chance is secret nobody's participations are limited, so nobody's are written down.
        let limited = protection.central().participation().is_some();
        for client in gate.settled(Standing::Answered).filter(|_| limited) {
            let record = self.clients.entry(client.clone()).or_default();
            (record.releases, record.released_last) = (record.releases + 1, self.state.releases);
            self.changed.insert(client.clone());
        }
        let spent = protection.spend(sha256);
        Some(spent.expect("a permit belongs to the ledger that gave it, and an accountant allowed it"))
    }

    fn step(&mut self, mean: &Released) {
        // The old model goes as soon as no transfer holds it; until then `make_mut` works on a copy.
        let model = Arc::make_mut(&mut self.state.model);
        self.rounded = None;
        self.sha256 = None;
        self.state.optimizer.clear();
        self.optimizer.step(model.values_mut(), mean);
        self.state.optimizer = self.optimizer.state();
    }

    /// Throws away what the open round has collected and ends the run; a reservation is given back.
    pub(super) fn abandon_collection(&mut self) {
        if let Phase::Collecting { gate, .. } = std::mem::replace(&mut self.phase, Phase::Gathering) {
            self.cancel_missing(&gate);
        }
        self.spent = None;
        self.end_early(RunEnd::Stopped);
    }

    /// Ends the run where the last round left it; the line of that round is told if it was not yet.
    pub(super) fn end_early(&mut self, end: RunEnd) {
        if let Some(protection) = &mut self.protection {
            protection.cancel();
        }
        let news = !self.state.evaluated;
        self.state.evaluated = true;
        self.state.end = Some(end);
        let summary = self.state.summary.clone().unwrap_or_else(|| empty_summary(self.state.round));
        self.commit(summary.clone(), Vec::new());
        self.phase = Phase::Committing { summary, told: !news };
    }

    pub(super) fn close_evaluation(&mut self) {
        let Phase::Evaluating { gate, reports, central, mut summary } =
            std::mem::replace(&mut self.phase, Phase::Gathering)
        else {
            return;
        };
        self.cancel_missing(&gate);
        summary.sites = Metrics::pooled(reports.iter().map(|(_, _, metrics)| metrics), self.weight_max());
        if let Central::Done(metrics) = central {
            summary.central = metrics;
        }
        self.state.evaluated = true;
        self.commit(summary, reports);
    }

    /// Failures in a row after which the run ends. A plan that allows more of them than it has rounds would ask for statistics, which
    /// are no round, for ever.
    fn failures_max(&self) -> u32 {
        self.plan.cohort.failures_max.min(self.plan.rounds.max(FAILURES_USUAL))
    }

    pub(super) fn commit(&mut self, summary: RoundSummary, reports: Vec<(ClientId, TaskId, Metrics)>) {
        if self.state.end.is_some() {
            // Decided already: the budget is exhausted, or the operator has stopped the run.
        } else if self.state.failures >= self.failures_max() {
            let (failures, quorum) = (self.state.failures, self.plan.cohort.quorum);
            let what = match quorum {
                0 => format!("{failures} rounds in a row released nothing"),
                _ => format!("{failures} rounds in a row found no quorum of {quorum} clients"),
            };
            self.state.end = Some(self.failed(&what));
        } else if self.state.round.0 >= self.plan.rounds && self.state.evaluated {
            self.state.end = Some(match self.state.releases {
                0 => self.failed(&format!("none of the {} rounds released anything", self.plan.rounds)),
                _ => RunEnd::Finished,
            });
        }
        self.state.summary = Some(summary.clone());
        let changed = std::mem::take(&mut self.changed);
        let record = |client: ClientId| self.clients.get(&client).cloned().map(|record| (client, record));
        let clients = changed.into_iter().filter_map(record).collect();
        let booking = self.protection.as_mut().map(Protection::take_booking);
        let statement = self.statement();
        let (checkpoint, line) = (self.state.clone(), summary.clone());
        let commit = Commit { checkpoint, summary: line, reports, clients, booking, statement };
        self.actions.push_back(Action::Commit(Box::new(commit)));
        self.phase = Phase::Committing { summary, told: false };
    }

    /// The model's fingerprint. Of a large model it takes as long as a small round, and a private round asks for it twice.
    fn model_sha256(&mut self) -> String {
        self.sha256.get_or_insert_with(|| self.state.model.sha256()).clone()
    }

    /// What may be said about the model's privacy now.
    fn statement(&mut self) -> Option<String> {
        if self.plan.spec.privacy.is_none() {
            return None;
        }
        let subject = Subject {
            model_sha256: self.model_sha256(),
            run: self.run.to_string(),
            round: self.state.round.0,
            rehearsal: self.rehearsal,
        };
        let ledger = self.protection.as_ref().map(Protection::ledger);
        let statement = PrivacyStatement::of(subject, &self.plan.spec.privacy, ledger);
        Some(statement.expect("an accountant had a bound when the release was reserved").to_json())
    }

    fn cancel_missing(&mut self, gate: &Gate) {
        for client in gate.owing() {
            self.actions.push_back(Action::Cancel { client: client.clone(), task: gate.task });
        }
        let (task, answered, missing) = (gate.task, gate.answered(), gate.waiting());
        if gate.asked() > 0 {
            let quorum = gate.has_quorum();
            self.note(Note::Closed { task, answered, missing, quorum });
        }
    }
}
