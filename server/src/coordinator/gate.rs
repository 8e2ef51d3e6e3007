//! Who is awaited, until when, and how many suffice.

use std::collections::BTreeMap;

use protocol::{ClientId, TaskId, Time};

use super::Coordinator;
use crate::workflow::ClosePolicy;

impl Coordinator {
    /// The open task for which this client's answer is still awaited.
    pub fn owed(&self, client: &ClientId) -> Option<TaskId> {
        self.open_task().filter(|task| self.check_standing(client, *task).is_ok())
    }
}

/// One task put to a cohort. It opens when nobody is awaited any more, or at its deadline.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) task: TaskId,
    pub(super) opened: Time,
    pub(super) deadline: Time,
    quorum: usize,
    close: ClosePolicy,
    asked: BTreeMap<ClientId, Standing>,
    waiting: usize,
    answered: usize,
}

/// Where one client of a cohort stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Owes an answer.
    Waiting,
    /// Its answer counts.
    Answered,
    /// Has refused, or was refused: it gets no second try in this task.
    Out,
}

impl Gate {
    pub(super) fn new(
        task: TaskId,
        cohort: &[ClientId],
        (quorum, close): (usize, ClosePolicy),
        opened: Time,
        deadline: Time,
    ) -> Self {
        let asked: BTreeMap<_, _> = cohort.iter().map(|client| (client.clone(), Standing::Waiting)).collect();
        Self { task, opened, deadline, quorum, close, waiting: asked.len(), asked, answered: 0 }
    }

    /// Where `client` stands; `None` when it was not asked.
    pub(super) fn standing(&self, client: &ClientId) -> Option<Standing> {
        self.asked.get(client).copied()
    }

    /// Settles a client that is awaited; others are left as they are.
    pub(super) fn settle(&mut self, client: &ClientId, standing: Standing) {
        let Some(now) = self.asked.get_mut(client).filter(|now| **now == Standing::Waiting) else { return };
        *now = standing;
        self.waiting -= usize::from(standing != Standing::Waiting);
        self.answered += usize::from(standing == Standing::Answered);
    }

    /// Whether it is time to go on.
    pub(super) fn is_open(&self, now: Time) -> bool {
        let is_complete = match self.close {
            ClosePolicy::All => self.waiting == 0,
            ClosePolicy::Target(target) => self.waiting == 0 || self.answered >= target,
            ClosePolicy::Deadline => false,
        };
        is_complete || now >= self.deadline
    }

    /// Whether enough answers count.
    pub(super) fn has_quorum(&self) -> bool {
        self.answered >= self.quorum
    }

    /// Whether enough were asked.
    pub(super) fn could_have_quorum(&self) -> bool {
        self.asked.len() >= self.quorum
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn answered(&self) -> usize {
        self.answered
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The clients that stand so.
    pub(super) fn settled(&self, as_now: Standing) -> impl Iterator<Item = &ClientId> {
        self.asked.iter().filter(move |(_, standing)| **standing == as_now).map(|(client, _)| client)
    }

    /// The clients that still owe an answer.
    pub(super) fn owing(&self) -> impl Iterator<Item = &ClientId> {
        self.settled(Standing::Waiting)
    }
}
