//! One run that is being worked on: it owns its coordinator, takes its commands in the order in which they come, and carries out what
//! the coordinator asks, in order.
//!
//! It runs on the async threads and does nothing there that takes long. What is stored is stored on a blocking thread, and until that
//! is done nothing further is carried out; the coordinator hears meanwhile what happens, which it only counts then. With a large model, or
//! noise, answers are checked on blocking threads as they come, and the coordinator folds and releases on one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::wire::{Control, Receipt};
use protocol::{
    Answer, Capabilities, ClientId, Layout, Metrics, Parameters, PayloadSpec, Rejection, Round, RunId, Task,
    TaskId,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::central::Evaluator;
use super::live::{self, Live};
use super::outgoing::Broadcast;
use super::shared::Shared;
use super::uploads::Room;
use super::{Order, TaskOrder, joined, on_blocking_thread, writer};
use crate::net::store::StoreError;
use crate::net::store::crash;
use crate::{Action, Checked, Commit, Coordinator, Event, Note, Plan};

/// From how many values on a model is large: to add one update to a sum takes longer than to change threads.
const LARGE: usize = 1 << 14;
/// How long an operator waits for what follows from a command before the reply says how it stands.
const REPLY_MAX: Duration = Duration::from_secs(5);

/// What the dispatcher tells a run.
pub(super) enum RunCommand {
    /// A site has come, or has connected again.
    Joined { client: ClientId, session: u64, capabilities: Arc<Capabilities> },
    /// A site has gone.
    Left { client: ClientId },
    /// A site gets no more tasks.
    Held { client: ClientId, done: Arc<Done> },
    /// A whole answer has come.
    Answered { client: ClientId, answer: Answer, room: Option<Room> },
    /// What came was no answer.
    Refused { client: ClientId, task: TaskId, reason: Rejection },
    /// The evaluation on the server's own data is done.
    Evaluated { round: Round, metrics: Option<Metrics> },
    /// What an operator wants, which is stored.
    Control { control: Control, reply: oneshot::Sender<Result<(), String>> },
}

/// Says that something is done once nobody holds it any more.
pub(super) struct Done(Option<oneshot::Sender<()>>);

impl Done {
    pub(super) fn new(reply: oneshot::Sender<()>) -> Self {
        Self(Some(reply))
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        // Whoever asked may be gone; it is done all the same.
        let _ = self.0.take().map(|reply| reply.send(()));
    }
}

/// A run as it begins or goes on.
pub(super) struct Active {
    pub(super) run: RunId,
    pub(super) plan: Arc<Plan>,
    pub(super) layout: Layout,
    pub(super) coordinator: Box<Coordinator>,
    pub(super) central: Option<Evaluator>,
    pub(super) live: Live,
}

/// See the module.
pub(super) struct RunActor {
    run: RunId,
    plan: Arc<Plan>,
    layout: Arc<Layout>,
    spec_json: Arc<str>,
    central: Option<Evaluator>,
    live: Live,
    broadcast: Broadcast,
    /// The session in which each site is known to this run: what is meant for another one reaches nobody.
    sessions: BTreeMap<ClientId, u64>,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<RunCommand>,
    /// What has come while the coordinator was away: for as long as folding or releasing takes, which waits for nothing.
    queue: VecDeque<Queued>,
    owed: Vec<Owed>,
    /// Whether what the coordinator does may take long.
    is_large: bool,
    /// Commits of which the coordinator has heard, and whose consequences are not all carried out.
    heard: u32,
    /// Whether the coordinator knows the sites that were connected when the run began: before, how it stands is no news for anybody.
    has_begun: bool,
}

/// What waits for the coordinator.
enum Queued {
    Command(RunCommand),
    /// An answer that is being checked.
    Checking {
        client: ClientId,
        task: TaskId,
        room: Option<Room>,
        check: JoinHandle<Checked>,
    },
}

/// What is said once everything that followed from a command is carried out.
enum Owed {
    Control(oneshot::Sender<Result<(), String>>),
    Held { _done: Arc<Done> },
}

/// What the coordinator is told.
enum News {
    Event(Event),
    /// The site has left as far as the run is concerned, and what it owed is refused.
    Held(ClientId),
}

impl News {
    /// Tells it. Gives a task whose stream is to be given up.
    fn tell(self, now: protocol::Time, coordinator: &mut Coordinator) -> Option<(ClientId, TaskId)> {
        match self {
            Self::Event(event) => {
                coordinator.handle(now, event);
                None
            }
            Self::Held(client) => {
                // A step that opens because this answer is not awaited any more must not ask this client again.
                coordinator.handle(now, Event::Left(client.clone()));
                let task = coordinator.owed(&client)?;
                let reason = Rejection::Quarantined;
                coordinator.handle(now, Event::Refused { client: client.clone(), task: Some(task), reason });
                Some((client, task))
            }
        }
    }
}

/// How far a run has come when there is nothing left to be carried out.
enum Settled {
    Waits(Box<Coordinator>),
    Ended,
}

impl RunActor {
    /// A run that first hears `queue`.
    pub(super) fn new(
        active: Active,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<RunCommand>,
        queue: Vec<RunCommand>,
    ) -> (Self, Box<Coordinator>) {
        let Active { run, plan, layout, coordinator, central, live } = active;
        let values = coordinator.checkpoint().model.len();
        // Noise takes a hundred times as long a value, and what it promises is computed at each release.
        let is_noised = plan.spec.privacy.central.is_some();
        let actor = Self {
            run,
            layout: Arc::new(layout),
            spec_json: plan.spec.to_json().into(),
            plan,
            central,
            live,
            broadcast: Broadcast::default(),
            sessions: BTreeMap::new(),
            shared,
            inbox,
            queue: queue.into_iter().map(Queued::Command).collect(),
            owed: Vec::new(),
            is_large: is_noised || values >= LARGE,
            heard: 0,
            has_begun: false,
        };
        (actor, coordinator)
    }

    /// Works until the run is over or the engine ends; an action that has begun is always finished. Gives what it was told and has not
    /// heard any more.
    pub(super) async fn work(
        mut self,
        mut coordinator: Box<Coordinator>,
    ) -> Result<Vec<RunCommand>, StoreError> {
        let halt = self.shared.halt.clone();
        loop {
            coordinator = match self.settle(coordinator).await? {
                Settled::Waits(coordinator) => coordinator,
                Settled::Ended => return Ok(self.leave()),
            };
            (0..std::mem::take(&mut self.heard)).for_each(|_| crash::point("told"));
            self.reply(&coordinator);
            if halt.is_cancelled() {
                return Ok(Vec::new());
            }
            coordinator = self.tick(coordinator).await?;
            self.begin_checks(&coordinator);
            if let Some(next) = self.queue.pop_front() {
                coordinator = self.take(coordinator, next).await?;
                continue;
            }
            let wait = self.patience(&coordinator);
            tokio::select! {
                biased;
                () = halt.cancelled() => return Ok(Vec::new()),
                command = self.inbox.recv() => match command {
                    Some(command) => self.queue.push_back(Queued::Command(command)),
                    None => return Ok(Vec::new()),
                },
                () = at_the_end_of(wait) => {}
            }
        }
    }

    /// How long nothing is to be done unless something happens.
    fn patience(&self, coordinator: &Coordinator) -> Option<Duration> {
        let now = self.shared.clock.now();
        let deadline = coordinator.deadline().map(|deadline| deadline - now);
        deadline.into_iter().chain(self.live.due(now)).min()
    }

    /// Tells the coordinator the time if it waits for that, and watchers what has changed. What came before the deadline is heard before.
    async fn tick(&mut self, coordinator: Box<Coordinator>) -> Result<Box<Coordinator>, StoreError> {
        let now = self.shared.clock.now();
        self.has_begun |= self.queue.is_empty();
        if self.has_begun {
            self.live.publish_if_due(now, &coordinator, &self.shared.live);
        }
        let is_due = coordinator.deadline().is_some_and(|deadline| now >= deadline);
        if !is_due || !self.queue.is_empty() {
            return Ok(coordinator);
        }
        self.tell(coordinator, News::Event(Event::Tick)).await
    }

    /// Lets the coordinator hear what was queued first.
    async fn take(
        &mut self,
        coordinator: Box<Coordinator>,
        next: Queued,
    ) -> Result<Box<Coordinator>, StoreError> {
        let (news, room) = match next {
            Queued::Command(command) => self.news(command),
            Queued::Checking { client, room, check, .. } => {
                let checked = self.meanwhile(check).await?;
                (News::Event(Event::Checked { client, checked }), room)
            }
        };
        let is_answer = matches!(news, News::Event(Event::Answered { .. } | Event::Checked { .. }));
        let mut coordinator = self.tell(coordinator, news).await?;
        if is_answer {
            crash::point("folded");
        }
        if let Some(room) = room {
            room.leave(coordinator.reclaim());
        }
        Ok(coordinator)
    }

    /// What a command means to the coordinator, and the memory that goes with it.
    fn news(&mut self, command: RunCommand) -> (News, Option<Room>) {
        let event = match command {
            RunCommand::Joined { client, session, capabilities } => {
                self.sessions.insert(client.clone(), session);
                Event::Joined { client, capabilities }
            }
            RunCommand::Left { client } => {
                self.sessions.remove(&client);
                Event::Left(client)
            }
            RunCommand::Held { client, done } => {
                self.owed.push(Owed::Held { _done: done });
                return (News::Held(client), None);
            }
            RunCommand::Answered { client, answer, room } => {
                return (News::Event(Event::Answered { client, answer }), room);
            }
            RunCommand::Refused { client, task, reason } => {
                Event::Refused { client, task: Some(task), reason }
            }
            RunCommand::Evaluated { round, metrics } => Event::EvaluatedCentrally { round, metrics },
            RunCommand::Control { control, reply } => {
                self.owed.push(Owed::Control(reply));
                Event::Control(control)
            }
        };
        (News::Event(event), None)
    }

    /// Lets the coordinator decide, on a blocking thread where that may take long.
    async fn tell(
        &mut self,
        mut coordinator: Box<Coordinator>,
        news: News,
    ) -> Result<Box<Coordinator>, StoreError> {
        let now = self.shared.clock.now();
        self.live.touch();
        let given_up = if self.is_large {
            let away = on_blocking_thread(move || {
                let given_up = news.tell(now, &mut coordinator);
                (coordinator, given_up)
            });
            let given_up;
            (coordinator, given_up) = self.meanwhile(away).await?;
            given_up
        } else {
            news.tell(now, &mut coordinator)
        };
        self.give_up(given_up);
        Ok(coordinator)
    }

    fn give_up(&self, task: Option<(ClientId, TaskId)>) {
        if let Some((client, task)) = task {
            // Its stream is given up before its receipt, so that its site stops working.
            self.order(&client, Order::Cancel(task));
        }
    }

    /// Waits for a blocking thread, and queues what comes meanwhile.
    async fn meanwhile<T>(&mut self, mut job: JoinHandle<T>) -> Result<T, StoreError> {
        loop {
            tokio::select! {
                biased;
                done = &mut job => return joined(done),
                Some(command) = self.inbox.recv() => self.queue.push_back(Queued::Command(command)),
            }
        }
    }

    /// Stores something. The coordinator waits for that and decides nothing before; it hears meanwhile who comes and goes, and what the
    /// operator wants.
    async fn store<T: Send + 'static>(
        &mut self,
        coordinator: &mut Coordinator,
        job: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut stored = on_blocking_thread(move || job(&shared));
        for queued in std::mem::take(&mut self.queue) {
            match queued {
                Queued::Command(command) => self.hear(coordinator, command),
                checking @ Queued::Checking { .. } => self.queue.push_back(checking),
            }
        }
        self.has_begun = true;
        let overdue = sleep(REPLY_MAX);
        tokio::pin!(overdue);
        loop {
            let due = self.live.due(self.shared.clock.now());
            tokio::select! {
                biased;
                done = &mut stored => return joined(done)?,
                Some(command) = self.inbox.recv() => self.hear(coordinator, command),
                () = at_the_end_of(due), if self.has_begun => {
                    self.live.publish_if_due(self.shared.clock.now(), coordinator, &self.shared.live);
                }
                () = &mut overdue, if !self.owed.is_empty() => {
                    self.reply(coordinator);
                    overdue.as_mut().reset(tokio::time::Instant::now() + REPLY_MAX);
                }
            }
        }
    }

    /// Lets a coordinator that waits for the store hear a command: it folds and releases nothing then.
    fn hear(&mut self, coordinator: &mut Coordinator, command: RunCommand) {
        let (news, room) = self.news(command);
        self.live.touch();
        let given_up = news.tell(self.shared.clock.now(), coordinator);
        self.give_up(given_up);
        drop(room);
    }

    /// Lets answers to a large model's task that are queued be checked side by side, as many as there are threads for.
    fn begin_checks(&mut self, coordinator: &Coordinator) {
        if !self.is_large {
            return;
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.queue.push_back(Queued::Command(command));
        }
        for place in 0..self.queue.len() {
            let Queued::Command(RunCommand::Answered { client, answer, .. }) = &self.queue[place] else {
                continue;
            };
            if coordinator.owed(client) != Some(answer.task) {
                continue;
            }
            let Ok(permit) = Arc::clone(&self.shared.verifications).try_acquire_owned() else { return };
            let Some(Queued::Command(RunCommand::Answered { client, answer, room })) =
                self.queue.remove(place)
            else {
                return;
            };
            let (task, checker) = (answer.task, coordinator.checker());
            let check = on_blocking_thread(move || {
                let _permit = permit;
                checker.check(answer)
            });
            self.queue.insert(place, Queued::Checking { client, task, room, check });
        }
    }

    /// Carries out what the coordinator asks until there is nothing left.
    async fn settle(&mut self, mut coordinator: Box<Coordinator>) -> Result<Settled, StoreError> {
        while let Some(action) = coordinator.poll() {
            match action {
                Action::Send { client, task } => {
                    let expects = coordinator.expects();
                    self.send(&client, task, expects).await?;
                }
                Action::Cancel { client, task } => self.order(&client, Order::Cancel(task)),
                Action::Receipt { client, task, receipt } => {
                    self.order(&client, Order::Receipt(task, receipt));
                }
                Action::Reserve(reservation) => {
                    crash::point("reservation-due");
                    let stored = move |shared: &Shared| writer::reserve(shared, &reservation);
                    self.store(&mut coordinator, stored).await?;
                    crash::point("reserved");
                    coordinator = self.tell(coordinator, News::Event(Event::Reserved)).await?;
                }
                Action::Commit(commit) => {
                    crash::point("noised");
                    self.commit(&mut coordinator, commit).await?;
                    crash::point("committed");
                    self.heard += 1;
                    coordinator = self.tell(coordinator, News::Event(Event::Committed)).await?;
                }
                Action::EvaluateCentrally { round, model, standardiser } => {
                    let asked = self.central.as_ref().is_some_and(|one| one.ask(round, model, standardiser));
                    if !asked {
                        let none = Event::EvaluatedCentrally { round, metrics: None };
                        coordinator = self.tell(coordinator, News::Event(none)).await?;
                    }
                }
                Action::Note(note) => self.note(note).await?,
                Action::Ended(end) => {
                    live::log_end(self.run, &self.plan.name, &end);
                    if let Some(worsened) = self.live.worsened().filter(|_| self.plan.method.is_none()) {
                        tracing::warn!(target: "events", "run {}: {worsened}", self.run);
                    }
                    self.live.end(&end);
                    self.live.publish(self.shared.clock.now(), &coordinator, &self.shared.live);
                    return Ok(Settled::Ended);
                }
            }
        }
        Ok(Settled::Waits(coordinator))
    }

    async fn commit(&mut self, coordinator: &mut Coordinator, commit: Box<Commit>) -> Result<(), StoreError> {
        // Storing a model takes memory of its own.
        self.shared.spare.clear();
        self.broadcast = Broadcast::default();
        let (run, layout) = (self.run, Arc::clone(&self.layout));
        let stored = move |shared: &Shared| {
            let model_sha256 = writer::commit(shared, run, &layout, &commit)?;
            Ok((commit, model_sha256))
        };
        let (commit, model_sha256) = self.store(coordinator, stored).await?;
        self.live.committed(&commit, model_sha256);
        self.live.publish(self.shared.clock.now(), coordinator, &self.shared.live);
        Ok(())
    }

    /// Puts a task to a site.
    async fn send(
        &mut self,
        client: &ClientId,
        task: Task,
        expects: Arc<PayloadSpec>,
    ) -> Result<(), StoreError> {
        let spec_json = Arc::clone(&self.spec_json);
        crash::point("sending");
        let model = match task.work.model() {
            Some(model) => Some(self.bytes(model, &task).await?),
            None => None,
        };
        let order = TaskOrder { task, spec_json, expects, model };
        self.order(client, Order::Task(Box::new(order)));
        Ok(())
    }

    /// The model as it travels. A large one that is to be packed is packed on a blocking thread.
    async fn bytes(&mut self, model: &Arc<Parameters>, task: &Task) -> Result<Bytes, StoreError> {
        if self.is_large && !self.broadcast.has(model, task) {
            let (mut broadcast, model, task) = (Broadcast::default(), Arc::clone(model), task.clone());
            let packed = on_blocking_thread(move || {
                broadcast.bytes(&model, &task);
                broadcast
            });
            self.broadcast = self.meanwhile(packed).await?;
        }
        Ok(self.broadcast.bytes(model, task))
    }

    /// Tells a note to all that keep something of it.
    async fn note(&self, note: Note) -> Result<(), StoreError> {
        let now = self.shared.clock.now();
        live::log(self.run, &note);
        self.shared.meter.note(now, self.run, &note);
        self.shared.journal.note(now, self.run, note).await
    }

    fn order(&self, client: &ClientId, order: Order) {
        if let Some(session) = self.sessions.get(client) {
            self.shared.sites.send(client, *session, order);
        }
    }

    /// Tells operators how the run stands after what they wanted.
    fn reply(&mut self, coordinator: &Coordinator) {
        if self.owed.is_empty() {
            return;
        }
        self.live.publish(self.shared.clock.now(), coordinator, &self.shared.live);
        self.release_owed();
    }

    fn release_owed(&mut self) {
        for owed in self.owed.drain(..) {
            if let Owed::Control(reply) = owed {
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// The run is over: what was not heard any more.
    fn leave(&mut self) -> Vec<RunCommand> {
        self.release_owed();
        self.inbox.close();
        let mut rest = Vec::new();
        for queued in std::mem::take(&mut self.queue) {
            match queued {
                Queued::Command(command) => rest.push(command),
                Queued::Checking { client, task, room, .. } => {
                    drop(room);
                    self.order(&client, Order::Receipt(task, Receipt::Refused(Rejection::Stale)));
                }
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            rest.push(command);
        }
        rest
    }
}

/// Ends with the time, or never.
async fn at_the_end_of(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => std::future::pending().await,
    }
}
