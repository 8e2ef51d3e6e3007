//! Threads that do virtual clients' work. Each keeps one learner for its life and visits one client after another: a
//! model is built once a thread, not once a client.
//!
//! The thread that asked for the work is one of them: while it waits for an answer it does what is to be done, so that on as
//! many cores as threads nobody is woken for another's sake. Whoever takes a job takes the largest that waits; in what order
//! answers are looked at is not decided here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use client::{Lent, LocalState, Memory, SiteMethods, TaskError};
use protocol::{Answer, ClientId, Learner, Metrics, Outcome, Seed, Stop, Task, Trains, Work};
use server::{Checked, Checker};

use crate::adversaries::Adversaries;

/// Looks at what there is to do before a thread lies down. Between two rounds there is nothing for a moment only.
const LOOKS: u32 = 2000;

/// Who can do the work of a population's clients.
pub trait Workforce: Sync {
    /// The clients by name. Their place in the list is their number.
    fn clients(&self) -> &[ClientId];

    /// The methods that every client knows.
    fn methods(&self) -> SiteMethods {
        SiteMethods::default()
    }

    /// Whose models every client trains.
    fn trains(&self) -> Trains {
        Trains::BuiltIn
    }

    /// One thread's worker.
    fn worker(&self) -> Box<dyn Worker + '_>;

    /// A learner whose test records are the server's own, if it has such.
    fn central(&self) -> Option<Box<dyn Learner>>;

    /// In how many parts [`Worker::visit_central`] can be shown the test records of [`Workforce::central`], so that all
    /// threads measure a model together; 0 when only one learner can.
    fn central_parts(&self) -> usize {
        0
    }

    /// How much work a client is beside others: its records, say. The largest are begun first.
    fn size(&self, client: usize) -> usize {
        let _ = client;
        1
    }
}

/// One thread's learner.
pub trait Worker {
    /// The learner, with the records of client number `client`.
    fn visit(&mut self, client: usize) -> &mut dyn Learner;

    /// The learner, with one part of the server's own test records; asked only for parts that
    /// [`Workforce::central_parts`] counts.
    fn visit_central(&mut self, part: usize) -> Option<&mut dyn Learner> {
        let _ = part;
        None
    }
}

/// Something to be done.
pub(crate) enum Job {
    /// One client's work on one task.
    Client { client: usize, personal: LocalState, task: Task, checker: Arc<Checker>, role: Role },
    /// A part of the server's own evaluation.
    Central { part: usize, task: Arc<Task> },
}

/// What a client is beside what it is asked to be.
pub(crate) enum Role {
    Honest,
    /// Colluding clients see its update.
    Observed,
    /// It changes its update by itself; of a model whose tensors have so many values each.
    Alone(Arc<Adversaries>, Arc<[usize]>),
    /// Its update will be replaced.
    Colluding,
}

/// What came of a job.
pub(crate) enum Done {
    Client {
        checked: Checked,
        personal: LocalState,
        error: Option<TaskError>,
        /// The update, where colluding clients see it.
        seen: Option<Vec<i32>>,
    },
    /// Its own answer, which will be another before it is checked.
    Colluder {
        answer: Answer,
        personal: LocalState,
        error: Option<TaskError>,
    },
    Central(Option<Metrics>),
}

/// A thread has ended before its work was done: a learner panicked outside its work.
#[derive(Debug)]
pub(crate) struct Lost;

/// What waits to be done, and what is done. Tickets name jobs.
#[derive(Default)]
pub(crate) struct JobQueue {
    state: Mutex<State>,
    /// Jobs that wait, and one more once everything is over: to be looked at without the lock.
    waiting: AtomicUsize,
    /// Jobs that were finished so far: to be looked at without the lock.
    finished: AtomicUsize,
    work: Condvar,
    news: Condvar,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<Place, Job>,
    done: BTreeMap<u64, Done>,
    under_way: BTreeSet<u64>,
    /// Jobs under way whose result nobody wants any more.
    unwanted: BTreeSet<u64>,
    memory: Vec<Vec<i32>>,
    /// Threads that sleep for want of work.
    idle: usize,
    /// Whether the one that asked for the work sleeps.
    awaited: bool,
    closed: bool,
    lost: bool,
}

/// Where a job stands in the queue: the largest first, and of equals the one that is due first.
type Place = (Reverse<usize>, u64);

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in what was finished, and sleeps until there is work. `None` when all is over.
    fn take(&self, finished: Option<(u64, Done)>, thread: &mut WorkerThread<'_>) -> Option<(u64, Job)> {
        let mut state = self.lock();
        if let Some((ticket, done)) = finished {
            self.finish(&mut state, ticket, done);
        }
        let mut has_looked = false;
        while !state.closed {
            if let Some((place, job)) = state.jobs.pop_first() {
                return Some(self.begin(&mut state, place, job, thread));
            }
            if has_looked {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                drop(state);
                look_until(|| self.waiting.load(Ordering::Relaxed) > 0);
                state = self.lock();
            }
            has_looked = true;
        }
        None
    }

    fn begin(&self, state: &mut State, place: Place, job: Job, thread: &mut WorkerThread<'_>) -> (u64, Job) {
        self.waiting.store(state.jobs.len(), Ordering::Relaxed);
        state.under_way.insert(place.1);
        if let Some(points) = state.memory.pop() {
            thread.memory.give_back(points);
        }
        (place.1, job)
    }

    fn finish(&self, state: &mut State, ticket: u64, done: Done) {
        state.under_way.remove(&ticket);
        if !state.unwanted.remove(&ticket) {
            state.done.insert(ticket, done);
        }
        self.finished.fetch_add(1, Ordering::Relaxed);
        if state.awaited {
            self.news.notify_one();
        }
    }
}

/// Looks for a moment whether `it_is_so`.
fn look_until(it_is_so: impl Fn() -> bool) {
    for _ in 0..LOOKS {
        if it_is_so() {
            return;
        }
        std::hint::spin_loop();
    }
}

/// All threads, seen from the one that asked for the work. Dropping it sends the others home.
pub(crate) struct WorkerPool<'a> {
    queue: &'a JobQueue,
    own: WorkerThread<'a>,
}

impl<'a> WorkerPool<'a> {
    /// Starts `threads` workers in `scope`, less the one that calls.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        threads: usize,
        queue: &'a JobQueue,
        workforce: &'a dyn Workforce,
        stop: &Stop,
    ) -> std::io::Result<Self> {
        // Made first, so that the others are sent home when one of them cannot be started.
        let pool = Self { queue, own: WorkerThread::new(workforce, stop.clone()) };
        for number in 1..threads {
            let stop = stop.clone();
            let work = move || worker_loop(queue, workforce, stop);
            Builder::new().name(format!("worker-{number}")).spawn_scoped(scope, work)?;
        }
        Ok(pool)
    }

    /// Puts a job up, to be done by whoever is free.
    pub(crate) fn post(&self, size: usize, ticket: u64, job: Job) {
        let mut state = self.queue.lock();
        state.jobs.insert((Reverse(size), ticket), job);
        self.queue.waiting.store(state.jobs.len(), Ordering::Relaxed);
        if state.idle > 0 {
            self.queue.work.notify_one();
        }
    }

    /// Takes a job back whose result is not wanted any more, done or not.
    pub(crate) fn withdraw(&self, size: usize, ticket: u64) {
        let mut state = self.queue.lock();
        if state.jobs.remove(&(Reverse(size), ticket)).is_some() {
            self.queue.waiting.store(state.jobs.len(), Ordering::Relaxed);
        } else if state.under_way.contains(&ticket) {
            state.unwanted.insert(ticket);
        } else {
            state.done.remove(&ticket);
        }
    }

    /// Memory for the updates to come.
    pub(crate) fn give_back(&self, points: Vec<i32>) {
        self.queue.lock().memory.push(points);
    }

    /// The result of a job that was posted. Works on it, or on others, until it is there: on this one before all others
    /// where `order` says so.
    pub(crate) fn result(&mut self, size: usize, ticket: u64, order: Order) -> Result<Done, Lost> {
        let (queue, wanted) = (self.queue, (Reverse(size), ticket));
        let mut finished = None;
        loop {
            let seen = queue.finished.load(Ordering::Relaxed);
            let mut state = queue.lock();
            if let Some((ticket, done)) = finished.take() {
                queue.finish(&mut state, ticket, done);
            }
            if let Some(done) = state.done.remove(&ticket) {
                return Ok(done);
            }
            let first = if order == Order::AsDue { state.jobs.remove_entry(&wanted) } else { None };
            if let Some((place, job)) = first.or_else(|| state.jobs.pop_first()) {
                let (ticket, job) = queue.begin(&mut state, place, job, &mut self.own);
                drop(state);
                finished = Some((ticket, self.own.work(job)));
            } else if state.lost {
                return Err(Lost);
            } else {
                drop(state);
                look_until(|| queue.finished.load(Ordering::Relaxed) != seen);
                self.sleep(ticket);
            }
        }
    }

    /// Sleeps until this job is done, or nobody is left to do it.
    fn sleep(&self, ticket: u64) {
        let mut state = self.queue.lock();
        while !state.done.contains_key(&ticket) && !state.lost {
            state.awaited = true;
            state = self.queue.news.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.awaited = false;
        }
    }
}

/// Which job the one that asked for the work does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The one it waits for: there is more to be posted once it has it.
    AsDue,
    /// The largest: nothing more will come.
    LargestFirst,
}

impl Drop for WorkerPool<'_> {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.waiting.store(1, Ordering::Relaxed);
        self.queue.work.notify_all();
    }
}

/// One thread's learner and memory.
struct WorkerThread<'a> {
    workforce: &'a dyn Workforce,
    worker: Box<dyn Worker + 'a>,
    methods: SiteMethods,
    memory: Memory,
    /// Set once nobody wants an update any more.
    stop: Stop,
}

impl<'a> WorkerThread<'a> {
    fn new(workforce: &'a dyn Workforce, stop: Stop) -> Self {
        let (worker, methods) = (workforce.worker(), workforce.methods());
        Self { workforce, worker, methods, memory: Memory::default(), stop }
    }

    fn work(&mut self, job: Job) -> Done {
        // With a seed in the task, entropy is not used; a simulation's tasks always carry one.
        let entropy = Seed::from_number(0);
        match job {
            Job::Client { client, mut personal, task, checker, role } => {
                // The model of a round that is over is measured to the end.
                let measures = matches!(task.work, Work::Evaluate { .. });
                let stop = if measures { Stop::default() } else { self.stop.clone() };
                let (id, learner) = (&self.workforce.clients()[client], self.worker.visit(client));
                let (memory, methods) = (&mut self.memory, &self.methods);
                let mut lent = Lent { id, learner, personal: &mut personal, memory, methods };
                let (mut answer, error) = lent.perform_aloud(&task, entropy, &stop);
                if let (Outcome::Declined { detail, .. }, Some(error)) = (&mut answer.outcome, &error)
                    && task.spec.privacy.is_none()
                {
                    // Whoever simulates holds all records, and there is no site's log to look into. Beside a promise the
                    // answer stays what a site would send.
                    detail.clone_from(&error.message);
                }
                let mut seen = None;
                match role {
                    Role::Honest => {}
                    Role::Observed => seen = answer.outcome.points().map(<[i32]>::to_vec),
                    Role::Alone(adversaries, tensors) => {
                        answer = adversaries.forge_alone(id, &task, &tensors, answer);
                    }
                    Role::Colluding => return Done::Colluder { answer, personal, error },
                }
                Done::Client { checked: checker.check(answer), personal, error, seen }
            }
            Job::Central { part, task } => {
                let learner = self.worker.visit_central(part);
                Done::Central(learner.and_then(|learner| measure(learner, &task)))
            }
        }
    }
}

/// What a learner with records of the server's own measures.
pub(crate) fn measure(learner: &mut dyn Learner, task: &Task) -> Option<Metrics> {
    let (entropy, stop) = (Seed::from_number(0), Stop::default());
    let (mut personal, mut memory) = (LocalState::default(), Memory::default());
    let name = ClientId::new("server").ok()?;
    let methods = SiteMethods::default();
    let mut lent =
        Lent { id: &name, learner, personal: &mut personal, memory: &mut memory, methods: &methods };
    lent.perform(task, entropy, &stop).outcome.metrics()
}

fn worker_loop(queue: &JobQueue, workforce: &dyn Workforce, stop: Stop) {
    let _panic_guard = PanicGuard(queue);
    let mut thread = WorkerThread::new(workforce, stop);
    let mut finished = None;
    while let Some((ticket, job)) = queue.take(finished.take(), &mut thread) {
        finished = Some((ticket, thread.work(job)));
    }
}

/// Says that a thread has ended in a panic, so that nobody waits for what it was at.
struct PanicGuard<'a>(&'a JobQueue);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().lost = true;
            self.0.news.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Measures nothing and remembers the order in which it was asked.
    #[derive(Default)]
    struct Diary(Mutex<Vec<usize>>);

    impl Workforce for Diary {
        fn clients(&self) -> &[ClientId] {
            &[]
        }
        fn worker(&self) -> Box<dyn Worker + '_> {
            Box::new(Writer(self))
        }
        fn central(&self) -> Option<Box<dyn Learner>> {
            None
        }
    }

    struct Writer<'a>(&'a Diary);

    impl Worker for Writer<'_> {
        fn visit(&mut self, _: usize) -> &mut dyn Learner {
            unreachable!("there are no clients")
        }
        fn visit_central(&mut self, part: usize) -> Option<&mut dyn Learner> {
            self.0.0.lock().unwrap().push(part);
            None
        }
    }

    /// Four jobs of sizes 1, 3, 2, 2, of which the last is taken back; in what order are they done?
    fn done(wanted: u64, order: Order) -> Vec<usize> {
        let (diary, queue) = (Diary::default(), JobQueue::default());
        let task = Arc::new(Task {
            id: protocol::TaskId::new(protocol::RunId(0), protocol::Round(1), protocol::StepId::EVALUATE),
            spec: Arc::clone(&plan().spec),
            seed: None,
            standardiser: None,
            work: Work::Statistics { names: Vec::new() },
        });
        let sizes = [1, 3, 2, 2];
        std::thread::scope(|scope| {
            let mut pool = WorkerPool::start(scope, 1, &queue, &diary, &Stop::default()).unwrap();
            for (part, size) in sizes.into_iter().enumerate() {
                pool.post(size, part as u64, Job::Central { part, task: Arc::clone(&task) });
            }
            pool.withdraw(2, 3);
            pool.result(sizes[wanted as usize], wanted, order).unwrap();
        });
        diary.0.into_inner().unwrap()
    }

    fn plan() -> server::Plan {
        let text = "name = \"t\"\nrounds = 1\nmodel = \"linear\"\n\
            data = { table = { label = \"y\", target = \"real\", features = [\"a\"] } }\n\
            training = { batch_size = 8, optimizer = { sgd = { learning_rate = 0.1 } } }\n";
        server::Plan::parse(text).unwrap()
    }

    #[test]
    fn the_largest_goes_first_unless_another_is_waited_for() {
        assert_eq!(done(0, Order::LargestFirst), [1, 2, 0]);
        assert_eq!(done(0, Order::AsDue), [0]);
        assert_eq!(done(2, Order::LargestFirst), [1, 2]);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_ended_in_a_panic() {
        let queue = JobQueue::default();
        let diary = Diary::default();
        std::thread::scope(|scope| {
            let mut pool = WorkerPool::start(scope, 1, &queue, &diary, &Stop::default()).unwrap();
            queue.lock().under_way.insert(9);
            let panicked = scope.spawn(|| {
                let _panic_guard = PanicGuard(&queue);
                std::panic::resume_unwind(Box::new("a learner"));
            });
            assert!(pool.result(1, 9, Order::AsDue).is_err());
            assert!(panicked.join().is_err());
        });
    }
}
