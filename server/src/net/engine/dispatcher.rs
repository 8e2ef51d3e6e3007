//! The dispatcher: it knows who is connected, which run a command belongs to, who is in quarantine and which runs are worked on, and
//! passes on what comes. It waits for no store, no run's work and no thread: what takes long comes back as a message.
//!
//! What is decided by the database (which run begins, what operators want of runs) is decided one after another; new runs are stored
//! one after another beside that; models of runs that begin are loaded side by side.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use protocol::wire::{ConnectError, Control, Receipt};
use protocol::{Capabilities, ClientId, Positive, Rejection, RunId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::actor::{Active, Done, RunActor, RunCommand};
use super::deciding::{Beginning, Choice, Decided, Decision, Occupied, Unable, Wish, load};
use super::shared::Shared;
use super::submitting::{Submitting, submit};
use super::{Command, Link, Order, calibration, joined};
use crate::Plan;
use crate::net::store::StoreError;
use crate::net::store::crash;
use crate::net::transport::messages::close;

/// Commands that may wait for a run; updates among them are bounded by bytes.
const COMMANDS: usize = 1024;

/// See the module.
pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    held: BTreeSet<ClientId>,
    runs: BTreeMap<RunId, Running>,
    /// Runs whose models are being loaded, or that are being given up.
    beginning: BTreeMap<RunId, Starting>,
    /// The run for whose plan noise is being searched, on a thread of its own.
    calibrating: Option<RunId>,
    /// How many runs may be worked on side by side.
    runs_max: usize,
    /// Whether there may be a run in the queue that could begin.
    look: bool,
    /// Each operator's request waits for its reply, and their requests are bounded; the rest is one of a run.
    decisions: VecDeque<Decision>,
    is_deciding: bool,
    submissions: VecDeque<Submitting>,
    is_submitting: bool,
    jobs: JoinSet<Finished>,
}

/// A run that is being worked on.
struct Running {
    inbox: mpsc::Sender<RunCommand>,
    population: Option<String>,
    control: Control,
}

/// A run that is about to be worked on.
struct Starting {
    population: Option<String>,
    control: Control,
    /// What operators have wanted meanwhile.
    late: Vec<(Control, oneshot::Sender<Result<(), String>>)>,
}

/// What a job gives.
enum Finished {
    Run(RunId, Result<Vec<RunCommand>, StoreError>),
    Loaded(RunId, Result<Box<Active>, Unable>),
    Decided(Result<Decided, StoreError>),
    Submitted(Result<bool, StoreError>),
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, held: BTreeSet<ClientId>, runs_max: usize) -> Self {
        Self {
            shared,
            held,
            runs: BTreeMap::new(),
            beginning: BTreeMap::new(),
            calibrating: None,
            runs_max,
            look: true,
            decisions: VecDeque::from([Decision::DeclareEarlierRuns]),
            is_deciding: false,
            submissions: VecDeque::new(),
            is_submitting: false,
            jobs: JoinSet::new(),
        }
    }

    /// Works until told to stop, or until something fails that no run can be blamed for. Then waits until all that has begun is over.
    pub(super) async fn work(mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let dispatched = self.dispatch(inbox).await;
        self.shared.halt.cancel();
        self.runs.clear();
        let mut ended = vec![dispatched];
        while let Some(finished) = self.jobs.join_next().await {
            ended.push(joined(finished).and_then(Finished::ended));
        }
        // What failed says more than that something else was cut off by it.
        ended.sort_by_key(|ended| match ended {
            Err(StoreError::Stopping) => 1,
            Err(_) => 0,
            Ok(()) => 2,
        });
        ended.swap_remove(0)
    }

    async fn dispatch(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let halt = self.shared.halt.clone();
        loop {
            self.begin_jobs();
            tokio::select! {
                biased;
                () = halt.cancelled() => return Ok(()),
                Some(finished) = self.jobs.join_next() => self.finished(joined(finished)?).await?,
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Begins the next decision and the next submission, where none is being worked on.
    fn begin_jobs(&mut self) {
        if !self.is_deciding && self.decisions.is_empty() && std::mem::take(&mut self.look) {
            self.decisions.push_back(Decision::Choose(Occupied::default()));
        }
        if !self.is_deciding
            && let Some(decision) = self.decisions.pop_front()
        {
            let (shared, decision) = (Arc::clone(&self.shared), self.as_it_stands(decision));
            self.is_deciding = true;
            self.jobs.spawn_blocking(move || Finished::Decided(decision.decide(&shared)));
        }
        if !self.is_submitting
            && let Some(new) = self.submissions.pop_front()
        {
            let shared = Arc::clone(&self.shared);
            self.is_submitting = true;
            self.jobs.spawn_blocking(move || Finished::Submitted(submit(&shared, new)));
        }
    }

    /// A decision with what it must know of the runs: nothing else changes that while it is made.
    fn as_it_stands(&self, decision: Decision) -> Decision {
        let is_known = |run| self.runs.contains_key(run) || self.beginning.contains_key(run);
        match decision {
            Decision::Choose(_) => Decision::Choose(self.occupied()),
            Decision::Control { wish, .. } => {
                let is_active = is_known(&wish.run);
                Decision::Control { wish, is_active }
            }
            decision => decision,
        }
    }

    fn occupied(&self) -> Occupied {
        let running = self.runs.iter().map(|(run, one)| (run, &one.population, one.control));
        let beginning = self.beginning.iter().map(|(run, one)| (run, &one.population, one.control));
        let mut occupied = Occupied {
            runs: BTreeSet::new(),
            populations: BTreeSet::new(),
            places: self.runs_max,
            is_searching: self.calibrating.is_some(),
        };
        for (run, population, control) in running.chain(beginning) {
            occupied.runs.insert(*run);
            occupied.populations.extend(population.clone());
            // A paused run leaves its place to another one.
            occupied.places = occupied.places.saturating_sub(usize::from(control != Control::Pause));
        }
        occupied
    }

    async fn obey(&mut self, command: Command) -> Result<(), StoreError> {
        match command {
            Command::Joined { client, link } => self.joined(client, link).await,
            Command::Left { client, session } => {
                if self.shared.sites.leave(&client, session) {
                    self.tell_all(|| RunCommand::Left { client: client.clone() }).await;
                }
            }
            Command::Answered { client, session, answer, room } => {
                crash::point("answered");
                if self.is_current(&client, session) {
                    let run = answer.task.run;
                    self.pass_on(run, RunCommand::Answered { client, answer, room }).await;
                }
            }
            Command::Refused { client, session, task, reason } => {
                if self.is_current(&client, session) {
                    self.pass_on(task.run, RunCommand::Refused { client, task, reason }).await;
                }
            }
            Command::Evaluated { run, round, metrics } => {
                self.pass_on(run, RunCommand::Evaluated { round, metrics }).await;
            }
            Command::Submit { new, by, asked, reply } => {
                self.submissions.push_back(Submitting { new, by, asked, reply });
            }
            Command::Control { run, control, by, asked, reply } => {
                let wish = Wish { run, control, by, asked: Some(asked), reply };
                self.decisions.push_back(Decision::Control { wish, is_active: false });
            }
            Command::Hold { client, held, reply } => self.hold(client, held, reply).await,
            Command::Calibrated { run, plan_toml, found } => {
                self.calibrated(run, plan_toml, found);
            }
            Command::Record(record) => {
                self.shared.journal.record(self.shared.clock.now(), record).await?;
            }
        }
        Ok(())
    }

    async fn joined(&mut self, client: ClientId, link: Link) {
        if let Some(before) = self.shared.sites.join(client.clone(), link) {
            close(&before.connection, &ConnectError::Superseded);
        }
        if !self.held.contains(&client) {
            self.tell_of(&client).await;
        }
    }

    /// Tells every run of a site that is connected.
    async fn tell_of(&mut self, client: &ClientId) {
        let Some(greeted) = self.shared.sites.greeted(client) else { return };
        self.tell_all(|| told_of(client.clone(), greeted.clone())).await;
    }

    /// A session that was replaced has nothing to say.
    fn is_current(&self, client: &ClientId, session: u64) -> bool {
        self.shared.sites.session(client) == Some(session)
    }

    async fn tell_all(&mut self, command: impl Fn() -> RunCommand) {
        let runs: Vec<RunId> = self.runs.keys().copied().collect();
        for run in runs {
            self.pass_on(run, command()).await;
        }
    }

    /// Gives a command to the run that it belongs to. A run takes its commands whatever it waits for, so that this one never waits long.
    async fn pass_on(&mut self, run: RunId, command: RunCommand) {
        if let RunCommand::Answered { client, answer, .. } = &command
            && self.held.contains(client)
        {
            // What it owed was refused and counted when its quarantine began.
            return self.receipt(client, Receipt::Refused(Rejection::Quarantined), answer.task);
        }
        let command = match self.runs.get(&run) {
            Some(running) => match running.inbox.send(command).await {
                Ok(()) => return,
                Err(mpsc::error::SendError(command)) => command,
            },
            None => command,
        };
        self.pass_back(run, command);
    }

    /// What came for a run that is not worked on, or is over.
    fn pass_back(&mut self, run: RunId, command: RunCommand) {
        match command {
            RunCommand::Answered { client, answer, .. } => {
                self.receipt(&client, Receipt::Refused(Rejection::Stale), answer.task);
            }
            // Decided anew: the answer says how the run has ended.
            RunCommand::Control { control, reply } => {
                let wish = Wish { run, control, by: String::new(), asked: None, reply };
                self.decisions.push_back(Decision::Control { wish, is_active: false });
            }
            RunCommand::Joined { .. }
            | RunCommand::Left { .. }
            | RunCommand::Held { .. }
            | RunCommand::Refused { .. }
            | RunCommand::Evaluated { .. } => {}
        }
    }

    fn receipt(&self, client: &ClientId, receipt: Receipt, task: protocol::TaskId) {
        if let Some(session) = self.shared.sites.session(client) {
            self.shared.sites.send(client, session, Order::Receipt(task, receipt));
        }
    }

    /// Holds a client back from every run, or lets it take part again. To the runs it is as absent as a site whose line is down, and what
    /// it owed is refused.
    async fn hold(&mut self, client: ClientId, held: bool, reply: oneshot::Sender<()>) {
        let done = Arc::new(Done::new(reply));
        if held && self.held.insert(client.clone()) {
            self.tell_all(|| RunCommand::Held { client: client.clone(), done: Arc::clone(&done) }).await;
        } else if !held && self.held.remove(&client) {
            self.tell_of(&client).await;
        }
    }

    /// The search for the noise of a run's plan is over.
    fn calibrated(&mut self, run: RunId, plan_toml: String, found: Result<Positive, String>) {
        self.calibrating = None;
        self.decisions.push_back(Decision::Calibrated { run, plan_toml, found });
    }

    async fn finished(&mut self, finished: Finished) -> Result<(), StoreError> {
        match finished {
            Finished::Run(run, rest) => {
                let rest = rest?;
                self.runs.remove(&run);
                self.look = true;
                rest.into_iter().for_each(|command| self.pass_back(run, command));
            }
            Finished::Loaded(_, Ok(active)) => self.install(*active),
            Finished::Loaded(run, Err(Unable::Run(reason))) => {
                self.decisions.push_back(Decision::GiveUp { run, reason });
            }
            Finished::Loaded(_, Err(Unable::Server(error))) => return Err(error),
            Finished::Decided(decided) => {
                self.is_deciding = false;
                self.decided(decided?).await;
            }
            Finished::Submitted(submitted) => {
                self.is_submitting = false;
                self.look |= submitted?;
            }
        }
        Ok(())
    }

    async fn decided(&mut self, decided: Decided) {
        match decided {
            Decided::Nothing => {}
            Decided::Changed => self.look = true,
            Decided::Chosen(choices) => choices.into_iter().for_each(|choice| self.chosen(choice)),
            Decided::Control { run, control, reply } => {
                // A paused run leaves its place to another one, and a run that goes on may have waited for one.
                self.look = true;
                if let Some(beginning) = self.beginning.get_mut(&run) {
                    beginning.control = control;
                    return beginning.late.push((control, reply));
                }
                if let Some(running) = self.runs.get_mut(&run) {
                    running.control = control;
                }
                self.pass_on(run, RunCommand::Control { control, reply }).await;
            }
            Decided::GivenUp(run) => {
                self.look = true;
                let late = self.beginning.remove(&run).map(|beginning| beginning.late);
                for (control, reply) in late.into_iter().flatten() {
                    self.pass_back(run, RunCommand::Control { control, reply });
                }
            }
        }
    }

    fn chosen(&mut self, choice: Choice) {
        match choice {
            Choice::Begin(beginning) => {
                let Beginning { run, control, plan } = beginning;
                let population = population(&plan).map(str::to_owned);
                self.beginning.insert(run, Starting { population, control, late: Vec::new() });
                let shared = Arc::clone(&self.shared);
                self.jobs.spawn_blocking(move || Finished::Loaded(run, load(&shared, run, plan)));
            }
            Choice::Search { run, plan_toml } => {
                match calibration::search(
                    run,
                    plan_toml,
                    self.shared.room.methods(),
                    self.shared.commands.clone(),
                ) {
                    Ok(()) => self.calibrating = Some(run),
                    Err(reason) => self.decisions.push_back(Decision::GiveUp { run, reason }),
                }
            }
        }
    }

    /// Lets a run begin, with the sites that are connected.
    fn install(&mut self, active: Active) {
        let run = active.run;
        let Some(Starting { population, control, late }) = self.beginning.remove(&run) else { return };
        let runs: BTreeSet<RunId> = self.runs.keys().copied().collect();
        self.shared.live.send_modify(|live| live.retain(|one, _| runs.contains(one)));
        let mut queue = Vec::new();
        if late.is_empty() && control != Control::Resume {
            // Stored before the run began, so that nobody waits for it.
            queue.push(RunCommand::Control { control, reply: oneshot::channel().0 });
        }
        queue.extend(late.into_iter().map(|(control, reply)| RunCommand::Control { control, reply }));
        let taking_part =
            self.shared.sites.all_greeted().into_iter().filter(|(client, _)| !self.held.contains(client));
        queue.extend(taking_part.map(|(client, greeted)| told_of(client, greeted)));
        let (inbox, commands) = mpsc::channel(COMMANDS);
        let (actor, coordinator) = RunActor::new(active, Arc::clone(&self.shared), commands, queue);
        self.runs.insert(run, Running { inbox, population, control });
        self.jobs.spawn(async move { Finished::Run(run, actor.work(coordinator).await) });
    }
}

/// What a run is told of a site that is connected.
fn told_of(client: ClientId, (session, capabilities): (u64, Arc<Capabilities>)) -> RunCommand {
    RunCommand::Joined { client, session, capabilities }
}

impl Finished {
    /// How it ended, when nothing follows from it any more.
    fn ended(self) -> Result<(), StoreError> {
        match self {
            Self::Run(_, ended) => ended.map(drop),
            Self::Loaded(_, Err(Unable::Server(error))) => Err(error),
            Self::Loaded(..) => Ok(()),
            Self::Decided(decided) => decided.map(drop),
            Self::Submitted(submitted) => submitted.map(drop),
        }
    }
}

/// The population whose budget a plan spends.
pub(super) fn population(plan: &Plan) -> Option<&str> {
    plan.spec.privacy.central.as_ref().map(|central| central.population.as_str())
}
