//! Who works on which answer, and what becomes of it: an honest one is checked where it was made; what colluding clients send is made
//! once every honest answer of the task is there, whenever it arrives.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{LocalState, TaskError};
use protocol::{Answer, ClientId, Task, TaskId};
use server::{Checked, Checker};

use super::{Moment, Pending, SimulatorError, Stage, What};
use crate::adversaries::{Adversaries, Conduct, Seen, in_units, lattice_of};
use crate::workers::{Done, Job, Order, Role};

/// The corrupted clients, and what those that collude know of the open task.
pub(super) struct Collusion {
    adversaries: Option<Arc<Adversaries>>,
    tensors: Arc<[usize]>,
    /// The task of which the rest is.
    task: Option<TaskId>,
    /// The updates of honest clients, by their number.
    seen: BTreeMap<usize, Vec<i32>>,
    /// Honest answers that are there before their time.
    early: BTreeMap<Moment, Worked>,
    /// What all of them send; the inner `None` where there is no honest update.
    agreed: Option<Option<Vec<f64>>>,
}

/// What came of a job.
struct Worked {
    checked: Checked,
    personal: LocalState,
    error: Option<TaskError>,
}

impl Collusion {
    /// Of these clients, with a model whose tensors have so many values each.
    pub(super) fn new(adversaries: Option<Arc<Adversaries>>, tensors: Arc<[usize]>) -> Self {
        let (seen, early) = (BTreeMap::new(), BTreeMap::new());
        Self { adversaries, tensors, task: None, seen, early, agreed: None }
    }

    /// The corrupted clients.
    pub(super) fn corrupted(&self) -> impl Iterator<Item = &ClientId> {
        self.adversaries.iter().flat_map(|adversaries| adversaries.corrupted())
    }

    fn conduct(&self, client: &ClientId, task: &Task) -> Conduct {
        self.adversaries.as_ref().map_or(Conduct::Honest, |adversaries| adversaries.conduct(client, task))
    }

    fn role(&self, client: &ClientId, task: &Task) -> Role {
        match (self.conduct(client, task), &self.adversaries) {
            (Conduct::Alone, Some(adversaries)) => {
                Role::Alone(Arc::clone(adversaries), Arc::clone(&self.tensors))
            }
            (Conduct::Colluding, _) => Role::Colluding,
            (Conduct::Observed, _) => Role::Observed,
            (Conduct::Honest | Conduct::Alone, _) => Role::Honest,
        }
    }

    /// The vector that so many colluding clients send, by what they have seen.
    fn agree(&self, task: &Task, colluders: usize, clients: &[ClientId]) -> Option<Vec<f64>> {
        let lattice = lattice_of(task, &self.tensors)?;
        let seen = self.seen.iter();
        let mut seen: Vec<Seen<'_>> = seen
            .map(|(number, points)| Seen { client: &clients[*number], values: in_units(points, &lattice) })
            .collect();
        seen.sort_unstable_by_key(|seen| seen.client);
        self.adversaries.as_ref()?.agree(&seen, colluders)
    }

    fn forge(&self, client: &ClientId, task: &Task, answer: Answer) -> Answer {
        match (&self.adversaries, &self.agreed) {
            (Some(adversaries), Some(agreed)) => {
                adversaries.forge_together(client, task, &self.tensors, answer, agreed.as_deref())
            }
            (None, _) | (_, None) => answer,
        }
    }

    /// Forgets an earlier task.
    fn turn_to(&mut self, task: TaskId) {
        if self.task != Some(task) {
            self.task = Some(task);
            (self.agreed, self.seen) = (None, BTreeMap::new());
            self.early.clear();
        }
    }
}

impl Stage<'_> {
    /// Whether nobody will wait for what happens then.
    pub(super) fn is_late(&self, moment: Moment) -> bool {
        self.coordinator.deadline().is_some_and(|deadline| moment.0 > deadline)
    }

    pub(super) fn cancel(&mut self, client: &ClientId) {
        let owed = self.roster.find(client).and_then(|number| self.owed.remove(&number));
        if let Some(moment) = owed {
            self.pending.remove(&moment);
            self.unposted.remove(&moment);
            self.collusion.early.remove(&moment);
            if let Some(size) = self.under_way.remove(&moment) {
                self.pool.withdraw(size, moment.1);
            }
        }
    }

    /// Gives the workers the answers that are due first, but none that comes too late.
    pub(super) fn put_to_work(&mut self) {
        let next = self.pending.first_key_value().map(|(moment, _)| *moment);
        while let Some(moment) = self.unposted.first().copied() {
            // What happens next is worked on even when all hands are busy with what comes later.
            let has_room = self.under_way.len() < self.jobs_max || next == Some(moment);
            if !has_room || self.is_late(moment) {
                break;
            }
            self.unposted.remove(&moment);
            self.post(moment);
        }
    }

    pub(super) fn post(&mut self, moment: Moment) {
        let Some(Pending { client: name, number, what: What::Answer(task) }) = self.pending.get(&moment)
        else {
            return;
        };
        let (client, task, role) = (*number, task.clone(), self.collusion.role(name, task));
        let personal = self.personal.get(&client).cloned().unwrap_or_default();
        let checker = self.checker_of(task.id);
        let size = self.roster.workforce.size(client);
        self.pool.post(size, moment.1, Job::Client { client, personal, task, checker, role });
        self.under_way.insert(moment, size);
    }

    /// The checks of a task, which is open.
    fn checker_of(&mut self, task: TaskId) -> Arc<Checker> {
        let known = self.checker.take().filter(|(id, _)| *id == task);
        let made = || (task, Arc::new(self.coordinator.checker()));
        Arc::clone(&self.checker.insert(known.unwrap_or_else(made)).1)
    }

    /// The answer that is due, as its client sends it.
    pub(super) fn await_answer(
        &mut self,
        moment: Moment,
        number: usize,
        task: Task,
    ) -> Result<(Checked, Option<TaskError>), SimulatorError> {
        let client = &self.roster.workforce.clients()[number];
        let Worked { checked, personal, error } = match self.collusion.conduct(client, &task) {
            Conduct::Colluding => self.await_colluder(moment, client, task)?,
            Conduct::Honest | Conduct::Observed | Conduct::Alone => {
                let id = task.id;
                // The model must not be held by what is over, or the step that may follow works on a copy.
                drop(task);
                match self.collusion.early.remove(&moment) {
                    Some(worked) => worked,
                    None => self.await_worked(moment, number, id)?,
                }
            }
        };
        if !personal.is_empty() {
            self.personal.insert(number, personal);
        }
        Ok((checked, error))
    }

    /// An answer that is checked where it was made.
    fn await_worked(
        &mut self,
        moment: Moment,
        number: usize,
        task: TaskId,
    ) -> Result<Worked, SimulatorError> {
        match self.await_job(moment)? {
            Done::Client { checked, personal, error, seen } => {
                if let Some(points) = seen {
                    self.collusion.turn_to(task);
                    self.collusion.seen.insert(number, points);
                }
                Ok(Worked { checked, personal, error })
            }
            Done::Colluder { .. } | Done::Central(_) => Err(SimulatorError::WorkerLost),
        }
    }

    fn await_job(&mut self, moment: Moment) -> Result<Done, SimulatorError> {
        let size = self.under_way.remove(&moment).ok_or(SimulatorError::WorkerLost)?;
        let order = if self.unposted.is_empty() { Order::LargestFirst } else { Order::AsDue };
        Ok(self.pool.result(size, moment.1, order)?)
    }

    /// What a colluding client sends: it has trained, for its weight and metrics, and sends what all have agreed on.
    fn await_colluder(
        &mut self,
        moment: Moment,
        client: &ClientId,
        task: Task,
    ) -> Result<Worked, SimulatorError> {
        self.collusion.turn_to(task.id);
        if self.collusion.agreed.is_none() {
            let colluders = self.gather_honest(&task)?;
            let agreed = self.collusion.agree(&task, colluders, self.roster.workforce.clients());
            self.collusion.agreed = Some(agreed);
        }
        let Done::Colluder { answer, personal, error } = self.await_job(moment)? else {
            return Err(SimulatorError::WorkerLost);
        };
        let answer = self.collusion.forge(client, &task, answer);
        let checked = self.checker_of(task.id).check(answer);
        Ok(Worked { checked, personal, error })
    }

    /// Waits for every honest answer of a task that is still to come in time. Gives the number of colluding clients, of which one is due.
    fn gather_honest(&mut self, task: &Task) -> Result<usize, SimulatorError> {
        let (mut honest, mut colluders) = (Vec::new(), 1);
        for (moment, Pending { client, number, what }) in &self.pending {
            if !matches!(what, What::Answer(other) if other.id == task.id) || self.is_late(*moment) {
                continue;
            }
            match self.collusion.conduct(client, task) {
                Conduct::Observed => honest.push((*moment, *number)),
                Conduct::Colluding => colluders += 1,
                Conduct::Honest | Conduct::Alone => {}
            }
        }
        for (moment, _) in &honest {
            if self.unposted.remove(moment) {
                self.post(*moment);
            }
        }
        for (moment, number) in honest {
            let worked = self.await_worked(moment, number, task.id)?;
            self.collusion.early.insert(moment, worked);
        }
        Ok(colluders)
    }
}
