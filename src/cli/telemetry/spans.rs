//! Which spans a server's notes and a site's events amount to. It knows no collector and no clock.
//!
//! A span is made when it is over, so that nothing is open when a program dies. The ids follow from run, round, task and site: what
//! a server, its successor and the sites tell apart from each other is one trace.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ::client::net::AgentEvent;
use opentelemetry::KeyValue;
use protocol::wire::RoundSummary;
use protocol::{ClientId, RunId, StepId, TaskId};
use server::net::LiveRuns;
use server::{Note, RunEnd};
use sha2::{Digest, Sha256};

/// A span that is over.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) run: RunId,
    pub(super) id: u64,
    pub(super) parent: Option<Parent>,
    pub(super) name: &'static str,
    pub(super) start: SystemTime,
    pub(super) end: SystemTime,
    pub(super) attributes: Vec<KeyValue>,
    /// When the answer left, at a site.
    pub(super) answering: Option<SystemTime>,
    /// Why it came to nothing.
    pub(super) error: Option<String>,
}

/// What a span is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// A span of this program.
    Here(u64),
    /// A span of the server's.
    AtTheServer(u64),
}

/// A run's trace.
pub(super) fn trace_id(run: RunId) -> u128 {
    u128::from_be_bytes(digest(&format!("run {run}")))
}

fn run_id(run: RunId) -> u64 {
    span_id(&format!("span of run {run}"))
}

fn round_id(run: RunId, round: u32) -> u64 {
    span_id(&format!("round {round} of run {run}"))
}

fn task_id(task: TaskId, site: &str) -> u64 {
    span_id(&format!("{task} at {site}"))
}

fn span_id(name: &str) -> u64 {
    (u128::from_be_bytes(digest(name)) >> 64) as u64
}

fn digest(name: &str) -> [u8; 16] {
    let whole: [u8; 32] = Sha256::digest(name).into();
    std::array::from_fn(|at| whole[at])
}

/// What is open at a server.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<RunId, Run>);

#[derive(Debug)]
struct Run {
    name: String,
    start: SystemTime,
    rounds: BTreeMap<u32, Open>,
}

/// An open round.
#[derive(Debug)]
struct Open {
    start: SystemTime,
    tasks: BTreeMap<StepId, SystemTime>,
    /// When training was over with enough answers.
    enough: Option<SystemTime>,
    missing: usize,
    withheld: Option<String>,
    quorum: bool,
}

impl Runs {
    /// What is over with this note.
    pub(super) fn note(&mut self, now: SystemTime, id: RunId, note: &Note, live: &LiveRuns) -> Vec<Span> {
        let run = self.0.entry(id).or_insert_with(|| Run {
            name: String::new(),
            start: now,
            rounds: BTreeMap::new(),
        });
        if let (true, Some(summary)) = (run.name.is_empty(), live.get(&id)) {
            run.name.clone_from(&summary.name);
        }
        match note {
            Note::Opened { task, .. } => {
                run.open(now, *task);
                Vec::new()
            }
            Note::Accepted { client, task, metrics } => {
                let seconds = metrics.map(|metrics| KeyValue::new("consortia.site.seconds", metrics.seconds));
                vec![run.task(now, client, *task, "accepted", seconds.into_iter().collect(), None)]
            }
            Note::Refused { client, task: Some(task), reason, detail } => {
                let reason = vec![KeyValue::new("consortia.reason", reason.name())];
                vec![run.task(now, client, *task, "refused", reason, Some(detail.clone()))]
            }
            Note::Declined { client, task, reason, detail } => {
                let reason = vec![KeyValue::new("consortia.reason", reason.name())];
                vec![run.task(now, client, *task, "declined", reason, Some(detail.clone()))]
            }
            Note::Closed { task, missing, quorum, .. } => {
                let open = run.open(now, *task);
                if task.step != StepId::EVALUATE {
                    open.missing = *missing;
                    open.quorum = *quorum;
                }
                if task.step.is_of_round() && *quorum {
                    open.enough = Some(now);
                }
                Vec::new()
            }
            Note::Withheld { task, reason } => {
                run.open(now, *task).withheld = Some(reason.clone());
                Vec::new()
            }
            Note::Round(summary) => run.round(now, id, summary),
            Note::Ended(end) => {
                let mut over = run.unfinished(now, id);
                over.push(run.end(now, id, end));
                self.0.remove(&id);
                over
            }
            _ => Vec::new(),
        }
    }
}

impl Run {
    fn open(&mut self, now: SystemTime, task: TaskId) -> &mut Open {
        let round = self.rounds.entry(task.round.0).or_insert_with(|| Open {
            start: now,
            tasks: BTreeMap::new(),
            enough: None,
            missing: 0,
            withheld: None,
            quorum: false,
        });
        round.tasks.entry(task.step).or_insert(now);
        round
    }

    fn task(
        &self,
        now: SystemTime,
        site: &ClientId,
        task: TaskId,
        outcome: &'static str,
        more: Vec<KeyValue>,
        error: Option<String>,
    ) -> Span {
        // A late answer may come when its round is over and forgotten.
        let sent = self.rounds.get(&task.round.0).and_then(|round| round.tasks.get(&task.step));
        let mut attributes = of_task(task, outcome);
        attributes.push(KeyValue::new("consortia.site", site.as_str().to_owned()));
        attributes.extend(more);
        Span {
            run: task.run,
            id: task_id(task, site.as_str()),
            parent: Some(Parent::Here(round_id(task.run, task.round.0))),
            name: "task",
            start: *sent.unwrap_or(&now),
            end: now,
            attributes,
            answering: None,
            error,
        }
    }

    /// A round, and its release if there was one.
    fn round(&mut self, now: SystemTime, run: RunId, summary: &RoundSummary) -> Vec<Span> {
        let open = self.rounds.remove(&summary.round);
        let start = open.as_ref().map_or(now, |open| open.start);
        let withheld = open.as_ref().and_then(|open| open.withheld.clone());
        let outcome = match &open {
            _ if summary.released => "released",
            Some(open) if open.withheld.is_some() => "withheld",
            Some(open) if open.quorum => "done",
            _ => "no_quorum",
        };
        let number = KeyValue::new("consortia.round", i64::from(summary.round));
        let mut attributes = vec![
            KeyValue::new("consortia.run", run.to_string()),
            number.clone(),
            KeyValue::new("consortia.outcome", outcome),
        ];
        if let Some((asked, answered)) = summary.participation() {
            attributes.push(KeyValue::new("consortia.clients", i64::from(asked)));
            attributes.push(KeyValue::new("consortia.answered", i64::from(answered)));
        }
        if let Some(open) = &open {
            attributes.push(KeyValue::new("consortia.missing", open.missing as i64));
        }
        attributes.extend(summary.epsilon.map(|epsilon| KeyValue::new("consortia.epsilon", epsilon)));
        let id = round_id(run, summary.round);
        let span = |name, id, parent, start, end, attributes| Span {
            run,
            id,
            parent: Some(Parent::Here(parent)),
            name,
            start,
            end,
            attributes,
            answering: None,
            error: None,
        };
        let enough = open.and_then(|open| open.enough).filter(|_| summary.released);
        let release = enough.map(|enough| {
            // The evaluation comes after it, and the note of the round after that.
            let seconds = Duration::try_from_secs_f64(summary.seconds).unwrap_or_default();
            let end = (start + seconds).clamp(enough, now.max(enough));
            let release = span_id(&format!("release of round {} in run {run}", summary.round));
            let attributes = vec![KeyValue::new("consortia.run", run.to_string()), number];
            span("release", release, id, enough, end, attributes)
        });
        let mut round = span("round", id, run_id(run), start, now, attributes);
        round.error = withheld;
        release.into_iter().chain([round]).collect()
    }

    /// Rounds that the run's end has cut short; their tasks have been told.
    fn unfinished(&self, now: SystemTime, run: RunId) -> Vec<Span> {
        let cut = self.rounds.iter().map(|(number, open)| Span {
            run,
            id: round_id(run, *number),
            parent: Some(Parent::Here(run_id(run))),
            name: "round",
            start: open.start,
            end: now,
            attributes: vec![
                KeyValue::new("consortia.run", run.to_string()),
                KeyValue::new("consortia.round", i64::from(*number)),
                KeyValue::new("consortia.outcome", "unfinished"),
            ],
            answering: None,
            error: None,
        });
        cut.collect()
    }

    fn end(&self, now: SystemTime, run: RunId, end: &RunEnd) -> Span {
        Span {
            run,
            id: run_id(run),
            parent: None,
            name: "run",
            start: self.start,
            end: now,
            attributes: vec![
                KeyValue::new("consortia.run", run.to_string()),
                KeyValue::new("consortia.name", self.name.clone()),
                KeyValue::new("consortia.state", end.state().name()),
            ],
            answering: None,
            error: match end {
                RunEnd::Failed(reason) => Some(reason.clone()),
                RunEnd::Finished | RunEnd::BudgetExhausted(_) | RunEnd::Stopped => None,
            },
        }
    }
}

/// What is open at a site.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// The name the server knows it by.
    site: String,
    open: BTreeMap<TaskId, (SystemTime, Option<SystemTime>)>,
}

impl Tasks {
    /// What is over with this event. Reasons are told in a word, as to the server: the full message stays in the site's log.
    pub(super) fn event(&mut self, now: SystemTime, event: &AgentEvent) -> Option<Span> {
        match event {
            AgentEvent::Connected { you, .. } => self.site.clone_from(you),
            AgentEvent::Started { task } => {
                self.open.insert(*task, (now, None));
            }
            AgentEvent::Answering { task } => self.open.entry(*task).or_insert((now, None)).1 = Some(now),
            AgentEvent::Accepted { task } => return Some(self.over(now, *task, "accepted", None)),
            AgentEvent::Refused { task, refusal, .. } => {
                return Some(self.over(now, *task, "refused", Some(refusal.name())));
            }
            AgentEvent::Declined { task, reason, .. } => {
                return Some(self.over(now, *task, "declined", Some(reason.name())));
            }
            AgentEvent::Abandoned { task: Some(task), .. } => {
                return Some(self.over(now, *task, "abandoned", None));
            }
            _ => {}
        }
        None
    }

    fn over(
        &mut self,
        now: SystemTime,
        task: TaskId,
        outcome: &'static str,
        reason: Option<&'static str>,
    ) -> Span {
        let (start, answering) = self.open.remove(&task).unwrap_or((now, None));
        let mut attributes = of_task(task, outcome);
        attributes.push(KeyValue::new("consortia.site", self.site.clone()));
        attributes.extend(reason.map(|reason| KeyValue::new("consortia.reason", reason)));
        // Of a task that came to nothing, the server may know nothing.
        let parent = match outcome {
            "abandoned" => round_id(task.run, task.round.0),
            _ => task_id(task, &self.site),
        };
        Span {
            run: task.run,
            id: span_id(&format!("{task}, worked on at {}", self.site)),
            parent: Some(Parent::AtTheServer(parent)),
            name: "site task",
            start,
            end: now,
            attributes,
            answering,
            error: (outcome != "accepted").then(|| reason.unwrap_or(outcome).to_owned()),
        }
    }
}

fn of_task(task: TaskId, outcome: &'static str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("consortia.run", task.run.to_string()),
        KeyValue::new("consortia.round", i64::from(task.round.0)),
        KeyValue::new("consortia.task", task.step_title().into_owned()),
        KeyValue::new("consortia.outcome", outcome),
    ]
}

#[cfg(test)]
mod tests {
    use protocol::Round;

    use super::*;

    #[test]
    fn a_run_that_is_stopped_in_a_round_tells_that_round_before_itself() {
        let (mut runs, run, live) = (Runs::default(), RunId(7), LiveRuns::new());
        let task = TaskId::new(run, Round(3), StepId::TRAIN);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(runs.note(at(1), run, &Note::Opened { task, cohort: 2 }, &live).is_empty());
        let over = runs.note(at(5), run, &Note::Ended(RunEnd::Stopped), &live);
        let [round, whole] = &over[..] else { panic!("{over:?}") };
        assert_eq!((round.name, round.start, round.end), ("round", at(1), at(5)));
        assert_eq!(round.parent, Some(Parent::Here(whole.id)));
        assert!(round.attributes.contains(&KeyValue::new("consortia.outcome", "unfinished")));
        assert_eq!((whole.name, whole.parent), ("run", None));
    }
}
