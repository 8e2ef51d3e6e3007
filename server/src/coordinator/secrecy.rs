//! What is not told of a run whose cohorts are drawn by secret chance: who or how many took part in a training, how long it
//! took, and what became of anybody's answer. Amplification by sampling is claimed against those who do not see it, so notes,
//! counts and summaries leave the coordinator without it, and no log, number or page can show it.
//!
//! A seeded run hides nothing: every site can compute its cohorts. Evaluations are put to everybody who is connected.

use protocol::{ClientId, StepId, TaskId};

use super::{Action, ClientRecord, Coordinator, Note};

impl Coordinator {
    /// Whether nothing may show who takes part in this task; of something that belongs to no task, whether it could be one.
    pub(super) fn hides_participation(&self, task: Option<TaskId>) -> bool {
        let may_train = task.is_none_or(|task| task.step == StepId::TRAIN);
        may_train && !self.is_seeded && self.plan.spec.privacy.samples_secretly()
    }

    /// Whether what became of an answer to this task may be kept, and can keep a round from its release.
    pub(super) fn explains(&self, task: Option<TaskId>) -> bool {
        task.is_some_and(|task| task.step != StepId::EVALUATE) && !self.hides_participation(task)
    }

    /// Tells what happened, unless it shows who takes part where that is a secret.
    pub(super) fn note(&mut self, note: Note) {
        let hidden = match &note {
            Note::Opened { task, .. }
            | Note::Accepted { task, .. }
            | Note::Declined { task, .. }
            | Note::Closed { task, .. } => self.hides_participation(Some(*task)),
            Note::Refused { task, .. } => self.hides_participation(*task),
            // A round without entropy, and what is the same for every cohort.
            // What is warned of follows from the plan, or from a release.
            Note::Warned { .. }
            | Note::Withheld { .. }
            | Note::Waiting { .. }
            | Note::Round(_)
            | Note::Ended(_) => false,
        };
        if !hidden {
            self.actions.push_back(Action::Note(note));
        }
    }

    /// Counts what became of a client's answer, where that may be known.
    pub(super) fn count(
        &mut self,
        client: &ClientId,
        task: Option<TaskId>,
        change: impl FnOnce(&mut ClientRecord),
    ) {
        if !self.hides_participation(task) {
            change(self.record(client));
        }
    }
}
