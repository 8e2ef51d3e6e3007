//! How a round ends: the sum is released or not, the model is updated or not, and everything is committed at once.

use privacy::{Released, Sum, counted};
use protocol::wire::{FurtherMetrics, RoundSummary};
use protocol::{ClientId, Metrics, Rejection, Round, TaskId, Time, Weighting};

use super::protection::Protection;
use super::tracker::ParticipantStatus;
use crate::optimizer::ModelUpdate;
use crate::statement::{PrivacyStatement, Subject};
use crate::workflow::{Aggregate, Answers, Close, Collector, Conclusion, Effect, Release};

use super::{Action, Central, CohortTracker, Commit, Coordinator, Note, OpenStep, Phase, RunEnd};

/// The line of a round of which nothing is known.
pub(super) fn empty_summary(round: Round) -> RoundSummary {
    RoundSummary {
        round: round.0,
        released: false,
        cohort: 0,
        answered: 0,
        train: None,
        sites: None,
        central: None,
        seconds: 0.0,
        epsilon: None,
        further: FurtherMetrics::default(),
    }
}

/// Failures in a row that a short run may have, too, before it ends: as many as a plan allows by default.
const FAILURES_USUAL: u32 = 10;

/// Rounds that failed one after the other.
fn in_a_row(failures: u32) -> String {
    match failures {
        1 => "1 round".to_owned(),
        _ => format!("{failures} rounds in a row"),
    }
}

/// Lets sums out as they are.
struct Unprotected;

impl Release for Unprotected {
    fn release(&mut self, sum: Sum) -> Result<Released, Option<String>> {
        Released::unprotected(sum).ok_or(None)
    }
}

/// Lets a sum out with the noise that the reservation has paid for.
impl Release for Protection {
    fn release(&mut self, sum: Sum) -> Result<Released, Option<String>> {
        self.noised(sum).map_err(|error| Some(error.to_string()))
    }
}

impl Coordinator {
    /// The most that one site's metrics count in a mean of several, in examples: as much as its update may.
    fn weight_max(&self) -> u64 {
        match self.plan.spec.update.weights {
            Weighting::Examples => self.plan.spec.update.weight_max.into(),
            Weighting::Uniform => 1,
        }
    }

    /// Nobody is awaited any more: what the step gave changes the run, or nothing does. Either way it is committed.
    pub(super) fn close_step(&mut self, now: Time) {
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Gathering) else { return };
        let OpenStep { tracker, task, mut collector, reports, further, central, is_round, .. } = *open;
        // A step of the model works in place, as long as nobody else holds it.
        drop(task);
        self.cancel_missing(&tracker);
        tracker.unheard().for_each(|client| collector.dropped(client));
        let closed =
            if tracker.has_quorum() { self.close(tracker.task, collector) } else { Close::Failed(None) };
        let aggregate = match closed {
            Close::Aggregate(aggregate) => Some(aggregate),
            Close::FurtherExchange(step) => return self.open(now, *step),
            Close::Failed(_) => None,
        };
        let measured = aggregate.as_ref().and_then(|all| self.workflow.measured(tracker.task.step, all));
        let pooled = || Metrics::pooled(reports.iter().map(|(_, _, metrics)| metrics), self.weight_max());
        let pooled = measured.or_else(pooled);
        let is_measured = matches!(aggregate, Some(Aggregate::Measured));
        let mut summary = match self.state.summary.clone() {
            Some(line) if is_measured => RoundSummary { sites: pooled, ..line },
            _ => self.line_of(&tracker, now, aggregate.is_some(), pooled),
        };
        let further = further.pooled(self.plan.spec.further_metrics(), self.weight_max());
        if is_measured {
            summary.further.set_sites(further);
        } else if summary.train.is_some() {
            summary.further.set_train(further);
        }
        if let (true, Central::Done(metrics)) = (is_measured, central) {
            summary.central = metrics;
        }
        self.count_failures(&tracker, aggregate.is_some());
        let concluded = aggregate.map(|aggregate| self.conclude(&tracker, aggregate));
        match concluded {
            Some(Ok(epsilon)) => summary.epsilon = epsilon.or(summary.epsilon),
            Some(Err(why)) => {
                summary.released = false;
                self.refuse_release(tracker.task, why);
            }
            None if is_round => self.give_up_round(tracker.task),
            None => {}
        }
        // What sites keep to themselves is not stored, whatever they sent.
        let reports = if self.plan.spec.privacy.hides_metrics() { Vec::new() } else { reports };
        self.commit(summary, reports);
    }

    /// The line of a round that has just been collected.
    fn line_of(
        &self,
        tracker: &CohortTracker,
        now: Time,
        released: bool,
        train: Option<Metrics>,
    ) -> RoundSummary {
        let empty = RoundSummary { released, ..empty_summary(tracker.task.round) };
        if self.hides_participation(Some(tracker.task)) {
            return empty;
        }
        RoundSummary {
            cohort: tracker.asked() as u32,
            answered: tracker.answered() as u32,
            train,
            seconds: (now - tracker.opened).as_secs_f64(),
            ..empty
        }
    }

    fn count_failures(&mut self, tracker: &CohortTracker, released: bool) {
        // A round for which too few may be asked is over as planned; one that too few answer has failed.
        let failed = !released && tracker.could_have_quorum();
        self.state.failures = if released { 0 } else { self.state.failures + u32::from(failed) };
        if released {
            self.setbacks.clear();
        } else if self.explains(Some(tracker.task)) {
            self.setbacks.missing(tracker.missing());
        }
    }

    /// Closes a collector; a sum leaves it as the plan promises.
    fn close(&mut self, task: TaskId, collector: Box<dyn Collector>) -> Close {
        let takes_permit = collector.takes_permit();
        let closed = match self.protection.as_mut().filter(|_| takes_permit) {
            Some(protection) => collector.close(protection),
            None => collector.close(&mut Unprotected),
        };
        if let Close::Failed(Some(reason)) = &closed {
            self.note(Note::Withheld { task, reason: reason.clone() });
        }
        closed
    }

    /// A round is over that has released nothing.
    fn give_up_round(&mut self, task: TaskId) {
        if let Some(protection) = &mut self.protection {
            protection.cancel();
        }
        (self.state.round, self.state.evaluated) = (task.round, true);
    }

    /// Ends the run: what would have been its model may not be one.
    fn refuse_release(&mut self, task: TaskId, why: String) {
        self.give_up_round(task);
        let end = format!("round {} released nothing: {why}", task.round);
        self.note(Note::Withheld { task, reason: why });
        self.state.end = Some(RunEnd::Failed(end));
    }

    /// Lets the run follow from what a step gave. Gives epsilon of everything so far, where something was released by a permit.
    ///
    /// # Errors
    /// Why nothing follows: the run stands where it stood.
    fn conclude(&mut self, tracker: &CohortTracker, aggregate: Aggregate) -> Result<Option<f64>, String> {
        let (step, round) = (tracker.task.step, tracker.task.round);
        let from: Vec<ClientId> = tracker.settled(ParticipantStatus::Answered).cloned().collect();
        let answers = Answers { from: &from, missing: tracker.silent() };
        let concluded =
            self.with_answers(answers, |workflow, state| workflow.concluded(step, aggregate, state));
        let Conclusion { mut effect, is_round_over } = concluded;
        self.apply(&mut effect)?;
        if let Effect::StepModel(update) = &effect
            && update.values().all(|value| value == 0.0)
        {
            let warning = self.plan.unmoved(&self.tensors);
            self.note(Note::Warned { task: tracker.task, warning });
        }
        self.state.workflow = self.workflow.memory().into();
        self.state.releases += u32::from(matches!(effect, Effect::StepModel(_) | Effect::SetModel(_)));
        let epsilon = match &effect {
            Effect::StepModel(ModelUpdate::Released(mean)) => self.spend(tracker, mean),
            _ => None,
        };
        self.state.round = self.state.round.max(round);
        self.state.evaluated = is_round_over;
        Ok(epsilon)
    }

    /// Books the release that has just moved the model, and who was part of it. Gives epsilon of everything so far.
    fn spend(&mut self, tracker: &CohortTracker, released: &Released) -> Option<f64> {
        let sha256 = self.protection.is_some().then(|| self.model_sha256())?;
        let protection = self.protection.as_mut()?;
        protection.follow(released);
        self.state.norm_max = protection.norm_max();
        self.state.noise = protection.noise();
        // Where chance is secret nobody's participations are limited, so nobody's are written down.
        let limited = protection.central().participation().is_some();
        for client in tracker.settled(ParticipantStatus::Answered).filter(|_| limited) {
            let record = self.clients.entry(client.clone()).or_default();
            (record.releases, record.released_last) = (record.releases + 1, self.state.releases);
            self.changed.insert(client.clone());
        }
        let spent = protection.spend(sha256);
        Some(spent.expect("a permit belongs to the ledger that gave it, and an accountant allowed it"))
    }

    /// Throws away what the open round has collected and ends the run; a reservation is given back.
    pub(super) fn abandon_step(&mut self) {
        if let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Gathering) {
            self.cancel_missing(&open.tracker);
        }
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
        self.phase = Phase::Committing { summary, told: !news, rests: false };
    }

    /// Failures in a row after which the run ends. A plan that allows more of them than it has rounds would ask for statistics, which
    /// are no round, for ever.
    fn failures_max(&self) -> u32 {
        self.plan.cohort.failures_max.min(self.plan.rounds.max(FAILURES_USUAL))
    }

    /// How a run ends of which no round is left. It has failed where more of its last rounds in a row released nothing than rounds released a
    /// model: what it was asked for has not come of it.
    fn end_of_rounds(&self, last: &RoundSummary) -> RunEnd {
        let (releases, rounds) = (self.state.releases, self.plan.rounds);
        match (releases, self.state.failures) {
            (0, _) if rounds == 1 => self.failed("the only round released nothing"),
            (0, _) => self.failed(&format!("none of the {rounds} rounds released anything")),
            (_, failures) if !last.released && failures > releases => {
                let what = format!(
                    "the last {failures} rounds of {rounds} released nothing, so the model is that of an earlier round"
                );
                self.failed(&what)
            }
            _ => RunEnd::Finished,
        }
    }

    pub(super) fn commit(&mut self, summary: RoundSummary, reports: Vec<(ClientId, TaskId, Metrics)>) {
        if self.state.end.is_some() {
            // Decided already: the budget is exhausted, or the operator has stopped the run.
        } else if self.state.failures >= self.failures_max() {
            let (failures, quorum) = (self.state.failures, self.plan.cohort.quorum);
            let what = match quorum {
                0 => format!("{} released nothing", in_a_row(failures)),
                _ => format!("{} found no quorum of {}", in_a_row(failures), counted(quorum, "client")),
            };
            self.state.end = Some(self.failed(&what));
        } else if self.with_state(|workflow, state| workflow.is_finished(state)) {
            self.state.end = Some(self.end_of_rounds(&summary));
        }
        self.state.summary = Some(summary.clone());
        let changed = std::mem::take(&mut self.changed);
        let record = |client: ClientId| self.clients.get(&client).cloned().map(|record| (client, record));
        let clients = changed.into_iter().filter_map(record).collect();
        let reservation = self.protection.as_mut().map(Protection::take_reservation);
        let statement = self.statement();
        let (checkpoint, line) = (self.state.clone(), summary.clone());
        let commit = Commit { checkpoint, summary: line, reports, clients, reservation, statement };
        self.actions.push_back(Action::Commit(Box::new(commit)));
        self.phase = Phase::Committing { summary, told: false, rests: false };
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
            is_seeded: self.is_seeded,
        };
        let ledger = self.protection.as_ref().map(Protection::ledger);
        let statement = PrivacyStatement::of(subject, &self.plan.spec.privacy, ledger);
        Some(statement.expect("an accountant had a bound when the release was reserved").to_json())
    }

    fn cancel_missing(&mut self, tracker: &CohortTracker) {
        let mut surplus = 0;
        for client in tracker.owing() {
            let task = tracker.task_of(client);
            self.actions.push_back(Action::Cancel { client: client.clone(), task });
            if tracker.has_target() {
                surplus += 1;
                self.surplus.insert(client.clone(), task);
            }
        }
        let (task, answered, missing) = (tracker.task, tracker.answered(), tracker.missing());
        if tracker.asked() > 0 {
            let quorum = tracker.has_quorum();
            self.note(Note::Closed { task, answered, missing, surplus, quorum });
        }
    }

    /// Whether `client` was asked for what its round did not need in the end: what still comes of it is no fault of anybody's.
    pub(super) fn takes_as_surplus(
        &mut self,
        client: &ClientId,
        task: Option<TaskId>,
        reason: Rejection,
    ) -> bool {
        let is_late = matches!(reason, Rejection::Stale | Rejection::Truncated | Rejection::TooSlow);
        let is_surplus = is_late && task.is_some() && self.surplus.get(client).copied() == task;
        if is_surplus {
            self.surplus.remove(client);
        }
        is_surplus
    }
}
