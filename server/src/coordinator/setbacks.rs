//! Why answers did not count since the last release: told while a task is open, and when a run ends without a model.
//!
//! What sites said of themselves, and no more than they sent. Where participation is a secret nothing is kept here.

use std::collections::BTreeMap;

use privacy::counted;
use protocol::{ClientId, Decline, Rejection, TaskId};

use super::{Coordinator, RunEnd};

/// Reasons told apart; what comes beyond them is counted only.
const REASONS_MAX: usize = 8;
/// Clients named for a reason; the others are counted.
const NAMES_MAX: usize = 3;
/// Reasons in one sentence.
const TOLD_MAX: usize = 3;
/// Characters of a reason's detail in a sentence.
const DETAIL_MAX: usize = 240;

/// Why an answer did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Declined(Decline),
    Refused(Rejection),
}

/// One reason, and whose it is.
#[derive(Debug)]
struct Setback {
    why: Why,
    detail: String,
    /// The first clients that had it.
    names: Vec<ClientId>,
    /// Answers that had it.
    answers: u64,
}

/// Reasons since the last release, in the order in which they came up.
#[derive(Debug, Default)]
pub(super) struct Setbacks {
    reasons: Vec<Setback>,
    /// Answers with reasons beyond [`REASONS_MAX`].
    others: u64,
    /// Clients that had not answered when their task was closed.
    missing: u64,
    /// Why too few clients know how to do the next step.
    unable: Option<String>,
}

impl Setbacks {
    /// A client has declined a task.
    pub(super) fn declined(&mut self, client: &ClientId, reason: Decline, detail: &str) {
        self.add(client, Why::Declined(reason), detail);
    }

    /// An answer of a client was refused.
    pub(super) fn refused(&mut self, client: &ClientId, reason: Rejection, detail: &str) {
        self.add(client, Why::Refused(reason), detail);
    }

    /// So many clients have not answered.
    pub(super) fn missing(&mut self, clients: usize) {
        self.missing += clients as u64;
    }

    /// Why too few clients know how to do the next step; `None` where enough do.
    pub(super) fn unable(&mut self, why: Option<String>) {
        self.unable = why;
    }

    /// Whether too few clients know how to do the next step.
    pub(super) fn is_unable(&self) -> bool {
        self.unable.is_some()
    }

    /// There was a release: what came before it explains nothing any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, client: &ClientId, why: Why, detail: &str) {
        // Sentences that differ by their numbers alone (a round, a batch) have one cause.
        let shape = |words: &str| words.replace(|c: char| c.is_ascii_digit(), "");
        let same = |known: &&mut Setback| known.why == why && shape(&known.detail) == shape(detail);
        let known = self.reasons.iter_mut().find(same);
        let Some(known) = known else {
            if self.reasons.len() >= REASONS_MAX {
                self.others += 1;
                return;
            }
            let (detail, names) = (detail.to_owned(), vec![client.clone()]);
            return self.reasons.push(Setback { why, detail, names, answers: 1 });
        };
        known.answers += 1;
        // A name more than are told, so that it can be said that there are more.
        if known.names.len() <= NAMES_MAX && !known.names.contains(client) {
            known.names.push(client.clone());
        }
    }

    /// Whether budgets that could not pay are all that kept answers away.
    fn is_budget_alone(&self) -> bool {
        let budget = |reason: &Setback| reason.why == Why::Declined(Decline::Budget);
        self.missing == 0
            && self.unable.is_none()
            && self.others == 0
            && !self.reasons.is_empty()
            && self.reasons.iter().all(budget)
    }

    /// The reasons in one sentence, the most frequent first; `None` when there are none.
    pub(super) fn describe(&self) -> Option<String> {
        let mut reasons: Vec<&Setback> = self.reasons.iter().collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.answers));
        let untold = reasons.iter().skip(TOLD_MAX).map(|reason| reason.answers).sum::<u64>() + self.others;
        let mut parts: Vec<String> = self.unable.iter().cloned().collect();
        parts.extend(reasons.iter().take(TOLD_MAX).map(|reason| reason.describe()));
        if untold > 0 {
            parts.push(format!("{} did not count for other reasons", counted(untold, "answer")));
        }
        match self.missing {
            0 => {}
            missing => {
                parts.push(format!("{} did not come before the deadline", counted(missing, "answer")));
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

impl Setback {
    fn describe(&self) -> String {
        let mut names: Vec<&str> = self.names.iter().take(NAMES_MAX).map(ClientId::as_str).collect();
        if self.names.len() > NAMES_MAX {
            names.push("others");
        }
        let times = if self.answers > 1 { format!(", {} times", self.answers) } else { String::new() };
        let (verb, reason) = match self.why {
            Why::Declined(reason) => (" declined", reason.name()),
            Why::Refused(reason) => (": answer rejected", reason.name()),
        };
        // Words of another machine, on an operator's terminal.
        let shown = self.detail.chars().filter(|c| !c.is_control()).take(DETAIL_MAX).collect::<String>();
        format!("{}{verb} ({reason}{times}): {shown}", names.join(", "))
    }
}

impl Coordinator {
    /// The end of a run that cannot go on or has nothing to show: `what` with the reasons of the sites.
    pub(super) fn failed(&self, what: &str) -> RunEnd {
        if self.setbacks.is_budget_alone() {
            let reasons = self.setbacks.describe().unwrap_or_default();
            return RunEnd::BudgetExhausted(format!("{what}: {reasons}"));
        }
        let reasons = self.setbacks.describe().or_else(|| self.counted_declines());
        RunEnd::Failed(match reasons {
            Some(reasons) => format!("{what}: {reasons}"),
            None if self.hides_participation(None) => {
                format!("{what}; who took part is a secret, so each site's own log has its reasons")
            }
            None => format!("{what}; the server's log says why"),
        })
    }

    /// What is known of declines from before the last restart: their numbers.
    fn counted_declines(&self) -> Option<String> {
        let mut counts = BTreeMap::<Decline, u64>::new();
        for (reason, count) in self.clients.values().flat_map(|record| &record.declined) {
            *counts.entry(*reason).or_default() += u64::from(*count);
        }
        let told: Vec<String> = counts
            .iter()
            .map(|(reason, count)| format!("{} {}", reason.name(), counted(*count, "time")))
            .collect();
        (!told.is_empty()).then(|| format!("sites declined ({})", told.join(", ")))
    }

    /// What keeps the open task, or has kept the last one, from its quorum; told to whoever watches.
    pub(super) fn setbacks_now(&self, task: TaskId) -> String {
        match self.setbacks.describe() {
            Some(reasons) if !self.hides_participation(Some(task)) => format!("; {reasons}"),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_that_differ_by_their_numbers_are_one_reason() {
        let mut setbacks = Setbacks::default();
        let client = ClientId::new("north").unwrap();
        for round in 1..=9 {
            setbacks.declined(&client, Decline::NotFinite, &format!("in round {round} the loss is NaN"));
        }
        setbacks.declined(&client, Decline::Data, "line 3: no number");
        let told = setbacks.describe().unwrap();
        assert_eq!(
            told,
            "north declined (not_finite, 9 times): in round 1 the loss is NaN; north declined (data): line 3: no number"
        );
    }
}
