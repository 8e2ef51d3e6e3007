//! What the connected clients know how to do, and steps that none of them can do.
//!
//! Most clients know the same, so that is kept once: a million of them take no more room than one.

use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::{counted, verb};
use protocol::{Capabilities, Capability, ClientId, TaskId, Time, Work};

use super::{Coordinator, Note, ParticipantStatus, Phase, empty_summary};
use crate::workflow::{CohortRule, StepPlan};

/// Clients whose other versions are named when nobody has the one that is needed.
const NAMES_MAX: usize = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    /// What the first client said, and most do.
    common: Option<Arc<Capabilities>>,
    /// What those said that say otherwise.
    others: BTreeMap<ClientId, Arc<Capabilities>>,
}

impl Abilities {
    /// Takes in what a client says when it joins.
    pub(super) fn learn(&mut self, client: &ClientId, known: Arc<Capabilities>) {
        let common = self.common.get_or_insert_with(|| Arc::clone(&known));
        if *common == known {
            self.others.remove(client);
        } else {
            self.others.insert(client.clone(), known);
        }
    }

    /// Whether a client that has joined knows this.
    pub(super) fn has(&self, client: &ClientId, needed: &Capability) -> bool {
        self.of(client).is_some_and(|known| known.has(needed))
    }

    /// Whether everybody who has joined knows this.
    pub(super) fn all_have(&self, needed: &Capability) -> bool {
        let common = self.common.as_ref().is_none_or(|known| known.has(needed));
        common && self.others.values().all(|known| known.has(needed))
    }

    fn of(&self, client: &ClientId) -> Option<&Capabilities> {
        self.others.get(client).or(self.common.as_ref()).map(|known| &**known)
    }
}

impl Coordinator {
    /// Of these, those that know what a step needs; all of them, and no copy, where everybody knows it.
    pub(super) fn able(&self, clients: Arc<[ClientId]>, needed: &Capability) -> Arc<[ClientId]> {
        if self.abilities.all_have(needed) {
            return clients;
        }
        clients.iter().filter(|client| self.abilities.has(client, needed)).cloned().collect()
    }

    /// Why a step cannot be done: of the clients that are connected and that it could be put to, too few know what it needs.
    pub(super) fn inability(&mut self, step: &StepPlan) -> Option<String> {
        let needed = step.work.needs(&self.plan.spec);
        // An evaluation that nobody can do measures nothing, and holds nothing up.
        if matches!(step.work, Work::Evaluate { .. }) || self.abilities.all_have(&needed) {
            return None;
        }
        let there = match &step.cohort {
            CohortRule::Nobody => return None,
            CohortRule::Drawn | CohortRule::Connected => self.roster.connected(&self.clients),
            CohortRule::These(clients) => self.present(clients.clone()).into(),
        };
        let able = there.iter().filter(|client| self.abilities.has(client, &needed)).count();
        let (connected, quorum) = (there.len(), step.quorum.max(1));
        // Where too few are connected, it is not what they know that is missing.
        if able >= quorum || connected == 0 || (able > 0 && connected < quorum) {
            return None;
        }
        let other = there.iter().filter(|client| !self.abilities.has(client, &needed)).filter_map(|client| {
            let version = self.abilities.of(client)?.other_versions(&needed).max()?;
            Some(format!("{client} knows version {version}"))
        });
        let others: Vec<String> = other.take(NAMES_MAX).collect();
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        let who = match (able, connected) {
            (0, 1) => "the one connected site does not know".to_owned(),
            (0, _) => format!("none of the {} knows", counted(connected, "connected site")),
            _ => format!(
                "{} {} needed, and {able} of the {connected} connected {}",
                counted(quorum, "site"),
                verb(quorum, "is", "are"),
                verb(able, "knows", "know")
            ),
        };
        if needed == Capability::external() {
            return Some(format!(
                "{who} how to train external models; name a program for them under [learner] in their site.toml"
            ));
        }
        // One that trains external models alone says so by what it does not know.
        let or = match needed == Capability::training() || needed == Capability::statistics() {
            true => ", or name its records under [data] in its site.toml",
            false => "",
        };
        Some(format!("{who} {needed}{others}; install a release there that does{or}"))
    }

    /// Ends a step before it was opened, since nobody can do it. It is tried again after a while: who can may be away for a moment only.
    pub(super) fn fail_unable(&mut self, step: &StepPlan, why: String) {
        let task = TaskId::new(self.run, step.round, step.step).labelled(self.plan.label_of(step.step));
        self.note(Note::Withheld { task, reason: why.clone() });
        self.setbacks.unable(Some(why));
        self.state.failures += 1;
        if step.is_round {
            (self.state.round, self.state.evaluated) = (step.round, true);
        }
        // A step before this one may have written the round's line.
        let line = self.state.summary.clone().filter(|line| line.round == step.round.0);
        self.commit(line.unwrap_or_else(|| empty_summary(step.round)), Vec::new());
        if let Phase::Committing { rests, .. } = &mut self.phase {
            *rests = true;
        }
    }

    /// An answer to the open task broke off. Whether it is to be put to its client once more, as the next attempt: once, where the client knows
    /// attempts, and after that it is out of the step. One that does not know them is awaited for a moment only; one that has gone may come
    /// back, since the line is what broke.
    pub(super) fn break_off(&mut self, now: Time, client: &ClientId) -> bool {
        let is_connected = self.clients.get(client).is_some_and(|record| record.connected);
        let knows_attempts = self.abilities.has(client, &Capability::attempts());
        let Phase::Open(open) = &mut self.phase else { return false };
        match (is_connected, knows_attempts) {
            (false, _) => false,
            (true, false) => {
                open.tracker.broke_off(client, now);
                false
            }
            (true, true) if open.tracker.renew(client) => {
                // What is put anew later must not be taken for this attempt.
                self.opened_last = self.opened_last.max(Some(open.tracker.task_of(client)));
                true
            }
            (true, true) => {
                self.settle(client, ParticipantStatus::Out);
                false
            }
        }
    }
}
