//! Threads that do virtual clients' work. Each keeps one learner for its life and visits one client after another: a
//! model is built once a thread, not once a client.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};

use client::{Personal, perform};
use protocol::{Answer, ClientId, Learner, Seed, Stop, Task};

/// Who can do the work of a population's clients.
pub trait Workforce: Sync {
    /// The clients by name. Their place in the list is their number.
    fn clients(&self) -> &[ClientId];

    /// One thread's worker.
    fn worker(&self) -> Box<dyn Worker + '_>;

    /// A learner whose test records are the server's own, if it has such.
    fn central(&self) -> Option<Box<dyn Learner>>;
}

/// One thread's learner.
pub trait Worker {
    /// The learner, with the records of client number `client`.
    fn visit(&mut self, client: usize) -> &mut dyn Learner;
}

/// One client's work on one task.
pub(crate) struct Job {
    pub(crate) ticket: u64,
    pub(crate) client: usize,
    pub(crate) personal: Personal,
    pub(crate) task: Task,
}

/// What came of a job.
pub(crate) struct Done {
    pub(crate) ticket: u64,
    pub(crate) answer: Answer,
    pub(crate) personal: Personal,
}

/// Threads waiting for jobs. Dropping it ends them.
pub(crate) struct Crew {
    pub(crate) jobs: Sender<Job>,
    pub(crate) done: Receiver<Done>,
}

impl Crew {
    /// Starts `threads` workers in `scope`.
    pub(crate) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        threads: usize,
        queue: &'env Mutex<Option<Receiver<Job>>>,
        workforce: &'env dyn Workforce,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = channel();
        let (sender, done) = channel();
        *queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(receiver);
        for number in 0..threads.max(1) {
            let sender = sender.clone();
            let work = move || labour(queue, workforce, &sender);
            Builder::new().name(format!("worker-{number}")).spawn_scoped(scope, work)?;
        }
        Ok(Self { jobs, done })
    }
}

fn labour(queue: &Mutex<Option<Receiver<Job>>>, workforce: &dyn Workforce, done: &Sender<Done>) {
    let mut worker = workforce.worker();
    // With a seed in the task, entropy is not used; a simulation's tasks always carry one.
    let entropy = Seed::from_number(0);
    loop {
        let job = {
            let queue = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            queue.as_ref().and_then(|jobs| jobs.recv().ok())
        };
        let Some(Job { ticket, client, mut personal, task }) = job else { return };
        let id = &workforce.clients()[client];
        let answer = perform(id, worker.visit(client), &mut personal, &task, entropy, &Stop::default());
        if done.send(Done { ticket, answer, personal }).is_err() {
            return;
        }
    }
}
