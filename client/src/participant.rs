//! Does one task: prepare, train, clip, encode; or evaluate; or count.
//!
//! A participant never fails and never panics: an error becomes an answer that declines the task. What the operator is
//! told names no data of the site; the site's own log gets the learner's full message. An update that is not finite, or
//! longer than the plan's bound, cannot leave: only the lattice's clipping and rounding make the points that are sent.

mod execution;

use std::sync::Arc;

use protocol::{
    Answer, Capabilities, ClientId, Decline, LearnError, Learner, Outcome, RunId, Seed, Spec, Stop, Task,
    TaskFault, TaskId,
};

use self::execution::TaskExecution;
use crate::LocalState;
use crate::audit::Audit;
use crate::guard::Guard;
use crate::ledger::LedgerHistory;
use crate::methods::SiteMethods;
use crate::pause::Pause;

/// Why a task was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    /// The reason in one word.
    pub reason: Decline,
    /// For the site's eyes only: may name files, lines and values.
    pub message: String,
    /// For the operator; names no data of the site.
    pub detail: String,
}

impl TaskError {
    /// TaskError that holds nothing private: both sides read the same sentence.
    pub(crate) fn open(reason: Decline, message: String) -> Self {
        Self { reason, detail: message.clone(), message }
    }

    /// TaskError of which the operator learns the kind only.
    pub(crate) fn private(reason: Decline, message: String) -> Self {
        let detail = match reason {
            Decline::Unsupported => "the learner does not support this plan; the site's log says why",
            Decline::Data => {
                "the site's data does not fit the plan or cannot be read; the site's log says where"
            }
            Decline::NotFinite => "numbers were not finite; the site's log says more",
            Decline::Stopped => "the task was stopped",
            Decline::Failed => "the learner failed; the site's log says why",
            Decline::Policy => "the site's policy does not allow this",
            Decline::Budget => "the site's privacy budget cannot pay for this",
            Decline::Paused => "the site has paused",
        };
        Self { reason, message, detail: detail.to_owned() }
    }

    fn stopped() -> Self {
        Self::private(Decline::Stopped, "the task was stopped before it was done".into())
    }
}

/// What follows from the task alone, both sides may read.
impl From<TaskFault> for TaskError {
    fn from(fault: TaskFault) -> Self {
        Self::open(fault.reason, fault.message)
    }
}

impl From<LearnError> for TaskError {
    fn from(error: LearnError) -> Self {
        Self::private(error.reason, error.message)
    }
}

/// One client: its name, its learner (with the data inside) and what it keeps for itself.
pub struct Participant {
    id: ClientId,
    learner: Box<dyn Learner>,
    prepared: Option<Arc<Spec>>,
    personal: LocalState,
    methods: SiteMethods,
    guard: Option<Guard>,
    pause: Option<Pause>,
    memory: Memory,
    complaint: Option<TaskError>,
    is_charged_again: bool,
}

/// Memory that one update after another is made in, so that none of it is asked for twice. What it holds means nothing.
#[derive(Default)]
pub struct Memory {
    /// The parameters in training, then the difference.
    values: Vec<f32>,
    /// The update on the lattice.
    points: Vec<i32>,
}

impl Memory {
    /// Takes memory back that went away with an update.
    pub fn give_back(&mut self, points: Vec<i32>) {
        if points.capacity() > self.points.capacity() {
            self.points = points;
        }
    }

    /// A copy of `values`.
    fn copy(&mut self, values: &[f32]) -> Vec<f32> {
        let mut copy = std::mem::take(&mut self.values);
        copy.clear();
        copy.extend_from_slice(values);
        copy
    }
}

/// Only sizes: what it holds is one site's update.
impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} values, {} points)", self.values.capacity(), self.points.capacity())
    }
}

impl Participant {
    /// A participant that keeps nothing yet and does whatever it is asked.
    pub fn new(id: ClientId, learner: Box<dyn Learner>) -> Self {
        let (personal, methods, memory) = (LocalState::default(), SiteMethods::default(), Memory::default());
        Self {
            id,
            learner,
            prepared: None,
            personal,
            methods,
            guard: None,
            pause: None,
            memory,
            complaint: None,
            is_charged_again: false,
        }
    }

    /// Knows these methods, and no others, from now on.
    #[must_use]
    pub fn with_methods(mut self, methods: SiteMethods) -> Self {
        self.methods = methods;
        self
    }

    /// The methods that it knows.
    pub fn methods(&self) -> &SiteMethods {
        &self.methods
    }

    /// Asks `guard` before every task from now on.
    #[must_use]
    pub fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Declines every task from now on while `pause` holds, and lets it stop the one that runs.
    #[must_use]
    pub fn with_pause(mut self, pause: Pause) -> Self {
        self.pause = Some(pause);
        self
    }

    /// The audit log of its guard, if it has one.
    pub fn audit(&self) -> Option<&Audit> {
        self.guard.as_ref().map(Guard::audit)
    }

    /// The heads of its guard's ledger, if it has one.
    pub fn history(&self) -> Option<&LedgerHistory> {
        self.guard.as_ref().map(Guard::history)
    }

    /// What it knows, as its site says in its hello. A server asks it for nothing else.
    pub fn capabilities(&self) -> Capabilities {
        self.methods.capabilities(self.learner.trains())
    }

    /// Its name.
    pub fn id(&self) -> &ClientId {
        &self.id
    }

    /// Does a task. See [`Participant::attempt`]; an error becomes [`Outcome::Declined`].
    pub fn perform(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Answer {
        answer(task.id, self.attempt(task, entropy, stop))
    }

    /// Does a task. `entropy` is fresh from the operating system and used only when the task carries no seed; with a
    /// seed the same task gives the same bits.
    ///
    /// # Errors
    /// [`TaskError`], with the full message for the site's own log.
    pub fn attempt(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Result<Outcome, TaskError> {
        let Some(pause) = self.pause.clone() else { return self.attempt_now(task, entropy, stop) };
        let outcome = match pause.admit(stop) {
            Ok(()) => self.attempt_now(task, entropy, stop),
            Err(paused) => {
                let noted = self.guard.as_ref().map_or(Ok(()), |guard| guard.paused(task, &paused.message));
                Err(noted.err().unwrap_or(paused))
            }
        };
        pause.conclude(outcome)
    }

    /// Whether the answer to `task`, which was computed and paid for before, may be sent again: not while the site pauses, and as its policy
    /// says now. That the task has come is written down.
    ///
    /// # Errors
    /// [`TaskError`], with which the task is to be declined.
    #[cfg(feature = "net")]
    pub(crate) fn judge_again(&mut self, task: &Task, stop: &Stop) -> Result<(), TaskError> {
        let pause = self.pause.clone();
        if let Some(Err(paused)) = pause.as_ref().map(|pause| pause.admit(stop)) {
            let noted = self.guard.as_ref().map_or(Ok(()), |guard| guard.paused(task, &paused.message));
            return pause.map_or(Ok(()), |pause| pause.conclude(Err(noted.err().unwrap_or(paused))));
        }
        let judged = self.execution(task, stop, false).judge_again();
        pause.map_or(Ok(()), |pause| pause.conclude(Ok(()))).and(judged)
    }

    fn attempt_now(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Result<Outcome, TaskError> {
        let same = |spec: &Arc<Spec>| Arc::ptr_eq(spec, &task.spec) || **spec == *task.spec;
        let prepared = self.prepared.take().filter(same);
        let attempt = self.execution(task, stop, prepared.is_some()).run(entropy);
        self.prepared = attempt.prepared.then(|| Arc::clone(&task.spec));
        self.complaint = attempt.complaint;
        self.is_charged_again = attempt.is_charged_again;
        attempt.outcome
    }

    fn execution<'a>(&'a mut self, task: &'a Task, stop: &'a Stop, prepared: bool) -> TaskExecution<'a> {
        TaskExecution {
            lent: Lent {
                id: &self.id,
                learner: &mut *self.learner,
                personal: &mut self.personal,
                memory: &mut self.memory,
                methods: &self.methods,
            },
            guard: self.guard.as_mut(),
            task,
            stop,
            prepared,
            complaint: None,
            is_charged_again: false,
        }
    }

    /// Whether the last task was a training that this site had been charged for before, and has been charged for again: its first answer was
    /// not kept, as when the site was killed at work, or the connection ended.
    pub fn was_charged_again(&self) -> bool {
        self.is_charged_again
    }

    /// What went wrong with the last task and was answered all the same, since nobody outside may see it: for the site's own
    /// log.
    pub fn take_complaint(&mut self) -> Option<TaskError> {
        self.complaint.take()
    }

    /// What stays at this client, to be written to the site's own disk.
    pub fn personal(&self) -> &LocalState {
        &self.personal
    }

    /// Brings back what [`Participant::personal`] gave in an earlier life. The runs of which it gives nothing back: a release before did not
    /// write down where it comes from, and the ledger of the guard does not show it.
    pub fn restore_personal(&mut self, mut personal: LocalState) -> Vec<RunId> {
        let account = self.guard.as_ref().map(Guard::account);
        let dropped = personal.settle(|run| account?.origin_of(run));
        self.personal = personal;
        dropped
    }
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Participant({}, {:?})", self.id, self.personal)
    }
}

/// What is lent to a client for one task: a simulation's worker serves many clients in turn with one learner.
#[expect(missing_debug_implementations, reason = "it holds the client's records and what it keeps to itself")]
pub struct Lent<'a> {
    /// The client.
    pub id: &'a ClientId,
    /// Its learner. [`Learner::prepare`] is called each time and must be quick when it already has the task's spec.
    pub learner: &'a mut dyn Learner,
    /// What the client keeps from task to task.
    pub personal: &'a mut LocalState,
    /// Memory to work in.
    pub memory: &'a mut Memory,
    /// The methods that it knows.
    pub methods: &'a SiteMethods,
}

impl Lent<'_> {
    /// Does a task. See [`Participant::attempt`]; an error becomes [`Outcome::Declined`].
    pub fn perform(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Answer {
        answer(task.id, self.attempt(task, entropy, stop))
    }

    /// [`Lent::perform`], with what went wrong, for whoever may see the client's records: why the task was declined, or what was answered
    /// all the same because nobody outside may see it.
    pub fn perform_aloud(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> (Answer, Option<TaskError>) {
        let attempt = self.execution(task, stop).run(entropy);
        let error = attempt.outcome.as_ref().err().cloned().or(attempt.complaint);
        (answer(task.id, attempt.outcome), error)
    }

    /// [`Lent::perform`], with the error's full message.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn attempt(&mut self, task: &Task, entropy: Seed, stop: &Stop) -> Result<Outcome, TaskError> {
        self.execution(task, stop).run(entropy).outcome
    }

    fn execution<'b>(&'b mut self, task: &'b Task, stop: &'b Stop) -> TaskExecution<'b> {
        let Self { id, learner, personal, memory, methods } = self;
        let lent = Lent { id, learner: &mut **learner, personal, memory, methods };
        TaskExecution {
            lent,
            guard: None,
            task,
            stop,
            prepared: false,
            complaint: None,
            is_charged_again: false,
        }
    }
}

/// The answer to a task that was attempted.
pub fn answer(task: TaskId, attempted: Result<Outcome, TaskError>) -> Answer {
    let declined = |error: TaskError| Outcome::Declined { reason: error.reason, detail: error.detail };
    Answer { task, outcome: attempted.unwrap_or_else(declined) }
}

#[cfg(test)]
pub(crate) mod tests;
