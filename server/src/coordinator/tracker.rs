//! Who is awaited, until when, and how many suffice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::{ClientId, TaskId, Time};

use super::Coordinator;
use crate::workflow::ClosePolicy;

impl Coordinator {
    /// The open task for which this client's answer is still awaited.
    pub fn owed(&self, client: &ClientId) -> Option<TaskId> {
        self.task_of(client).filter(|task| self.check_status(client, *task).is_ok())
    }
}

/// One task put to a cohort. It is complete when every client of its cohort has answered or is out, or at its deadline.
#[derive(Debug)]
pub(super) struct CohortTracker {
    pub(super) task: TaskId,
    pub(super) opened: Time,
    pub(super) deadline: Time,
    quorum: usize,
    close: ClosePolicy,
    asked: BTreeMap<ClientId, ParticipantStatus>,
    /// How long a client that has gone is awaited, and since when each of them is gone.
    grace: Option<Duration>,
    away: BTreeMap<ClientId, Time>,
    /// Clients to whom it was put once more, as the next attempt.
    renewed: BTreeSet<ClientId>,
    /// Clients that know no further attempt, whose streams have broken off, and when.
    broken: BTreeMap<ClientId, Time>,
    waiting: usize,
    answered: usize,
}

/// Where one client of a cohort stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParticipantStatus {
    /// Owes an answer.
    Waiting,
    /// Its answer counts.
    Answered,
    /// Has refused, or was refused: it gets no second try in this task.
    Out,
    /// Has been gone for longer than it is awaited.
    Gone,
    /// Its stream broke off, and its connection has lived on: it is not awaited, unless it comes back by another one.
    BrokenOff,
}

/// How long after its stream broke off a client is awaited whose connection may end, too: then it may come back.
const BREAK: Duration = Duration::from_millis(400);

impl CohortTracker {
    pub(super) fn new(
        task: TaskId,
        cohort: &[ClientId],
        (quorum, close): (usize, ClosePolicy),
        opened: Time,
        (deadline, grace): (Duration, Option<Duration>),
    ) -> Self {
        let asked: BTreeMap<_, _> =
            cohort.iter().map(|client| (client.clone(), ParticipantStatus::Waiting)).collect();
        let (away, renewed, broken) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let (waiting, deadline) = (asked.len(), opened + deadline);
        Self {
            task,
            opened,
            deadline,
            quorum,
            close,
            asked,
            grace,
            away,
            renewed,
            broken,
            waiting,
            answered: 0,
        }
    }

    /// The task as `client` has it.
    pub(super) fn task_of(&self, client: &ClientId) -> TaskId {
        if self.renewed.contains(client) { self.task.next_attempt() } else { self.task }
    }

    /// Grants a client that is awaited another attempt; `false` where it has had one, or is not awaited.
    pub(super) fn renew(&mut self, client: &ClientId) -> bool {
        self.status(client) == Some(ParticipantStatus::Waiting) && self.renewed.insert(client.clone())
    }

    /// Notes that the stream of a client broke off that knows no further attempt.
    pub(super) fn broke_off(&mut self, client: &ClientId, now: Time) {
        if self.status(client) == Some(ParticipantStatus::Waiting) {
            self.broken.insert(client.clone(), now);
        }
    }

    /// Where `client` stands; `None` when it was not asked.
    pub(super) fn status(&self, client: &ClientId) -> Option<ParticipantStatus> {
        self.asked.get(client).copied()
    }

    /// Settles a client that is awaited; others are left as they are.
    pub(super) fn settle(&mut self, client: &ClientId, status: ParticipantStatus) {
        let Some(now) = self.asked.get_mut(client).filter(|now| **now == ParticipantStatus::Waiting) else {
            return;
        };
        *now = status;
        self.waiting -= usize::from(status != ParticipantStatus::Waiting);
        self.answered += usize::from(status == ParticipantStatus::Answered);
        self.away.remove(client);
        self.broken.remove(client);
    }

    /// Notes that the connection of a client is gone, whose answer is awaited for a while only from now on.
    pub(super) fn left(&mut self, client: &ClientId, now: Time) {
        // The line is what broke.
        self.broken.remove(client);
        if self.grace.is_some() && self.status(client) == Some(ParticipantStatus::Waiting) {
            self.away.insert(client.clone(), now);
        }
    }

    /// Notes that a client is back.
    pub(super) fn came_back(&mut self, client: &ClientId) {
        self.away.remove(client);
        self.broken.remove(client);
        if let Some(status) = self.asked.get_mut(client).filter(|now| **now == ParticipantStatus::BrokenOff) {
            *status = ParticipantStatus::Waiting;
            self.waiting += 1;
        }
    }

    /// Settles the clients that have been gone for too long, and gives them; and those whose streams broke off and that did not leave.
    pub(super) fn settle_gone(&mut self, now: Time) -> Vec<ClientId> {
        let broken = self.broken.iter().filter(|(_, since)| **since + BREAK <= now);
        let broken: Vec<ClientId> = broken.map(|(client, _)| client.clone()).collect();
        broken.iter().for_each(|client| self.settle(client, ParticipantStatus::BrokenOff));
        let Some(grace) = self.grace else { return Vec::new() };
        let gone = self.away.iter().filter(|(_, since)| **since + grace <= now);
        let gone: Vec<ClientId> = gone.map(|(client, _)| client.clone()).collect();
        for client in &gone {
            self.away.remove(client);
            self.settle(client, ParticipantStatus::Gone);
        }
        gone
    }

    /// When it may be time to go on though nothing has happened; `None` when nobody is awaited.
    pub(super) fn wakes_at(&self) -> Option<Time> {
        if self.waiting == 0 && self.close != ClosePolicy::Deadline {
            return None;
        }
        let grace = self.grace.and_then(|grace| self.away.values().min().map(|since| *since + grace));
        let broken = self.broken.values().min().map(|since| *since + BREAK);
        [grace, broken].into_iter().flatten().chain([self.deadline]).min()
    }

    /// Whether it is time to go on.
    pub(super) fn is_complete(&self, now: Time) -> bool {
        let is_complete = match self.close {
            ClosePolicy::All => self.waiting == 0,
            ClosePolicy::Target(_) => self.waiting == 0 || self.has_target(),
            ClosePolicy::Deadline => false,
        };
        is_complete || now >= self.deadline
    }

    /// Whether as many have answered as are needed, where more were asked.
    pub(super) fn has_target(&self) -> bool {
        matches!(self.close, ClosePolicy::Target(target) if self.answered >= target)
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

    /// Clients that have not answered: those that are awaited, and those that are so no more.
    pub(super) fn missing(&self) -> usize {
        self.waiting + self.settled(ParticipantStatus::Gone).count()
    }

    /// Clients of which nothing came, for whatever reason: they have neither answered, nor declined, nor been refused.
    pub(super) fn silent(&self) -> usize {
        self.unheard().count() + self.settled(ParticipantStatus::Gone).count()
    }

    /// The clients that stand so.
    pub(super) fn settled(&self, as_now: ParticipantStatus) -> impl Iterator<Item = &ClientId> {
        self.asked.iter().filter(move |(_, status)| **status == as_now).map(|(client, _)| client)
    }

    /// The clients that have not answered and are not known to have given up for good: a collector is told of them at the end.
    pub(super) fn unheard(&self) -> impl Iterator<Item = &ClientId> {
        self.owing().chain(self.settled(ParticipantStatus::BrokenOff))
    }

    /// The clients that still owe an answer.
    pub(super) fn owing(&self) -> impl Iterator<Item = &ClientId> {
        self.settled(ParticipantStatus::Waiting)
    }
}
