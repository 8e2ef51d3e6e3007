//! What a simulation has to tell beside its numbers: who declined and why, whose weight is cut, a loss that makes no sense.
//!
//! A simulation is one process of one owner, who holds all records. Where the plan promises privacy, what a learner says of records is
//! outside of what the plan protects all the same: it is shown with `-v` only, and written nowhere.

use std::collections::BTreeSet;

use command::results::figure;
use privacy::{counted, verb};
use protocol::wire::RoundSummary;
use protocol::{ClientId, ModelSpec, Spec, StepId, Target, TaskId, Weighting};
use serde_json::{Value, json};
use server::Note;
use simulations::{Observation, Population};

/// Reasons that are told apart; what comes beyond them is counted only.
const REASONS_MAX: usize = 20;
/// Clients that are named in a line.
const NAMES_MAX: usize = 3;
/// A cross-entropy beyond this says nothing: guessing among a million classes has less than 14.
const CROSS_ENTROPY_MAX: f64 = 100.0;
/// A loss this many times the least one has run away.
const GROWTH_MAX: f64 = 1000.0;

/// Words where a private plan hides a client's own.
const HINT: &str = "`-v` shows the clients' own words, which are outside of what the plan protects";

/// See the module.
pub(super) struct Findings {
    is_private: bool,
    /// Whether what is outside of the plan's guarantee is shown, too.
    tells_all: bool,
    classifies: bool,
    entries: Vec<Entry>,
    /// Answers with reasons beyond [`REASONS_MAX`].
    others: u64,
    /// Whether gradients move the model: a method's loss can grow for other reasons, and has no learning rate.
    trains: bool,
    loss_least: Option<f64>,
    loss_last: Option<(u32, f64)>,
    notes: Vec<String>,
    warned: Vec<Warned>,
}

/// A warning of the server's, and the rounds in which it came.
struct Warned {
    words: String,
    rounds: BTreeSet<u32>,
}

/// A sentence for the end of a simulation.
pub(super) struct Remark {
    /// For whoever has heard nothing of it.
    pub(super) whole: String,
    /// For whoever was told the words when it happened: how often it was in the end.
    pub(super) count: Option<String>,
    /// The words, where it is about answers.
    pub(super) reason: Option<String>,
}

impl Remark {
    pub(super) fn new(whole: String) -> Self {
        Self { whole, count: None, reason: None }
    }
}

/// One reason of one kind.
struct Entry {
    kind: Kind,
    reason: &'static str,
    words: String,
    clients: BTreeSet<ClientId>,
    answers: u64,
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Declined,
    Refused,
    /// Answered as the plan's privacy demands, though the work had failed.
    Covered,
}

impl Kind {
    /// What happened, when it happens: a client declines, and the server rejects.
    fn told(self, client: &ClientId, place: &str) -> String {
        match self {
            Self::Declined => format!("{client} declined {place}"),
            Self::Refused => format!("the answer of {client} to {place} was rejected"),
            Self::Covered => format!("{client} failed in {place}, and counts as zeros"),
        }
    }

    /// How often it happened, at the end.
    fn counted(self, answers: u64) -> String {
        match self {
            Self::Declined => format!("{} declined", counted(answers, "task")),
            Self::Refused => format!("{} rejected by the server", counted(answers, "answer")),
            Self::Covered => format!("{} failed, and counted as zeros", counted(answers, "task")),
        }
    }
}

impl Findings {
    /// For a simulation by `spec`. `tells_all`: what a private plan does not protect is shown, too.
    pub(super) fn new(spec: &Spec, tells_all: bool) -> Self {
        let classifies = matches!(spec.target(), Target::Classes(_));
        Self {
            is_private: !spec.privacy.is_none(),
            tells_all,
            classifies,
            trains: !matches!(spec.model, ModelSpec::Values { .. }),
            entries: Vec::new(),
            others: 0,
            loss_least: None,
            loss_last: None,
            notes: Vec::new(),
            warned: Vec::new(),
        }
    }

    /// Takes what the records show before anybody trains.
    pub(super) fn look_at(&mut self, population: &Population, spec: &Spec) {
        // A method is neither evaluated, nor does it weigh clients.
        if !self.trains {
            return;
        }
        if !population.is_tested() {
            self.notes.push(
                "there are no test records, so no model is evaluated on records that it was not trained on; give `split_column` or `test` in the data, \
                 or `test_rows` of synthetic records"
                    .to_owned(),
            );
        }
        if spec.update.weights != Weighting::Examples {
            return;
        }
        let weight_max = u64::from(spec.update.weight_max);
        let rows = |site: &learning::SiteData| site.train.len() as u64;
        let cut: Vec<_> = population.sites().filter(|(_, site)| rows(site) > weight_max).collect();
        if let Some((client, site)) = cut.first() {
            let rows = rows(site);
            let others = match cut.len() {
                1 => String::new(),
                more => format!(", and so do those of {}", counted(more - 1, "other client")),
            };
            self.notes.push(format!(
                "the {} of {client} {} as {weight_max}, as update.weight_max says{others}; raise it to weigh \
                 clients by their records",
                counted(rows, "training record"),
                verb(rows, "counts", "count")
            ));
        }
    }

    /// Takes what happened. Gives a line for the user where it is new.
    pub(super) fn observe(&mut self, seen: &Observation<'_>) -> Option<String> {
        match seen.note {
            Note::Declined { client, task, reason, detail } => {
                let own = seen.error.filter(|_| self.is_private && self.tells_all);
                let words = own.map_or(detail, |error| &error.message);
                self.add(Kind::Declined, client, Some(*task), reason.name(), words)
            }
            Note::Refused { client, task, reason, detail } => {
                self.add(Kind::Refused, client, *task, reason.name(), detail)
            }
            Note::Accepted { client, task, .. } => {
                let error = seen.error?;
                let words = if self.tells_all { error.message.as_str() } else { HINT };
                self.add(Kind::Covered, client, Some(*task), error.reason.name(), words)
            }
            Note::Withheld { task, reason } => Some(format!("{task} releases nothing: {reason}")),
            Note::Warned { task, warning } => self.warned(*task, warning),
            Note::Round(round) => {
                self.look_at_loss(round);
                None
            }
            _ => None,
        }
    }

    /// Counts a warning of the server's. Gives a line for the user where it is new.
    fn warned(&mut self, task: TaskId, warning: &str) -> Option<String> {
        match self.warned.iter_mut().find(|known| known.words == warning) {
            Some(known) => {
                known.rounds.insert(task.round.0);
                None
            }
            None => {
                let rounds = BTreeSet::from([task.round.0]);
                self.warned.push(Warned { words: warning.to_owned(), rounds });
                Some(format!("round {}: {warning}", task.round))
            }
        }
    }

    fn look_at_loss(&mut self, round: &RoundSummary) {
        if !self.trains {
            return;
        }
        let measured = round.sites.or(round.central).or(round.train);
        let Some(loss) = measured.map(|metrics| metrics.loss) else { return };
        self.loss_last = Some((round.round, loss));
        self.loss_least = Some(self.loss_least.map_or(loss, |least| least.min(loss)));
    }

    fn add(
        &mut self,
        kind: Kind,
        client: &ClientId,
        task: Option<TaskId>,
        reason: &'static str,
        words: &str,
    ) -> Option<String> {
        // Sentences that differ by their numbers alone have one cause.
        let shape = |words: &str| words.replace(|c: char| c.is_ascii_digit(), "");
        let same = |entry: &&mut Entry| {
            entry.kind == kind && entry.reason == reason && shape(&entry.words) == shape(words)
        };
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.answers += 1;
            if entry.clients.len() <= NAMES_MAX {
                entry.clients.insert(client.clone());
            }
            return None;
        }
        if self.entries.len() >= REASONS_MAX {
            self.others += 1;
            return None;
        }
        let words = words.to_owned();
        let clients = BTreeSet::from([client.clone()]);
        self.entries.push(Entry { kind, reason, words: words.clone(), clients, answers: 1 });
        let place = task.map_or_else(
            || "no task".to_owned(),
            |task| match task.step {
                StepId::STATISTICS => "the statistics".to_owned(),
                _ => format!("round {}", task.round),
            },
        );
        let outside =
            if self.is_private && self.tells_all { "outside of what the plan protects: " } else { "" };
        let hint = if self.is_private && !self.tells_all && words != HINT {
            format!(" ({HINT})")
        } else {
            String::new()
        };
        Some(format!("{outside}{}: {reason}: {words}{hint}", kind.told(client, &place)))
    }

    /// Whether the last loss makes no sense beside the least one.
    pub(super) fn has_run_away(&self) -> bool {
        let (Some((_, loss)), Some(least)) = (self.loss_last, self.loss_least) else { return false };
        let ran_away = loss > GROWTH_MAX * least.abs().max(f64::MIN_POSITIVE) && least > 0.0;
        ran_away || (self.classifies && loss > CROSS_ENTROPY_MAX)
    }

    /// How many tasks were declined.
    pub(super) fn declined(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.kind == Kind::Declined).map(|entry| entry.answers).sum()
    }

    /// What is to be said at the end, a sentence each, to somebody who has heard nothing before.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.remarks().into_iter().map(|remark| remark.whole).collect()
    }

    /// What is to be said at the end.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let mut remarks: Vec<Remark> = self.notes.iter().cloned().map(Remark::new).collect();
        remarks.extend(self.warned.iter().map(|Warned { words, rounds }| {
            let count = match (rounds.len(), rounds.first()) {
                (1, Some(round)) => format!("round {round}"),
                (many, _) => counted(many, "round"),
            };
            let said = format!("{count}: {words}");
            Remark { whole: said, count: Some(format!("{count}: warned as reported above")), reason: None }
        }));
        remarks.extend(self.entries.iter().map(|entry| {
            let mut names: Vec<&str> = entry.clients.iter().take(NAMES_MAX).map(ClientId::as_str).collect();
            if entry.clients.len() > NAMES_MAX {
                names.push("others");
            }
            let count =
                format!("{}: {} ({})", names.join(", "), entry.kind.counted(entry.answers), entry.reason);
            Remark {
                whole: format!("{count}: {}", entry.words),
                count: Some(format!("{count}, as reported above")),
                reason: Some(entry.words.clone()),
            }
        }));
        if self.others > 0 {
            let others = counted(self.others, "more answer");
            let others = format!("{others} did not count, for other reasons: see events.jsonl");
            remarks.push(Remark::new(others));
        }
        if let (Some((round, loss)), Some(least)) = (self.loss_last, self.loss_least)
            && self.has_run_away()
        {
            let why = if self.is_private {
                "the training has run away, or the noise outweighs what it learns; lower the learning rate, or ask \
                 `consortia privacy explain` how large the noise is beside an update"
            } else {
                "the training has run away; lower the learning rate, standardise the features, or look at their scale"
            };
            let (loss, least) = (figure(loss), figure(least));
            remarks.push(Remark::new(format!(
                "the loss of round {round} is {loss}, the least of all rounds {least}: {why}"
            )));
        }
        remarks
    }

    /// The same for programs.
    pub(super) fn object(&self) -> Value {
        let declined =
            |entry: &Entry| json!({ "reason": entry.reason, "words": entry.words, "tasks": entry.answers });
        let declined: Vec<Value> =
            self.entries.iter().filter(|entry| entry.kind == Kind::Declined).map(declined).collect();
        json!({ "declined": declined, "warnings": self.warnings() })
    }
}
